//! Releases of a mix, as the wires show them.
//!
//! A mix that empties its pool sends bursts: between two of them nothing leaves. So what arrived since the release
//! before is what a release sends, and cells can be counted through: the first n cells that arrived are in the
//! releases that sent the first n. Losses and cells of the mix's own shift the count, slowly; the clock keeps it near.

/// Gaps shorter than this never part two releases, in nanoseconds: a send call of a busy machine takes as long.
const SHORTEST_PART: u64 = 1 << 16;

/// How far the count may move the border between two releases away from where the clock has it, in nanoseconds.
const SLACK: u64 = 1_000_000;

/// Releases on either side whose counts decide how many cells were lost up to a release.
const NEIGHBOURS: usize = 8;

/// Releases that the delay of a stage is fitted to.
const FITTED: usize = 2_000;

/// The bursts of a link in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Releases {
    /// When each begins, in nanoseconds.
    pub(crate) starts: Vec<u64>,
    /// Cells on the link up to the end of each.
    pub(crate) sent: Vec<usize>,
}

impl Releases {
    /// Finds the bursts among times in order: two are parted by a gap that belongs to the longer ones.
    pub(crate) fn of(times: &[u64]) -> Self {
        let part = parting_gap(times);
        let mut releases = Self::default();
        for (i, &at) in times.iter().enumerate() {
            if i == 0 || at - times[i - 1] > part {
                releases.starts.push(at);
                releases.sent.push(i);
            }
            if let Some(sent) = releases.sent.last_mut() {
                *sent = i + 1;
            }
        }
        releases
    }

    /// The release that each arrival is in, for arrivals in order. Those after the last release have none and are left
    /// out at the end.
    pub(crate) fn assign(&self, arrivals: &[u64]) -> Vec<u32> {
        let delay = self.delay(arrivals);
        let arrived = |before: u64| arrivals.partition_point(|&at| at < before);
        let starts: Vec<u64> = self.starts.iter().map(|start| start.saturating_sub(delay)).collect();
        // Cells that arrived and have not left, after each release: those lost so far, and a few at the border.
        let held: Vec<i64> =
            starts.iter().zip(&self.sent).map(|(&start, &sent)| arrived(start) as i64 - sent as i64).collect();
        let mut releases = Vec::with_capacity(arrivals.len());
        for (r, &start) in starts.iter().enumerate() {
            let mut near = held[r.saturating_sub(NEIGHBOURS)..held.len().min(r + NEIGHBOURS + 1)].to_vec();
            let middle = near.len() / 2;
            let lost = *near.select_nth_unstable(middle).1;
            let counted = usize::try_from(self.sent[r] as i64 + lost).unwrap_or(0);
            let border = counted.clamp(arrived(start.saturating_sub(SLACK)), arrived(start + SLACK));
            releases.resize(releases.len().max(border), r as u32);
        }
        releases
    }

    /// The release that is under way at `at`, which is the last that began by then.
    pub(crate) fn under_way(&self, at: u64) -> Option<usize> {
        self.starts.partition_point(|&start| start <= at).checked_sub(1)
    }

    /// The time between a place's tap and the pool behind it, for which cells in and cells out agree best.
    fn delay(&self, arrivals: &[u64]) -> u64 {
        let starts = &self.starts[..self.starts.len().min(FITTED)];
        let variation = |delay: u64| {
            let (mut i, mut before, mut sum) = (0, None, 0);
            for (&start, &sent) in starts.iter().zip(&self.sent) {
                while i < arrivals.len() && arrivals[i] + delay < start {
                    i += 1;
                }
                let held = i as i64 - sent as i64;
                sum += before.map_or(0, |before: i64| (held - before).abs());
                before = Some(held);
            }
            sum
        };
        let fine = (0..20).map(|i| i * 100_000);
        let coarse = (4..240).map(|i| i * 500_000);
        fine.chain(coarse).min_by_key(|&delay| (variation(delay), delay)).unwrap_or(0)
    }
}

/// The gap that divides the gaps of a link best into short ones, within a release, and long ones, between releases, on
/// a logarithmic scale: Otsu's threshold (N. Otsu, A Threshold Selection Method from Gray-Level Histograms, IEEE
/// Transactions on Systems, Man, and Cybernetics 1979).
fn parting_gap(times: &[u64]) -> u64 {
    const STEPS: f64 = 4.0;
    let step = |gap: u64| ((gap.max(SHORTEST_PART) as f64 / SHORTEST_PART as f64).log2() * STEPS) as usize;
    let mut histogram = [0.0; 96];
    for pair in times.windows(2) {
        histogram[step(pair[1] - pair[0]).min(95)] += 1.0;
    }
    let total: f64 = histogram.iter().sum();
    let mean: f64 = histogram.iter().enumerate().map(|(i, n)| i as f64 * n).sum();
    let (mut below, mut sum, mut best, mut border) = (0.0, 0.0, 0.0, (0, 0));
    for (i, n) in histogram.iter().enumerate() {
        below += n;
        sum += i as f64 * n;
        let above = total - below;
        if below == 0.0 || above == 0.0 {
            continue;
        }
        let between = below * above * (sum / below - (mean - sum) / above).powi(2);
        // Empty steps do not change it: the border is in their middle.
        if between > best * (1.0 + 1e-9) {
            (best, border) = (between, (i, i));
        } else if *n == 0.0 && border.1 + 1 == i {
            border.1 = i;
        }
    }
    let middle = (border.0 + border.1) as f64 / 2.0 + 1.0;
    (SHORTEST_PART as f64 * (middle / STEPS).exp2()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_between_bursts_part_releases() {
        let times: Vec<u64> = (0..100).flat_map(|r| (0..7).map(move |c| r * 5_000_000 + c * 9_000)).collect();
        let releases = Releases::of(&times);
        assert_eq!(releases.starts.len(), 100);
        assert_eq!(releases.sent[1], 14);
    }

    #[test]
    fn arrivals_are_in_the_next_release() {
        let arrivals: Vec<u64> = (0..1000).map(|i| i * 730_000).collect();
        let starts: Vec<u64> = (1..140).map(|r| r * 5_000_000 + 20_000).collect();
        let cells = |start: &u64| arrivals.iter().filter(|&&at| at < *start && at + 5_000_000 >= *start).count();
        let times: Vec<u64> = starts.iter().flat_map(|start| vec![*start; cells(start)]).collect();
        let assigned = Releases::of(&times).assign(&arrivals);
        assert!(assigned.len() > 900);
        for (at, &release) in arrivals.iter().zip(&assigned).skip(1) {
            assert!(starts[release as usize] > *at && starts[release as usize] <= at + 5_000_000);
        }
    }

    #[test]
    fn losses_shift_the_count_for_a_short_time() {
        let arrivals: Vec<u64> = (0..20_000).map(|i| i * 100_000 + 50_000).collect();
        let times: Vec<u64> = (0..20_000_u64)
            .filter(|i| i % 997 != 0)
            .map(|i| (i * 100_000 / 5_000_000 + 1) * 5_000_000 + 7_000)
            .collect();
        let assigned = Releases::of(&times).assign(&arrivals);
        let wrong = assigned.iter().enumerate().filter(|&(i, &r)| i / 50 != r as usize).count();
        assert!(wrong * 100 < assigned.len(), "{wrong} of {}", assigned.len());
    }
}
