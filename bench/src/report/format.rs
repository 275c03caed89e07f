//! Numbers of the page: table cells and axis labels.

/// Microseconds as milliseconds, without the unit.
pub(crate) fn ms(us: f64) -> String {
    format!("{:.3}", us / 1e3)
}

pub(crate) fn percent(part: u64, all: u64) -> String {
    share(100.0 * part as f64 / all.max(1) as f64)
}

/// A percentage without its sign: small ones get more digits.
pub(crate) fn share(percent: f64) -> String {
    match percent {
        0.0 => "0".into(),
        percent if percent < 0.01 => format!("{percent:.4}"),
        percent if percent < 10.0 => format!("{percent:.2}"),
        percent => format!("{percent:.1}"),
    }
}

/// `-` for text that the measurement does not have.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// `-` for each value that the measurement does not have.
pub(crate) fn or_dashes<const N: usize>(values: Option<[String; N]>) -> [String; N] {
    values.unwrap_or_else(|| std::array::from_fn(|_| "-".to_owned()))
}

/// A number on an axis.
pub(crate) fn axis_number(value: f64) -> String {
    format!("{}", (value * 1e6).round() / 1e6)
}

/// A time on an axis, in the unit that suits it.
pub(crate) fn axis_time(ms: f64) -> String {
    match ms {
        ms if ms < 0.999 => format!("{} us", axis_number(ms * 1e3)),
        ms if ms < 999.0 => format!("{} ms", axis_number(ms)),
        ms => format!("{} s", axis_number(ms / 1e3)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_percentages_get_more_digits() {
        assert_eq!([0.0, 0.0012, 0.2, 12.0].map(share), ["0", "0.0012", "0.20", "12.0"]);
    }

    #[test]
    fn axis_times_have_the_unit_that_suits_them() {
        assert_eq!([0.02, 1.0, 500.0, 2000.0].map(axis_time), ["20 us", "1 ms", "500 ms", "2 s"]);
    }
}
