//! An entry whose link is that of a paced class: what it asks for, and what comes, waits for slots.

use super::*;

/// The events among the steps of an entry.
fn events(trust: &mut UserTrust) -> Vec<TrustEvent> {
    let of = |step| if let Step::Event(event) = step { Some(event) } else { None };
    trust.steps().into_iter().filter_map(of).collect()
}

#[test]
fn clock_in_a_part_does_not_count_on_a_paced_link() {
    for is_paced in [false, true] {
        let mut world = World::new(2, Class::L, (60, 600), 0.0);
        world.run(2000);
        // Its clock is 10 s behind.
        world.add_user(-10_000);
        let mut trust = UserTrust::new(world.view(), is_paced, world.now());
        trust.link_up(DOWN, world.shape.control_content(Direction::Forward, 1), world.now());
        world.users[0].trust = trust;
        world.run(2000);
        let trust = &mut world.users[0].trust;
        let offset = trust.sync().offsets_ms().next();
        assert_eq!(offset.is_some_and(|offset| (9900..10_000).contains(&offset)), !is_paced, "{offset:?}");
        assert_eq!(offset.is_none(), is_paced);

        trust.clock_compared(DOWN, 2500);
        trust.clock_compared(UP, 3);
        let shown = trust.sync().offsets_ms().next();
        assert_eq!(shown, if is_paced { Some(2500) } else { offset });
        assert_eq!(events(trust).contains(&TrustEvent::ClockOff { offset_ms: 2500 }), is_paced);
        trust.clock_compared(DOWN, 2600);
        assert_eq!(events(trust), [], "it is reported");
    }
}

#[test]
fn bundle_that_a_paced_class_lacks_for_an_interval_is_reported() {
    let world = World::new(2, Class::L, (10, 600), 0.0);
    let (start, wall) = (world.now(), world.wall(0));
    let mut trust = UserTrust::new(world.view(), true, start);
    trust.link_up(DOWN, world.shape.control_content(Direction::Forward, 1), start);
    let interval = trust.session().times().interval_at(wall);
    let asks = |trust: &mut UserTrust, ms: u64, interval| {
        assert!(trust.paced_bundle(interval, start + Duration::from_millis(ms), wall + ms).is_none());
        events(trust)
    };
    assert_eq!([0, 3000, 9999].map(|ms| asks(&mut trust, ms, interval)), [[], [], []]);
    let missing = TrustEvent::NoBundle { newest: None };
    // That of another interval is missing, too.
    assert_eq!(asks(&mut trust, 10_000, interval + 1), [missing]);
    assert_eq!(asks(&mut trust, 20_000, interval + 1), []);
}
