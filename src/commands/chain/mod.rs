//! `eddy chain`: a demonstration and smoke test.
//!
//! Creates a chain in a temporary folder, binds every socket, starts entry, mixes and exit as processes
//! that inherit them, sends messages, and accounts for every packet. Succeeds only if everything sent was
//! delivered and answered and every ledger closes.
//!
//! `children` keeps the processes, `traffic` sends and answers, `summary` prints the result. With a paced class `calls`
//! runs another demonstration.

mod calls;
mod children;
mod summary;
mod traffic;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use dataplane::lanes;
use dataplane::socket::backend::Calls;
use signal_hook::consts::{SIGINT, SIGTERM};
use tracing_subscriber::filter::LevelFilter;
use wire::cell::{Class, Shape};
use wire::frames;
use wire::setup::Suite;

use self::children::{Children, Start};
use self::summary::Summary;
use self::traffic::{Load, Outcome, Payload};
use super::run::wireguard_hint;
use crate::args::{ChainArgs, ChainClass};
use crate::log;
use eddy_node::ceremony::profile::for_hops;
use eddy_node::config::{CHANNELS, ConfigError, Forward, NodeRole, check_fits, node_name};
use eddy_node::init::{self, Files, Plan};
use eddy_node::report::NodeReport;
use eddy_node::runtime::{sockets, status};

/// Receivers, messages and messages per second by default.
const RECEIVERS: usize = 5;
const MESSAGES: u64 = 10;
const RATE: f64 = 50.0;
/// Most messages of one run: their times are kept in memory.
const MESSAGES_MAX: u64 = 20_000_000;
/// Time for a chain to come up, in addition to its mixing delays.
const SETUP_MAX: Duration = Duration::from_secs(20);
/// Time for an answer, in addition to the mixing delays.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Networks that the exit opens in addition to public ones.
const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];
/// Log level of its nodes by default.
const NODE_LEVEL: LevelFilter = LevelFilter::WARN;
/// Time between checks of a running chain.
const LOOK: Duration = Duration::from_millis(100);

/// Every socket of the chain, bound before any process starts: no other program can take a port in
/// between.
struct Bound {
    entry: Vec<UdpSocket>,
    /// Of each mix: one `up` per worker, and `down`.
    mixes: Vec<(Vec<UdpSocket>, UdpSocket)>,
    exit: UdpSocket,
    receivers: Vec<UdpSocket>,
    socks: Vec<TcpListener>,
}

/// Runs the demonstration.
///
/// # Errors
/// A mistake on the command line, a node that dies or does not come up, anything lost, or a ledger
/// that does not close.
pub fn run(args: &ChainArgs) -> anyhow::Result<()> {
    match &args.class {
        ChainClass::Paced { terms, sets_rounds } => {
            let hops = args.shape.mixes + 1;
            let mut terms = for_hops(terms.clone(), hops);
            if !sets_rounds {
                terms.rounds = terms.rounds_min(Suite::default(), hops);
            }
            calls::run(args, &terms)
        }
        ChainClass::Free(_) if args.users.is_some() => {
            Err(ConfigError::Arguments("--users needs a paced class: add --class voice, or leave it out".to_owned())
                .into())
        }
        ChainClass::Free(class) => messages(args, *class),
    }
}

