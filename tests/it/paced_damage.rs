//! Cells of a paced class that somebody on the wire alters, repeats or moves (SPEC 9.4), in memory: who drops them,
//! what is counted, and that nothing else changes.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use control::paced::{PacedStatus, Reported};
use dataplane::Nanos;
use dataplane::ledger::DropReason;
use dataplane::socket::memory::Datagram;
use eddy_virtual::{FIRST_ENTRY, link_of, number_of, wall};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::Direction::{self, Backward, Forward};
use wire::cell::{CellKind, Shape};
use wire::ids::Side;
use wire::paced::PacedTerms;

use crate::common::pacedchain::{
    Chain, DIRECTIONS, HOPS, LATE, LinkOf, SECRET, client, ends, link_address, small_and_large,
};

const MILLI: Nanos = 1_000_000;

/// Node, what was counted, and why: drops of cells, and what control has refused.
type Count = (usize, &'static str, &'static str);

/// What the nodes have dropped. On link 1 second copies come all the time, and do not count.
fn dropped(chain: &Chain) -> BTreeMap<Count, u64> {
    let mut all = BTreeMap::new();
    for node in (1..=HOPS).chain(101..=103) {
        let cells = chain.ledger(node).cells;
        for (direction, tally) in [("forward", cells.forward), ("backward", cells.backward)] {
            for reason in DropReason::ALL.iter().filter(|reason| **reason != DropReason::Copy) {
                all.insert((node, direction, reason.name()), tally.drops(*reason));
            }
        }
        let is_copied = |why| why == "cell-copy" && (node == 1 || node > 100);
        all.extend(
            chain
                .refused(node)
                .into_iter()
                .filter(|(why, _)| !is_copied(*why))
                .map(|(why, count)| ((node, "control", why), count)),
        );
    }
    all
}

/// What the nodes have dropped more since `before`.
fn dropped_since(chain: &Chain, before: &BTreeMap<Count, u64>) -> BTreeMap<Count, u64> {
    let more = dropped(chain).into_iter().filter_map(|(count, now)| {
        let more = now - before.get(&count).copied().unwrap_or(0);
        (more > 0).then_some((count, more))
    });
    more.collect()
}

/// A chain of these terms with a meeting of entries 101 and 102, and a flow of 103. From now on every cell of every
/// channel opens.
fn talking(terms: &PacedTerms, attack: impl FnOnce(&Chain)) -> Chain {
    let mut chain = Chain::with_meetings(terms, 3, &[(101, SECRET), (102, SECRET)]).start();
    attack(&chain);
    chain.talk(&[101, 102, 103], Duration::from_millis(300));
    chain
}

/// A cell of which an attacker has altered a bit on its way.
struct Struck {
    byte: usize,
    kind: CellKind,
    /// The number of the node that gets it.
    receiver: usize,
    /// The second one with these bytes, on link 1.
    is_copy: bool,
}

/// What its receiver counts for it. None if it is the second copy of a control cell: that counts as one, whatever is in
/// it.
fn expected(link: usize, direction: Direction, struck: &Struck) -> Option<Count> {
    let way = if direction == Forward { "forward" } else { "backward" };
    let why = match (struck.byte, struck.kind) {
        // Header and tag are one block.
        (..16, _) => "header",
        (_, CellKind::Data) => "bad-tag",
        _ if link == 1 && struck.is_copy => return None,
        _ => "forged",
    };
    Some((struck.receiver, way, why))
}

/// Alters cells of a link and direction, at most one at a time and only one of the copies of a cell.
struct Damage {
    /// The bytes at which cells are still to be altered, each at one.
    bytes: Vec<usize>,
    /// No cell is altered before this time.
    next: Nanos,
    seen: HashSet<Vec<u8>>,
    struck: Vec<Struck>,
    altered: HashSet<Vec<u8>>,
    rng: ChaCha20Rng,
}

impl Damage {
    /// It begins when it has seen the first copy of every cell.
    fn new(mut bytes: Vec<usize>, next: Nanos, seed: u64) -> Damage {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        bytes.shuffle(&mut rng);
        let (seen, struck, altered) = Default::default();
        Damage { bytes, next, seen, struck, altered, rng }
    }

    /// Cells of setups and acks that were altered: few enough for none to fail.
    fn placed(&self) -> usize {
        self.struck.iter().filter(|struck| matches!(struck.kind, CellKind::Setup | CellKind::Ack)).count()
    }

