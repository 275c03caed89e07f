//! One end of a link with the mix: the `control` of a node, a socket, and the header keys of the link.
//!
//! Data cells are sealed and checked elsewhere ([`super::sealed`]). This does everything else that a neighbour does:
//! handshakes, channel setups, and keepalives.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use control::{Change, Config, Control, Input, Output, TrustSetup};
use dataplane::sys;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use wire::cell::{CellKind, Class, Direction, HEADER_LEN, Header, Shape};
use wire::handshake::is_handshake_len;
use wire::ids::{ChannelKeys, LinkId, Rank, Side, SlotId};
use wire::link::HeaderKey;

use crate::udp::{MESSAGE_MAX, MESSAGES};

/// Receive options of a socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Receive {
    /// Bytes of the receive buffer.
    pub(crate) buffer: usize,
    pub(crate) gro: bool,
}

impl Receive {
    /// Configures a socket, and makes it non-blocking.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn apply(self, socket: &UdpSocket) -> std::io::Result<()> {
        if self.gro {
            return crate::udp::prepare(socket, self.buffer);
        }
        sys::size_receive_buffer(socket, self.buffer)?;
        socket.set_nonblocking(true)
    }
}

struct Slot {
    link: LinkId,
    id: SlotId,
    incoming: HeaderKey,
    outgoing: HeaderKey,
    /// Cells to the mix are sealed under it.
    current: bool,
}

/// A channel that `control` has opened.
pub(crate) struct OpenedChannel {
    /// Its number on the link.
    pub(crate) number: u32,
    pub(crate) keys: ChannelKeys,
}

/// The entry or the exit of a chain of one mix.
pub(crate) struct Neighbour {
    control: Control,
    side: Side,
    class: Class,
    socket: UdpSocket,
    mix: SocketAddr,
    incoming_len: usize,
    slots: Vec<Slot>,
    /// Channels that the caller has not taken yet.
    pub(crate) opened: Vec<OpenedChannel>,
    /// Datagrams sent to the mix, without data cells.
    pub(crate) sent: u64,
    clock: Instant,
}

