//! What is sent when: profiles of applications, and plain loads.
//!
//! ```text
//! voip    both ways 50/s of 172 bytes (G.711, 20 ms frames, RTP) in spurts of 1.0 s with pauses of 1.6 s on average,
//!         both exponential (ITU-T P.59: 1.004 s and 1.587 s)
//! game    up 30 to 128/s, drawn for each player, of 40 to 120 bytes; down 30/s, each time 1 to 4 of 120 to 1200 at once
//! video   to the destination 30 frames/s of 1200-byte packets: 2 to 10 a frame, a key frame of 30 every two seconds
//! bulk    to the destination 1000/s of 1200 bytes, in bursts of 16
//! even    what the command line says
//! ```
//!
//! Every source is drawn from a seed of its own, so two runs with one seed send the same.

use std::fmt;
use std::str::FromStr;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;

use super::header;

/// Nanoseconds.
type Nanos = u64;
const SECOND: Nanos = 1_000_000_000;
const MILLI: Nanos = 1_000_000;

/// Datagrams of one flow in one direction, in order of time.
pub trait Source: Send {
    /// When the next one leaves, in nanoseconds since the run began, and its bytes.
    fn next(&mut self) -> Option<(Nanos, usize)>;
}

/// A profile by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// Calls.
    Voip,
    /// Players.
    Game,
    /// Video streams.
    Video,
    /// Transfers.
    Bulk,
}

impl Name {
    const ALL: [Name; 4] = [Name::Voip, Name::Game, Name::Video, Name::Bulk];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Name::Voip => "voip",
            Name::Game => "game",
            Name::Video => "video",
            Name::Bulk => "bulk",
        }
    }

    /// What such a flow sends to the destination and gets from there.
    pub fn sources(self, rng: &mut ChaCha20Rng) -> [Option<Box<dyn Source>>; 2] {
        let mut fresh = || ChaCha20Rng::from_rng(rng);
        match self {
            Name::Voip => [Some(Box::new(Voip::new(fresh()))), Some(Box::new(Voip::new(fresh())))],
            Name::Game => [Some(Box::new(Steps::player(fresh()))), Some(Box::new(Bursts::game(fresh())))],
            Name::Video => [Some(Box::new(Bursts::video(fresh()))), None],
            Name::Bulk => [Some(Box::new(Bursts::bulk(fresh()))), None],
        }
    }
}

/// So many flows of a profile: `voip:100`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Which.
    pub name: Name,
    /// How many.
    pub flows: usize,
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, flows) = text.split_once(':').unwrap_or((text, "1"));
        let name = Name::ALL.into_iter().find(|known| known.as_str() == name).ok_or_else(|| {
            let all = Name::ALL.map(Name::as_str).join(", ");
            format!("there is no profile {name:?}: {all}, each with a number of flows, as in voip:100")
        })?;
        match flows.parse() {
            Ok(flows) if (1..=10_000).contains(&flows) => Ok(Profile { name, flows }),
            _ => Err(format!("{flows:?} flows: a number from 1 to 10000")),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name.as_str(), self.flows)
    }
}

/// How the datagrams of a plain load follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrivals {
    /// At equal distances, the flows in turn.
    Constant,
    /// At exponential distances in each flow.
    Poisson,
    /// So many of a flow at once.
    Burst(u32),
}

impl FromStr for Arrivals {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':').unwrap_or((text, "")) {
            ("constant", "") => Ok(Arrivals::Constant),
            ("poisson", "") => Ok(Arrivals::Poisson),
            ("burst", n) => match n.parse() {
                Ok(n) if (1..=100_000).contains(&n) => Ok(Arrivals::Burst(n)),
                _ => Err(format!("burst:{n}: how many at once, 1 to 100000, as in burst:32")),
            },
            _ => Err(format!("{text:?} is none of constant, poisson, burst:N")),
        }
    }
}

impl fmt::Display for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Arrivals::Constant => write!(f, "constant"),
            Arrivals::Poisson => write!(f, "poisson"),
            Arrivals::Burst(n) => write!(f, "burst:{n}"),
        }
    }
}

/// Lengths of a plain load's datagrams: `1000`, `200-1300` (uniform) or a list with weights, `172*6,1200*1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lengths(Vec<(u32, u32, u32)>);

