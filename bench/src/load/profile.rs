//! Profiles: traffic like that of applications.
//!
//! ```text
//! voip    both ways 50/s of 172 bytes (G.711, 20 ms frames, RTP) in talk spurts of 1.0 s and pauses of 1.6 s on
//!         average, both exponential (ITU-T P.59: 1.004 s and 1.587 s)
//! opus    the same with 72 bytes (Opus at 24 kbit/s)
//! game    forward 30 to 128/s, drawn for each player, of 40 to 120 bytes; backward 30/s, each time 1 to 4 of 120 to
//!         1200 bytes at once
//! video   forward 30 frames/s of 1200-byte packets: 2 to 10 a frame, and a key frame of 30 every two seconds
//! bulk    forward 1000/s of 1200 bytes, in bursts of 16
//! ```
//!
//! Each source has its own random numbers, so two runs with one seed send the same.

use std::fmt;
use std::str::FromStr;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;

use super::source::{MILLI, Nanos, SECOND, Source, Sources, exponential};

/// An application whose traffic is generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Application {
    Voip,
    Opus,
    Game,
    Video,
    Bulk,
}

impl Application {
    const ALL: [Application; 5] =
        [Application::Voip, Application::Opus, Application::Game, Application::Video, Application::Bulk];

    /// Its name on the command line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Application::Voip => "voip",
            Application::Opus => "opus",
            Application::Game => "game",
            Application::Video => "video",
            Application::Bulk => "bulk",
        }
    }

    /// Whether it is judged as a call, with a MOS.
    pub(crate) fn is_call(self) -> bool {
        matches!(self, Application::Voip | Application::Opus)
    }

    /// The sources of a flow.
    pub(crate) fn sources(self, rng: &mut ChaCha20Rng) -> Sources {
        let mut fresh = || ChaCha20Rng::from_rng(rng);
        let mut call = |len| -> (Box<dyn Source>, Option<Box<dyn Source>>) {
            (Box::new(Voip::new(len, fresh())), Some(Box::new(Voip::new(len, fresh()))))
        };
        let (forward, backward): (Box<dyn Source>, Option<Box<dyn Source>>) = match self {
            Application::Voip => call(172),
            Application::Opus => call(72),
            Application::Game => (Box::new(Steps::player(fresh())), Some(Box::new(Bursts::game(fresh())))),
            Application::Video => (Box::new(Bursts::video(fresh())), None),
            Application::Bulk => (Box::new(Bursts::bulk(fresh())), None),
        };
        Sources { forward: Some(forward), backward }
    }
}

/// A number of flows of an application: `voip:100`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Profile {
    pub(crate) application: Application,
    pub(crate) flows: usize,
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, flows) = text.split_once(':').unwrap_or((text, "1"));
        let application = Application::ALL.into_iter().find(|known| known.as_str() == name).ok_or_else(|| {
            let all = Application::ALL.map(Application::as_str).join(", ");
            format!("unknown profile {name:?}: expected one of {all}, with a number of flows, e.g. voip:100")
        })?;
        match flows.parse() {
            Ok(flows) if (1..=10_000).contains(&flows) => Ok(Profile { application, flows }),
            _ => Err(format!("invalid number of flows {flows:?}: expected 1 to 10000")),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.application.as_str(), self.flows)
    }
}

/// One side of a call.
struct Voip {
    rng: ChaCha20Rng,
    at: Nanos,
    /// End of the talk spurt.
    until: Nanos,
    len: usize,
}

impl Voip {
    const FRAME: Nanos = 20 * MILLI;
    const SPURT: f64 = 1.004e9;
    const PAUSE: f64 = 1.587e9;

    fn new(len: usize, mut rng: ChaCha20Rng) -> Voip {
        // Begins in a talk spurt or in a pause, by their shares of the time.
        let speaks = rng.random::<f64>() < Voip::SPURT / (Voip::SPURT + Voip::PAUSE);
        let at =
            rng.random_range(0..Voip::FRAME) + if speaks { 0 } else { exponential(&mut rng, Voip::PAUSE) as Nanos };
        let until = at + exponential(&mut rng, Voip::SPURT) as Nanos;
        Voip { rng, at, until, len }
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
        Some((now, self.len))
    }
}

/// A game's player: one datagram at each step.
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

