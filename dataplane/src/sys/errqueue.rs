//! recvmsg(2) with MSG_ERRQUEUE: ICMP errors with the address they are about.
//!
//! ```text
//! recvmsg(fd, msg, MSG_ERRQUEUE | MSG_DONTWAIT)
//!   msg_name     the destination of the datagram that failed
//!   msg_control  IP_RECVERR or IPV6_RECVERR: struct sock_extended_err
//! ```

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use super::message::{NAME_LEN, zeroed_name};

/// A destination that an ICMP message, or the local stack, says cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// The destination of the datagram.
    pub to: SocketAddr,
    /// The error as errno.
    pub errno: i32,
}

/// Takes one error off the queue of a socket with [`super::report_errors`] on.
///
/// # Errors
/// `WouldBlock` when the queue is empty.
pub(crate) fn read_error(socket: impl AsFd) -> io::Result<Option<Unreachable>> {
    let mut name = zeroed_name();
    let mut payload = [0u8; 1];
    let mut control = [0u64; 64];
    let mut vector = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
    // SAFETY: a msghdr of zeros is valid: null pointers and zero lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = NAME_LEN;
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: all that `message` points at is local, writable for the lengths given, and aligned.
    let got =
        unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled msg_control up to msg_controllen; the CMSG macros stay inside it,
    // and a sock_extended_err is plain integers, read unaligned.
    let errno = unsafe {
        let mut errno = None;
        let mut at = libc::CMSG_FIRSTHDR(&raw const message);
        while !at.is_null() {
            let header = &*at;
            if matches!(
                (header.cmsg_level, header.cmsg_type),
                (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
            ) {
                let error = libc::CMSG_DATA(at).cast::<libc::sock_extended_err>().read_unaligned();
                errno = Some(error.ee_errno as i32);
            }
            at = libc::CMSG_NXTHDR(&raw const message, at);
        }
        errno
    };
    Ok(name.address().zip(errno).map(|(to, errno)| Unreachable { to, errno }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::report_errors;
    use std::net::UdpSocket;

    #[test]
    fn a_closed_port_is_reported_with_its_address() {
        let gone = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        report_errors(&socket, false).unwrap();
        socket.send_to(b"knock", gone).unwrap();
        // Loopback delivers the ICMP message before sendto returns.
        let error = read_error(&socket).unwrap().unwrap();
        assert_eq!(error, Unreachable { to: gone, errno: libc::ECONNREFUSED });
        assert_eq!(read_error(&socket).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
