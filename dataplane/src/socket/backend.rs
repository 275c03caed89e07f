//! The system calls that link sockets make: recvmmsg and sendmmsg, or io_uring.
//!
//! Both move the same messages between the same buffers (docs/BENCHMARKS.md has what each costs); a kernel, its
//! administrator or a sandbox may refuse io_uring. Then recvmmsg and sendmmsg are used, and the reason is logged.

use std::fmt;
use std::io;
use std::net::UdpSocket;
use std::str::FromStr;

use thiserror::Error;

use crate::sys::{self, Message, Received, Ring};

/// The operator's choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Io {
    /// Whatever measures better: recvmmsg and sendmmsg.
    #[default]
    Auto,
    Mmsg,
    /// io_uring where the kernel offers it.
    Uring,
}

impl FromStr for Io {
    type Err = BadIo;

    fn from_str(text: &str) -> Result<Io, BadIo> {
        match text {
            "auto" => Ok(Io::Auto),
            "mmsg" => Ok(Io::Mmsg),
            "uring" => Ok(Io::Uring),
            other => Err(BadIo(other.to_owned())),
        }
    }
}

impl fmt::Display for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Io::Auto => "auto",
            Io::Mmsg => "mmsg",
            Io::Uring => "uring",
        })
    }
}

#[derive(Debug, Error, PartialEq, Eq)]
#[error("invalid io {0:?}: expected auto, mmsg or uring")]
pub struct BadIo(String);

/// The reason why io_uring is not available, with a remedy.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NoUring {
    /// The kernel has none at all, or a sandbox says so.
    #[error(
        "this kernel has no io_uring, or a sandbox hides it: use Linux 6.1 or later with CONFIG_IO_URING, or allow io_uring_setup there"
    )]
    Missing,
    /// The kernel lacks what came with 6.1 (DEFER_TASKRUN).
    #[error("Linux {0} lacks a part of io_uring: use 6.1 or later")]
    Old(String),
    /// kernel.io_uring_disabled is 2, or is 1 and this process has neither the group nor the privilege.
    #[error("kernel.io_uring_disabled is {0}: run `sudo sysctl -w kernel.io_uring_disabled=0`")]
    Disabled(u8),
    /// A sandbox (seccomp, a security module) forbids it.
    #[error(
        "a sandbox forbids io_uring: allow this process the system calls io_uring_setup, io_uring_enter and io_uring_register \
         (systemd: SystemCallFilter=; containers: --security-opt seccomp=)"
    )]
    Forbidden,
    #[error("the kernel refuses io_uring: {0}")]
    Refused(String),
}

impl NoUring {
    /// Reads why [`Ring::new`] failed; `disabled` is what kernel.io_uring_disabled says, if it says anything.
    fn read(error: &io::Error, release: &str, disabled: Option<u8>) -> NoUring {
        match error.raw_os_error() {
            Some(libc::ENOSYS) => NoUring::Missing,
            Some(libc::EINVAL) => NoUring::Old(release.to_owned()),
            Some(libc::EPERM) => match disabled {
                Some(level @ 1..) => NoUring::Disabled(level),
                _ => NoUring::Forbidden,
            },
            _ => NoUring::Refused(error.to_string()),
        }
    }
}

/// One socket's way into the kernel.
pub enum Calls {
    Mmsg,
    /// io_uring. It belongs to the thread that first sends or receives.
    Uring(Box<Ring>),
}

impl Calls {
    /// For this socket; and why it is recvmmsg and sendmmsg if io_uring was asked for.
    pub fn new(wanted: Io, socket: &UdpSocket) -> (Calls, Option<NoUring>) {
        if wanted != Io::Uring {
            return (Calls::Mmsg, None);
        }
        match Ring::new(socket) {
            Ok(ring) => (Calls::Uring(Box::new(ring)), None),
            Err(error) => {
                let release = rustix::system::uname().release().to_string_lossy().into_owned();
                let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
                let disabled = disabled.and_then(|level| level.trim().parse().ok());
                (Calls::Mmsg, Some(NoUring::read(&error, &release, disabled)))
            }
        }
    }

    /// See [`sys::recv`].
    pub(super) fn recv<'a>(
        &mut self,
        socket: &UdpSocket,
        buffers: impl Iterator<Item = &'a mut [u8]>,
        per_message: usize,
        each: impl FnMut(usize, Received),
    ) -> io::Result<usize> {
        match self {
            Calls::Mmsg => sys::recv(socket, buffers, per_message, each),
            Calls::Uring(ring) => ring.recv(buffers, per_message, each),
        }
    }

    /// See [`sys::send`].
    pub(super) fn send<'a>(
        &mut self,
        socket: &UdpSocket,
        messages: impl Iterator<Item = Message>,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<usize> {
        match self {
            Calls::Mmsg => sys::send(socket, messages, pieces),
            Calls::Uring(ring) => ring.send(messages, pieces),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_no_io_uring_is_told_why_and_what_helps() {
        let why = |errno, disabled| {
            NoUring::read(&io::Error::from_raw_os_error(errno), "5.10.0-8-amd64", disabled).to_string()
        };
        assert!(why(libc::ENOSYS, None).contains("CONFIG_IO_URING"));
        assert!(why(libc::EINVAL, Some(0)).contains("Linux 5.10.0-8-amd64"));
        assert!(why(libc::EPERM, Some(2)).contains("is 2: run `sudo sysctl -w kernel.io_uring_disabled=0`"));
        assert!(why(libc::EPERM, Some(1)).contains("is 1: run `sudo sysctl"));
        assert!(why(libc::EPERM, Some(0)).contains("io_uring_setup"));
        assert!(why(libc::EPERM, None).contains("sandbox"));
        assert!(why(libc::ENOMEM, Some(0)).contains("memory"));
    }
}
