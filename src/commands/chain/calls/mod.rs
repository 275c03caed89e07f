//! `eddy chain --class voice`: calls between the users of a chain in a paced class, and the same calls in a free one.
//!
//! Mixes and exit are processes as in the other demonstration. The entries of all users are in this process: each
//! serves a meeting in the paced class, and a forward to the other user's socket in the free class, which has no
//! meetings. Succeeds only if every call worked, every ledger closes, and the links between hops were constant.
//!
//! `voice` sends and receives, `tap` records the access links for the `attacker`, `table` compares the two classes.

mod attacker;
mod table;
mod tap;
mod voice;

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use dataplane::entry::Destination;
use eddy_node::Entry;
use eddy_node::config::{ClassName, ConfigError, Target, create_meeting};
use eddy_node::figures::Figures;
use eddy_node::init::{self, Files, Plan, PlannedClass};
use eddy_node::report::paced::MeetingReport;
use eddy_node::report::{NodeReport, RoundsReport};
use eddy_node::runtime::random::rng;
use eddy_node::runtime::running::engine;
use indicatif::{ProgressBar, ProgressStyle};
use wire::cell::{Direction, Shape};
use wire::paced::PacedTerms;
use wire::setup::Suite;

use self::attacker::Recording;
use self::table::{DIRECT_S, OfClass, Summary};
use self::tap::Tap;
use self::voice::{Codec, PER_SECOND, Stream};
use super::children::{Children, SILENCE_MAX};
use super::{LOOPBACK, NODE_LEVEL, any, interruptible, print, start_of};
use crate::args::ChainArgs;
use crate::log;

/// Users by default: ten calls.
const USERS: usize = 20;
/// Seconds of each half by default.
const SECONDS: f64 = 10.0;
/// Time between looks at entries that wait.
const LOOK: Duration = Duration::from_millis(500);
/// Time for a chain to come up, in addition to intervals and batches.
const SETUP_MAX: Duration = Duration::from_secs(60);

/// The sockets of a hop: `up` and `down` of the free class, then those of the paced one. The exit needs no `down`.
type OfHop = [[UdpSocket; 2]; 2];

/// A user: an entry in this process, and an application.
struct User {
    entry: Entry,
    app: UdpSocket,
    /// Where the other user's voice comes out of the free class.
    outside: UdpSocket,
    /// The entry's addresses for the paced and for the free class.
    listens: [SocketAddr; 2],
}

