//! The clock of a link that sends at regular times, fitted to what it sends.

use crate::math::median;

/// The shortest period of a paced link, in nanoseconds.
const SHORTEST_PERIOD: f64 = 1e6;

/// A slot every `period` nanoseconds, one of them `phase` nanoseconds after the record began.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    pub phase: f64,
    pub period: f64,
    /// How long after its slot each cell is, in nanoseconds. Negative where it is before it.
    pub late: Vec<f64>,
}

impl Clock {
    /// The clock that fits the times of a link's cells. `None` if they have no [`period`].
    pub(crate) fn of(times: &[u64]) -> Option<Self> {
        let mut period = period(times)?;
        // The slot of each cell, counted from cell to cell so that a period which is slightly off does not add up.
        let mut number = 0.0;
        let mut points: Vec<(f64, f64)> = Vec::with_capacity(times.len());
        for (i, &at) in times.iter().enumerate() {
            if i > 0 {
                number += ((at - times[i - 1]) as f64 / period).round();
            }
            points.push((number, at as f64));
        }
        // A line through the half of the cells that is nearest to it, again and again.
        let mut phase = times[0] as f64;
        let mut kept = points.clone();
        for _ in 0..4 {
            (phase, period) = line(&kept).unwrap_or((phase, period));
            let off = |point: &(f64, f64)| (point.1 - phase - period * point.0).abs();
            let half = median(&mut points.iter().map(off).collect::<Vec<f64>>());
            kept = points.iter().filter(|point| off(point) <= half).copied().collect();
        }
        let late = points.iter().map(|&(n, at)| at - phase - period * n).collect();
        Some(Self { phase, period, late })
    }
}

/// The period of a link: the median of its gaps without those within a slot. `None` if that is shorter than a slot of
/// any paced link: then the link sends in bursts.
pub(crate) fn period(times: &[u64]) -> Option<f64> {
    let mut gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
    if gaps.len() < 16 {
        return None;
    }
    gaps.sort_unstable_by(f64::total_cmp);
    let long = gaps[gaps.len() * 9 / 10] / 2.0;
    gaps.retain(|&gap| gap > long);
    gaps.get(gaps.len() / 2).copied().filter(|&period| period >= SHORTEST_PERIOD)
}

/// The line of least squares through points: its value at zero and its slope.
fn line(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let count = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0 / count, y + point.1 / count));
    let square: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let both: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    (square > 0.0).then(|| (y - both / square * x, both / square))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_without_a_period_have_none() {
        assert_eq!(period(&[5_000_000; 100]), None, "one burst");
        let bursts: Vec<u64> = (0..1000).map(|i| (i / 20) * 50_000_000 + (i % 20) * 10_000).collect();
        assert_eq!(period(&bursts), None, "bursts of 20 cells");
        let paced: Vec<u64> = (0..100).map(|i| i * 10_000_000).collect();
        assert_eq!(period(&paced), Some(1e7));
    }

    #[test]
    fn clock_with_drift_and_late_cells_is_fitted() {
        let slot = |i: u64| 3_000_000.0 + i as f64 * 10_000_500.0;
        let times: Vec<u64> =
            (0..1000).filter(|i| i % 97 != 5).map(|i| slot(i) as u64 + (i % 10 / 9) * 400_000).collect();
        let clock = Clock::of(&times).unwrap();
        assert!((clock.period - 10_000_500.0).abs() < 1.0 && (clock.phase - 3e6).abs() < 100.0, "{clock:?}");
        let late = clock.late.iter().filter(|late| (**late - 4e5).abs() < 1e3).count();
        assert_eq!(late, times.len() - clock.late.iter().filter(|late| late.abs() < 1e3).count());
        assert!((90..=100).contains(&late), "{late}");
    }
}
