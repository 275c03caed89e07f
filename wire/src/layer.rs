//! The entry's side of the layers: it adds all of them forward and removes all of them backward
//! (SPEC 3.4, 3.5).
//!
//! A mix opens or adds one layer, directly with [`crate::gcm`]. The layers of one cell depend on each
//! other, but cells do not, so both functions go layer by layer over the whole batch.

use arrayvec::ArrayVec;

use crate::cell::{CellKind, HEADER_LEN, Header, MAX_HOPS, Shape};
use crate::gcm::{AeadKey, Job, StreamKey, ctr_batch, open_batch, seal_batch};
use crate::key::Generations;
use crate::setup::HopSecrets;

/// Most cells in one call.
pub const BATCH_MAX: usize = 64;

/// The entry's keys of one channel: forward and backward for each hop, hop 1 first.
pub struct EntryKeys {
    forward: ArrayVec<Generations<AeadKey>, MAX_HOPS>,
    /// Of the mixes, which add a keystream.
    backward: ArrayVec<Generations<StreamKey>, MAX_HOPS>,
    /// Of the exit, which seals backward cells.
    exit: Generations<AeadKey>,
}

impl EntryKeys {
    /// From the setup's secrets, hop 1 first; sequence numbers start at `first`.
    ///
    /// # Panics
    /// Unless there are 2 to 8 hops.
    pub fn new(hops: &[HopSecrets], first: u64) -> EntryKeys {
        assert!((2..=MAX_HOPS).contains(&hops.len()));
        let (exit, mixes) = hops.split_last().expect("not empty");
        EntryKeys {
            forward: hops.iter().map(|hop| Generations::new(&hop.forward, first)).collect(),
            backward: mixes.iter().map(|hop| Generations::new(&hop.backward, first)).collect(),
            exit: Generations::new(&exit.backward, first),
        }
    }

    /// Wipes and prepares forward generations; `next` is the next number to send.
    pub fn advance_forward(&mut self, next: u64) {
        for hop in &mut self.forward {
            hop.advance(next);
        }
    }

    /// Wipes and prepares backward generations; `lowest` is that of the replay window.
    pub fn advance_backward(&mut self, lowest: u64) {
        for hop in &mut self.backward {
            hop.advance(lowest);
        }
        self.exit.advance(lowest);
    }
}

/// One cell of a batch at the entry.
pub struct EntryJob<'a> {
    pub keys: &'a EntryKeys,
    /// Its data header. `channel` is ignored.
    pub header: Header,
    /// The whole cell: header block, then body.
    pub cell: &'a mut [u8],
    /// Set by [`unwrap`]: the exit's tag is valid.
    pub ok: bool,
}