impl Neighbour {
    /// The entry (`Side::Down`) or the exit (`Side::Up`).
    ///
    /// # Errors
    /// The socket cannot be configured.
    pub(crate) fn new(
        (config, trust): (Config, TrustSetup),
        side: Side,
        socket: UdpSocket,
        mix: SocketAddr,
        receive: Receive,
    ) -> anyhow::Result<Neighbour> {
        let shape = config.shape;
        let clock = Instant::now();
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|why| anyhow::anyhow!("the system has no randomness: {why}"))?;
        let control =
            Control::new(vec![config], trust, ChaCha20Rng::from_seed(seed), Duration::ZERO, SystemTime::now())
                .context("cannot start a neighbour of the mix")?;
        receive.apply(&socket)?;
        Ok(Neighbour {
            control,
            side,
            class: shape.class(),
            socket,
            mix,
            incoming_len: incoming_len(shape, side),
            slots: Vec::new(),
            opened: Vec::new(),
            sent: 0,
            clock,
        })
    }

    pub(crate) fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// The header key of cells to the mix; `None` until the link is up.
    pub(crate) fn outgoing(&self) -> Option<&HeaderKey> {
        self.slots.iter().find(|slot| slot.current).map(|slot| &slot.outgoing)
    }

    /// Lets the entry open channels until it has this many.
    pub(crate) fn want_channels(&mut self, channels: usize) {
        let now = self.clock.elapsed();
        self.control.want_channels(now, 0, channels);
        self.collect();
    }

    /// Handles the datagrams that wait, and runs the timers.
    pub(crate) fn serve(&mut self, buffers: &mut [Vec<u8>]) {
        loop {
            let mut steps = [(0, 0); MESSAGES];
            let slices = buffers.iter_mut().map(Vec::as_mut_slice);
            let received = sys::recv(&self.socket, slices, 1, |i, message| {
                steps[i] = (message.len.min(MESSAGE_MAX), message.segment.unwrap_or(message.len).max(1));
            });
            let count = received.unwrap_or(0);
            for (bytes, (len, step)) in buffers.iter_mut().zip(steps).take(count) {
                bytes[..len].chunks_mut(step).for_each(|datagram| {
                    self.take(datagram);
                });
            }
            if count < MESSAGES {
                break;
            }
        }
        self.control.tick(self.clock.elapsed(), SystemTime::now());
        self.collect();
    }

    /// Handles one datagram. Returns the header if it is a data cell, which the caller handles.
    pub(crate) fn take(&mut self, bytes: &mut [u8]) -> Option<Header> {
        let now = self.clock.elapsed();
        if bytes.len() != self.incoming_len {
            if is_handshake_len(bytes.len()) {
                let input = Input::Handshake { side: self.side, from: self.mix, datagram: bytes };
                self.control.handle(now, 0, input);
                self.collect();
            }
            return None;
        }
        let (block, body) = bytes.split_first_chunk_mut::<HEADER_LEN>()?;
        let (slot, header) = self.slots.iter().find_map(|slot| {
            let mut clear = [*block];
            slot.incoming.decipher(&mut clear);
            Some((slot, Header::from_block(&clear[0], self.class).ok()?))
        })?;
        let (link, slot, next) = (slot.link, slot.id, !slot.current);
        if header.kind == CellKind::Data {
            // Not authenticated yet: the caller opens some of the cells.
            if next && self.side == Side::Up {
                self.control.handle(now, 0, Input::Promoted { link, slot, from: self.mix });
                self.collect();
            }
            return Some(header);
        }
        self.control.handle(now, 0, Input::Cell { link, slot, from: self.mix, header, body });
        self.collect();
        None
    }

    /// Reports data cells to `control`, as a worker does.
    pub(crate) fn note_activity(&mut self, received: bool, sent: bool) {
        let now = self.clock.elapsed();
        if let Some(link) = self.slots.iter().find(|slot| slot.current).map(|slot| slot.link) {
            self.control.handle(now, 0, Input::Activity { link, received, sent });
            self.collect();
        }
    }

    /// Applies the outputs of `control`.
    fn collect(&mut self) {
        while let Some((_, output)) = self.control.poll_output() {
            match output {
                Output::Send { datagram, .. } => self.send(&datagram),
                Output::Change(change) => self.apply(change),
                Output::Save(number) => self.control.saved(self.clock.elapsed(), number),
                Output::Resolve(_) | Output::Event(_) => {}
            }
        }
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Paced(_) => unreachable!("the neighbour has a free class"),
            Change::InstallSlot { link, slot, header_i2r, header_r2i, rank, .. } => {
                let (i2r, r2i) = (HeaderKey::new(&header_i2r), HeaderKey::new(&header_r2i));
                let (incoming, outgoing) = if self.side == Side::Up { (i2r, r2i) } else { (r2i, i2r) };
                let current = rank == Rank::Current;
                if current {
                    self.slots.iter_mut().for_each(|slot| slot.current = false);
                }
                self.slots.push(Slot { link, id: slot, incoming, outgoing, current });
            }
            Change::Promote { slot, .. } => self.slots.iter_mut().for_each(|one| one.current = one.id == slot),
            Change::RetireSlot { slot, .. } => self.slots.retain(|one| one.id != slot),
            Change::RetireLink { link } => self.slots.retain(|one| one.link != link),
            Change::InstallChannel { up, down, keys, .. } => {
                if let Some((_, number)) = up.or(down) {
                    self.opened.push(OpenedChannel { number, keys });
                }
            }
            Change::Inject { slot, header, body, .. } => {
                let mut block = [header.to_block()];
                if let Some(slot) = self.slots.iter().find(|one| one.id == slot) {
                    slot.outgoing.encipher(&mut block);
                    self.send(&[&block[0][..], &body].concat());
                }
            }
            Change::InstallLink { .. }
            | Change::MoveLink { .. }
            | Change::RetireChannel { .. }
            | Change::Supersede { .. } => {}
        }
    }

    fn send(&mut self, datagram: &[u8]) {
        // A datagram that is lost is sent again by `control`.
        self.sent += u64::from(self.socket.send_to(datagram, self.mix).is_ok());
    }
}

/// Bytes of a cell from the mix.
fn incoming_len(shape: Shape, side: Side) -> usize {
    match side {
        Side::Up => shape.cell_len(Direction::Forward, 2),
        Side::Down => shape.cell_len(Direction::Backward, 1),
    }
}