    /// Takes a cell that is on its way to this node.
    fn take(&mut self, (now, pause): (Nanos, Nanos), (receiver, kind): (usize, CellKind), cell: &mut Vec<u8>) {
        let is_copy = !self.seen.insert(cell.clone());
        let is_spared = matches!(kind, CellKind::Setup | CellKind::Ack) && self.placed() >= 2;
        if now < self.next || is_spared || self.rng.random_bool(0.5) || self.altered.contains(cell) {
            return;
        }
        let Some(byte) = self.bytes.pop() else { return };
        self.next = now + pause;
        self.altered.insert(cell.clone());
        self.struck.push(Struck { byte, kind, receiver, is_copy });
        cell[byte] ^= 1 << self.rng.random_range(0..8);
    }
}

/// Puts somebody on a link who alters cells.
fn alter(chain: &Chain, link: usize, direction: Direction, damage: &Rc<RefCell<Damage>>) {
    let (damage, keys, len) = (damage.clone(), chain.header_keys(), chain.terms.class.cell_len());
    let (times, pause) = (chain.times.clone(), chain.times.period() / 2);
    chain.attack(move |now, mut datagram| {
        let up = |up: usize| if link == 1 { up >= FIRST_ENTRY } else { up + 1 == link };
        let of_link = link_of(datagram.from, datagram.to).filter(|(node, way)| up(*node) && *way == direction);
        if let Some(of_link) = of_link.filter(|_| datagram.bytes.len() == len) {
            let running = times.round_at(wall(now));
            let (_, header) = keys.borrow().open(of_link, &datagram.bytes, running).expect("a cell of a slot");
            let receiver = number_of(datagram.to).expect("a node");
            damage.borrow_mut().take((now, pause), (receiver, header.kind), &mut datagram.bytes);
        }
        vec![(0, datagram)]
    });
}

/// Waits until the rounds until now are in reports.
fn wait_for_reports(chain: &mut Chain) {
    let due = (chain.round_at(chain.now) / 100 + 1) * 100;
    let reported = chain.begins(due + 40);
    chain.run_until(reported);
}

/// Places that were filled with noise, and those of them that were lost, as reports say: by direction and the node to
/// which they were to come. Entries count lost ones themselves.
fn filled(chain: &Chain) -> HashMap<(usize, Direction), (u64, u64)> {
    let of = |reported: Reported| (reported.filled, reported.lost);
    let of_node = |node| match chain.status(node) {
        // Mix 1 reports to each entry on its own channel.
        PacedStatus::Entry(status) => [((node, Forward), of(status.forward)), ((node, Backward), of(status.backward))],
        PacedStatus::Hop(status) => {
            [((node + 1, Forward), of(status.forward)), ((node - 1, Backward), of(status.backward))]
        }
    };
    chain.numbers().flat_map(of_node).collect()
}

/// One altered bit of a cell, at each of its bytes, on each link and in each direction. Whoever receives it drops it,
/// and if it was a data cell, noise takes its place behind link 1, which its end cannot open.
#[test]
fn damaged_cell_costs_one_place_and_changes_nothing_else() {
    for terms in small_and_large() {
        let len = terms.class.cell_len();
        // Of a long body every eleventh byte.
        let bytes = || (0..len).filter(|byte| len < 256 || *byte < 32 || byte % 11 == 0 || byte + 1 == len).collect();
        let mut chain = talking(&terms, |_| ());
        for (link, direction) in (1..=HOPS).flat_map(|link| DIRECTIONS.map(|direction| (link, direction))) {
            wait_for_reports(&mut chain);
            chain.forget_links();
            let (dropped_before, filled_before) = (dropped(&chain), filled(&chain));
            let damage = Rc::new(RefCell::new(Damage::new(bytes(), chain.now + 50 * MILLI, link as u64)));
            alter(&chain, link, direction, &damage);
            let until = chain.now + 10_000 * MILLI;
            while !damage.borrow().bytes.is_empty() {
                assert!(chain.now < until, "{} bytes are left", damage.borrow().bytes.len());
                chain.run(LATE);
            }
            chain.run(LATE);
            let struck = std::mem::take(&mut damage.borrow_mut().struck);
            let data = struck.iter().filter(|struck| struck.kind == CellKind::Data).count() as u64;
            let what = format!("link {link} {direction:?} of class {}", terms.class);
            assert!(data > 0 && struck.iter().any(|struck| struck.kind == CellKind::Link), "{what}");

            let mut found = dropped_since(&chain, &dropped_before);
            let at_exit = found.remove(&(HOPS, "forward", "garbled")).unwrap_or(0);
            let of_entry = |entry| found.remove(&(entry, "backward", "garbled")).unwrap_or(0);
            let at_entries: u64 = (101..=103).map(of_entry).sum();
            let mut of_receivers = BTreeMap::new();
            for count in struck.iter().filter_map(|struck| expected(link, direction, struck)) {
                *of_receivers.entry(count).or_default() += 1;
            }
            assert_eq!(found, of_receivers, "{what}");
            match (link, direction) {
                (1, _) => assert_eq!((at_exit, at_entries), (0, 0), "the other copy takes its place: {what}"),
                // A round without a cell: the exit opens nothing, and in a meeting it passes on noise.
                (HOPS, Forward) => assert!(at_exit == 0 && (1..data).contains(&at_entries), "{what}: {at_entries}"),
                (_, Forward) => {
                    assert!(at_exit > 0 && at_entries > 0, "outside and in the meeting: {what}");
                    assert_eq!(at_exit + at_entries, data, "{what}");
                }
                (_, Backward) => assert_eq!((at_exit, at_entries), (0, data), "{what}"),
            }

            // Whoever receives a damaged data cell between hops fills its place. On link 1 a copy takes it.
            wait_for_reports(&mut chain);
            let receiver = if direction == Forward { link } else { link - 1 };
            for (of, (filled, lost)) in filled(&chain) {
                let (filled_before, lost_before) = filled_before[&of];
                let expected = if of == (receiver, direction) && link > 1 { data } else { 0 };
                assert_eq!((filled - filled_before, lost - lost_before), (expected, expected), "{of:?}, {what}");
            }
        }
        chain.assert_closed();
    }
}

