//! Signs the next descriptor of a node, where its identity is. Reads and writes public data only, besides the identity.

use std::path::{Path, PathBuf};

use control::trust::{NodeDescriptor, SignedDescriptor};

use super::contact::Places;
use super::files::{DESCRIPTOR, DescriptorFile, Renewable, descriptor_text, read_identity, replace};
use super::validity;
use super::words::fingerprint;
use crate::config::{ConfigError, Location};

/// What changes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The file of the identity.
    pub identity: PathBuf,
    /// A descriptor, or a request of the node.
    pub file: PathBuf,
    /// Where the new descriptor is written. None: beside a request, or in place of the descriptor.
    pub out: Option<PathBuf>,
    /// Addresses and names that replace all earlier ones; its classes are not used.
    pub places: Places,
    /// Names are no longer listed.
    pub drop_names: bool,
    /// Days for which it is valid.
    pub days: u32,
    /// Revoke all earlier descriptors, with their keys.
    pub revoke: bool,
}

/// The new descriptor and its file.
#[derive(Debug)]
pub struct Renewed {
    pub descriptor: SignedDescriptor,
    pub path: PathBuf,
    /// The keys differ from those of the descriptor that was at `path`.
    pub new_keys: bool,
}

/// Signs a descriptor with a higher revision than the one that it replaces.
///
/// # Errors
/// A file cannot be read or written, or it belongs to another identity. The old descriptor stays then.
pub fn renew(plan: &Plan, now_s: u64) -> Result<Renewed, ConfigError> {
    let old = Renewable::read(&plan.file)?;
    let identity = read_identity(&plan.identity)?;
    if identity.public() != old.content.identity {
        return Err(ConfigError::Value {
            at: Location::file(&plan.identity),
            what: format!(
                "the identity is {}, but {} is of {}",
                fingerprint(&identity.public()),
                plan.file.display(),
                fingerprint(&old.content.identity)
            ),
            remedy: "name the identity.key that was made with this node".to_owned(),
        });
    }
    let beside = || if old.is_request { plan.file.with_extension("desc") } else { plan.file.clone() };
    let path = plan.out.clone().unwrap_or_else(beside);
    let replaced = replaced(&path, &old.content)?;
    let base = base(&old, replaced.as_ref(), &path)?;

    let highest = replaced.as_ref().map_or(0, |known| known.revision).max(base.revision);
    let floor = replaced.as_ref().map_or(0, |known| known.floor).max(base.floor);
    let revision = now_s.max(highest.saturating_add(1));
    let (not_before, not_after) = validity(now_s, plan.days);
    let (noise, signing) = (old.content.noise, old.content.signing);
    let new_keys = replaced.as_ref().is_some_and(|known| known.noise != noise || known.signing != signing);
    let contacts = plan.places.moved(&base.contacts, plan.drop_names)?;
    let content = NodeDescriptor {
        role: base.role,
        revision,
        floor: if plan.revoke { revision } else { floor },
        not_before,
        not_after,
        identity: base.identity,
        noise,
        signing,
        contacts,
    };
    let descriptor = content.sign(&identity).map_err(|why| ConfigError::Value {
        at: old.at,
        what: "cannot be renewed".into(),
        remedy: why.to_string(),
    })?;
    replace(&path, &descriptor_text(&descriptor))?;
    Ok(Renewed { descriptor, path, new_keys })
}

/// What the new descriptor repeats. Nobody has signed a request, so only its two keys count, which the operator
/// compares; the rest is that of the last descriptor.
fn base<'a>(
    old: &'a Renewable,
    replaced: Option<&'a SignedDescriptor>,
    path: &Path,
) -> Result<&'a NodeDescriptor, ConfigError> {
    let Some(known) = replaced.map(SignedDescriptor::content).filter(|_| old.is_request) else {
        if !old.is_request {
            // A newer one may have announced other addresses.
            let newer = replaced.filter(|known| known.revision > old.content.revision);
            return Ok(newer.map_or(&old.content, SignedDescriptor::content));
        }
        return Err(ConfigError::Value {
            at: Location::file(path),
            what: "the last descriptor of the node is not here, and nobody has signed what else is in the request"
                .into(),
            remedy: format!("copy the node's {DESCRIPTOR} there"),
        });
    };
    if old.content.revision > known.revision {
        return Err(ConfigError::Value {
            at: old.at.clone(),
            what: format!(
                "the request follows revision {}, but {} has revision {}",
                old.content.revision,
                path.display(),
                known.revision
            ),
            remedy: format!("copy the node's newest {DESCRIPTOR} there; if it is this one, the request was changed"),
        });
    }
    Ok(known)
}

/// The descriptor that will be replaced. Another node's is not.
fn replaced(path: &Path, content: &NodeDescriptor) -> Result<Option<SignedDescriptor>, ConfigError> {
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let DescriptorFile { at, descriptor } = DescriptorFile::read(path)?;
    if descriptor.identity != content.identity {
        return Err(ConfigError::Value {
            at,
            what: format!("the descriptor there is of another identity, {}", fingerprint(&descriptor.identity)),
            remedy: "choose another file with --out".to_owned(),
        });
    }
    Ok(Some(descriptor))
}
