//! A link keeps its address while its initiator still receives there (SPEC 4.8).
//!
//! Whoever copies a handshake and the first cell under its keys, and overtakes both, would otherwise redirect the cells
//! of a link that is up to itself.

use std::net::SocketAddr;
use std::time::Duration;

use rand::Rng;
use subtle::ConstantTimeEq;
use wire::ids::{LinkId, Side};
use wire::link::LinkContent;

use super::{Link, Links, keepalive};
use crate::context::Context;
use crate::counters::Refusal;
use crate::io::{Change, Event};

/// The initiator is asked at the old address at these times after the promotion.
const PROBES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(300), Duration::from_millis(600)];
/// Without an echo by then, the link moves.
const ECHO_WAIT: Duration = Duration::from_secs(1);
/// In a paced class it has these rounds more: probes and echoes wait for slots (SPEC 9.6.6).
const ECHO_WAIT_ROUNDS: u32 = 32;
/// Random bytes of a probe.
const TOKEN_LEN: usize = 8;

/// A link that will have another address unless its initiator answers at the old one.
pub(super) struct Moving {
    pub(super) to: SocketAddr,
    token: [u8; TOKEN_LEN],
    since: Duration,
    probes: usize,
    /// When it ends without an echo.
    ends: Duration,
}

impl Moving {
    pub(super) fn new(cx: &mut Context, now: Duration, to: SocketAddr) -> Moving {
        let mut token = [0; TOKEN_LEN];
        cx.rng.fill_bytes(&mut token);
        let period =
            cx.config.paced_terms().map_or(Duration::ZERO, |terms| Duration::from_millis(terms.period_ms.into()));
        Moving { to, token, since: now, probes: 0, ends: now + ECHO_WAIT + ECHO_WAIT_ROUNDS * period }
    }

    /// The time of the next probe, or of the end.
    pub(super) fn due(&self) -> Duration {
        PROBES.get(self.probes).map_or(self.ends, |after| self.since + *after)
    }
}

impl Link {
    /// Sends the probe that is due, or moves the link.
    pub(super) fn follow_move(&mut self, cx: &mut Context, now: Duration) {
        let Some(moving) = self.moving.as_mut().filter(|moving| moving.due() <= now) else { return };
        if moving.probes == PROBES.len() {
            self.peer = moving.to;
            self.moving = None;
            let (side, link, peer) = (self.side, self.id, self.peer);
            cx.change(Change::MoveLink { link, peer });
            cx.event(Event::LinkMoved { side, link, peer });
            // The initiator has heard nothing for as long.
            keepalive(cx, now, self);
            return;
        }
        moving.probes += 1;
        let token = moving.token;
        self.send_content(cx, now, &[&[LinkContent::Path as u8], &token[..]].concat(), true);
    }
}

impl Links {
    /// Initiator: answers a probe. Responder: an echo keeps the link where it is.
    pub(crate) fn take_path(
        &mut self,
        cx: &mut Context,
        now: Duration,
        link: LinkId,
        kind: LinkContent,
        content: &[u8],
    ) -> Result<(), Refusal> {
        let link = self.link_mut(link).ok_or(Refusal::UnknownSlot)?;
        let token = content.get(1..=TOKEN_LEN).ok_or(Refusal::CellMalformed)?;
        match (kind, link.side) {
            // An honest responder asks no more often. Each echo lets the responder time this node.
            (LinkContent::Path, Side::Down) if link.echoes < PROBES.len() => {
                link.echoes += 1;
                link.send_content(cx, now, &[&[LinkContent::Echo as u8], token].concat(), true);
            }
            (LinkContent::Echo, Side::Up) => {
                if link.moving.take_if(|moving| moving.token[..].ct_eq(token).into()).is_some() {
                    cx.counters.moves_refused += 1;
                }
            }
            _ => return Err(Refusal::CellMalformed),
        }
        Ok(())
    }
}