type Make = Box<dyn Fn(Datagram) -> Vec<(Nanos, Datagram)>>;

/// What an attacker does to one cell of a link, when it has let some pass.
struct Blow {
    link: (SocketAddr, SocketAddr),
    passes: usize,
    make: Make,
}

/// A chain, and somebody on the wire.
struct Wire {
    chain: Chain,
    blow: Rc<RefCell<Option<Blow>>>,
    rng: ChaCha20Rng,
}

impl Wire {
    fn new(terms: &PacedTerms) -> Wire {
        let (blow, len) = (Rc::<RefCell<Option<Blow>>>::default(), terms.class.cell_len());
        let next = blow.clone();
        let chain = talking(terms, |chain| {
            chain.attack(move |_, datagram| {
                let mut blow = next.borrow_mut();
                match &mut *blow {
                    Some(Blow { link, passes: 0, make })
                        if *link == (datagram.from, datagram.to) && datagram.bytes.len() == len =>
                    {
                        let made = make(datagram);
                        *blow = None;
                        made
                    }
                    Some(Blow { link, passes, .. }) if *link == (datagram.from, datagram.to) => {
                        *passes -= 1;
                        vec![(0, datagram)]
                    }
                    _ => vec![(0, datagram)],
                }
            });
        });
        Wire { chain, blow, rng: ChaCha20Rng::seed_from_u64(13) }
    }

    /// Strikes one cell of a link. Returns what nodes have dropped until it is over, `after` later.
    fn strike(
        &mut self,
        (link, direction): (LinkOf, Direction),
        after: Duration,
        make: impl Fn(Datagram) -> Vec<(Nanos, Datagram)> + 'static,
    ) -> BTreeMap<Count, u64> {
        self.chain.forget_links();
        let before = dropped(&self.chain);
        let passes = self.rng.random_range(0..5);
        *self.blow.borrow_mut() = Some(Blow { link: ends(link, direction), passes, make: Box::new(make) });
        self.chain.run(after);
        assert!(self.blow.borrow().is_none(), "no cell on link {link:?} {direction:?}");
        dropped_since(&self.chain, &before)
    }
}

#[test]
fn replayed_and_foreign_cells_are_dropped_and_counted() {
    small_and_large().iter().for_each(replayed_and_foreign);
}