/// Runs the demonstration in a class of these terms.
///
/// # Errors
/// A mistake on the command line, a node that dies or does not come up, calls that did not work, a ledger that does not
/// close, or links that were not constant.
pub fn run(args: &ChainArgs, terms: &PacedTerms) -> anyhow::Result<()> {
    let users = args.users.unwrap_or(USERS);
    check(args, terms, users)?;
    engine()?;
    let log = args.log.for_children(NODE_LEVEL)?;
    let interrupted = interruptible(args.lifeline)?;
    let dir = tempfile::Builder::new()
        .prefix("eddy-chain-")
        .tempdir()
        .context("cannot create a temporary folder; set TMPDIR to a writable one")?;

    let of_hop = |_| Ok([[any(args)?, any(args)?], [any(args)?, any(args)?]]);
    let sockets = (0..=args.shape.mixes).map(of_hop).collect::<anyhow::Result<Vec<OfHop>>>()?;
    let [free, paced] = sockets[0].each_ref().map(|[up, _]| up.local_addr());
    let mix1 = [paced?, free?];
    let plan = plan(args, terms, &sockets)?;
    let files = init::write(dir.path(), &plan)?;
    if !args.json {
        print(&announcement(args, terms, users, plan.interval_s))?;
    }

    let (started, started_ms) = (Instant::now(), since_1970());
    let mut children = Children::spawn(starts(&files, sockets), &log, args.log.is_set())?;
    let name: ClassName = terms.name.parse().context("the name was checked")?;
    let free: ClassName = terms.class.size().into();
    let tap = Tap::start(|| any(args), std::iter::repeat_n(mix1, users).flatten())?;
    let users = start_users(args, &files, [&name, &free], &tap.addresses, users)?;
    wait(&users, (&name, terms), (plan.interval_s, started_ms), &mut children, &interrupted)?;
    let setup = started.elapsed();

    let seconds = args.seconds.unwrap_or(SECONDS);
    let codec = Codec::for_class(Figures::of(terms, Suite::default(), args.shape.mixes + 1).kbit_s.meeting);
    let mut rng = rng()?;
    let mut talks: Vec<_> = users.iter().map(|_| voice::draw(seconds, &mut rng)).collect();
    let (mut results, mut calls) = (Vec::new(), Vec::new());
    let watch = |children: &mut Children| {
        if interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        children.check()
    };
    for (at, class) in [&name, &free].into_iter().enumerate() {
        let before = Rounds::of(&children.reports(), class);
        let streams = streams(&users, &talks, |user, peer| {
            let receiver = if at == 0 { &peer.app } else { &peer.outside };
            Ok((user.listens[at], receiver.try_clone()?))
        })?;
        let start = Instant::now();
        let what = format!("calls in class {class}");
        let heard = voice::run(streams, start, (codec, &what), || watch(&mut children))?;
        let reports = children.reports();
        let rounds = Rounds::of(&reports, class).since(before);
        results.push(OfClass::new(class, &heard, (at == 0).then_some(rounds), &reports)?);
        calls.push((start.duration_since(tap.begin), heard));
    }
    talks.iter_mut().for_each(|talks| talks.truncate(DIRECT_S * PER_SECOND));
    let streams = streams(&users, &talks, |_, peer| Ok((peer.outside.local_addr()?, peer.outside.try_clone()?)))?;
    let heard = voice::run(streams, Instant::now(), (codec, "calls without a chain"), || watch(&mut children))?;
    results.push(OfClass::direct(&heard));

    let skipped = users.iter().filter_map(|user| user.entry.report().classes.get(name.as_str())?.paced.clone());
    let skipped = skipped.map(|paced| paced.entry.map_or(0, |entry| entry.skipped)).sum();
    let mut nodes = Vec::new();
    for user in users {
        nodes.push(user.entry.shutdown()?);
    }
    nodes.extend(children.finish()?);

    let links = tap.finish()?;
    let free_cell = Shape::new(terms.class.size(), plan.hops.len()).context("cannot compute the lengths of cells")?;
    let cell_bytes = [terms.class.cell_len(), free_cell.cell_len(Direction::Backward, 1)];
    for (at, (begin, heard)) in calls.iter().enumerate() {
        let (begin, length) = (begin.as_nanos() as u64, (seconds * 1e9) as u64);
        let of_class = links.iter().skip(at).step_by(2);
        let links = of_class.map(|place| attacker::window(place, begin, length)).collect();
        let is_paced = at == 0;
        let (datagram_bytes, cell_bytes) = (codec.len, cell_bytes[at]);
        let recording = Recording { links, heard, datagram_bytes, cell_bytes, is_paced, length };
        results[at].attacker = recording.attack();
    }
    let summary = Summary { setup, seconds, codec: codec.name, results: &results, skipped, nodes: &nodes };
    print(&if args.json { summary.json()? } else { summary.people(args.log.verbose > 0) })?;
    summary.verdict()
}

/// The voice of each user. `way` says where it goes, and at which socket of the other user of the call it comes out.
fn streams(
    users: &[User],
    talks: &[Vec<bool>],
    way: impl Fn(&User, &User) -> std::io::Result<(SocketAddr, UdpSocket)>,
) -> std::io::Result<Vec<Stream>> {
    let stream = |(i, (user, talks)): (usize, (&User, &Vec<bool>))| {
        let (to, receiver) = way(user, &users[i ^ 1])?;
        Ok(Stream { from: user.app.try_clone()?, to, receiver, talks: talks.clone() })
    };
    users.iter().zip(talks).enumerate().map(stream).collect()
}

