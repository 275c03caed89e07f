//! Seats of a batch at a hop, and the shards of the setups that have one (SPEC 9.8.4 to 9.8.6).

use std::collections::HashMap;

use wire::ids::LinkId;

use crate::channel::LinkChannel;
use crate::counters::Refusal;
use crate::fragments::Parts;
use crate::prefix::Prefix;

/// The seats of one batch. A setup takes one with its first shard and keeps it, whatever becomes of it.
pub(super) struct Seats {
    seats: usize,
    is_mix_1: bool,
    /// By link and channel; at Mix 1, where a link has one setup in a batch, by link and 0.
    taken: HashMap<LinkChannel, Seat>,
    /// Mix 1: links with a channel in the running batch that have not taken the seat kept for them.
    kept: HashMap<LinkId, Option<Prefix>>,
    /// Mix 1: seats taken by, or kept for, links of a prefix.
    of_prefix: HashMap<Prefix, usize>,
}

struct Seat {
    channel: u32,
    /// None once the setup was opened, or given up.
    parts: Option<Parts>,
}

/// The state of a setup after one of its shards came in.
pub(super) enum Joined {
    Incomplete,
    /// As many shards as are needed.
    Complete(Parts),
    /// The setup had as many before.
    Surplus,
}

impl Seats {
    /// Between hops.
    pub(super) fn of_hop(seats: usize) -> Seats {
        let (taken, kept, of_prefix) = Default::default();
        Seats { seats, is_mix_1: false, taken, kept, of_prefix }
    }

    /// At Mix 1: one is kept for each of these links, which have a channel in the running batch.
    pub(super) fn of_mix_1(seats: usize, running: impl Iterator<Item = (LinkId, Option<Prefix>)>) -> Seats {
        let kept: HashMap<_, _> = running.collect();
        let mut of_prefix = HashMap::new();
        kept.values().flatten().for_each(|prefix| *of_prefix.entry(*prefix).or_default() += 1);
        Seats { seats, is_mix_1: true, taken: HashMap::new(), kept, of_prefix }
    }

    /// Takes in a shard of a setup that needs any `needed` of its shards.
    pub(super) fn join(
        &mut self,
        (link, channel): LinkChannel,
        prefix: Option<Prefix>,
        (sub, needed): (u8, usize),
        content: &[u8],
    ) -> Result<Joined, Refusal> {
        let key = (link, if self.is_mix_1 { 0 } else { channel });
        if !self.taken.contains_key(&key) {
            self.take(link, prefix)?;
        }
        let seat = self.taken.entry(key).or_insert_with(|| Seat { channel, parts: Some(Parts::default()) });
        if seat.channel != channel {
            return Err(Refusal::SecondSetup);
        }
        let Some(parts) = &mut seat.parts else { return Ok(Joined::Surplus) };
        if parts.indexes.contains(&sub) {
            return Err(Refusal::FragmentMalformed);
        }
        parts.indexes.push(sub);
        parts.bytes.push(content.to_vec());
        if parts.indexes.len() < needed {
            return Ok(Joined::Incomplete);
        }
        Ok(Joined::Complete(seat.parts.take().expect("it was found above")))
    }

    /// Checks that there is a seat for another setup. A prefix gets one more only while more are free than it has.
    fn take(&mut self, link: LinkId, prefix: Option<Prefix>) -> Result<(), Refusal> {
        if self.kept.remove(&link).is_some() {
            return Ok(());
        }
        let own = prefix.map(|prefix| self.of_prefix.entry(prefix).or_default());
        let free = self.seats.saturating_sub(self.taken.len() + self.kept.len());
        if free <= own.as_deref().copied().unwrap_or(0) {
            return Err(Refusal::NoRoom);
        }
        own.into_iter().for_each(|own| *own += 1);
        Ok(())
    }

