//! Lines about paced classes.

use std::time::Duration;

use control::paced::{Cause, Failure, PacedEvent};
use tracing::{debug, info, warn};
use wire::cell::Direction;
use wire::ids::Side;
use wire::paced::Company;

use super::Log;
use crate::report::paced::{CompanyReport, WHAT_TO_DO, reason};

/// Batches that an entry misses without a warning when it starts: short ones begin before it has its bundle.
const BUNDLES_MISSED: u32 = 3;

impl Log {
    /// Takes an event of a paced class.
    pub(super) fn paced(&mut self, now: Duration, event: &PacedEvent) {
        self.is_dropping |= matches!(event, PacedEvent::Dropping(_));
        match *event {
            PacedEvent::JoinsAt { batch, wait } => {
                let wait_s = wait.as_secs_f64().round();
                info!(
                    batch,
                    wait_s,
                    "connected; joins with the next batch in {wait_s} s, or with a later one if its bundle of keys does not \
                     come in time"
                );
            }
            PacedEvent::Joined { batch } => {
                self.setups_fail_since = None;
                self.setups.end(now);
                self.not_joined.end(now);
                (self.bundles_missed, self.lacks_ack) = (BUNDLES_MISSED, false);
                self.full = self.full.filter(|_| self.is_dropping);
                if std::mem::replace(&mut self.has_joined, true) {
                    debug!(batch, "has a channel in batch {batch}");
                } else {
                    info!(batch, "has a channel from batch {batch} on");
                }
            }
            PacedEvent::NotJoined { batch, why } => {
                self.has_joined = false;
                self.lacks_ack = why == Failure::NoAck;
                self.full = self.full_now().or(self.full.filter(|_| self.is_dropping));
                if why == Failure::NoBundle && self.bundles_missed < BUNDLES_MISSED {
                    self.bundles_missed += 1;
                    info!(
                        batch,
                        "no channel in batch {batch} yet: this entry has just started, and the bundle of keys for it came too \
                         late; the next setup is for the batch after it"
                    );
                } else if self.not_joined.occurs(now) {
                    let reason = self.reason(why);
                    self.bundles_missed = BUNDLES_MISSED;
                    let hint = match why {
                        Failure::NotReady => "look for outages of the access link",
                        Failure::NoBundle => {
                            "the chain or a hop has just started, a hop is down, or this clock is off by hours (`timedatectl`)"
                        }
                        Failure::BadAck(_) => "ask its operator",
                        _ => "check the clock (`timedatectl`) and the loss of the access link (`eddy status`)",
                    };
                    warn!(
                        batch,
                        "no channel in batch {batch}: {reason}; the next setup is for the batch after it; if this repeats: \
                         {hint}"
                    );
                }
            }
            PacedEvent::Company(company @ Company { channels, n_min }) if company.is_low() => {
                self.announced(company);
                if self.no_company.occurs(now) {
                    info!(
                        channels,
                        n_min, "waiting for company: {channels} of {n_min} channels, and nothing arrives before that"
                    );
                }
            }
            PacedEvent::Company(company @ Company { channels, n_min }) => {
                self.announced(company);
                if self.no_company.end(now) {
                    info!(channels, n_min, "has company: {channels} channels, and {n_min} are needed");
                } else {
                    debug!(channels, n_min, "{channels} channels in this batch, {n_min} are needed");
                }
            }
            PacedEvent::LeadMoved { lead_ns } => {
                let lead_ms = lead_ns as f64 / 1e6;
                warn!(
                    lead_ms,
                    "the way to the first mix got longer or shorter by more than the slack of the class within 10 minutes, or \
                     its clock or this one is wrong (lead {lead_ms:.1} ms): check time synchronisation on this host, and \
                     which network it uses"
                );
            }
            PacedEvent::ClockOff { side, offset_ns } => {
                let (trouble, neighbour) = match side {
                    Side::Up => (&mut self.clock_of_previous, self.previous.as_deref()),
                    Side::Down => (&mut self.clock_of_next, self.next.as_ref().map(|next| next.name.as_str())),
                };
                if !trouble.occurs(now) {
                    return;
                }
                let (neighbour, offset_ms) = (neighbour.unwrap_or("a neighbour"), offset_ns as f64 / 1e6);
                let (off, way) = (offset_ms.abs(), if offset_ns > 0 { "ahead of" } else { "behind" });
                warn!(
                    peer = neighbour,
                    offset_ms,
                    "the clock of {neighbour} is {off:.1} ms {way} this one: paced classes need 2 ms, so check time \
                     synchronisation on both hosts"
                );
            }
            PacedEvent::Dropping(cause) => self.dropping(cause),
            PacedEvent::SetupExcused { hop: None, batch } => warn!(
                batch,
                "the link to the first mix was down while a channel for batch {batch} had to be set up: that batch raises no \
                 alarm; another such batch within {} does",
                self.minutes()
            ),
            PacedEvent::SetupExcused { hop: Some(hop), batch } => {
                if !self.restarts.get_mut(hop - 1).is_some_and(|restart| restart.occurs(now)) {
                    return;
                }
                let name = self.hops.get(hop - 1).cloned().unwrap_or_default();
                warn!(
                    peer = name,
                    batch,
                    "hop {hop}, {name}, has restarted: it has other setup keys, which explains the failed setup for batch \
                     {batch}: that setup raises no alarm; after another restart of it within {} one does",
                    self.minutes()
                );
            }
            PacedEvent::DroppingEnded => {
                (self.is_dropping, self.full) = (false, None);
                info!("dropping has ended");
            }
        }
    }