/// Longest UDP payload over IPv4.
const LONGEST: u32 = 65_507;

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: bytes as in 1000, 200-1300 or 172*6,1200*1, from {} on", header::SHORTEST);
        let part = |part: &str| -> Option<(u32, u32, u32)> {
            let (lengths, weight) = part.split_once('*').unwrap_or((part, "1"));
            let (low, high) = lengths.split_once('-').unwrap_or((lengths, lengths));
            let (low, high, weight) = (low.parse().ok()?, high.parse().ok()?, weight.parse().ok()?);
            (header::SHORTEST as u32 <= low && low <= high && high <= LONGEST && (1..=1000).contains(&weight))
                .then_some((low, high, weight))
        };
        text.split(',').map(part).collect::<Option<Vec<_>>>().map(Lengths).ok_or_else(wrong)
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (low, high, weight)) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let to = if low < high { format!("-{high}") } else { String::new() };
            let times = if self.0.len() > 1 { format!("*{weight}") } else { String::new() };
            write!(f, "{comma}{low}{to}{times}")?;
        }
        Ok(())
    }
}

impl Lengths {
    /// Always the same.
    pub fn fixed(len: u32) -> Lengths {
        Lengths(vec![(len, len, 1)])
    }

    /// The expected one.
    pub fn mean(&self) -> f64 {
        let all: u32 = self.0.iter().map(|(.., weight)| weight).sum();
        let sum: f64 = self
            .0
            .iter()
            .map(|(low, high, weight)| (f64::from(*low) + f64::from(*high)) / 2.0 * f64::from(*weight))
            .sum();
        sum / f64::from(all)
    }

    fn draw(&self, rng: &mut ChaCha20Rng) -> usize {
        if let [(low, high, _)] = self.0[..]
            && low == high
        {
            return low as usize;
        }
        let all: u32 = self.0.iter().map(|(.., weight)| weight).sum();
        let mut at = rng.random_range(0..all);
        for (low, high, weight) in &self.0 {
            if at < *weight {
                return rng.random_range(*low..=*high) as usize;
            }
            at -= weight;
        }
        unreachable!("the weights' sum is above every draw")
    }
}

/// A flow of a plain load.
pub struct Plain {
    rng: ChaCha20Rng,
    arrivals: Arrivals,
    lengths: Lengths,
    /// Between two datagrams of the flow, on average.
    gap_ns: f64,
    /// Of the first one.
    phase_ns: f64,
    /// Datagrams so far, and the sum of the gaps that were drawn.
    count: u64,
    drawn_ns: f64,
}

impl Plain {
    /// The `flow`th of `flows`, which send `rate` a second together.
    pub fn new(rng: ChaCha20Rng, arrivals: Arrivals, lengths: Lengths, rate: f64, flow: usize, flows: usize) -> Plain {
        let gap_ns = flows as f64 / rate * SECOND as f64;
        let phase_ns = gap_ns * flow as f64 / flows as f64;
        Plain { rng, arrivals, lengths, gap_ns, phase_ns, count: 0, drawn_ns: 0.0 }
    }
}

impl Source for Plain {
    fn next(&mut self) -> Option<(Nanos, usize)> {
        let at = match self.arrivals {
            Arrivals::Constant => self.phase_ns + self.gap_ns * self.count as f64,
            Arrivals::Poisson => {
                self.drawn_ns += exponential(&mut self.rng, self.gap_ns);
                self.drawn_ns
            }
            Arrivals::Burst(n) => (self.phase_ns + self.gap_ns * (self.count / u64::from(n)) as f64) * f64::from(n),
        };
        self.count += 1;
        Some((at as Nanos, self.lengths.draw(&mut self.rng)))
    }
}

fn exponential(rng: &mut ChaCha20Rng, mean: f64) -> f64 {
    let uniform: f64 = rng.random();
    -mean * (1.0 - uniform).ln()
}

/// One side of a call.
struct Voip {
    rng: ChaCha20Rng,
    at: Nanos,
    /// End of the spurt.
    until: Nanos,
}

impl Voip {
    const FRAME: Nanos = 20 * MILLI;
    const LEN: usize = 172;
    const SPURT: f64 = 1.004e9;
    const PAUSE: f64 = 1.587e9;

