//! Whole chains in memory, with access to control's internals: one node may send what it must not.

use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use wire::cell::{CellKind, Class, Direction};
use wire::handshake::is_handshake_len;
use wire::ids::{ChannelIndex, EndReason, LinkId, Side};
use wire::kdf::Secret;
use wire::link::LinkContent;
use wire::setup::{self, EntryShare, HopPublic, Info, SetupKey, SetupPublic, Suite};

use crate::channel::Use;
use crate::context::Context;
use crate::cookie::Answer;
use crate::datagram::{self, Mac1Key};
use crate::draw::draw_secret;
use crate::link::Outgoing;
use crate::sim::{Fate, Plan, World, losing, ms, secs, up_address};
use crate::trust::bundle::{self, Signatures};
use crate::trust::message::{self, ItemKind};
use crate::trust::{EpochRecord, SignedRecord, Signer, State, View};
use crate::{BadConfig, ClassControl, Config, Control, Event, Input, Refusal, TrustSetup};

mod acks;
mod config;
mod links;
mod setups;
mod ways;

fn up(class: Class, mixes: usize) -> World {
    let mut world = World::new(Plan::new(class, mixes));
    world.run_for(secs(3));
    assert!(world.has_channels(0, 4));
    world
}

/// Lets a node seal and send any content on its link of this side.
fn misuse(world: &mut World, from: usize, side: Side, kind: CellKind, channel: u32, sub: u8, content: &[u8]) {
    let now = world.now;
    let link = world.node(from).link(side).0;
    world.nodes.get_mut(&from).unwrap().honest = false;
    let ClassControl { cx, links, .. } = &mut world.nodes.get_mut(&from).unwrap().control.classes[0];
    assert!(links.inject(cx, now, link, &Outgoing { kind, channel, sub, content, at_once: false }));
    // Any input lets the world take the outputs.
    world.input(from, Input::Activity { link, received: false, sent: true });
}

/// The setup keys that the entry uses.
fn setup_keys(world: &World) -> &[HopPublic] {
    world.node(0).control.classes[0].entry.as_ref().expect("node 0 is an entry").setup_keys()
}

fn onion(world: &World, info: Info, seed: u64) -> Vec<u8> {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let (plan, hops) = (&world.plan, setup_keys(world));
    let shares: Vec<EntryShare> = hops.iter().map(|hop| hop.setup.share(draw_secret(&mut rng))).collect();
    setup::build(plan.shape, hops, shares, info).unwrap().0
}

/// Lets the entry send this onion in the cells of this channel, but for the last `less` of them.
fn misuse_setup(world: &mut World, channel: u32, onion: &[u8], less: usize) {
    let shape = world.plan.shape;
    let mut shards: Vec<Vec<u8>> =
        onion.chunks(shape.control_content(Direction::Forward, 1)).map(<[u8]>::to_vec).collect();
    shards.last_mut().unwrap().resize(shape.control_content(Direction::Forward, 1), 9);
    setup::shards(shape, Suite::default(), 1).encode(&mut shards);
    for (sub, content) in shards.iter().enumerate().take(shards.len() - less) {
        misuse(world, 0, Side::Down, CellKind::Setup, channel, sub as u8, content);
    }
}

const INFO: Info = Info { suite: Suite::Hybrid, class: Class::L, paced: false, lifetime_s: 3600, first: 0 };

/// A chain whose exit's cells are lost from the first setup on, so that channels stay half-open.
fn without_acks(class: Class, mixes: usize) -> World {
    let mut world = World::new(Plan::new(class, mixes));
    let start = world.now;
    assert!(world.run_until(start + secs(2), |w| !w.node(mixes + 1).channels.is_empty()));
    world.lose_flight(up_address(mixes + 1));
    world.tap = Box::new(move |_, packet| {
        let lost = packet.from == up_address(mixes + 1) && !is_handshake_len(packet.bytes.len());
        if lost { Fate::Lose } else { Fate::Pass }
    });
    // The exit's other ack cells are lost, too.
    world.run_for(ms(100));
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn hostile_neighbour_cells_never_stop_a_node(
        class in prop::sample::select(vec![Class::S, Class::L]),
        cells in prop::collection::vec(
            (0usize..4, any::<bool>(), 0u8..4, 0u32..5, 0u8..6, any::<u8>(), prop::option::weighted(0.2, 0usize..100)),
            1..60,
        ),
    ) {
        // Eight hops of class S have setups in many shards and acks of two contents.
        let mut world = up(class, 7);
        for (from, forward, kind, channel, sub, fill, other_len) in cells {
            let (from, side) = if forward { (from * 2, Side::Down) } else { (from * 2 + 1, Side::Up) };
            let (direction, link) =
                if forward { (Direction::Forward, from + 1) } else { (Direction::Backward, from) };
            let kind = [CellKind::Data, CellKind::Setup, CellKind::Ack, CellKind::Link][usize::from(kind)];
            // Sometimes the id of a live channel.
            let live = world.node(from).channels.values().next().and_then(|c| if forward { c.down } else { c.up });
            let channel = if channel == 4 { live.map_or(4, |id| id.1) } else { channel };
            let content = vec![fill; other_len.unwrap_or(world.plan.shape.control_content(direction, link))];
            misuse(&mut world, from, side, kind, channel, sub, &content);
        }
        world.run_for(secs(3));
        prop_assert!(world.has_channels(0, 4));
    }
}
