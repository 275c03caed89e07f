//! The thread that runs control: hands it what arrives, and does what it asks for.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use control::paced::{PacedEvent, PacedStatus};
use control::{Event, Refusal};
use dataplane::punt::Notice;
use dataplane::runner::Poller;
use dataplane::sys::Waker;
use rand_chacha::ChaCha20Rng;
use tracing::{info, warn};
use wire::ids::Side;
use wire::paced::MeetingSecret;

use crate::runtime::bridge::{AGAIN, Bridge, Note};
use crate::runtime::class::ClassState;
use crate::runtime::door::{DOOR_PAUSE, Door};
use crate::runtime::drop_counter::READ_EVERY;
use crate::runtime::flow_stop::FlowStop;
use crate::runtime::icmp::{Fate, Icmp};
use crate::runtime::listeners::Listeners;
use crate::runtime::meeting::MeetingKeeper;
use crate::runtime::own_addresses::{self, OwnAddresses};
use crate::runtime::pauses::Pauses;
use crate::runtime::reporter::{Reporter, lock};
use crate::runtime::resolver::Resolver;
use crate::runtime::sockets::HandshakeSockets;
use crate::runtime::trust_keeper::TrustKeeper;

/// If control wakes later than this after it was due, it did not run.
const STALLED: Duration = Duration::from_millis(250);

pub(super) struct ControlThread {
    pub(super) bridge: Bridge,
    /// By place, as in the bridge and the reporter.
    pub(super) classes: Vec<ClassState>,
    pub(super) sockets: Vec<HandshakeSockets>,
    /// Only at an exit.
    pub(super) own_addresses: Option<OwnAddresses>,
    pub(super) trust: TrustKeeper,
    /// Descriptors and keys are to be read again.
    pub(super) reload: Arc<AtomicBool>,
    /// New secrets of classes, by place, for their meetings.
    pub(super) new_meetings: Arc<Mutex<Vec<(usize, MeetingSecret)>>>,
    /// Only at an entry.
    pub(super) icmp: Option<Icmp>,
    /// For times that nobody else must know.
    pub(super) rng: ChaCha20Rng,
    pub(super) pauses: Pauses,
    pub(super) reporter: Reporter,
    pub(super) waker: Arc<Waker>,
    pub(super) stop: Arc<AtomicBool>,
}

impl Drop for ControlThread {
    fn drop(&mut self) {
        self.reporter.readiness.end();
    }
}

