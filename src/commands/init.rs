//! `eddy init`: creates a chain from the command line, and prints the next commands.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context;
use eddy_node::ceremony::assemble::interval_s;
use eddy_node::ceremony::profile::{ClassChoice, for_hops, in_order};
use eddy_node::config::{ConfigError, NodeRole, node_name};
use eddy_node::figures::{Figures, HIDES_FROM, warnings};
use eddy_node::init::{Files, Plan, PlannedClass, lanes, write};
use eddy_node::runtime::path;
use wire::cell::{Class, Shape};
use wire::frames;
use wire::ids::ClassId;
use wire::paced::PacedTerms;
use wire::setup::Suite;

use crate::args::InitArgs;

/// The addresses of the mixes and, last, of the exit.
fn addresses(args: &InitArgs) -> Result<Vec<SocketAddr>, ConfigError> {
    if args.nodes.is_empty() { on_one_host(args) } else { one_by_one(args) }
}

/// Ports of a mix, or of the exit, which has one lane: one for each lane, then one for each paced class.
fn ports(args: &InitArgs, is_exit: bool) -> usize {
    ports_of_paced(args) + if is_exit { 1 } else { usize::from(args.shape.lanes) }
}

fn ports_of_paced(args: &InitArgs) -> usize {
    args.classes.iter().filter(|class| matches!(class, ClassChoice::Paced(_))).count()
}

/// The port of a node, `offset` after the base port.
fn port(args: &InitArgs, offset: usize) -> Result<u16, ConfigError> {
    let (base, needed) = (args.base_port, args.shape.mixes * ports(args, false) + ports(args, true));
    u16::try_from(usize::from(base) + offset).map_err(|_| {
        ConfigError::Arguments(format!("--base-port {base} is too high: this chain needs {needed} ports after it"))
    })
}

/// Ports in a row on one host.
fn on_one_host(args: &InitArgs) -> Result<Vec<SocketAddr>, ConfigError> {
    let host = match (args.host, args.ipv6) {
        (Some(IpAddr::V4(host)), true) => {
            return Err(ConfigError::Arguments(format!(
                "--host {host} is IPv4, but --ipv6 is set: leave out --ipv6 or use an IPv6 host"
            )));
        }
        (Some(host), _) => host,
        (None, true) => Ipv6Addr::LOCALHOST.into(),
        (None, false) => Ipv4Addr::LOCALHOST.into(),
    };
    let stride = ports(args, false);
    (0..=args.shape.mixes).map(|i| Ok(SocketAddr::new(host, port(args, i * stride + 1)?))).collect()
}

/// The addresses of --node.
fn one_by_one(args: &InitArgs) -> Result<Vec<SocketAddr>, ConfigError> {
    let hops = args.shape.mixes + 1;
    if args.nodes.len() != hops {
        return Err(ConfigError::Arguments(format!(
            "{} --node for {} mixes and an exit: give --node {hops} times, mix1 first and the exit last",
            args.nodes.len(),
            args.shape.mixes
        )));
    }
    let stride = ports(args, false);
    let parse = |(i, text): (usize, &String)| match text.parse::<IpAddr>() {
        Ok(ip) => Ok(SocketAddr::new(ip, port(args, i * stride + 1)?)),
        Err(_) => text.parse::<SocketAddr>().map_err(|_| {
            ConfigError::Arguments(format!("invalid --node {text:?}: expected IP, IP:PORT or [IPv6]:PORT"))
        }),
    };
    let all = args.nodes.iter().enumerate().map(parse).collect::<Result<Vec<_>, _>>()?;
    all.iter().try_for_each(|address| lanes(*address, 1).map(drop))?;

    if let Some(odd) = all.iter().find(|address| address.is_ipv4() && args.ipv6) {
        return Err(ConfigError::Arguments(format!(
            "--node {odd} is IPv4, but --ipv6 is set: leave out --ipv6 or use IPv6 addresses"
        )));
    }
    if let Some((i, twice)) = all.iter().enumerate().find(|(i, address)| all[..*i].contains(address)) {
        let name = |i| node_name(if i == args.shape.mixes { NodeRole::Exit } else { NodeRole::Mix }, i + 1);
        let first = all.iter().position(|address| address == twice).unwrap_or_default();
        return Err(ConfigError::Arguments(format!(
            "duplicate --node: {} and {} both get {twice}: write --node IP:PORT with a different port for each node of a host",
            name(first),
            name(i)
        )));
    }
    for (i, node) in all.iter().enumerate() {
        let is_exit = i == args.shape.mixes;
        let count = ports(args, is_exit);
        let taken = lanes(*node, count)?;
        if let Some(other) = all.iter().enumerate().find_map(|(j, at)| (j != i && taken.contains(at)).then_some(at)) {
            let whom = if is_exit { "the exit" } else { "each mix" };
            return Err(ConfigError::Arguments(format!(
                "--node {other} is one of the {count} ports of {node}: leave {count} ports for {whom}"
            )));
        }
    }
    Ok(all)
}