/// Messages through a free class.
fn messages(args: &ChainArgs, class: Class) -> anyhow::Result<()> {
    let shape = Shape::new(class, args.shape.mixes + 1).map_err(|why| ConfigError::Arguments(why.to_string()))?;
    check_fits(shape, args.ipv6)?;
    let load = plan_load(args)?;
    eddy_node::runtime::running::engine()?;
    let log = args.log.for_children(NODE_LEVEL)?;
    let interrupted = interruptible(args.lifeline)?;

    let dir = tempfile::Builder::new()
        .prefix("eddy-chain-")
        .tempdir()
        .context("cannot create a temporary folder; set TMPDIR to a writable one")?;
    let bound = bind(args)?;
    // A chain that stays passes on the warnings of its nodes; otherwise this line is the only one.
    if let (_, Some(why)) = Calls::new(args.io, &bound.exit)
        && !args.stay
    {
        log::say(format_args!("io_uring is not available: {why}; using recvmmsg and sendmmsg"));
    }
    let plan = plan(args, class, &bound)?;
    let files = init::write(dir.path(), &plan)?;
    let started = Instant::now();
    let receivers = bound.receivers.iter().map(UdpSocket::try_clone).collect::<Result<Vec<_>, _>>()?;
    let mut children = Children::spawn(starts(&files, bound), &log, args.stay || args.log.is_set())?;
    let all_delays = plan.mixing.largest_delay() * args.shape.mixes as u32;
    children.wait_for_channels(plan.entry.channels, SETUP_MAX + 4 * all_delays, &interrupted)?;
    let setup = started.elapsed();
    let at_start = children.reports();
    announce(args, &plan, &files, setup)?;

    let traffic = Traffic {
        load: &load,
        receivers,
        clients: plan.entry.forwards[..receiver_count(args)].iter().map(|forward| forward.listen).collect(),
        patience: ANSWER_TIMEOUT + 2 * all_delays,
        limit: frames::max_datagram_len(shape.payload()),
    };
    let (outcome, too_large) = traffic.run(&mut children, &interrupted)?;
    if args.stay && !args.json {
        print(&format!(
            "Test: {} sent, {} delivered, {} answered.\n\n",
            outcome.sent, outcome.delivered, outcome.answered
        ))?;
    }
    while args.stay && !interrupted.load(Ordering::Relaxed) {
        children.check()?;
        std::thread::sleep(LOOK);
    }
    // Nodes that have stopped have no links.
    let before = children.reports();
    let with_gauges = |(node, before): (NodeReport, Option<NodeReport>)| match before {
        Some(before) => node.with_gauges_of(&before),
        None => node,
    };
    let nodes: Vec<_> = children.finish()?.into_iter().zip(before).map(with_gauges).collect();

    let summary = Summary { setup, outcome: &outcome, at_start: &at_start, stayed: args.stay, nodes: &nodes };
    print(&if args.json { summary.json()? } else { summary.people(args.log.verbose > 0) })?;
    if too_large > 0 {
        let (len, limit) = (load.payload.len(), frames::max_datagram_len(shape.payload()));
        bail!("the entry refused {too_large} datagrams of {len} bytes (limit {limit})");
    }
    summary.verdict()
}

/// The demonstration's messages, and what carries them.
struct Traffic<'a> {
    load: &'a Load,
    receivers: Vec<UdpSocket>,
    /// The forward of each receiver at the entry.
    clients: Vec<SocketAddr>,
    patience: Duration,
    /// Bytes of the longest datagram that the chain carries.
    limit: usize,
}

impl Traffic<'_> {
    /// Sends them. Also how many the entry refused as too large.
    fn run(self, children: &mut Children, interrupted: &AtomicBool) -> anyhow::Result<(Outcome, u64)> {
        let Traffic { load, receivers, clients, patience, limit } = self;
        let refusable = matches!(load.payload, Payload::Length(len) if len > limit);
        let entry = children.status_of_entry();
        let too_large = || {
            let report = status::ask(&entry).ok();
            let drops = report.and_then(|report| report.ledger.datagrams).map(|datagrams| datagrams.forward.dropped);
            drops.and_then(|drops| drops.get("too-large").copied()).unwrap_or(0)
        };
        let outcome = traffic::run(load, receivers, clients, patience, |sent| {
            if interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            children.check()?;
            Ok(refusable && sent == load.messages && too_large() >= sent)
        })?;
        Ok((outcome, if refusable { too_large() } else { 0 }))
    }
}

fn receiver_count(args: &ChainArgs) -> usize {
    args.receivers.unwrap_or(RECEIVERS)
}

/// The messages to send, from the command line.
fn plan_load(args: &ChainArgs) -> Result<Load, ConfigError> {
    let rate = args.rate.unwrap_or(RATE);
    let messages = args.seconds.map_or(args.messages.unwrap_or(MESSAGES), |seconds| (seconds * rate).round() as u64);
    if messages > MESSAGES_MAX {
        return Err(ConfigError::Arguments(format!(
            "{messages} messages are too many for one run: lower --rate, --seconds or --messages (limit {MESSAGES_MAX})"
        )));
    }
    let payload = args.payload_len.map_or(Payload::Hello, |len| Payload::Length(len as usize));
    Ok(Load { messages, rate, payload })
}

/// Raised by SIGINT or SIGTERM.
fn interruptible(lifeline: bool) -> anyhow::Result<Arc<AtomicBool>> {
    let raised = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, raised.clone()).context("cannot handle SIGINT and SIGTERM")?;
    }
    if lifeline {
        let raised = raised.clone();
        let wait = move || {
            let mut ignored = [0; 64];
            while std::io::stdin().read(&mut ignored).is_ok_and(|n| n > 0) {}
            raised.store(true, Ordering::Relaxed);
        };
        std::thread::Builder::new()
            .name("lifeline".into())
            .spawn(wait)
            .context("cannot start the thread that reads standard input")?;
    }
    Ok(raised)
}

fn loopback(args: &ChainArgs) -> IpAddr {
    if args.ipv6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }
}

/// A socket at any port of loopback.
fn any(args: &ChainArgs) -> anyhow::Result<UdpSocket> {
    let loopback = loopback(args);
    UdpSocket::bind((loopback, 0)).with_context(|| {
        let family = if args.ipv6 { "IPv6: leave out --ipv6" } else { "IPv4: try --ipv6" };
        format!("cannot bind a UDP socket to {loopback}: this host may have no {family}")
    })
}

