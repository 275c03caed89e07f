//! A chain of one mix with this program on both sides of it: entries on its left, the exit on its right.
//!
//! Channels, keys and links are real: they come from `control`, through the mix. A round seals a burst, plays it
//! through the mix, and reads what the mix says of it and what its worker took.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use eddy_node::report::{NodeReport, TallyReport};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use wire::cell::{Direction, Shape};
use wire::ids::Side;
use wire::link::HeaderKey;

use super::burst::{Burst, Channels};
use super::child::{Mix, Wanted};
use super::cores::Cores;
use super::peer::{Inbox, Peer};
use super::play::{Blast, Played, Sink};
use super::relay::{Kind, Plan, Relay, Took};

/// Setups under way at once: what they bring fits the queue from the mix's worker to its control twice.
const SETUPS: usize = 96;
/// Links that are made at once.
const LINKS: usize = 32;
/// A channel that has not carried a cell for so long gets one: after 30 s the mix would end it.
const REFRESH: Duration = Duration::from_secs(12);
/// How long links and channels may take to come up without any progress.
const PATIENCE: Duration = Duration::from_secs(20);

/// The chain.
pub struct Rig {
    /// The mix.
    pub mix: Mix,
    shape: Shape,
    entries: Vec<Peer>,
    exit: Peer,
    channels: Channels,
    burst: Burst,
    inbox: Inbox,
    cores: Cores,
    buffer: usize,
    sink_gro: bool,
    refreshed: Instant,
}

/// What is to be played through the mix.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Which way.
    pub direction: Direction,
    /// How many entries send it; 0: one, in bursts. Cells of others come one by one.
    pub apart: usize,
    /// Over how many channels.
    pub channels: usize,
    /// Cells.
    pub cells: usize,
    /// Most cells under way.
    pub window: usize,
    /// Cells a second, instead of as many as can be under way.
    pub pace: Option<f64>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// What the sink saw.
    pub played: Played,
    /// Processor time of the worker.
    pub time: Duration,
    /// Cells that the mix sent.
    pub sent: u64,
    /// Those of them that came from us, not from its control.
    pub left: u64,
    /// Cells that the kernel lost on the way in, and on the way out.
    pub lost: (u64, u64),
    /// Cells that the mix dropped, by reason.
    pub dropped: Vec<(String, u64)>,
    /// Turns, and sleeps among them.
    pub turns: (u64, u64),
    /// Releases of its pools.
    pub batches: u64,
    /// Cells that were opened at the far end, and those of them that were not authentic.
    pub checked: (u64, u64),
    /// Whether the mix's ledger closed, and every cell of the burst is in one of these counts.
    pub closed: bool,
}

impl Rig {
    /// Starts a mix with so many entries, each with a link, and waits until all links are up.
    ///
    /// # Errors
    /// The mix or a link does not come up.
    pub fn start(wanted: &Wanted, entries: usize, cores: Cores) -> anyhow::Result<Rig> {
        let exit = UdpSocket::bind("127.0.0.1:0")?;
        let mix = Mix::start(wanted, exit.local_addr()?, cores)?;
        let [entry, at_exit] = mix.neighbours()?;
        let shape = entry.shape;
        let (buffer, sink_gro) = (wanted.receive_buffer, wanted.sink_gro);
        let exit = Peer::new(at_exit, Side::Up, exit, mix.down, (buffer, sink_gro))?;
        let rng = ChaCha8Rng::seed_from_u64(7);
        let mut rig = Rig {
            shape,
            entries: Vec::with_capacity(entries),
            exit,
            channels: Channels::default(),
            burst: Burst::new(rng),
            inbox: Inbox::new(),
            cores,
            buffer,
            sink_gro,
            refreshed: Instant::now(),
            mix,
        };
        let mut first = Some(entry);
        while rig.entries.len() < entries {
            for _ in 0..LINKS.min(entries - rig.entries.len()) {
                let config = match first.take() {
                    Some(config) => config,
                    None => rig.mix.neighbours()?.into_iter().next().context("two neighbours")?,
                };
                let socket = UdpSocket::bind("127.0.0.1:0")?;
                rig.entries.push(Peer::new(config, Side::Down, socket, rig.mix.up, (buffer, sink_gro))?);
            }
            let up = |rig: &Rig| rig.entries.iter().filter(|entry| entry.outgoing().is_some()).count();
            rig.await_all("links", |rig| (up(rig), rig.entries.len()))?;
        }
        Ok(rig)
    }