impl ControlThread {
    /// Runs until `stop` is set.
    pub(super) fn run(mut self) {
        let poller = Poller::new().and_then(|poller| {
            let sockets = self.classes.iter().filter_map(|class| class.door.as_ref()).flat_map(Door::sockets);
            sockets.chain([self.waker.as_fd()]).try_for_each(|fd| poller.add(fd, 0))?;
            Ok(poller)
        });
        let poller = match poller {
            Ok(poller) => poller,
            Err(error) => {
                warn!("the control thread cannot poll: {error}");
                return;
            }
        };
        let clock = self.reporter.clock;
        let mut read_drops_at = Duration::ZERO;
        while !self.stop.load(Ordering::Acquire) {
            for (place, class) in self.classes.iter_mut().enumerate() {
                while let Some((query, addresses)) = class.resolver.as_ref().and_then(Resolver::answer) {
                    self.bridge.resolved(place, query, addresses);
                }
                if let Some(addresses) = class.next_names.resolved() {
                    self.bridge.control_mut().resolved(clock.elapsed(), place, addresses);
                }
            }
            for (place, secret) in lock(&self.new_meetings).drain(..) {
                self.bridge.control_mut().meet(place, secret);
            }
            if self.reload.swap(false, Ordering::AcqRel) {
                // First, because the other ends with the line that says `reloaded`.
                for (place, class) in self.classes.iter().enumerate() {
                    let _named = class.span.enter();
                    if let Some(secret) = class.meeting.as_ref().and_then(MeetingKeeper::read) {
                        self.bridge.control_mut().meet(place, secret);
                    }
                }
                self.trust.reload(self.bridge.control_mut(), clock.elapsed());
            }
            for (place, class) in self.reporter.classes.iter().enumerate() {
                if let Some(listeners) = &class.listeners {
                    self.bridge.take_commands(place, std::iter::from_fn(|| listeners.next_command()));
                }
            }
            let is_flooded = self.read_door(clock.elapsed());
            let mut wake = self.turn(clock.elapsed());
            if let Some(own) = &mut self.own_addresses {
                if let Some(addresses) = own.look(clock.elapsed(), own_addresses::of_host) {
                    self.bridge.own_addresses(&addresses);
                    wake = clock.elapsed();
                }
                wake = wake.min(own.due());
            }
            for (class, reporter) in self.classes.iter_mut().zip(&*self.reporter.classes) {
                if let Some(alarm) = &mut class.meter_alarm {
                    let _named = class.span.enter();
                    alarm.look(clock.elapsed(), || reporter.meter(&reporter.profile(), clock.now()));
                    wake = wake.min(alarm.due());
                }
            }
            for (place, class) in self.classes.iter_mut().enumerate() {
                let Some(stop) = &mut class.flow_stop else { continue };
                if let Some(refuses) = stop.change(clock.elapsed(), &mut self.rng) {
                    let _named = class.span.enter();
                    match refuses {
                        true => info!("new flows are refused, by on_alarm"),
                        false => info!("new flows are taken again, by on_alarm"),
                    }
                    self.bridge.refuse_new_flows(place, refuses);
                    wake = clock.elapsed();
                }
                wake = wake.min(stop.due());
            }
            for (class, reporter) in self.classes.iter_mut().zip(&*self.reporter.classes) {
                if let Some(meeting) = &mut class.meeting {
                    let _named = class.span.enter();
                    wake = wake.min(meeting.look(clock.elapsed(), || reporter.meeting()));
                }
            }
            if clock.elapsed() >= read_drops_at {
                read_drops_at = clock.elapsed() + READ_EVERY;
                self.reporter.read_drops();
            }
            wake = wake.min(read_drops_at);
            let mut listeners = self.reporter.classes.iter().filter_map(|class| class.listeners.as_ref());
            if listeners.any(Listeners::has_commands) {
                wake = wake.min(clock.elapsed() + AGAIN);
            }
            self.wait(&poller, wake, is_flooded || self.bridge.has_waiting());
        }
    }

    /// Waits until `wake`, a handshake, or until another thread wakes this one. With `ignores_handshakes` they do not
    /// wake it, and it waits for [`DOOR_PAUSE`] at most. Wakes at least every [`STALLED`], because only the clock shows
    /// that this thread did not run.
    fn wait(&mut self, poller: &Poller, wake: Duration, ignores_handshakes: bool) {
        let clock = self.reporter.clock;
        loop {
            let due = wake.min(clock.elapsed() + if ignores_handshakes { DOOR_PAUSE } else { STALLED });
            let timeout = due.saturating_sub(clock.elapsed());
            let events = if ignores_handshakes {
                self.waker.wait(timeout);
                self.waker.clear();
                1
            } else {
                poller.wait(Some(timeout), |_| self.waker.clear())
            };
            let now = clock.elapsed();
            if now > due + STALLED {
                self.bridge.control_mut().stalled(due, now);
                self.pauses.note(due, now);
            }
            if events > 0 || now >= wake {
                return;
            }
        }
    }

    /// Takes handshakes in. Returns true if there are many.
    fn read_door(&mut self, now: Duration) -> bool {
        let Self { bridge, classes, .. } = self;
        let mut is_flooded = false;
        for (place, class) in classes.iter_mut().enumerate() {
            let Some(door) = class.door.as_mut().filter(|_| bridge.takes_handshakes(place)) else { continue };
            is_flooded |= door
                .read(|from, half, is_crowded| bridge.take_handshake((place, Side::Up), from, half, is_crowded, now));
        }
        is_flooded
    }