/// Refuses options of the other demonstration, and terms that do not have room for all users.
fn check(args: &ChainArgs, terms: &PacedTerms, users: usize) -> Result<(), ConfigError> {
    let foreign = [
        ("--stay", args.stay),
        ("--forward", !args.forwards.is_empty()),
        ("--socks", !args.socks.is_empty()),
        ("--pymix", !args.pymix.is_empty()),
        ("--channels", args.channels.is_some()),
        ("--receivers", args.receivers.is_some()),
        ("--messages", args.messages.is_some()),
        ("--rate", args.rate.is_some()),
        ("--payload-len", args.payload_len.is_some()),
        ("--allow", !args.allow.is_empty()),
        ("--deny", !args.deny.is_empty()),
        ("--resolver", args.resolver.is_some()),
        ("--lanes", args.shape.lanes > 1),
    ];
    if let Some((option, _)) = foreign.into_iter().find(|(_, is_set)| *is_set) {
        return Err(ConfigError::Arguments(format!(
            "{option} is for chains of a free class: leave it out, or choose S, M or L instead of {}",
            terms.name
        )));
    }
    // Loopback addresses have no prefix that would get half of the seats at most (SPEC 4.11).
    let wrong = if usize::from(terms.seats) < users {
        format!("seats {}: expected {users} or more", terms.seats)
    } else if usize::from(terms.n_min) > users {
        let n_min = terms.n_min;
        format!("n_min {n_min}: expected --users {n_min} or more, because batches of fewer channels carry noise only")
    } else {
        return Ok(());
    };
    Err(ConfigError::Arguments(format!("--users {users} does not fit {wrong}; change --class or --users")))
}

/// The chain over the bound sockets.
fn plan(args: &ChainArgs, terms: &PacedTerms, sockets: &[OfHop]) -> anyhow::Result<Plan> {
    let ups = |class: usize| {
        sockets.iter().map(|of_hop| of_hop[class][0].local_addr()).collect::<Result<Vec<_>, _>>() //
    };
    let allow: Vec<_> = LOOPBACK.iter().map(|net| net.parse()).collect::<Result<_, _>>().map_err(anyhow::Error::msg)?;
    let mut plan = Plan {
        class: terms.class.size(),
        mixing: args.shape.mixing,
        // As short as possible: nobody has a channel before the second one.
        interval_s: terms.interval_ms_min(sockets.len()).div_ceil(1000) as u32,
        renew_after_s: args.renew_after_s,
        offload: args.offload,
        io: args.io,
        paced: vec![PlannedClass { terms: terms.clone(), addresses: ups(1)? }],
        trust: allow.clone(),
        allow,
        ..Plan::new(&ups(0)?)
    };
    for (hop, of_hop) in plan.hops.iter_mut().zip(sockets) {
        hop.down = of_hop[0][1].local_addr()?;
    }
    Ok(plan)
}

/// The mixes and the exit, which needs no `down`.
fn starts(files: &Files, sockets: Vec<OfHop>) -> Vec<super::Start> {
    let hops = files.hops.len();
    let start = |((config, of_hop), index): ((&PathBuf, OfHop), usize)| {
        let of_class = |[up, down]: [UdpSocket; 2]| [Some(up), (index < hops).then_some(down)];
        let sockets = of_hop.into_iter().flat_map(of_class).flatten().map(OwnedFd::from).collect();
        start_of(config, index, hops, sockets)
    };
    files.hops.iter().zip(sockets).zip(1..).map(start).collect()
}

