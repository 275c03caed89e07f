//! recvmmsg(2) and sendmmsg(2), with trains: UDP_GRO on the way in, UDP_SEGMENT on the way out.
//!
//! A train is one message that stands for many datagrams of one length between one pair of addresses. The
//! kernel carries it whole, so its cost is that of one datagram and of the bytes.
//!
//! ```text
//! recvmmsg(fd, msgvec, vlen, MSG_DONTWAIT | MSG_TRUNC, NULL)
//!   msgvec[i].msg_hdr  name: sender (out); iov: the buffers of this message, filled one after the other;
//!                      control (out): SOL_UDP, UDP_GRO, int: bytes of each datagram but the last, if it is a train
//!   msgvec[i].msg_len  bytes of all datagrams together; the real number, even if cut (MSG_TRUNC)
//! sendmmsg(fd, msgvec, vlen, MSG_DONTWAIT)
//!   msgvec[i].msg_hdr  name: receiver; iov: the pieces of this message, gathered; the kernel cuts where the control
//!                      data says, SOL_UDP, UDP_SEGMENT, u16, whatever the pieces' lengths
//!   returns how many messages went; an error only if the first one failed
//! ```

use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};

use arrayvec::ArrayVec;

/// Most messages of one call.
pub const MESSAGES_MAX: usize = 64;
/// Most buffers or pieces of one call, over all its messages; the kernel's own limit for one message.
pub const PIECES_MAX: usize = 1024;
/// Datagrams of a train at most: what kernels take since segmentation came, and as many as a receiver's
/// kernel joins.
pub const TRAIN_MAX: usize = 64;
/// Payload bytes of a train at most: it is one UDP datagram over IPv4 until it is cut.
pub const TRAIN_BYTES_MAX: usize = 65_507;

/// One received message; its bytes are in the buffers that it was given.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Its real length, which may exceed the buffers.
    pub len: usize,
    /// A train: bytes of each of its datagrams but the last, which may be shorter. None: one datagram.
    pub segment: Option<usize>,
    /// Its sender.
    pub from: SocketAddr,
}

/// One message to send.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// Its receiver.
    pub to: SocketAddr,
    /// Pieces it is gathered from.
    pub pieces: usize,
    /// Cut it into datagrams of so many bytes; the last may be shorter.
    pub segment: Option<u16>,
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

fn zeroed_headers() -> [libc::mmsghdr; MESSAGES_MAX] {
    // SAFETY: an mmsghdr of zeros is valid: null pointers and zero lengths.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// Room for one control message with an integer of at most four bytes.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

// SAFETY: CMSG_SPACE computes a number and has no preconditions.
const CONTROL_LEN: usize = unsafe { libc::CMSG_SPACE(4) } as usize;

/// The kernel's UDP_GRO answer in the control data of a received message.
fn segment_of(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel has filled msg_control up to msg_controllen, and the CMSG macros stay inside it; the
    // payload of UDP_GRO is an int, read unaligned.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        while !at.is_null() {
            if (*at).cmsg_level == libc::SOL_UDP && (*at).cmsg_type == libc::UDP_GRO {
                let bytes = libc::CMSG_DATA(at).cast::<libc::c_int>().read_unaligned();
                return usize::try_from(bytes).ok().filter(|bytes| *bytes > 0);
            }
            at = libc::CMSG_NXTHDR(header, at);
        }
    }
    None
}

/// Receives messages without waiting, into `per_message` buffers each: the first into the first ones, and so on. Of
/// [`MESSAGES_MAX`] messages and [`PIECES_MAX`] buffers, whichever is reached first bounds the call. `each` is told
/// of every message with its number. A message whose sender has no IP address is reported from `0.0.0.0:0`.
///
/// # Errors
/// The kernel's; `WouldBlock` if nothing waits. ICMP errors of an earlier send count as errors too.
pub fn recv<'a>(
    socket: impl AsFd,
    buffers: impl Iterator<Item = &'a mut [u8]>,
    per_message: usize,
    mut each: impl FnMut(usize, Received),
) -> io::Result<usize> {
    let mut headers = zeroed_headers();
    let mut names = [zeroed_name(); MESSAGES_MAX];
    let mut controls = [Control([0; CONTROL_LEN]); MESSAGES_MAX];
    let most = (MESSAGES_MAX * per_message).min(PIECES_MAX / per_message * per_message);
    let mut vectors: ArrayVec<libc::iovec, PIECES_MAX> = ArrayVec::new();
    for buffer in buffers.take(most) {
        vectors.push(libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() });
    }
    let mut count = 0;
    for pieces in vectors.chunks_exact_mut(per_message) {
        let header = &mut headers[count].msg_hdr;
        header.msg_name = (&raw mut names[count]).cast();
        header.msg_namelen = NAME_LEN;
        header.msg_iov = pieces.as_mut_ptr();
        header.msg_iovlen = pieces.len();
        header.msg_control = controls[count].0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL_LEN;
        count += 1;
    }
    if count == 0 {
        return Ok(0);
    }
    // SAFETY: the first `count` headers point at names, vectors, control space and buffers that outlive the call (the
    // buffers are borrowed for 'a) and are not otherwise accessed during it.
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
        each(i, Received { len: header.msg_len as usize, segment: segment_of(&header.msg_hdr), from });
    }
    Ok(got)
}

