//! Numbers, times and directions as text, for terminals, Markdown and the report page.

use eddy::tables::wrapping;
use wire::cell::Direction;

/// `1,234,567`
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok());
    groups.collect::<Vec<_>>().join(",")
}

/// [`count`] of the nearest whole number; `-` for a value that was not measured (NaN or infinite).
pub(crate) fn rounded(number: f64) -> String {
    if number.is_finite() { count(number.round() as u64) } else { "-".to_owned() }
}

/// A duration in microseconds, in the unit that suits it: `950 us`, `1.20 ms`, `3.00 s`.
pub(crate) fn duration(us: f64) -> String {
    match us {
        us if us < 1000.0 => format!("{us:.0} us"),
        us if us < 1e6 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// In lines of at most 80 columns, all but the first indented.
pub(crate) fn wrapped(text: &str) -> String {
    textwrap::fill(text, wrapping(80).subsequent_indent("  "))
}

pub(crate) const fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => "forward",
        Direction::Backward => "backward",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([999.4, 1234.5, f64::NAN].map(rounded), ["999", "1,235", "-"]);
    }

    #[test]
    fn durations_have_the_unit_that_suits_them() {
        assert_eq!([7.4, 1200.0, 3e6].map(duration), ["7 us", "1.20 ms", "3.00 s"]);
    }
}
