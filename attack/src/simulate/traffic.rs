//! What applications send: times and lengths of datagrams before any chain.

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

use super::{MS, SECOND, US, exponential, normal};
use crate::record::Seen;

/// What one party of a flow sends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Profile {
    /// A datagram of 60 to 160 bytes every 20 ms during talk spurts. Spurts last 1.004 s on average and pauses 1.587 s,
    /// both exponential (ITU-T P.59).
    Voice,
    /// A datagram of 160 bytes every 20 ms without pause: phase uniform, clock off by up to 50 ppm, jitter of 0.3 ms
    /// (half-normal).
    Constant,
    /// 30 frames a second, each a burst of datagrams of up to 1100 bytes, 0.1 ms apart. Frame sizes are log-normal
    /// with a median of 1.6 kB, and scenes of 3 s on average multiply them by up to 2 either way.
    Video,
    /// Datagrams of 200 bytes as a Poisson process.
    Poisson { per_second: f64 },
}

/// What the other party sends back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    None,
    /// Voice: the other party speaks in the pauses. Other profiles: every fourth datagram is answered with one of 80
    /// bytes, 40 ms later plus an exponential time of mean 10 ms.
    Turns,
    /// A flow of the same profile, independent of the forward one.
    Independent,
}

/// Forward and backward datagrams of a flow between `start` and `end`.
pub(super) fn datagrams(
    profile: Profile,
    answers: Answers,
    start: u64,
    end: u64,
    rng: &mut ChaCha8Rng,
) -> (Vec<Seen>, Vec<Seen>) {
    let (forward, spurts) = party(profile, start, end, rng);
    let backward = match answers {
        Answers::None => Vec::new(),
        Answers::Independent => party(profile, start, end, rng).0,
        Answers::Turns if profile == Profile::Voice => speech(&pauses(&spurts, end), rng),
        Answers::Turns => replies(&forward, rng),
    };
    (forward, sorted_before(backward, end))
}

fn party(profile: Profile, start: u64, end: u64, rng: &mut ChaCha8Rng) -> (Vec<Seen>, Vec<(u64, u64)>) {
    let mut spurts = Vec::new();
    let datagrams = match profile {
        Profile::Voice => {
            spurts = talk(start, end, rng);
            speech(&spurts, rng)
        }
        Profile::Constant => clocked(&[(start, end)], rng, |_| 160),
        Profile::Video => video(start, end, rng),
        Profile::Poisson { per_second } => poisson(per_second, start, end, rng),
    };
    (sorted_before(datagrams, end), spurts)
}

fn sorted_before(mut datagrams: Vec<Seen>, end: u64) -> Vec<Seen> {
    datagrams.sort_by_key(|seen| seen.at);
    datagrams.retain(|seen| seen.at < end);
    datagrams
}

fn talk(start: u64, end: u64, rng: &mut ChaCha8Rng) -> Vec<(u64, u64)> {
    let mut spurts = Vec::new();
    // A call is joined at a random time of its course: in a spurt with the share of time that spurts take.
    let mut at = start;
    if rng.random::<f64>() > 1.004 / (1.004 + 1.587) {
        at += exponential(rng, 1.587 * SECOND as f64) as u64;
    }
    while at < end {
        let stop = at + exponential(rng, 1.004 * SECOND as f64) as u64;
        spurts.push((at, stop.min(end)));
        at = stop + exponential(rng, 1.587 * SECOND as f64) as u64;
    }
    spurts
}

/// The spurts of the other party: between those of this one, 0.2 s away from them.
fn pauses(spurts: &[(u64, u64)], end: u64) -> Vec<(u64, u64)> {
    let stops = spurts.iter().map(|spurt| spurt.1);
    let starts = spurts.iter().skip(1).map(|spurt| spurt.0).chain([end]);
    stops.zip(starts).map(|(from, to)| (from + 200 * MS, to.saturating_sub(200 * MS))).filter(|(a, b)| a < b).collect()
}

fn speech(spurts: &[(u64, u64)], rng: &mut ChaCha8Rng) -> Vec<Seen> {
    clocked(spurts, rng, |rng| rng.random_range(60..=160))
}

/// A datagram at every tick of one device's clock that falls into a spurt.
fn clocked(spurts: &[(u64, u64)], rng: &mut ChaCha8Rng, bytes: impl Fn(&mut ChaCha8Rng) -> u32) -> Vec<Seen> {
    let interval = 20.0 * MS as f64 * (1.0 + rng.random_range(-50e-6..50e-6));
    let phase = rng.random::<f64>() * interval;
    let mut datagrams = Vec::new();
    for &(start, end) in spurts {
        let mut tick = ((start as f64 - phase) / interval).ceil().max(0.0);
        while phase + tick * interval < end as f64 {
            let jitter = normal(rng).abs() * 300.0 * US as f64;
            datagrams.push(Seen { at: (phase + tick * interval + jitter) as u64, bytes: bytes(rng) });
            tick += 1.0;
        }
    }
    datagrams
}

fn video(start: u64, end: u64, rng: &mut ChaCha8Rng) -> Vec<Seen> {
    let interval = SECOND as f64 / 30.0 * (1.0 + rng.random_range(-50e-6..50e-6));
    let mut at = start as f64 + rng.random::<f64>() * interval;
    let (mut scene, mut scene_end) = (1.0, at);
    let mut datagrams = Vec::new();
    while at < end as f64 {
        if at >= scene_end {
            scene = 2f64.powf(rng.random_range(-1.0..1.0));
            scene_end = at + exponential(rng, 3.0 * SECOND as f64);
        }
        let mut left = (1600.0 * scene * (0.6 * normal(rng)).exp()).clamp(100.0, 40_000.0) as u32;
        let mut sent = at + normal(rng).abs() * MS as f64;
        while left > 0 {
            let bytes = left.min(1100);
            datagrams.push(Seen { at: sent as u64, bytes });
            left -= bytes;
            sent += 100.0 * US as f64;
        }
        at += interval;
    }
    datagrams
}

fn poisson(per_second: f64, start: u64, end: u64, rng: &mut ChaCha8Rng) -> Vec<Seen> {
    let mean = SECOND as f64 / per_second;
    let mut at = start as f64 + exponential(rng, mean);
    let mut datagrams = Vec::new();
    while at < end as f64 {
        datagrams.push(Seen { at: at as u64, bytes: 200 });
        at += exponential(rng, mean);
    }
    datagrams
}

fn replies(forward: &[Seen], rng: &mut ChaCha8Rng) -> Vec<Seen> {
    let reply = |seen: &Seen| Seen { at: seen.at + 40 * MS + exponential(rng, 10.0 * MS as f64) as u64, bytes: 80 };
    forward.iter().step_by(4).map(reply).collect()
}
