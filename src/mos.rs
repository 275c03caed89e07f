//! Call quality: the E-model of ITU-T G.107 with its defaults, for G.711 with packet loss concealment (G.113,
//! Appendix I: Ie = 0, Bpl = 25.1). `R = 93.2 - Id - Ie_eff`, with `Ie_eff = Ie + (95 - Ie) * Ppl / (Ppl + Bpl)` for
//! random loss and the approximation of Id by Cole and Rosenbluth (Voice over IP performance monitoring, 2001).
//!
//! `eddy-bench` and `eddy chain --class voice` use it.

/// A frame is recorded in full before it is sent.
const FRAME_MS: f64 = 20.0;

/// The mean opinion score of a call. Its playout buffer waits for the slowest datagram, which arrives `slowest_ms`
/// after it was due; `lost` is the share of datagrams that never arrive.
pub fn of_call(slowest_ms: f64, lost: f64) -> f64 {
    let delay = slowest_ms + FRAME_MS;
    let impaired = 0.024 * delay + if delay > 177.3 { 0.11 * (delay - 177.3) } else { 0.0 };
    let percent = 100.0 * lost;
    let rating = 93.2 - impaired - 95.0 * percent / (percent + 25.1);
    of_rating(rating)
}

/// The mean opinion score of a call whose playout buffer has the best length: what comes later than that is lost, too.
/// `delays_ms` are those of the datagrams that arrived, in ascending order; `sent` were sent.
pub fn of_best_buffer(delays_ms: &[f64], sent: usize) -> f64 {
    let of = |(late, delay): (usize, &f64)| of_call(*delay, 1.0 - (late + 1).min(sent) as f64 / sent as f64);
    delays_ms.iter().enumerate().map(of).fold(1.0, f64::max)
}

/// The score of a rating R (G.107, Annex B).
fn of_rating(r: f64) -> f64 {
    match r {
        r if r <= 0.0 => 1.0,
        r if r >= 100.0 => 4.5,
        r => 1.0 + 0.035 * r + r * (r - 60.0) * (100.0 - r) * 7e-6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_match_g107_table_b1() {
        for (rating, score) in [(50.0, 2.58), (60.0, 3.10), (70.0, 3.60), (80.0, 4.03), (90.0, 4.34), (93.2, 4.41)] {
            assert!((of_rating(rating) - score).abs() < 0.01, "{rating}: {}", of_rating(rating));
        }
    }

    #[test]
    fn delay_and_loss_lower_the_score() {
        let best = of_call(0.0, 0.0);
        assert!((4.39..4.42).contains(&best), "{best}");
        assert!(of_call(150.0, 0.0) < best && of_call(0.0, 0.01) < best);
        assert!(of_call(400.0, 0.2) < 2.5 && of_call(1e6, 1.0) == 1.0);
    }

    #[test]
    fn best_buffer_does_not_wait_for_the_slowest() {
        let mut delays = vec![30.0; 999];
        delays.push(5000.0);
        assert_eq!(of_best_buffer(&delays, 1000), of_call(30.0, 0.001));
        assert_eq!(of_best_buffer(&[30.0; 10], 10), of_call(30.0, 0.0));
        assert_eq!(of_best_buffer(&[], 10), 1.0);
    }
}
