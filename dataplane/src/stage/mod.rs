//! The stages of a cell's path, in order.
//!
//! ```text
//! ingress   length, header, channel, replay window; sorts out what control gets
//! open      forward: takes a layer off and authenticates; backward: puts a layer on
//! pool      holds cells until the mixing rule releases them, shuffled
//! rounds    in place of the pool in paced classes: the same number of cells leaves in each round
//! seal      enciphers the header for the next link, groups by neighbour
//! ```
//!
//! A stage sees buffers, batches, the table, the ledger and `wire`, never sockets. Of another stage it sees only the
//! type that is handed to it.

pub mod ingress;
pub mod open;
pub mod pool;
pub mod rounds;
pub mod seal;
