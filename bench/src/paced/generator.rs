//! The mix's neighbours in one thread: sends the cells of each round in time, and counts what leaves the mix by
//! release.
//!
//! The kernel stamps a datagram when the mix's call hands it to loopback, so the times of releases do not depend on
//! when this thread reads them.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use dataplane::Nanos;
use dataplane::per_direction::PerDirection;
use dataplane::runner::{Clock, Poller};
use dataplane::sys::{self, Message};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, MultiHeaders, recvmmsg, setsockopt, sockopt};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use wire::cell::{Block, CellKind, Direction, HEADER_LEN};
use wire::ids::Side;
use wire::paced::clock::SteadyClock;
use wire::paced::{ControlSlots, PacedHeader, Timetable};

use super::links::{Bodies, Link, install};
use super::worker::{Running, Spent};
use super::{BATCH, Plan};
use crate::hop::cores::own_time;
use crate::hop::sealed::burst_max;
use crate::udp::{MESSAGE_MAX, MESSAGES, receive_buffers};

/// A round that was sent later than this before its release was late by the generator's fault.
const LATEST: Nanos = 500_000;
/// Releases are counted for this long after the last one is due.
const AFTER: Nanos = 50_000_000;
/// Of an entry's messages one in this many is checked, of a hop's every one.
const CHECKED_OF_ENTRIES: u64 = 64;

/// The other end of a link, with its socket.
pub(super) struct End {
    link: Link,
    socket: UdpSocket,
}

impl End {
    /// # Errors
    /// The system refuses a socket or an option.
    pub(super) fn new(number: u32, side: Side, buffer: usize) -> anyhow::Result<End> {
        let socket = UdpSocket::bind("127.0.0.1:0").context("cannot open a socket: check `ulimit -n`")?;
        crate::udp::prepare(&socket, buffer)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true).context("cannot ask for the kernel's timestamps")?;
        Ok(End { link: Link::new(number, side), socket })
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// # Errors
    /// The socket has no address.
    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// What is sent in one direction.
struct Way {
    to: SocketAddr,
    slots: ControlSlots,
    /// Rounds, counted from the latest one, of which cells are sent in each tick: those of copies too.
    rounds_ago: Vec<u64>,
    /// From the beginning of a round to its first cell.
    offset: Nanos,
    /// From a round's first cell to the release that takes its last copy.
    until_release: Nanos,
    /// The tick that is sent, and how many of its units have been.
    round: u64,
    sent: usize,
    /// The order of entries or channels.
    order: Vec<u32>,
    /// The cells of the latest rounds, the latest first; those of an entry one after the other.
    sealed: VecDeque<Vec<u8>>,
}

impl Way {
    /// Sends GSO bursts of a single neighbour, up to unit `due`. Returns how many cells went.
    fn send_bursts(&mut self, socket: &UdpSocket, due: usize, cell_len: usize) -> io::Result<u64> {
        let (to, burst_len) = (self.to, burst_max(cell_len) * cell_len);
        let bursts = self.sealed[0].chunks(burst_len).take(due).skip(self.sent);
        let messages = bursts.clone().map(|_| Message { to, pieces: 1, segment: Some(cell_len as u16) });
        let sent = sys::send(socket, messages, bursts.clone())?;
        self.sent += sent;
        Ok(bursts.take(sent).map(|burst| (burst.len() / cell_len) as u64).sum())
    }

    /// Sends the cells of the next entry, those of copies too, as one GSO burst. Returns how many went.
    fn send_of_entry(&mut self, ends: &[End], cell_len: usize) -> io::Result<u64> {
        let (to, at) = (self.to, self.order[self.sent] as usize);
        let of_entry = |sealed: &Vec<u8>| at * (sealed.len() / ends.len())..(at + 1) * (sealed.len() / ends.len());
        let rounds = self.rounds_ago.iter().filter_map(|ago| self.sealed.get(*ago as usize));
        let cells = rounds.flat_map(|sealed| sealed[of_entry(sealed)].chunks(cell_len)).take(burst_max(cell_len));
        let count = cells.clone().count();
        let burst = Message { to, pieces: count, segment: Some(cell_len as u16) };
        let sent = sys::send(&ends[at].socket, std::iter::once(burst), cells)?;
        self.sent += 1;
        Ok((sent * count) as u64)
    }
}

/// A release, as it came.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Release {
    pub(super) data: u64,
    pub(super) control: u64,
    /// Time of the first and the last cell, by the class's clock.
    pub(super) first: Nanos,
    pub(super) last: Nanos,
}

