//! Warns before descriptors expire: 30, 7 and 1 day before, and when it has happened.

use control::trust::TrustStatus;
use tracing::warn;

use crate::ceremony::{span, utc};

/// Days before the end of a descriptor at which there is a warning.
const DAYS: [u64; 3] = [1, 7, 30];
const DAY_S: u64 = 86_400;
/// The end of a line about an expired descriptor if all of them have expired.
const WRONG_CLOCK: &str = "; all descriptors have expired by this host's clock, so check that first (`date -u`)";

/// How near the end of a descriptor is: the smallest of `DAYS` that covers the rest, 0 once it has expired. `None`:
/// there is time.
pub fn stage(not_after_s: u64, now_s: u64) -> Option<u64> {
    let left = not_after_s.saturating_sub(now_s);
    if left == 0 {
        return Some(0);
    }
    DAYS.into_iter().find(|days| left <= days * DAY_S)
}

/// What was warned of.
#[derive(Default)]
pub(super) struct Expiry {
    /// Revision and stage, by hop - 1.
    warned: Vec<(u64, Option<u64>)>,
}

impl Expiry {
    /// Logs a line for each descriptor that has come nearer to its end. `position` is this node's, `names` are those of
    /// the hops.
    pub(super) fn check(&mut self, status: &TrustStatus, now_s: u64, position: usize, names: &[String]) {
        self.warned.resize(status.hops.len(), (0, None));
        let mut known = status.hops.iter().filter(|hop| hop.revision > 0);
        let hint = if known.all(|hop| hop.not_after <= now_s) { WRONG_CLOCK } else { "" };
        for (at, (hop, warned)) in status.hops.iter().zip(&mut self.warned).enumerate() {
            if hop.revision == 0 {
                continue;
            }
            let now = (hop.revision, stage(hop.not_after, now_s));
            if std::mem::replace(warned, now) == now {
                continue;
            }
            let (_, Some(stage)) = now else { continue };
            let (left, until) = (hop.not_after.saturating_sub(now_s), utc(hop.not_after));
            let (name, is_own) = (&names[at], at + 1 == position);
            match (stage, is_own) {
                (0, true) => warn!(
                    "this node's descriptor expired on {until}: it signs nothing, and nobody can open channels through it; \
                     run `eddy renew` and reload with SIGHUP{hint}"
                ),
                (0, false) => warn!(
                    peer = name,
                    "the descriptor of {name} expired on {until}: no new channels until its operator renews it{hint}"
                ),
                (_, true) => warn!(
                    "this node's descriptor expires in {}, on {until}: run `eddy renew` and reload with SIGHUP",
                    span(left)
                ),
                (_, false) => {
                    warn!(peer = name, "the descriptor of {name} expires in {}, on {until}", span(left));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_come_30_7_and_1_day_before_the_end() {
        let end = 100 * DAY_S;
        let stages = [31, 30, 8, 7, 2, 1, 0].map(|left| stage(end, end - left * DAY_S));
        assert_eq!(stages, [None, Some(30), Some(30), Some(7), Some(7), Some(1), Some(0)]);
        assert_eq!((stage(end, end - 30 * DAY_S - 1), stage(end, end + 1)), (None, Some(0)));
    }
}
