//! Messages as the kernel reads and writes them: names, control data, and the bounds of a call.
//!
//! A burst is one message that carries many datagrams of one length between one pair of addresses. The
//! kernel carries it whole, so its cost is that of one datagram and of the bytes.
//!
//! ```text
//! in    name: sender (out); iov: the buffers of this message, filled one after the other;
//!       control (out): SOL_UDP, UDP_GRO, int: bytes of each datagram but the last, if it is a burst
//!       length: bytes of all datagrams together; the real number, even if cut (MSG_TRUNC)
//! out   name: receiver; iov: the pieces of this message, gathered; the kernel cuts where the control data says,
//!       SOL_UDP, UDP_SEGMENT, u16, whatever the pieces' lengths
//! ```
//!
//! Neighbours: [`super::mmsg`] and [`super::uring`] make the calls.

use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use arrayvec::ArrayVec;

/// Most messages of one call.
pub const MESSAGES_MAX: usize = 64;
/// Most buffers or pieces of one call, over all its messages; the kernel's own limit for one message.
pub const PIECES_MAX: usize = 1024;
/// Datagrams of a burst at most: what kernels take since segmentation came, and as many as a receiver's
/// kernel joins.
pub const GSO_SEGMENTS_MAX: usize = 64;
/// Bytes of a packet from which on the kernel cuts a burst before it reaches the device, which then carries it
/// datagram by datagram: `gso_max_size` of loopback and of most others. `gso_features_check` compares it with the
/// length of the whole packet, including the device's own header.
const DEVICE_GSO_MAX: usize = 65_536;
/// UDP and IPv6, which is longer than IPv4, and Ethernet with two VLAN tags. Loopback has an Ethernet header, too.
const HEADERS_MAX: usize = 8 + 40 + 14 + 2 * 4;
/// Payload bytes of a burst to send at most, so that it stays whole up to the device.
pub const GSO_BYTES_MAX: usize = DEVICE_GSO_MAX - 1 - HEADERS_MAX;
/// Payload bytes of a received burst at most: a kernel joins datagrams up to the length of one over IPv4, which is
/// more than a burst that this node sends.
pub const GRO_BYTES_MAX: usize = 65_507;

/// One received message; its bytes are in the buffers that it was given.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Its real length, which may exceed the buffers.
    pub len: usize,
    /// A burst: bytes of each of its datagrams but the last, which may be shorter. None: one datagram.
    pub segment: Option<usize>,
    pub from: SocketAddr,
}

/// One message to send.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    pub to: SocketAddr,
    /// Pieces it is gathered from.
    pub pieces: usize,
    /// Cut it into datagrams of this many bytes; the last may be shorter.
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

/// Room for one control message with an integer of at most four bytes.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

impl Control {
    const EMPTY: Control = Control([0; CONTROL_LEN]);

    /// Has `header` point here, for the kernel to write.
    fn receive(&mut self, header: &mut libc::msghdr) {
        header.msg_control = self.0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL_LEN;
    }

    /// Has `header` point here, and says that the message is to be cut into datagrams of this many bytes.
    fn cut(&mut self, header: &mut libc::msghdr, segment: u16) {
        header.msg_control = self.0.as_mut_ptr().cast();
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
}

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

/// The messages of one call, laid out for the kernel. What they point at is here, but for buffers and pieces: whoever
/// makes the call keeps both in place until the kernel is done.
pub(super) struct Messages {
    headers: [libc::mmsghdr; MESSAGES_MAX],
    names: [Name; MESSAGES_MAX],
    controls: [Control; MESSAGES_MAX],
    vectors: ArrayVec<libc::iovec, PIECES_MAX>,
}

impl Messages {
    #[inline(always)]
    pub(super) fn new() -> Messages {
        Messages {
            // SAFETY: an mmsghdr of zeros is valid: null pointers and zero lengths.
            headers: unsafe { MaybeUninit::zeroed().assume_init() },
            names: [zeroed_name(); MESSAGES_MAX],
            controls: [Control::EMPTY; MESSAGES_MAX],
            vectors: ArrayVec::new(),
        }
    }

    /// To be received: `per_message` buffers each. How many there are.
    pub(super) fn receive<'a>(&mut self, buffers: impl Iterator<Item = &'a mut [u8]>, per_message: usize) -> usize {
        let most = (MESSAGES_MAX * per_message).min(PIECES_MAX / per_message * per_message);
        self.vectors.clear();
        for buffer in buffers.take(most) {
            self.vectors.push(libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() });
        }
        let mut count = 0;
        for pieces in self.vectors.chunks_exact_mut(per_message) {
            let header = &mut self.headers[count].msg_hdr;
            header.msg_name = (&raw mut self.names[count]).cast();
            header.msg_namelen = NAME_LEN;
            header.msg_iov = pieces.as_mut_ptr();
            header.msg_iovlen = pieces.len();
            self.controls[count].receive(header);
            count += 1;
        }
        count
    }

    /// To be sent, each gathered from the next of `pieces`. How many there are.
    pub(super) fn send<'a>(
        &mut self,
        messages: impl Iterator<Item = Message>,
        mut pieces: impl Iterator<Item = &'a [u8]>,
    ) -> usize {
        self.vectors.clear();
        let mut count = 0;
        for message in messages.take(MESSAGES_MAX) {
            let first = self.vectors.len();
            if message.pieces > PIECES_MAX - first {
                break;
            }
            // The kernel only reads through iov_base on the way out.
            self.vectors.extend(
                pieces
                    .by_ref()
                    .take(message.pieces)
                    .map(|piece| libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() }),
            );
            let (name, len) = Name::of(&message.to);
            self.names[count] = name;
            let header = &mut self.headers[count].msg_hdr;
            header.msg_name = (&raw mut self.names[count]).cast();
            header.msg_namelen = len;
            header.msg_iovlen = self.vectors.len() - first;
            match message.segment {
                Some(segment) => self.controls[count].cut(header, segment),
                None => (header.msg_control, header.msg_controllen) = (std::ptr::null_mut(), 0),
            }
            count += 1;
        }
        let mut rest = &mut self.vectors[..];
        for header in &mut self.headers[..count] {
            let (own, others) = rest.split_at_mut(header.msg_hdr.msg_iovlen);
            header.msg_hdr.msg_iov = own.as_mut_ptr();
            rest = others;
        }
        count
    }

    pub(super) fn headers(&mut self) -> &mut [libc::mmsghdr; MESSAGES_MAX] {
        &mut self.headers
    }

    /// The `i`th message received; the kernel reports a length of `len` bytes.
    pub(super) fn received(&self, i: usize, len: usize) -> Received {
        let from = self.names[i].address().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
        Received { len, segment: segment_of(&self.headers[i].msg_hdr), from }
    }
}