    fn new(mut rng: ChaCha20Rng) -> Voip {
        // Somewhere in a spurt or a pause, as often as there are such.
        let speaks = rng.random::<f64>() < Voip::SPURT / (Voip::SPURT + Voip::PAUSE);
        let at =
            rng.random_range(0..Voip::FRAME) + if speaks { 0 } else { exponential(&mut rng, Voip::PAUSE) as Nanos };
        let until = at + exponential(&mut rng, Voip::SPURT) as Nanos;
        Voip { rng, at, until }
    }
}

impl Source for Voip {
    fn next(&mut self) -> Option<(Nanos, usize)> {
        let now = self.at;
        self.at += Voip::FRAME;
        if self.at > self.until {
            self.at += exponential(&mut self.rng, Voip::PAUSE) as Nanos;
            self.until = self.at + exponential(&mut self.rng, Voip::SPURT) as Nanos;
        }
        Some((now, Voip::LEN))
    }
}

/// One datagram at every step.
struct Steps {
    rng: ChaCha20Rng,
    at: Nanos,
    step: Nanos,
}

impl Steps {
    fn player(mut rng: ChaCha20Rng) -> Steps {
        let step = SECOND / rng.random_range(30..=128);
        Steps { at: rng.random_range(0..step), rng, step }
    }
}

impl Source for Steps {
    fn next(&mut self) -> Option<(Nanos, usize)> {
        let now = self.at;
        self.at += self.step;
        Some((now, self.rng.random_range(40..=120)))
    }
}

/// Some datagrams at once at every step.
struct Bursts {
    rng: ChaCha20Rng,
    at: Nanos,
    step: Nanos,
    left: usize,
    count: u64,
    what: Burst,
}

#[derive(Clone, Copy)]
enum Burst {
    Game,
    Video,
    Bulk,
}

impl Bursts {
    fn game(rng: ChaCha20Rng) -> Bursts {
        Bursts::new(rng, SECOND / 30, Burst::Game)
    }

    fn video(rng: ChaCha20Rng) -> Bursts {
        Bursts::new(rng, SECOND / 30, Burst::Video)
    }

    fn bulk(rng: ChaCha20Rng) -> Bursts {
        Bursts::new(rng, 16 * MILLI, Burst::Bulk)
    }

    fn new(mut rng: ChaCha20Rng, step: Nanos, what: Burst) -> Bursts {
        let at = rng.random_range(0..step);
        // Streams do not all have their key frames at once.
        let count = rng.random_range(0..KEY_FRAMES);
        let mut bursts = Bursts { rng, at, step, left: 0, count, what };
        bursts.left = bursts.size();
        bursts
    }

    fn size(&mut self) -> usize {
        match self.what {
            Burst::Game => self.rng.random_range(1..=4),
            Burst::Video if self.count.is_multiple_of(KEY_FRAMES) => 30,
            Burst::Video => self.rng.random_range(2..=10),
            Burst::Bulk => 16,
        }
    }
}

/// Frames from one key frame to the next.
const KEY_FRAMES: u64 = 60;

impl Source for Bursts {
    fn next(&mut self) -> Option<(Nanos, usize)> {
        let now = self.at;
        let len = match self.what {
            Burst::Game => self.rng.random_range(120..=1200),
            // What is left of a frame is shorter than a packet.
            Burst::Video if self.left == 1 => self.rng.random_range(100..=1200),
            Burst::Video | Burst::Bulk => 1200,
        };
        self.left -= 1;
        if self.left == 0 {
            self.at += self.step;
            self.count += 1;
            self.left = self.size();
        }
        Some((now, len))
    }
}

/// A generator for everything, from a number.
pub fn seeded(seed: u64) -> ChaCha20Rng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    ChaCha20Rng::from_seed(bytes)
}

/// A number for a run.
pub fn fresh_number() -> u8 {
    let mut byte = [0];
    // Any number will do where the system has none.
    let _ = getrandom::fill(&mut byte);
    byte[0]
}

