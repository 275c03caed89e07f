//! recvmmsg(2) and sendmmsg(2).
//!
//! ```text
//! recvmmsg(fd, msgvec, vlen, MSG_DONTWAIT | MSG_TRUNC, NULL)
//!   msgvec[i].msg_hdr  name: sender (out), iov: one buffer, no control data
//!   msgvec[i].msg_len  bytes of the datagram; its real length, even if cut (MSG_TRUNC)
//! sendmmsg(fd, msgvec, vlen, MSG_DONTWAIT)
//!   returns how many went; an error only if the first one failed
//! ```

use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};

/// Most datagrams of one call.
pub const BATCH: usize = 64;

/// One received datagram; its bytes are in the buffer of the same index.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Its real length, which may exceed the buffer.
    pub len: usize,
    /// Its sender.
    pub from: SocketAddr,
}

/// Either family's address, as the kernel reads and writes it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union Name {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

pub(super) const NAME_LEN: libc::socklen_t = size_of::<Name>() as libc::socklen_t;

pub(super) fn zeroed_name() -> Name {
    // SAFETY: all three members are plain integers, for which zeros are valid.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

impl Name {
    pub(super) fn address(&self) -> Option<SocketAddr> {
        // SAFETY: the union starts as zeros and the kernel writes a whole sockaddr of the family it
        // names; every member is plain integers, valid for any bytes.
        unsafe {
            match libc::c_int::from(self.family) {
                libc::AF_INET => Some(SocketAddr::V4(SocketAddrV4::new(
                    Ipv4Addr::from(u32::from_be(self.v4.sin_addr.s_addr)),
                    u16::from_be(self.v4.sin_port),
                ))),
                libc::AF_INET6 => Some(SocketAddr::V6(SocketAddrV6::new(
                    Ipv6Addr::from(self.v6.sin6_addr.s6_addr),
                    u16::from_be(self.v6.sin6_port),
                    0,
                    self.v6.sin6_scope_id,
                ))),
                _ => None,
            }
        }
    }

    fn of(address: &SocketAddr) -> (Name, libc::socklen_t) {
        let mut name = zeroed_name();
        match address {
            SocketAddr::V4(v4) => {
                name.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                (name, size_of::<libc::sockaddr_in>() as libc::socklen_t)
            }
            SocketAddr::V6(v6) => {
                name.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                (name, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
            }
        }
    }
}

fn zeroed_headers() -> [libc::mmsghdr; BATCH] {
    // SAFETY: an mmsghdr of zeros is valid: null pointers and zero lengths.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// Receives up to [`BATCH`] datagrams without waiting, one into each buffer in order. A datagram
/// whose sender has no IP address is reported from `0.0.0.0:0`.
///
/// # Errors
/// The kernel's; `WouldBlock` if nothing waits. ICMP errors of an earlier send count as errors too.
pub fn recv_batch<'a>(
    socket: impl AsFd,
    buffers: impl Iterator<Item = &'a mut [u8]>,
    mut each: impl FnMut(usize, Received),
) -> io::Result<usize> {
    let mut headers = zeroed_headers();
    let mut names = [zeroed_name(); BATCH];
    let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
    let mut count = 0;
    for buffer in buffers.take(BATCH) {
        vectors[count] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let header = &mut headers[count].msg_hdr;
        header.msg_name = (&raw mut names[count]).cast();
        header.msg_namelen = NAME_LEN;
        header.msg_iov = &raw mut vectors[count];
        header.msg_iovlen = 1;
        count += 1;
    }
    if count == 0 {
        return Ok(0);
    }
    // SAFETY: the first `count` headers point at names, vectors and buffers that outlive the call
    // (the buffers are borrowed for 'a) and are not otherwise accessed during it.
    let got = unsafe {
        libc::recvmmsg(
            socket.as_fd().as_raw_fd(),
            headers.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT | libc::MSG_TRUNC,
            std::ptr::null_mut(),
        )
    };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    for (i, header) in headers[..got].iter().enumerate() {
        let from = names[i].address().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
        each(i, Received { len: header.msg_len as usize, from });
    }
    Ok(got)
}

/// Sends up to [`BATCH`] datagrams without waiting and returns how many went.
///
/// # Errors
/// The kernel's, about the first datagram; `WouldBlock` if the send buffer is full.
pub fn send_batch<'a>(socket: impl AsFd, datagrams: impl Iterator<Item = (&'a [u8], SocketAddr)>) -> io::Result<usize> {
    let mut headers = zeroed_headers();
    let mut names = [zeroed_name(); BATCH];
    let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
    let mut count = 0;
    for (bytes, to) in datagrams.take(BATCH) {
        // The kernel only reads through iov_base on the way out.
        vectors[count] = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let (name, len) = Name::of(&to);
        names[count] = name;
        let header = &mut headers[count].msg_hdr;
        header.msg_name = (&raw mut names[count]).cast();
        header.msg_namelen = len;
        header.msg_iov = &raw mut vectors[count];
        header.msg_iovlen = 1;
        count += 1;
    }
    if count == 0 {
        return Ok(0);
    }
    // SAFETY: the first `count` headers point at names, vectors and bytes that outlive the call (the
    // bytes are borrowed for 'a); sendmmsg reads them only.
    let sent = unsafe {
        libc::sendmmsg(socket.as_fd().as_raw_fd(), headers.as_mut_ptr(), count as libc::c_uint, libc::MSG_DONTWAIT)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    fn round_trip(host: &str) {
        let (a, b) = (UdpSocket::bind((host, 0)).unwrap(), UdpSocket::bind((host, 0)).unwrap());
        let to = b.local_addr().unwrap();
        let payloads: Vec<Vec<u8>> = (0..100).map(|i| vec![i as u8; i]).collect();
        assert_eq!(send_batch(&a, payloads.iter().map(|p| (&p[..], to))).unwrap(), 64);
        assert_eq!(send_batch(&a, payloads[64..].iter().map(|p| (&p[..], to))).unwrap(), 36);
        let mut buffers = vec![[0u8; 50]; 100];
        let mut seen = Vec::new();
        while seen.len() < 100 {
            let done = seen.len();
            recv_batch(&b, buffers[done..].iter_mut().map(|b| &mut b[..]), |_, r| seen.push(r)).unwrap();
        }
        for (i, received) in seen.iter().enumerate() {
            assert_eq!(received.from, a.local_addr().unwrap());
            assert_eq!(received.len, i, "the real length, even if cut");
            assert!(buffers[i][..i.min(50)].iter().all(|byte| *byte == i as u8));
        }
        let error = recv_batch(&b, buffers.iter_mut().map(|b| &mut b[..]), |_, _| {}).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn batches_arrive_whole_and_in_order() {
        round_trip("127.0.0.1");
    }

    #[test]
    fn batches_arrive_over_ipv6() {
        if UdpSocket::bind("[::1]:0").is_err() {
            eprintln!("skipped: no IPv6 loopback here (sysctl net.ipv6.conf.lo.disable_ipv6=0 enables it)");
            return;
        }
        round_trip("::1");
    }
}
