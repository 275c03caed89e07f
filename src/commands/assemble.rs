//! `eddy assemble`: makes a chain file from descriptors, and prints the fingerprint that everyone compares.

use std::io::Write as _;

use anyhow::Context;
use eddy_node::ceremony::assemble::{INTERVAL_S, Plan, assemble};
use eddy_node::ceremony::{ChainFile, fingerprint, utc};
use eddy_node::config::{node_name, wall_s};
use eddy_node::figures::{Figures, warnings};
use wire::setup::Suite;

use crate::args::AssembleArgs;

/// Runs the command.
///
/// # Errors
/// A descriptor that does not fit, or a file that exists or cannot be written.
pub fn run(args: &AssembleArgs) -> anyhow::Result<()> {
    let plan = Plan {
        suite: Suite::from_wire(args.suite).unwrap_or_default(),
        interval_s: args.interval,
        epoch_s: args.epoch,
        classes: args.classes.clone(),
        mixing_delay_ms: args.mixing_delay_ms,
        lifetime_s: args.lifetime_s,
        force: args.force,
        ..Plan::new(args.mixes.clone(), args.exit.clone(), args.out.clone())
    };
    let chain = assemble(&plan, wall_s())?;
    std::io::stdout().write_all(summary(args, &chain).as_bytes()).context("standard output")
}

fn summary(args: &AssembleArgs, chain: &ChainFile) -> String {
    let mixes = chain.descriptors.len() - 1;
    let mut text = format!(
        "Created {}, a chain of {mixes} mix{} and an exit:\n\n",
        args.out.display(),
        if mixes == 1 { "" } else { "es" }
    );
    for (i, descriptor) in chain.descriptors.iter().enumerate() {
        let name = node_name(chain.role(i + 1), i + 1);
        text += &format!("  {name:<5} {}  until {}\n", fingerprint(&descriptor.identity), utc(descriptor.not_after));
    }
    for class in &chain.terms.paced {
        text += &format!("\n{}", Figures::of(class, chain.terms.suite, chain.descriptors.len()).text(class));
        if class.n_min > 1 {
            text += &format!("  company  a batch of fewer than {} channels carries nothing (n_min)\n", class.n_min);
        }
        text.extend(warnings(class).iter().map(|warning| format!("\nWarning: {warning}\n")));
    }
    if args.interval.is_none() && chain.terms.interval_s != INTERVAL_S {
        text += &format!("\ninterval     {} s, the shortest for these classes\n", chain.terms.interval_s);
    }
    text + &format!(
        "\nfingerprint  {}\n\n\
         Give the file to all operators and users. Everyone compares the fingerprint,\n\
         over the phone for example, with what this prints for their own copy:\n\n  \
         eddy inspect {}\n",
        fingerprint(&chain.id),
        args.out.display(),
    )
}
