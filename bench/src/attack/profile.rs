//! What a user's application sends and receives.
//!
//! ```text
//! voice      both ways 50/s of 172 bytes in talk spurts of 1.0 s and pauses of 1.6 s on average (ITU-T P.59)
//! opus       as voice, of 72 bytes
//! constant   both ways 50/s of 172 bytes, without pauses: a random phase, a clock that is off by up to 50 ppm,
//!            and each datagram late by 0.5 ms on average
//! video      30 frames/s of 2 to 10 packets of 1200 bytes, a key frame of 30 every two seconds, forward
//! game       forward 30 to 128/s of 40 to 120 bytes, backward 30 bursts/s of 1 to 4, 120 to 1200 bytes
//! web        pages with 3 s between them on average: a request of 1 to 3 datagrams, an answer of 5 to 100 of 1200
//!            bytes at 1000/s, and one acknowledgement for every two
//! poisson    both ways 50/s of 172 bytes at exponential intervals
//! FILE       a conversation of a trace (pcap, pcapng or CSV) from a random time on
//! ```

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use attack::Truth;
use dataplane::per_direction::PerDirection;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::Direction::{Backward, Forward};

use crate::load::even::{Arrivals, Even, EvenSource, Lengths};
use crate::load::profile::Application;
use crate::load::source::{MILLI, Nanos, SECOND, Source, Sources, exponential, seeded};
use crate::replay::trace::Trace;

const FRAME: Nanos = 20 * MILLI;
pub(super) const FRAME_LEN: usize = 172;
/// Datagrams of the adversary's own in a paced class: so short that none waits for a second cell.
pub(super) const OWN_PACED_LEN: usize = 40;
/// Before a record begins. All flows start in the first four fifths of it.
pub(super) const WARM_UP: Duration = Duration::from_secs(3);
/// Bytes of the datagram that opens a flow.
const OPENING: usize = 64;

/// The name of a profile, as on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Profile {
    Application(Application),
    Constant,
    Web,
    Poisson,
    Trace(PathBuf),
}

const NAMES: [(&str, Profile); 7] = [
    ("voice", Profile::Application(Application::Voip)),
    ("opus", Profile::Application(Application::Opus)),
    ("constant", Profile::Constant),
    ("video", Profile::Application(Application::Video)),
    ("game", Profile::Application(Application::Game)),
    ("web", Profile::Web),
    ("poisson", Profile::Poisson),
];

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((_, profile)) = NAMES.iter().find(|(name, _)| *name == text) {
            return Ok(profile.clone());
        }
        if text.contains(['.', '/']) {
            return Ok(Profile::Trace(text.into()));
        }
        let all = NAMES.map(|(name, _)| name).join(", ");
        Err(format!("unknown profile {text:?}: expected one of {all}, or the path of a trace, e.g. call.pcap"))
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, NAMES.iter().find(|(_, profile)| profile == self)) {
            (Profile::Trace(path), _) => f.write_str(&path.file_name().unwrap_or_default().to_string_lossy()),
            (_, Some((name, _))) => f.write_str(name),
            (_, None) => f.write_str("none"),
        }
    }
}

/// A profile whose trace, if it is one, was read.
pub(super) struct Traffic {
    profile: Profile,
    conversations: Vec<Conversation>,
    /// Length of the trace.
    length: Nanos,
}

/// The packets between two endpoints: forward from the one that sent first.
type Conversation = PerDirection<Vec<(Nanos, usize)>>;

impl Traffic {
    /// # Errors
    /// The trace cannot be read.
    pub(super) fn read(profile: &Profile) -> anyhow::Result<Traffic> {
        let (mut conversations, mut length) = (Vec::new(), 0);
        if let Profile::Trace(path) = profile {
            let trace = Trace::read(path)?;
            length = trace.packets.last().map_or(0, |packet| packet.at_ns) + FRAME;
            conversations.resize_with(trace.ways.iter().map(|way| way.conversation + 1).max().unwrap_or(0), || {
                Conversation::from_fn(|_| Vec::new())
            });
            for packet in &trace.packets {
                let way = trace.ways[packet.flow];
                let direction = if way.answers { Backward } else { Forward };
                conversations[way.conversation][direction].push((packet.at_ns, packet.len));
            }
        }
        Ok(Traffic { profile: profile.clone(), conversations, length })
    }

    /// What one user sends and receives from the start of its flow.
    pub(super) fn sources(&self, rng: &mut ChaCha20Rng) -> Sources {
        let both = |forward: Box<dyn Source>, backward: Box<dyn Source>| Sources {
            forward: Some(forward),
            backward: Some(backward),
        };
        match &self.profile {
            Profile::Application(application) => application.sources(rng),
            Profile::Constant => both(Box::new(Constant::new(rng)), Box::new(Constant::new(rng))),
            Profile::Poisson => both(Box::new(poisson(FRAME_LEN, rng)), Box::new(poisson(FRAME_LEN, rng))),
            Profile::Web => web(rng),
            Profile::Trace(_) => {
                let conversation = &self.conversations[rng.random_range(0..self.conversations.len())];
                let offset = rng.random_range(0..self.length);
                let of = |packets: &[(Nanos, usize)]| -> Option<Box<dyn Source>> {
                    (!packets.is_empty()).then(|| Box::new(Loop::new(packets, offset, self.length)) as Box<dyn Source>)
                };
                Sources { forward: of(&conversation.forward), backward: of(&conversation.backward) }
            }
        }
    }
}

