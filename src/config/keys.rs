//! A node's private keys: a file of their own that only its user may read.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, de};
use wire::kdf::Secret;
use zeroize::Zeroizing;

use super::ConfigError;
use super::source::Source;

/// What a node must keep to itself. Wiped when dropped.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// Seed of the Ed25519 identity that signs the node's descriptor.
    #[serde(deserialize_with = "secret")]
    pub identity: Secret,
    /// Noise static private key.
    #[serde(deserialize_with = "secret")]
    pub noise: Secret,
    /// Setup private key.
    #[serde(deserialize_with = "secret")]
    pub setup: Secret,
    /// Pre-shared key with the previous hop, if the operators agreed on one.
    #[serde(default, deserialize_with = "optional_secret")]
    pub psk_up: Option<Secret>,
    /// Pre-shared key with the next hop, if the operators agreed on one.
    #[serde(default, deserialize_with = "optional_secret")]
    pub psk_down: Option<Secret>,
}

impl Keys {
    /// Reads a key file.
    ///
    /// # Errors
    /// Others may read it, or it does not hold what it should.
    pub fn read(path: &Path) -> Result<Keys, ConfigError> {
        let unreadable = |why| ConfigError::Unreadable {
            path: path.to_owned(),
            why,
            remedy: "check the path, and that the user who runs eddy owns the file".into(),
        };
        let mode = std::fs::metadata(path).map_err(unreadable)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(ConfigError::Exposed { path: path.to_owned(), mode });
        }
        Source::read(path)?.parse()
    }

    /// The same from a text; `path` is named in complaints.
    ///
    /// # Errors
    /// It does not hold what it should.
    pub fn parse(path: &Path, text: &str) -> Result<Keys, ConfigError> {
        Source::new(path, text).parse()
    }
}

fn decode(text: &str) -> Option<Secret> {
    let mut bytes = Zeroizing::new([0; 33]);
    let len = STANDARD.decode_slice(text, &mut bytes[..]).ok()?;
    bytes[..len].try_into().ok().map(Secret::new)
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    struct Visitor;
    impl de::Visitor<'_> for Visitor {
        type Value = Secret;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("32 bytes in base64")
        }

        // The text is a secret: no message may quote it.
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Secret, E> {
            decode(text).ok_or_else(|| E::custom("invalid key, expected 32 bytes in base64"))
        }

        fn visit_string<E: de::Error>(self, text: String) -> Result<Secret, E> {
            self.visit_str(&Zeroizing::new(text))
        }
    }
    deserializer.deserialize_str(Visitor)
}

fn optional_secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    secret(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_line_of_a_key_file_is_not_quoted() {
        let secret = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=";
        for line in [
            format!("identity \"{secret}\""),
            format!("identity: \"{secret}\""),
            format!("= \"{secret}\""),
            format!(",{secret}\""),
            format!("identity =\n\"{secret}\""),
            format!("\"{secret}\""),
        ] {
            let Err(why) = Keys::parse(Path::new("mix1.key"), &line) else { panic!("{line} was read") };
            assert!(!why.to_string().contains(&secret[8..20]), "{why}");
        }
    }
}