/// What is about to happen, and what the class means to its users.
fn announcement(args: &ChainArgs, terms: &PacedTerms, users: usize, interval_s: u32) -> String {
    let hops = args.shape.mixes + 1;
    let figures = Figures::of(terms, Suite::default(), hops);
    let batch_s = figures.batch_ms as f64 / 1000.0;
    let floor = match terms.n_min {
        1 => "\nA batch".to_owned(),
        n_min => format!(" A batch with fewer\nthan {n_min} users carries noise only (n_min), and"),
    };
    format!(
        "{} call{} between {users} users, {} mix{} and an exit on this host.{floor} \
         has room for {} (seats).\n\n{}\n\
         Users who meet: no observer of all links and the exit sees who calls whom in a\n\
         batch. Calls to destinations are weaker: losses on access links show outside.\n\n\
         This chain is new: all hops sign keys in one interval ({interval_s} s), then channels\n\
         are set up for a batch. So calls begin after {batch_s:.0} to {:.0} s.\n\n",
        users / 2,
        if users == 2 { "" } else { "s" },
        args.shape.mixes,
        if args.shape.mixes == 1 { "" } else { "es" },
        terms.seats,
        figures.text(terms),
        f64::from(interval_s) + 2.0 * batch_s
    )
}

/// Starts the entries, which find mix1 at `mix1`: of each user for the paced class, then for the free one. Two users in
/// a row call each other.
fn start_users(
    args: &ChainArgs,
    files: &Files,
    [name, free]: [&ClassName; 2],
    mix1: &[SocketAddr],
    count: usize,
) -> anyhow::Result<Vec<User>> {
    let folder = files.chain.parent().unwrap_or(Path::new(""));
    let apps = (0..count).map(|_| Ok([any(args)?, any(args)?])).collect::<anyhow::Result<Vec<_>>>()?;
    let listen = SocketAddr::new(apps[0][0].local_addr()?.ip(), 0);
    let addresses = apps.iter().map(|[_, outside]| outside.local_addr()).collect::<Result<Vec<_>, _>>()?;
    let mut users = Vec::with_capacity(count);
    for (i, [app, outside]) in apps.into_iter().enumerate() {
        let file = folder.join(format!("call{}.secret", i / 2 + 1));
        if i.is_multiple_of(2) {
            create_meeting(&file)?;
        }
        let [paced_next, free_next] = [mix1[2 * i], mix1[2 * i + 1]];
        let entry = Entry::builder()
            .chain_file(&files.chain)
            .channels(1)
            .next(free_next.to_string())
            .forward(listen, Destination::Ip(addresses[i ^ 1]))
            .forward_in(name, listen, &Target::Meeting(file))
            .options(&format!("io = \"{}\"\noffload = \"{}\"", args.io, args.offload))
            .options(&format!("[class.{name}]\nnext = \"{paced_next}\""))
            .start()?;
        let listens = [name, free].map(|class| entry.listens(class).first().copied());
        let [Some(paced), Some(free)] = listens else {
            bail!("an entry listens in one class only: please report this")
        };
        users.push(User { entry, app, outside, listens: [paced, free] });
    }
    Ok(users)
}

/// In ms.
fn since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// The first batch with channels in a chain that starts `at`, in ms since 1970: its setups travel in the batch before
/// it, which begins in a later interval than the one in which all hops sign (SPEC 9.8.2).
fn first_batch(batch_ms: u64, interval_ms: u64, at: u64) -> u64 {
    let can_set_up = |batch: u64| batch * batch_ms / interval_ms > at / interval_ms;
    let next = at / batch_ms + 1;
    1 + if can_set_up(next) { next } else { ((at / interval_ms + 1) * interval_ms).div_ceil(batch_ms) }
}

