//! One end of a link with the mix: control as it is in a node, a socket, and the header keys that control made.
//!
//! Data cells are made and judged elsewhere ([`super::burst`]); here is all else that a neighbour does: it shakes
//! hands, sets channels up or answers setups, and keeps the link alive.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use control::{Config, Control, DataOp, Input, Output};
use dataplane::sys;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use wire::cell::{CellKind, Class, Direction, HEADER_LEN, Header, Shape};
use wire::handshake::is_handshake_len;
use wire::ids::{ChannelKeys, LinkId, Rank, Side, SlotId};
use wire::link::HeaderKey;

/// Messages of a receive call.
const MESSAGES: usize = 16;

/// Where what arrives lies until it is looked at: room for a burst in every message. One serves all peers.
pub struct Inbox(Vec<Vec<u8>>);

impl Inbox {
    /// An empty one.
    pub fn new() -> Inbox {
        Inbox(vec![vec![0; 1 << 16]; MESSAGES])
    }
}

struct Slot {
    link: LinkId,
    id: SlotId,
    incoming: HeaderKey,
    outgoing: HeaderKey,
    /// Whether cells leave under it.
    current: bool,
}

/// A channel that control has opened.
pub struct Opened {
    /// Its number on the link.
    pub number: u32,
    /// What the setup left.
    pub keys: ChannelKeys,
}

/// The entry's or the exit's end of a link.
pub struct Peer {
    control: Control,
    side: Side,
    class: Class,
    socket: UdpSocket,
    mix: SocketAddr,
    incoming_len: usize,
    slots: Vec<Slot>,
    /// Channels that nobody has taken yet.
    pub opened: Vec<Opened>,
    /// Datagrams sent to the mix that are no data cells.
    pub sent: u64,
    clock: Instant,
}

impl Peer {
    /// The entry (`Side::Down`) or the exit (`Side::Up`) of a chain of one mix. Its socket holds so many bytes, and takes
    /// bursts or not.
    ///
    /// # Errors
    /// The socket cannot be had.
    pub fn new(
        config: Config,
        side: Side,
        socket: UdpSocket,
        mix: SocketAddr,
        (buffer, gro): (usize, bool),
    ) -> anyhow::Result<Peer> {
        let shape = config.shape;
        let clock = Instant::now();
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|why| anyhow::anyhow!("no randomness from the system: {why}"))?;
        let control = Control::new(config, ChaCha20Rng::from_seed(seed), Duration::ZERO).context("a neighbour")?;
        socket.set_nonblocking(true)?;
        if gro {
            sys::enable_gro(&socket)?;
        }
        sys::size_receive_buffer(&socket, buffer)?;
        Ok(Peer {
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

    /// Its socket.
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// The key that cells to the mix leave under, once the link is up.
    pub fn outgoing(&self) -> Option<&HeaderKey> {
        self.slots.iter().find(|slot| slot.current).map(|slot| &slot.outgoing)
    }

    /// Setups that wait for their acks: the entry's.
    pub fn want_channels(&mut self, channels: usize) {
        let now = self.clock.elapsed();
        self.control.want_channels(now, channels);
        self.collect();
    }

    /// Takes in what waits at the socket and does what is due.
    pub fn serve(&mut self, inbox: &mut Inbox) {
        loop {
            let mut steps = [(0, 0); MESSAGES];
            let buffers = inbox.0.iter_mut().map(Vec::as_mut_slice);
            let received = sys::recv(&self.socket, buffers, 1, |i, message| {
                steps[i] = (message.len.min(1 << 16), message.segment.unwrap_or(message.len).max(1));
            });
            let count = received.unwrap_or(0);
            for (bytes, (len, step)) in inbox.0.iter_mut().zip(steps).take(count) {
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

    /// Takes in one datagram. The header of a data cell is the caller's; everything else is dealt with here.
    pub fn take(&mut self, bytes: &mut [u8]) -> Option<Header> {
        let (now, wall) = (self.clock.elapsed(), SystemTime::now());
        if bytes.len() != self.incoming_len {
            if is_handshake_len(bytes.len()) {
                let input = Input::Handshake { side: self.side, from: self.mix, datagram: bytes };
                self.control.handle(now, wall, input);
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
            // Taken for authentic: what it opens to is looked at later.
            if next && self.side == Side::Up {
                self.control.handle(now, wall, Input::Promoted { link, slot, from: self.mix });
                self.collect();
            }
            return Some(header);
        }
        self.control.handle(now, wall, Input::Cell { link, slot, from: self.mix, header, body });
        self.collect();
        None
    }

    /// Tells control that data cells went by, as a worker does.
    pub fn note(&mut self, received: bool, sent: bool) {
        let now = self.clock.elapsed();
        if let Some(link) = self.slots.iter().find(|slot| slot.current).map(|slot| slot.link) {
            self.control.handle(now, SystemTime::now(), Input::Activity { link, received, sent });
            self.collect();
        }
    }

    /// Does what control says.
    fn collect(&mut self) {
        while let Some(output) = self.control.poll_output() {
            match output {
                Output::Send { datagram, .. } => self.send(&datagram),
                Output::Data(op) => self.apply(op),
                Output::Event(_) => {}
            }
        }
    }

    fn apply(&mut self, op: DataOp) {
        match op {
            DataOp::InstallSlot { link, slot, header_i2r, header_r2i, rank, .. } => {
                let (i2r, r2i) = (HeaderKey::new(&header_i2r), HeaderKey::new(&header_r2i));
                let (incoming, outgoing) = if self.side == Side::Up { (i2r, r2i) } else { (r2i, i2r) };
                let current = rank == Rank::Current;
                if current {
                    self.slots.iter_mut().for_each(|slot| slot.current = false);
                }
                self.slots.push(Slot { link, id: slot, incoming, outgoing, current });
            }
            DataOp::Promote { slot, .. } => self.slots.iter_mut().for_each(|one| one.current = one.id == slot),
            DataOp::RetireSlot { slot, .. } => self.slots.retain(|one| one.id != slot),
            DataOp::RetireLink { link } => self.slots.retain(|one| one.link != link),
            DataOp::InstallChannel { up, down, keys, .. } => {
                if let Some((_, number)) = up.or(down) {
                    self.opened.push(Opened { number, keys });
                }
            }
            DataOp::Inject { slot, header, body, .. } => {
                let mut block = [header.to_block()];
                if let Some(slot) = self.slots.iter().find(|one| one.id == slot) {
                    slot.outgoing.encipher(&mut block);
                    self.send(&[&block[0][..], &body].concat());
                }
            }
            DataOp::InstallLink { .. } | DataOp::RetireChannel { .. } | DataOp::Supersede { .. } => {}
        }
    }

    fn send(&mut self, datagram: &[u8]) {
        // What is lost is tried again.
        self.sent += u64::from(self.socket.send_to(datagram, self.mix).is_ok());
    }
}

/// Bytes of a cell from the mix.
pub fn incoming_len(shape: Shape, side: Side) -> usize {
    match side {
        Side::Up => shape.cell_len(Direction::Forward, 2),
        Side::Down => shape.cell_len(Direction::Backward, 1),
    }
}
