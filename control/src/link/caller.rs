//! How this node starts handshakes with the next hop: when, how often, and whose answer counts
//! (SPEC 4.4, 4.6).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::{Rng, RngExt};
use wire::handshake::{IK_HALF_LEN, NK_HALF_LEN};
use wire::ids::Side;

use super::{Links, keepalive};
use crate::config::Config;
use crate::core::Core;
use crate::counters::Refusal;
use crate::datagram::{self, Mac1Key};
use crate::io::{Event, Output};
use crate::noise::{Initiator, Pattern, Terms};

/// First messages that may wait for an answer at once.
const CALLS_MAX: usize = 4;
/// How long each waits.
const CALL_WAIT: Duration = Duration::from_secs(5);

/// A message 1 on its way.
struct Call {
    index: u32,
    /// NK without a token.
    fresh: bool,
    sent: Duration,
    initiator: Initiator,
    key: Mac1Key,
}

/// Why a new handshake is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    NoLink,
    Age,
    Silence,
}

/// How this node starts handshakes.
pub(super) struct Caller {
    terms: Terms,
    /// The next hop's static key.
    theirs: [u8; 32],
    key: Mac1Key,
    address: SocketAddr,
    calls: VecDeque<Call>,
    wait: Duration,
    /// No new message 1 before.
    pub(super) due: Duration,
    /// Last timestamp sent: each is greater, whatever the wall clock does.
    stamp: u128,
}

impl Caller {
    /// None at the exit.
    pub(super) fn new(config: &Config, now: Duration) -> Option<Caller> {
        let class = config.shape.class();
        config.next.as_ref().map(|next| {
            let pattern = if config.is_entry() { Pattern::Nk } else { Pattern::Ik };
            Caller {
                terms: Terms::new(pattern, class, &next.descriptor.hash(), config.psk_down.as_ref()),
                theirs: next.descriptor.noise,
                key: Mac1Key::of(&next.descriptor.noise),
                address: next.address,
                calls: VecDeque::new(),
                wait: config.timing.handshake_retry,
                due: now,
                stamp: 0,
            }
        })
    }

    /// TAI64N of the wall clock, or one more than the last if that has not grown.
    fn next_stamp(&mut self, wall: SystemTime) -> [u8; 12] {
        let unix = wall.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.stamp = unix.as_nanos().max(self.stamp + 1);
        let seconds = (1 << 62) + 10 + (self.stamp / 1_000_000_000) as u64;
        let mut out = [0; 12];
        out[..8].copy_from_slice(&seconds.to_be_bytes());
        out[8..].copy_from_slice(&((self.stamp % 1_000_000_000) as u32).to_be_bytes());
        out
    }
}

impl Links {
    /// Initiator: message 2.
    pub(super) fn answer(&mut self, core: &mut Core, now: Duration, bytes: &[u8]) -> Result<(), Refusal> {
        let caller = self.caller.as_mut().ok_or(Refusal::WrongSide)?;
        let parsed = datagram::parse(bytes, NK_HALF_LEN)
            .or_else(|| datagram::parse(bytes, IK_HALF_LEN))
            .ok_or(Refusal::HandshakeForm)?;
        match parsed.kind {
            datagram::Kind::Answer => {}
            datagram::Kind::Hello => return Err(Refusal::WrongSide),
            datagram::Kind::Cookie => return Err(Refusal::Cookie),
        }
        let at = caller.calls.iter().position(|call| call.index == parsed.index).ok_or(Refusal::NotAwaited)?;
        let call = &mut caller.calls[at];
        if !call.key.accepts(&parsed) {
            return Err(Refusal::BadMac1);
        }
        let secrets = call.initiator.finish(parsed.noise).map_err(|_| Refusal::HandshakeForged)?;
        // An older call must not take over from this one. A newer one does if it too is answered, for
        // then the responder has put it in the place of this one; but without a token each call has
        // made a link of its own, and the first answered is as good as any.
        let fresh = call.fresh;
        caller.calls.drain(..=at);
        if fresh {
            caller.calls.clear();
        }
        caller.wait = core.config.timing.handshake_retry;
        let peer = caller.address;
        let id = match self.down {
            Some(id) => id,
            None => self.install_link(core, now, Side::Down, peer),
        };
        self.down = Some(id);
        let was_up = self.down_ready().is_some();
        self.install_slot(core, now, id, peer, &secrets);
        let side = Side::Down;
        core.event(if was_up {
            Event::LinkRenewed { side, link: id, peer }
        } else {
            Event::LinkUp { side, link: id, peer }
        });
        let link = self.link_mut(id).expect("it was installed above");
        link.unanswered = None;
        keepalive(core, now, link);
        Ok(())
    }