fn replayed_and_foreign(terms: &PacedTerms) {
    let mut wire = Wire::new(terms);
    let len = wire.chain.terms.class.cell_len();
    let up = |node| link_address(node, Side::Up);
    let down = |node| link_address(node, Side::Down);
    let stranger = SocketAddr::from(([10, 9, 9, 9], 9));
    let of_batch = 10 * u64::from(terms.rounds);
    // A second datagram with the bytes of one of a link, from where and to where, and how many ms later.
    for (what, (link, direction), (from, to), after_ms, (node, why)) in [
        ("at once", (3, Forward), (down(2), up(3)), 0, (3, "replay")),
        ("after the release of its round", (3, Forward), (down(2), up(3)), 15, (3, "late")),
        ("in the next batch", (3, Forward), (down(2), up(3)), of_batch, (3, "late")),
        ("1100 rounds later", (3, Forward), (down(2), up(3)), 11_000, (3, "header")),
        ("on another link", (3, Forward), (down(3), up(4)), 0, (4, "header")),
        ("back to its sender", (3, Forward), (up(3), down(2)), 0, (2, "header")),
        ("on the link of another entry", (1, Forward), (down(102), up(1)), 0, (1, "header")),
        ("from somewhere else", (1, Forward), (stranger, up(1)), 0, (1, "stranger")),
        ("at once", (2, Backward), (up(2), down(1)), 0, (1, "replay")),
        ("after the release of its round", (2, Backward), (up(2), down(1)), 15, (1, "late")),
        ("at once", (4, Backward), (up(4), down(3)), 0, (3, "replay")),
        ("in the next batch", (4, Backward), (up(4), down(3)), of_batch, (3, "late")),
        ("back to its sender", (4, Backward), (down(3), up(4)), 0, (4, "header")),
        ("300 rounds later", (1, Backward), (up(1), down(101)), 3000, (101, "late")),
        ("1100 rounds later", (1, Backward), (up(1), down(101)), 11_000, (101, "header")),
        ("on the link of another entry", (1, Backward), (up(1), down(102)), 0, (102, "header")),
    ] {
        let mut found = 0;
        // Three of at most eight cells of a round are data.
        for _ in 0..30 {
            let after = Duration::from_millis(after_ms) + LATE;
            let changed = wire.strike(((link, 101), direction), after, move |datagram| {
                let again = Datagram { from, to, bytes: datagram.bytes.clone() };
                vec![(0, datagram), (after_ms * MILLI, again)]
            });
            let changed: Vec<_> = changed.into_iter().collect();
            let way = if to == up(node) { "forward" } else { "backward" };
            // A control cell has no round: it is a replay whenever it comes again.
            let is_control = why != "replay" && changed == [((node, way, "replay"), 1)];
            assert!(changed == [((node, way, why), 1)] || is_control, "{what}, link {link} {direction:?}: {changed:?}");
            found += usize::from(!is_control);
            if found == 3 || (found == 1 && (after_ms > 1000 || terms.cells > 1)) {
                break;
            }
        }
        assert!(found > 0, "{what}: only control cells");
    }

    // On link 1 a third datagram counts as the second one does, and nobody gets anything twice.
    let copies = |wire: &Wire| wire.chain.ledger(101).cells.backward.drops(DropReason::Copy);
    for _ in 0..10 {
        let changed = wire.strike(((1, 101), Backward), LATE, |datagram| vec![(0, datagram.clone()), (0, datagram)]);
        assert_eq!(changed, BTreeMap::new(), "one copy more on link 1");
    }
    let before = copies(&wire);
    wire.chain.run(LATE);
    assert!(copies(&wire) > before);
    let seen = wire.chain.at_apps();
    let mut came = HashSet::new();
    for seen in seen.iter().filter(|seen| [101, 102, 103].map(client).contains(&seen.to)) {
        assert!(came.insert((seen.to, &seen.bytes)), "a datagram came twice");
    }
    drop(seen);

    // Cells of the free class of the same size, on the same port: by their length, or by the class in the header.
    let free = Shape::new(terms.class.size(), HOPS).expect("four hops").cell_len(Forward, 2);
    assert_ne!(free, len);
    for (link, node) in [(1, 1), (2, 2)] {
        let changed = wire.strike(((link, 101), Forward), LATE, move |datagram| {
            vec![(0, Datagram { bytes: vec![0x5a; free], ..datagram.clone() }), (0, datagram)]
        });
        assert_eq!(changed, BTreeMap::from([((node, "forward", "length"), 1)]), "a cell of another length");
        let make_free = wire.chain.make_free(if link == 1 { 101 } else { 1 });
        let changed = wire.strike(((link, 101), Forward), LATE, move |datagram| {
            let mut free = datagram.clone();
            make_free(&mut free.bytes);
            vec![(0, free), (0, datagram)]
        });
        assert_eq!(changed, BTreeMap::from([((node, "forward", "header"), 1)]), "a header of the free class");
    }
    wire.chain.assert_closed();
}
