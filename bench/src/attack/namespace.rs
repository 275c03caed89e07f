//! A network of this process's own: loopback alone, on which a capture sees nobody else's packets.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::anyhow;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, Socket, Type};

/// Moves this process into a new network namespace and brings its loopback up. Call it before any thread starts.
///
/// # Errors
/// The system does not allow it; the message names the setting that does.
pub(super) fn enter() -> anyhow::Result<()> {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    // Root needs only the network, and keeps its right to large receive buffers.
    if !user.is_root() || unshare(CloneFlags::CLONE_NEWNET).is_err() {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).map_err(refused)?;
        let map = |file: &str, text: &str| fs::write(Path::new("/proc/self").join(file), text).map_err(refused);
        map("setgroups", "deny")?;
        map("uid_map", &format!("{0} {0} 1", user.as_raw()))?;
        map("gid_map", &format!("{0} {0} 1", group.as_raw()))?;
    }
    bring_up_loopback().map_err(refused)
}

/// The reason, and the setting of this system that refuses namespaces.
fn refused(why: impl Into<io::Error>) -> anyhow::Error {
    let is = |name: &str, value: &str| {
        fs::read_to_string(Path::new("/proc/sys").join(name)).is_ok_and(|text| text.trim() == value)
    };
    let settings = [
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=1000"),
    ];
    let setting = settings.iter().find(|(name, value, _)| is(name, value));
    let sysctl = setting.map_or_else(String::new, |(.., set)| format!("`sudo sysctl -w {set}`, or "));
    anyhow!(
        "cannot make a network namespace to capture packets in ({}): run {sysctl}this command with `sudo`",
        why.into()
    )
}

/// RTM_NEWLINK with IFF_UP for interface 1, which is `lo` in every new namespace (rtnetlink(7)).
fn bring_up_loopback() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const REQUEST_AND_ACK: u16 = 1 | 4;
    const UP: u32 = 1;
    const NETLINK: i32 = 16;
    let mut request = Vec::with_capacity(32);
    request.extend(32u32.to_ne_bytes());
    request.extend(RTM_NEWLINK.to_ne_bytes());
    request.extend(REQUEST_AND_ACK.to_ne_bytes());
    // Sequence number; port of the sender: the kernel fills it in.
    request.extend([1u32, 0].map(u32::to_ne_bytes).concat());
    // Family and type of any interface, its index, flags, and which flags change.
    request.extend([0u32, 1, UP, UP].map(u32::to_ne_bytes).concat());

    let socket = Socket::new(Domain::from(NETLINK), Type::DGRAM, Some(Protocol::from(0)))?;
    socket.send(&request)?;
    let mut answer = [0; 256];
    let len = io::Read::read(&mut &socket, &mut answer)?;
    // The error number is negative, and 0 for an acknowledgement.
    match answer[..len].get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(error) => Err(Errno::from_raw(-error).into()),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}
