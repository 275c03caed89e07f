//! Axes: linear, logarithmic, by nines and by powers of two.

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// An axis with its ticks.
#[derive(Clone)]
pub(crate) struct Axis {
    pub(super) from: f64,
    pub(super) to: f64,
    /// Positions and their labels.
    pub(super) ticks: Vec<(f64, String)>,
    pub(super) name: String,
}

impl Axis {
    /// From 0 to at least `to`.
    pub(crate) fn linear(name: &str, to: f64, label: impl Fn(f64) -> String) -> Axis {
        let to = if to.is_finite() && to > 0.0 { to } else { 1.0 };
        let step = round_step(to / 5.0);
        let steps = (to / step - 1e-9).ceil().max(1.0) as u32;
        let ticks = (0..=steps).map(|i| f64::from(i) * step).map(|value| (value, label(value))).collect();
        Axis { from: 0.0, to: f64::from(steps) * step, ticks, name: name.into() }
    }

    /// From 0 to exactly `to`, where the lines end.
    pub(crate) fn time(name: &str, to: f64) -> Axis {
        let mut axis = Axis::linear(name, to, |value| format!("{value}"));
        axis.to = to.max(f64::EPSILON);
        axis.ticks.retain(|(value, _)| *value <= to * (1.0 + 1e-9));
        axis
    }

    /// Logarithmic, for values from `from` to `to`. Positions are logarithms to base 10.
    pub(crate) fn log(name: &str, from: f64, to: f64, label: impl Fn(f64) -> String) -> Axis {
        let from = if from.is_finite() { from.max(1e-9) } else { 1e-9 };
        let to = if to.is_finite() { to.max(from) } else { from };
        let wide = (to / from).log10() > 3.0;
        let marks: &[f64] = if wide { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let first = from.log10().floor() as i32;
        let decades = first..=to.log10().ceil() as i32;
        let all: Vec<f64> = decades.flat_map(|d| marks.iter().map(move |mark| mark * 10f64.powi(d))).collect();
        let below = all.iter().rposition(|value| *value <= from * (1.0 + 1e-9)).unwrap_or(0);
        let above = all.iter().position(|value| *value >= to * (1.0 - 1e-9)).unwrap_or(all.len() - 1);
        let above = above.max(below + 1).min(all.len() - 1);
        let ticks: Vec<(f64, String)> = all[below..=above].iter().map(|value| (value.log10(), label(*value))).collect();
        let (from, to) = (ticks[0].0, ticks[ticks.len() - 1].0);
        Axis { from, to: to.max(from + 0.1), ticks, name: name.into() }
    }

    /// Percentiles, spaced by their nines: 0 %, 90 %, 99 % and so on, up to `to` nines.
    pub(crate) fn nines(name: &str, to: f64) -> Axis {
        let to = if to.is_finite() { to.max(1.0) } else { 1.0 };
        let mut ticks = vec![(0.0, "0 %".to_owned()), (2f64.log10(), "50 %".to_owned())];
        for nines in 1..=to.floor() as usize {
            let percent = match nines {
                1 => "90 %".to_owned(),
                2 => "99 %".to_owned(),
                more => format!("99.{} %", "9".repeat(more - 2)),
            };
            ticks.push((nines as f64, percent));
        }
        Axis { from: 0.0, to, ticks, name: name.into() }
    }

    /// Powers of two up to exponent `to`. Positions are exponents.
    pub(crate) fn powers_of_two(name: &str, to: f64) -> Axis {
        let last = if to.is_finite() { to.ceil().clamp(1.0, 64.0) as i32 } else { 1 };
        let step = last / 9 + 1;
        let ticks =
            (0..=last).filter(|power| power % step == 0).map(|power| (f64::from(power), format!("{}", 1u128 << power)));
        Axis { from: 0.0, to: f64::from(last), ticks: ticks.collect(), name: name.into() }
    }

    fn tick(&self, at: f64) -> String {
        let near = |tick: &&(f64, String)| (tick.0 - at).abs() < 1e-9;
        self.ticks.iter().find(near).map_or_else(String::new, |(_, text)| text.clone())
    }

    /// Moves a position beyond an end to that end.
    pub(super) fn clamp(&self, at: f64) -> f64 {
        at.clamp(self.from, self.to)
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let part = (value - self.from) / (self.to - self.from);
        from + (part * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.iter().map(|(at, _)| *at).collect() }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.from..self.to
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, at: &f64) -> String {
        self.tick(*at)
    }
}

/// The next of 1, 2 or 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|mark| mark * power).into_iter().find(|mark| *mark >= step * 0.999).unwrap_or(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn axes_end_at_round_numbers_around_their_values() {
        let plain = |value: f64| format!("{value}");
        assert_eq!(labels(&Axis::linear("", 23.0, plain)), ["0", "5", "10", "15", "20", "25"]);
        assert_eq!(labels(&Axis::linear("", 0.0, plain)).len(), 6);
        assert_eq!(labels(&Axis::log("", 3.0, 40.0, plain)), ["2", "5", "10", "20", "50"]);
        assert_eq!(labels(&Axis::log("", 1.0, 99_999.0, plain)), ["1", "10", "100", "1000", "10000", "100000"]);
        assert_eq!(labels(&Axis::nines("", 4.3)), ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
    }

    #[test]
    fn degenerate_range_still_gives_an_axis() {
        for (from, to) in [(0.001, 0.001), (7.0, 7.0), (f64::NAN, f64::INFINITY), (1e9, 1.0)] {
            let axis = Axis::log("", from, to, |value| format!("{value}"));
            assert!(axis.from < axis.to && axis.ticks.len() > 1, "{from} to {to}: {:?}", axis.ticks);
        }
    }
}