impl Release {
    /// True if no cell of it came.
    pub(super) fn is_empty(&self) -> bool {
        self.data + self.control == 0
    }
}

/// What was sent and what came.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Of each direction, by round from the first that was sent.
    pub(super) releases: PerDirection<Vec<Release>>,
    /// Cells that were sent, with control cells and copies.
    pub(super) sent: PerDirection<u64>,
    /// Rounds that were sent too late, both directions.
    pub(super) late: u64,
    /// Cells that were compared with what was sent, those among them that were noise, and those with a wrong tag.
    pub(super) checked: u64,
    pub(super) noise: u64,
    pub(super) wrong: u64,
    /// Datagrams that are not cells of the links.
    pub(super) others: u64,
    /// At the beginning and at the end of the measurement: time, what the mix had spent, and this thread.
    pub(super) spent: Vec<(Nanos, Spent, Duration)>,
}

pub(super) struct Generator<'a> {
    plan: &'a Plan,
    times: Timetable,
    clock: Clock,
    steady: SteadyClock,
    /// Those towards the entry and towards the exit.
    ends: [Vec<End>; 2],
    ways: PerDirection<Way>,
    poller: Poller,
    bodies: Bodies,
    rng: ChaCha8Rng,
    /// The batch that is added to, and its channels so far.
    coming: (u64, u32),
    messages: u64,
    buffers: Vec<Vec<u8>>,
    blocks: Vec<Block>,
    seen: Seen,
}

