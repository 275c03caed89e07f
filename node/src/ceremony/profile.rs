//! Paced classes as `eddy assemble --class` names them, and what such a class carries, costs and adds.
//!
//! A profile is a set of parameters for one kind of traffic. Operators change single ones of them:
//! `voice:n_min=2,steps_ms=2`. [`Figures`] says in the terms of users what the parameters mean.

use std::fmt;
use std::str::FromStr;

use dataplane::MILLI;
use dataplane::paced::default_max_age;
use dataplane::paced::entry::PREPARE;
use wire::cell::{Class, Direction};
use wire::frames::{DGRAM_OVERHEAD, fresh_max};
use wire::ids::{ClassId, UnknownClassId};
use wire::paced::terms::STEP_DEFAULT_MS;
use wire::paced::{ControlSlots, PacedClass, PacedTerms, SALT_LEN};
use wire::setup::Suite;

use crate::config::{ConfigError, nearest};

/// Bytes of the IPv4 and UDP headers of a cell.
const IP_UDP: u64 = 28;
/// Rounds over which the highest rate is taken.
const PEAK_ROUNDS: usize = 64;

/// Parameters for one kind of traffic. All others are the defaults of SPEC 9.16.
struct Profile {
    name: &'static str,
    size: Class,
    period_ms: u16,
    cells: u8,
    repeat: bool,
}

const PROFILES: &[Profile] = &[
    Profile { name: "voice", size: Class::S, period_ms: 10, cells: 1, repeat: true },
    Profile { name: "voice-lite", size: Class::S, period_ms: 20, cells: 1, repeat: true },
    Profile { name: "game", size: Class::S, period_ms: 10, cells: 2, repeat: false },
    // 2.1 Mbit/s of datagrams.
    Profile { name: "video", size: Class::L, period_ms: 10, cells: 2, repeat: false },
];

/// The names of the profiles.
pub fn profiles() -> impl Iterator<Item = &'static str> {
    PROFILES.iter().map(|profile| profile.name)
}

/// A class of a planned chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClassChoice {
    Free(Class),
    /// Its steps are one for each link after the first, or a single one for all of them.
    Paced(PacedTerms),
}

impl ClassChoice {
    pub fn id(&self) -> ClassId {
        match self {
            ClassChoice::Free(class) => (*class).into(),
            ClassChoice::Paced(terms) => terms.class.into(),
        }
    }
}

/// The terms of a paced class in a chain of `hops` hops: a single step is that of each link after the first.
#[must_use]
pub fn for_hops(mut terms: PacedTerms, hops: usize) -> PacedTerms {
    if let [step] = terms.steps_ms[..] {
        terms.steps_ms = vec![step; hops - 1];
    }
    terms
}

/// The classes of a chain in its order.
///
/// # Errors
/// Two of them have one number.
pub fn in_order(choices: &[ClassChoice]) -> Result<Vec<&ClassChoice>, ConfigError> {
    let mut choices: Vec<&ClassChoice> = choices.iter().collect();
    choices.sort_by_key(|choice| choice.id());
    let Some(pair) = choices.windows(2).find(|pair| pair[0].id() == pair[1].id()) else { return Ok(choices) };
    Err(ConfigError::Arguments(match pair[0].to_string() == pair[1].to_string() {
        true => format!("duplicate --class {}", pair[0]),
        false => format!(
            "--class {} and --class {} are both of class {}, which a chain has once: choose one of them",
            pair[0],
            pair[1],
            pair[0].id()
        ),
    }))
}

/// As `--class` names it, without changes.
impl fmt::Display for ClassChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClassChoice::Free(class) => class.fmt(f),
            ClassChoice::Paced(terms) => f.write_str(&terms.name),
        }
    }
}

