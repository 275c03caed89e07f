//! A node's private keys: a file of their own that only its user may read.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use control::descriptor::{draw_secret, draw_setup, draw_x25519};
use rand_chacha::ChaCha20Rng;
use wire::kdf::{Secret, x25519_public};
use wire::setup::{MLKEM_PRIVATE_LEN, SetupKey, Suite};
use zeroize::Zeroizing;

use super::source::{Source, Text};
use super::table::KEY_FILE;
use super::{Chain, ConfigError, Location, NodeConfig, NodeRole, node_name};

/// A node's private keys. Wiped when dropped.
pub struct Keys {
    /// Seed of the Ed25519 identity that signs the node's descriptor.
    pub identity: Secret,
    /// Noise static private key.
    pub noise: Secret,
    /// Setup private keys: of X25519, and in suite 2 of ML-KEM-768.
    pub setup: SetupKey,
    /// Pre-shared key with the previous hop, if the operators agreed on one.
    pub psk_up: Option<Secret>,
    /// Pre-shared key with the next hop, if the operators agreed on one.
    pub psk_down: Option<Secret>,
    /// At an entry: users of its SOCKS ports from other hosts, with their passwords.
    pub socks_users: BTreeMap<String, Zeroizing<String>>,
}

impl Keys {
    /// Reads a key file.
    ///
    /// # Errors
    /// Others may read it, or the first mistake in it.
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
        Keys::check(&Source::read(path)?.secret())
    }

    /// Draws new keys, those of setups for this suite.
    pub fn draw(rng: &mut ChaCha20Rng, suite: Suite) -> Keys {
        Keys {
            identity: draw_secret(rng),
            noise: draw_x25519(rng).0,
            setup: draw_setup(rng, suite),
            psk_up: None,
            psk_down: None,
            socks_users: BTreeMap::new(),
        }
    }

    /// True if SOCKS clients can send this name and password (RFC 1929).
    pub fn is_user(name: &str, password: &str) -> bool {
        [name, password].iter().all(|text| (1..=255).contains(&text.len()))
    }

    /// Checks that they belong to this node of this chain. An entry has no descriptor, so any keys are valid.
    ///
    /// # Errors
    /// They belong to another node or chain.
    pub fn are_of(&self, config: &NodeConfig, chain: &Chain) -> Result<(), ConfigError> {
        let Some(own) = chain.node(config.position) else { return Ok(()) };
        let differs = |kind| ConfigError::Value {
            at: Location::file(&config.keys),
            what: format!(
                "the {kind} key is not that of {} in {}",
                node_name(own.role, own.index),
                config.chain.display()
            ),
            remedy: format!(
                "`keys` in {} must name the file that `eddy init` wrote for this node of this chain",
                config.place_of("keys")
            ),
        };
        if x25519_public(&self.noise) != own.descriptor.noise {
            return Err(differs("noise"));
        }
        if self.setup.public() != own.descriptor.setup {
            return Err(differs("setup"));
        }
        Ok(())
    }

    /// The same from a text; messages name `path`.
    ///
    /// # Errors
    /// The first mistake, with its remedy.
    pub fn parse(path: &Path, text: &str) -> Result<Keys, ConfigError> {
        Keys::check(&Source::new(path, text).secret())
    }

    fn check(source: &Source) -> Result<Keys, ConfigError> {
        let table = source.table(KEY_FILE)?;
        table.check(NodeRole::Entry)?;
        let secret = |name: &str| table.maybe_text(name).map(|text| secret(name, &text)).transpose();
        let required = |name| secret(name).map(|secret| secret.expect("required"));
        let socks_users: BTreeMap<_, _> = table.names("socks_users").into_iter().collect();
        if !socks_users.iter().all(|(name, password)| Keys::is_user(name, password)) {
            let what = "names and passwords in socks_users must have 1 to 255 bytes (RFC 1929)";
            return Err(table.wrong("socks_users", what, "use 1 to 255 bytes for each"));
        }
        let mlkem = table.maybe_text("setup_mlkem");
        let bytes = mlkem.as_ref().map(mlkem_bytes).transpose()?;
        let setup = SetupKey::new(required("setup")?, bytes.as_ref().map(|bytes| &bytes[..]));
        let setup = setup.map_err(|_| {
            let text = mlkem.as_ref().expect("only this part can be wrong");
            text.wrong("setup_mlkem is not an ML-KEM-768 decapsulation key".to_owned(), RESTORE)
        })?;
        Ok(Keys {
            identity: required("identity")?,
            noise: required("noise")?,
            setup,
            psk_up: secret("psk_up")?,
            psk_down: secret("psk_down")?,
            socks_users,
        })
    }
}

