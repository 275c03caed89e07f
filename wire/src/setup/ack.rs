//! The ack of a setup: each hop's ephemeral and confirmation, under layers that the entry removes (SPEC
//! 5.4).

use subtle::ConstantTimeEq;
use thiserror::Error;

use super::{HopSecrets, Pending};
use crate::cell::Shape;
use crate::gcm::{Job, Prepared, StreamKey, ctr_batch, prepare};
use crate::kdf::{LowOrder, x25519};

/// Bytes of an ack slot: e (32) and confirm (16).
pub const SLOT_LEN: usize = 48;

/// Ack slots in one cell: q.
const fn slots_per_cell(shape: Shape) -> usize {
    shape.payload() / SLOT_LEN
}

/// Ack cells of one setup: K.
pub const fn ack_cells(shape: Shape) -> usize {
    shape.hops().div_ceil(slots_per_cell(shape))
}

/// The ack cell and the byte range of the slot of hop `i`.
pub const fn slot(shape: Shape, i: usize) -> (usize, std::ops::Range<usize>) {
    let from_exit = shape.hops() - i;
    let at = SLOT_LEN * (from_exit % slots_per_cell(shape));
    (from_exit / slots_per_cell(shape), at..at + SLOT_LEN)
}

fn ack_layer(secrets: &HopSecrets, sub: u8, content: &mut [u8]) {
    let key: StreamKey = prepare(&secrets.ack);
    let mut nonce = *key.iv();
    nonce[11] ^= sub;
    ctr_batch(&mut [Job::new(&key, nonce, content)]);
}

/// Writes the slot of hop `i` into the content of ack cell `sub`, if the slot belongs there.
fn write_slot(shape: Shape, i: usize, sub: u8, ephemeral: &[u8; 32], confirm: &[u8; 16], content: &mut [u8]) {
    let (cell, range) = slot(shape, i);
    if cell == usize::from(sub) {
        let (e, c) = content[range].split_at_mut(32);
        e.copy_from_slice(ephemeral);
        c.copy_from_slice(confirm);
    }
}

/// Writes the exit's slot into ack cell `sub`, whose `content` holds P fresh random bytes.
pub fn begin_ack(shape: Shape, sub: u8, ephemeral: &[u8; 32], secrets: &HopSecrets, content: &mut [u8]) {
    write_slot(shape, shape.hops(), sub, ephemeral, &secrets.confirm, content);
}

/// Adds the layer of mix `i` to ack cell `sub`, then writes its slot. The caller must pass each `sub`
/// only once, or two texts share a keystream.
pub fn cover_ack(shape: Shape, i: usize, sub: u8, ephemeral: &[u8; 32], secrets: &HopSecrets, content: &mut [u8]) {
    ack_layer(secrets, sub, content);
    write_slot(shape, i, sub, ephemeral, &secrets.confirm, content);
}

/// Why the entry refuses an ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadAck {
    #[error("low-order point in the ack of hop {0}")]
    LowOrder(usize),
    #[error("wrong confirmation from hop {0}")]
    Confirm(usize),
}

impl Pending {
    /// Reads the slots of the setup's hops from the contents of the [`ack_cells`], the nearest hop first, and removes
    /// a layer after each.
    ///
    /// # Errors
    /// One wrong slot discards the setup.
    pub fn finish(&self, shape: Shape, contents: &mut [Vec<u8>]) -> Result<Vec<HopSecrets>, BadAck> {
        let mut all = Vec::with_capacity(self.hops.len());
        for (at, (x, prk0)) in self.hops.iter().enumerate() {
            let i = shape.hops() - self.hops.len() + at + 1;
            let (cell, range) = slot(shape, i);
            let bytes = &contents[cell][range];
            let ephemeral: [u8; 32] = bytes[..32].try_into().expect("a slot is 48 bytes");
            let dh = x25519(x, &ephemeral).map_err(|LowOrder| BadAck::LowOrder(i))?;
            let secrets = HopSecrets::derive(prk0, &dh, &ephemeral);
            if !bool::from(secrets.confirm.ct_eq(&bytes[32..])) {
                return Err(BadAck::Confirm(i));
            }
            if i < shape.hops() {
                for (sub, content) in contents.iter_mut().enumerate() {
                    ack_layer(&secrets, sub as u8, content);
                }
            }
            all.push(secrets);
        }
        Ok(all)
    }
}