/// Several datagrams at once at each step.
struct Bursts {
    rng: ChaCha20Rng,
    at: Nanos,
    step: Nanos,
    /// Datagrams still to come in this step.
    remaining: usize,
    /// Steps so far.
    count: u64,
    shape: BurstShape,
}

#[derive(Clone, Copy)]
enum BurstShape {
    Game,
    Video,
    Bulk,
}

impl Bursts {
    fn game(rng: ChaCha20Rng) -> Bursts {
        Bursts::new(rng, SECOND / 30, BurstShape::Game)
    }

    fn video(rng: ChaCha20Rng) -> Bursts {
        Bursts::new(rng, SECOND / 30, BurstShape::Video)
    }

    fn bulk(rng: ChaCha20Rng) -> Bursts {
        Bursts::new(rng, 16 * MILLI, BurstShape::Bulk)
    }

    fn new(mut rng: ChaCha20Rng, step: Nanos, shape: BurstShape) -> Bursts {
        let at = rng.random_range(0..step);
        // Streams do not all start with a key frame.
        let count = rng.random_range(0..KEY_FRAMES);
        let mut bursts = Bursts { rng, at, step, remaining: 0, count, shape };
        bursts.remaining = bursts.size();
        bursts
    }

    fn size(&mut self) -> usize {
        match self.shape {
            BurstShape::Game => self.rng.random_range(1..=4),
            BurstShape::Video if self.count.is_multiple_of(KEY_FRAMES) => 30,
            BurstShape::Video => self.rng.random_range(2..=10),
            BurstShape::Bulk => 16,
        }
    }
}

/// Frames from one key frame to the next: two seconds.
const KEY_FRAMES: u64 = 60;

impl Source for Bursts {
    fn next(&mut self) -> Option<(Nanos, usize)> {
        let now = self.at;
        let len = match self.shape {
            BurstShape::Game => self.rng.random_range(120..=1200),
            // The last packet of a frame is shorter.
            BurstShape::Video if self.remaining == 1 => self.rng.random_range(100..=1200),
            BurstShape::Video | BurstShape::Bulk => 1200,
        };
        self.remaining -= 1;
        if self.remaining == 0 {
            self.at += self.step;
            self.count += 1;
            self.remaining = self.size();
        }
        Some((now, len))
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::{collect, seeded};
    use super::*;

    #[test]
    fn voip_has_the_activity_of_p59() {
        let mut rng = seeded(9);
        let mut speaking = 0.0;
        for _ in 0..50 {
            let Sources { forward, backward } = Application::Voip.sources(&mut rng);
            for side in [forward.unwrap(), backward.unwrap()] {
                let frames = collect(side, 60);
                speaking += frames.len() as f64 / 3000.0 / 100.0;
                assert!(frames.iter().all(|(_, len)| *len == 172));
                assert!(frames.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 20 * MILLI));
            }
        }
        assert!((speaking - 1.004 / 2.591).abs() < 0.04, "{speaking}");
    }

    #[test]
    fn game_sends_small_packets_and_receives_large_ones() {
        let Sources { forward, backward } = Application::Game.sources(&mut seeded(9));
        let (forward, backward) = (collect(forward.unwrap(), 10), collect(backward.unwrap(), 10));
        assert!((300..=1280).contains(&forward.len()), "{}", forward.len());
        assert!((300..=1200).contains(&backward.len()) && backward.iter().any(|(_, len)| *len > 1000));
    }

    #[test]
    fn video_is_one_way_and_has_key_frames() {
        let Sources { forward: video, backward: none } = Application::Video.sources(&mut seeded(9));
        let video = collect(video.unwrap(), 10);
        assert!(none.is_none() && (1700..2200).contains(&video.len()), "{}", video.len());
        let largest = video.chunk_by(|a, b| a.0 == b.0).map(<[_]>::len).max();
        assert_eq!(largest, Some(30), "a key frame");
    }

    #[test]
    fn invalid_profile_is_refused() {
        assert!("voip:100".parse::<Profile>().is_ok_and(|profile| profile.flows == 100));
        assert!("fax:1".parse::<Profile>().unwrap_err().contains("voip"));
        assert!("voip:0".parse::<Profile>().is_err() && "voip:x".parse::<Profile>().is_err());
    }
}
