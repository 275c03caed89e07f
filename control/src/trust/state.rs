//! What a node keeps on disk (SPEC 7.10): descriptors and floors, and at a hop what it has drawn and signed.
//!
//! ```text
//! "eddy state" | version u8 (2) | made u64 | chain id 32 | last draw u64
//! | n u8, n times (first u64 | last u64)                                           signed intervals
//! | n u8, n times (interval u64 | hash 32)                                         the latest of them
//! | n u8, n times (hop u8 | epoch u64 | revision u64 | draw u64 | hash 32)         highest records signed
//! | n u8, n times (identity 32 | floor u64)
//! | n u8, n times (length u16 | descriptor)
//! | SHA-256 of all this
//! ```
//!
//! `made` is the time of `eddy keygen`, in seconds since 1970, until the node draws its first setup keys; then 0.

use super::descriptor::SignedDescriptor;
use super::encoding::{Malformed, Reader, sha256};
use super::hop::HopState;
use super::signed::{SignedIntervals, SignedRanks};
use super::view::View;

const MAGIC: &[u8; 10] = b"eddy state";
const VERSION: u8 = 2;
const HASH_LEN: usize = 32;

/// The content of a state file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The chain that [`State::hop`] is about; zeros as long as there is none.
    pub chain: [u8; 32],
    /// The default at an entry.
    pub hop: HopState,
    /// By identity.
    pub floors: Vec<([u8; 32], u64)>,
    pub descriptors: Vec<SignedDescriptor>,
}

impl State {
    /// That of a node whose keys were made at this time, in seconds since 1970.
    pub fn fresh(made: u64) -> State {
        let hop = HopState { made, ..HopState::default() };
        State { chain: [0; 32], hop, floors: Vec::new(), descriptors: Vec::new() }
    }

    pub(crate) fn of(view: &View, hop: HopState) -> State {
        let hops = 1..=view.hops();
        let floor = |hop: usize| (view.terms().identities[hop - 1], view.floor(hop));
        State {
            chain: *view.chain(),
            hop,
            floors: hops.clone().map(floor).filter(|(_, floor)| *floor > 0).collect(),
            descriptors: hops.flat_map(|hop| view.descriptors(hop)).map(|held| SignedDescriptor::clone(held)).collect(),
        }
    }