    /// Opens channels until every entry has so many. `progress` hears of all that are open.
    ///
    /// # Errors
    /// They do not open.
    pub fn open(&mut self, per_entry: usize, progress: &dyn Fn(usize)) -> anyhow::Result<()> {
        let wanted = per_entry * self.entries.len();
        let mut opened = vec![self.channels.len() / self.entries.len(); self.entries.len()];
        let (mut last, mut at) = (Instant::now(), self.channels.len());
        loop {
            for (i, (entry, opened)) in self.entries.iter_mut().zip(&mut opened).enumerate() {
                for one in std::mem::take(&mut entry.opened) {
                    self.channels.add(i, one);
                    *opened += 1;
                }
            }
            for one in std::mem::take(&mut self.exit.opened) {
                self.channels.add(0, one);
            }
            let done: usize = opened.iter().sum();
            if done >= wanted && self.channels.len() >= wanted {
                break;
            }
            if done > at {
                (last, at) = (Instant::now(), done);
                progress(done);
            } else if last.elapsed() > PATIENCE {
                let refused = self.mix.report()?.refused;
                bail!("{done} of {wanted} channels are open; the mix refused {refused:?}");
            }
            let mut room = SETUPS;
            for (entry, open) in self.entries.iter_mut().zip(&opened) {
                let more = (per_entry - open).min(room);
                if more > 0 {
                    entry.want_channels(open + more);
                    room -= more;
                }
                if room == 0 {
                    break;
                }
            }
            self.serve();
            self.refresh()?;
        }
        Ok(())
    }

