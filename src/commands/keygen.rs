//! `eddy keygen`: draws the keys of a node on its own host, and says which of its files goes where.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context;
use control::trust::{HopRole, SignedDescriptor};
use eddy_node::ceremony::contact::Places;
use eddy_node::ceremony::files::{IDENTITY_KEY, node_role};
use eddy_node::ceremony::keygen::{Names, Plan, Rotation, keygen, rotate};
use eddy_node::ceremony::{fingerprint, utc};
use eddy_node::config::{ConfigError, wall_s};

use crate::args::KeygenArgs;

/// Runs the command.
///
/// # Errors
/// A mistake on the command line, or a file that exists or cannot be written.
pub fn run(args: &KeygenArgs) -> anyhow::Result<()> {
    let text = match args.role {
        Some(role) => new_node(args, role.into())?,
        None => rotated(args, &rotate(&args.out, &args.node, args.force)?),
    };
    std::io::stdout().write_all(text.as_bytes()).context("standard output")
}

fn new_node(args: &KeygenArgs, role: HopRole) -> Result<String, ConfigError> {
    if role == HopRole::Exit && args.lanes != 1 {
        return Err(ConfigError::Arguments("--lanes is for mixes: leave it out for an exit".to_owned()));
    }
    let places = Places { classes: args.classes.clone(), addresses: args.addresses.clone(), names: args.names.clone() };
    let plan = Plan { role, contacts: places.contacts(args.lanes)?, days: args.days, force: args.force };
    let descriptor = keygen(&args.out, &plan, wall_s())?;
    Ok(created(&args.out, &descriptor))
}

fn created(dir: &Path, descriptor: &SignedDescriptor) -> String {
    // The whole path: whoever moves the file must find it.
    let identity = dir.join(IDENTITY_KEY);
    let identity = identity.canonicalize().unwrap_or(identity);
    format!(
        "Created {} in {}:\n\n  \
         identity.key  signs its descriptors: move it offline\n  \
         node.key      keys of the running node: they stay on this host\n  \
         node.desc     public: give it to whoever assembles the chain\n  \
         node.toml     configuration; it expects chain.toml in the same folder\n  \
         node.state    what the node must not forget; it stays with node.key\n\n\
         identity     {}\n\
         valid until  {}; `eddy renew` signs the next descriptor\n\n\
         Move the identity to an offline medium, and keep a copy of it:\n\n  \
         {}\n\n\
         No running node needs it. Whoever has it can replace this node.\n",
        node_role(descriptor.role).with_article(),
        dir.display(),
        fingerprint(&descriptor.identity),
        utc(descriptor.not_after),
        identity.display(),
    )
}

fn rotated(args: &KeygenArgs, rotation: &Rotation) -> String {
    let node = &args.node;
    let identity = if node == "node" { IDENTITY_KEY.to_owned() } else { Names::among_others(node).identity };
    format!(
        "Drew new keys for {} in {}:\n\n  \
         {node}.key.next  the new keys; they stay on this host, beside {node}.key\n  \
         {node}.request   public: sign it where {identity} is\n\n\
         noise    {}\n\
         signing  {}\n\n\
         Compare these fingerprints there, and bring back the {node}.desc that this writes:\n\n  \
         eddy inspect {node}.request\n  \
         eddy renew --identity {identity} {node}.request\n",
        node_role(rotation.content.role).with_article(),
        args.out.display(),
        fingerprint(&rotation.content.noise),
        fingerprint(&rotation.content.signing),
    )
}
