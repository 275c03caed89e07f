//! Three cells for each ack content (SPEC 5.4.5): the first at once, the others later, so that they pass
//! through different releases of the pool and one loss does not end a setup.
//!
//! Each is sealed when it leaves, under a number of its own.

use std::collections::VecDeque;
use std::time::Duration;

use wire::cell::CellKind;

use super::LinkChannel;
use crate::context::Context;
use crate::counters::Refusal;
use crate::link::{Links, Outgoing};

/// Cells for each ack content after the first.
const COPIES: u8 = 2;
/// Contents that wait for their next cell.
pub const ACK_COPIES_MAX: usize = 4096;

struct Pending {
    due: Duration,
    to: LinkChannel,
    sub: u8,
    content: Vec<u8>,
    cells_to_send: u8,
}

/// Ack contents that wait for their second or third cell. All wait equally long, so the first is due
/// first.
#[derive(Default)]
pub(super) struct AckCopies(VecDeque<Pending>);

impl AckCopies {
    /// Sends the first cell of an ack content, and plans the others.
    pub(super) fn send(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        now: Duration,
        to: LinkChannel,
        sub: u8,
        content: Vec<u8>,
    ) {
        inject(cx, links, now, to, sub, &content);
        if self.0.len() >= ACK_COPIES_MAX {
            cx.refuse(Refusal::AckCopiesFull);
            return;
        }
        self.0.push_back(Pending { due: now + cx.config.ack_period(), to, sub, content, cells_to_send: COPIES });
    }

    /// Sends what is due.
    pub(super) fn tick(&mut self, cx: &mut Context, links: &mut Links, now: Duration) {
        while let Some(mut next) = self.0.pop_front_if(|next| next.due <= now) {
            inject(cx, links, now, next.to, next.sub, &next.content);
            next.cells_to_send -= 1;
            if next.cells_to_send > 0 {
                next.due = now + cx.config.ack_period();
                self.0.push_back(next);
            }
        }
    }

    pub(super) fn due(&self) -> Option<Duration> {
        self.0.front().map(|next| next.due)
    }
}

/// A link that is gone or cannot send gets nothing.
fn inject(cx: &mut Context, links: &mut Links, now: Duration, to: LinkChannel, sub: u8, content: &[u8]) {
    links.inject(cx, now, to.0, &Outgoing { kind: CellKind::Ack, channel: to.1, sub, content, at_once: false });
}

#[cfg(test)]
mod tests {
    use wire::cell::Class;
    use wire::ids::Side;

    use super::*;
    use crate::sim::{Plan, World, ms, secs};
    use crate::{ClassControl, Input};

    #[test]
    fn ack_copies_are_bounded() {
        let mut world = World::new(Plan::new(Class::S, 1));
        world.run_for(secs(3));
        let (now, link) = (world.now, world.node(2).link(Side::Up).0);
        let exit = world.nodes.get_mut(&2).unwrap();
        exit.honest = false;
        let ClassControl { cx, links, channels, .. } = &mut exit.control.classes[0];
        for channel in 1..=ACK_COPIES_MAX as u32 + 1 {
            channels.ack_copies.send(cx, links, now, (link, channel), 0, vec![3; 208]);
        }
        assert_eq!((channels.ack_copies.0.len(), cx.counters.refused(Refusal::AckCopiesFull)), (ACK_COPIES_MAX, 1));

        // Any input lets the world take the outputs.
        world.record.clear();
        world.input(2, Input::Activity { link, received: false, sent: true });
        world.run_for(ms(100));
        let sent = world.record.iter().filter(|packet| packet.from == world.node(2).up_address).count();
        assert_eq!(sent, 3 * ACK_COPIES_MAX + 1, "the last content has one cell");
        assert_eq!(world.node(2).control.classes[0].channels.ack_copies.due(), None);
    }
}
