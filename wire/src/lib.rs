//! The cell and its cryptography (docs/SPEC.md 2, 3, 5.1-5.4, 9.2, 9.3, 9.13).
//!
//! Owns every byte of a cell: lengths, header block, layers, inner frames, the setup onion and its
//! ack. It has no sockets, no clock and no threads, and allocates nothing per cell. Randomness is
//! passed in. Neighbours: `control` drives [`setup`] and seals link control cells with [`link`];
//! `dataplane` moves cells through [`link`], [`layer`], [`replay`] and [`frames`].

#![warn(unreachable_pub)]

pub mod cell;
pub mod frames;
pub mod gcm;
pub mod handshake;
pub mod ids;
pub mod kdf;
pub mod key;
pub mod layer;
pub mod link;
pub mod paced;
pub mod reassembly;
pub mod replay;
pub mod setup;
pub mod shards;
