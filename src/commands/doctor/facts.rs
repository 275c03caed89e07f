//! What this host is and grants: gathered once, so that checks are functions of it.
//!
//! Asks by trying where the kernel's settings do not tell (a socket's buffer, a burst, a ring), on sockets of its own
//! over loopback. Changes nothing, needs no privilege, and takes what it cannot learn for unknown.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{SystemTime, UNIX_EPOCH};

use dataplane::ingress::lengths;
use dataplane::io::calls::{Calls, Io, NoUring};
use dataplane::io::offload::{Offload, Offloads};
use dataplane::links::Side;
use dataplane::sys;
use rustix::process::{Resource, geteuid, getrlimit};
use rustix::thread::{CpuSet, sched_getaffinity};
use wire::gcm::Engine;

use super::host::Host;
use super::subject::Subject;
use eddy_node::config::in_words;
use eddy_node::runtime::sockets;

/// This host.
#[derive(Debug)]
pub struct Facts {
    /// The kernel's release.
    pub kernel: String,
    /// This process's user.
    pub user: u32,
    /// Receive buffers.
    pub buffers: Buffers,
    /// What `offload` comes to, and why not if they were wanted.
    pub offloads: (Offloads, Option<String>),
    /// Why there is no io_uring.
    pub no_uring: Option<NoUring>,
    /// Cryptography.
    pub engines: Engines,
    /// Cores.
    pub cores: Cores,
    /// /sys/kernel/mm/transparent_hugepage/enabled.
    pub huge_pages: Option<String>,
    /// The way to the next hop, or from the previous one.
    pub path: Path,
    /// How many name servers /etc/resolv.conf names; none if it cannot be read.
    pub name_servers: Option<usize>,
    /// Entries of the connection tracking table, and how many it may have; none without one.
    pub conntrack: Option<(u64, u64)>,
    /// Whether somebody keeps the clock; none if the kernel does not tell.
    pub clock_kept: Option<bool>,
    /// Seconds since 1970.
    pub now: u64,
    /// How many descriptors a process may open once it has raised its limit; none: any number.
    pub descriptors: Option<u64>,
}

/// What link sockets get.
#[derive(Clone, Debug)]
pub struct Buffers {
    /// net.core.rmem_max.
    pub rmem_max: Option<usize>,
    /// Bytes that a socket got for the asking; or why there was no socket.
    pub granted: Result<usize, String>,
    /// net.core.rmem_default.
    pub rmem_default: Option<usize>,
    /// net.core.wmem_default.
    pub wmem_default: Option<usize>,
}

/// AEAD engines by name.
#[derive(Clone, Debug)]
pub struct Engines {
    /// The one that a node takes.
    pub used: &'static str,
    /// The one that it would take unless told otherwise.
    pub best: &'static str,
    /// The fastest whose instructions the CPU has.
    pub fastest: &'static str,
    /// Those of the CPU's features that matter, of /proc/cpuinfo.
    pub features: Vec<&'static str>,
}

/// Cores.
#[derive(Clone, Debug, Default)]
pub struct Cores {
    /// Those that this process may use.
    pub allowed: Vec<usize>,
    /// Their frequency governors, where they have any.
    pub governors: Vec<(usize, String)>,
    /// How long a guest's idle core looks for work before it halts at most, in ns; none without the governor that does.
    pub halt_poll_ns: Option<u64>,
    /// Cores that are one: two hardware threads of it.
    pub siblings: Vec<Vec<usize>>,
}

/// A way to another hop.
#[derive(Clone, Debug, Default)]
pub struct Path {
    /// The longest packet that it carries whole; or why there is no path.
    pub mtu: Option<Result<usize, String>>,
    /// The device.
    pub device: Option<Device>,
}

/// A network device.
#[derive(Clone, Debug, Default)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its MTU.
    pub mtu: Option<usize>,
    /// It is loopback.
    pub loopback: bool,
    /// Receive queues.
    pub queues: usize,
    /// The cores that its interrupts go to, where /proc tells.
    pub interrupts: Vec<usize>,
    /// Its NUMA node with its cores; none where there is but one, or none is told.
    pub numa: Option<(usize, Vec<usize>)>,
}

/// Where a guest's kernel says how long an idle core looks for work before it halts.
pub(super) const HALT_POLL: &str = "/sys/module/haltpoll/parameters/guest_halt_poll_ns";

