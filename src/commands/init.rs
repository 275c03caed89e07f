//! `eddy init`: makes a chain where the command line says, and says how to run it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context;
use eddy_node::config::{ConfigError, NodeRole};
use eddy_node::init::{Plan, lanes, write};

use crate::args::InitArgs;

/// Where the mixes and the exit are, from the command line: given one by one, or on one host from a
/// base port on.
fn addresses(args: &InitArgs) -> Result<Vec<SocketAddr>, ConfigError> {
    let h = args.mixes + 1;
    let (base, stride) = (args.base_port, usize::from(args.lanes));
    let needed = (h - 1) * stride + 1;
    let port = |i: usize| {
        u16::try_from(usize::from(base) + i)
            .map_err(|_| ConfigError::Arguments(format!("--base-port {base} leaves no {needed} ports below 65536")))
    };
    if args.nodes.is_empty() {
        let host = match (args.host, args.ipv6) {
            (Some(IpAddr::V4(host)), true) => {
                return Err(ConfigError::Arguments(format!(
                    "--host {host} is IPv4: leave out --ipv6 or take an IPv6 host"
                )));
            }
            (Some(host), _) => host,
            (None, true) => Ipv6Addr::LOCALHOST.into(),
            (None, false) => Ipv4Addr::LOCALHOST.into(),
        };
        return (0..h).map(|i| Ok(SocketAddr::new(host, port(i * stride + 1)?))).collect();
    }
    if args.nodes.len() != h {
        return Err(ConfigError::Arguments(format!(
            "{} --node for {} mixes and an exit: give --node {h} times, Mix 1 first and the exit last",
            args.nodes.len(),
            args.mixes
        )));
    }
    let all = args.nodes.iter().enumerate().map(|(i, text)| match text.parse::<IpAddr>() {
        Ok(ip) => Ok(SocketAddr::new(ip, port(i + 1)?)),
        Err(_) => text.parse::<SocketAddr>().map_err(|_| {
            ConfigError::Arguments(format!("--node {text:?} is no address: write IP, IP:PORT or [IPv6]:PORT"))
        }),
    });
    let all = all.collect::<Result<Vec<_>, _>>()?;
    if let Some(odd) = all.iter().find(|address| address.is_ipv4() && args.ipv6) {
        return Err(ConfigError::Arguments(format!("--node {odd} is IPv4: leave out --ipv6 or take IPv6 addresses")));
    }
    if let Some((i, twice)) = all.iter().enumerate().find(|(i, address)| all[..*i].contains(address)) {
        return Err(ConfigError::Arguments(format!("--node {twice} stands twice, the second time for node {}", i + 1)));
    }
    for (i, mix) in all[..h - 1].iter().enumerate() {
        let taken = lanes(*mix, stride)?;
        if let Some(other) = all.iter().enumerate().find_map(|(j, at)| (j != i && taken.contains(at)).then_some(at)) {
            return Err(ConfigError::Arguments(format!(
                "--node {other} lies among the {stride} lanes of {mix}: leave as many ports between them"
            )));
        }
    }
    Ok(all)
}

/// Runs the command.
///
/// # Errors
/// As [`write()`], or standard output is gone.
pub fn run(args: &InitArgs) -> anyhow::Result<()> {
    let addresses = addresses(args)?;
    let plan = Plan {
        class: args.class,
        mixing: args.mixing,
        lifetime_s: args.lifetime,
        lanes: usize::from(args.lanes),
        force: args.force,
        ..Plan::new(&addresses)
    };
    let files = write(&args.dir, &plan)?;
    let mut text = format!(
        "A chain of class {} with {} mixes is in {}.\n\nRun each node where its address is, in any order:\n\n",
        plan.class,
        args.mixes,
        args.dir.display()
    );
    let h = addresses.len();
    let width = files.entry.as_os_str().len() + "eddy entry --config ".len();
    for (i, (config, address)) in files.hops.iter().zip(&addresses).enumerate() {
        let role = if i + 1 == h { NodeRole::Exit } else { NodeRole::Mix };
        let _ = writeln!(text, "  {:<width$}  # at {address}", format!("eddy {role} --config {}", config.display()));
    }
    let entry = files.entry.display();
    let _ = write!(
        text,
        "  {:<width$}  # on the user's side\n\n\
         Each node needs chain.toml, its own NAME.toml and its own NAME.key; a key file goes nowhere else.\n\
         To send UDP through the chain, add a forward, and send to its first address:\n\n  \
         eddy entry --config {entry} --forward 127.0.0.1:5000=HOST:PORT\n",
        format!("eddy entry --config {entry}")
    );
    std::io::stdout().write_all(text.as_bytes()).context("standard output")
}