/// The free class of the chain, and its paced ones at the ports after those of lanes.
fn classes(args: &InitArgs, addresses: &[SocketAddr]) -> Result<(Class, Vec<PlannedClass>), ConfigError> {
    let (mut free, mut paced) = (Vec::new(), Vec::new());
    for choice in in_order(&args.classes)? {
        match choice {
            ClassChoice::Free(class) => free.push(*class),
            ClassChoice::Paced(terms) => {
                let nth = paced.len();
                let at = |(i, address): (usize, &SocketAddr)| {
                    let lanes_of = ports(args, i == args.shape.mixes) - ports_of_paced(args);
                    Ok(lanes(*address, lanes_of + nth + 1)?[lanes_of + nth])
                };
                let addresses = addresses.iter().enumerate().map(at).collect::<Result<_, ConfigError>>()?;
                paced.push(PlannedClass { terms: for_hops(terms.clone(), args.shape.mixes + 1), addresses });
            }
        }
    }
    match free[..] {
        [] => Ok((Class::L, paced)),
        [class] => Ok((class, paced)),
        _ => Err(ConfigError::Arguments(
            "init makes chains of one free class, and of paced ones: name one of S, M, L, or use `eddy assemble`"
                .to_owned(),
        )),
    }
}

/// Creates the chain.
///
/// # Errors
/// As [`write()`], or standard output is closed.
pub fn run(args: &InitArgs) -> anyhow::Result<()> {
    if args.shape.lanes > 1 && args.shape.mixes > 1 && !args.lanes_show_label_bits {
        return Err(ConfigError::Arguments(format!(
            "--lanes {} with {} mixes: the UDP port of a cell between hops would show bits of its channel's number: use \
             --mixes 1, or accept that with --lanes-show-label-bits",
            args.shape.lanes, args.shape.mixes
        ))
        .into());
    }
    let addresses = addresses(args)?;
    let (class, paced) = classes(args, &addresses)?;
    let paced_terms: Vec<PacedTerms> = paced.iter().map(|class| class.terms.clone()).collect();
    let plan = Plan {
        class,
        interval_s: interval_s(&paced_terms, addresses.len()),
        paced,
        suite: Suite::from_wire(args.suite).unwrap_or_default(),
        mixing: args.shape.mixing,
        lifetime_s: args.lifetime,
        lanes: usize::from(args.shape.lanes),
        lanes_show_label_bits: args.lanes_show_label_bits,
        force: args.force,
        ..Plan::new(&addresses)
    };
    let files = write(&args.dir, &plan)?;
    let shape = Shape::new(plan.class, plan.hops.len()).context("cannot compute the lengths of the chain")?;
    std::io::stdout()
        .write_all(next_commands(args, shape, &plan, &files).as_bytes())
        .context("cannot write to standard output")
}