/// Features that an engine, or the way to one, is made of.
const FEATURES: [&str; 9] =
    ["aes", "pclmulqdq", "avx2", "vaes", "vpclmulqdq", "avx512f", "avx512bw", "avx512dq", "avx512vl"];

/// An address for documentation (RFC 5737): a socket that is connected to it tells of the default route, and nothing is
/// sent.
const ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

impl Facts {
    /// Looks at this host for a node. `used` is the engine that it would take.
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
            now: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            descriptors,
        }
    }
}

/// A socket to ask: over IPv6 where there is no IPv4.
fn loopback() -> std::io::Result<UdpSocket> {
    UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::1]:0"))
}

/// The kernel says twice what it grants, and counts its own overhead against it.
fn granted(wanted: usize) -> std::io::Result<usize> {
    Ok(sys::size_receive_buffer(loopback()?, wanted)? / 2)
}

fn offloads(subject: &Subject) -> (Offloads, Option<String>) {
    let exit = subject.shape.hops();
    let positions = if subject.role.is_some() { subject.position..=subject.position } else { 0..=exit };
    let up = positions.clone().filter(|position| *position > 0).map(|position| (position, Side::Up));
    let down = positions.filter(|position| *position < exit).map(|position| (position, Side::Down));
    let mut lens: Vec<usize> = up.chain(down).map(|(at, side)| lengths(subject.shape, at, side).cell).collect();
    lens.sort_unstable();
    lens.dedup();
    let ipv6 = subject.from.is_ipv6() || subject.up.is_some_and(|up| up.is_ipv6());
    // What the node itself does at its start.
    let (offloads, why) = subject.offload.decide(&lens, ipv6);
    if subject.offload == Offload::Off {
        return (offloads, Some("the configuration says offload = \"off\"".to_owned()));
    }
    (offloads, why.map(|why| why.to_string()))
}

fn engines(host: &Host, used: Engine) -> Engines {
    let cpuinfo = host.text("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let flags: Vec<&str> = flags.into_iter().flat_map(str::split_whitespace).collect();
    let best = Engine::best().name();
    Engines {
        used: used.name(),
        best,
        // Where nothing was measured, nothing is known to be faster.
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
        Some(next) => match sockets::known_path(subject.from, *next) {
            Ok(path) => (Some(path.local), Some(Ok(path.mtu))),
            Err(why) => (None, Some(Err(in_words(&why)))),
        },
        // An exit: the device that the previous hop comes in by, or that leads out.
        None => match subject.up.map(|up| up.ip()).filter(|ip| !ip.is_unspecified()) {
            Some(ip) => (Some(ip), None),
            None => (sockets::known_path(Ipv4Addr::UNSPECIFIED.into(), ANYWHERE).ok().map(|path| path.local), None),
        },
    };
    let name = local.and_then(sockets::device);
    let name = name.or_else(|| local.filter(IpAddr::is_loopback).map(|_| "lo".to_owned()));
    Path { mtu, device: name.map(|name| device(host, name)) }
}

/// What /sys says of a device.
fn device(host: &Host, name: String) -> Device {
    let at = format!("/sys/class/net/{name}");
    // A virtio device hangs below the one that has the interrupts.
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

/// A host on which nothing is wrong, for tests of checks.
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
        now: 1_800_000_000,
        descriptors: Some(65_536),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Files of a host, under a folder of their own.
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
    fn a_device_tells_of_its_queues_interrupts_and_node() {
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
    fn features_are_those_of_the_cpu_that_matter() {
        let (_root, host) = host(&[("proc/cpuinfo", "processor : 0\nflags\t\t: fpu aes avx2 sse4_1 vaes\n")]);
        let engine = Engine::named("portable").unwrap();
        let found = engines(&host, engine);
        assert_eq!(found.features, ["aes", "avx2", "vaes"]);
        assert_eq!(found.used, "portable");
    }

    #[test]
    fn idle_cores_poll_where_that_governor_rules() {
        for (governor, polls) in [("haltpoll\n", Some(200_000)), ("menu\n", None)] {
            let (_root, host) =
                host(&[("sys/devices/system/cpu/cpuidle/current_governor", governor), (&HALT_POLL[1..], "200000\n")]);
            assert_eq!(cores(&host).halt_poll_ns, polls, "{governor}");
        }
    }

    #[test]
    fn a_host_without_proc_and_sys_is_looked_at_all_the_same() {
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
