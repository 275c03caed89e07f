//! Draws the keys of a node, where it will run: all of a new one, or the next ones of an existing one.

use std::fs;
use std::path::{Path, PathBuf};

use control::Caps;
use control::draw::{draw_secret, draw_x25519};
use control::trust::{Contact, HopRole, NodeDescriptor, SignedDescriptor, Signer, State};
use dataplane::stage::pool::Mixing;
use wire::kdf::Secret;

use super::files::{
    CONFIG, DESCRIPTOR, DescriptorFile, IDENTITY_KEY, NODE_KEY, NodeKeys, STATE, descriptor_text, identity_text,
    node_role, refuse_existing, request_text, sync,
};
use super::validity;
use crate::config::{ConfigError, Location, Value, generate};
use crate::init::{create, seeded_rng};

/// A planned node.
#[derive(Clone, Debug)]
pub struct Plan {
    pub role: HopRole,
    /// Where the previous hop reaches it; see [`super::contact::Places`].
    pub contacts: Vec<Contact>,
    /// Days for which its descriptor is valid.
    pub days: u32,
    /// Overwrite existing files.
    pub force: bool,
}

/// A new node, before it is on disk.
pub struct Drawn {
    seed: Secret,
    keys: NodeKeys,
    /// When, in seconds since 1970.
    made: u64,
    pub descriptor: SignedDescriptor,
}

/// Names of the files of a node in its folder.
#[derive(Clone, Debug)]
pub struct Names {
    pub identity: String,
    pub keys: String,
    pub descriptor: String,
    pub config: String,
    pub state: String,
}

impl Names {
    /// Those of a node that has a folder of its own: `identity.key`, `node.key` and so on.
    pub fn alone() -> Names {
        let [identity, keys, descriptor, config, state] =
            [IDENTITY_KEY, NODE_KEY, DESCRIPTOR, CONFIG, STATE].map(str::to_owned);
        Names { identity, keys, descriptor, config, state }
    }

    /// Those of one node among others in a folder: `mix1.identity.key`, `mix1.key` and so on.
    pub fn among_others(node: &str) -> Names {
        let [identity, keys, descriptor, config, state] =
            ["identity.key", "key", "desc", "toml", "state"].map(|ending| format!("{node}.{ending}"));
        Names { identity, keys, descriptor, config, state }
    }

    /// All of them.
    pub fn all(&self) -> [&str; 5] {
        [&self.identity, &self.keys, &self.descriptor, &self.config, &self.state]
    }
}

/// Draws the keys of a new node and signs its first descriptor.
///
/// # Errors
/// The plan is not valid, or the system has no random bytes.
pub fn draw(plan: &Plan, now_s: u64) -> Result<Drawn, ConfigError> {
    let mut rng = seeded_rng()?;
    let seed = draw_secret(&mut rng);
    let identity = Signer::from_seed(&seed);
    let (noise, noise_public) = draw_x25519(&mut rng);
    let keys = NodeKeys { noise, signing: draw_secret(&mut rng), psk_up: None, psk_down: None };
    let (not_before, not_after) = validity(now_s, plan.days);
    let descriptor = NodeDescriptor {
        role: plan.role,
        revision: now_s,
        floor: 0,
        not_before,
        not_after,
        identity: identity.public(),
        noise: noise_public,
        signing: Signer::from_seed(&keys.signing).public(),
        contacts: plan.contacts.clone(),
    };
    let descriptor = descriptor.sign(&identity).map_err(|why| ConfigError::Arguments(why.to_string()))?;
    Ok(Drawn { seed, keys, made: now_s, descriptor })
}

impl Drawn {
    /// Writes all files of the node.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, dir: &Path, names: &Names, config: &str) -> Result<(), ConfigError> {
        let path = |name: &str| dir.join(name);
        let identity = identity_text(&self.seed, &self.descriptor.identity);
        create(&path(&names.identity), identity.as_bytes(), 0o600)?;
        create(&path(&names.keys), self.keys.text().as_bytes(), 0o600)?;
        create(&path(&names.descriptor), descriptor_text(&self.descriptor).as_bytes(), 0o644)?;
        create(&path(&names.config), config.as_bytes(), 0o644)?;
        create(&path(&names.state), &State::fresh(self.made).to_bytes(), 0o600)
    }
}