/// The permission bits that a key file must not have. A credential that systemd passes belongs to its user by an access
/// list, and the bits of the group are the mask of that list. Other users cannot enter the folder.
fn others(path: &Path, credentials: Option<&Path>) -> u32 {
    let passed = credentials.is_some_and(|folder| path.is_absolute() && path.parent() == Some(folder));
    if passed { 0o037 } else { 0o077 }
}

fn decode(text: &str) -> Option<Secret> {
    let mut bytes = Zeroizing::new([0; 33]);
    let len = STANDARD.decode_slice(text, &mut bytes[..]).ok()?;
    bytes[..len].try_into().ok().map(Secret::new)
}

/// No message quotes the text: it is a secret.
fn secret(name: &str, text: &Text<'_>) -> Result<Secret, ConfigError> {
    let what = || format!("{name} must be 32 bytes in base64");
    // `eddy init` writes no pre-shared keys.
    let remedy = match name {
        "psk_up" => "copy it as agreed with the previous hop's operator",
        "psk_down" => "copy it as agreed with the next hop's operator",
        _ => RESTORE,
    };
    decode(text.value).ok_or_else(|| text.wrong(what(), remedy))
}

const RESTORE: &str = "restore the key file that `eddy init` wrote";

/// The decapsulation key. As long as it should be; [`SetupKey`] checks the rest.
fn mlkem_bytes(text: &Text<'_>) -> Result<Zeroizing<Vec<u8>>, ConfigError> {
    let mut bytes = Zeroizing::new(vec![0; MLKEM_PRIVATE_LEN + 3]);
    let len = STANDARD.decode_slice(text.value, &mut bytes).ok().filter(|len| *len == MLKEM_PRIVATE_LEN);
    let what = || format!("setup_mlkem must be {MLKEM_PRIVATE_LEN} bytes in base64");
    bytes.truncate(len.ok_or_else(|| text.wrong(what(), RESTORE))?);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_bits_are_allowed_for_systemd_credentials_only() {
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
            format!("\"{secret}\" = \"identity\""),
            format!("{} = \"identity\"", secret.trim_end_matches('=')),
            format!("socks_users.{} = 1", secret.trim_end_matches('=')),
        ] {
            let Err(why) = Keys::parse(Path::new("mix1.key"), &line) else { panic!("{line} was read") };
            assert!(!why.to_string().contains(&secret[8..20]), "{why}");
        }
    }

    #[test]
    fn remedy_of_a_malformed_secret_says_where_to_get_it() {
        let key = format!("{}=", "A".repeat(43));
        let file = format!("identity = \"{key}\"\nnoise = \"{key}\"\nsetup = \"{key}\"\n");
        let said = |line: &str| {
            let parsed = Keys::parse(Path::new("mix1.key"), &format!("{file}{line}\n"));
            parsed.err().unwrap().to_string()
        };
        for (line, remedy) in [
            ("psk_up = \"short\"", "copy it as agreed with the previous hop's operator"),
            ("psk_down = \"short\"", "copy it as agreed with the next hop's operator"),
            ("[socks_users]\nalice = \"\"", "use 1 to 255 bytes for each"),
        ] {
            assert!(said(line).ends_with(remedy), "{}", said(line));
        }
    }
}
