//! What a class costs its users, from the record alone: delay and bytes.

use attack::{Place, Record, Seen};
use serde::{Deserialize, Serialize};

use crate::results::{Spread, histogram};

/// Costs of a record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Costs {
    /// Forward delay of the adversary's own datagrams, from its access link to its destination.
    pub(crate) delay: Spread,
    /// Bytes of UDP payload on an access link in an hour: forward and backward, means of the users.
    pub(crate) access_bytes_per_hour: [u64; 2],
    /// The same of a flow between the exit and its destination.
    pub(crate) flow_bytes_per_hour: [u64; 2],
}

impl Costs {
    pub(super) fn of(record: &Record) -> Costs {
        let mut delays = histogram();
        for passage in &record.probe {
            delays.saturating_record(passage.left.saturating_sub(passage.entered));
        }
        let hours = record.length as f64 / 3.6e12;
        Costs {
            delay: Spread::of_times(&delays),
            access_bytes_per_hour: per_hour(&record.access, hours),
            flow_bytes_per_hour: per_hour(&record.flows, hours),
        }
    }
}

/// Mean of the places.
fn per_hour(places: &[Place], hours: f64) -> [u64; 2] {
    let sum = |trace: &[Seen]| trace.iter().map(|seen| f64::from(seen.bytes)).sum::<f64>();
    let sums = places.iter().fold([0.0, 0.0], |[forward, backward], place| {
        [forward + sum(&place.forward), backward + sum(&place.backward)]
    });
    sums.map(|sum| (sum / hours.max(f64::MIN_POSITIVE) / places.len().max(1) as f64).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use attack::Passage;

    #[test]
    fn costs_are_means_of_the_users_for_an_hour() {
        let place = |bytes: &[u32]| Place {
            forward: bytes.iter().map(|&bytes| Seen { at: 0, bytes }).collect(),
            backward: vec![],
        };
        let record = Record {
            length: 36_000_000_000,
            access: vec![place(&[1000, 1000]), place(&[2000])],
            flows: vec![place(&[100]), place(&[])],
            probe: vec![Passage { entered: 1_000_000, left: 6_000_000 }; 3],
            ..Record::default()
        };
        let costs = Costs::of(&record);
        assert_eq!((costs.access_bytes_per_hour, costs.flow_bytes_per_hour), ([200_000, 0], [5000, 0]));
        assert_eq!(costs.delay.count, 3);
        assert!((costs.delay.p50 - 5000.0).abs() < 10.0, "{}", costs.delay.p50);
    }
}