/// Any generator's next one.
pub fn fork(rng: &mut impl Rng) -> ChaCha20Rng {
    ChaCha20Rng::from_rng(rng)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a source sends in `seconds`.
    fn all(mut source: Box<dyn Source>, seconds: u64) -> Vec<(Nanos, usize)> {
        std::iter::from_fn(|| source.next()).take_while(|(at, _)| *at < seconds * SECOND).collect()
    }

    fn plain(arrivals: Arrivals, rate: f64, flows: usize) -> Vec<Vec<(Nanos, usize)>> {
        let of = |flow| Plain::new(seeded(flow as u64), arrivals, Lengths::fixed(100), rate, flow, flows);
        (0..flows).map(|flow| all(Box::new(of(flow)), 10)).collect()
    }

    #[test]
    fn plain_loads_have_their_rate_whatever_their_arrivals() {
        for (arrivals, slack) in [(Arrivals::Constant, 0), (Arrivals::Poisson, 400), (Arrivals::Burst(20), 200)] {
            let flows = plain(arrivals, 1000.0, 10);
            let count: usize = flows.iter().map(Vec::len).sum();
            assert!(count.abs_diff(10_000) <= slack, "{arrivals}: {count}");
            assert!(flows.iter().all(|flow| flow.is_sorted_by_key(|(at, _)| *at)));
        }
        let constant = plain(Arrivals::Constant, 1000.0, 10);
        assert_eq!((constant[0][1].0, constant[1][0].0), (10 * MILLI, MILLI));
        let burst = plain(Arrivals::Burst(20), 1000.0, 10);
        assert!(burst[3][..20].iter().all(|(at, _)| *at == burst[3][0].0) && burst[3][20].0 > burst[3][19].0);
    }

    #[test]
    fn poisson_gaps_have_the_deviation_of_their_mean() {
        let flow = plain(Arrivals::Poisson, 1000.0, 1).remove(0);
        let gaps: Vec<f64> = flow.windows(2).map(|pair| (pair[1].0 - pair[0].0) as f64 / MILLI as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((mean - 1.0).abs() < 0.05 && (deviation - 1.0).abs() < 0.05, "{mean} {deviation}");
    }

    #[test]
    fn profiles_are_what_they_say() {
        let mut rng = seeded(9);
        let mut speaking = 0.0;
        for _ in 0..50 {
            let [forward, backward] = Name::Voip.sources(&mut rng);
            for side in [forward.unwrap(), backward.unwrap()] {
                let frames = all(side, 60);
                speaking += frames.len() as f64 / 3000.0 / 100.0;
                assert!(frames.iter().all(|(_, len)| *len == 172));
                assert!(frames.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 20 * MILLI));
            }
        }
        assert!((speaking - 1.004 / 2.591).abs() < 0.04, "{speaking}");
        let [up, down] = Name::Game.sources(&mut rng);
        let (up, down) = (all(up.unwrap(), 10), all(down.unwrap(), 10));
        assert!((300..=1280).contains(&up.len()), "{}", up.len());
        assert!((300..=1200).contains(&down.len()) && down.iter().any(|(_, len)| *len > 1000));
        let [video, none] = Name::Video.sources(&mut rng);
        let video = all(video.unwrap(), 10);
        assert!(none.is_none() && (1700..2200).contains(&video.len()), "{}", video.len());
        let largest = video.chunk_by(|a, b| a.0 == b.0).map(<[_]>::len).max();
        assert_eq!(largest, Some(30), "a key frame");
    }

    #[test]
    fn what_is_no_profile_length_or_arrival_says_what_is() {
        assert!("voip:100".parse::<Profile>().is_ok_and(|profile| profile.flows == 100));
        assert!("fax:1".parse::<Profile>().unwrap_err().contains("voip"));
        assert!("voip:0".parse::<Profile>().is_err() && "voip:x".parse::<Profile>().is_err());
        assert_eq!("burst:7".parse(), Ok(Arrivals::Burst(7)));
        assert!("burst".parse::<Arrivals>().is_err() && "even".parse::<Arrivals>().is_err());
        let lengths: Lengths = "172*6,1000-1200".parse().unwrap();
        assert_eq!((lengths.to_string(), lengths.mean()), ("172*6,1000-1200*1".into(), (172.0 * 6.0 + 1100.0) / 7.0));
        for wrong in ["", "3", "70000", "9-8", "5*0", "x"] {
            assert!(wrong.parse::<Lengths>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn lengths_are_drawn_by_their_weights() {
        let lengths: Lengths = "172*3,1000-1200*1".parse().unwrap();
        let mut rng = seeded(1);
        let short = (0..10_000).filter(|_| lengths.draw(&mut rng) == 172).count();
        assert!((7300..7700).contains(&short), "{short}");
    }
}
