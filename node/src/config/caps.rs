//! `[caps]`: bounds of a mix's or exit's admission (docs/LIMITS.md).

use control::{Caps, Rate};

use super::source::Table;

/// Reads the table; every key has a default.
pub(super) fn read(table: &Table<'_>) -> Caps {
    let size = |name| table.integer(name) as usize;
    let rate =
        |per_second, burst| Rate { per_second: table.integer(per_second) as u32, burst: table.integer(burst) as u32 };
    Caps {
        links: size("links"),
        handshakes: rate("handshakes_per_s", "handshakes_burst"),
        channels: size("channels"),
        channels_per_entry_link: size("channels_per_entry_link"),
        channels_per_prefix: size("channels_per_prefix"),
        half_open: size("half_open"),
        half_open_per_entry_link: size("half_open_per_entry_link"),
        setups: rate("setups_per_s", "setups_burst"),
        setups_per_entry_link: rate("setups_per_entry_link_per_s", "setups_per_entry_link_burst"),
    }
}

/// The values of all keys, as a generated file has them.
pub fn values(caps: &Caps) -> [(&'static str, usize); 12] {
    [
        ("links", caps.links),
        ("handshakes_per_s", caps.handshakes.per_second as usize),
        ("handshakes_burst", caps.handshakes.burst as usize),
        ("channels", caps.channels),
        ("channels_per_entry_link", caps.channels_per_entry_link),
        ("channels_per_prefix", caps.channels_per_prefix),
        ("half_open", caps.half_open),
        ("half_open_per_entry_link", caps.half_open_per_entry_link),
        ("setups_per_s", caps.setups.per_second as usize),
        ("setups_burst", caps.setups.burst as usize),
        ("setups_per_entry_link_per_s", caps.setups_per_entry_link.per_second as usize),
        ("setups_per_entry_link_burst", caps.setups_per_entry_link.burst as usize),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::table::CAPS;

    #[test]
    fn table_of_keys_has_the_defaults_of_control() {
        let values = values(&Caps::default());
        assert_eq!(values.len(), CAPS.len());
        for ((name, value), key) in values.iter().zip(CAPS) {
            assert_eq!((*name, Some(value.to_string())), (key.name, key.default_value()));
        }
    }
}
