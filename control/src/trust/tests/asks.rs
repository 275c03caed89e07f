//! Asks and their answers: silence, and the shares of those who ask too much.

use super::*;

#[test]
fn idle_neighbours_fall_silent() {
    let mut world = World::new(4, Class::L, (600, 6000), 0.0);
    world.run(5000);
    let before = world.sent;
    world.run(60_000);
    assert!(world.sent - before <= 10, "{} cells in a minute", world.sent - before);
}

/// Cells that each link gets in three seconds from Mix 1, whom `GREEDY` entries ask all the time. The last link, an
/// honest one, comes when the others have used up what there is, and asks four times a second.
fn served(class: Class, greedy: impl Fn(&View, u64) -> Ask) -> (BTreeMap<LinkId, usize>, LinkId) {
    const GREEDY: u32 = 200;
    let mut world = World::new(4, class, (10, 3600), 0.0);
    world.run(2000);
    let (start, wall) = (world.now(), world.wall(0));
    let content = world.shape.control_content(Direction::Backward, 1);
    let trust = &mut world.hops[0].trust;
    let interval = trust.view().times().interval_at(wall);
    assert!(trust.view().complete(interval).is_some());
    let greedy = greedy(trust.view(), interval).to_bytes();
    let whole = blank_ask(interval).to_bytes();
    let honest = LinkId(100 + GREEDY);
    (0..=GREEDY).for_each(|number| trust.link_up(LinkId(100 + number), Peer::Entry(None), content, start));
    let mut sent: BTreeMap<LinkId, usize> = BTreeMap::new();
    for ms in (0..3000).step_by(20) {
        let now = start + Duration::from_millis(ms);
        for number in 0..GREEDY {
            let _ = trust.take(now, wall + ms, LinkId(100 + number), &greedy);
        }
        if ms >= 1500 && ms % 250 == 0 {
            let _ = trust.take(now, wall + ms, honest, &whole);
        }
        trust.tick(&mut world.rng, now, wall + ms);
        let mut steps = VecDeque::from(trust.steps());
        while let Some(step) = steps.pop_front() {
            match step {
                Step::Send(link, _) => *sent.entry(link).or_default() += 1,
                Step::Save(number) => {
                    trust.saved(number, now, wall + ms);
                    steps.extend(trust.steps());
                }
                Step::Event(_) => {}
            }
        }
    }
    (sent, honest)
}

fn blank_ask(interval: u64) -> Ask {
    Ask { answer: true, clock_ms: 0, interval, hash: [0; 8], signatures: 0, held: vec![Held::default(); 4] }
}

#[test]
fn entries_that_always_ask_leave_answers_to_others() {
    // All of a bundle, or all but one record of it, which is a short answer.
    let short = |view: &View, interval: u64| {
        let mut held = view.held(interval);
        held[3] = Held::default();
        Ask { held, ..blank_ask(interval) }
    };
    for class in [Class::S, Class::L] {
        for (sent, honest) in [served(class, |_, interval| blank_ask(interval)), served(class, short)] {
            let whole = sent.get(&honest).copied().unwrap_or(0);
            assert!(
                whole >= if class == Class::S { 12 } else { 3 },
                "class {class}: all of a bundle, not {whole} cells"
            );
            assert!(sent.values().all(|cells| *cells <= 100 + 3 * 100));
            assert!(sent.values().sum::<usize>() <= 5000 + 3 * 5000);
        }
    }
}

/// One prefix has all the links that it gets, and asks on each for all of a bundle: the user whose link came last does
/// not wait until each of them has been answered.
#[test]
fn new_link_is_answered_before_those_that_were_answered() {
    const GREEDY: u32 = 512;
    let mut world = World::new(4, Class::S, (60, 3600), 0.0);
    world.run(2000);
    let (start, wall) = (world.now(), world.wall(0));
    let content = world.shape.control_content(Direction::Backward, 1);
    let trust = &mut world.hops[0].trust;
    let interval = trust.view().times().interval_at(wall);
    assert!(trust.view().complete(interval).is_some());
    let whole = blank_ask(interval).to_bytes();
    (0..GREEDY).for_each(|number| trust.link_up(LinkId(100 + number), Peer::Entry(None), content, start));
    let (honest, comes_ms) = (LinkId(100 + GREEDY), 20_000);
    let (mut first, mut after) = (None, 0);
    for ms in (0..comes_ms + 10_000).step_by(50) {
        let now = start + Duration::from_millis(ms);
        for number in 0..GREEDY {
            let _ = trust.take(now, wall + ms, LinkId(100 + number), &whole);
        }
        if ms == comes_ms {
            trust.link_up(honest, Peer::Entry(None), content, now);
        }
        if ms >= comes_ms && first.is_none() {
            trust.take(now, wall + ms, honest, &whole).unwrap();
        }
        trust.tick(&mut world.rng, now, wall + ms);
        let mut steps = VecDeque::from(trust.steps());
        while let Some(step) = steps.pop_front() {
            match step {
                Step::Send(link, _) if link == honest => first = first.or(Some(ms)),
                Step::Send(..) => after += usize::from(ms >= comes_ms && first.is_none()),
                Step::Save(number) => {
                    trust.saved(number, now, wall + ms);
                    steps.extend(trust.steps());
                }
                Step::Event(_) => {}
            }
        }
    }
    assert!(first.is_some_and(|first| first <= comes_ms + 200), "{first:?} ms");
    assert!(after <= 5000 / 4, "{after} cells to others before");
}