/// Draws the keys of a new node and writes its files into `dir`, which is created if it does not exist.
///
/// # Errors
/// The plan is not valid, a file exists and may not be overwritten, or a file cannot be written. Everything else is
/// checked before the first file is written.
pub fn keygen(dir: &Path, plan: &Plan, now_s: u64) -> Result<SignedDescriptor, ConfigError> {
    let drawn = draw(plan, now_s)?;
    let names = Names::alone();
    if !plan.force {
        let all = names.all().map(|name| dir.join(name));
        refuse_existing(&all, "choose another folder with --out, or give up this node and its keys with --force")?;
    }
    fs::create_dir_all(dir).map_err(|why| ConfigError::Unwritable { path: dir.to_owned(), why })?;
    drawn.write(dir, &names, &config(plan))?;
    sync(&names.all().map(|name| dir.join(name)))?;
    Ok(drawn.descriptor)
}

/// A configuration that needs a `chain.toml` beside it, and nothing else.
fn config(plan: &Plan) -> String {
    let set = |text: &str| Value::Set(text.to_owned());
    let contact = plan.contacts.first();
    let address = contact.and_then(|contact| contact.addresses.first()).map(ToString::to_string);
    let port = contact.and_then(|contact| contact.names.first()).map_or(super::PORT, |(_, port)| *port);
    let up = address.unwrap_or_else(|| format!("0.0.0.0:{port}"));
    let role = node_role(plan.role);
    let mut values = vec![
        ("role", Value::Set(format!("\"{role}\""))),
        ("chain", set("\"chain.toml\"")),
        ("keys", Value::Set(format!("\"{NODE_KEY}\""))),
        ("status", set("\"node.sock\"")),
        ("up", Value::Set(format!("\"{up}\""))),
    ];
    match plan.role {
        HopRole::Mix => values.push(("mixing", Value::Set(format!("\"{}\"", Mixing::default())))),
        HopRole::Exit => values.extend(["allow", "deny", "trust"].map(|key| (key, set("[]")))),
    }
    generate(role, "node", &values, &[], &Caps::default())
}

/// A request for new keys.
#[derive(Debug)]
pub struct Rotation {
    /// Its content, not signed.
    pub content: NodeDescriptor,
    pub keys: PathBuf,
    pub request: PathBuf,
}

/// Draws the next keys of a node in `dir`: `NAME.key.next`, and `NAME.request` for the owner of its identity. Its
/// pre-shared keys stay. NAME is `node` in a folder of `eddy keygen`, and for example `mix1` in one of `eddy init`.
///
/// # Errors
/// `NAME.key` or `NAME.desc` cannot be read, they do not belong together, or a file exists and may not be overwritten.
pub fn rotate(dir: &Path, name: &str, force: bool) -> Result<Rotation, ConfigError> {
    let file = |ending: &str| dir.join(format!("{name}.{ending}"));
    let (key_path, next, request, descriptor_path) = (file("key"), file("key.next"), file("request"), file("desc"));
    let old_keys = NodeKeys::read(&key_path).map_err(|why| match why {
        ConfigError::Unreadable { path, why, .. } if why.kind() == std::io::ErrorKind::NotFound => {
            let remedy = "give the node's folder with --out, and for a folder of `eddy init` the node with --node";
            ConfigError::Unreadable { path, why, remedy: remedy.to_owned() }
        }
        other => other,
    })?;
    let DescriptorFile { descriptor, .. } = DescriptorFile::read(&descriptor_path)?;
    if !old_keys.pair().are_of(&descriptor) {
        return Err(ConfigError::Value {
            at: Location::file(&key_path),
            what: format!("the keys are not those of {}", descriptor_path.display()),
            remedy: "run this in the folder of the node, with its own two files".to_owned(),
        });
    }
    if !force {
        let remedy = "install these keys first, or draw other ones with --force";
        refuse_existing(&[next.clone(), request.clone()], remedy)?;
    }

    let mut rng = seeded_rng()?;
    let (noise, noise_public) = draw_x25519(&mut rng);
    let keys = NodeKeys { noise, signing: draw_secret(&mut rng), ..old_keys };
    let signing = Signer::from_seed(&keys.signing).public();
    let content = NodeDescriptor { noise: noise_public, signing, ..descriptor.content().clone() };
    let text = request_text(&content)?;
    create(&next, keys.text().as_bytes(), 0o600)?;
    create(&request, text.as_bytes(), 0o644)?;
    sync(&[next.clone(), request.clone()])?;
    Ok(Rotation { content, keys: next, request })
}