    fn turn(&mut self, now: Duration) -> Duration {
        let Self { bridge, classes, sockets, trust, reporter, icmp, waker, rng, .. } = self;
        let mut send = |place: usize, side, to, datagram: &[u8]| sockets[place].send(side, to, datagram);

        let mut own_descriptor = false;
        // Apart, because `note` borrows the rest.
        let mut saves = std::mem::take(&mut trust.saves);
        let mut note = |place: usize, note| {
            let (class, listeners) = (&mut classes[place], &reporter.classes[place].listeners);
            match note {
                Note::Event(event) => {
                    own_descriptor |= trust.concerns_own_descriptor(&event);
                    reporter.readiness.note(place, &event);
                    if let (Some(is_up), Some(stop)) = (alarm(&event), &mut class.flow_stop) {
                        stop.alarm(now, is_up, rng);
                    }
                    // What concerns trust concerns all classes.
                    let _named = (!matches!(event, Event::Trust(_))).then(|| class.span.enter());
                    class.log.event(now, &event);
                }
                Note::ResolveNext(names) => class.next_names.ask(names, waker),
                Note::Notice(notice) => {
                    let _named = class.span.enter();
                    class.log.notice(now, &notice);
                    if let (Notice::Refused { client, destination, status }, Some(listeners)) = (&notice, listeners) {
                        listeners.refuse(client.listener, client.address, destination, *status);
                    }
                    if let (Some(icmp), Some(listeners)) = (icmp.as_ref(), listeners) {
                        answer_client(icmp, listeners, &notice);
                    }
                }
                Note::Resolve { query, name } => {
                    if let Some(resolver) = &class.resolver {
                        resolver.ask(query, name);
                    }
                }
            }
        };

        let wake = bridge.turn(now, SystemTime::now(), &mut send, &mut note, &mut |state| saves.save(now, state));
        trust.saves = saves;
        if own_descriptor {
            trust.settle_keys(bridge.control_mut(), now);
        }
        let control = bridge.control();
        let mut wake = wake.min(trust.look(control, now));
        if let Some(status) = trust.status.take() {
            *lock(&reporter.trust) = status;
        }
        let Reporter { readiness, classes: reporters, .. } = reporter;
        for (place, (class, reporter)) in classes.iter_mut().zip(&**reporters).enumerate() {
            let _named = class.span.enter();
            let of_class = control.class(place);
            class.log.next_hop(now, of_class.next_hop_silence(now));
            class.flood.look(now, of_class.counters());
            wake = wake.min(class.flood.due());
            let mut state = lock(&reporter.control);
            state.counters = of_class.counters().clone();
            state.half_open = of_class.half_open();
            state.paced = of_class.paced_status(now);
            state.full = class.log.full_since_setup();
            state.refuses_flows = class.flow_stop.as_ref().is_some_and(FlowStop::refuses);
            match &state.paced {
                Some(PacedStatus::Entry(status)) => readiness.note_batch(place, status.has_channel),
                Some(PacedStatus::Hop(status)) => {
                    let channels = status.batch.unwrap_or_default().channels;
                    class.log.seats(now, of_class.counters().refused(Refusal::NoRoom), channels);
                }
                None => {}
            }
            state.flood_per_s = class.flood.per_s();
        }
        wake
    }
}

/// Whether the alarm of a paced class is up from now on.
fn alarm(event: &Event) -> Option<bool> {
    match event {
        Event::Paced(PacedEvent::Dropping(_)) => Some(true),
        Event::Paced(PacedEvent::DroppingEnded) => Some(false),
        _ => None,
    }
}

/// Sends the ICMP error that a network sends for a datagram that it does not carry.
fn answer_client(icmp: &Icmp, listeners: &Listeners, notice: &Notice) {
    let (client, fate) = match notice {
        Notice::Deaf { .. } | Notice::OverRate => return,
        Notice::TooLarge { client, .. } => (client, Fate::TooLong),
        Notice::Refused { client, status, .. } => (client, Fate::Refused(*status)),
    };
    let Some((at, is_forward)) = listeners.find(client.listener) else { return };
    // An error about one destination would affect a client's others on the same socket.
    if is_forward || fate == Fate::TooLong {
        icmp.send(client.address, at, fate);
    }
}
