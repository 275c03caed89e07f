//! The same messages over io_uring(7): RECVMSG and SENDMSG on one socket, many to a system call.
//!
//! ```text
//! io_uring_setup   SINGLE_ISSUER | DEFER_TASKRUN: one thread submits, and completions are made when it asks for them;
//!                  R_DISABLED until its first call, which makes that thread the one; SUBMIT_ALL
//! register         nothing: a ring is taken down after its process has ended, and a socket registered with it would
//!                  keep its port until then, so that a node that was killed could not start again at once
//! io_uring_enter   n requests, each MSG_DONTWAIT: they are done when the call returns, and nothing stays in flight
//!   RECVMSG        one after the other, so in the order of arrival; those that find the queue empty end with EAGAIN
//!   SENDMSG        linked: one that fails ends those behind it with ECANCELED, so nothing overtakes
//! ```
//!
//! Neighbour: [`super::message`] lays the messages out.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use arrayvec::ArrayVec;
use io_uring::{IoUring, opcode, squeue, types};

use super::message::{MESSAGES_MAX, Message, Messages, Received};

pub struct Ring {
    ring: IoUring,
    /// A duplicate, so that the number stays this socket's.
    socket: OwnedFd,
    messages: Box<Messages>,
    enabled: bool,
    /// Messages that the queue held when it was last emptied, and those that came since.
    burst: usize,
    since: usize,
}

// SAFETY: the pointers in `messages` lead into its own box, or to buffers and pieces of a call that is over; every
// call rewrites them before the kernel sees them.
unsafe impl Send for Ring {}

/// Results of one call, in the order of the requests: what system calls return, errors below zero.
type Results = ArrayVec<i32, MESSAGES_MAX>;

impl Ring {
    /// A ring for this socket. The first call that sends or receives ties it to its thread.
    ///
    /// # Errors
    /// The kernel has no io_uring (ENOSYS), not all of it (EINVAL: before Linux 6.1), or does not let this process use
    /// it (EPERM).
    pub fn new(socket: impl AsFd) -> io::Result<Ring> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_r_disabled()
            .setup_submit_all()
            .build(MESSAGES_MAX as u32)?;
        let socket = socket.as_fd().try_clone_to_owned()?;
        Ok(Ring { ring, socket, messages: Box::new(Messages::new()), enabled: false, burst: 0, since: 0 })
    }

    /// See [`super::recv`].
    ///
    /// # Errors
    /// The same.
    pub fn recv<'a>(
        &mut self,
        buffers: impl Iterator<Item = &'a mut [u8]>,
        per_message: usize,
        mut each: impl FnMut(usize, Received),
    ) -> io::Result<usize> {
        let count = self.messages.receive(buffers, per_message);
        let (mut got, mut refused) = (0, None);
        while got < count && refused.is_none() {
            let some = got..count.min(got + self.likely());
            let results = self.run(some.clone(), false)?;
            for (i, result) in some.zip(&results) {
                match usize::try_from(*result) {
                    Ok(len) => {
                        got += 1;
                        each(i, self.messages.received(i, len));
                    }
                    Err(_) => refused = Some(-result),
                }
            }
            self.since += results.iter().filter(|result| **result >= 0).count();
            if refused.is_some() {
                (self.burst, self.since) = (self.since, 0);
            }
        }
        match refused {
            Some(errno) if got == 0 => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(got),
        }
    }

    /// The number of messages to ask for: as many as arrived last time, and one more to see the end. It doubles each
    /// time that there are more. A request that finds nothing costs 500 ns.
    fn likely(&self) -> usize {
        match (self.burst + 1).saturating_sub(self.since) {
            0 => self.since,
            more => more,
        }
    }

    /// See [`super::send`].
    ///
    /// # Errors
    /// The same.
    pub fn send<'a>(
        &mut self,
        messages: impl Iterator<Item = Message>,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<usize> {
        let count = self.messages.send(messages, pieces);
        let results = self.run(0..count, true)?;
        match results.iter().take_while(|result| **result >= 0).count() {
            0 if count > 0 => Err(io::Error::from_raw_os_error(-results[0])),
            sent => Ok(sent),
        }
    }

    /// Has the kernel send or receive some of the messages, and returns when it has.
    fn run(&mut self, some: Range<usize>, out: bool) -> io::Result<Results> {
        if !self.enabled {
            self.ring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        let (count, socket) = (some.len(), types::Fd(self.socket.as_raw_fd()));
        for (i, header) in self.messages.headers()[some].iter_mut().enumerate() {
            let header = &raw mut header.msg_hdr;
            let entry = if out {
                opcode::SendMsg::new(socket, header).flags(libc::MSG_DONTWAIT as u32).build()
            } else {
                let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
                opcode::RecvMsg::new(socket, header).flags(flags as u32).build()
            };
            let linked = if out && i + 1 < count { squeue::Flags::IO_LINK } else { squeue::Flags::empty() };
            let entry = entry.user_data(i as u64).flags(linked);
            // SAFETY: the header, and all that it points at, stay in place until the request is done: `messages` is a
            // box of ours, buffers and pieces are borrowed by our caller, and we do not return before every request
            // has its result.
            unsafe { self.ring.submission().push(&entry) }.expect("a call has no more messages than the ring");
        }
        let mut results: Results = std::iter::repeat_n(0, count).collect();
        let mut remaining = count;
        while remaining > 0 {
            if let Err(error) = self.ring.submit_and_wait(remaining)
                && !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
            {
                // Without this call it is unknown whether the kernel still uses memory that would be freed here.
                eprintln!("io_uring_enter failed, which it cannot on a ring's own thread: {error}");
                std::process::abort();
            }
            for entry in self.ring.completion() {
                results[entry.user_data() as usize] = entry.result();
                remaining -= 1;
            }
        }
        Ok(results)
    }
}
