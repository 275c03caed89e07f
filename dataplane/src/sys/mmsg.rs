//! recvmmsg(2) and sendmmsg(2), with bursts: UDP_GRO on the way in, UDP_SEGMENT on the way out.
//!
//! ```text
//! recvmmsg(fd, msgvec, vlen, MSG_DONTWAIT | MSG_TRUNC, NULL)
//!   msgvec[i].msg_len  the length of message i
//! sendmmsg(fd, msgvec, vlen, MSG_DONTWAIT)
//!   returns how many messages went; an error only if the first one failed
//! ```
//!
//! Neighbour: [`super::message`] lays the messages out.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::message::{Message, Messages, Received};

/// Receives messages without waiting, into `per_message` buffers each: the first into the first ones, and so on. Of
/// [`super::MESSAGES_MAX`] messages and [`super::PIECES_MAX`] buffers, whichever is reached first bounds the call.
/// `each` is called for every message with its number. A message whose sender has no IP address is reported from
/// `0.0.0.0:0`.
///
/// # Errors
/// The kernel's; `WouldBlock` if nothing waits. ICMP errors of an earlier send count as errors too.
pub fn recv<'a>(
    socket: impl AsFd,
    buffers: impl Iterator<Item = &'a mut [u8]>,
    per_message: usize,
    mut each: impl FnMut(usize, Received),
) -> io::Result<usize> {
    let mut messages = Messages::new();
    let count = messages.receive(buffers, per_message);
    if count == 0 {
        return Ok(0);
    }
    // SAFETY: the first `count` headers point into `messages` and at buffers that outlive the call (the buffers are
    // borrowed for 'a) and are not otherwise accessed during it.
    let got = unsafe {
        libc::recvmmsg(
            socket.as_fd().as_raw_fd(),
            messages.headers().as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT | libc::MSG_TRUNC,
            std::ptr::null_mut(),
        )
    };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    for i in 0..got {
        let len = messages.headers()[i].msg_len as usize;
        each(i, messages.received(i, len));
    }
    Ok(got)
}

/// Sends messages without waiting, each gathered from the next of `pieces`, and returns how many went. Of
/// [`super::MESSAGES_MAX`] messages and [`super::PIECES_MAX`] pieces, whichever is reached first bounds the call.
///
/// # Errors
/// The kernel's, about the first message; `WouldBlock` if the send buffer is full.
pub fn send<'a>(
    socket: impl AsFd,
    messages: impl Iterator<Item = Message>,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> io::Result<usize> {
    let mut laid = Messages::new();
    let count = laid.send(messages, pieces);
    if count == 0 {
        return Ok(0);
    }
    // SAFETY: the first `count` headers point into `laid` and at pieces that outlive the call (the pieces are borrowed
    // for 'a); sendmmsg reads them only.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_fd().as_raw_fd(),
            laid.headers().as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT,
        )
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
            crate::skipped("no IPv6 loopback here (sysctl net.ipv6.conf.lo.disable_ipv6=0 enables it)");
            return;
        }
        round_trip("::1");
    }

    #[test]
    fn bursts_are_gathered_and_land_one_datagram_per_buffer() {
        let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        crate::sys::enable_gro(&b).unwrap();
        let to = b.local_addr().unwrap();
        let cells: Vec<Vec<u8>> = (0..150u8).map(|i| vec![i; 300]).collect();
        // Three bursts, of 64, of 64 and of 21 and a shorter tail, their pieces backwards.
        let burst = |pieces| Message { to, pieces, segment: Some(300) };
        let pieces = (0..150).map(|i| if i == 149 { &cells[0][..77] } else { &cells[149 - i][..] });
        assert_eq!(send(&a, [64, 64, 22].map(burst).into_iter(), pieces).unwrap(), 3);
        let mut buffers = vec![[0u8; 300]; 3 * 64];
        let mut seen = Vec::new();
        while seen.len() < 3 {
            let at = 64 * seen.len();
            recv(&b, buffers[at..].iter_mut().map(|b| &mut b[..]), 64, |_, r| seen.push(r)).unwrap();
        }
        let lens = seen.iter().map(|r| (r.len, r.segment)).collect::<Vec<_>>();
        assert_eq!(lens, [(64 * 300, Some(300)), (64 * 300, Some(300)), (21 * 300 + 77, Some(300))]);
        for (i, buffer) in buffers[..149].iter().enumerate() {
            assert_eq!(*buffer, [149 - i as u8; 300]);
        }
        assert_eq!(buffers[149][..77], [0; 77]);
    }

    #[test]
    fn burst_longer_than_its_buffers_is_known_by_its_length() {
        let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        crate::sys::enable_gro(&b).unwrap();
        let message = Message { to: b.local_addr().unwrap(), pieces: 20, segment: Some(100) };
        assert_eq!(send(&a, [message].into_iter(), std::iter::repeat_n(&[7; 100][..], 20)).unwrap(), 1);
        let mut buffers = [[0u8; 100]; 8];
        let mut seen = Vec::new();
        recv(&b, buffers.iter_mut().map(|b| &mut b[..]), 8, |_, r| seen.push((r.len, r.segment))).unwrap();
        assert_eq!(seen, [(2000, Some(100))]);
    }
}