/// A prefix opens forty links a second, which two classes permit, and each asks for a whole bundle at once.
#[test]
fn new_links_of_one_prefix_do_not_delay_another_one() {
    let mut world = World::new(4, Class::S, (60, 3600), 0.0);
    world.run(2000);
    let (start, wall) = (world.now(), world.wall(0));
    let content = world.shape.control_content(Direction::Backward, 1);
    let trust = &mut world.hops[0].trust;
    let whole = blank_ask(trust.view().times().interval_at(wall)).to_bytes();
    let [crowd, other] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(|ip| Peer::Entry(Some(ip.into())));
    let (honest, comes_ms, mut first) = (LinkId(99), 100, None);
    let mut before = 0;
    for ms in (0..comes_ms + 5000).step_by(25) {
        let now = start + Duration::from_millis(ms);
        // At first as many as it can have. A third of them find no room for their answers.
        for number in if ms == 0 { 0..512 } else { 512 + ms..513 + ms } {
            let id = LinkId(100 + number as u32);
            trust.link_up(id, crowd, content, now);
            let _ = trust.take(now, wall + ms, id, &whole);
        }
        if ms == comes_ms {
            trust.link_up(honest, other, content, now);
            trust.take(now, wall + ms, honest, &whole).unwrap();
        }
        trust.tick(&mut world.rng, now, wall + ms);
        let mut steps = VecDeque::from(trust.steps());
        while let Some(step) = steps.pop_front() {
            match step {
                Step::Send(link, _) if link == honest => first = first.or(Some(ms)),
                Step::Send(..) => before += usize::from(ms >= comes_ms && first.is_none()),
                Step::Save(number) => {
                    trust.saved(number, now, wall + ms);
                    steps.extend(trust.steps());
                }
                Step::Event(_) => {}
            }
        }
    }
    assert!(first.is_some_and(|first| first <= comes_ms + 100), "{first:?} ms");
    assert!(before <= 250, "{before} cells to others before");
}

/// Hop 1 sends hop 2 twenty asks every 5 ms in addition to its own, for ten seconds.
fn asked_by_a_greedy_hop(class: Class, asks: impl Fn(&View, u64, usize) -> Ask) {
    let mut world = World::new(4, class, (1, 10), 0.0);
    world.run(3000);
    world.sent_on.clear();
    let (start_ms, mut late) = (world.now_ms, Vec::new());
    while world.now_ms < start_ms + 10_000 {
        let (now, wall) = (world.now(), world.wall(0));
        let interval = wall / 1000;
        for number in 0..20 {
            let ask = asks(world.hops[1].trust.view(), interval, number).to_bytes();
            let _ = world.hops[1].trust.take(now, wall, UP, &ask);
        }
        if wall % 1000 == 0 && world.hops[2].trust.view().complete(interval).is_none() {
            late.push(interval);
        }
        world.run(STEP_MS);
    }
    let sent = world.sent_on[&(2, UP)];
    assert!(sent <= 400 + 10 * 400, "class {class}: {sent} cells to the greedy hop");
    assert!(late.is_empty(), "class {class}: hop 3 had no bundle when {late:?} began");
    let neighbours = [(2, DOWN), (3, UP)].map(|link| world.sent_on[&link]);
    assert!(neighbours.iter().all(|sent| *sent < 1000), "class {class}: {neighbours:?} cells between hops 2 and 3");
}

#[test]
fn greedy_hop_gets_its_share_and_others_their_bundles() {
    for class in [Class::S, Class::L] {
        asked_by_a_greedy_hop(class, |_, interval, _| blank_ask(interval));
        asked_by_a_greedy_hop(class, |view, interval, number| {
            let held = if number % 2 == 0 { vec![Held::default(); 4] } else { view.held(interval) };
            Ask { held, ..blank_ask(interval + number as u64 % 3) }
        });
    }
}

#[test]
fn item_is_not_sent_again_because_an_ask_does_not_show_it() {
    let mut world = World::new(3, Class::L, (600, 6000), 0.0);
    world.run(5000);
    let before = world.sent_on[&(2, UP)];
    let (view, wall) = (world.hops[1].trust.view(), world.wall(0));
    let interval = view.times().interval_at(wall);
    let nothing = Ask { answer: false, held: vec![Held::default(); 3], ..blank_ask(interval) };
    let all = Ask { held: view.held(interval), ..nothing.clone() };
    let mut sent_in_100_ms = || {
        for _ in 0..10 {
            for ask in [&nothing, &all] {
                let (now, wall) = (world.now(), world.wall(0));
                world.hops[1].trust.take(now, wall, UP, &ask.to_bytes()).unwrap();
                world.run(STEP_MS);
            }
        }
        world.sent_on[&(2, UP)] - before
    };
    let once = sent_in_100_ms();
    assert!((1..=10).contains(&once), "descriptors, records and signatures, once: {once} cells");
    assert_eq!(sent_in_100_ms(), once);
}
