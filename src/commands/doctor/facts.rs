//! The state of this host: gathered once, so that checks are functions of it.
//!
//! Probes sockets over loopback if settings are not enough (receive buffers, GSO, io_uring). Changes nothing and needs
//! no privilege; facts that it cannot read are unknown.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{SystemTime, UNIX_EPOCH};

use dataplane::socket::backend::{Calls, Io, NoUring};
use dataplane::socket::offload::{NoOffload, Offloads};
use dataplane::stage::ingress::lengths;
use dataplane::sys;
use rustix::process::{Resource, geteuid, getrlimit};
use rustix::thread::{CpuSet, sched_getaffinity};
use wire::gcm::Engine;
use wire::ids::Side;

use super::host::Host;
use super::subject::Subject;
use eddy_node::config::in_words;
use eddy_node::report::NodeReport;
use eddy_node::report::paced::{ClockReport, PacedHopReport, PlacesReport};
use eddy_node::runtime::{path as link_path, status};

#[derive(Debug)]
pub struct Facts {
    /// The kernel's release.
    pub kernel: String,
    /// The user id of this process.
    pub user: u32,
    pub buffers: Buffers,
    /// The result of `offload`: what works, and why not all of it.
    pub offloads: (Offloads, Option<NoOffload>),
    /// Why io_uring is not available.
    pub no_uring: Option<NoUring>,
    pub engines: Engines,
    pub cores: Cores,
    /// /sys/kernel/mm/transparent_hugepage/enabled.
    pub huge_pages: Option<String>,
    /// The path to the next hop; at an exit, from the previous one.
    pub path: Path,
    /// Name servers in /etc/resolv.conf; `None` if it cannot be read.
    pub name_servers: Option<usize>,
    /// Entries of the connection tracking table, and its size.
    pub conntrack: Option<(u64, u64)>,
    /// The clock is synchronised; `None` if the kernel hides it.
    pub clock_kept: Option<bool>,
    /// What the running node knows of its neighbours, for each class; `None` if no node answers.
    pub neighbours: Option<Vec<(String, Vec<Neighbour>)>>,
    /// Seconds since 1970.
    pub now: u64,
    /// The hard limit of open files; `None` if unlimited.
    pub descriptors: Option<u64>,
}

/// Socket buffers in bytes.
#[derive(Clone, Debug)]
pub struct Buffers {
    /// net.core.rmem_max.
    pub rmem_max: Option<usize>,
    /// Receive buffer that a socket gets when it asks for as much as the node does, or why it could not be opened.
    pub granted: Result<usize, String>,
    /// net.core.rmem_default.
    pub rmem_default: Option<usize>,
    /// net.core.wmem_default.
    pub wmem_default: Option<usize>,
}

/// Names of AEAD engines.
#[derive(Clone, Debug)]
pub struct Engines {
    /// The one that a node uses.
    pub used: &'static str,
    /// The default on this host.
    pub best: &'static str,
    /// The fastest whose instructions the CPU has.
    pub fastest: &'static str,
    /// CPU features in /proc/cpuinfo that engines use.
    pub features: Vec<&'static str>,
}

#[derive(Clone, Debug, Default)]
pub struct Cores {
    /// The cores that this process may use.
    pub allowed: Vec<usize>,
    /// Cores with their frequency governors.
    pub governors: Vec<(usize, String)>,
    /// Time that an idle core polls before it halts, in ns; `None` unless the cpuidle governor is haltpoll.
    pub halt_poll_ns: Option<u64>,
    /// Hardware threads of the same core.
    pub siblings: Vec<Vec<usize>>,
}

#[derive(Clone, Debug, Default)]
pub struct Path {
    /// Bytes; or why there is no path.
    pub mtu: Option<Result<usize, String>>,
    pub device: Option<Device>,
}

#[derive(Clone, Debug, Default)]
pub struct Device {
    pub name: String,
    pub mtu: Option<usize>,
    pub loopback: bool,
    /// Receive queues.
    pub queues: usize,
    /// The cores that handle its interrupts, if known.
    pub interrupts: Vec<usize>,
    /// Its NUMA node with its cores; `None` on hosts with one.
    pub numa: Option<(usize, Vec<usize>)>,
}

