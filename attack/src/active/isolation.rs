//! Detector of the n-1 attack: while all others are held, only the target's flow has datagrams.

use super::{LONGEST_DELAY, plan::Isolation};

/// Nanoseconds between delays that are tried.
const STEP: u64 = 5_000_000;

/// For each flow: its datagrams while others are held, above the mean of all other flows and in their deviations. The
/// delay of the chain is that at which the windows are most quiet.
pub(super) fn alone(flows: &[Vec<u64>], plan: &Isolation, until: u64) -> Vec<f64> {
    let windows: Vec<(u64, u64)> = (0..until / plan.cycle + 1)
        .map(|cycle| plan.bounds(cycle))
        .filter(|&(_, end)| end + LONGEST_DELAY < until)
        .collect();
    // Cells that were on their way when the window began still leave for a while, and held ones come at its end: a
    // quarter of the window is left out at either end.
    let guard = plan.window / 4;
    let counts = |delay: u64| -> Vec<f64> {
        let between = |flow: &[u64], from: u64, to: u64| {
            flow.partition_point(|&at| at < to) - flow.partition_point(|&at| at < from)
        };
        let in_windows = |flow: &Vec<u64>| {
            windows.iter().map(|&(begin, end)| between(flow, begin + delay + guard, end + delay - guard)).sum::<usize>()
                as f64
        };
        flows.iter().map(in_windows).collect()
    };
    let quietest = (0..=LONGEST_DELAY)
        .step_by(STEP as usize)
        .map(counts)
        .min_by(|a, b| a.iter().sum::<f64>().total_cmp(&b.iter().sum()))
        .unwrap_or_default();
    let others = (quietest.len().max(2) - 1) as f64;
    let (sum, squares) = quietest.iter().fold((0.0, 0.0), |(sum, squares), n| (sum + n, squares + n * n));
    let above = |&n: &f64| {
        let mean = (sum - n) / others;
        let variance = (squares - n * n) / others - mean * mean;
        (n - mean) / (variance + 0.25).sqrt()
    };
    quietest.iter().map(above).collect()
}
