//! The layer of a paced class at a mix, and GCM of the same engine and length next to it.

use wire::gcm::{AeadKey, Job, UIV_KEY_LEN, UivKey, decipher_batch, encipher_batch, open_batch, prepare, seal_batch};
use wire::kdf::expand;

use super::{CELLS, CHANNELS, Stage, secret, shape};

const NONCE: [u8; 12] = *b"not a secret";

/// Bodies of a round, channel after channel, and what they are made from.
struct Bodies {
    made: Vec<Vec<u8>>,
    bodies: Vec<Vec<u8>>,
}

impl Bodies {
    fn new() -> Bodies {
        let made: Vec<Vec<u8>> = (0..CELLS).map(|i| vec![i as u8; shape().backward_body()]).collect();
        Bodies { bodies: made.clone(), made }
    }

    fn reset(&mut self) {
        for (body, made) in self.bodies.iter_mut().zip(&self.made) {
            body.copy_from_slice(made);
        }
    }
}

/// A batch: a key for each channel, and the bodies in turn.
fn jobs<'a, K>(keys: &'a [K], bodies: &'a mut [Vec<u8>]) -> Vec<Job<'a, K>> {
    keys.iter().cycle().zip(bodies).map(|(key, body)| Job::new(key, NONCE, body)).collect()
}

/// Enciphers bodies, as a mix does with each cell of a paced class.
pub(super) struct Wide {
    keys: Vec<UivKey>,
    bodies: Bodies,
}

impl Wide {
    pub(super) fn new() -> Wide {
        let key = |channel| UivKey::prepare(&expand::<UIV_KEY_LEN>(&secret(channel, 1), "eddy1 wide"));
        Wide { keys: (0..CHANNELS).map(key).collect(), bodies: Bodies::new() }
    }
}

impl Stage for Wide {
    fn prepare(&mut self) {
        self.bodies.reset();
    }

    fn run(&mut self) -> usize {
        wide(self);
        CELLS
    }

    fn is_correct(&mut self) -> bool {
        decipher_batch(&mut jobs(&self.keys, &mut self.bodies.bodies));
        self.bodies.bodies == self.bodies.made
    }
}

#[inline(never)]
fn wide(stage: &mut Wide) {
    encipher_batch(&mut jobs(&stage.keys, &mut stage.bodies.bodies));
}

/// Opens bodies of the same length, to compare with [`Wide`].
pub(super) struct Open {
    keys: Vec<AeadKey>,
    bodies: Bodies,
    ok: bool,
}

impl Open {
    pub(super) fn new() -> Open {
        let key = |channel| prepare(&expand(&secret(channel, 1), "eddy1 key"));
        let keys: Vec<AeadKey> = (0..CHANNELS).map(key).collect();
        let mut bodies = Bodies::new();
        seal_batch(&mut jobs(&keys, &mut bodies.made));
        Open { keys, bodies, ok: false }
    }
}

impl Stage for Open {
    fn prepare(&mut self) {
        self.bodies.reset();
    }

    fn run(&mut self) -> usize {
        open(self);
        CELLS
    }

    fn is_correct(&mut self) -> bool {
        self.ok
    }
}

#[inline(never)]
fn open(stage: &mut Open) {
    let mut jobs = jobs(&stage.keys, &mut stage.bodies.bodies);
    open_batch(&mut jobs);
    stage.ok = jobs.iter().all(|job| job.ok);
}