/// The polling time of idle cores, in ns.
pub(super) const HALT_POLL: &str = "/sys/module/haltpoll/parameters/guest_halt_poll_ns";

/// CPU features that engines use.
const FEATURES: [&str; 9] =
    ["aes", "pclmulqdq", "avx2", "vaes", "vpclmulqdq", "avx512f", "avx512bw", "avx512dq", "avx512vl"];

/// A documentation address (RFC 5737): connecting a socket to it finds the default route. Nothing is sent.
const ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

impl Facts {
    /// Gathers the facts that concern a node. `used` is its engine.
    pub fn gather(host: &Host, subject: &Subject, used: Engine) -> Facts {
        let descriptors = getrlimit(Resource::Nofile).maximum;
        Facts {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            user: geteuid().as_raw(),
            buffers: Buffers {
                rmem_max: host.number("/proc/sys/net/core/rmem_max"),
                granted: granted(subject.receive_buffer).map_err(|why| in_words(&why)),
                rmem_default: host.number("/proc/sys/net/core/rmem_default"),
                wmem_default: host.number("/proc/sys/net/core/wmem_default"),
            },
            offloads: offloads(subject),
            no_uring: loopback().map_or(None, |socket| Calls::new(Io::Uring, &socket).1),
            engines: engines(host, used),
            cores: cores(host),
            huge_pages: host.text("/sys/kernel/mm/transparent_hugepage/enabled"),
            path: path(host, subject),
            name_servers: host
                .text("/etc/resolv.conf")
                .map(|text| text.lines().filter(|line| line.trim_start().starts_with("nameserver")).count()),
            conntrack: host
                .number("/proc/sys/net/netfilter/nf_conntrack_count")
                .zip(host.number("/proc/sys/net/netfilter/nf_conntrack_max")),
            clock_kept: sys::is_clock_kept().ok(),
            neighbours: neighbours(subject),
            now: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            descriptors,
        }
    }
}

/// The next or the previous hop.
#[derive(Clone, Debug)]
pub struct Neighbour {
    /// `next` or `previous`.
    pub who: String,
    pub clock: ClockReport,
    /// The node's cells of late that did not come to it in time, as it reports, and all of them.
    pub lost: u64,
    pub places: u64,
}

/// The report of the running node, if it has paced classes.
fn neighbours(subject: &Subject) -> Option<Vec<(String, Vec<Neighbour>)>> {
    let path = subject.status.as_ref().filter(|_| !subject.paced.is_empty())?;
    let report = status::ask(path).ok()?;
    let of_class = |node: NodeReport| {
        let PacedHopReport { clocks, forward, backward, .. } = node.paced?.hop?;
        let neighbour = |(who, clock): (String, ClockReport)| {
            let PlacesReport { latest_lost: lost, latest_places: places, .. } =
                if who == "next" { forward } else { backward };
            Neighbour { who, clock, lost, places }
        };
        Some(clocks.into_iter().map(neighbour).collect())
    };
    Some(report.classes.into_iter().filter_map(|(name, node)| Some((name, of_class(node)?))).collect())
}

/// A socket to probe: IPv6 on hosts without IPv4.
fn loopback() -> std::io::Result<UdpSocket> {
    UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::1]:0"))
}

/// Bytes granted. The kernel reports twice as much, for its own overhead.
fn granted(wanted: usize) -> std::io::Result<usize> {
    Ok(sys::size_receive_buffer(loopback()?, wanted)? / 2)
}

fn offloads(subject: &Subject) -> (Offloads, Option<NoOffload>) {
    let exit = subject.shape.hops();
    let positions = if subject.role.is_some() { subject.position..=subject.position } else { 0..=exit };
    let up = positions.clone().filter(|position| *position > 0).map(|position| (position, Side::Up));
    let down = positions.filter(|position| *position < exit).map(|position| (position, Side::Down));
    let mut lens: Vec<usize> = up.chain(down).map(|(at, side)| lengths(subject.shape, at, side).cell).collect();
    lens.sort_unstable();
    lens.dedup();
    let ipv6 = subject.from.is_ipv6() || subject.up.is_some_and(|up| up.is_ipv6());
    // The same call as at the start of the node.
    subject.offload.decide(&lens, ipv6)
}

