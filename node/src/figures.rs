//! What a paced class carries, costs and adds, in the terms of its users.

use dataplane::MILLI;
use dataplane::paced::default_max_age;
use dataplane::paced::entry::PREPARE;
use wire::cell::Direction;
use wire::frames::{DGRAM_OVERHEAD, fresh_max};
use wire::paced::{ControlSlots, PacedTerms, SALT_LEN};
use wire::setup::Suite;

/// Fewer channels than these, two calls, hide nobody.
pub const HIDES_FROM: u16 = 4;
/// Bytes of the IPv4 and UDP headers of a cell.
const IP_UDP: u64 = 28;
/// Rounds over which the highest rate is taken.
const PEAK_ROUNDS: usize = 64;

/// Warnings of terms that hide little, in lines for a screen.
pub fn warnings(terms: &PacedTerms) -> Vec<String> {
    let (n_min, mut all) = (terms.n_min, Vec::new());
    if n_min < HIDES_FROM {
        all.push(format!(
            "n_min = {n_min} lets batches of fewer than {HIDES_FROM} channels through, which hide\n\
             nobody: leave it at 8 for a real chain"
        ));
    }
    match (terms.copies, terms.repeat) {
        (1, false) => {
            all.push("copies = 1: each cell that is lost on an access link shows at the destination".to_owned())
        }
        (1, true) => all.push(
            "copies = 1: setups, acks and clocks have no copies, and two lost cells in a row show\nat the destination"
                .to_owned(),
        ),
        _ => {}
    }
    if terms.loops == 0 {
        all.push("loops = 0: no mix raises an alarm, and the exit counts pairs of users exactly".to_owned());
    }
    all
}

/// A value for each way of using a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerUse<T> {
    /// To a destination.
    pub forward: T,
    /// Back from it.
    pub backward: T,
    /// Each way between two users who meet.
    pub meeting: T,
}

/// What a paced class means to its users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Most kbit/s of datagrams of the length that fits best, from one user.
    pub kbit_s: PerUse<u64>,
    /// MB an hour on a user's access link, each way, with copies, control cells and the headers of IPv4 and UDP. It is
    /// the same whatever the user sends.
    pub mb_per_hour: u64,
    /// Most kbit/s on the same link, over 64 rounds: while channels are set up.
    pub peak_kbit_s: u64,
    /// Most ms that a datagram waits for its round and in the nodes, in addition to the access paths. Between users the
    /// most is that of a datagram whose own cell was lost, and which its repeat has brought.
    pub delay_ms: PerUse<u64>,
    /// Most ms that a datagram waits that finds no room in its round, unless it is configured.
    pub queue_ms: u64,
    /// Length of a batch. An entry that starts carries data after one to two of them. The hops of a new chain must have
    /// signed their setup keys in an interval before that.
    pub batch_ms: u64,
    /// Bytes of the longest datagram in one cell, to a destination and between users. With repeat its cell is every
    /// second one.
    pub longest: [usize; 2],
    /// With repeat: the same in every cell.
    pub in_each_cell: Option<[usize; 2]>,
}

impl Figures {
    /// Those of a class whose terms were checked, in a chain of `hops` hops.
    pub fn of(terms: &PacedTerms, suite: Suite, hops: usize) -> Figures {
        let times = terms.timetable(hops);
        let period_ms = u64::from(terms.period_ms);
        let payload = terms.class.size().payload();
        let inner = [payload, payload - SALT_LEN];

        // With repeat, a datagram of full length fits every second cell: SPEC 9.11.7.
        let longest = |inner, repeat| fresh_max(inner, repeat) - DGRAM_OVERHEAD;
        let kbit_s = |inner, repeat| {
            let bits = 8 * longest(inner, repeat) as u64 * u64::from(terms.cells);
            bits / (period_ms * if repeat { 2 } else { 1 })
        };
        let half = |inner| fresh_max(inner, true) / 2 - DGRAM_OVERHEAD;

        let rounds = u64::from(terms.rounds);
        let slots = ControlSlots::new(terms, suite, hops, 1, Direction::Forward);
        let of_round = |round| u64::from(terms.cells) + slots.of(&times, round).total() as u64;
        let in_rounds: Vec<u64> = (0..rounds).map(of_round).collect();
        let bytes = |cells: u64| cells * u64::from(terms.copies) * (terms.class.cell_len() as u64 + IP_UDP);
        let most = in_rounds.windows(PEAK_ROUNDS).map(|cells| cells.iter().sum()).max().unwrap_or(0);

        let offset = |direction, hop| times.offset(direction, hop) / MILLI;
        let to_exit = offset(Direction::Forward, hops);
        let to_user = offset(Direction::Backward, 1);
        // A round takes what came before it was prepared.
        let round = period_ms + PREPARE / MILLI;
        let repeated = if terms.repeat { period_ms } else { 0 };
        Figures {
            kbit_s: PerUse {
                forward: kbit_s(payload, terms.repeat),
                backward: kbit_s(payload, false),
                meeting: kbit_s(payload - SALT_LEN, terms.repeat),
            },
            mb_per_hour: (bytes(in_rounds.iter().sum()) as f64 * 3.6 / (rounds * period_ms) as f64).round() as u64,
            peak_kbit_s: (8 * bytes(most)).div_ceil(PEAK_ROUNDS as u64 * period_ms),
            delay_ms: PerUse {
                forward: round + to_exit + repeated,
                // The exit seals the answers of a round when it releases that round forward.
                backward: period_ms + to_user - to_exit,
                meeting: round + to_user + repeated,
            },
            queue_ms: default_max_age(terms).as_millis() as u64,
            batch_ms: rounds * period_ms,
            longest: inner.map(|inner| longest(inner, terms.repeat)),
            in_each_cell: terms.repeat.then(|| inner.map(half)),
        }
    }

