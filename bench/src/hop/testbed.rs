//! A chain of one mix, with this program as its entries and its exit.
//!
//! Channels, keys and links are real: `control` sets them up through the mix. A round seals cells, sends them through
//! the mix, and reads the mix's report and the processor time of its worker.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use dataplane::sys;
use eddy_node::report::{NodeReport, TallyReport};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use wire::cell::{Direction, Shape};
use wire::ids::Side;
use wire::link::HeaderKey;

use super::cores::Cores;
use super::flood::{Flood, FloodPlan};
use super::generator::{Delivery, Generator, Sink};
use super::mix_process::{MixOptions, MixProcess};
use super::neighbour::{Neighbour, Receive};
use super::relay::{Relay, RelayCost, RelayKind, RelayOptions};
use super::sealed::{Channels, SealedCells};
use crate::udp;

/// Channel setups in flight: their messages fill half of the queue from the mix's worker to its control.
const SETUPS: usize = 96;
/// Links that are set up at once.
const LINKS: usize = 32;
/// Every channel gets a cell after this time: after 30 s without one the mix would close it.
const REFRESH: Duration = Duration::from_secs(12);
/// Time limit for links and channels to open, without progress.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) struct Testbed {
    pub(crate) mix: MixProcess,
    shape: Shape,
    entries: Vec<Neighbour>,
    exit: Neighbour,
    channels: Channels,
    sealed: SealedCells,
    /// For messages of `control`.
    buffers: Vec<Vec<u8>>,
    cores: Cores,
    receive: Receive,
    /// When all channels last carried a cell.
    refreshed: Instant,
}

/// The cells of a round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    pub(crate) direction: Direction,
    /// Entries that send cells one by one; 0 for a single entry that sends GSO bursts.
    pub(crate) entries: usize,
    pub(crate) channels: usize,
    pub(crate) cells: usize,
    /// Most cells in flight.
    pub(crate) window: usize,
    /// Cells per second; `None` for as many as the window admits.
    pub(crate) pace: Option<f64>,
}

/// The result of a round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measurement {
    pub(crate) delivery: Delivery,
    /// Processor time of the mix's worker.
    pub(crate) time: Duration,
    /// Processor time of the mix, all its threads.
    pub(crate) process_time: Duration,
    /// Cells that the mix sent.
    pub(crate) sent: u64,
    /// Cells that the mix sent, without those of its own control.
    pub(crate) forwarded: u64,
    /// Cells that the kernel lost before the mix, and after it.
    pub(crate) lost: (u64, u64),
    /// Cells that the mix dropped, by reason.
    pub(crate) dropped: Vec<(String, u64)>,
    /// Turns of the worker, and sleeps among them.
    pub(crate) turns: (u64, u64),
    /// Releases of pools.
    pub(crate) releases: u64,
    /// Cells that were opened at the far end, and those of them that were forged.
    pub(crate) checked: (u64, u64),
    /// The mix's ledger closed, and every cell of the round is in one of these counts.
    pub(crate) closed: bool,
}

impl Testbed {
    /// Starts a mix and its entries, and waits until all links are up.
    ///
    /// # Errors
    /// The mix does not start, or a link does not come up.
    pub(crate) fn start(options: &MixOptions, entries: usize, cores: Cores) -> anyhow::Result<Testbed> {
        let exit = UdpSocket::bind("127.0.0.1:0")?;
        let mix = MixProcess::start(options, exit.local_addr()?, cores)?;
        let [entry, at_exit] = mix.neighbours()?;
        let shape = entry.0.shape;
        let receive = Receive { buffer: options.receive_buffer, gro: options.sink_gro };
        let exit = Neighbour::new(at_exit, Side::Up, exit, mix.down, receive)?;
        let rng = ChaCha8Rng::seed_from_u64(7);
        let mut testbed = Testbed {
            shape,
            entries: Vec::with_capacity(entries),
            exit,
            channels: Channels::default(),
            sealed: SealedCells::new(rng),
            buffers: udp::receive_buffers(),
            cores,
            receive,
            refreshed: Instant::now(),
            mix,
        };

        let mut first = Some(entry);
        while testbed.entries.len() < entries {
            for _ in 0..LINKS.min(entries - testbed.entries.len()) {
                let config = match first.take() {
                    Some(config) => config,
                    None => testbed.mix.neighbours()?.into_iter().next().context("a mix has two neighbours")?,
                };
                let socket = UdpSocket::bind("127.0.0.1:0")?;
                testbed.entries.push(Neighbour::new(config, Side::Down, socket, testbed.mix.up, receive)?);
            }
            let up = |testbed: &Testbed| testbed.entries.iter().filter(|entry| entry.outgoing().is_some()).count();
            testbed.await_all("links", |testbed| (up(testbed), testbed.entries.len()))?;
        }
        Ok(testbed)
    }

