//! Files that only their user may read: private keys, and the users of an entry's SOCKS ports.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use wire::kdf::Secret;
use wire::paced::{BadSecret, MeetingSecret};
use zeroize::Zeroizing;

use super::source::{Source, Text};
use super::table::USERS_FILE;
use super::{ConfigError, Location, NodeRole};

/// Users of SOCKS ports with their passwords.
pub type SocksUsers = BTreeMap<String, Zeroizing<String>>;

/// Reads the users of an entry's SOCKS ports.
///
/// # Errors
/// Others may read the file, or the first mistake in it.
pub fn read_users(path: &Path) -> Result<SocksUsers, ConfigError> {
    users(&read_private(path)?)
}

/// The same from a text; messages name `path`.
///
/// # Errors
/// The first mistake, with its remedy.
pub fn parse_users(path: &Path, text: &str) -> Result<SocksUsers, ConfigError> {
    users(&Source::new(path, text).secret())
}

fn users(source: &Source) -> Result<SocksUsers, ConfigError> {
    let table = source.table(USERS_FILE)?;
    table.check(NodeRole::Entry)?;
    let users: SocksUsers = table.names("socks_users").into_iter().collect();
    if !users.iter().all(|(name, password)| is_user(name, password)) {
        let what = "names and passwords in socks_users must have 1 to 255 bytes (RFC 1929)";
        return Err(table.wrong("socks_users", what, "use 1 to 255 bytes for each"));
    }
    Ok(users)
}

/// True if SOCKS clients can send this name and password (RFC 1929).
pub fn is_user(name: &str, password: &str) -> bool {
    [name, password].iter().all(|text| (1..=255).contains(&text.len()))
}

/// Reads a file of private keys.
///
/// # Errors
/// Others may read it, or it cannot be read.
pub(crate) fn read_private(path: &Path) -> Result<Source, ConfigError> {
    let unreadable = |why| ConfigError::Unreadable {
        path: path.to_owned(),
        why,
        remedy: "check the path, and that the user who runs eddy owns the file".into(),
    };
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(ConfigError::Unreadable {
            path: path.to_owned(),
            why: std::io::ErrorKind::IsADirectory.into(),
            remedy: "name a file in it, such as node.key or mix1.key".into(),
        });
    }
    let mode = metadata.mode() & 0o7777;
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY");
    if mode & others(path, credentials.as_deref().map(Path::new)) != 0 {
        return Err(ConfigError::Exposed { path: path.to_owned(), mode });
    }
    Ok(Source::read(path)?.secret())
}

/// Draws the secret of a meeting.
///
/// # Errors
/// The system returns no random bytes.
pub fn draw_meeting() -> io::Result<MeetingSecret> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut bytes[..])?;
    Ok(MeetingSecret::new(*bytes))
}

/// Draws the secret of a meeting into a new file, which only its owner may read.
///
/// # Errors
/// The file exists already or cannot be written, or the system returns no random bytes.
pub fn create_meeting(path: &Path) -> Result<(), ConfigError> {
    let create = |secret: MeetingSecret| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(secret.to_text().as_bytes())
    };
    draw_meeting().and_then(create).map_err(|why| match why.kind() {
        ErrorKind::AlreadyExists => ConfigError::Value {
            at: Location::file(path),
            what: "this file exists, and may be the secret of a meeting that is in use".into(),
            remedy: "choose another FILE in `eddy meet new --out FILE`, or remove this one".into(),
        },
        _ => ConfigError::Unwritable { path: path.to_owned(), why },
    })
}

/// Reads the secret of a meeting.
///
/// # Errors
/// Others may read the file, it cannot be read, or it is not what `eddy meet new` writes.
pub fn read_meeting(path: &Path) -> Result<MeetingSecret, ConfigError> {
    const NEW: &str = "make one with `eddy meet new --out FILE`, and give the other user the same file";
    let wrong = |what, remedy: String| ConfigError::Value { at: Location::file(path), what, remedy };
    let (read, exposed) = match read_private(path) {
        // The mode matters only if it is a secret.
        Err(ConfigError::Exposed { mode, .. }) => (Source::read(path), Some(mode)),
        read => (read, None),
    };
    let source = read.map_err(|why| match why {
        ConfigError::Unreadable { path, why, .. } => {
            let remedy = match why.kind() {
                ErrorKind::PermissionDenied => {
                    "the user who runs eddy must own this secret of a meeting, as `eddy meet new --out FILE` makes it"
                        .into()
                }
                _ => format!("this must be the secret of a meeting: {NEW}"),
            };
            ConfigError::Unreadable { path, why, remedy }
        }
        // It is empty, or a file of another kind.
        ConfigError::Value { what, .. } => wrong(format!("this is not the secret of a meeting: {what}"), NEW.into()),
        other => other,
    })?;
    let secret = source.all().parse().map_err(|why: BadSecret| {
        let remedy = match why {
            BadSecret::Spaces => "remove them, or copy the file again as it was made".into(),
            _ => NEW.into(),
        };
        wrong(why.to_string(), remedy)
    })?;
    let Some(mode) = exposed else { return Ok(secret) };
    Err(wrong(
        format!("mode {mode:04o} lets other users read this secret of a meeting"),
        format!(
            "run `chmod 600 {}`; if somebody may have read it, make another one with `eddy meet new --out FILE`",
            path.display()
        ),
    ))
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
pub(crate) fn secret(name: &str, text: &Text<'_>, remedy: &str) -> Result<Secret, ConfigError> {
    let what = || format!("{name} must be 32 bytes in base64");
    decode(text.value).ok_or_else(|| text.wrong(what(), remedy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ceremony::files::NodeKeys;

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
            format!("noise \"{secret}\""),
            format!("noise: \"{secret}\""),
            format!("= \"{secret}\""),
            format!(",{secret}\""),
            format!("noise =\n\"{secret}\""),
            format!("\"{secret}\""),
            format!("\"{secret}\" = \"noise\""),
            format!("{} = \"identity\"", secret.trim_end_matches('=')),
            format!("socks_users.{} = 1", secret.trim_end_matches('=')),
        ] {
            let keys = NodeKeys::parse(Path::new("mix1.key"), &line).err();
            let users = parse_users(Path::new("entry.users"), &line).err();
            for why in [keys, users].map(|why| why.expect("it is not read").to_string()) {
                assert!(!why.contains(&secret[8..20]), "{why}");
            }
        }
    }

    #[test]
    fn remedy_of_a_malformed_secret_says_where_to_get_it() {
        let key = format!("{}=", "A".repeat(43));
        let said = |line: &str| {
            let file = format!("noise = \"{key}\"\nsigning = \"{key}\"\n{line}\n");
            NodeKeys::parse(Path::new("node.key"), &file).err().unwrap().to_string()
        };
        for (line, remedy) in [
            ("psk_up = \"short\"", "copy it as agreed with the previous hop's operator"),
            ("psk_down = \"short\"", "copy it as agreed with the next hop's operator"),
        ] {
            assert!(said(line).ends_with(remedy), "{}", said(line));
        }
        let users = parse_users(Path::new("entry.users"), "[socks_users]\nalice = \"\"\n").err().unwrap().to_string();
        assert!(users.ends_with("use 1 to 255 bytes for each"), "{users}");
    }
}