/// `S`, `M`, `L`, or `PROFILE`, or `PROFILE:KEY=VALUE,...` with keys of SPEC 9.16.
impl FromStr for ClassChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<ClassChoice, String> {
        let (name, changes) = text.split_once(':').map_or((text, None), |(name, changes)| (name, Some(changes)));
        if let Some(profile) = PROFILES.iter().find(|profile| profile.name == name) {
            let mut terms = profile.terms();
            changes.into_iter().flat_map(|changes| changes.split(',')).try_for_each(|one| change(&mut terms, one))?;
            return Ok(ClassChoice::Paced(terms));
        }

        let all = || PROFILES.iter().map(|profile| profile.name).collect::<Vec<_>>();
        match (name.parse().map_err(|_: UnknownClassId| ()), changes) {
            (Ok(ClassId::Free(class)), None) => Ok(ClassChoice::Free(class)),
            (Ok(ClassId::Free(class)), Some(_)) => {
                Err(format!("class {class} has no settings of its own: write {class}, or one of {}", all().join(", ")))
            }
            (Ok(ClassId::Paced(class)), _) => {
                let of_size = PROFILES.iter().filter(|profile| profile.size == class.size());
                let names: Vec<&str> = of_size.map(|profile| profile.name).collect();
                let remedy = if names.is_empty() { String::new() } else { format!(": {}", names.join(", ")) };
                Err(format!("a chain names a paced class by its profile{remedy}"))
            }
            (Err(()), _) => {
                let near = nearest(name, &all()).map_or(String::new(), |near| format!("; did you mean {near}?"));
                Err(format!(
                    "unknown class {name:?}: expected S (203 bytes in a cell), M (1147), L (1323), or a paced class: {}{near}",
                    all().join(", ")
                ))
            }
        }
    }
}

impl Profile {
    /// With a single step.
    fn terms(&self) -> PacedTerms {
        PacedTerms {
            period_ms: self.period_ms,
            cells: self.cells,
            repeat: self.repeat,
            steps_ms: vec![STEP_DEFAULT_MS],
            ..PacedTerms::new(PacedClass::new(self.size), self.name, 0)
        }
    }
}

/// Applies `KEY=VALUE`. [`PacedTerms::check`] checks the ranges.
fn change(terms: &mut PacedTerms, text: &str) -> Result<(), String> {
    const KEYS: &[&str] = &[
        "name",
        "period_ms",
        "cells",
        "rounds",
        "copies",
        "gap",
        "repeat",
        "n_min",
        "seats",
        "loops",
        "slack_ms",
        "steps_ms",
    ];
    fn number<T: FromStr>(key: &str, value: &str) -> Result<T, String> {
        value.parse().map_err(|_| format!("invalid {key} {value:?}: expected a whole number of its range"))
    }
    let (key, value) = text.split_once('=').ok_or_else(|| {
        format!("invalid setting {text:?}: expected KEY=VALUE, comma-separated, e.g. voice:n_min=2,steps_ms=2")
    })?;
    match key {
        "name" => value.clone_into(&mut terms.name),
        "period_ms" => terms.period_ms = number(key, value)?,
        "cells" => terms.cells = number(key, value)?,
        "rounds" => terms.rounds = number(key, value)?,
        "copies" => terms.copies = number(key, value)?,
        "gap" => terms.gap = number(key, value)?,
        "repeat" if matches!(value, "0" | "1") => terms.repeat = value == "1",
        "repeat" => return Err(format!("invalid repeat {value:?}: expected 0 or 1")),
        "n_min" => terms.n_min = number(key, value)?,
        "seats" => terms.seats = number(key, value)?,
        "loops" => terms.loops = number(key, value)?,
        "slack_ms" => terms.slack_ms = number(key, value)?,
        "steps_ms" => terms.steps_ms = value.split('/').map(|step| number(key, step)).collect::<Result<_, _>>()?,
        _ => {
            let near = nearest(key, KEYS).map_or(String::new(), |near| format!("; did you mean {near}?"));
            return Err(format!("unknown setting {key:?}: expected one of {}{near}", KEYS.join(", ")));
        }
    }
    Ok(())
}

