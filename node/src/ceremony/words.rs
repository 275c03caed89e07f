//! Keys, times and contacts in the form in which people read and compare them.

use control::trust::{Contact, Validity};

/// The first 16 bytes of a key or an id in groups of four digits, to be compared over the phone.
pub fn fingerprint(bytes: &[u8; 32]) -> String {
    let groups: Vec<String> = bytes[..16].chunks(2).map(|pair| format!("{:02x}{:02x}", pair[0], pair[1])).collect();
    groups.join(" ")
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A time in seconds since 1970 as `2026-11-28 22:59 UTC`.
pub fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let Some((year, month, day)) = date(days) else { return format!("{seconds} s after 1970") };
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3600, rest / 60 % 60)
}

/// Year, month and day of a day after 1970-01-01. None after the year 9999.
///
/// Years are counted from March, so that the leap day is the last (Hinnant, "chrono-compatible low-level date
/// algorithms").
fn date(days: u64) -> Option<(u64, u64, u64)> {
    let shifted = days.checked_add(719_468).filter(|days| *days < 3_652_425)?;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    Some((400 * era + year_of_era + u64::from(month <= 2), month, day))
}

/// A length of time in its largest unit: `90 days` (the nearest number of them), `3 h`, `20 min`, `5 s`.
pub fn span(seconds: u64) -> String {
    let plural = |n: u64, unit: &str| format!("{n} {unit}{}", if n == 1 { "" } else { "s" });
    match seconds {
        172_800.. => plural(seconds.saturating_add(43_200) / 86_400, "day"),
        7200.. => format!("{} h", seconds / 3600),
        120.. => format!("{} min", seconds / 60),
        _ => format!("{seconds} s"),
    }
}

/// Relation of a validity to the present.
pub fn state(validity: Validity) -> String {
    match validity {
        Validity::NotYet(seconds) => format!("not yet valid, in {}", span(seconds)),
        Validity::Valid(seconds) => format!("{} left", span(seconds)),
        Validity::Expired(seconds) => format!("expired {} ago", span(seconds)),
    }
}

/// Where a node is reached in a class: `192.0.2.1:4700, mix.example.org:4700`.
pub fn places(contact: &Contact) -> String {
    let addresses = contact.addresses.iter().map(ToString::to_string);
    let names = contact.names.iter().map(|(name, port)| format!("{name}:{port}"));
    addresses.chain(names).collect::<Vec<_>>().join(", ")
}

/// The same with the number of lanes, if there are several.
pub fn places_and_lanes(contact: &Contact) -> String {
    let lanes = if contact.lanes > 1 { format!(" ({} lanes)", contact.lanes) } else { String::new() };
    places(contact) + &lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59 UTC"),
            (1_798_761_599, "2026-12-31 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(utc(seconds), text);
        }
        assert_eq!(utc(u64::MAX), format!("{} s after 1970", u64::MAX));
    }

    #[test]
    fn days_are_rounded_to_the_nearest() {
        let of = |days: u64| days * 86_400;
        let spans = [of(90) - 60, of(90), of(2), of(2) - 1, 7_200, 119].map(span);
        assert_eq!(spans, ["90 days", "90 days", "2 days", "47 h", "2 h", "119 s"]);
    }

    #[test]
    fn fingerprint_has_eight_groups_of_the_first_half() {
        let bytes: [u8; 32] = std::array::from_fn(|i| i as u8 * 7);
        assert_eq!(fingerprint(&bytes), "0007 0e15 1c23 2a31 383f 464d 545b 6269");
    }
}