/// Sends messages without waiting, each gathered from the next of `pieces`, and returns how many went. Of
/// [`MESSAGES_MAX`] messages and [`PIECES_MAX`] pieces, whichever is reached first bounds the call.
///
/// # Errors
/// The kernel's, about the first message; `WouldBlock` if the send buffer is full.
pub fn send<'a>(
    socket: impl AsFd,
    messages: impl Iterator<Item = Message>,
    mut pieces: impl Iterator<Item = &'a [u8]>,
) -> io::Result<usize> {
    let mut headers = zeroed_headers();
    let mut names = [zeroed_name(); MESSAGES_MAX];
    let mut controls = [Control([0; CONTROL_LEN]); MESSAGES_MAX];
    let mut vectors: ArrayVec<libc::iovec, PIECES_MAX> = ArrayVec::new();
    let mut count = 0;
    for message in messages.take(MESSAGES_MAX) {
        let first = vectors.len();
        if message.pieces > PIECES_MAX - first {
            break;
        }
        // The kernel only reads through iov_base on the way out.
        vectors.extend(
            pieces
                .by_ref()
                .take(message.pieces)
                .map(|piece| libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() }),
        );
        let (name, len) = Name::of(&message.to);
        names[count] = name;
        let header = &mut headers[count].msg_hdr;
        header.msg_name = (&raw mut names[count]).cast();
        header.msg_namelen = len;
        header.msg_iovlen = vectors.len() - first;
        if let Some(segment) = message.segment {
            header.msg_control = controls[count].0.as_mut_ptr().cast();
            // SAFETY: CMSG_SPACE computes a number; the control space is CONTROL_LEN bytes, which holds a header
            // and a u16, and CMSG_FIRSTHDR and CMSG_DATA point into it.
            unsafe {
                header.msg_controllen = libc::CMSG_SPACE(2) as usize;
                let cmsg = libc::CMSG_FIRSTHDR(header);
                (*cmsg).cmsg_level = libc::SOL_UDP;
                (*cmsg).cmsg_type = libc::UDP_SEGMENT;
                (*cmsg).cmsg_len = libc::CMSG_LEN(2) as usize;
                libc::CMSG_DATA(cmsg).cast::<u16>().write_unaligned(segment);
            }
        }
        count += 1;
    }
    if count == 0 {
        return Ok(0);
    }
    let mut rest = &mut vectors[..];
    for header in &mut headers[..count] {
        let (own, others) = rest.split_at_mut(header.msg_hdr.msg_iovlen);
        header.msg_hdr.msg_iov = own.as_mut_ptr();
        rest = others;
    }
    // SAFETY: the first `count` headers point at names, control space, vectors and pieces that outlive the call (the
    // pieces are borrowed for 'a); sendmmsg reads them only.
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
        let single = || std::iter::repeat(Message { to, pieces: 1, segment: None });
        assert_eq!(send(&a, single(), payloads.iter().map(|p| &p[..])).unwrap(), 64);
        assert_eq!(send(&a, single().take(36), payloads[64..].iter().map(|p| &p[..])).unwrap(), 36);
        let mut buffers = vec![[0u8; 50]; 100];
        let mut seen = Vec::new();
        while seen.len() < 100 {
            let done = seen.len();
            recv(&b, buffers[done..].iter_mut().map(|b| &mut b[..]), 1, |_, r| seen.push(r)).unwrap();
        }
        for (i, received) in seen.iter().enumerate() {
            assert_eq!(received.from, a.local_addr().unwrap());
            assert_eq!((received.len, received.segment), (i, None), "the real length, even if cut");
            assert!(buffers[i][..i.min(50)].iter().all(|byte| *byte == i as u8));
        }
        let error = recv(&b, buffers.iter_mut().map(|b| &mut b[..]), 1, |_, _| {}).unwrap_err();
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

    #[test]
    fn trains_are_gathered_in_any_order_and_land_one_datagram_per_buffer() {
        let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        crate::sys::join_trains(&b).unwrap();
        let to = b.local_addr().unwrap();
        let cells: Vec<Vec<u8>> = (0..150u8).map(|i| vec![i; 300]).collect();
        // Three trains, of 64, of 64 and of 21 and a shorter tail, their pieces backwards.
        let train = |pieces| Message { to, pieces, segment: Some(300) };
        let pieces = (0..150).map(|i| if i == 149 { &cells[0][..77] } else { &cells[149 - i][..] });
        assert_eq!(send(&a, [64, 64, 22].map(train).into_iter(), pieces).unwrap(), 3);
        let mut buffers = vec![[0u8; 300]; 3 * 64];
        let mut seen = Vec::new();
        while seen.len() < 3 {
            let at = 64 * seen.len();
            recv(&b, buffers[at..].iter_mut().map(|b| &mut b[..]), 64, |_, r| seen.push(r)).unwrap();
        }
        let lens = seen.iter().map(|r| (r.len, r.segment)).collect::<Vec<_>>();
        assert_eq!(lens, [(64 * 300, Some(300)), (64 * 300, Some(300)), (21 * 300 + 77, Some(300))]);
        for i in 0..149 {
            assert_eq!(buffers[i], [149 - i as u8; 300]);
        }
        assert_eq!(buffers[149][..77], [0; 77]);
    }

    #[test]
    fn what_the_buffers_of_a_train_cannot_hold_is_known_by_its_length() {
        let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        crate::sys::join_trains(&b).unwrap();
        let message = Message { to: b.local_addr().unwrap(), pieces: 20, segment: Some(100) };
        assert_eq!(send(&a, [message].into_iter(), std::iter::repeat_n(&[7; 100][..], 20)).unwrap(), 1);
        let mut buffers = [[0u8; 100]; 8];
        let mut seen = Vec::new();
        recv(&b, buffers.iter_mut().map(|b| &mut b[..]), 8, |_, r| seen.push((r.len, r.segment))).unwrap();
        assert_eq!(seen, [(2000, Some(100))]);
    }
}