/// Adds all layers to a batch. Before the call the payload follows the header block; afterwards the
/// body of link 1 does. Each cell has `shape.longest_cell()` bytes. The header block is not touched.
///
/// # Panics
/// More than [`BATCH_MAX`] cells, a cell of another length, or a sequence number without prepared keys.
pub fn wrap(shape: Shape, batch: &mut [EntryJob<'_>]) {
    for hop in (1..=shape.hops()).rev() {
        let mut jobs: ArrayVec<Job<'_, AeadKey>, BATCH_MAX> = ArrayVec::new();
        for cell in batch.iter_mut() {
            assert_eq!(cell.cell.len(), shape.longest_cell());
            let (key, iv) = cell.keys.forward[hop - 1].of(cell.header.seq).expect("the sender's generation is live");
            let body = &mut cell.cell[HEADER_LEN..HEADER_LEN + shape.forward_body(hop)];
            jobs.push(Job::new(key, cell.header.data_nonce(iv), body));
        }
        seal_batch(&mut jobs);
    }
}

/// Removes all layers of a batch of backward cells. `ok` is set on those that the exit sealed; their
/// payload follows the header block. It is not set on cells without a live generation.
///
/// # Panics
/// More than [`BATCH_MAX`] cells, or a cell shorter than a backward cell.
pub fn unwrap(shape: Shape, batch: &mut [EntryJob<'_>]) {
    let body = HEADER_LEN..HEADER_LEN + shape.backward_body();
    for mix in 0..shape.hops() - 1 {
        let mut jobs: ArrayVec<Job<'_, StreamKey>, BATCH_MAX> = ArrayVec::new();
        for cell in batch.iter_mut() {
            if let Some((key, iv)) = cell.keys.backward[mix].of(cell.header.seq) {
                jobs.push(Job::new(key, cell.header.data_nonce(iv), &mut cell.cell[body.clone()]));
            }
        }
        ctr_batch(&mut jobs);
    }
    let mut jobs: ArrayVec<(Job<'_, AeadKey>, &mut bool), BATCH_MAX> = ArrayVec::new();
    for cell in batch.iter_mut() {
        cell.ok = false;
        if let Some((key, iv)) = cell.keys.exit.of(cell.header.seq) {
            let job = Job::new(key, cell.header.data_nonce(iv), &mut cell.cell[body.clone()]);
            jobs.push((job, &mut cell.ok));
        }
    }
    for (job, ok) in &mut jobs {
        open_batch(std::slice::from_mut(job));
        **ok = job.ok;
    }
}

/// The header of a data cell of a free class.
pub fn data_header(shape: Shape, channel: u32, seq: u64) -> Header {
    Header { channel, seq, sub: 0, kind: CellKind::Data, class: shape.class() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{Class, Direction};
    use crate::kdf::Secret;

    fn secrets(hops: usize) -> Vec<HopSecrets> {
        (0..hops as u8)
            .map(|hop| HopSecrets {
                confirm: Default::default(),
                ack: zeroize::Zeroizing::new([0; 28]),
                forward: Secret::new([hop; 32]),
                backward: Secret::new([0x80 | hop; 32]),
            })
            .collect()
    }

    #[test]
    fn each_hop_opens_one_layer_and_exit_reads_the_payload() {
        for class in [Class::S, Class::M, Class::L] {
            for hops in 2..=8 {
                let shape = Shape::new(class, hops).unwrap();
                let secrets = secrets(hops);
                let keys = EntryKeys::new(&secrets, 0);
                let mut cells = vec![vec![0u8; shape.longest_cell()]; 3];
                for (i, cell) in cells.iter_mut().enumerate() {
                    cell[16..16 + shape.payload()].fill(i as u8 + 1);
                }
                let mut batch: Vec<_> = cells
                    .iter_mut()
                    .enumerate()
                    .map(|(i, cell)| EntryJob { keys: &keys, header: data_header(shape, 1, i as u64), cell, ok: false })
                    .collect();
                wrap(shape, &mut batch);
                for (i, cell) in cells.iter_mut().enumerate() {
                    for hop in 1..=hops {
                        let generations = Generations::<AeadKey>::new(&secrets[hop - 1].forward, 0);
                        let (key, iv) = generations.of(i as u64).unwrap();
                        let nonce = data_header(shape, 1, i as u64).data_nonce(iv);
                        let len = shape.cell_len(Direction::Forward, hop);
                        let mut jobs = [Job::new(key, nonce, &mut cell[16..len])];
                        open_batch(&mut jobs);
                        assert!(jobs[0].ok, "{class} hop {hop} of {hops}");
                    }
                    assert!(cell[16..16 + shape.payload()].iter().all(|b| *b == i as u8 + 1));
                }
            }
        }
    }

    #[test]
    fn entry_strips_layers_of_exit_and_mixes() {
        let shape = Shape::new(Class::S, 4).unwrap();
        let secrets = secrets(4);
        let keys = EntryKeys::new(&secrets, 0);
        let header = data_header(shape, 1, 9);
        let mut cell = vec![0u8; shape.cell_len(Direction::Backward, 1)];
        cell[16..16 + shape.payload()].fill(42);
        let exit = Generations::<AeadKey>::new(&secrets[3].backward, 0);
        let (key, iv) = exit.of(9).unwrap();
        seal_batch(&mut [Job::new(key, header.data_nonce(iv), &mut cell[16..])]);
        for mix in (0..3).rev() {
            let generations = Generations::<StreamKey>::new(&secrets[mix].backward, 0);
            let (key, iv) = generations.of(9).unwrap();
            ctr_batch(&mut [Job::new(key, header.data_nonce(iv), &mut cell[16..])]);
        }
        let mut tampered = cell.clone();
        tampered[100] ^= 1;
        let mut batch = [
            EntryJob { keys: &keys, header, cell: &mut cell, ok: false },
            EntryJob { keys: &keys, header, cell: &mut tampered, ok: false },
        ];
        unwrap(shape, &mut batch);
        assert!(batch[0].ok && !batch[1].ok);
        assert!(cell[16..16 + shape.payload()].iter().all(|b| *b == 42));
    }

    #[test]
    fn entry_wipes_generations_in_both_directions() {
        let shape = Shape::new(Class::S, 3).unwrap();
        let secrets = secrets(3);
        let mut keys = EntryKeys::new(&secrets, 0);
        keys.advance_forward(1 << 20);
        keys.advance_backward(1 << 20);
        let live = |seq| {
            let forward = keys.forward.iter().map(|hop| hop.of(seq).is_some());
            let backward = keys.backward.iter().map(|hop| hop.of(seq).is_some());
            forward.chain(backward).chain([keys.exit.of(seq).is_some()]).collect::<Vec<_>>()
        };
        assert_eq!(live((1 << 20) - 1), [false; 6]);
        assert_eq!((live(1 << 20), live(2 << 20)), (vec![true; 6], vec![true; 6]));
        let mut cell = vec![0; shape.longest_cell()];
        let mut old = [EntryJob { keys: &keys, header: data_header(shape, 1, 9), cell: &mut cell, ok: true }];
        unwrap(shape, &mut old);
        assert!(!old[0].ok, "a cell without a live generation is not ok");
    }
}
