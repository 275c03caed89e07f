//! The public file of an assembled chain: its terms under an id, and copies of descriptors.
//!
//! The id is a hash of the terms, so a file that was changed does not load. Descriptors are not in it: they are signed,
//! and a higher revision replaces them. Expired ones load, because they still say where their nodes are.

use std::path::Path;

use control::trust::chain::BadTerms;
use control::trust::view::{BadDescriptor, View};
use control::trust::{ChainTerms, ClassTerms, SignedDescriptor};
use wire::cell::Shape;
use wire::paced::{PacedClass, PacedTerms};
use wire::setup::Suite;

use super::source::{Source, Table, encode_base64};
use super::table_trust::CHAIN_FILE;
use super::{ConfigError, NodeRole, node_name};
use crate::ceremony::files::{public, signed};
use crate::ceremony::{fingerprint, hex, places};

const AGAIN: &str = "get the file again from whoever made the chain";

/// A chain file, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainFile {
    pub id: [u8; 32],
    pub terms: ChainTerms,
    /// Of each hop, Mix 1 first, the exit last. Some may have expired.
    pub descriptors: Vec<SignedDescriptor>,
}

impl ChainFile {
    /// Reads and verifies a chain file at the time `now_s`.
    ///
    /// # Errors
    /// The first mistake, with its remedy.
    pub fn read(path: &Path, now_s: u64) -> Result<ChainFile, ConfigError> {
        ChainFile::check(&public(path, "check the path, or get the file from whoever made the chain")?, path, now_s)
    }

    /// The same from a text; messages name `path`.
    ///
    /// # Errors
    /// The first mistake, with its remedy.
    pub fn parse(path: &Path, text: &str, now_s: u64) -> Result<ChainFile, ConfigError> {
        ChainFile::check(&Source::new(path, text), path, now_s)
    }

    pub(crate) fn check(source: &Source, path: &Path, now_s: u64) -> Result<ChainFile, ConfigError> {
        let table = source.table(CHAIN_FILE)?;
        table.check(NodeRole::Mix)?;
        let hops = table.subs("hop")?;
        let terms = read_terms(&table, &hops)?;

        let said = table.text("id");
        if said.value.len() != 64 || !said.value.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(said.wrong("id must be 64 hexadecimal digits, in lower case", AGAIN));
        }
        let id = terms.id();
        if said.value != hex(&id) {
            let name = path.file_name().unwrap_or(path.as_os_str()).display();
            let what = format!("{name} was changed: id says {}, content gives {}", said.value, hex(&id));
            return Err(said.wrong(what, AGAIN));
        }

        let mut view = View::new(terms.clone());
        let mut descriptors = Vec::with_capacity(hops.len());
        for (i, hop) in hops.iter().enumerate() {
            let text = hop.text("descriptor");
            let descriptor = signed(&text, AGAIN)?;
            let taken = view.take_descriptor(i + 1, descriptor.clone(), now_s);
            taken.and_then(|_| view.check_own_keys(i + 1)).map_err(|why| {
                let what = format!("the descriptor of hop {} is refused: {why}", i + 1);
                match why {
                    // Its text has a remedy.
                    BadDescriptor::NotYet(_) => text.invalid(what),
                    _ => text.wrong(what, AGAIN),
                }
            })?;
            descriptors.push(descriptor);
        }
        Ok(ChainFile { id, terms, descriptors })
    }

    /// The role of a hop, from 1.
    pub fn role(&self, hop: usize) -> NodeRole {
        NodeRole::at(hop, self.descriptors.len()).unwrap_or(NodeRole::Exit)
    }

    /// Class and length of the cells that its nodes exchange: those of its first class.
    pub fn shape(&self) -> Shape {
        let first = self.terms.first_class();
        Shape::new(first.size(), self.descriptors.len()).expect("the number of hops was checked")
    }

    /// The first eight digits of its id.
    pub fn short_id(&self) -> String {
        hex(&self.id[..4])
    }

    /// The text of the file.
    pub fn text(&self) -> String {
        let terms = &self.terms;
        let mut text = format!(
            "# The public file of a chain: every node and every user needs it.\n\
             # Compare its fingerprint with the one that another operator or user has:\n\
             #   {}\n\
             id = \"{}\"\n\
             suite = {}   # of channel setups: 2 is X25519 with ML-KEM-768, 1 X25519 alone\n\
             interval_s = {}\n\
             epoch_s = {}\n",
            fingerprint(&self.id),
            hex(&self.id),
            terms.suite,
            terms.interval_s,
            terms.epoch_s,
        );
        for class in &terms.classes {
            text += &format!(
                "\n[[class]]\nclass = \"{}\"\nmixing_delay_ms = {}\nlifetime_s = {}\n",
                class.class, class.mixing_delay_ms, class.lifetime_s
            );
        }
        self.terms.paced.iter().for_each(|class| text += &paced_text(class));
        for (i, descriptor) in self.descriptors.iter().enumerate() {
            let name = node_name(self.role(i + 1), i + 1);
            let all: Vec<String> = descriptor.contacts.iter().map(places).collect();
            text += &format!(
                "\n# {name}: {}\n[[hop]]\nidentity = \"{}\"\ndescriptor = \"{}\"\n",
                all.join(", "),
                encode_base64(&descriptor.identity),
                encode_base64(descriptor.bytes()),
            );
        }
        text
    }
}

