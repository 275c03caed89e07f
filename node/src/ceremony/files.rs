//! The files of one node: its public descriptor or request, its keys, and its identity.
//!
//! Comments in public files repeat the content for readers; only the base64 counts. Errors of private files quote
//! nothing.

use std::fs;
use std::path::{Path, PathBuf};

use control::trust::{HopRole, NodeDescriptor, SignedDescriptor, Signer};
use wire::kdf::Secret;
use zeroize::Zeroizing;

use super::words::{fingerprint, hex, places_and_lanes, utc};
use crate::config::keys::{read_private, secret};
use crate::config::source::{Source, Text, decode_base64};
use crate::config::table_trust::{DESCRIPTOR_FILE, IDENTITY_FILE, NODE_KEY_FILE, REQUEST_FILE};
use crate::config::{ConfigError, Location, NodeRole, encode_base64, sync_folder};
use crate::init::create;

pub const IDENTITY_KEY: &str = "identity.key";
pub const NODE_KEY: &str = "node.key";
pub const DESCRIPTOR: &str = "node.desc";
pub const CONFIG: &str = "node.toml";
pub const STATE: &str = "node.state";

/// The remedy for a public file that is not what its operator wrote.
const AGAIN: &str = "get the file again from the node's operator";
const RESTORE: &str = "restore the file that `eddy keygen` or `eddy init` wrote";

/// The role of a hop as the configuration names it.
pub fn node_role(role: HopRole) -> NodeRole {
    match role {
        HopRole::Mix => NodeRole::Mix,
        HopRole::Exit => NodeRole::Exit,
    }
}

/// Reads a public file; one that does not exist is explained by `missing`.
pub(crate) fn public(path: &Path, missing: &str) -> Result<Source, ConfigError> {
    Source::read(path).map_err(|why| match why {
        ConfigError::Unreadable { path, why, .. } if why.kind() == std::io::ErrorKind::NotFound => {
            ConfigError::Unreadable { path, why, remedy: missing.to_owned() }
        }
        ConfigError::Unreadable { path, why, .. } if why.kind() == std::io::ErrorKind::IsADirectory => {
            ConfigError::Unreadable { path, why, remedy: "name a file in it".to_owned() }
        }
        other => other,
    })
}

/// A signed descriptor and the place of its text, for messages about it.
#[derive(Clone, Debug)]
pub struct DescriptorFile {
    pub at: Location,
    pub descriptor: SignedDescriptor,
}

impl DescriptorFile {
    /// Reads a descriptor and checks its signature, but not its validity.
    ///
    /// # Errors
    /// The first mistake, with its remedy.
    pub fn read(path: &Path) -> Result<DescriptorFile, ConfigError> {
        DescriptorFile::check(&public(path, "check the path, or make the file with `eddy keygen`")?)
    }

    pub(super) fn check(source: &Source) -> Result<DescriptorFile, ConfigError> {
        let table = source.table(DESCRIPTOR_FILE)?;
        table.check(NodeRole::Mix)?;
        let text = table.text("descriptor");
        Ok(DescriptorFile { at: text.at(), descriptor: signed(&text, AGAIN)? })
    }
}

/// The descriptor that a text is in base64.
pub(crate) fn signed(text: &Text<'_>, remedy: &str) -> Result<SignedDescriptor, ConfigError> {
    let bytes = decode_base64(text.value)
        .ok_or_else(|| text.wrong("the descriptor is not base64: it was changed or damaged", remedy))?;
    SignedDescriptor::read(&bytes)
        .map_err(|why| text.wrong(format!("the descriptor was changed or damaged: {why}"), remedy))
}

/// What `eddy renew` signs: a descriptor, or the request of a node with new keys.
#[derive(Clone, Debug)]
pub struct Renewable {
    pub at: Location,
    pub content: NodeDescriptor,
    pub is_request: bool,
}