/// The longest packet of all links, and of which class if that is paced: `link MTU 1388 (video)`.
fn link_mtu(plan: &Plan, addresses: &[SocketAddr]) -> String {
    let paced = plan.paced.iter().map(|class| (ClassId::from(class.terms.class), format!(" ({})", class.terms.name)));
    let classes = [(plan.class.into(), String::new())].into_iter().chain(paced);
    let longest = |(class, name)| {
        let links = addresses.iter().zip(1..);
        let lens = links.map(|(to, link)| path::longest_packet(class, addresses.len(), link, to.is_ipv6()));
        (lens.max().unwrap_or_default(), name)
    };
    // Of two that are as long, the free one.
    let (mtu, name) = classes.map(longest).rev().max_by_key(|(mtu, _)| *mtu).unwrap_or_default();
    format!("link MTU {mtu}{name}")
}

/// The files that were written, and the next commands.
fn next_commands(args: &InitArgs, shape: Shape, plan: &Plan, files: &Files) -> String {
    let addresses: Vec<SocketAddr> = plan.hops.iter().map(|hop| hop.address).collect();
    let class = shape.class();
    let suits = match class {
        Class::S => "suits voice and games",
        Class::M => "suits links of MTU 1280",
        Class::L => "suits WireGuard, QUIC and video",
    };
    let names: Vec<&str> = plan.paced.iter().map(|paced| paced.terms.name.as_str()).collect();
    let classes = match names[..] {
        [] => format!("class {class}"),
        _ => format!("classes {class}, {} (paced)", names.join(", ")),
    };
    let bytes = frames::max_single_cell_len(shape.payload());
    let mtu = link_mtu(plan, &addresses);
    let mut text = format!(
        "Created a chain of {classes} with {} mix{} in {}.\n\
         Class {class} {suits}: {bytes} bytes per cell, {mtu}.\n\n  \
         chain.toml  public: every node and user needs it\n  \
         NAME.toml   configuration of a node\n  \
         NAME.key    private keys of a node, with NAME.state: for its own host only\n  \
         NAME.identity.key  signs the descriptors of a node: move it offline\n\n\
         This host has had every private key; several operators use `eddy keygen`.\n\
         Start each node on its host, in any order:\n\n",
        args.shape.mixes,
        if args.shape.mixes == 1 { "" } else { "es" },
        args.dir.display()
    );

    let width = files.entry.as_os_str().len() + "eddy entry --config ".len();
    for (i, (config, address)) in files.hops.iter().zip(&addresses).enumerate() {
        let role = if i == args.shape.mixes { NodeRole::Exit } else { NodeRole::Mix };
        let _ = writeln!(text, "  {:<width$}  # {address}", format!("eddy {role} --config {}", config.display()));
    }
    let (entry, first) = (files.entry.display(), files.hops[0].display());
    let _ = write!(
        text,
        "  {:<width$}  # your host\n\n\
         Check a host first:\n\n  \
         eddy doctor --config {first}\n\n\
         Send UDP through the chain: start the entry with a forward, and send to it:\n\n  \
         eddy entry --config {entry} --forward 5000=HOST:PORT\n",
        format!("eddy entry --config {entry}")
    );

    for PlannedClass { terms, .. } in &plan.paced {
        let _ = write!(text, "\n{}", Figures::of(terms, plan.suite, plan.hops.len()).text(terms));
        text.extend(warnings(terms).iter().map(|warning| format!("\nWarning: {warning}\n")));
    }
    if let Some(PlannedClass { terms, .. }) = plan.paced.first() {
        let among = match terms.n_min {
            ..HIDES_FROM => String::new(),
            n_min => format!(", hidden among the users of a batch:\n{n_min} or more (n_min)"),
        };
        let _ = write!(
            text,
            "\nTwo users call each other{}.\n\
             Both have the secret that one of them makes:\n\n  \
             eddy meet new --out call.secret\n  \
             eddy entry --chain {} --forward 5000=meet:@call.secret,class={}\n",
            among,
            files.chain.display(),
            terms.name
        );
    }

    if addresses.iter().all(|address| address.ip().is_loopback()) {
        let network = if addresses[0].is_ipv6() { "::1/128" } else { "127.0.0.0/8" };
        let exit = files.hops[args.shape.mixes].display();
        let _ = write!(
            text,
            "\nTo try it with a server on this host, open loopback at the exit:\n\n  \
             eddy exit --config {exit} --allow {network}\n"
        );
    }
    text
}