/// Waits until every user hears that the other one is there, and has a channel of the free class. `started_at` is the
/// time when the chain started, in ms since 1970.
fn wait(
    users: &[User],
    (name, terms): (&ClassName, &PacedTerms),
    (interval_s, started_at): (u32, u64),
    children: &mut Children,
    interrupted: &AtomicBool,
) -> anyhow::Result<()> {
    let batch_ms = u64::from(terms.rounds) * u64::from(terms.period_ms);
    let batch = Duration::from_millis(batch_ms);
    let patience = SETUP_MAX + 2 * Duration::from_secs(interval_s.into()) + 4 * batch;
    let bar = ProgressBar::new(users.len() as u64)
        .with_style(ProgressStyle::with_template("{bar:16} {pos}/{len} users in calls; {msg}")?);
    let first = first_batch(batch_ms, 1000 * u64::from(interval_s), started_at);
    let (started, mut said) = (Instant::now(), false);
    loop {
        children.check()?;
        if interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        let joined = users.iter().filter(|user| is_joined(&user.entry.report(), name)).count();
        if joined == users.len() {
            break;
        }
        let now = since_1970();
        let coming = first.max(now / batch_ms + 1);
        let left_s = (coming * batch_ms - now).div_ceil(1000);
        bar.set_position(joined as u64);
        let which = if coming == first { "first batch with channels" } else { "next batch" };
        bar.set_message(format!("the {which} begins in {left_s} s"));
        if bar.is_hidden() && !said && started.elapsed() > SILENCE_MAX {
            said = true;
            log::say(format_args!(
                "{} users join with the batch that begins in {left_s} s: the hops of a new chain\n\
                 first sign keys in an interval of {interval_s} s, then channels are set up for a\n\
                 batch of {:.0} s",
                users.len(),
                batch.as_secs_f64()
            ));
        }
        if started.elapsed() > patience {
            bail!(
                "{joined} of {} users are in calls after {} s: this host is too busy or too slow for them; try --users 4 or \
                 --mixes 1, or -v for the log of the nodes",
                users.len(),
                patience.as_secs()
            );
        }
        std::thread::sleep(LOOK);
    }
    bar.finish_and_clear();
    for user in users {
        user.entry.wait_ready(patience.saturating_sub(started.elapsed()))?;
    }
    Ok(())
}

fn is_joined(report: &NodeReport, name: &ClassName) -> bool {
    let paced = report.classes.get(name.as_str()).and_then(|class| class.paced.as_ref());
    paced.is_some_and(|paced| paced.entry.as_ref().is_some_and(|entry| entry.meeting == Some(MeetingReport::Joined)))
}

/// The rounds of a class.
#[derive(Clone, Copy)]
struct Rounds {
    of_all: RoundsReport,
    of_mix1: RoundsReport,
}

impl Rounds {
    /// So far.
    fn of(reports: &[Option<NodeReport>], class: &ClassName) -> Rounds {
        let of_hop = |hop: &Option<NodeReport>| hop.as_ref()?.classes.get(class.as_str())?.rounds;
        let of_hops = reports.iter().filter_map(of_hop);
        let of_all = of_hops.fold(RoundsReport::default(), |sum, one| both(sum, one, |sum, one| sum + one));
        Rounds { of_all, of_mix1: reports.first().and_then(of_hop).unwrap_or_default() }
    }

    fn since(self, before: Rounds) -> Rounds {
        Rounds {
            of_all: both(self.of_all, before.of_all, u64::saturating_sub),
            of_mix1: both(self.of_mix1, before.of_mix1, u64::saturating_sub),
        }
    }
}

fn both(one: RoundsReport, other: RoundsReport, of: fn(u64, u64) -> u64) -> RoundsReport {
    RoundsReport {
        released: of(one.released, other.released),
        uneven: of(one.uneven, other.uneven),
        skipped: of(one.skipped, other.skipped),
        cells: of(one.cells, other.cells),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_batch_is_set_up_after_the_interval_of_the_start() {
        // Batches of 20 s from 0 on, intervals of 10 s.
        for (at, first) in [(1, 2), (9_999, 2), (15_000, 2), (20_000, 3), (39_999, 3)] {
            assert_eq!(first_batch(20_000, 10_000, at), first, "{at}");
        }
        // With longer intervals their end decides.
        for (at, first) in [(1, 4), (19_999, 4), (59_999, 4), (60_000, 7)] {
            assert_eq!(first_batch(20_000, 60_000, at), first, "{at}");
        }
    }
}
