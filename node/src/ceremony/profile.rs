//! Paced classes as `eddy assemble --class` names them.
//!
//! A profile is a set of parameters for one kind of traffic. Operators change single ones of them:
//! `voice:n_min=2,steps_ms=2`. [`Figures`](crate::figures::Figures) says in the terms of users what the parameters
//! mean.

use std::fmt::{self, Display};
use std::ops::RangeInclusive;
use std::str::FromStr;

use wire::cell::Class;
use wire::ids::{ClassId, UnknownClassId};
use wire::paced::terms::{
    CELLS, COPIES, GAP, LOOPS_MAX, PERIOD_MS, ROUNDS_MAX, SEATS, SLACK_MS, STEP_DEFAULT_MS, STEP_MS,
};
use wire::paced::{PacedClass, PacedTerms};

use crate::config::{ConfigError, nearest};

/// Parameters for one kind of traffic. All others are the defaults of SPEC 9.16.
struct Profile {
    name: &'static str,
    size: Class,
    period_ms: u16,
    cells: u8,
    repeat: bool,
    slack_ms: u16,
}

const PROFILES: &[Profile] = &[
    Profile { name: "voice", size: Class::S, period_ms: 10, cells: 1, repeat: true, slack_ms: 8 },
    Profile { name: "voice-lite", size: Class::S, period_ms: 20, cells: 1, repeat: true, slack_ms: 8 },
    Profile { name: "game", size: Class::S, period_ms: 10, cells: 2, repeat: false, slack_ms: 8 },
    // 2.1 Mbit/s of datagrams. Without repeat late cells show outside; video can wait for them, a game cannot.
    Profile { name: "video", size: Class::L, period_ms: 10, cells: 2, repeat: false, slack_ms: 20 },
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
            let changes: Vec<&str> = changes.into_iter().flat_map(|changes| changes.split(',')).collect();
            let key = |one: &str| one.split('=').next().unwrap_or_default().to_owned();
            for (at, one) in changes.iter().enumerate() {
                if changes[..at].iter().any(|before| key(before) == key(one)) {
                    return Err(format!("duplicate setting {:?}: name it once", key(one)));
                }
                change(&mut terms, one)?;
            }
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
            slack_ms: self.slack_ms,
            steps_ms: vec![STEP_DEFAULT_MS],
            ..PacedTerms::new(PacedClass::new(self.size), self.name, 0)
        }
    }
}

/// Applies `KEY=VALUE`. [`PacedTerms::check`] checks what depends on other settings.
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
    fn number<T>(key: &str, value: &str, range: RangeInclusive<T>) -> Result<T, String>
    where
        T: FromStr + PartialOrd + Display,
    {
        let (least, most) = (range.start(), range.end());
        let number = value.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("invalid {key} {value:?}: expected a whole number from {least} to {most}"))
    }
    let (key, value) = text.split_once('=').ok_or_else(|| {
        format!("invalid setting {text:?}: expected KEY=VALUE, comma-separated, e.g. voice:n_min=2,steps_ms=2")
    })?;
    match key {
        "name" => value.clone_into(&mut terms.name),
        "period_ms" => terms.period_ms = number(key, value, PERIOD_MS)?,
        "cells" => terms.cells = number(key, value, CELLS)?,
        "rounds" => terms.rounds = number(key, value, 1..=ROUNDS_MAX)?,
        "copies" => terms.copies = number(key, value, COPIES)?,
        "gap" => terms.gap = number(key, value, GAP)?,
        "repeat" if matches!(value, "0" | "1") => terms.repeat = value == "1",
        "repeat" => return Err(format!("invalid repeat {value:?}: expected 0 or 1")),
        "n_min" => terms.n_min = number(key, value, SEATS)?,
        "seats" => terms.seats = number(key, value, SEATS)?,
        "loops" => terms.loops = number(key, value, 0..=LOOPS_MAX)?,
        "slack_ms" => terms.slack_ms = number(key, value, SLACK_MS)?,
        "steps_ms" => {
            terms.steps_ms = value.split('/').map(|step| number(key, step, STEP_MS)).collect::<Result<_, _>>()?
        }
        _ => {
            let near = nearest(key, KEYS).map_or(String::new(), |near| format!("; did you mean {near}?"));
            return Err(format!("unknown setting {key:?}: expected one of {}{near}", KEYS.join(", ")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use wire::setup::Suite;

    use super::*;

    fn paced(text: &str, hops: usize) -> PacedTerms {
        let ClassChoice::Paced(terms) = text.parse().unwrap() else { panic!("{text} is a paced class") };
        let terms = for_hops(terms, hops);
        assert_eq!(terms.check(Suite::Hybrid, hops, 60, 3600), Ok(()), "{text}");
        terms
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
            ("voice:seats=99999", "invalid seats \"99999\": expected a whole number from 1 to 16384"),
            ("voice:copies=0", "invalid copies \"0\": expected a whole number from 1 to 4"),
            ("voice:period_ms=999", "invalid period_ms \"999\": expected a whole number from 5 to 100"),
            ("voice:n_min=4,cells=1,n_min=5", "duplicate setting \"n_min\""),
            ("voice:repeat=2", "invalid repeat \"2\": expected 0 or 1"),
            ("voice:steps_ms=2/", "invalid steps_ms \"\""),
        ] {
            let why = text.parse::<ClassChoice>().unwrap_err();
            assert!(why.contains(wanted), "{text}: {why}");
        }
    }
}
