//! Loops of a mix: channels of its own through the hops behind it (SPEC 9.14).

use std::collections::HashSet;

use rand::RngExt;
use rand_chacha::ChaCha20Rng;
use wire::paced::{Meeting, MeetingSecret};

use super::PacedHop;
use crate::counters::Counters;
use crate::draw::draw_secret;
use crate::paced::own::{Failure, Outcome, Own};
use crate::paced::queue::Item;

impl PacedHop {
    /// Sends the setups of all loops. A number of pairs that is drawn at random meets. Each of the others has a meeting
    /// of its own, to which nobody comes: its bodies look like random ones, and take as long to make as those of pairs.
    /// If it is too late for setups, all fail, and send all the same.
    pub(super) fn send_loops(&mut self, rng: &mut ChaCha20Rng, counters: &mut Counters, is_late: bool) -> Vec<Outcome> {
        if is_late {
            let (batch, loops) = (self.coming.batch, 2 * self.config.terms.loops);
            let fail = |_| Outcome::Failed { batch, channel: self.draw_number(rng), why: Failure::NotReady };
            return (0..loops).map(fail).collect();
        }
        let mut failed = Vec::new();
        let pairs = rng.random_range(0..=self.config.terms.loops);
        for pair in 0..self.config.terms.loops {
            let first = self.draw_meeting(rng);
            let second = (pair >= pairs).then(|| self.draw_meeting(rng));
            let pair = (pair < pairs).then_some(pair);
            failed.extend(self.send_loop(rng, counters, (pair, &first)));
            failed.extend(self.send_loop(rng, counters, (pair, second.as_ref().unwrap_or(&first))));
        }
        failed
    }

    fn draw_meeting(&self, rng: &mut ChaCha20Rng) -> Meeting {
        let (config, first) = (&self.config, self.config.times.first(self.coming.batch));
        MeetingSecret::new(*draw_secret(rng).expose()).meeting(&config.chain_id, config.terms.class, first)
    }

    /// Sends the setup of one loop, if it can be made.
    fn send_loop(
        &mut self,
        rng: &mut ChaCha20Rng,
        counters: &mut Counters,
        (pair, meeting): (Option<u8>, &Meeting),
    ) -> Option<Outcome> {
        let (batch, channel) = (self.coming.batch, self.draw_number(rng));
        let (config, code) = (&self.config, self.config.code(self.position + 1));
        let hops = self.bundles.get(config.interval_of(batch)).map(|hops| &hops[self.position..]);
        let why = match hops.map(|hops| Own::build(rng, config, (batch, channel), hops, Some(meeting), code)) {
            Some(Ok((own, contents))) => {
                counters.setups += 1;
                self.coming.loops.push((pair, own));
                self.send(Item { link: None, channel, contents });
                return None;
            }
            Some(Err(_)) => Failure::BadBundle,
            None => Failure::NoBundle,
        };
        Some(Outcome::Failed { batch, channel, why })
    }

    /// Reads the acks of all loops, when no more come. One whose pair has lost the other is given up: it would get
    /// noise. If this mix has skipped too many rounds for setups to succeed, they count as not sent:
    /// acks come three times, a third of the phase apart.
    pub(super) fn finish_loops(&mut self) -> Vec<Outcome> {
        let (config, code) = (&self.config, self.config.code((self.position + 1).min(self.config.shape.hops())));
        let ([setups, acks], used) = (self.coming.skipped, config.times.used());
        let has_stalled = setups * code.total() as u64 > used * code.parity as u64 || 2 * acks > used;
        let finish = |(pair, own): (Option<u8>, Own)| {
            let answer = self.coming.answers.remove(&own.channel).expect("it was sent");
            let outcome = match own.finish(config, answer) {
                Outcome::Failed { batch, channel, .. } if has_stalled => {
                    Outcome::Failed { batch, channel, why: Failure::NotReady }
                }
                other => other,
            };
            (pair, outcome)
        };
        let finished: Vec<_> = std::mem::take(&mut self.coming.loops).into_iter().map(finish).collect();
        let of = |(pair, outcome): &(Option<u8>, Outcome)| pair.filter(|_| matches!(outcome, Outcome::Failed { .. }));
        let broken: HashSet<u8> = finished.iter().filter_map(of).collect();
        let give_up = |(pair, outcome): (Option<u8>, Outcome)| match outcome {
            Outcome::Ready { batch, channel, .. } if pair.is_some_and(|pair| broken.contains(&pair)) => {
                Outcome::Failed { batch, channel, why: Failure::Alone }
            }
            other => other,
        };
        finished.into_iter().map(give_up).collect()
    }
}
