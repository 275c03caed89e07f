//! Keys of the files of a ceremony: `chain.toml` of `eddy assemble`, and the public and private files of `eddy keygen`.
//!
//! Neighbours: [`super::table`] lists them for messages, `eddy config explain` and the manual page;
//! [`crate::ceremony`] writes and reads the files.

use super::table::{ASSEMBLED, COPY, DefaultValue, Key, Kind, MADE, SECRET, optional, plain};

/// A whole number of a chain file, all of which must be set.
const fn number(name: &'static str, min: i64, max: i64, doc: &'static str, example: &'static str) -> Key {
    plain(name, Kind::Integer(min, max), doc, example)
}

/// A whole number of a paced class with its default.
const fn term(name: &'static str, min: i64, max: i64, default: i64, doc: &'static str) -> Key {
    let key = number(name, min, max, doc, "");
    Key { default: DefaultValue::Integer(default), ..key }
}

/// Keys of `chain.toml`.
pub(crate) static CHAIN_FILE: &[Key] = &[
    plain("id", Kind::Text("32 bytes in hex"), "Id of the chain: a hash of all values but the descriptors.", ASSEMBLED),
    number("suite", 1, 2, "Algorithms of channel setups: 2 is X25519 with ML-KEM-768, 1 is X25519 alone.", "2"),
    number("interval_s", 1, 600, "Seconds between two bundles of setup keys that all hops sign.", "10"),
    number("epoch_s", 10, 86_400, "Seconds for which hops keep their setup keys, at least ten intervals.", "3600"),
    plain(
        "class",
        Kind::Either { mark: "period_ms", with: CHAIN_PACED_CLASS, without: CHAIN_CLASS },
        "A class of its cells: first the free ones, then the paced ones, which have `period_ms`. Of each kind the smallest \
         size first.",
        "",
    ),
    plain("hop", Kind::Tables(CHAIN_HOP), "A mix or the exit: Mix 1 first, the exit last.", ""),
];

/// Keys of a `[[class]]` of `chain.toml`.
pub(crate) static CHAIN_CLASS: &[Key] = &[
    plain("class", Kind::Word(&["S", "M", "L"]), "Size class of its cells.", "\"L\""),
    number("mixing_delay_ms", 0, 60_000, "Longest time in ms for which the mixing of a hop may hold a cell.", "5"),
    number("lifetime_s", 1, 3600, "Lifetime of a channel in seconds.", "3600"),
];

/// Keys of a `[[class]]` with `period_ms` of `chain.toml` (SPEC 9.16).
pub(crate) static CHAIN_PACED_CLASS: &[Key] = &[
    plain("class", Kind::Word(&["S", "M", "L"]), "Size of its cells.", "\"S\""),
    plain("name", Kind::Text("1 to 16 of a-z, 0-9 and -"), "Name by which users choose the class.", "\"voice\""),
    number(
        "period_ms",
        5,
        100,
        "Milliseconds between two rounds, in which every link carries the same number of cells. A class with this key is \
         paced.",
        "10",
    ),
    term("cells", 1, 32, 1, "Cells of a user in each round."),
    term("rounds", 1, 8192, 2048, "Rounds of a batch, a power of two: channels are set up for one batch each."),
    term("copies", 1, 4, 2, "How often a cell is sent between users and mix1, so that one that is lost leaves no gap."),
    term("gap", 1, 4, 1, "Rounds between two copies."),
    term(
        "repeat",
        0,
        1,
        0,
        "1: each cell repeats what the one before carried. It halves what a class carries, and destinations get it a round \
         later.",
    ),
    term("n_min", 1, 16_384, 8, "A batch with fewer users carries noise only. At most `seats`."),
    term("seats", 1, 16_384, 256, "Most users of a batch."),
    term("loops", 0, 64, 2, "Most pairs of channels of its own in which each mix hides how many users meet."),
    term("slack_ms", 1, 500, 8, "Milliseconds by which a cell from a user may be late without being lost."),
    Key {
        default: DefaultValue::Unset("5 for each of them"),
        ..plain(
            "steps_ms",
            Kind::Integers(1, 500),
            "Milliseconds in which cells reach the next hop, for each link after the first.",
            "[5, 5, 5]",
        )
    },
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
