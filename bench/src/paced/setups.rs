//! What the setup of a channel costs a hop's control: in memory, without the link cells' own cryptography.

use std::time::Duration;

use anyhow::ensure;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use wire::cell::Shape;
use wire::kdf::Secret;
use wire::paced::PacedTerms;
use wire::setup::{self, HopPublic, Info, SetupKey, Suite, TOKEN_LEN, onion_len};

use super::HOPS;
use crate::hop::cores::own_time;
use crate::stats::median;

/// Setups that are measured.
const SETUPS: u32 = 200;

/// Processor time of a mix for one setup, median: it decodes the onion from its shards with as many lost as may be,
/// opens it, answers, and encodes what goes on.
///
/// # Errors
/// The setup does not open.
pub(super) fn setup_cost(terms: &PacedTerms, position: usize) -> anyhow::Result<Duration> {
    let shape = Shape::new(terms.class.size(), HOPS)?;
    let suite = Suite::Hybrid;
    let info = Info::paced(suite, terms.class, 0);
    let key = SetupKey::generate(suite, Secret::new([7; 32]));
    // Those before this mix have taken their layers off.
    let hops = vec![HopPublic { setup: key.public(), descriptor_hash: [1; 32] }; HOPS + 1 - position];
    let (code, next) = (terms.setup_shards(suite, HOPS, position), terms.setup_shards(suite, HOPS, position + 1));
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut secret = || {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        Secret::new(bytes)
    };
    let mut spent = Vec::new();
    for _ in 0..SETUPS {
        let shares = hops.iter().map(|public| public.setup.share(secret())).collect();
        let (onion, _pending) = setup::build_with_token(shape, &hops, shares, info, &[5; TOKEN_LEN])?;
        let mut shards = in_shards(onion, shape.payload());
        code.encode(&mut shards);
        let lost = code.parity.min(code.data);
        let kept: Vec<u8> = (lost..lost + code.data).map(|at| at as u8).collect();
        let start = own_time();
        let mut joined = code.decode(&kept, &shards[lost..lost + code.data]);
        joined.truncate(onion_len(shape, suite, position) + TOKEN_LEN);
        let opened = setup::open(shape, position, &[[1; 32]], &key, info, &joined)?;
        let mut rest = in_shards(opened.rest.clone(), shape.payload());
        opened.answer(secret())?;
        next.encode(&mut rest);
        spent.push(own_time() - start);
        ensure!(rest.len() == next.total(), "a mix sends the shards on");
    }
    Ok(Duration::from_nanos(median(spent.iter().map(|time| time.as_nanos() as f64)) as u64))
}

fn in_shards(mut onion: Vec<u8>, len: usize) -> Vec<Vec<u8>> {
    onion.resize(onion.len().next_multiple_of(len), 0);
    onion.chunks(len).map(<[u8]>::to_vec).collect()
}
