//! Acks that nobody waits for, that come twice, or that are forged.

use super::*;

#[test]
fn ack_passes_a_mix_once_and_only_if_awaited() {
    let mut world = up(Class::L, 2);
    let content = vec![3; world.plan.shape.payload()];
    // The exit acknowledges an open channel again, then an unknown one, then sends part 1 of an ack with one part.
    let open = world.node(3).channels.values().next().unwrap().up.unwrap().1;
    let before = world.node(2).control.class(0).counters().surplus_cells;
    for (channel, sub) in [(open, 0), (12345, 0), (open, 1)] {
        misuse(&mut world, 3, Side::Up, CellKind::Ack, channel, sub, &content);
    }
    world.run_for(secs(1));
    assert_eq!(world.refused(2, Refusal::UnexpectedAck), 2);
    assert_eq!(world.node(2).control.class(0).counters().surplus_cells, before + 1, "a copy for an open channel");
    assert_eq!(world.refused(1, Refusal::UnexpectedAck), 0, "nothing came through");
}

#[test]
fn each_ack_part_passes_once_so_no_keystream_repeats() {
    // Eight hops of class S have two parts.
    let mut world = without_acks(Class::S, 7);
    let half_open = *world.nodes[&8].channels.values().next().map(|c| c.up.as_ref().unwrap()).unwrap();
    world.tap = Box::new(|_, _| Fate::Pass);
    let content = vec![3; world.plan.shape.payload()];
    let surplus = |w: &World| w.node(7).control.class(0).counters().surplus_cells;
    let sent = |w: &World| w.record.iter().filter(|p| p.from == up_address(7)).count();
    let (before, sent_before) = (surplus(&world), sent(&world));
    for _ in 0..3 {
        misuse(&mut world, 8, Side::Up, CellKind::Ack, half_open.1, 0, &content);
    }
    world.run_for(ms(100));
    assert_eq!(surplus(&world), before + 2);
    assert_eq!(sent(&world), sent_before + 3, "one content, in three cells");
    // An ack has parts 0 and 1 only, and comes from the exit's side only.
    misuse(&mut world, 8, Side::Up, CellKind::Ack, half_open.1, 2, &content);
    let up = world.node(7).control.classes[0].channels.half_open_ids()[0];
    let content = vec![3; world.plan.shape.control_content(Direction::Forward, 7)];
    misuse(&mut world, 6, Side::Down, CellKind::Ack, up, 1, &content);
    world.run_for(ms(40));
    assert_eq!((world.refused(7, Refusal::UnexpectedAck), world.refused(7, Refusal::CellMalformed)), (1, 1));
}

#[test]
fn entry_takes_the_first_copy_of_an_ack_part() {
    let mut world = without_acks(Class::S, 7);
    let waits = world.node(1).control.classes[0].channels.half_open_ids()[0];
    let content = vec![3; world.plan.shape.control_content(Direction::Backward, 1)];
    for (sub, surplus, refused) in [(0, 0, 0), (0, 1, 0), (2, 1, 1)] {
        misuse(&mut world, 1, Side::Up, CellKind::Ack, waits, sub, &content);
        world.run_for(ms(40));
        assert_eq!(world.refused(0, Refusal::UnexpectedAck), refused, "content {sub} of 0 and 1");
        assert_eq!(world.node(0).control.class(0).counters().surplus_cells, surplus, "content {sub} of 0 and 1");
    }
    misuse(&mut world, 1, Side::Up, CellKind::Ack, waits, 1, &content);
    world.run_for(ms(40));
    assert_eq!((world.refused(0, Refusal::UnexpectedAck), world.refused(0, Refusal::AckInvalid)), (1, 1));
}

#[test]
fn forged_ack_discards_the_setup_and_entry_retries() {
    let mut world = World::new(Plan::new(Class::L, 1));
    let start = world.now;
    assert!(world.run_until(start + secs(1), |w| w.node(1).control.class(0).half_open() > 0));
    let channel = *world.nodes[&1].control.classes[0].channels.half_open_ids().first().unwrap();
    let content = vec![3; world.plan.shape.payload()];
    misuse(&mut world, 1, Side::Up, CellKind::Ack, channel, 0, &content);
    assert!(world.run_until(start + secs(10), |w| w.has_channels(0, 4) || w.node(0).channels.len() == 4));
    assert_eq!(world.refused(0, Refusal::AckInvalid), 1);
}
