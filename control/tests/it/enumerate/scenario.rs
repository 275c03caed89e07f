//! The scenarios: two nodes, what they do, and what may happen to their messages.

use control::Rate;
use wire::cell::Class;
use wire::ids::Side;

use super::RECOVERY;
use super::run::Scenario;
use super::step::{Kind, Message, Move, Way};
use crate::sim::{Plan, World, ms, secs};

/// What a network does, and an attacker who sees all datagrams and sends from its own address.
const NETWORK: [Move; 6] = [Move::Drop, Move::Hold, Move::Copy, Move::Overtake, Move::Elsewhere, Move::Divert];

const RESTARTS: [Move; 8] = [
    Move::Drop,
    Move::Hold,
    Move::Copy,
    Move::Overtake,
    Move::Elsewhere,
    Move::Divert,
    Move::RestartInitiator,
    Move::RestartResponder,
];

pub const START_IK: Scenario = Scenario {
    name: "start-ik",
    world: || linked((1, 2)),
    ends: (1, 2),
    opens: |_, _| true,
    moves: &NETWORK,
    recovery: RECOVERY,
    wants_bundle: false,
};

pub const START_NK: Scenario = Scenario { name: "start-nk", world: || linked((0, 1)), ends: (0, 1), ..START_IK };

pub const RENEWAL_IK: Scenario = Scenario { name: "renewal-ik", opens: at_renewal, ..START_IK };

pub const RENEWAL_NK: Scenario = Scenario { name: "renewal-nk", opens: at_renewal, ..START_NK };

/// An attacker that wants the address of a link: sequences with little else may be longer.
pub const THEFT: Scenario =
    Scenario { name: "theft", moves: &[Move::Drop, Move::Overtake, Move::Divert], ..RENEWAL_IK };

pub const RESTART_IK: Scenario = Scenario { name: "restart-ik", opens: when_up, moves: &RESTARTS, ..START_IK };

pub const RESTART_NK: Scenario = Scenario { name: "restart-nk", opens: when_up, moves: &RESTARTS, ..START_NK };

pub const ROAM: Scenario = Scenario {
    name: "roam",
    opens: when_up,
    moves: &[Move::Drop, Move::Hold, Move::Copy, Move::Overtake, Move::Elsewhere, Move::Divert, Move::Roam],
    ..START_NK
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
    opens: |world, _| {
        let times = world.node(1).control.view().times();
        let wall_ms = (world.wall_base + world.now).as_millis() as u64;
        let epoch = times.epoch_of(times.interval_at(wall_ms));
        let switch = times.interval_start(times.switch(epoch + 1));
        wall_ms + 1_250 >= switch
    },
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
    wants_bundle: true,
    ..START_IK
};

/// A chain of two hops whose nodes have not started, with these lengths of interval and epoch. Datagrams take 4 ms.
fn empty((interval_s, epoch_s): (u32, u32)) -> World {
    let mut plan = Plan::new(Class::L, 1);
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