    /// Opens channels until every entry has `per_entry`. `progress` gets the number of open channels.
    ///
    /// # Errors
    /// The channels do not open.
    pub(crate) fn open(&mut self, per_entry: usize, progress: &dyn Fn(usize)) -> anyhow::Result<()> {
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
            } else if last.elapsed() > OPEN_TIMEOUT {
                let refused = self.mix.report()?.refused;
                bail!("opened only {done} of {wanted} channels; the mix refused {refused:?}");
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
        self.entries.iter_mut().for_each(|entry| entry.serve(&mut self.buffers));
        self.exit.serve(&mut self.buffers);
    }

    fn await_all(&mut self, what: &str, count: impl Fn(&Testbed) -> (usize, usize)) -> anyhow::Result<()> {
        let deadline = Instant::now() + OPEN_TIMEOUT;
        loop {
            self.serve();
            let (up, wanted) = count(self);
            if up == wanted {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("only {up} of {wanted} {what} are up after {} s", OPEN_TIMEOUT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends a cell over every channel, if this is due.
    fn refresh(&mut self) -> anyhow::Result<()> {
        if self.refreshed.elapsed() > REFRESH && self.channels.len() > 0 {
            let all = self.channels.len();
            let entries = if self.entries.len() > 1 { self.entries.len() } else { 0 };
            self.play(Round {
                direction: Direction::Forward,
                entries,
                channels: all,
                cells: all,
                window: 1024,
                pace: None,
            })?;
        }
        Ok(())
    }

    /// Seals cells and sends them through the mix. Also returns how many were checked, and how many of these were
    /// forged.
    fn play(&mut self, round: Round) -> anyhow::Result<(Delivery, (u64, u64))> {
        let Round { direction, entries: senders, channels, cells, window, pace } = round;
        let Testbed { shape, entries, exit, channels: all, sealed, mix, refreshed, .. } = self;
        let no_key = || anyhow::anyhow!("a link to the mix is down");
        if direction == Direction::Forward {
            let keys = entries.iter().map(|entry| entry.outgoing().ok_or_else(no_key));
            let keys: Vec<&HeaderKey> = keys.collect::<Result<_, _>>()?;
            sealed.seal_forward(*shape, all, &keys, (senders.max(1), channels), cells);
        } else {
            sealed.seal_backward(*shape, all, exit.outgoing().ok_or_else(no_key)?, channels, cells);
        }
        if channels >= all.len() && cells >= channels && direction == Direction::Forward {
            *refreshed = Instant::now();
        }

        let sockets = entries.iter().map(|entry| entry.socket().try_clone()).collect::<Result<Vec<_>, _>>()?;
        let entry_sockets: Vec<&UdpSocket> = sockets.iter().collect();
        let exit_socket = exit.socket().try_clone()?;
        let mut checked = (0, 0);
        let mut count = |is_authentic: bool| {
            checked.0 += 1;
            checked.1 += u64::from(!is_authentic);
        };

        let delivery = if direction == Direction::Forward {
            let (from, gso) = (&entry_sockets[..], senders == 0);
            let generator = Generator { sealed, cells, from, to: mix.up, gso, window, pace };
            let mut sink = Sink::new(&exit_socket, shape.cell_len(direction, 2))?;
            let mut check = |bytes: &mut [u8]| {
                if let Some(header) = exit.take(bytes) {
                    count(all.is_forward(&header, bytes));
                }
            };
            if gso {
                generator.run(&mut sink, &mut check)?
            } else {
                // The generator is slower than the mix without GSO, so the first cells wait in the receive buffer.
                mix.set_stopped(true)?;
                generator.run_after(cells.min(window), &mut sink, &mut check, &mut || mix.set_stopped(false))?
            }
        } else {
            let from = [&exit_socket];
            let generator = Generator { sealed, cells, from: &from, to: mix.down, gso: true, window, pace };
            let mut sink = Sink::new(entry_sockets[0], shape.cell_len(direction, 1))?;
            let entry = &mut entries[0];
            let mut check = |bytes: &mut [u8]| {
                if let Some(header) = entry.take(bytes) {
                    count(all.is_backward(*shape, 0, &header, bytes));
                }
            };
            generator.run(&mut sink, &mut check)?
        };

        let (received, sent) = if direction == Direction::Forward { (true, false) } else { (false, true) };
        entries.iter_mut().take(senders.max(1)).for_each(|entry| entry.note_activity(sent, received));
        exit.note_activity(received, sent);
        Ok((delivery, checked))
    }

    /// Measures one round.
    ///
    /// # Errors
    /// The mix has ended, or no cell comes through it.
    pub(crate) fn measure(&mut self, round: Round) -> anyhow::Result<Measurement> {
        self.measure_under(round, None)
    }

    fn measure_under(&mut self, round: Round, flood: Option<(SocketAddr, FloodPlan)>) -> anyhow::Result<Measurement> {
        self.refresh()?;
        self.serve();
        let own = |testbed: &Testbed| match round.direction {
            Direction::Forward => testbed.entries.iter().map(|entry| entry.sent).sum::<u64>(),
            Direction::Backward => testbed.exit.sent,
        };
        let time_before = self.mix.time_at_rest()?;
        let (before, own_before) = (self.mix.report()?, own(self));
        let noise = self.mix.noise()?;
        let flood = flood.map(|(to, plan)| Flood::start(to, &noise, plan, self.cores.load)).transpose()?;
        let (delivery, checked) = match self.play(round) {
            Ok(done) => done,
            Err(why) => {
                let now = self.mix.report()?;
                let (cells, drops) = (&now.ledger.cells, now.kernel_drops);
                return Err(why.context(format!("{round:?}: the mix reports {cells:?}, kernel drops {drops}")));
            }
        };
        if let Some(flood) = flood {
            anyhow::ensure!(flood.finish()? > 0, "the round was too short for a flood: more --cells");
        }
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
        let lost_before = (delivery.sent as u64 + own_after - own_before).saturating_sub(received);
        let forwarded = sent - (new.injected - old.injected);

        Ok(Measurement {
            delivery,
            time,
            process_time: Duration::from_secs_f64((after.cpu_s - before.cpu_s).max(0.0)),
            sent,
            forwarded,
            lost: (lost_before, sent.saturating_sub(delivery.arrived as u64)),
            dropped,
            turns: (after.turns - before.turns, after.sleeps - before.sleeps),
            releases: after.releases - before.releases,
            checked,
            closed: after.ledger.closed() && delivery.sent as u64 == forwarded + lost_before + lost_inside,
        })
    }

    /// Measures one round while forged handshakes arrive. The processor time includes their cost.
    /// Drops and `closed` are not those of the cells alone.
    ///
    /// # Errors
    /// As [`Testbed::measure`], or the flood cannot be sent.
    pub(crate) fn measure_flooded(&mut self, round: Round, flood: FloodPlan) -> anyhow::Result<Measurement> {
        self.measure_under(round, Some((self.mix.up, flood)))
    }

    /// Measures one round while the same flood goes to a port where nobody reads, so that only the load core has it.
    ///
    /// # Errors
    /// As [`Testbed::measure_flooded`].
    pub(crate) fn measure_beside_flood(&mut self, round: Round, flood: FloodPlan) -> anyhow::Result<Measurement> {
        let nobody = UdpSocket::bind("127.0.0.1:0")?;
        sys::size_receive_buffer(&nobody, 1)?;
        self.measure_under(round, Some((nobody.local_addr()?, flood)))
    }

    /// Sends the cells of the last round, or the first of them, through a relay in place of the mix.
    ///
    /// # Errors
    /// A socket fails.
    pub(crate) fn relay(&mut self, kind: RelayKind, round: Round, packets: usize) -> anyhow::Result<RelayCost> {
        self.serve();
        let packets = packets.min(self.sealed.len());
        let Round { direction, entries: senders, window, .. } = round;
        let (link_in, link_out) = if direction == Direction::Forward { (1, 2) } else { (2, 1) };
        let lens = (self.shape.cell_len(direction, link_in), self.shape.cell_len(direction, link_out));

        let end = UdpSocket::bind("127.0.0.1:0")?;
        self.receive.apply(&end)?;
        let mut sink = Sink::new(&end, lens.1)?;
        let (to, buffer, core) = (end.local_addr()?, self.receive.buffer, self.cores.relay);
        let relay = Relay::start(RelayOptions { kind, to, lens, packets, buffer, core })?;

        let own = UdpSocket::bind("127.0.0.1:0")?;
        let sockets = self.entries.iter().map(|entry| entry.socket().try_clone()).collect::<Result<Vec<_>, _>>()?;
        let from: Vec<&UdpSocket> = if senders == 0 { vec![&own] } else { sockets.iter().collect() };
        let gso = kind == RelayKind::Gso && senders == 0;
        let (sealed, to) = (&self.sealed, relay.at);
        let generator = Generator { sealed, cells: packets, from: &from, to, gso, window, pace: None };
        let head = if senders == 0 { 0 } else { packets.min(window) };
        let mut start = || {
            relay.go();
            Ok(())
        };
        generator.run_after(head, &mut sink, &mut |_| (), &mut start)?;
        relay.finish()
    }
}
