//! The alarm `dropping` of a mix, by its loops: behind this mix more is lost than links explain (SPEC 9.15.5).
//!
//! Between hops nothing is copied, so loops always lose some cells. What the next link loses in its better direction
//! is taken for what any link loses, up to a bound, and what loops have lost before for usual up to a lower one. So
//! whoever drops cells on one link, in one direction or for long, does not explain them by that.

use std::collections::VecDeque;

use wire::paced::REPORT_EVERY;
use wire::setup::ack_cells;

use super::PacedConfig;
use super::losses::{BEFORE, IMPROBABLE, LossTest, Places, TESTED, tail};
use super::own::{Failure, Outcome};
use super::raised::RaisedCauses;
use super::status::{Cause, LoopsStatus, PacedEvent};

/// Bounds of the share of cells that one link loses in one direction.
const LINK_SHARE: (f64, f64) = (1e-4, 1e-2);
/// What loops have lost before explains at most what they lose if each link loses this share. It is what entries take
/// for usual: a higher one would be that of whoever has dropped cells for long.
const USUAL_SHARE_MAX: f64 = 1e-3;
/// Standard deviations by which the share of a link is taken to be higher than it was measured.
const DEVIATIONS: f64 = 3.0;

/// What a mix has counted by its loops in some backward rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopPlaces {
    pub first: u64,
    pub rounds: u64,
    /// Places of loops that were set up.
    pub places: u64,
    /// Those of them for which nothing came from the next hop.
    pub lost: u64,
    /// Those for which noise came.
    pub garbled: u64,
    /// Places on the next link of loops that were set up and of channels that were heard in the batch, without those
    /// that the floor fills, and those of them for which nothing came.
    pub link_places: u64,
    pub link_lost: u64,
}

struct Count {
    /// The last round that it counts.
    last: u64,
    places: u64,
    lost: u64,
}

/// Counts of the latest 1,000 rounds, the oldest first.
#[derive(Default)]
struct Window(VecDeque<Count>);

impl Window {
    fn add(&mut self, last: u64, places: u64, lost: u64) {
        self.0.push_back(Count { last, places, lost: lost.min(places) });
        self.expire(last);
    }

    fn expire(&mut self, round: u64) {
        while self.0.pop_front_if(|oldest| oldest.last + TESTED <= round).is_some() {}
    }

    fn sum(&self) -> (u64, u64) {
        self.0.iter().fold((0, 0), |(places, lost), more| (places + more.places, lost + more.lost))
    }

    /// What the share of losses is at most; none without places.
    fn share(&self) -> Option<f64> {
        let (places, lost) = self.sum();
        let half = DEVIATIONS * DEVIATIONS / 2.0;
        let most = lost as f64 + half + DEVIATIONS * (lost as f64 + half / 2.0).sqrt();
        (places > 0).then(|| most / places as f64)
    }
}

/// Setups of loops of which some have failed, until the losses of their time are counted.
struct Failed {
    batch: u64,
    sent: u64,
    failed: u64,
}

/// The alarm of a mix.
pub(super) struct LoopsAlarm {
    config: PacedConfig,
    position: usize,
    /// The first round that is counted, and the one behind the last.
    started: u64,
    counted_to: u64,
    test: LossTest,
    /// Places of loops that brought noise.
    garbled: Window,
    /// Places of the next link, as the next hop reports them forward, and as this mix counts them backward.
    link: [Window; 2],
    /// The latest report of the next hop came then, or the alarm was raised because none had come.
    unreported_since: u64,
    undecided: Vec<Failed>,
    set_up: u64,
    failed: u64,
    raised: RaisedCauses,
}

impl LoopsAlarm {
    /// Of the mix at this position, which starts when backward round `released` is the last one due.
    pub(super) fn new(config: PacedConfig, position: usize, released: u64) -> LoopsAlarm {
        LoopsAlarm {
            config,
            position,
            started: released + 1,
            counted_to: released + 1,
            test: LossTest::default(),
            garbled: Window::default(),
            link: Default::default(),
            unreported_since: released + 1,
            undecided: Vec::new(),
            set_up: 0,
            failed: 0,
            raised: RaisedCauses::default(),
        }
    }

