//! `eddy renew`: signs the next descriptor of a node, where its identity is.

use std::io::Write as _;

use anyhow::Context;
use eddy_node::ceremony::contact::Places;
use eddy_node::ceremony::files::node_role;
use eddy_node::ceremony::renew::{Plan, Renewed, renew};
use eddy_node::ceremony::{fingerprint, places_and_lanes, utc};
use eddy_node::config::wall_s;

use crate::args::RenewArgs;

/// Runs the command.
///
/// # Errors
/// A file of another identity, a mistake in a file, or a file that cannot be written.
pub fn run(args: &RenewArgs) -> anyhow::Result<()> {
    let plan = Plan {
        identity: args.identity.clone(),
        file: args.file.clone(),
        out: args.out.clone(),
        places: Places { classes: Vec::new(), addresses: args.addresses.clone(), names: args.names.clone() },
        drop_names: args.no_names,
        days: args.days,
        revoke: args.revoke,
    };
    let renewed = renew(&plan, wall_s())?;
    std::io::stdout().write_all(summary(args, &renewed).as_bytes()).context("standard output")
}

fn summary(args: &RenewArgs, renewed: &Renewed) -> String {
    let descriptor = &renewed.descriptor;
    let mut text = format!(
        "Signed revision {} of {} in {}:\n\n  \
         identity     {}\n",
        descriptor.revision,
        node_role(descriptor.role).with_article(),
        renewed.path.display(),
        fingerprint(&descriptor.identity),
    );
    // A request is not signed, so all of it is to be read.
    for contact in &descriptor.contacts {
        text += &format!("  class {}      {}\n", contact.class, places_and_lanes(contact));
    }
    text += &format!("  valid until  {}\n", utc(descriptor.not_after));
    if renewed.new_keys {
        text += &format!(
            "  noise        {}  (new)\n  signing      {}  (new)\n",
            fingerprint(&descriptor.noise),
            fingerprint(&descriptor.signing)
        );
    }
    if args.revoke && renewed.new_keys {
        text += "\nAll earlier descriptors of this node are revoked, with their keys.\n";
    } else if args.revoke {
        text += "\nAll earlier descriptors of this node are revoked, but the keys are the same: whoever has\n\
                 them can still act as this node. For new ones run `eddy keygen --rotate` on the node.\n";
    }
    text + "\nCopy it to the node, in place of its node.desc.\n"
}
