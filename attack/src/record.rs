//! What an adversary on the wires sees: times and lengths of datagrams, at places outside the nodes.

use crate::paced::{Contents, ExitRound, Meeting, PacedShape};

/// A datagram at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Nanoseconds since the record began.
    pub at: u64,
    /// Bytes of UDP payload.
    pub bytes: u32,
}

/// One direction at one place, in the order of the wire: times never decrease, and datagrams of one GSO burst, which
/// have one time, keep the order that they have in it.
pub type Trace = Vec<Seen>;

/// Both directions at one place. Forward is from users to destinations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub forward: Trace,
    pub backward: Trace,
}

impl Place {
    /// The trace of one direction.
    pub fn trace(&self, forward: bool) -> &Trace {
        if forward { &self.forward } else { &self.backward }
    }
}

/// A datagram of the adversary's own user, whose way it knows: it sent it, and it is its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passage {
    /// When it was on the access link, in nanoseconds since the record began.
    pub entered: u64,
    /// When it left the exit.
    pub left: u64,
}

/// The most that the layers of a cell add to its length, in bytes.
const LAYERS: u32 = 128;

/// All that one run shows on the wires.
///
/// Users and flows have no names and no common order: which flow is whose is a [`Truth`], which attackers never get.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// Nanoseconds that the record covers.
    pub length: u64,
    /// Length of the shortest cells, in bytes. Where cells have more layers they are longer, by up to 128 bytes.
    pub cell_bytes: u32,
    /// The access link of each user, between its entry and Mix 1.
    pub access: Vec<Place>,
    /// The inner links in order, Mix 1 to Mix 2 first, the last one to the exit. All users share them.
    pub inner: Vec<Place>,
    /// Each flow between the exit and its destination.
    pub flows: Vec<Place>,
    /// Datagrams of the adversary's own user.
    pub probe: Vec<Passage>,
    /// What a corrupt exit adds: for each flow, the times of the rounds whose cell it could not open. Empty where the
    /// exit is honest, or a class has no rounds.
    pub unopened: Vec<Vec<u64>>,
    /// The public terms of the class, if it is paced and the record says so.
    pub paced: Option<PacedShape>,
    /// For each access link, which of its datagrams are the same bytes. Empty where the record does not say.
    pub contents: Vec<Contents>,
    /// What a corrupt exit adds about calls inside: for each flow, the meeting that leads there. Empty where the exit
    /// is honest, or flows leave it. Needs `paced`.
    pub meetings: Vec<Meeting>,
}

impl Record {
    /// The record as it was after its first `length` nanoseconds.
    pub fn first(&self, length: u64) -> Self {
        let cut = |trace: &Trace| trace.iter().copied().take_while(|seen| seen.at < length).collect::<Trace>();
        let place = |place: &Place| Place { forward: cut(&place.forward), backward: cut(&place.backward) };
        let access: Vec<Place> = self.access.iter().map(place).collect();
        let of_access = |contents: &[u32], trace: &Trace| contents[..trace.len().min(contents.len())].to_vec();
        let began = |rounds: &[ExitRound]| -> Vec<ExitRound> {
            let end = self
                .paced
                .as_ref()
                .map_or(u64::MAX, |shape| shape.first + length.saturating_sub(shape.first_at).div_ceil(shape.period));
            rounds.iter().copied().take_while(|one| one.round < end).collect()
        };
        Self {
            length: self.length.min(length),
            cell_bytes: self.cell_bytes,
            inner: self.inner.iter().map(place).collect(),
            flows: self.flows.iter().map(place).collect(),
            probe: self.probe.iter().copied().filter(|passage| passage.left < length).collect(),
            unopened: (self.unopened.iter())
                .map(|times| times.iter().copied().take_while(|&at| at < length).collect())
                .collect(),
            paced: self.paced.clone(),
            contents: (self.contents.iter().zip(&access))
                .map(|(contents, place)| Contents {
                    forward: of_access(&contents.forward, &place.forward),
                    backward: of_access(&contents.backward, &place.backward),
                })
                .collect(),
            meetings: (self.meetings.iter())
                .map(|meeting| Meeting { forward: began(&meeting.forward), backward: began(&meeting.backward) })
                .collect(),
            access,
        }
    }

    /// The times of the cells of a trace. Handshakes and other lengths are left out.
    pub fn cells<'a>(&'a self, trace: &'a [Seen]) -> impl Iterator<Item = u64> + use<'a> {
        trace.iter().filter(|seen| self.is_cell(seen)).map(|seen| seen.at)
    }

    /// True if the length is that of a cell.
    pub(crate) fn is_cell(&self, seen: &Seen) -> bool {
        (self.cell_bytes..=self.cell_bytes.saturating_add(LAYERS)).contains(&seen.bytes)
    }

    /// The times of the cells on each access link in one direction.
    pub(crate) fn access_cells(&self, forward: bool) -> Vec<Vec<u64>> {
        self.access.iter().map(|place| self.cells(place.trace(forward)).collect()).collect()
    }

    /// The times of each flow's datagrams in one direction.
    pub(crate) fn datagrams(&self, forward: bool) -> Vec<Vec<u64>> {
        self.flows.iter().map(|place| place.trace(forward).iter().map(|seen| seen.at).collect()).collect()
    }
}

/// The times of several traces in one order, each with the index of its trace. Equal times keep the traces' order.
pub(crate) fn merged(traces: &[Vec<u64>]) -> Vec<(u64, usize)> {
    let mut all: Vec<(u64, usize)> =
        traces.iter().enumerate().flat_map(|(i, times)| times.iter().map(move |&at| (at, i))).collect();
    all.sort_by_key(|&(at, _)| at);
    all
}

/// The flow of each user, as an index into [`Record::flows`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truth(pub Vec<usize>);