fn engines(host: &Host, used: Engine) -> Engines {
    let cpuinfo = host.text("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let flags: Vec<&str> = flags.into_iter().flat_map(str::split_whitespace).collect();
    let best = Engine::best().name();
    Engines {
        used: used.name(),
        best,
        // On other architectures no order is known.
        fastest: if cfg!(target_arch = "x86_64") { Engine::all().next().map_or(best, Engine::name) } else { best },
        features: FEATURES.into_iter().filter(|feature| flags.contains(feature)).collect(),
    }
}

fn cores(host: &Host) -> Cores {
    let allowed: Vec<usize> = match sched_getaffinity(None) {
        Ok(ours) => (0..CpuSet::MAX_CPU).filter(|core| ours.is_set(*core)).collect(),
        Err(_) => Vec::new(),
    };
    let of = |core: &usize, file: &str| format!("/sys/devices/system/cpu/cpu{core}/{file}");
    let governor = |core: &usize| Some((*core, host.text(&of(core, "cpufreq/scaling_governor"))?));
    let mut siblings: Vec<Vec<usize>> =
        allowed.iter().filter_map(|core| host.list(&of(core, "topology/thread_siblings_list"))).collect();
    siblings.retain(|threads| threads.len() > 1);
    siblings.sort();
    siblings.dedup();
    let polls = host.text("/sys/devices/system/cpu/cpuidle/current_governor").is_some_and(|name| name == "haltpoll");
    let halt_poll_ns = host.number(HALT_POLL).filter(|_| polls);
    Cores { governors: allowed.iter().filter_map(governor).collect(), halt_poll_ns, siblings, allowed }
}

fn path(host: &Host, subject: &Subject) -> Path {
    let Ok(next) = &subject.next else { return Path::default() };
    let (local, mtu) = match next {
        Some(next) => match link_path::known_path(subject.from, *next) {
            Ok(path) => (Some(path.local), Some(Ok(path.mtu))),
            Err(why) => (None, Some(Err(in_words(&why)))),
        },
        // An exit: the device of `up`, or of the default route.
        None => match subject.up.map(|up| up.ip()).filter(|ip| !ip.is_unspecified()) {
            Some(ip) => (Some(ip), None),
            None => (link_path::known_path(Ipv4Addr::UNSPECIFIED.into(), ANYWHERE).ok().map(|path| path.local), None),
        },
    };
    let name = local.and_then(link_path::device);
    let name = name.or_else(|| local.filter(IpAddr::is_loopback).map(|_| "lo".to_owned()));
    Path { mtu, device: name.map(|name| device(host, name)) }
}

/// A device as /sys describes it.
fn device(host: &Host, name: String) -> Device {
    let at = format!("/sys/class/net/{name}");
    // The interrupts of a virtio device belong to its parent.
    let folders = [format!("{at}/device/msi_irqs"), format!("{at}/device/../msi_irqs")];
    let irqs = folders.iter().map(|folder| host.names(folder)).find(|irqs| !irqs.is_empty()).unwrap_or_default();
    let mut interrupts: Vec<usize> = irqs
        .iter()
        .filter_map(|irq| {
            let cores = host.list(&format!("/proc/irq/{irq}/effective_affinity_list"));
            cores.or_else(|| host.list(&format!("/proc/irq/{irq}/smp_affinity_list")))
        })
        .flatten()
        .collect();
    interrupts.sort_unstable();
    interrupts.dedup();
    let nodes = host.list("/sys/devices/system/node/online").unwrap_or_default();
    let numa = host.number::<usize>(&format!("{at}/device/numa_node")).filter(|_| nodes.len() > 1);
    Device {
        mtu: host.number(&format!("{at}/mtu")),
        loopback: name == "lo",
        queues: host.names(&format!("{at}/queues")).iter().filter(|queue| queue.starts_with("rx-")).count(),
        interrupts,
        numa: numa.and_then(|node| Some((node, host.list(&format!("/sys/devices/system/node/node{node}/cpulist"))?))),
        name,
    }
}

/// A host without problems, for tests of checks.
#[cfg(test)]
pub(super) fn sound() -> Facts {
    Facts {
        kernel: "6.18.1".to_owned(),
        user: 1000,
        buffers: Buffers {
            rmem_max: Some(8 << 20),
            granted: Ok(8 << 20),
            rmem_default: Some(4 << 20),
            wmem_default: Some(212_992),
        },
        offloads: (Offloads::BOTH, None),
        no_uring: None,
        engines: Engines {
            used: "wide256",
            best: "wide256",
            fastest: "wide256",
            features: vec!["aes", "pclmulqdq", "avx2", "vaes", "vpclmulqdq"],
        },
        cores: Cores { allowed: vec![0, 1], governors: vec![], halt_poll_ns: None, siblings: vec![] },
        huge_pages: Some("always [madvise] never".to_owned()),
        path: Path {
            mtu: Some(Ok(1500)),
            device: Some(Device {
                name: "eth0".to_owned(),
                mtu: Some(1500),
                loopback: false,
                queues: 8,
                interrupts: vec![],
                numa: None,
            }),
        },
        name_servers: Some(1),
        conntrack: None,
        clock_kept: Some(true),
        neighbours: None,
        now: 1_800_000_000,
        descriptors: Some(65_536),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A host of these files.
    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let host = Host::under(root.path());
        (root, host)
    }

    #[test]
    fn device_has_queues_interrupts_and_numa_node() {
        let (_root, host) = host(&[
            ("sys/class/net/eth7/mtu", "9000\n"),
            ("sys/class/net/eth7/queues/rx-0/rps_cpus", "0\n"),
            ("sys/class/net/eth7/queues/rx-1/rps_cpus", "0\n"),
            ("sys/class/net/eth7/queues/tx-0/xps_cpus", "0\n"),
            ("sys/class/net/eth7/device/numa_node", "1\n"),
            ("sys/class/net/eth7/device/msi_irqs/40", "msix\n"),
            ("sys/class/net/eth7/device/msi_irqs/41", "msix\n"),
            ("proc/irq/40/effective_affinity_list", "2\n"),
            ("proc/irq/41/smp_affinity_list", "0-2\n"),
            ("sys/devices/system/node/online", "0-1\n"),
            ("sys/devices/system/node/node1/cpulist", "4-7\n"),
        ]);
        let found = device(&host, "eth7".to_owned());
        assert_eq!((found.queues, found.mtu, found.loopback), (2, Some(9000), false));
        assert_eq!(found.interrupts, [0, 1, 2]);
        assert_eq!(found.numa, Some((1, vec![4, 5, 6, 7])));
        let missing = device(&host, "eth8".to_owned());
        assert_eq!((missing.queues, missing.mtu, missing.numa), (0, None, None));
    }

    #[test]
    fn cpu_features_of_engines_are_listed() {
        let (_root, host) = host(&[("proc/cpuinfo", "processor : 0\nflags\t\t: fpu aes avx2 sse4_1 vaes\n")]);
        let engine = Engine::named("portable").unwrap();
        let found = engines(&host, engine);
        assert_eq!(found.features, ["aes", "avx2", "vaes"]);
        assert_eq!(found.used, "portable");
    }

    #[test]
    fn idle_cores_poll_under_haltpoll_only() {
        for (governor, polls) in [("haltpoll\n", Some(200_000)), ("menu\n", None)] {
            let (_root, host) =
                host(&[("sys/devices/system/cpu/cpuidle/current_governor", governor), (&HALT_POLL[1..], "200000\n")]);
            assert_eq!(cores(&host).halt_poll_ns, polls, "{governor}");
        }
    }

    #[test]
    fn host_without_proc_and_sys_has_unknown_facts() {
        let root = tempfile::tempdir().unwrap();
        let engine = Engine::best();
        let facts = Facts::gather(&Host::under(root.path()), &Subject::of_a_chain(), engine);
        assert_eq!((facts.buffers.rmem_max, facts.conntrack, facts.huge_pages), (None, None, None));
        assert_eq!(facts.name_servers, None);
        assert!(facts.cores.governors.is_empty() && facts.engines.features.is_empty());
        assert_eq!((facts.cores.halt_poll_ns, facts.buffers.rmem_default), (None, None));
        assert!(!facts.kernel.is_empty());
    }
}
