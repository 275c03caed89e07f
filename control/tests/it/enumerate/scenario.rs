//! The scenarios: two nodes, what they do, and what may happen to their messages.

use std::time::Duration;

use control::Rate;
use wire::cell::Class;
use wire::ids::Side;

use super::RECOVERY;
use super::run::{Also, Scenario};
use super::step::{Kind, Message, Move, Way};
use crate::sim::{Plan, World, ms, secs};

/// What a network does, and an attacker who sees all datagrams and sends from its own address.
const NETWORK: [Move; 7] =
    [Move::Drop, Move::Hold, Move::Copy, Move::Overtake, Move::Elsewhere, Move::Divert, Move::Forge];

const RESTARTS: [Move; 9] = [
    Move::Drop,
    Move::Hold,
    Move::Copy,
    Move::Overtake,
    Move::Elsewhere,
    Move::Divert,
    Move::Replay,
    Move::RestartInitiator,
    Move::RestartResponder,
];

pub const START_IK: Scenario = Scenario {
    name: "start-ik",
    world: || linked((1, 2)),
    ends: (1, 2),
    opens: |_, _| true,
    moves: &NETWORK,
    clock_ms: 0,
    recovery: RECOVERY,
    also: Also::Nothing,
};

pub const START_NK: Scenario = Scenario { name: "start-nk", world: || linked((0, 1)), ends: (0, 1), ..START_IK };

pub const RENEWAL_IK: Scenario = Scenario { name: "renewal-ik", opens: at_renewal, ..START_IK };

/// The link carries a channel, which must outlive what happens.
pub const RENEWAL_NK: Scenario =
    Scenario { name: "renewal-nk", world: with_channel, opens: at_renewal, also: Also::Channel, ..START_NK };

/// An attacker that wants the address of a link: sequences with little else may be longer.
pub const THEFT: Scenario =
    Scenario { name: "theft", moves: &[Move::Drop, Move::Overtake, Move::Divert], ..RENEWAL_IK };

pub const RESTART_IK: Scenario = Scenario { name: "restart-ik", opens: when_up, moves: &RESTARTS, ..START_IK };

pub const RESTART_NK: Scenario = Scenario { name: "restart-nk", opens: when_up, moves: &RESTARTS, ..START_NK };

/// The same at any time, with an entry that may get another address.
pub const ROAM: Scenario = Scenario {
    name: "roam",
    world: with_channel,
    opens: when_up,
    moves: &[Move::Drop, Move::Hold, Move::Copy, Move::Overtake, Move::Elsewhere, Move::Divert, Move::Roam],
    also: Also::Channel,
    ..START_NK
};

/// The link's keys are first used by data cells.
pub const THEFT_BY_DATA: Scenario = Scenario {
    name: "theft-by-data",
    world: || {
        let mut world = linked((0, 1));
        world.data_cells = true;
        world
    },
    moves: &[Move::Overtake, Move::Divert],
    also: Also::Nothing,
    ..RENEWAL_NK
};

/// The initiator's clock is an hour ahead until it restarts.
pub const CLOCK: Scenario = Scenario {
    name: "clock",
    world: || {
        let mut world = empty((600, 6000));
        world.clock_ms.insert(1, 3_600_000);
        world.start(2);
        world.start(1);
        world
    },
    ..RESTART_IK
};

/// The same, and then two seconds behind that of the responder.
pub const CLOCK_BEHIND: Scenario = Scenario { name: "clock-behind", clock_ms: -2000, ..CLOCK };

/// The last interval before the switch to the records of another epoch, and the first one after it.
pub const BUNDLE: Scenario = Scenario {
    name: "bundle",
    world: || {
        let mut world = empty((1, 10));
        // Three seconds before the switch, so that the nodes begin with the old records.
        world.wall_base += secs(8);
        world.start(2);
        world.start(1);
        world
    },
    opens: |world, _| until_switch(world) <= ms(1_250),
    moves: &[
        Move::Drop,
        Move::Hold,
        Move::Copy,
        Move::RestartInitiator,
        Move::RestartResponder,
        Move::CrashInitiator,
        Move::CrashResponder,
    ],
    recovery: RECOVERY.saturating_add(secs(3)),
    also: Also::Bundle,
    ..START_IK
};

/// From the publication of the next epoch's records to the first bundles with them.
pub const PUBLICATION: Scenario =
    Scenario { name: "publication", opens: |world, _| until_switch(world) <= ms(2_700), ..BUNDLE };

/// The same in a chain of three hops, where the first two are in trouble.
pub const BUNDLE_OF_3: Scenario = Scenario {
    name: "bundle-of-3",
    world: || {
        let mut world = with_mixes(2, (1, 10));
        world.wall_base += secs(8);
        (1..=3).for_each(|at| world.start(at));
        world
    },
    ..BUNDLE
};

/// The time until the first interval with the records of the next epoch.
fn until_switch(world: &World) -> Duration {
    let times = world.node(1).control.view().times();
    let wall_ms = (world.wall_base + world.now).as_millis() as u64;
    let epoch = times.epoch_of(times.interval_at(wall_ms));
    ms(times.interval_start(times.switch(epoch + 1)) - wall_ms)
}

/// A chain of two hops whose nodes have not started, with these lengths of interval and epoch. Datagrams take 4 ms.
fn empty(times: (u32, u32)) -> World {
    with_mixes(1, times)
}

fn with_mixes(mixes: usize, (interval_s, epoch_s): (u32, u32)) -> World {
    let mut plan = Plan::new(Class::L, mixes);
    plan.channels = 0;
    (plan.terms.interval_s, plan.terms.epoch_s) = (interval_s, epoch_s);
    // Replay caches have room for what this allows.
    plan.caps.setups = Rate { per_second: 1, burst: 1 };
    plan.timing.renew_after = secs(6);
    plan.timing.expire_after = secs(16);
    let mut world = World::empty(plan);
    world.delay_us = 4_000..4_001;
    world
}

/// Two nodes that start at once. Intervals are so long that their bundles do not disturb.
fn linked((initiator, responder): (usize, usize)) -> World {
    let mut world = empty((600, 6000));
    world.start(responder);
    world.start(initiator);
    world
}

/// An entry, a mix and an exit, with one channel.
fn with_channel() -> World {
    let mut world = empty((600, 6000));
    world.plan.channels = 1;
    (0..=2).rev().for_each(|at| world.start(at));
    let end = world.now + secs(3);
    assert!(world.run_until(end, |world| world.has_channels(0, 1)));
    world
}

fn is_up(world: &World) -> bool {
    world.nodes.values().any(|node| node.has_link(Side::Up))
}

fn at_renewal(world: &World, message: Message) -> bool {
    is_up(world) && message.kind == Kind::Handshake(1) && message.way == Way::Forward
}

/// Half a second after the link came up, when bundles are complete.
fn when_up(world: &World, _: Message) -> bool {
    is_up(world) && world.now > secs(1000) + ms(1000)
}