fn bind(args: &ChainArgs) -> anyhow::Result<Bound> {
    let any = || any(args);
    let given = |address: SocketAddr, option: &str| {
        UdpSocket::bind(address).map_err(|why| sockets::cannot_bind(&format!("{option} {address}"), address, &why))
    };

    for (i, forward) in args.forwards.iter().enumerate() {
        let Forward { listen, to, .. } = forward;
        if let Some(first) = args.forwards[..i].iter().find(|first| first.listen == *listen && listen.port() != 0) {
            let what = format!("--forward {listen}={to}: the port is also that of --forward {listen}={}", first.to);
            return Err(ConfigError::Arguments(format!("{what}: use a different port for each")).into());
        }
    }

    let mut entry = vec![any()?];
    for _ in 0..receiver_count(args) {
        entry.push(any()?);
    }
    for forward in &args.forwards {
        entry.push(given(forward.listen, "--forward")?);
    }
    for &listen in &args.pymix {
        entry.push(given(listen, "--pymix")?);
    }

    let listen = |&at: &SocketAddr| {
        if !at.ip().to_canonical().is_loopback() {
            let said = format!("--socks {at} is not on loopback: use 127.0.0.1:{}", at.port());
            return Err(ConfigError::Arguments(said).into());
        }
        Ok(TcpListener::bind(at).map_err(|why| sockets::cannot_listen(&format!("--socks {at}"), at, &why))?)
    };
    let socks = args.socks.iter().map(listen).collect::<anyhow::Result<_>>()?;

    let lanes = usize::from(args.shape.lanes);
    let mix = |_| {
        if lanes == 1 {
            return Ok((vec![any()?], any()?));
        }
        anyhow::Ok((row(&any, lanes)?, sockets::bind_shared((loopback(args), 0).into())?))
    };
    let mixes = (0..args.shape.mixes).map(mix).collect::<anyhow::Result<_>>()?;
    let receivers = (0..receiver_count(args)).map(|_| any()).collect::<anyhow::Result<_>>()?;
    Ok(Bound { entry, mixes, exit: any()?, receivers, socks })
}

/// `count` sockets at ports in a row.
fn row(any: &impl Fn() -> anyhow::Result<UdpSocket>, count: usize) -> anyhow::Result<Vec<UdpSocket>> {
    let rest = || {
        let mut row = vec![any()?];
        let first = row[0].local_addr()?;
        for lane in 1..count {
            match lanes::address(first, lane).map(UdpSocket::bind) {
                Some(Ok(socket)) => row.push(socket),
                Some(Err(_)) | None => return Ok(None),
            }
        }
        anyhow::Ok(Some(row))
    };
    // Another socket may have one of the ports: try elsewhere.
    for _ in 0..100 {
        if let Some(row) = rest()? {
            return Ok(row);
        }
    }
    bail!("found no {count} free UDP ports in a row: lower --lanes")
}

/// The chain over the bound sockets.
fn plan(args: &ChainArgs, class: Class, bound: &Bound) -> anyhow::Result<Plan> {
    let ups = bound.mixes.iter().map(|(ups, _)| &ups[0]).chain([&bound.exit]);
    let ups = ups.map(UdpSocket::local_addr).collect::<Result<Vec<_>, _>>()?;
    let mut plan = Plan {
        class,
        mixing: args.shape.mixing,
        renew_after_s: args.renew_after_s,
        offload: args.offload,
        io: args.io,
        lanes: usize::from(args.shape.lanes),
        // All its links are on loopback.
        lanes_show_label_bits: args.shape.lanes > 1,
        resolver: args.resolver,
        allow: LOOPBACK.iter().map(|net| net.parse()).collect::<Result<_, _>>().map_err(anyhow::Error::msg)?,
        ..Plan::new(&ups)
    };

    // The receivers of the demonstration are on loopback and get as much as is sent.
    plan.trust.clone_from(&plan.allow);
    plan.allow.extend(args.allow.iter().cloned());
    plan.deny.extend(args.deny.iter().cloned());
    for (hop, (_, down)) in plan.hops.iter_mut().zip(&bound.mixes) {
        hop.down = down.local_addr()?;
    }

    let mut entry = bound.entry.iter().map(UdpSocket::local_addr);
    let mut next = || entry.next().context("a socket per forward and pymix port").and_then(|a| Ok(a?));
    plan.entry.channels = args.channels.unwrap_or(CHANNELS);
    plan.entry.down = next()?;
    for receiver in &bound.receivers {
        let to = dataplane::entry::Destination::Ip(receiver.local_addr()?);
        plan.entry.forwards.push(Forward { listen: next()?, to: to.into(), idle: None, max_age: None, class: None });
    }
    for forward in &args.forwards {
        plan.entry.forwards.push(Forward { listen: next()?, ..forward.clone() });
    }
    for _ in &args.pymix {
        plan.entry.pymix.push(next()?);
    }
    for socket in &bound.socks {
        plan.entry.socks.push(socket.local_addr()?);
    }
    Ok(plan)
}