    fn serve(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.serve(&mut self.inbox));
        self.exit.serve(&mut self.inbox);
    }

    fn await_all(&mut self, what: &str, count: impl Fn(&Rig) -> (usize, usize)) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.serve();
            let (up, wanted) = count(self);
            if up == wanted {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{up} of {wanted} {what} are up after {} s", PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends a cell over every channel, if that is due.
    fn refresh(&mut self) -> anyhow::Result<()> {
        if self.refreshed.elapsed() > REFRESH && self.channels.len() > 0 {
            let all = self.channels.len();
            let apart = if self.entries.len() > 1 { self.entries.len() } else { 0 };
            self.play(Round {
                direction: Direction::Forward,
                apart,
                channels: all,
                cells: all,
                window: 1024,
                pace: None,
            })?;
        }
        Ok(())
    }

    /// Seals a burst and plays it through the mix.
    fn play(&mut self, round: Round) -> anyhow::Result<(Played, (u64, u64))> {
        let Round { direction, apart, channels, cells, window, pace } = round;
        let Rig { shape, entries, exit, channels: all, burst, mix, refreshed, .. } = self;
        let no_key = || anyhow::anyhow!("a link has no keys");
        if direction == Direction::Forward {
            let keys = entries.iter().map(|entry| entry.outgoing().ok_or_else(no_key));
            let keys: Vec<&HeaderKey> = keys.collect::<Result<_, _>>()?;
            burst.seal_forward(*shape, all, &keys, (apart.max(1), channels), cells);
        } else {
            burst.seal_backward(*shape, all, exit.outgoing().ok_or_else(no_key)?, channels, cells);
        }
        if channels >= all.len() && cells >= channels && direction == Direction::Forward {
            *refreshed = Instant::now();
        }
        let sockets = entries.iter().map(|entry| entry.socket().try_clone()).collect::<Result<Vec<_>, _>>()?;
        let entry_sockets: Vec<&UdpSocket> = sockets.iter().collect();
        let exit_socket = exit.socket().try_clone()?;
        let mut checked = (0, 0);
        let mut judge = |ours: bool| {
            checked.0 += 1;
            checked.1 += u64::from(!ours);
        };
        let played = if direction == Direction::Forward {
            let blast = Blast { burst, cells, from: &entry_sockets, to: mix.up, gso: apart == 0, window, pace };
            let mut sink = Sink::new(&exit_socket, shape.cell_len(direction, 2))?;
            let mut look = |bytes: &mut [u8]| {
                if let Some(header) = exit.take(bytes) {
                    judge(all.is_forward(&header, bytes));
                }
            };
            if apart == 0 {
                blast.play(&mut sink, &mut look)?
            } else {
                mix.hold(true)?;
                blast.play_after(cells.min(window), &mut sink, &mut look, &mut || mix.hold(false))?
            }
        } else {
            let blast = Blast { burst, cells, from: &[&exit_socket], to: mix.down, gso: true, window, pace };
            let mut sink = Sink::new(entry_sockets[0], shape.cell_len(direction, 1))?;
            let entry = &mut entries[0];
            let mut look = |bytes: &mut [u8]| {
                if let Some(header) = entry.take(bytes) {
                    judge(all.is_backward(*shape, 0, &header, bytes));
                }
            };
            blast.play(&mut sink, &mut look)?
        };
        let (received, sent) = if direction == Direction::Forward { (true, false) } else { (false, true) };
        entries.iter_mut().take(apart.max(1)).for_each(|entry| entry.note(sent, received));
        exit.note(received, sent);
        Ok((played, checked))
    }

    /// One round, measured.
    ///
    /// # Errors
    /// The mix has ended, or nothing comes through it.
    pub fn measure(&mut self, round: Round) -> anyhow::Result<Reading> {
        self.refresh()?;
        self.serve();
        let own = |rig: &Rig| match round.direction {
            Direction::Forward => rig.entries.iter().map(|entry| entry.sent).sum::<u64>(),
            Direction::Backward => rig.exit.sent,
        };
        let time_before = self.mix.time_at_rest()?;
        let (before, own_before) = (self.mix.report()?, own(self));
        let (played, checked) = match self.play(round) {
            Ok(played) => played,
            Err(why) => {
                let now = self.mix.report()?;
                let (cells, drops) = (&now.ledger.cells, now.kernel_drops);
                return Err(why.context(format!("{round:?}: the mix says {cells:?}, kernel drops {drops}")));
            }
        };
        let time = self.mix.time_at_rest()?.saturating_sub(time_before);
        let (after, own_after) = (self.mix.report()?, own(self));
        let tally = |report: &NodeReport| match round.direction {
            Direction::Forward => report.ledger.cells.forward.clone(),
            Direction::Backward => report.ledger.cells.backward.clone(),
        };
        let (old, new) = (tally(&before), tally(&after));
        let (received, sent) = (new.received - old.received, new.sent - old.sent);
        let dropped = |tally: &TallyReport, why: &str| tally.dropped.get(why).copied().unwrap_or(0);
        let drops = new.dropped.keys().map(|why| (why.clone(), dropped(&new, why) - dropped(&old, why)));
        let dropped: Vec<(String, u64)> = drops.filter(|(_, count)| *count > 0).collect();
        let lost_inside: u64 = dropped.iter().map(|(_, count)| count).sum();
        let lost_before = (played.sent as u64 + own_after - own_before).saturating_sub(received);
        let left = sent - (new.injected - old.injected);
        Ok(Reading {
            played,
            time,
            sent,
            left,
            lost: (lost_before, sent.saturating_sub(played.arrived as u64)),
            dropped,
            turns: (after.turns - before.turns, after.sleeps - before.sleeps),
            batches: after.batches - before.batches,
            checked,
            closed: after.ledger.closed() && played.sent as u64 == left + lost_before + lost_inside,
        })
    }

    /// The last burst, or its first packets, through a relay in the mix's place.
    ///
    /// # Errors
    /// A socket fails.
    pub fn relay(&mut self, kind: Kind, round: Round, packets: usize) -> anyhow::Result<Took> {
        self.serve();
        let packets = packets.min(self.burst.len());
        let Round { direction, apart, window, .. } = round;
        let (link_in, link_out) = if direction == Direction::Forward { (1, 2) } else { (2, 1) };
        let lens = (self.shape.cell_len(direction, link_in), self.shape.cell_len(direction, link_out));
        let end = UdpSocket::bind("127.0.0.1:0")?;
        dataplane::sys::size_receive_buffer(&end, self.buffer)?;
        if self.sink_gro {
            dataplane::sys::enable_gro(&end)?;
        }
        let mut sink = Sink::new(&end, lens.1)?;
        let (to, buffer, core) = (end.local_addr()?, self.buffer, self.cores.relay);
        let relay = Relay::start(Plan { kind, to, lens, packets, buffer, core })?;
        let own = UdpSocket::bind("127.0.0.1:0")?;
        let sockets = self.entries.iter().map(|entry| entry.socket().try_clone()).collect::<Result<Vec<_>, _>>()?;
        let from: Vec<&UdpSocket> = if apart == 0 { vec![&own] } else { sockets.iter().collect() };
        let gso = kind == Kind::Offload && apart == 0;
        let blast = Blast { burst: &self.burst, cells: packets, from: &from, to: relay.at, gso, window, pace: None };
        let head = if apart == 0 { 0 } else { packets.min(window) };
        let mut go = || {
            relay.go();
            Ok(())
        };
        blast.play_after(head, &mut sink, &mut |_| (), &mut go)?;
        relay.finish()
    }
}