impl<'a> Generator<'a> {
    /// Of ends that the mix knows, for a mix at these addresses.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn new(
        plan: &'a Plan,
        ends: [Vec<End>; 2],
        (up, down): (SocketAddr, SocketAddr),
        (clock, steady): (Clock, SteadyClock),
        bodies: Bodies,
        rng: ChaCha8Rng,
    ) -> anyhow::Result<Generator<'a>> {
        let times = plan.times();
        let poller = Poller::new()?;
        for (side, ends) in ends.iter().enumerate() {
            for (at, end) in ends.iter().enumerate() {
                poller.add(end.socket.as_fd(), (2 * at + side) as u64)?;
            }
        }
        let way = |direction| {
            let (to, senders) = match direction {
                Direction::Forward => (up, ends[0].len()),
                Direction::Backward => (down, ends[1].len()),
            };
            let copies = if direction == Direction::Forward { plan.copies() } else { vec![0] };
            let until_release = plan.sends_before() + copies.iter().max().unwrap_or(&0) * times.period();
            let order = if senders > 1 { 0..senders as u32 } else { 1..plan.channels + 1 };
            Way {
                to,
                slots: plan.slots_in(direction),
                rounds_ago: copies,
                offset: times.offset(direction, plan.position).saturating_sub(until_release),
                until_release,
                round: plan.first_round(),
                sent: 0,
                order: order.collect(),
                sealed: VecDeque::new(),
            }
        };
        let ways = PerDirection { forward: way(Direction::Forward), backward: way(Direction::Backward) };
        let rounds = (plan.end() - plan.first_round()) as usize;
        let releases = || vec![Release::default(); rounds];
        let seen = Seen {
            releases: PerDirection { forward: releases(), backward: releases() },
            sent: PerDirection { forward: 0, backward: 0 },
            ..Seen::default()
        };
        let coming = (BATCH + 1, 0);
        let (buffers, blocks) = (receive_buffers(), Vec::new());
        Ok(Generator {
            plan,
            times,
            clock,
            steady,
            ends,
            ways,
            poller,
            bodies,
            rng,
            coming,
            messages: 0,
            buffers,
            blocks,
            seen,
        })
    }

    /// Sends all rounds and receives until the last release is over.
    ///
    /// # Errors
    /// A socket fails, or the command was interrupted.
    pub(super) fn run(
        mut self,
        mix: &mut Running,
        interrupted: &AtomicBool,
        tick: &mut dyn FnMut(u64),
    ) -> anyhow::Result<Seen> {
        let last = |direction| self.times.offset(direction, self.plan.position);
        let last = last(Direction::Forward).max(last(Direction::Backward));
        let copies = self.plan.copies().iter().max().unwrap_or(&0) * self.times.period();
        let end = self.times.begin(self.plan.end()) + last + copies + AFTER;
        let mut snapshots =
            [self.plan.measured_from(), self.plan.end()].map(|round| self.times.begin(round)).into_iter();
        let mut snapshot = snapshots.next();
        let mut shown = 0;
        for direction in [Direction::Forward, Direction::Backward] {
            self.seal(direction);
        }
        loop {
            let now = self.now();
            if snapshot.is_some_and(|at| now >= at) {
                self.seen.spent.push((now, mix.spent()?, own_time()));
                snapshot = snapshots.next();
            }
            if now >= end {
                return Ok(self.seen);
            }
            if interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            let next = [Direction::Forward, Direction::Backward].map(|direction| self.send(direction, now));
            let [forward, backward] = next;
            let next = forward?.min(backward?).min(now + 1_000_000);
            while mix.handle.punts.pop().is_ok() {}
            self.install(mix, now)?;
            let round = self.times.round_at(now);
            if round > shown + 50 {
                tick(round);
                shown = round;
            }
            let wait = Duration::from_nanos(next.saturating_sub(self.now()));
            let poller = self.poller.clone();
            let mut failed = Ok(());
            poller.wait(Some(wait), |token| {
                if failed.is_ok() {
                    failed = self.receive((token % 2) as usize, (token / 2) as usize);
                }
            });
            failed?;
        }
    }

    fn now(&self) -> Nanos {
        self.steady.at(self.clock.now())
    }

    /// Seals the cells of a way's round, which has not begun.
    fn seal(&mut self, direction: Direction) {
        let Generator { ways, ends, bodies, plan, times, rng, .. } = self;
        let way = &mut ways[direction];
        let kept = *way.rounds_ago.last().expect("the round itself") as usize + 1;
        let mut cells = if way.sealed.len() == kept { way.sealed.pop_back().unwrap_or_default() } else { Vec::new() };
        cells.clear();
        let round = (way.round, way.slots.of(times, way.round));
        let ends = &mut ends[(direction == Direction::Backward) as usize];
        way.order.shuffle(rng);
        if let [end] = &mut ends[..] {
            end.link.seal(way.order.iter().copied(), round, bodies, &mut cells);
        } else {
            for (channel, end) in (1..=plan.channels).zip(ends) {
                end.link.seal(std::iter::once(channel), round, bodies, &mut cells);
            }
        }
        way.sealed.push_front(cells);
    }

    /// Sends what is due, and seals the next round when a round is complete. Returns when more is due.
    fn send(&mut self, direction: Direction, now: Nanos) -> anyhow::Result<Nanos> {
        let spread = self.plan.spread;
        let begins = self.times.begin(self.ways[direction].round) + self.ways[direction].offset;
        if self.ways[direction].round >= self.plan.end() {
            return Ok(Nanos::MAX);
        }
        if now < begins {
            return Ok(begins);
        }
        let cell_len = self.plan.class().cell_len();
        let way = &mut self.ways[direction];
        let ends = &self.ends[(direction == Direction::Backward) as usize];
        let is_single = ends.len() == 1;
        let burst = burst_max(cell_len);
        let units = if is_single { way.sealed[0].len().div_ceil(burst * cell_len) } else { ends.len() };
        let due = match spread {
            0 => units,
            spread => units.min(((now - begins) * units as u64 / spread) as usize + 1),
        };
        while way.sent < due {
            let sent = if is_single {
                way.send_bursts(&ends[0].socket, due, cell_len)
            } else {
                way.send_of_entry(ends, cell_len)
            };
            match sent {
                Ok(cells) => self.seen.sent[direction] += cells,
                Err(why) if matches!(why.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => break,
                Err(why) => return Err(why).context("cannot send cells to the mix"),
            }
        }
        if way.sent < units {
            return Ok(begins + (way.sent as u64 * spread).div_ceil(units as u64));
        }
        // Not counted before the measurement: the first rounds find cold caches.
        let released = begins + way.until_release;
        let is_counted = way.round >= self.plan.measured_from();
        self.seen.late += u64::from(is_counted && self.steady.at(self.clock.now()) + LATEST > released);
        let way = &mut self.ways[direction];
        (way.round, way.sent) = (way.round + 1, 0);
        self.seal(direction);
        Ok(now)
    }

    /// Adds channels to the next batch at an even pace, as setups bring them.
    fn install(&mut self, mix: &mut Running, now: Nanos) -> anyhow::Result<()> {
        let (batch, done) = &mut self.coming;
        let first = self.times.first(*batch - 1);
        let rounds = self.times.first(*batch) - first - 64;
        let passed = self.times.round_at(now).saturating_sub(first).min(rounds);
        let due = (u64::from(self.plan.channels) * passed / rounds) as u32;
        if *done < due {
            for number in *done + 1..=due {
                let entry = (self.plan.position == 1).then(|| &self.ends[0][number as usize - 1].link);
                mix.handle.command(install(*batch, number, entry))?;
            }
            *done = due;
            mix.handle.wake();
        }
        if passed == rounds && self.times.round_at(now) >= self.times.first(*batch) {
            self.coming = (*batch + 1, 0);
        }
        Ok(())
    }

    /// Receives what has come to an end.
    fn receive(&mut self, side: usize, at: usize) -> anyhow::Result<()> {
        let space = nix::cmsg_space!(nix::sys::time::TimeSpec, i32);
        let mut headers = MultiHeaders::<()>::preallocate(MESSAGES, Some(space));
        let mut buffers = std::mem::take(&mut self.buffers);
        let mut got = [(0, 0); MESSAGES];
        loop {
            let mut slices: Vec<[IoSliceMut<'_>; 1]> =
                buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
            let socket = self.ends[side][at].socket.as_raw_fd();
            let received = match recvmmsg(socket, &mut headers, &mut slices, MsgFlags::MSG_DONTWAIT, None) {
                Ok(received) => received,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => break,
                Err(why) => return Err(why).context("cannot receive from the mix"),
            };
            let mut count = 0;
            for message in received {
                let stamp = message.cmsgs().into_iter().flatten().find_map(|message| match message {
                    ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time).as_nanos() as u64),
                    _ => None,
                });
                got[count] = (stamp.unwrap_or(0), message.bytes.min(MESSAGE_MAX));
                count += 1;
            }
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
            let now = self.now();
            for (buffer, (stamp, len)) in buffers.iter().zip(&got[..count]) {
                let time = if *stamp == 0 { now } else { (now + stamp).saturating_sub(wall) };
                self.take((side, at), time, &buffer[..*len]);
            }
            if count < MESSAGES {
                break;
            }
        }
        self.buffers = buffers;
        Ok(())
    }

    /// Counts the cells of a message.
    fn take(&mut self, (side, at): (usize, usize), time: Nanos, bytes: &[u8]) {
        let Generator { plan, ends, blocks, bodies, seen, messages, times, .. } = self;
        let (class, ends) = (plan.class(), &ends[side]);
        let (link, cell_len) = (&ends[at].link, class.cell_len());
        if !bytes.len().is_multiple_of(cell_len) {
            seen.others += 1;
            return;
        }
        let direction = if side == 0 { Direction::Backward } else { Direction::Forward };
        let (mut data, mut control, mut round) = (0, 0, None);
        let mut one: Option<(usize, PacedHeader)> = None;
        for (i, header) in link.read(class, bytes, times.round_at(time), blocks).enumerate() {
            match header {
                Some(header) if header.kind == CellKind::Data => {
                    data += 1;
                    round = round.max(Some(header.seq));
                    one.get_or_insert((i, header));
                }
                Some(_) => control += 1,
                None => seen.others += 1,
            }
        }
        // A message without data is the end of a release.
        let offset = times.offset(direction, plan.position);
        let round = round.unwrap_or_else(|| times.round_at(time.saturating_sub(offset)));
        let index = round.checked_sub(plan.first_round()).map(|index| index as usize);
        let Some(release) = index.and_then(|index| seen.releases[direction].get_mut(index)) else { return };
        if release.is_empty() {
            release.first = time;
        }
        (release.data, release.control) = (release.data + data, release.control + control);
        (release.first, release.last) = (release.first.min(time), release.last.max(time));

        *messages += 1;
        if let Some((i, header)) = one
            && (ends.len() == 1 || messages.is_multiple_of(CHECKED_OF_ENTRIES))
        {
            let body = &bytes[i * cell_len + HEADER_LEN..(i + 1) * cell_len];
            seen.checked += 1;
            seen.wrong += u64::from(!link.is_genuine(&header, body));
            seen.noise += u64::from(!bodies.is_layered(direction, &header, header.channel, body));
        }
    }
}
