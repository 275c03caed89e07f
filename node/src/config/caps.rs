//! `[caps]`: the bounds of a mix's or exit's admission (docs/ARCHITECTURE.md, "Bounds"), for chains that are to carry
//! more than the defaults let in.

use control::{Caps, Rate};
use serde::Deserialize;
use toml::Spanned;

use super::ConfigError;
use super::source::Source;

/// Most channels of a node: a channel costs it a few kB.
const CHANNELS_MAX: i64 = 1 << 20;
/// Most channels that wait for their acks.
const HALF_OPEN_MAX: i64 = 1 << 16;
/// Most setups or handshakes a second: more than public-key work allows.
const RATE_MAX: i64 = 1_000_000;
/// Most links: below the places of a link's number.
const LINKS_MAX: i64 = (1 << wire::ids::LinkId::INDEX_BITS) - 1;

/// The table as it stands in the file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCaps {
    links: Option<Spanned<i64>>,
    links_per_address: Option<Spanned<i64>>,
    handshakes_per_s: Option<Spanned<i64>>,
    handshakes_burst: Option<Spanned<i64>>,
    channels: Option<Spanned<i64>>,
    channels_per_entry_link: Option<Spanned<i64>>,
    half_open: Option<Spanned<i64>>,
    half_open_per_entry_link: Option<Spanned<i64>>,
    setups_per_s: Option<Spanned<i64>>,
    setups_burst: Option<Spanned<i64>>,
    setups_per_entry_link_per_s: Option<Spanned<i64>>,
    setups_per_entry_link_burst: Option<Spanned<i64>>,
}

impl RawCaps {
    /// What is not there has its default.
    pub(super) fn read(&self, source: &Source) -> Result<Caps, ConfigError> {
        let default = Caps::default();
        let size = |key, value: &Option<Spanned<i64>>, most: i64, default: usize| {
            source.number(key, value.as_ref(), 1..most + 1, default as i64).map(|number| number as usize)
        };
        let rate = |keys: [&str; 2], per_second: &Option<_>, burst: &Option<_>, default: Rate| {
            let number = |key, value: &Option<_>, default: u32| {
                source.number(key, value.as_ref(), 1..RATE_MAX + 1, i64::from(default)).map(|number| number as u32)
            };
            let per_second = number(keys[0], per_second, default.per_second)?;
            Ok(Rate { per_second, burst: number(keys[1], burst, default.burst)? })
        };
        Ok(Caps {
            links: size("links", &self.links, LINKS_MAX, default.links)?,
            links_per_address: size(
                "links_per_address",
                &self.links_per_address,
                LINKS_MAX,
                default.links_per_address,
            )?,
            handshakes: rate(
                ["handshakes_per_s", "handshakes_burst"],
                &self.handshakes_per_s,
                &self.handshakes_burst,
                default.handshakes,
            )?,
            channels: size("channels", &self.channels, CHANNELS_MAX, default.channels)?,
            channels_per_entry_link: size(
                "channels_per_entry_link",
                &self.channels_per_entry_link,
                CHANNELS_MAX,
                default.channels_per_entry_link,
            )?,
            half_open: size("half_open", &self.half_open, HALF_OPEN_MAX, default.half_open)?,
            half_open_per_entry_link: size(
                "half_open_per_entry_link",
                &self.half_open_per_entry_link,
                HALF_OPEN_MAX,
                default.half_open_per_entry_link,
            )?,
            setups: rate(["setups_per_s", "setups_burst"], &self.setups_per_s, &self.setups_burst, default.setups)?,
            setups_per_entry_link: rate(
                ["setups_per_entry_link_per_s", "setups_per_entry_link_burst"],
                &self.setups_per_entry_link_per_s,
                &self.setups_per_entry_link_burst,
                default.setups_per_entry_link,
            )?,
            replay_cache: default.replay_cache,
        })
    }
}

/// The table as `init` writes it: commented out where it says the defaults.
pub fn text(caps: &Caps) -> String {
    let off = if *caps == Caps::default() { "# " } else { "" };
    let lines = [
        ("links", caps.links, "with entries, at Mix 1"),
        ("links_per_address", caps.links_per_address, ""),
        ("handshakes_per_s", caps.handshakes.per_second as usize, ""),
        ("handshakes_burst", caps.handshakes.burst as usize, ""),
        ("channels", caps.channels, "open at once; each takes a few kB"),
        ("channels_per_entry_link", caps.channels_per_entry_link, "at Mix 1"),
        ("half_open", caps.half_open, "waiting for their acks"),
        ("half_open_per_entry_link", caps.half_open_per_entry_link, "at Mix 1"),
        ("setups_per_s", caps.setups.per_second as usize, ""),
        ("setups_burst", caps.setups.burst as usize, ""),
        ("setups_per_entry_link_per_s", caps.setups_per_entry_link.per_second as usize, "at Mix 1"),
        ("setups_per_entry_link_burst", caps.setups_per_entry_link.burst as usize, ""),
    ];
    let mut text = format!(
        "\n# Who is let in, at most. Beyond it setups and handshakes are refused and counted; what is there lives on.\n\
         {off}[caps]\n"
    );
    for (key, value, what) in lines {
        let what = if what.is_empty() { String::new() } else { format!("   # {what}") };
        text += &format!("{off}{key} = {value}{what}\n");
    }
    text
}