    /// Why a handshake with the next hop is due, if it is.
    fn cause(&self, core: &Core, now: Duration) -> Option<Cause> {
        let link = self.down.and_then(|id| self.link(id));
        let Some((link, slot)) = link.and_then(|link| Some((link, link.current.as_ref()?))) else {
            return Some(Cause::NoLink);
        };
        if link.unanswered.is_some_and(|since| now.saturating_sub(since) >= core.config.silent_after()) {
            return Some(Cause::Silence);
        }
        (now.saturating_sub(slot.made) >= core.config.timing.renew_after).then_some(Cause::Age)
    }

    /// Sends message 1, if one is due.
    pub(crate) fn call(&mut self, core: &mut Core, now: Duration, wall: SystemTime) {
        let Some(cause) = self.cause(core, now) else { return };
        let down = self.down;
        let Some(caller) = &mut self.caller else { return };
        if now < caller.due {
            return;
        }
        let link = down.and_then(|id| self.all[id.index()].as_mut());
        let head = match caller.terms.pattern {
            Pattern::Nk => {
                link.as_ref().and_then(|l| l.current.as_ref()).map_or_else(|| vec![0; 32], |slot| slot.resume.to_vec())
            }
            Pattern::Ik => caller.next_stamp(wall).to_vec(),
        };
        let head = zeroize::Zeroizing::new(head);
        if let (Cause::Silence, Some(link)) = (cause, link)
            && !link.silent
        {
            link.silent = true;
            core.event(Event::LinkSilent { link: link.id });
        }
        let timing = &core.config.timing;
        let wait = match cause {
            Cause::NoLink => caller.wait,
            Cause::Silence => timing.handshake_retry_max,
            // There is time, and a call that is repeated before its answer comes costs cells: the responder
            // overwrites the keys that the answer brings.
            Cause::Age => ((timing.expire_after - timing.renew_after) / 8).min(CALL_WAIT).max(timing.handshake_retry),
        };
        // Up to a fifth less, so that neighbours of one node do not call in step.
        let spread = core.rng.random_range(0.8..=1.0);
        caller.due = now + if cause == Cause::Silence { wait } else { wait.mul_f64(spread) };
        caller.wait = (caller.wait * 3 / 2).min(timing.handshake_retry_max);
        caller.calls.retain(|call| now.saturating_sub(call.sent) < CALL_WAIT);
        if caller.calls.len() >= CALLS_MAX {
            caller.calls.pop_front();
        }
        let started = Initiator::start(&mut core.rng, &caller.terms, &core.config.noise, &caller.theirs, &head);
        let Ok((initiator, message)) = started else {
            core.refuse(Refusal::HandshakeForged);
            return;
        };
        let mut index = core.rng.next_u32();
        while caller.calls.iter().any(|call| call.index == index) {
            index = core.rng.next_u32();
        }
        for datagram in datagram::frame_halves(index, &message, &caller.key) {
            core.out.push_back(Output::Send { side: Side::Down, to: caller.address, datagram });
        }
        let key = Mac1Key::of(&initiator.ephemeral);
        let fresh = caller.terms.pattern == Pattern::Nk && head[..] == [0; 32];
        caller.calls.push_back(Call { index, fresh, sent: now, initiator, key });
        core.counters.handshakes_started += 1;
    }
}
