//! Whether this host opens the setups of its paced classes in time (SPEC 9.16.3).

use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use rustix::time::{ClockId, clock_gettime};
use wire::cell::Shape;
use wire::kdf::Secret;
use wire::paced::{PacedTerms, seats_on};
use wire::setup::{self, HopPublic, Info, SetupKey, Suite, TOKEN_LEN, onion_len};

/// Setups that a node opens when it starts, to measure the time.
const OPENINGS: usize = 20;

/// Seats that cannot be opened within a phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooManySeats {
    /// The class whose phases have least room.
    pub class: String,
    /// Setups of a batch of all paced classes at this hop, with those of loops.
    pub seats: usize,
    /// Processor time for all of them.
    pub takes: Duration,
    /// The rounds of a phase of that class in which no setup arrives.
    pub room: Duration,
}

/// Measures how long the hop at this position takes for the seats of all its paced classes: the same processors open
/// them, and their phases may coincide. The host may do other work meanwhile.
///
/// # Errors
/// It takes longer than the last rounds of a phase, in which no setup arrives.
pub fn check(classes: &[&PacedTerms], suite: Suite, hops: usize, position: usize) -> Result<(), TooManySeats> {
    // The least is what the others would take without interruptions.
    let least = |terms| opening_times(terms, suite, hops, position, OPENINGS).into_iter().min().unwrap_or_default();
    let measured: Vec<_> = classes.iter().map(|terms| (*terms, least(terms))).collect();
    within(&measured, hops, position)
}

/// `classes` with the time for one setup of each.
fn within(classes: &[(&PacedTerms, Duration)], hops: usize, position: usize) -> Result<(), TooManySeats> {
    let seats = |terms: &PacedTerms| seats_on(position, terms.seats, terms.loops);
    let room = |terms: &PacedTerms| {
        let times = terms.timetable(hops);
        Duration::from_millis((times.phase_len() - times.used()) * u64::from(terms.period_ms))
    };
    let takes = classes.iter().map(|(terms, one)| *one * seats(terms) as u32).sum();
    let least = classes.iter().map(|(terms, _)| (room(terms), *terms)).min_by_key(|(room, _)| *room);
    least.filter(|(room, _)| takes > *room).map_or(Ok(()), |(room, terms)| {
        let seats = classes.iter().map(|(terms, _)| seats(terms)).sum();
        Err(TooManySeats { class: terms.name.clone(), seats, takes, room })
    })
}

/// Processor time of a hop for setups: each is decoded from its shards with as many lost as may be, opened and
/// answered, and what goes on is encoded.
pub fn opening_times(terms: &PacedTerms, suite: Suite, hops: usize, position: usize, count: usize) -> Vec<Duration> {
    let shape = Shape::new(terms.class.size(), hops).expect("the chain has as many hops");
    let info = Info::paced(suite, terms.class, 0);
    // The keys are nobody's.
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let mut secret = || {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        Secret::new(bytes)
    };
    let key = SetupKey::generate(suite, secret());
    // Those before this hop have taken their layers off.
    let publics = vec![HopPublic { setup: key.public(), descriptor_hash: [1; 32] }; hops + 1 - position];
    let code = terms.setup_shards(suite, hops, position);
    let next = (position < hops).then(|| terms.setup_shards(suite, hops, position + 1));
    let mut spent = Vec::new();
    for _ in 0..count {
        let shares = publics.iter().map(|public| public.setup.share(secret())).collect();
        let (onion, _pending) =
            setup::build_with_token(shape, &publics, shares, info, &[5; TOKEN_LEN]).expect("valid keys");
        let mut shards = in_shards(onion, shape.payload());
        code.encode(&mut shards);
        let lost = code.parity.min(code.data);
        let kept: Vec<u8> = (lost..lost + code.data).map(|at| at as u8).collect();
        let began = own_time();
        let mut joined = code.decode(&kept, &shards[lost..lost + code.data]);
        joined.truncate(onion_len(shape, suite, position) + TOKEN_LEN);
        let opened = setup::open(shape, position, &[[1; 32]], &key, info, &joined).expect("an onion for this key");
        if let Some(next) = &next {
            next.encode(&mut in_shards(opened.rest.clone(), shape.payload()));
        }
        opened.answer(secret()).expect("a valid key");
        spent.push(own_time() - began);
    }
    spent
}

fn in_shards(mut onion: Vec<u8>, len: usize) -> Vec<Vec<u8>> {
    onion.resize(onion.len().next_multiple_of(len), 0);
    onion.chunks(len).map(<[u8]>::to_vec).collect()
}

/// Processor time of this thread.
fn own_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use wire::cell::Class;
    use wire::paced::PacedClass;

    use super::*;

    #[test]
    fn seats_are_opened_in_the_last_rounds_of_a_phase() {
        let terms = PacedTerms { seats: 1000, loops: 2, ..PacedTerms::new(PacedClass::new(Class::S), "voice", 4) };
        // A phase has 248 rounds of 10 ms. Setups arrive in 186 of them.
        let room = Duration::from_millis(620);
        let one = room / 1000;
        assert_eq!(within(&[(&terms, one)], 4, 1), Ok(()));
        let refused = TooManySeats { class: "voice".to_owned(), seats: 1008, takes: one * 1008, room };
        assert_eq!(within(&[(&terms, one)], 4, 3), Err(refused));
    }

    #[test]
    fn setups_of_all_paced_classes_share_a_phase() {
        let of = |size, name, rounds, seats| PacedTerms {
            rounds,
            seats,
            loops: 0,
            ..PacedTerms::new(PacedClass::new(size), name, 4)
        };
        let [voice, video, data] =
            [of(Class::S, "voice", 2048, 300), of(Class::M, "video", 1024, 300), of(Class::L, "data", 4096, 300)];
        // Half as many rounds: a phase has 120, and setups arrive in 90.
        let (one, room) = (Duration::from_micros(500), Duration::from_millis(300));
        let each = [&voice, &video, &data];
        assert!(each.iter().all(|terms| within(&[(terms, one)], 4, 1) == Ok(())), "one class alone has room");
        let refused = TooManySeats { class: "video".to_owned(), seats: 900, takes: one * 900, room };
        assert_eq!(within(&each.map(|terms| (terms, one)), 4, 1), Err(refused));
        assert_eq!(within(&[], 4, 1), Ok(()));
    }

    #[test]
    fn openings_are_measured_at_every_hop() {
        let terms = PacedTerms::new(PacedClass::new(Class::S), "voice", 4);
        for position in 1..=4 {
            let times = opening_times(&terms, Suite::Hybrid, 4, position, 2);
            assert!(times.len() == 2 && times.iter().all(|time| !time.is_zero()), "{position}: {times:?}");
        }
    }
}