impl Renewable {
    /// Reads either of the two.
    ///
    /// # Errors
    /// The first mistake, with its remedy.
    pub fn read(path: &Path) -> Result<Renewable, ConfigError> {
        let source =
            public(path, "check the path: renew needs a node.desc, or a node.request of `eddy keygen --rotate`")?;
        if source.names()?.iter().any(|name| name == "request") {
            return Renewable::check_request(&source);
        }
        let DescriptorFile { at, descriptor } = DescriptorFile::check(&source)?;
        Ok(Renewable { at, content: descriptor.content().clone(), is_request: false })
    }

    pub(super) fn check_request(source: &Source) -> Result<Renewable, ConfigError> {
        let table = source.table(REQUEST_FILE)?;
        table.check(NodeRole::Mix)?;
        let text = table.text("request");
        let bytes = decode_base64(text.value).ok_or_else(|| text.wrong("the request is not base64", AGAIN))?;
        let content = NodeDescriptor::read_unsigned(&bytes)
            .map_err(|why| text.wrong(format!("invalid request: {why}"), AGAIN))?;
        Ok(Renewable { at: text.at(), content, is_request: true })
    }
}

/// Lines that say in words what a descriptor contains.
fn comments(descriptor: &NodeDescriptor) -> String {
    let mut text = format!("# identity  {}\n", fingerprint(&descriptor.identity));
    for contact in &descriptor.contacts {
        text += &format!("# class {}   {}\n", contact.class, places_and_lanes(contact));
    }
    text += &format!(
        "# valid     {} to {}\n# noise     {}\n# signing   {}\n",
        utc(descriptor.not_before),
        utc(descriptor.not_after),
        fingerprint(&descriptor.noise),
        fingerprint(&descriptor.signing),
    );
    text
}

/// The text of `node.desc`.
pub fn descriptor_text(descriptor: &SignedDescriptor) -> String {
    format!(
        "# Descriptor of {}, signed by its identity. Public: give it to whoever assembles the chain.\n\
         # These comments are for readers; only the last line counts (`eddy inspect` reads it).\n\
         #\n{}# revision  {}\n\
         descriptor = \"{}\"\n",
        node_role(descriptor.role).with_article(),
        comments(descriptor),
        descriptor.revision,
        encode_base64(descriptor.bytes()),
    )
}

/// The text of `node.request`.
///
/// # Errors
/// A field is out of range.
pub fn request_text(content: &NodeDescriptor) -> Result<String, ConfigError> {
    let bytes = content.unsigned().map_err(|why| ConfigError::Arguments(why.to_string()))?;
    Ok(format!(
        "# Request of {} for new keys, not signed. Public: sign it with `eddy renew`, where identity.key is.\n\
         # Compare the fingerprints of noise and signing with those that `eddy keygen --rotate` printed.\n\
         #\n{}\
         request = \"{}\"\n",
        node_role(content.role).with_article(),
        comments(content),
        encode_base64(&bytes),
    ))
}

/// The private keys that a running node needs.
pub struct NodeKeys {
    /// X25519, of links.
    pub noise: Secret,
    /// Seed of the Ed25519 key that signs epoch records and bundles.
    pub signing: Secret,
    pub psk_up: Option<Secret>,
    pub psk_down: Option<Secret>,
}

impl NodeKeys {
    /// Reads `node.key`.
    ///
    /// # Errors
    /// Others may read it, or the first mistake in it.
    pub fn read(path: &Path) -> Result<NodeKeys, ConfigError> {
        NodeKeys::check(&read_private(path)?)
    }

    /// The same from a text; messages name `path`.
    ///
    /// # Errors
    /// The first mistake, with its remedy.
    pub fn parse(path: &Path, text: &str) -> Result<NodeKeys, ConfigError> {
        NodeKeys::check(&Source::new(path, text).secret())
    }