    /// Puts floors and descriptors into a view, and returns what a hop of its chain goes on with. What belongs to other
    /// chains, or cannot count any more, is left out.
    pub fn restore(self, view: &mut View, now_s: u64) -> HopState {
        for (identity, floor) in self.floors {
            if let Some(hop) = view.position(&identity) {
                view.raise_floor(hop, floor);
            }
        }
        for descriptor in self.descriptors {
            if let Some(hop) = view.position(&descriptor.identity) {
                let _ = view.take_descriptor(hop, descriptor, now_s);
            }
        }
        if self.hop.made > 0 || self.chain == *view.chain() {
            self.hop
        } else {
            HopState { last_draw: self.hop.last_draw, ..HopState::default() }
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = [&MAGIC[..], &[VERSION], &self.hop.made.to_be_bytes(), &self.chain].concat();
        out.extend_from_slice(&self.hop.last_draw.to_be_bytes());
        out.push(self.hop.intervals.ranges().len() as u8);
        for (first, last) in self.hop.intervals.ranges() {
            out.extend_from_slice(&first.to_be_bytes());
            out.extend_from_slice(&last.to_be_bytes());
        }
        out.push(self.hop.intervals.recent().len() as u8);
        for (interval, hash) in self.hop.intervals.recent() {
            out.extend_from_slice(&interval.to_be_bytes());
            out.extend_from_slice(hash);
        }
        out.push(self.hop.ranks.all().len() as u8);
        for (hop, epoch, (revision, draw, hash)) in self.hop.ranks.all() {
            out.push(*hop);
            [epoch, revision, draw].into_iter().for_each(|number| out.extend_from_slice(&number.to_be_bytes()));
            out.extend_from_slice(hash);
        }
        out.push(self.floors.len() as u8);
        for (identity, floor) in &self.floors {
            out.extend_from_slice(identity);
            out.extend_from_slice(&floor.to_be_bytes());
        }
        out.push(self.descriptors.len() as u8);
        for descriptor in &self.descriptors {
            out.extend_from_slice(&(descriptor.bytes().len() as u16).to_be_bytes());
            out.extend_from_slice(descriptor.bytes());
        }
        let hash = sha256(&[&out]);
        out.extend_from_slice(&hash);
        out
    }

    /// Reads a state file.
    ///
    /// # Errors
    /// It is damaged, or of another version.
    pub fn read(bytes: &[u8]) -> Result<State, Malformed> {
        if !bytes.starts_with(MAGIC) {
            return Err(Malformed::Field("not a state file of eddy"));
        }
        let content = bytes.len().checked_sub(HASH_LEN).ok_or(Malformed::Truncated(bytes.len()))?;
        let (content, hash) = bytes.split_at(content);
        let mut reader = Reader::new(content);
        reader.bytes(MAGIC.len())?;
        if reader.u8()? != VERSION {
            return Err(Malformed::Field("a state file of another version of eddy"));
        }
        if sha256(&[content]) != hash {
            return Err(Malformed::Field("the state file is damaged"));
        }
        let made = reader.u64()?;
        let (chain, last_draw) = (reader.array()?, reader.u64()?);
        let ranges = many(&mut reader, |reader| Ok((reader.u64()?, reader.u64()?)))?;
        let recent = many(&mut reader, |reader| Ok((reader.u64()?, reader.array()?)))?;
        let intervals = SignedIntervals::restore(ranges, recent);
        let ranks = many(&mut reader, |reader| {
            let (hop, epoch) = (reader.u8()?, reader.u64()?);
            Ok((hop, epoch, (reader.u64()?, reader.u64()?, reader.array()?)))
        })?;
        let floors = many(&mut reader, |reader| Ok((reader.array()?, reader.u64()?)))?;
        let descriptors = many(&mut reader, |reader| {
            let len = usize::from(reader.u16()?);
            // One of another version of eddy is left out: its node sends the next one.
            reader.bytes(len).map(|bytes| SignedDescriptor::read(bytes).ok())
        })?;
        reader.end()?;
        let hop = HopState {
            made,
            last_draw,
            intervals: intervals.ok_or(Malformed::Field("the signed intervals are out of order"))?,
            ranks: SignedRanks::restore(ranks),
        };
        Ok(State { chain, hop, floors, descriptors: descriptors.into_iter().flatten().collect() })
    }
}

fn many<T>(
    reader: &mut Reader<'_>,
    one: impl Fn(&mut Reader<'_>) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    (0..reader.u8()?).map(|_| one(reader)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::descriptor::HopRole;
    use super::super::descriptor::tests::{descriptor, identity, node, signed};
    use super::super::view::tests::{HOPS, NOW_MS, terms};
    use super::*;

    fn state() -> State {
        let mut hop = HopState { made: 0, last_draw: 77, ..HopState::default() };
        for interval in [5, 6, 9] {
            assert!(hop.intervals.insert(interval, [interval as u8; 32]));
        }
        hop.ranks.insert(2, 3, (1, 8, [4; 32]));
        let mut view = View::new(terms());
        for hop in 1..=2 {
            view.take_descriptor(hop, signed(node(hop, HOPS), hop), NOW_MS / 1000).unwrap();
        }
        view.raise_floor(2, 1);
        State::of(&view, hop)
    }

    #[test]
    fn state_is_read_as_it_was_written() {
        for state in [state(), State::fresh(1_800_000_000)] {
            assert_eq!(State::read(&state.to_bytes()), Ok(state));
        }
        assert_eq!((state().floors.len(), state().descriptors.len()), (1, 2));
    }

    #[test]
    fn descriptor_of_another_version_costs_only_itself() {
        let mut bytes = state().to_bytes();
        let at = bytes.windows(5).position(|window| window == b"eddy\x02").unwrap();
        bytes[at + 4] = 3;
        let content = bytes.len() - HASH_LEN;
        let hash = sha256(&[&bytes[..content]]);
        bytes[content..].copy_from_slice(&hash);
        let read = State::read(&bytes).unwrap();
        assert_eq!((read.descriptors.len(), &read.hop, &read.floors), (1, &state().hop, &state().floors));
    }

    #[test]
    fn damaged_state_is_refused() {
        let bytes = state().to_bytes();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(State::read(&damaged).is_err(), "byte {at}");
            assert!(State::read(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn state_of_another_chain_keeps_the_draw_only() {
        let mut view = View::new(terms());
        let same = state().restore(&mut view, NOW_MS / 1000);
        assert_eq!((same, view.floor(2), view.descriptors(1).len()), (state().hop, 1, 1));

        let mut others = terms();
        others.interval_s += 1;
        let mut view = View::new(others);
        let mut of_another = state();
        of_another.descriptors.push(descriptor(9, HopRole::Mix).sign(&identity(9)).unwrap());
        let kept = of_another.restore(&mut view, NOW_MS / 1000);
        assert_eq!(kept, HopState { last_draw: 77, ..HopState::default() });
        assert!(view.descriptor(1).is_some(), "it is public, and its identity's");
    }
}
