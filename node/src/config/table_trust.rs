//! Keys of the files of a ceremony: `chain.toml` of `eddy assemble`, and the public and private files of `eddy keygen`.
//!
//! Neighbours: [`super::table`] lists them for messages, `eddy config explain` and the manual page;
//! [`crate::ceremony`] writes and reads the files.

use super::table::{ASSEMBLED, COPY, Key, Kind, MADE, SECRET, optional, plain};

/// A whole number of a chain file, all of which must be set.
const fn number(name: &'static str, min: i64, max: i64, doc: &'static str, example: &'static str) -> Key {
    plain(name, Kind::Integer(min, max), doc, example)
}

/// Keys of `chain.toml`.
pub(crate) static CHAIN_FILE: &[Key] = &[
    plain("id", Kind::Text("32 bytes in hex"), "Id of the chain: a hash of all values but the descriptors.", ASSEMBLED),
    number("suite", 1, 2, "Algorithms of channel setups: 2 is X25519 with ML-KEM-768, 1 is X25519 alone.", "2"),
    number("interval_s", 1, 600, "Seconds between two bundles of setup keys that all hops sign.", "10"),
    number("epoch_s", 10, 86_400, "Seconds for which hops keep their setup keys, at least ten intervals.", "3600"),
    plain("class", Kind::Tables(CHAIN_CLASS), "A size class of its cells, the smallest first.", ""),
    plain("hop", Kind::Tables(CHAIN_HOP), "A mix or the exit: Mix 1 first, the exit last.", ""),
];

/// Keys of a `[[class]]` of `chain.toml`.
pub(crate) static CHAIN_CLASS: &[Key] = &[
    plain("class", Kind::Word(&["S", "M", "L"]), "Size class of its cells.", "\"L\""),
    number("mixing_delay_ms", 0, 60_000, "Longest time in ms for which the mixing of a hop may hold a cell.", "5"),
    number("lifetime_s", 1, 3600, "Lifetime of a channel in seconds.", "3600"),
];

/// Keys of a `[[hop]]` of `chain.toml`.
pub(crate) static CHAIN_HOP: &[Key] = &[
    plain("identity", Kind::Text("32 bytes in base64"), "Public key that signs its descriptors.", COPY),
    plain(
        "descriptor",
        Kind::Text("base64"),
        "A copy of its signed descriptor. One with a higher revision replaces it.",
        COPY,
    ),
];

/// The key of `node.desc`.
pub(crate) static DESCRIPTOR_FILE: &[Key] =
    &[plain("descriptor", Kind::Text("base64"), "A node's signed descriptor: public.", MADE)];

/// The key of `node.request`.
pub(crate) static REQUEST_FILE: &[Key] = &[plain(
    "request",
    Kind::Text("base64"),
    "Content of a descriptor that the owner of the identity signs with `eddy renew`: public.",
    "\"...\" as `eddy keygen --rotate` wrote it",
)];

/// Keys of `node.key`.
pub(crate) static NODE_KEY_FILE: &[Key] = &[
    plain("noise", SECRET, "Private key of its links.", MADE),
    plain("signing", SECRET, "Private key that signs its setup keys, certified by its identity.", MADE),
    optional(
        "psk_up",
        SECRET,
        "none",
        "Pre-shared key with the previous hop, the same as `psk_down` there. With it a link comes up only if both have it, \
         also if the key exchange is broken one day or another key of the two was stolen. Draw it with \
         `head -c 32 /dev/urandom | base64`.",
        "\"...\" as agreed with its operator",
    ),
    optional(
        "psk_down",
        SECRET,
        "none",
        "Pre-shared key with the next hop, the same as `psk_up` there. See `psk_up`.",
        "\"...\" as agreed with its operator",
    ),
];

/// The key of `identity.key`.
pub(crate) static IDENTITY_FILE: &[Key] = &[plain(
    "identity",
    SECRET,
    "Seed of the Ed25519 key that signs a node's descriptors. No running node needs it: keep it offline.",
    MADE,
)];