    /// The alarm was raised.
    fn dropping(&self, cause: Cause) {
        match cause {
            Cause::Lost { direction, places, lost } => {
                let way = if direction == Direction::Forward { "on their way to" } else { "coming from" };
                warn!(
                    places,
                    lost,
                    "dropping: {lost} of {places} cells were lost in all copies {way} the first mix, more than usual: \
                 outages of the access link, the first mix was restarted, this host slept or is too busy, or \
                 somebody drops cells on purpose; {WHAT_TO_DO}"
                );
            }
            Cause::NoReports => warn!(
                "dropping: five reports of the first mix in a row did not come: outages of the access link, or somebody \
             drops cells on purpose; {WHAT_TO_DO}"
            ),
            Cause::NoClock => warn!(
                "dropping: for 40 s the first mix answered no clock cells, so this entry sends by a time that gets older: \
             outages of the access link, or somebody drops cells on purpose; if it is the first mix, inform its operator"
            ),
            Cause::Setup { batch, why } => warn!(
                batch,
                "dropping: no channel in batch {batch} ({}), which losses do not explain: somebody may drop setups; do \
             not begin calls that matter until this ends; {WHAT_TO_DO}",
                self.reason(why)
            ),
            Cause::Loops { places, lost, garbled } => {
                let next = self.next.as_ref().map_or("the next hop", |next| &next.name);
                warn!(
                    places,
                    lost,
                    garbled,
                    "dropping: of {places} cells of this mix's loops {lost} did not come back from {next}, and {garbled} came \
                 as noise, more than its links explain: an outage, a hop behind this one was restarted, or somebody \
                 drops cells on purpose"
                );
            }
            Cause::NextReportsNothing => {
                let next = self.next.as_ref().map_or("the next hop", |next| &next.name);
                warn!(
                    peer = next,
                    "dropping: no report of {next} has come for 1000 rounds, though most of its cells did: somebody drops them on \
                 purpose, or {next} does not send them; ask its operator"
                );
            }
            Cause::LoopSetups { batch, sent, failed } => warn!(
                batch,
                sent,
                failed,
                "dropping: {failed} of {sent} setups of this mix's loops for batch {batch} failed, which losses do not \
             explain: a hop behind this one was restarted or lacks the bundle of keys, or somebody drops setups"
            ),
        }
    }

    /// Mix 1 has announced the channels of a batch.
    fn announced(&mut self, company: Company) {
        self.company = Some(company);
        self.full = self.full_now().or(self.full);
    }

    /// Why a setup has failed. A full class comes first.
    pub(super) fn reason(&self, why: Failure) -> String {
        let company = self.company.zip(self.seats).map(|(company, seats)| CompanyReport::new(company, seats));
        match company.filter(|company| why == Failure::NoAck && company.is_full()) {
            Some(company) => format!("{}; {}", company.full("is"), reason(why)),
            None => reason(why),
        }
    }

    /// For how long the alarm lasts.
    fn minutes(&self) -> String {
        format!("{} minutes", self.alarm_lasts.as_secs().div_ceil(60))
    }

    /// The company that leaves this entry, whose latest setup had no ack, no seat.
    fn full_now(&self) -> Option<CompanyReport> {
        let company = self.company.zip(self.seats).filter(|_| self.lacks_ack);
        company.map(|(company, seats)| CompanyReport::new(company, seats)).filter(|company| company.is_full())
    }

    /// The latest such company, of the time of the alarm `dropping` while that is up.
    pub(in crate::runtime) fn full_since_setup(&self) -> Option<CompanyReport> {
        self.full
    }

    /// Takes the cells of setups that Mix 1 has refused so far for want of a seat, and the channels of the running
    /// batch.
    pub(in crate::runtime) fn seats(&mut self, now: Duration, refused: u64, channels: usize) {
        let more = refused > std::mem::replace(&mut self.cells_without_seat, refused);
        let Some(seats) = self.seats.filter(|_| more && self.position == 1) else { return };
        if self.no_seat.occurs(now) {
            warn!(
                channels,
                seats,
                "setups of users are refused for want of seats in a coming batch: all {seats} are taken, or as many as users \
                 behind one address (/32 or /48) get, at most half ({channels} channels are in the running batch): a chain \
                 with more `seats` takes more users"
            );
        }
    }
}