/// A value for each way of using a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerUse<T> {
    /// To a destination.
    pub forward: T,
    /// Back from it.
    pub backward: T,
    /// Each way between two users who meet.
    pub meeting: T,
}

/// What a paced class means to its users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Most kbit/s of datagrams of the length that fits best, from one user.
    pub kbit_s: PerUse<u64>,
    /// MB an hour on a user's access link, each way, with copies, control cells and the headers of IPv4 and UDP. It is
    /// the same whatever the user sends.
    pub mb_per_hour: u64,
    /// Most kbit/s on the same link, over 64 rounds: while channels are set up.
    pub peak_kbit_s: u64,
    /// Most ms that a datagram waits for its round and in the nodes, in addition to the access paths. Between users the
    /// most is that of a datagram whose own cell was lost, and which its repeat has brought.
    pub delay_ms: PerUse<u64>,
    /// Most ms that a datagram waits that finds no room in its round, unless it is configured.
    pub queue_ms: u64,
    /// Length of a batch. An entry that starts carries data after one to two of them. The hops of a new chain must have
    /// signed their setup keys in an interval before that.
    pub batch_ms: u64,
    /// Bytes of the longest datagram in one cell, to a destination and between users. With repeat its cell is every
    /// second one.
    pub longest: [usize; 2],
    /// With repeat: the same in every cell.
    pub in_each_cell: Option<[usize; 2]>,
}

impl Figures {
    /// Those of a class whose terms were checked, in a chain of `hops` hops.
    pub fn of(terms: &PacedTerms, suite: Suite, hops: usize) -> Figures {
        let times = terms.timetable(hops);
        let period_ms = u64::from(terms.period_ms);
        let payload = terms.class.size().payload();
        let inner = [payload, payload - SALT_LEN];

        // With repeat, a datagram of full length fits every second cell: SPEC 9.11.7.
        let longest = |inner, repeat| fresh_max(inner, repeat) - DGRAM_OVERHEAD;
        let kbit_s = |inner, repeat| {
            let bits = 8 * longest(inner, repeat) as u64 * u64::from(terms.cells);
            bits / (period_ms * if repeat { 2 } else { 1 })
        };
        let half = |inner| fresh_max(inner, true) / 2 - DGRAM_OVERHEAD;

        let rounds = u64::from(terms.rounds);
        let slots = ControlSlots::new(terms, suite, hops, 1, Direction::Forward);
        let of_round = |round| u64::from(terms.cells) + slots.of(&times, round).total() as u64;
        let in_rounds: Vec<u64> = (0..rounds).map(of_round).collect();
        let bytes = |cells: u64| cells * u64::from(terms.copies) * (terms.class.cell_len() as u64 + IP_UDP);
        let most = in_rounds.windows(PEAK_ROUNDS).map(|cells| cells.iter().sum()).max().unwrap_or(0);

        let offset = |direction, hop| times.offset(direction, hop) / MILLI;
        let to_exit = offset(Direction::Forward, hops);
        let to_user = offset(Direction::Backward, 1);
        // A round takes what came before it was prepared.
        let round = period_ms + PREPARE / MILLI;
        let repeated = if terms.repeat { period_ms } else { 0 };
        Figures {
            kbit_s: PerUse {
                forward: kbit_s(payload, terms.repeat),
                backward: kbit_s(payload, false),
                meeting: kbit_s(payload - SALT_LEN, terms.repeat),
            },
            mb_per_hour: (bytes(in_rounds.iter().sum()) as f64 * 3.6 / (rounds * period_ms) as f64).round() as u64,
            peak_kbit_s: (8 * bytes(most)).div_ceil(PEAK_ROUNDS as u64 * period_ms),
            delay_ms: PerUse {
                forward: round + to_exit + repeated,
                // The exit seals the answers of a round when it releases that round forward.
                backward: period_ms + to_user - to_exit,
                meeting: round + to_user + repeated,
            },
            queue_ms: default_max_age(terms).as_millis() as u64,
            batch_ms: rounds * period_ms,
            longest: inner.map(|inner| longest(inner, terms.repeat)),
            in_each_cell: terms.repeat.then(|| inner.map(half)),
        }
    }