/// The entry, the mixes and the exit, each with its sockets in the order it takes them.
fn starts(files: &Files, bound: Bound) -> Vec<Start> {
    let hops = files.hops.len();
    let udp = |sockets: Vec<UdpSocket>| sockets.into_iter().map(OwnedFd::from).collect::<Vec<_>>();
    let of_entry = udp(bound.entry).into_iter().chain(bound.socks.into_iter().map(OwnedFd::from)).collect();
    let of_mixes = bound.mixes.into_iter().map(|(ups, down)| udp(ups.into_iter().chain([down]).collect()));
    let sockets = std::iter::once(of_entry).chain(of_mixes).chain([udp(vec![bound.exit])]);
    let configs = std::iter::once(&files.entry).chain(&files.hops);
    configs.zip(sockets).enumerate().map(|(index, (config, sockets))| start_of(config, index, hops, sockets)).collect()
}

/// The node at this position of a chain.
fn start_of(config: &Path, index: usize, hops: usize, sockets: Vec<OwnedFd>) -> Start {
    let role = NodeRole::at(index, hops).unwrap_or(NodeRole::Exit);
    let status = config.with_file_name(format!("{}.sock", node_name(role, index)));
    Start { role, index, config: config.to_owned(), status, sockets }
}

/// Prints where a chain that stays can be used and inspected.
fn announce(args: &ChainArgs, plan: &Plan, files: &Files, setup: Duration) -> anyhow::Result<()> {
    if !args.stay {
        return Ok(());
    }
    print(&if args.json { ready_json(plan, files, setup) } else { ready_text(args, plan, files, setup)? })
}

/// For programs: all listeners, those of the demonstration first.
fn ready_json(plan: &Plan, files: &Files, setup: Duration) -> String {
    let forwards = plan.entry.forwards.iter();
    let forwards: Vec<_> =
        forwards.map(|forward| serde_json::json!({"listen": forward.listen, "to": forward.to.to_string()})).collect();
    let configs = || std::iter::once(&files.entry).chain(&files.hops);
    let status: Vec<_> = configs().map(|config| config.with_extension("sock")).collect();
    let ready = serde_json::json!({
        "setup_ms": setup.as_millis() as u64,
        "forwards": forwards,
        "pymix": plan.entry.pymix,
        "socks": plan.entry.socks,
        "chain": files.chain,
        "configs": configs().collect::<Vec<_>>(),
        "status": status,
    });
    format!("{ready}\n")
}

/// For people: the requested listeners, and the next commands.
fn ready_text(args: &ChainArgs, plan: &Plan, files: &Files, setup: Duration) -> anyhow::Result<String> {
    let plural = if args.shape.mixes == 1 { "" } else { "es" };
    let mut text = format!(
        "The chain is up after {} ms: entry, {} mix{plural}, exit. Press Ctrl-C to stop it.\n\n",
        setup.as_millis(),
        args.shape.mixes
    );

    let asked = &plan.entry.forwards[receiver_count(args)..];
    for forward in asked {
        text += &format!("  forward {:<22} -> {}\n", forward.listen.to_string(), forward.to);
    }
    for pymix in &plan.entry.pymix {
        text += &format!("  pymix   {pymix}\n");
    }
    for socks in &plan.entry.socks {
        text += &format!("  socks   {socks}\n");
    }
    if asked.is_empty() && plan.entry.pymix.is_empty() && plan.entry.socks.is_empty() {
        text += "  no listeners: --forward and --socks add them\n";
    }

    let shape = Shape::new(plan.class, plan.hops.len()).context("cannot compute the lengths of the chain")?;
    let entry = files.entry.display();
    text += &format!(
        "\nDatagrams of up to {} bytes travel in one cell, of up to {} in several.\n\
         {}\n",
        frames::max_single_cell_len(shape.payload()),
        frames::max_datagram_len(shape.payload()),
        textwrap::fill(&capitalised(&wireguard_hint(shape.payload(), shape.class().name(), Class::L.name())), 80)
    );
    text += &format!("\nAdd a forward:\n  eddy forward add --config {entry} PORT=HOST:PORT\n");
    text += &format!("\nchain.toml, for a program with its own entry:\n  {}\n", files.chain.display());
    text += "\nInspect a node:\n";
    for config in std::iter::once(&files.entry).chain(&files.hops) {
        text += &format!("  eddy status --config {}\n", config.display());
    }
    Ok(text + "\n")
}

/// A text as a sentence.
fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).chain(['.']).collect())
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to standard output")
}
