//! A node's private keys: a file of their own that only its user may read.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use control::descriptor::{draw_secret, draw_x25519};
use serde::{Deserialize, Deserializer, de};
use wire::kdf::{Secret, x25519_public};
use zeroize::Zeroizing;

use super::source::Source;
use super::{Chain, ConfigError, NodeConfig, Place};
use crate::error::StartError;

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
    /// At an entry: who may use its SOCKS ports from other hosts, and their passwords.
    #[serde(default, deserialize_with = "users")]
    pub socks_users: BTreeMap<String, Zeroizing<String>>,
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
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY");
        if mode & others(path, credentials.as_deref().map(Path::new)) != 0 {
            return Err(ConfigError::Exposed { path: path.to_owned(), mode });
        }
        Source::read(path)?.parse()
    }

    /// New ones.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn draw() -> Result<Keys, StartError> {
        let mut rng = crate::runtime::node::rng()?;
        Ok(Keys {
            identity: draw_secret(&mut rng),
            noise: draw_x25519(&mut rng).0,
            setup: draw_x25519(&mut rng).0,
            psk_up: None,
            psk_down: None,
            socks_users: BTreeMap::new(),
        })
    }

    /// Whether SOCKS clients can give this name and password (RFC 1929).
    pub fn is_user(name: &str, password: &str) -> bool {
        [name, password].iter().all(|text| (1..=255).contains(&text.len()))
    }

    /// Whether they are those of this node of this chain; an entry's are nobody else's business.
    ///
    /// # Errors
    /// They are not.
    pub fn are_of(&self, config: &NodeConfig, chain: &Chain) -> Result<(), ConfigError> {
        let Some(own) = chain.node(config.position) else { return Ok(()) };
        let differs = |kind| ConfigError::Value {
            at: Place::file(&config.keys),
            what: format!("its {kind} key is not that of node {} in {}", config.position, config.chain.display()),
            remedy: format!(
                "`keys` in {} must name the file that `eddy init` wrote for this node of this chain",
                config.place("keys", 0).unwrap_or_else(|| Place::file(&config.path))
            ),
        };
        if x25519_public(&self.noise) != own.descriptor.noise {
            return Err(differs("noise"));
        }
        if x25519_public(&self.setup) != own.descriptor.setup {
            return Err(differs("setup"));
        }
        Ok(())
    }

    /// The same from a text; `path` is named in complaints.
    ///
    /// # Errors
    /// It does not hold what it should.
    pub fn parse(path: &Path, text: &str) -> Result<Keys, ConfigError> {
        Source::new(path, text).parse()
    }
}

/// The permission bits that a key file must not have. A credential that systemd passes is its user's by an access
/// list, whose mask stands where the group's bits are; nobody else gets into the folder.
fn others(path: &Path, credentials: Option<&Path>) -> u32 {
    let passed = credentials.is_some_and(|folder| path.is_absolute() && path.parent() == Some(folder));
    if passed { 0o037 } else { 0o077 }
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

/// Names and passwords, 1 to 255 bytes each (RFC 1929). No message quotes one.
fn users<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Zeroizing<String>>, D::Error> {
    let users = BTreeMap::<String, String>::deserialize(deserializer)
        .map_err(|_| de::Error::custom("socks_users takes a line `name = \"password\"` for each user"))?;
    let users: BTreeMap<_, _> = users.into_iter().map(|(name, word)| (name, Zeroizing::new(word))).collect();
    match users.iter().find(|(name, word)| !Keys::is_user(name, word)) {
        Some(_) => Err(de::Error::custom("names and passwords of socks_users have 1 to 255 bytes")),
        None => Ok(users),
    }
}

fn optional_secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    secret(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_in_the_folder_of_credentials_are_the_groups_bits_a_mask() {
        let folder = Some(Path::new("/run/credentials/eddy@mix1.service"));
        assert_eq!(others(Path::new("/run/credentials/eddy@mix1.service/keys"), folder) & 0o440, 0);
        assert_ne!(others(Path::new("/run/credentials/eddy@mix1.service/keys"), folder) & 0o004, 0);
        for elsewhere in ["/etc/eddy/mix1.key", "mix1.key", "/run/credentials/eddy@mix1.service/a/keys"] {
            assert_eq!(others(Path::new(elsewhere), folder), 0o077);
        }
        assert_eq!(others(Path::new("/run/credentials/eddy@mix1.service/keys"), None), 0o077);
        assert_eq!(others(Path::new("mix1.key"), Some(Path::new(""))), 0o077);
    }

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