    fn check(source: &Source) -> Result<NodeKeys, ConfigError> {
        let table = source.table(NODE_KEY_FILE)?;
        table.check(NodeRole::Mix)?;
        let read =
            |name: &str, remedy: &str| table.maybe_text(name).map(|text| secret(name, &text, remedy)).transpose();
        let required = |name| read(name, RESTORE).map(|secret| secret.expect("required"));
        Ok(NodeKeys {
            noise: required("noise")?,
            signing: required("signing")?,
            psk_up: read("psk_up", "copy it as agreed with the previous hop's operator")?,
            psk_down: read("psk_down", "copy it as agreed with the next hop's operator")?,
        })
    }

    /// The two keys that a descriptor names.
    pub fn pair(&self) -> control::NodeKeys {
        control::NodeKeys { noise: self.noise.clone(), signer: Signer::from_seed(&self.signing) }
    }

    /// The text of the file.
    pub fn text(&self) -> Zeroizing<String> {
        let line = |name: &str, secret: &Secret| {
            Zeroizing::new(format!("{name} = \"{}\"\n", *Zeroizing::new(encode_base64(secret.expose()))))
        };
        let psk = |name: &str, neighbour: &str, secret: &Option<Secret>| match secret {
            Some(secret) => line(name, secret),
            None => {
                Zeroizing::new(format!("# {name} = \"...\"   # 32 bytes in base64, agreed with the {neighbour} hop\n"))
            }
        };
        Zeroizing::new(format!(
            "# Private keys of a running node. Only the user who runs it may read them (mode 0600).\n\
             # Whoever has them can act as this node until its descriptor expires or is revoked.\n\
             {}{}{}{}",
            *line("noise", &self.noise),
            *line("signing", &self.signing),
            *psk("psk_up", "previous", &self.psk_up),
            *psk("psk_down", "next", &self.psk_down),
        ))
    }
}

/// Reads `identity.key`.
///
/// # Errors
/// Others may read it, or the first mistake in it.
pub fn read_identity(path: &Path) -> Result<Signer, ConfigError> {
    let source = read_private(path)?;
    let table = source.table(IDENTITY_FILE)?;
    table.check(NodeRole::Mix)?;
    Ok(Signer::from_seed(&secret("identity", &table.text("identity"), RESTORE)?))
}

/// The text of `identity.key`.
pub fn identity_text(seed: &Secret, public: &[u8; 32]) -> Zeroizing<String> {
    Zeroizing::new(format!(
        "# The identity of an eddy node: the private key that signs its descriptors, and nothing else.\n\
         # No running node needs it. Keep it offline, with a copy; whoever has it can replace the node.\n\
         # public key {}\n\
         # fingerprint {}\n\
         identity = \"{}\"\n",
        hex(public),
        fingerprint(public),
        *Zeroizing::new(encode_base64(seed.expose())),
    ))
}

/// Refuses to overwrite any of these.
pub(super) fn refuse_existing(paths: &[PathBuf], remedy: &str) -> Result<(), ConfigError> {
    let Some(taken) = paths.iter().find(|path| path.symlink_metadata().is_ok()) else { return Ok(()) };
    let (at, what) = (Location::file(taken), "the file exists".to_owned());
    Err(ConfigError::Value { at, what, remedy: remedy.to_owned() })
}

/// Makes files and their names durable: keys that a power cut takes away cannot be drawn again.
pub(super) fn sync(paths: &[PathBuf]) -> Result<(), ConfigError> {
    paths.iter().try_for_each(|path| {
        let synced = fs::File::open(path).and_then(|file| file.sync_all()).and_then(|()| sync_folder(path));
        synced.map_err(|why| ConfigError::Unwritable { path: path.clone(), why })
    })
}

/// Puts a file in the place of another one, or of none, so that readers see the old one or the new one, also after a
/// power cut.
pub(super) fn replace(path: &Path, content: &str) -> Result<(), ConfigError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    create(&new, content.as_bytes(), 0o644)?;
    sync(std::slice::from_ref(&new))?;
    fs::rename(&new, path)
        .and_then(|()| sync_folder(path))
        .map_err(|why| ConfigError::Unwritable { path: path.to_owned(), why })
}
