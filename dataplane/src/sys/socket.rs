//! Socket options that neither socket2 nor rustix has.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::net::sockopt;

/// Asks for a receive buffer of `bytes`: by force where the process may, else within
/// net.core.rmem_max. Returns what the kernel granted (it counts double, for its own overhead).
///
/// # Errors
/// Neither call worked.
pub fn size_receive_buffer(socket: impl AsFd, bytes: usize) -> io::Result<usize> {
    let fd = socket.as_fd();
    if sockopt::set_socket_recv_buffer_size_force(fd, bytes).is_err() {
        sockopt::set_socket_recv_buffer_size(fd, bytes)?;
    }
    Ok(sockopt::socket_recv_buffer_size(fd)?)
}

/// setsockopt(fd, level, name, &1, 4)
fn enable(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<()> {
    let one: libc::c_int = 1;
    // SAFETY: `one` outlives the call and its size is given; the fd is borrowed.
    let result = unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const one).cast(), size_of_val(&one) as libc::socklen_t)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Turns on IP_RECVERR (or its IPv6 twin): ICMP errors queue up with the address they are about, and
/// `read_error` reads them.
///
/// # Errors
/// Not a UDP socket.
pub fn report_errors(socket: impl AsFd, ipv6: bool) -> io::Result<()> {
    if ipv6 {
        enable(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
    } else {
        enable(socket.as_fd(), libc::IPPROTO_IP, libc::IP_RECVERR)
    }
}

/// Turns on UDP_GRO: datagrams of one length from one sender that the kernel got as a burst, or joined to one, are
/// handed over as one message (see [`super::recv`]).
///
/// # Errors
/// A kernel before 5.0, or not a UDP socket.
pub fn enable_gro(socket: impl AsFd) -> io::Result<()> {
    enable(socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO)
}

/// Has the kernel refuse GSO bursts on this socket, as it does where a device does not cut them: without checksums
/// (SO_NO_CHECK) there is no UDP_SEGMENT.
#[cfg(test)]
pub(crate) fn refuse_gso(socket: BorrowedFd<'_>) -> io::Result<()> {
    enable(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK)
}

/// Datagrams that the kernel dropped at this socket since it was made, mostly because the receive buffer was full. The
/// count has 32 bits and wraps around.
///
/// # Errors
/// Not a socket.
pub fn kernel_drops(socket: impl AsFd) -> io::Result<u64> {
    const SK_MEMINFO_DROPS: usize = 8;
    Ok(u64::from(memory(socket.as_fd())?[SK_MEMINFO_DROPS]))
}

/// True if half of the receive buffer is taken, or more.
///
/// # Errors
/// Not a socket.
pub fn is_half_full(socket: impl AsFd) -> io::Result<bool> {
    const SK_MEMINFO_RMEM_ALLOC: usize = 0;
    const SK_MEMINFO_RCVBUF: usize = 1;
    let memory = memory(socket.as_fd())?;
    Ok(memory[SK_MEMINFO_RMEM_ALLOC] >= memory[SK_MEMINFO_RCVBUF] / 2)
}

/// getsockopt(fd, SOL_SOCKET, SO_MEMINFO)
fn memory(fd: BorrowedFd<'_>) -> io::Result<[u32; 9]> {
    const SO_MEMINFO: libc::c_int = 55;
    let mut values = [0u32; 9];
    let mut len = size_of_val(&values) as libc::socklen_t;
    // SAFETY: `values` is writable for `len` bytes; the fd is borrowed.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, SO_MEMINFO, values.as_mut_ptr().cast(), &raw mut len)
    };
    if result == 0 { Ok(values) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_flooded_socket_tells_what_the_kernel_dropped() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        size_receive_buffer(&receiver, 4096).unwrap();
        assert_eq!(kernel_drops(&receiver).unwrap(), 0);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..100 {
            sender.send_to(&[0; 1000], receiver.local_addr().unwrap()).unwrap();
        }
        receiver.set_nonblocking(true).unwrap();
        let mut got = 0;
        while receiver.recv(&mut [0; 1000]).is_ok() {
            got += 1;
        }
        assert_eq!(kernel_drops(&receiver).unwrap(), 100 - got);
    }
}
