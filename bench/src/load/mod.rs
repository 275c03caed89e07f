//! Open-loop load: many flows from many sockets into a forward, and a destination behind the exit.
//!
//! ```text
//! command      `eddy-bench load`                   generator    a run: sender, destination, clients
//! runs         direct and through a chain          record       what arrived, flow by flow
//! plan         flows in order of time              mos          call quality
//! even         even loads                          calibration  what the generator can do alone
//! profile      traffic of applications             summary      results as tables
//! source       a flow's datagrams                  header       the first bytes of a datagram
//! ```

mod calibration;
pub mod command;
pub(crate) mod even;
pub(crate) mod generator;
mod header;
pub(crate) mod plan;
pub(crate) mod profile;
pub(crate) mod record;
pub(crate) mod runs;
pub(crate) mod source;
mod summary;