    /// What it carries of what users send.
    pub fn carries(&self) -> String {
        let PerUse { forward, meeting, .. } = self.kbit_s;
        format!("{forward} kbit/s to destinations or {meeting} between users")
    }

    /// All that a user wants to know in less than a line.
    pub fn brief(&self) -> String {
        let Figures { kbit_s, mb_per_hour, delay_ms, .. } = self;
        format!(
            "{} kbit/s out, {} back, {} inside; {mb_per_hour} MB/h; adds {}, {}, {} ms",
            kbit_s.forward, kbit_s.backward, kbit_s.meeting, delay_ms.forward, delay_ms.backward, delay_ms.meeting
        )
    }

    /// In words: what it does, and how much.
    pub fn lines(&self) -> [(&'static str, String); 6] {
        let Figures { kbit_s, mb_per_hour, peak_kbit_s, delay_ms, queue_ms, batch_ms, longest, in_each_cell } = self;
        let [out, inside] = longest;
        let PerUse { forward, backward, meeting } = kbit_s;
        let carries = format!("{forward} kbit/s to destinations, {backward} back, {meeting} between users");
        let costs = format!("{mb_per_hour} MB an hour each way, sending or not; at most {peak_kbit_s} kbit/s");
        let PerUse { forward, backward, meeting } = delay_ms;
        let adds = format!("at most {forward} ms to destinations, {backward} ms back, {meeting} ms between users");
        let queues = format!("what finds no room in its round, for {queue_ms} ms by default");
        let seconds = |ms: u64| (ms + 500) / 1000;
        let (least, most) = (seconds(*batch_ms), seconds(2 * batch_ms));
        let starts = format!("{least} to {most} s after an entry, or up to an interval later");
        let fits = match in_each_cell {
            None => format!("datagrams of {out} bytes in a cell, between users {inside}"),
            Some([half, half_inside]) => {
                format!("{half} bytes a cell or {out} every two; between users {half_inside} or {inside}")
            }
        };
        [("carries", carries), ("fits", fits), ("costs", costs), ("adds", adds), ("queues", queues), ("starts", starts)]
    }

    /// These lines below the name of the class.
    pub fn text(&self, terms: &PacedTerms) -> String {
        let mut text = format!("class {} ({}):\n\n", terms.name, terms.class);
        for (does, how_much) in self.lines() {
            text += &format!("  {does:<7}  {how_much}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ceremony::profile::{ClassChoice, for_hops, profiles};

    fn figures(text: &str, hops: usize) -> Figures {
        let ClassChoice::Paced(terms) = text.parse().unwrap() else { panic!("{text} is a paced class") };
        Figures::of(&for_hops(terms, hops), Suite::Hybrid, hops)
    }

    #[test]
    fn voice_has_the_figures_of_the_design() {
        let plain = figures("voice:repeat=0,steps_ms=2", 4);
        assert_eq!(plain.kbit_s, PerUse { forward: 162, backward: 162, meeting: 156 });
        assert_eq!(plain.delay_ms, PerUse { forward: 36, backward: 17, meeting: 43 });
        assert_eq!((plain.mb_per_hour, plain.batch_ms), (235, 20_480));
        let repeated = figures("voice:steps_ms=2", 4);
        assert_eq!(repeated.kbit_s, PerUse { forward: 80, backward: 162, meeting: 76 });
        assert_eq!(repeated.delay_ms, PerUse { forward: 46, backward: 17, meeting: 53 });
        assert_eq!((plain.longest, plain.in_each_cell), ([203, 195], None));
        assert_eq!((repeated.longest, repeated.in_each_cell), ([200, 192], Some([97, 93])));
        assert_eq!((repeated.queue_ms, figures("voice-lite", 4).queue_ms), (60, 120));
        assert_eq!(
            figures("voice:copies=3,steps_ms=2,repeat=0", 4).delay_ms.forward,
            46,
            "a copy more is a round more"
        );
        assert_eq!(figures("voice", 8).mb_per_hour, 226);
        assert_eq!(figures("voice-lite", 4).mb_per_hour, 117);
    }

    /// Two copies of a cell of 268 bytes with its headers in every round of 10 ms, and of the control slots: one in 8
    /// rounds, and one in 186 of 2048.
    #[test]
    fn cost_is_that_of_the_cells_of_an_hour() {
        let a_second: f64 = 100.0 * 2.0 * 268.0 * (1.0 + 1.0 / 8.0 + 186.0 / 2048.0);
        let hour = (a_second * 3600.0 / 1e6).round() as u64;
        assert_eq!(figures("voice", 4).mb_per_hour, hour);
    }

    #[test]
    fn every_profile_fits_chains_of_all_lengths() {
        for profile in profiles() {
            for hops in 2..=8 {
                let lines = figures(profile, hops).lines();
                let longest = lines.iter().map(|(_, text)| text.len()).max();
                assert!(longest <= Some(64), "{longest:?} columns: {lines:?}");
            }
        }
        assert_eq!(figures("video", 4).kbit_s.forward, 2116);
        assert_eq!(figures("game", 4).kbit_s.forward, 324);
        assert_eq!(["game", "video"].map(|name| figures(name, 4).mb_per_hour), [428, 2214]);
        // Voice: in rounds of 10 ms a cell, a shard of a setup and, in every eighth, a link cell, each twice.
        let peaks = ["voice", "voice-lite", "game", "video"].map(|name| figures(name, 4).peak_kbit_s);
        assert_eq!(peaks[0], 100 * 2 * 268 * 8 * 17 / 8 / 1000 + 1);
        assert_eq!(peaks, [912, 456, 1340, 6940]);
    }
}