/// Datagrams at exponential intervals, 50/s: also what the adversary's own user sends.
fn poisson(len: usize, rng: &mut ChaCha20Rng) -> EvenSource {
    let lengths = Lengths::fixed(len as u32);
    let rate = SECOND as f64 / FRAME as f64;
    EvenSource::new(ChaCha20Rng::from_rng(rng), &Even { flows: 1, rate, arrivals: Arrivals::Poisson, lengths }, 0)
}

/// A source that computes what comes next.
struct Computed<F>(F);

impl<F: FnMut() -> Option<(Nanos, usize)> + Send> Source for Computed<F> {
    fn next(&mut self) -> Option<(Nanos, usize)> {
        (self.0)()
    }
}

/// One side of a call without pauses.
struct Constant {
    rng: ChaCha20Rng,
    phase: f64,
    period: f64,
    frame: u64,
}

impl Constant {
    const DRIFT: f64 = 50e-6;
    const LATE: f64 = 0.5e6;

    fn new(rng: &mut ChaCha20Rng) -> Constant {
        let mut rng = ChaCha20Rng::from_rng(rng);
        let phase = rng.random::<f64>() * FRAME as f64;
        let period = FRAME as f64 * (1.0 + Constant::DRIFT * (2.0 * rng.random::<f64>() - 1.0));
        Constant { rng, phase, period, frame: 0 }
    }
}

impl Source for Constant {
    fn next(&mut self) -> Option<(Nanos, usize)> {
        // A datagram does not overtake the next one.
        let late = exponential(&mut self.rng, Constant::LATE).min(0.9 * FRAME as f64);
        let at = self.phase + self.frame as f64 * self.period + late;
        self.frame += 1;
        Some((at as Nanos, FRAME_LEN))
    }
}

/// A list, made page by page.
struct Pages<F> {
    page: F,
    due: std::vec::IntoIter<(Nanos, usize)>,
}

impl<F: FnMut() -> Vec<(Nanos, usize)> + Send> Source for Pages<F> {
    fn next(&mut self) -> Option<(Nanos, usize)> {
        loop {
            if let Some(next) = self.due.next() {
                return Some(next);
            }
            self.due = (self.page)().into_iter();
        }
    }
}

/// Pages: both directions draw the same ones.
fn web(rng: &mut ChaCha20Rng) -> Sources {
    const GAP: f64 = 3e9;
    /// From the request to the first datagram of the answer.
    const WAIT: Nanos = 40 * MILLI;
    let seed = ChaCha20Rng::from_rng(rng);
    let pages = |forward: bool| -> Option<Box<dyn Source>> {
        let mut rng = seed.clone();
        let mut at = 0;
        let page = move || {
            at += exponential(&mut rng, GAP) as Nanos;
            let (requests, answers) = (rng.random_range(1..=3u64), rng.random_range(5..=100u64));
            let begin = at;
            at += WAIT + answers * MILLI;
            let answer = |number: u64| begin + WAIT + number * MILLI;
            if !forward {
                return (0..answers).map(|number| (answer(number), 1200)).collect();
            }
            let requests = (0..requests).map(|number| (begin + number * MILLI, 400));
            requests.chain((0..answers / 2).map(|number| (answer(2 * number) + MILLI, 60))).collect()
        };
        Some(Box::new(Pages { page, due: Vec::new().into_iter() }))
    };
    Sources { forward: pages(true), backward: pages(false) }
}

/// A trace from a time on, again and again.
struct Loop {
    /// In order from the offset on.
    packets: Vec<(Nanos, usize)>,
    length: Nanos,
    next: usize,
}

impl Loop {
    fn new(packets: &[(Nanos, usize)], offset: Nanos, length: Nanos) -> Loop {
        let mut packets: Vec<(Nanos, usize)> =
            packets.iter().map(|&(at, len)| ((at + length - offset) % length, len)).collect();
        packets.sort_by_key(|packet| packet.0);
        Loop { packets, length, next: 0 }
    }
}

impl Source for Loop {
    fn next(&mut self) -> Option<(Nanos, usize)> {
        let (round, index) = (self.next / self.packets.len(), self.next % self.packets.len());
        self.next += 1;
        let (at, len) = self.packets[index];
        Some((at + round as u64 * self.length, len))
    }
}

/// Starts a source later.
fn from(start: Nanos, mut source: Box<dyn Source>) -> Box<dyn Source> {
    Box::new(Computed(move || source.next().map(|(at, len)| (at + start, len))))
}

