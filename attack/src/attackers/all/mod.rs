//! All attackers, and the list of them.

mod batch_tracing;
mod correlation;
mod exit_records;
mod first_packet;
mod lateness;
mod learned;
mod missing_slots;
mod order;
mod outage;
mod phases;
mod releases;
mod start_stop;
mod volume;

pub(crate) use batch_tracing::BatchTracing;
pub(crate) use correlation::Correlation;
pub(crate) use exit_records::ExitRecords;
pub(crate) use first_packet::FirstPacket;
pub(crate) use lateness::Lateness;
pub(crate) use learned::Learned;
pub(crate) use missing_slots::MissingSlots;
pub(crate) use order::Order;
pub(crate) use outage::{Exit, Outage};
pub(crate) use phases::Phases;
pub(crate) use start_stop::StartStop;
pub(crate) use volume::{PacketCount, Volume};

use super::Likelihood;
use crate::{
    assignment::Assigned,
    attacker::{Attacker, Example},
    directions::Way,
};

/// The attackers that only listen and whose names are `wanted`. Those that learn are trained with `examples`, which
/// come from other seeds than the records that they attack; without examples they use assumptions of their own.
pub fn passive(examples: &[Example<'_>], wanted: impl Fn(&str) -> bool) -> Vec<Box<dyn Attacker>> {
    let mut chosen = untrained();
    chosen.retain(|attacker| wanted(&attacker.name()));
    chosen.iter_mut().for_each(|attacker| attacker.learn(examples));
    chosen
}

fn untrained() -> Vec<Box<dyn Attacker>> {
    let mut all: Vec<Box<dyn Attacker>> = vec![
        Box::new(BatchTracing),
        Box::new(Assigned(BatchTracing)),
        Box::new(Outage::new(Exit::Honest)),
        Box::new(Outage::new(Exit::Corrupt)),
        Box::new(ExitRecords),
        Box::new(Order),
        Box::new(Lateness),
        Box::new(Phases),
        Box::new(Learned::new(1)),
        Box::new(Assigned(Likelihood { way: Way::Both, two_sided: true })),
        Box::new(Volume { way: Way::Both }),
    ];
    for way in Way::ALL {
        all.push(Box::new(Likelihood { way, two_sided: true }));
        all.push(Box::new(Likelihood { way, two_sided: false }));
        all.push(Box::new(MissingSlots { way }));
        all.push(Box::new(StartStop { way }));
        all.push(Box::new(FirstPacket { way }));
        for bin_ms in [5, 20, 100, 500] {
            all.push(Box::new(Correlation { way, bin_ms }));
        }
    }
    for window_ms in [250, 1000] {
        all.push(Box::new(PacketCount { way: Way::Both, window_ms }));
    }
    all
}