    /// Mix 1: true if this link has a seat, or one is kept for it.
    pub(super) fn holds(&self, link: LinkId) -> bool {
        self.kept.contains_key(&link) || self.taken.contains_key(&(link, 0))
    }

    /// Gives up setups of which too few shards have come. Returns how many.
    pub(super) fn close(&mut self) -> usize {
        self.taken.values_mut().filter_map(|seat| seat.parts.take()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(n: u8) -> Option<Prefix> {
        Some(Prefix::of([n, n, n, n].into()))
    }

    /// Joins the first shard of a setup.
    fn first(seats: &mut Seats, link: u32, channel: u32, prefix: Option<Prefix>) -> Result<(), Refusal> {
        seats.join((LinkId(link), channel), prefix, (0, 2), &[7]).map(drop)
    }

    #[test]
    fn link_with_a_channel_keeps_its_seat() {
        let mut seats = Seats::of_mix_1(3, [(LinkId(1), prefix(1)), (LinkId(2), prefix(1))].into_iter());
        assert_eq!(first(&mut seats, 7, 1, prefix(7)), Ok(()));
        assert_eq!(first(&mut seats, 8, 1, prefix(8)), Err(Refusal::NoRoom), "the others are kept");
        assert_eq!(first(&mut seats, 1, 1, prefix(1)), Ok(()));
        assert_eq!(first(&mut seats, 9, 1, None), Err(Refusal::NoRoom));
        assert_eq!([1, 2, 7, 8].map(|link| seats.holds(LinkId(link))), [true, true, true, false]);
        assert_eq!(first(&mut seats, 2, 1, prefix(1)), Ok(()));
        assert_eq!(seats.taken.len(), 3);
    }

    #[test]
    fn prefix_gets_a_seat_while_more_are_free_than_it_has() {
        let mut seats = Seats::of_mix_1(8, [(LinkId(1), prefix(1))].into_iter());
        let mut of_one: Vec<_> = (2..9).map(|link| first(&mut seats, link, 1, prefix(1))).collect();
        assert_eq!(of_one.drain(..).filter(Result::is_ok).count(), 3, "and one that is kept");
        assert_eq!((20..29).filter(|link| first(&mut seats, *link, 1, prefix(2)).is_ok()).count(), 2);
        assert_eq!((30..39).filter(|link| first(&mut seats, *link, 1, None).is_ok()).count(), 2, "exempt");
        assert_eq!(first(&mut seats, 1, 1, prefix(1)), Ok(()));
    }

    #[test]
    fn entry_link_has_one_setup_and_a_hop_link_one_per_seat() {
        let mut seats = Seats::of_mix_1(8, std::iter::empty());
        assert_eq!(first(&mut seats, 1, 5, None), Ok(()));
        assert_eq!(first(&mut seats, 1, 6, None), Err(Refusal::SecondSetup));
        let mut seats = Seats::of_hop(2);
        assert_eq!(
            [5, 6, 7].map(|channel| first(&mut seats, 1, channel, None)),
            [Ok(()), Ok(()), Err(Refusal::NoRoom)]
        );
    }

    #[test]
    fn seat_of_a_decided_setup_is_not_given_again() {
        let mut seats = Seats::of_hop(1);
        let mut join = |sub| seats.join((LinkId(1), 5), None, (sub, 2), &[sub]);
        assert!(matches!(join(3), Ok(Joined::Incomplete)));
        assert!(matches!(join(3), Err(Refusal::FragmentMalformed)), "an index that is there");
        assert!(matches!(join(1), Ok(Joined::Complete(parts)) if parts.indexes == [3, 1]));
        assert!(matches!(join(2), Ok(Joined::Surplus)));
        assert_eq!(first(&mut seats, 1, 6, None), Err(Refusal::NoRoom));
        assert_eq!(seats.close(), 0);
        let mut seats = Seats::of_hop(2);
        assert_eq!(first(&mut seats, 1, 5, None), Ok(()));
        assert_eq!((seats.close(), seats.close()), (1, 0));
    }
}