    /// Takes in what the next hop has received forward on the next link since its report before.
    pub(super) fn link_reported(&mut self, places: u32, lost: u32) {
        self.link[0].add(self.counted_to, places.into(), lost.into());
        self.unreported_since = self.counted_to;
    }

    /// The next link is another one: what the one before has lost says nothing of it.
    pub(super) fn link_replaced(&mut self) {
        self.link = Default::default();
        self.unreported_since = self.counted_to;
    }

    /// Takes in what has become of loops.
    pub(super) fn decided(&mut self, outcomes: &[Outcome]) {
        // Nothing was sent then that somebody may have dropped.
        let was_sent = |outcome: &&Outcome| {
            !matches!(outcome, Outcome::Failed { why: Failure::NoBundle | Failure::BadBundle | Failure::NotReady, .. })
        };
        let has_failed =
            |outcome: &&Outcome| matches!(outcome, Outcome::Failed { why: Failure::NoAck | Failure::BadAck(_), .. });
        let sent = outcomes.iter().filter(was_sent).count() as u64;
        let failed = outcomes.iter().filter(has_failed).count() as u64;
        self.failed += failed;
        self.set_up += outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Ready { .. })).count() as u64;
        // When a chain starts, hops behind this one may be late.
        let is_start = self.set_up == 0 && self.counted_to < self.started + BEFORE;
        if let Some(Outcome::Failed { batch, .. }) = outcomes.iter().find(has_failed)
            && !is_start
        {
            self.undecided.push(Failed { batch: *batch, sent, failed });
        }
    }

    /// Takes in the next count.
    pub(super) fn count(&mut self, count: LoopPlaces) -> Vec<PacedEvent> {
        let LoopPlaces { first, rounds, places, lost, garbled, link_places, link_lost } = count;
        self.counted_to = first + rounds;
        // A hop that reports nothing more has not reported what it loses now.
        self.link[0].expire(self.counted_to);
        self.link[1].add(self.counted_to, link_places, link_lost);
        self.garbled.add(self.counted_to, places, garbled);
        let all = Places { first, rounds, places, lost: (lost + garbled).min(places) };
        let explained = self.lost_by_links(self.link_share());
        let bounds = (explained, explained.max(self.lost_by_links(USUAL_SHARE_MAX)));
        if let Some((places, lost)) = self.test.add_within(all, bounds) {
            let garbled = self.garbled.sum().1.min(lost);
            self.raised.raise(Cause::Loops { places, lost: lost - garbled, garbled }, self.counted_to);
        }
        // In rounds that this mix skipped, because it was stopped, it took in no reports. More rounds also come if the
        // ring was full: that delays this alarm by as many.
        self.unreported_since += rounds.saturating_sub(REPORT_EVERY);
        let (places, lost) = self.link[1].sum();
        if places > 2 * lost && self.counted_to >= self.unreported_since + TESTED {
            self.unreported_since = self.counted_to;
            self.raised.raise(Cause::NextReportsNothing, self.counted_to);
        }
        for Failed { batch, sent, failed } in std::mem::take(&mut self.undecided) {
            if tail(sent, self.failure(batch), failed) < IMPROBABLE {
                self.raised.raise(Cause::LoopSetups { batch, sent, failed }, self.counted_to);
            }
        }
        self.raised.expire(self.counted_to);
        self.raised.events()
    }

    /// What a link loses in one direction: as much as the next one in its better direction. One direction alone
    /// explains nothing: whoever drops its cells also drops the reports on the other.
    pub(super) fn link_share(&self) -> f64 {
        let [forward, backward] = self.link.each_ref().map(Window::share);
        let measured = forward.zip(backward).map_or(0.0, |(forward, backward)| forward.min(backward));
        measured.clamp(LINK_SHARE.0, LINK_SHARE.1)
    }

    /// The share of loops' cells that are lost on their way to the exit and back if each link loses this share.
    fn lost_by_links(&self, share: f64) -> f64 {
        let crossings = 2 * (self.config.shape.hops() - self.position);
        1.0 - (1.0 - share).powi(crossings as i32)
    }

    /// The probability that a setup for this batch failed by losses, at most: each link may have lost as many cells as
    /// loops lost in that time. An outage explains all failures if it has raised the alarm itself.
    fn failure(&self, batch: u64) -> f64 {
        let PacedConfig { times, shape, .. } = &self.config;
        let (mut places, mut lost) = (0, 0);
        let begin = times.first(batch - 1);
        let has_risen = self.raised.up().iter().any(|up| matches!(up.cause, Cause::Loops { .. }) && up.last >= begin);
        for count in self.test.counts_in(begin..self.counted_to) {
            if has_risen && 2 * count.lost > count.places {
                return 1.0;
            }
            (places, lost) = (places + count.places, lost + count.lost);
        }
        let share = self.link_share().max(lost as f64 / f64::max(places as f64, 1.0));
        let of_link = |link| {
            let code = self.config.code(link);
            // Each content of an ack travels three times.
            tail(code.total() as u64, share, code.parity as u64 + 1) + ack_cells(*shape) as f64 * share.powi(3)
        };
        (self.position + 1..=shape.hops()).map(of_link).sum::<f64>().min(1.0)
    }

    pub(super) fn status(&self) -> LoopsStatus {
        let (dropping, looked_to) = (self.raised.up().to_vec(), self.counted_to);
        LoopsStatus { set_up: self.set_up, failed: self.failed, dropping, looked_to }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha20Rng;
    use wire::setup::Suite;

    use super::super::tests::terms;
    use super::*;

    /// Places in 100 rounds of four loops, and in one direction of a link with three users' channels more.
    const LOOPS: u64 = 400;
    const LINK: u64 = 700;
    const BATCH: u64 = 1000;

    /// Mix 1 of a chain whose links lose some of their cells, forward and backward, by number from 2 on.
    struct World {
        alarm: LoopsAlarm,
        share: [[f64; 2]; 3],
        has_reports: bool,
        rng: ChaCha20Rng,
        events: Vec<PacedEvent>,
    }

    impl World {
        fn new(share: [[f64; 2]; 3]) -> World {
            let terms = wire::paced::PacedTerms { loops: 2, ..terms() };
            let config = PacedConfig::new([0xcc; 32], terms, (4, Suite::Hybrid, 10));
            let alarm = LoopsAlarm::new(config, 1, 9_999);
            World { alarm, share, has_reports: true, rng: ChaCha20Rng::seed_from_u64(5), events: Vec::new() }
        }

        fn losses(&mut self, places: u64, share: f64) -> u64 {
            (0..places).filter(|_| self.rng.random_bool(share)).count() as u64
        }

        /// Runs for `hundreds` times 100 rounds.
        fn run(&mut self, hundreds: usize) {
            for _ in 0..hundreds {
                let [[forward, backward], ..] = self.share;
                let reported = self.losses(LINK, forward);
                if self.has_reports {
                    self.alarm.link_reported(LINK as u32, reported as u32);
                }
                let beyond: f64 = self.share.iter().flatten().map(|share| 1.0 - share).product();
                let garbled = self.losses(LOOPS, 1.0 - beyond / (1.0 - backward));
                let lost = self.losses(LOOPS - garbled, backward);
                let link_lost = lost + self.losses(LINK - LOOPS, backward);
                let (first, rounds) = (self.alarm.counted_to, 100);
                let count = LoopPlaces { first, rounds, places: LOOPS, lost, garbled, link_places: LINK, link_lost };
                self.events.extend(self.alarm.count(count));
            }
        }

        /// Setups of four loops for the batch that begins next, of which some fail.
        fn set_up(&mut self, failed: usize) -> u64 {
            let batch = self.alarm.config.times.batch_of(self.alarm.counted_to) + 1;
            let failure = |why| Outcome::Failed { batch, channel: 1, why };
            let outcomes = (0..4).map(|nth| failure(if nth < failed { Failure::NoAck } else { Failure::Alone }));
            self.alarm.decided(&outcomes.collect::<Vec<_>>());
            batch
        }
    }

    const CLEAN: [[f64; 2]; 3] = [[0.0; 2]; 3];

    #[test]
    fn formulas_give_the_numbers_of_the_specification() {
        let mut alarm = World::new(CLEAN).alarm;
        let least = |share: f64| (1..).find(|lost| tail(4000, alarm.lost_by_links(share), *lost) < IMPROBABLE);
        assert_eq!([1e-4, 1e-3, 1e-2].map(least), [Some(14), Some(51), Some(309)]);
        let is_near = |found: f64, expected: f64| (found / expected - 1.0).abs() < 1e-3;
        assert!(alarm.link_share() == 1e-4 && is_near(alarm.failure(BATCH), 3.149e-12));
        alarm.link_reported(7000, 7);
        assert_eq!(alarm.link_share(), 1e-4, "one direction is not known");
        alarm.link[1].add(alarm.counted_to, 7000, 133);
        assert!(is_near(alarm.link_share(), 20.624 / 7000.0), "the better direction");
        alarm.link_reported(7000, 133);
        assert!(alarm.link_share() == 1e-2 && is_near(alarm.failure(BATCH), 1.677e-5));
    }

    #[test]
    fn loss_of_all_links_alike_is_explained() {
        for share in [0.0, 0.0005, 0.003, 0.01] {
            let mut world = World::new(CLEAN);
            world.run(20);
            world.share = [[share; 2]; 3];
            world.run(1000);
            assert_eq!(world.events, [], "{share}");
        }
    }

    #[test]
    fn loss_of_one_inner_link_raises_it_within_1000_rounds() {
        // Also where all links lose some, and where only this mix's own link loses, in one direction.
        let of_link = |at: usize, way: usize, usual: f64| {
            let mut share = [[usual; 2]; 3];
            share[at][way] = 0.05;
            share
        };
        let cases = [(1, 0, 0.0), (2, 1, 0.0), (1, 1, 0.003), (0, 0, 0.0), (0, 1, 0.0)];
        for (at, way, usual) in cases {
            let mut world = World::new([[usual; 2]; 3]);
            world.run(100);
            assert_eq!(world.events, []);
            world.share = of_link(at, way, usual);
            world.run(10);
            let [PacedEvent::Dropping(Cause::Loops { places, lost, garbled })] = world.events[..] else {
                panic!("link {}, way {way}: {:?}", at + 2, world.events)
            };
            assert!(places == 4000 && lost + garbled > 10, "{lost} and {garbled} of {places}");
            assert_eq!((at, way) == (0, 1), lost > garbled, "where they were lost");
            world.share = CLEAN;
            world.run(700);
            assert_eq!(world.events[1..], [PacedEvent::DroppingEnded]);
            assert_eq!(world.alarm.status().dropping, []);
        }
    }

    #[test]
    fn steady_loss_keeps_it_up() {
        for share in [0.05, 0.03] {
            let mut world = World::new(CLEAN);
            world.run(100);
            world.share[1][0] = share;
            // For longer than the usual share is remembered, and than an alarm lasts.
            world.run(3 * BEFORE as usize / 100);
            assert!(matches!(world.events[..], [PacedEvent::Dropping(Cause::Loops { .. })]), "{:?}", world.events);
            let [raised] = world.alarm.status().dropping[..] else { panic!("{share}") };
            assert!(raised.times > 1900 && raised.last + 100 > world.alarm.counted_to, "{raised:?}");
        }
    }

    #[test]
    fn reports_that_are_dropped_explain_no_losses_and_raise_it() {
        // Whoever drops the round of each report loses 1 % of one direction with it.
        let mut world = World::new(CLEAN);
        world.run(20);
        world.has_reports = false;
        world.share = [[0.05, 0.01], [0.0; 2], [0.0; 2]];
        world.run(1000);
        let raised = |cause: fn(&Cause) -> bool| {
            world.events.iter().any(|event| matches!(event, PacedEvent::Dropping(found) if cause(found)))
        };
        assert!(raised(|cause| matches!(cause, Cause::Loops { .. })), "{:?}", world.events);
        assert!(raised(|cause| *cause == Cause::NextReportsNothing), "{:?}", world.events);
        assert!(
            world.alarm.status().dropping.iter().all(|raised| raised.last + 1100 > world.alarm.counted_to),
            "both stay up"
        );
    }

    #[test]
    fn outage_of_the_next_link_is_not_a_hop_without_reports() {
        let mut world = World::new(CLEAN);
        world.run(20);
        for _ in 0..100 {
            let (first, rounds, garbled) = (world.alarm.counted_to, 100, 0);
            let (places, lost, link_places, link_lost) = (LOOPS, LOOPS, LINK, LINK);
            let count = LoopPlaces { first, rounds, places, lost, garbled, link_places, link_lost };
            world.events.extend(world.alarm.count(count));
        }
        let of_link = PacedEvent::Dropping(Cause::NextReportsNothing);
        assert!(!world.events.is_empty() && !world.events.contains(&of_link), "{:?}", world.events);
    }

    #[test]
    fn rounds_in_which_this_mix_was_stopped_need_no_reports() {
        let is_raised = |rounds, count: usize| {
            let mut world = World::new(CLEAN);
            world.run(20);
            for _ in 0..count {
                let (first, places, link_places) = (world.alarm.counted_to, LOOPS, LINK);
                let (lost, garbled, link_lost) = Default::default();
                let count = LoopPlaces { first, rounds, places, lost, garbled, link_places, link_lost };
                world.events.extend(world.alarm.count(count));
            }
            world.events.contains(&PacedEvent::Dropping(Cause::NextReportsNothing))
        };
        assert_eq!(
            [(1300, 1), (1300, 8), (100, 8), (100, 9), (1300, 9)].map(|(rounds, count)| is_raised(rounds, count)),
            [false, false, false, true, true]
        );
    }

    #[test]
    fn shares_of_a_silent_or_replaced_link_do_not_count() {
        let mut alarm = World::new(CLEAN).alarm;
        alarm.link_reported(7000, 133);
        alarm.link[1].add(alarm.counted_to + 5000, 7000, 133);
        let shares = (0..10).map(|_| {
            let (first, rounds) = (alarm.counted_to, 100);
            let (places, lost, garbled, link_places, link_lost) = Default::default();
            _ = alarm.count(LoopPlaces { first, rounds, places, lost, garbled, link_places, link_lost });
            alarm.link_share()
        });
        assert_eq!(shares.collect::<Vec<_>>(), [[1e-2; 9].as_slice(), &[1e-4]].concat());
        alarm.link_reported(7000, 133);
        alarm.link_replaced();
        assert_eq!(alarm.link_share(), 1e-4);
    }

    #[test]
    fn slow_increase_does_not_explain_itself_beyond_its_bound() {
        let mut world = World::new(CLEAN);
        for share in [0.02, 0.04, 0.06, 0.08, 0.1, 0.12] {
            world.share[1][0] = share;
            world.run(700);
        }
        assert!(!world.alarm.status().dropping.is_empty());
    }

    #[test]
    fn failed_setup_raises_it_where_nothing_is_lost() {
        let mut world = World::new(CLEAN);
        world.alarm.set_up = 4;
        world.run(30);
        let batch = world.set_up(1);
        assert_eq!(world.events, []);
        world.run(1);
        assert_eq!(world.events, [PacedEvent::Dropping(Cause::LoopSetups { batch, sent: 4, failed: 1 })]);
        assert_eq!((world.alarm.status().set_up, world.alarm.status().failed), (4, 1));
    }

    #[test]
    fn losses_explain_failed_setups_up_to_a_number() {
        for (failed, is_explained) in [(1, true), (2, true), (4, false)] {
            let mut world = World::new([[0.01; 2]; 3]);
            world.alarm.set_up = 4;
            world.run(30);
            world.set_up(failed);
            world.run(1);
            assert_eq!(world.events.is_empty(), is_explained, "{failed}");
        }
        // An outage raises it by itself.
        let mut world = World::new(CLEAN);
        world.alarm.set_up = 4;
        world.run(30);
        world.share[2][0] = 0.9;
        world.run(1);
        world.set_up(4);
        world.run(1);
        assert!(world.events.iter().all(|event| matches!(event, PacedEvent::Dropping(Cause::Loops { .. }))));
    }

    #[test]
    fn setups_of_the_start_and_without_a_bundle_do_not_count() {
        let mut world = World::new(CLEAN);
        world.set_up(4);
        world.run(1);
        assert_eq!(world.events, [], "no loop was set up before");
        world.run(BEFORE as usize / 100);
        world.set_up(4);
        world.run(1);
        assert_eq!(world.events.len(), 1, "that is too long for a start");

        let mut world = World::new(CLEAN);
        world.alarm.set_up = 4;
        world.run(1);
        let no_bundle = Outcome::Failed { batch: 2000, channel: 1, why: Failure::NoBundle };
        world.alarm.decided(&[no_bundle]);
        world.run(1);
        assert_eq!(world.events, []);
    }
}