    /// The same in less than a line.
    pub fn brief(&self) -> String {
        let Figures { kbit_s, mb_per_hour, delay_ms, .. } = self;
        format!(
            "{} kbit/s out, {} back, {} inside; {mb_per_hour} MB/h; adds {}, {}, {} ms",
            kbit_s.forward, kbit_s.backward, kbit_s.meeting, delay_ms.forward, delay_ms.backward, delay_ms.meeting
        )
    }

    /// In words: what it does, and how much.
    pub fn lines(&self) -> [(&'static str, String); 6] {
        let Figures { kbit_s, mb_per_hour, peak_kbit_s, delay_ms, queue_ms, batch_ms, longest, in_each_cell } = self;
        let [out, inside] = longest;
        let PerUse { forward, backward, meeting } = kbit_s;
        let carries = format!("{forward} kbit/s to destinations, {backward} back, {meeting} between users");
        let costs = format!("{mb_per_hour} MB an hour each way, sending or not; at most {peak_kbit_s} kbit/s");
        let PerUse { forward, backward, meeting } = delay_ms;
        let adds = format!("at most {forward} ms to destinations, {backward} ms back, {meeting} ms between users");
        let queues = format!("what finds no room in its round, for {queue_ms} ms by default");
        let seconds = |ms: u64| (ms + 500) / 1000;
        let (least, most) = (seconds(*batch_ms), seconds(2 * batch_ms));
        let starts = format!("{least} to {most} s after an entry; in a new chain up to an interval more");
        let fits = match in_each_cell {
            None => format!("datagrams of {out} bytes in a cell, between users {inside}"),
            Some([half, half_inside]) => {
                format!("{half} bytes a cell or {out} every two; between users {half_inside} or {inside}")
            }
        };
        [("carries", carries), ("fits", fits), ("costs", costs), ("adds", adds), ("queues", queues), ("starts", starts)]
    }

    /// These lines below the name of the class.
    pub fn text(&self, terms: &PacedTerms) -> String {
        let mut text = format!("class {} ({}):\n\n", terms.name, terms.class);
        for (does, how_much) in self.lines() {
            text += &format!("  {does:<7}  {how_much}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paced(text: &str, hops: usize) -> PacedTerms {
        let ClassChoice::Paced(terms) = text.parse().unwrap() else { panic!("{text} is a paced class") };
        let terms = for_hops(terms, hops);
        assert_eq!(terms.check(Suite::Hybrid, hops, 60, 3600), Ok(()), "{text}");
        terms
    }

    fn figures(text: &str, hops: usize) -> Figures {
        Figures::of(&paced(text, hops), Suite::Hybrid, hops)
    }

    #[test]
    fn voice_has_the_figures_of_the_design() {
        let plain = figures("voice:repeat=0,steps_ms=2", 4);
        assert_eq!(plain.kbit_s, PerUse { forward: 162, backward: 162, meeting: 156 });
        assert_eq!(plain.delay_ms, PerUse { forward: 36, backward: 17, meeting: 43 });
        assert_eq!((plain.mb_per_hour, plain.batch_ms), (235, 20_480));
        let repeated = figures("voice:steps_ms=2", 4);
        assert_eq!(repeated.kbit_s, PerUse { forward: 80, backward: 162, meeting: 76 });
        assert_eq!(repeated.delay_ms, PerUse { forward: 46, backward: 17, meeting: 53 });
        assert_eq!((plain.longest, plain.in_each_cell), ([203, 195], None));
        assert_eq!((repeated.longest, repeated.in_each_cell), ([200, 192], Some([97, 93])));
        assert_eq!((repeated.queue_ms, figures("voice-lite", 4).queue_ms), (60, 120));
        assert_eq!(
            figures("voice:copies=3,steps_ms=2,repeat=0", 4).delay_ms.forward,
            46,
            "a copy more is a round more"
        );
        assert_eq!(figures("voice", 8).mb_per_hour, 226);
        assert_eq!(figures("voice-lite", 4).mb_per_hour, 117);
    }

    /// Two copies of a cell of 268 bytes with its headers in every round of 10 ms, and of the control slots: one in 8
    /// rounds, and one in 186 of 2048.
    #[test]
    fn cost_is_that_of_the_cells_of_an_hour() {
        let a_second: f64 = 100.0 * 2.0 * 268.0 * (1.0 + 1.0 / 8.0 + 186.0 / 2048.0);
        let hour = (a_second * 3600.0 / 1e6).round() as u64;
        assert_eq!(figures("voice", 4).mb_per_hour, hour);
    }

    #[test]
    fn every_profile_fits_chains_of_all_lengths() {
        for profile in PROFILES {
            for hops in 2..=8 {
                let lines = figures(profile.name, hops).lines();
                let longest = lines.iter().map(|(_, text)| text.len()).max();
                assert!(longest <= Some(64), "{longest:?} columns: {lines:?}");
            }
        }
        assert_eq!(figures("video", 4).kbit_s.forward, 2116);
        assert_eq!(figures("game", 4).kbit_s.forward, 324);
        assert_eq!(["game", "video"].map(|name| figures(name, 4).mb_per_hour), [428, 2214]);
        // Voice: in rounds of 10 ms a cell, a shard of a setup and, in every eighth, a link cell, each twice.
        let peaks = ["voice", "voice-lite", "game", "video"].map(|name| figures(name, 4).peak_kbit_s);
        assert_eq!(peaks[0], 100 * 2 * 268 * 8 * 17 / 8 / 1000 + 1);
        assert_eq!(peaks, [912, 456, 1340, 6940]);
    }

    #[test]
    fn changes_apply_to_their_keys_only() {
        let text = "voice:name=calls,period_ms=20,cells=3,rounds=1024,copies=3,gap=2,repeat=0,n_min=2,seats=99,loops=0,\
                    slack_ms=7,steps_ms=2/3/4";
        let expected = PacedTerms {
            class: PacedClass::new(Class::S),
            name: "calls".to_owned(),
            period_ms: 20,
            cells: 3,
            rounds: 1024,
            copies: 3,
            gap: 2,
            repeat: false,
            n_min: 2,
            seats: 99,
            loops: 0,
            slack_ms: 7,
            steps_ms: vec![2, 3, 4],
        };
        assert_eq!(paced(text, 4), expected);
        assert_eq!(paced("voice:n_min=2", 4), PacedTerms { n_min: 2, ..paced("voice", 4) });
    }

    #[test]
    fn texts_that_name_no_class_are_refused_with_a_remedy() {
        for (text, wanted) in [
            (
                "XL",
                "unknown class \"XL\": expected S (203 bytes in a cell), M (1147), L (1323), or a paced class: voice,",
            ),
            ("voise", "did you mean voice?"),
            ("paced-S", "by its profile: voice, voice-lite, game"),
            ("paced-M", "by its profile"),
            ("L:seats=2", "class L has no settings of its own: write L"),
            ("voice:", "invalid setting \"\": expected KEY=VALUE"),
            ("voice:n_min", "invalid setting \"n_min\": expected KEY=VALUE"),
            ("voice:sets=2", "did you mean seats?"),
            ("voice:lifetime_s=2", "unknown setting \"lifetime_s\": expected one of name, period_ms"),
            ("voice:n_min=-1", "invalid n_min \"-1\""),
            ("voice:copies=256", "invalid copies \"256\""),
            ("voice:repeat=2", "invalid repeat \"2\": expected 0 or 1"),
            ("voice:steps_ms=2/", "invalid steps_ms \"\""),
        ] {
            let why = text.parse::<ClassChoice>().unwrap_err();
            assert!(why.contains(wanted), "{text}: {why}");
        }
    }
}
