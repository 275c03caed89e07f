//! Decides at the start whether cells may travel in GSO and GRO bursts (UDP_SEGMENT, UDP_GRO).
//!
//! A burst that the kernel splits wrongly loses cells without an error. So offload is probed: a burst of real length is
//! sent over loopback, to a socket with GRO and to one without, and every byte is compared. Linux 7.0 to 7.1.4 break
//! GSO bursts whose last datagram is as long as the others, as ours always is, behind some network devices, which
//! loopback cannot show: there bursts leave only if asked for.
//!
//! Later, a burst that the kernel refuses while its cells go one by one ends GSO on that socket
//! ([`super::link`]).

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

use super::rx_buffers::burst_cells_max;
use crate::sys::{self, Message};

/// The operator's choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offload {
    /// Bursts, if the probe finds them whole and the kernel is not known to break them.
    #[default]
    Auto,
    /// Bursts, whatever the probe says.
    On,
    Off,
}

impl FromStr for Offload {
    type Err = BadOffload;

    fn from_str(text: &str) -> Result<Offload, BadOffload> {
        match text {
            "auto" => Ok(Offload::Auto),
            "on" => Ok(Offload::On),
            "off" => Ok(Offload::Off),
            other => Err(BadOffload(other.to_owned())),
        }
    }
}

impl fmt::Display for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Offload::Auto => "auto",
            Offload::On => "on",
            Offload::Off => "off",
        })
    }
}

#[derive(Debug, Error, PartialEq, Eq)]
#[error("invalid offload {0:?}: expected auto, on or off")]
pub struct BadOffload(String);

/// The offloads that link sockets use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    pub gro: bool,
    pub gso: bool,
}

impl Offloads {
    /// One datagram at a time.
    pub const NONE: Offloads = Offloads { gro: false, gso: false };
    pub const BOTH: Offloads = Offloads { gro: true, gso: true };
}

/// Why GSO and GRO are not used.
#[derive(Debug, Error)]
pub enum NoOffload {
    /// The kernel has no such option, or a socket could not be made.
    #[error("the kernel refuses them: {0}")]
    Refused(#[from] io::Error),
    /// Nothing can be sent over loopback, so bursts cannot be tested.
    #[error("not tested, because nothing can be sent over loopback: run `sudo ip link set lo up`")]
    Untested,
    /// A burst arrived changed.
    #[error("a GSO burst of {cells} cells of {len} bytes did not come through loopback whole")]
    Broken { cells: usize, len: usize },
    /// This kernel is known to break them.
    #[error("Linux {0} is known to break them behind some network devices (fixed in 7.1.5)")]
    Known(String),
}

impl Offload {
    /// The offloads for cells of these lengths, and the reason if one is wanted and not available.
    pub fn decide(self, cell_lens: &[usize], ipv6: bool) -> (Offloads, Option<NoOffload>) {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        match self {
            Offload::Off => (Offloads::NONE, None),
            Offload::On => (Offloads::BOTH, cell_lens.iter().find_map(|len| probe(*len, ipv6).err())),
            Offload::Auto if breaks_gso(&release) => {
                (Offloads { gro: true, gso: false }, Some(NoOffload::Known(release)))
            }
            Offload::Auto => match cell_lens.iter().find_map(|len| probe(*len, ipv6).err()) {
                Some(why) => (Offloads::NONE, Some(why)),
                None => (Offloads::BOTH, None),
            },
        }
    }
}

/// True if this kernel release breaks GSO bursts behind some devices: Linux 7.0-rc1 to 7.1.4.
pub fn breaks_gso(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match (major, minor) {
        (7, 0) => true,
        // Of 7.1-rc3 the third number is missing: what follows is "rc3".
        (7, 1) => release.contains("-rc") || numbers.next().unwrap_or(0) < 5,
        _ => false,
    }
}

/// Sends the longest burst of cells of this length over loopback and compares what arrives: joined, and one by one.
///
/// # Errors
/// Why GSO and GRO are not used.
pub fn probe(cell_len: usize, ipv6: bool) -> Result<(), NoOffload> {
    let host = if ipv6 { "::1" } else { "127.0.0.1" };
    let sender = UdpSocket::bind((host, 0))?;
    let count = burst_cells_max(cell_len);
    let cells: Vec<Vec<u8>> =
        (0..count).map(|i| (0..cell_len).map(|at| (i * 31 + at * 7 + at / 251) as u8).collect()).collect();
    for join in [true, false] {
        let receiver = UdpSocket::bind((host, 0))?;
        receiver.set_read_timeout(Some(Duration::from_millis(200)))?;
        let broken = || NoOffload::Broken { cells: count, len: cell_len };
        if join {
            sys::enable_gro(&receiver)?;
        }
        let message = Message { to: receiver.local_addr()?, pieces: count, segment: Some(cell_len as u16) };
        let sent = sys::send(&sender, std::iter::once(message), cells.iter().rev().map(Vec::as_slice));
        sent.map_err(|why| match why.kind() {
            ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => NoOffload::Untested,
            _ => NoOffload::Refused(why),
        })?;
        let (mut buffer, mut at) = (vec![0; count * cell_len + 1], 0);
        // A burst over loopback is in the queue before sendmsg returns; the timeout is for one that got lost.
        while at < count * cell_len {
            let got = receiver.recv(&mut buffer[at..]).map_err(|_| broken())?;
            if got != if join { count * cell_len } else { cell_len } {
                return Err(broken());
            }
            at += got;
        }
        if !buffer[..at].chunks(cell_len).eq(cells.iter().rev().map(Vec::as_slice)) {
            return Err(broken());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::cell::{Class, HEADER_LEN, MAX_CELL_LEN, MAX_HOPS, TAG_LEN};

    /// The lengths of cells of all classes, chains and links.
    fn cell_lengths() -> impl Iterator<Item = usize> {
        let of_class = |class: &Class| {
            let shortest = HEADER_LEN + class.payload() + TAG_LEN;
            (0..MAX_HOPS).map(move |layers| shortest + layers * TAG_LEN)
        };
        [Class::S, Class::M, Class::L].iter().flat_map(of_class)
    }

    #[test]
    fn burst_of_any_cell_length_stays_below_gso_max_size() {
        assert!(cell_lengths().any(|len| len == MAX_CELL_LEN));
        for len in cell_lengths() {
            // UDP, IPv6, Ethernet.
            let packet = burst_cells_max(len) * len + 8 + 40 + 14;
            assert!(packet < 65_536, "{len}: {packet}");
        }
    }

    #[test]
    fn kernel_carries_bursts_of_every_cell_length_or_says_why() {
        for len in cell_lengths() {
            if let Err(why) = probe(len, false) {
                assert!(!matches!(why, NoOffload::Broken { .. }), "{why}");
                crate::skipped(why);
                return;
            }
        }
        assert!(Offload::Auto.decide(&[1360, 1408], false).0.gro);
        assert_eq!(Offload::Off.decide(&[1360, 1408], false).0, Offloads::NONE);
    }

    #[test]
    fn kernels_that_break_gso_are_known_by_their_release() {
        for (release, breaks) in [
            ("6.18.44-fc", false),
            ("7.0.0-rc1", true),
            ("7.0-rc1", true),
            ("7.0.9-generic", true),
            ("7.1-rc3", true),
            ("7.1.0", true),
            ("7.1.4-arch1-1", true),
            ("7.1.5", false),
            ("7.1.12-1", false),
            ("7.2.0-rc1", false),
            ("17.0.1", false),
            ("", false),
        ] {
            assert_eq!(breaks_gso(release), breaks, "{release}");
        }
    }
}