/// The table of a paced class.
fn paced_text(terms: &PacedTerms) -> String {
    format!(
        "\n# Paced: a round every period_ms.\n\
         [[class]]\n\
         class = \"{}\"\n\
         name = \"{}\"\n\
         period_ms = {}\n\
         cells = {}\n\
         rounds = {}\n\
         copies = {}\n\
         gap = {}\n\
         repeat = {}\n\
         n_min = {}\n\
         seats = {}\n\
         loops = {}\n\
         slack_ms = {}\n\
         steps_ms = {:?}\n",
        terms.class.size(),
        terms.name,
        terms.period_ms,
        terms.cells,
        terms.rounds,
        terms.copies,
        terms.gap,
        u8::from(terms.repeat),
        terms.n_min,
        terms.seats,
        terms.loops,
        terms.slack_ms,
        terms.steps_ms,
    )
}

/// Reads that of a chain of `hops` hops.
fn read_paced(class: &Table<'_>, hops: usize) -> Result<PacedTerms, ConfigError> {
    let number = |key| class.integer(key) as u16;
    let byte = |key| class.integer(key) as u8;
    let defaults = PacedTerms::new(PacedClass::new(class.parsed("class")?), class.text("name").value, hops);
    let steps = class.integers("steps_ms").into_iter().map(|step| step as u16);
    Ok(PacedTerms {
        period_ms: number("period_ms"),
        cells: byte("cells"),
        rounds: number("rounds"),
        copies: byte("copies"),
        gap: byte("gap"),
        repeat: byte("repeat") == 1,
        n_min: number("n_min"),
        seats: number("seats"),
        loops: byte("loops"),
        slack_ms: number("slack_ms"),
        steps_ms: if class.is_set("steps_ms") { steps.collect() } else { defaults.steps_ms },
        ..defaults
    })
}

fn read_terms(table: &Table<'_>, hops: &[Table<'_>]) -> Result<ChainTerms, ConfigError> {
    let classes = table.subs("class")?;
    let (paced, free): (Vec<_>, Vec<_>) = classes.iter().partition(|class| class.knows("period_ms"));
    let read_class = |class: &Table<'_>| {
        Ok(ClassTerms {
            class: class.parsed("class")?,
            mixing_delay_ms: class.integer("mixing_delay_ms") as u32,
            lifetime_s: class.integer("lifetime_s") as u16,
        })
    };
    let read_identity = |hop: &Table<'_>| {
        let text = hop.text("identity");
        let identity: [u8; 32] = text.bytes("identity")?;
        // One content, one text.
        let canonical = text.value == encode_base64(&identity);
        if canonical { Ok(identity) } else { Err(text.wrong("identity must be 32 bytes in base64", AGAIN)) }
    };
    let suite = u8::try_from(table.integer("suite")).ok().and_then(Suite::from_wire);
    let terms = ChainTerms {
        suite: suite.expect("in the range of the table"),
        interval_s: table.integer("interval_s") as u32,
        epoch_s: table.integer("epoch_s") as u32,
        classes: free.into_iter().map(read_class).collect::<Result<_, ConfigError>>()?,
        paced: paced.iter().map(|class| read_paced(class, hops.len())).collect::<Result<_, _>>()?,
        identities: hops.iter().map(read_identity).collect::<Result<_, _>>()?,
    };
    terms.check().map_err(|why| {
        let what = why.to_string();
        match why {
            BadTerms::SameIdentity(_, later) => hops[later - 1].wrong("identity", what, AGAIN),
            BadTerms::Hops(_) => table.wrong("hop", what, AGAIN),
            BadTerms::Interval(_) => table.wrong("interval_s", what, AGAIN),
            BadTerms::Epoch { .. } => table.wrong("epoch_s", what, AGAIN),
            BadTerms::Classes | BadTerms::MixingDelay(_) | BadTerms::Lifetime(_) | BadTerms::SameName(_) => {
                table.wrong("class", what, AGAIN)
            }
            BadTerms::Paced(name, why) => {
                let class = paced.iter().find(|class| class.text("name").value == name);
                class.expect("it was read from one").wrong(why.key(), what, AGAIN)
            }
        }
    })?;
    Ok(terms)
}
