//! Names of classes in configurations.

use std::fmt;
use std::str::FromStr;

use control::trust::{ChainTerms, ClassTerms};
use thiserror::Error;
use wire::cell::Class;
use wire::frames::fresh_max;
use wire::ids::ClassId;
use wire::paced::PacedTerms;

/// The name of a class: `S`, `M`, `L`, or that of a paced class in the chain file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClassName(String);

impl ClassName {
    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClassName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<Class> for ClassName {
    fn from(class: Class) -> ClassName {
        ClassName(class.name().to_owned())
    }
}

/// A text that is not the name of a class.
#[derive(Debug, Error)]
#[error(
    "unknown class {0:?}: expected S (203 bytes in a cell), M (1147), L (1323), or the name of a paced class in the chain \
     file, such as voice"
)]
pub struct NotAClassName(String);

impl FromStr for ClassName {
    type Err = NotAClassName;

    fn from_str(text: &str) -> Result<ClassName, NotAClassName> {
        let is_free = text.parse::<Class>().is_ok_and(|class| class.name() == text);
        if is_free || PacedTerms::is_name(text) {
            Ok(ClassName(text.to_owned()))
        } else {
            Err(NotAClassName(text.to_owned()))
        }
    }
}

/// What a cell of a class holds.
#[derive(Clone, Debug)]
pub struct Payload {
    pub class: ClassName,
    /// Bytes of frames. With repeat the frames of one cell are in the next one, too (SPEC 9.11.7).
    pub bytes: usize,
}

/// The terms of a class of a chain.
#[derive(Clone, Debug)]
pub enum Terms {
    /// Cells leave when the mixing strategy says.
    Free(ClassTerms),
    /// Cells leave in rounds.
    Paced(PacedTerms),
}

impl Terms {
    /// Those of all classes of a chain, in its order.
    pub fn of(chain: &ChainTerms) -> impl Iterator<Item = Terms> {
        let paced = chain.paced.iter().cloned().map(Terms::Paced);
        chain.classes.iter().copied().map(Terms::Free).chain(paced)
    }

    /// The class.
    pub fn id(&self) -> ClassId {
        match self {
            Terms::Free(terms) => terms.class.into(),
            Terms::Paced(terms) => terms.class.into(),
        }
    }

    /// Its name.
    pub fn name(&self) -> ClassName {
        match self {
            Terms::Free(terms) => terms.class.into(),
            Terms::Paced(terms) => ClassName(terms.name.clone()),
        }
    }

    /// What its cells hold.
    pub fn payload(&self) -> Payload {
        let bytes = match self {
            Terms::Free(terms) => terms.class.payload(),
            Terms::Paced(terms) => fresh_max(terms.class.size().payload(), terms.repeat),
        };
        Payload { class: self.name(), bytes }
    }

    /// Those of a paced class.
    pub fn paced(&self) -> Option<&PacedTerms> {
        if let Terms::Paced(terms) = self { Some(terms) } else { None }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What a cell of a free class holds.
    pub(crate) fn payload_of(class: Class) -> Payload {
        Payload { class: class.into(), bytes: class.payload() }
    }

    #[test]
    fn name_is_that_of_a_size_or_a_paced_class() {
        for good in ["S", "M", "L", "voice", "voice-lite", "c1"] {
            assert_eq!(good.parse::<ClassName>().unwrap().as_str(), good);
        }
        for bad in ["", "X", "s m", "Voice", "abcdefghijklmnopq"] {
            assert!(bad.parse::<ClassName>().is_err_and(|why| why.to_string().contains(bad)), "{bad}");
        }
    }
}