/// The flow of each user, and what users and their destinations send. The last sources are those of the adversary's
/// own user, with datagrams of `own_len` bytes. One seed has the same in all cases.
pub(super) fn draw(traffic: &Traffic, users: usize, own_len: usize, seed: u64) -> (Truth, Vec<Sources>) {
    let mut rng = seeded(seed);
    let mut flow_of: Vec<usize> = (0..users).collect();
    flow_of.shuffle(&mut rng);
    let of = |user| if user < users { Flow::User(traffic) } else { Flow::Own { len: own_len } };
    let sources = (0..=users).map(|user| flow(of(user), &mut rng)).collect();
    (Truth(flow_of), sources)
}

/// Whose flow it is.
#[derive(Clone, Copy)]
enum Flow<'a> {
    User(&'a Traffic),
    /// The adversary's own, with datagrams of this length.
    Own {
        len: usize,
    },
}

/// What a user and its destination send from the start of a run.
fn flow(of: Flow<'_>, rng: &mut ChaCha20Rng) -> Sources {
    let mut own = ChaCha20Rng::from_rng(rng);
    let start = own.random_range(0..WARM_UP.as_nanos() as Nanos * 4 / 5);
    let Sources { forward, backward } = match of {
        Flow::User(traffic) => traffic.sources(&mut own),
        Flow::Own { len } => Sources { forward: Some(Box::new(poisson(len, &mut own))), backward: None },
    };
    Sources { forward: Some(opened(start, OPENING, forward)), backward: backward.map(|source| from(start, source)) }
}

/// A flow: a datagram that opens it, and then its source.
fn opened(start: Nanos, len: usize, source: Option<Box<dyn Source>>) -> Box<dyn Source> {
    let mut first = Some((start, len));
    let mut rest = source.map(|source| from(start, source));
    Box::new(Computed(move || first.take().or_else(|| rest.as_mut()?.next())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::source::collect;

    fn sources(profile: &str, seed: u64) -> [Vec<(Nanos, usize)>; 2] {
        let traffic = Traffic::read(&profile.parse().unwrap()).unwrap();
        let Sources { forward, backward } = traffic.sources(&mut seeded(seed));
        [forward, backward].map(|source| source.map_or_else(Vec::new, |source| collect(source, 30)))
    }

    #[test]
    fn every_profile_is_in_order_and_repeats_with_its_seed() {
        for (name, _) in NAMES {
            let all = sources(name, 4);
            assert!(all[0].len() > 20 && all.iter().all(|one| one.is_sorted_by_key(|packet| packet.0)), "{name}");
            assert!(all == sources(name, 4) && all != sources(name, 5), "{name}");
            assert_eq!(name.parse::<Profile>().unwrap().to_string(), name);
        }
        assert!("fax".parse::<Profile>().unwrap_err().contains("voice"));
    }

    #[test]
    fn draw_gives_each_user_a_flow_of_its_own_and_repeats() {
        let traffic = Traffic::read(&"voice".parse().unwrap()).unwrap();
        let drawn = |seed| {
            let (truth, sources) = draw(&traffic, 20, FRAME_LEN, seed);
            let first = sources.into_iter().map(|one| one.forward.unwrap().next().unwrap().0).collect::<Vec<_>>();
            (truth, first)
        };
        let (truth, starts) = drawn(3);
        assert_eq!((&truth, &starts), (&drawn(3).0, &drawn(3).1));
        assert!(truth != drawn(4).0 && starts != drawn(4).1);
        let mut flows = truth.0;
        flows.sort_unstable();
        assert!(flows.into_iter().eq(0..20) && starts.len() == 21, "the adversary's own user is the last");
    }

    #[test]
    fn constant_call_has_jitter_and_drift() {
        let [call, _] = sources("constant", 7);
        assert!((1497..=1500).contains(&call.len()));
        let gaps: Vec<i64> = call.windows(2).map(|pair| (pair[1].0 - pair[0].0) as i64 - FRAME as i64).collect();
        let mean = gaps.iter().map(|gap| gap.abs()).sum::<i64>() / gaps.len() as i64;
        assert!((300_000..700_000).contains(&mean), "{mean}");
    }

    #[test]
    fn trace_is_split_into_directions_and_repeats() {
        let file = tempfile::Builder::new().suffix(".csv").tempfile().unwrap();
        let lines: String = (0..100).map(|i| format!("{},{},50\n", i as f64 / 50.0, ["a,b", "b,a"][i % 2])).collect();
        std::fs::write(file.path(), format!("t_s,src,dst,payload_len\n{lines}")).unwrap();
        let [forward, backward] = sources(file.path().to_str().unwrap(), 1);
        assert!((740..=760).contains(&forward.len()) && (740..=760).contains(&backward.len()));
        assert_ne!(forward[0].0, sources(file.path().to_str().unwrap(), 2)[0][0].0, "a random offset");
    }
}
