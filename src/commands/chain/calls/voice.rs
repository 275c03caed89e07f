//! Voice: a stream of datagrams from each user to the other one of a call, and what is heard of it.
//!
//! A datagram is as long as one of G.711 with its RTP header, and carries its stream, number and time of sending. Users
//! talk and listen, and a stream rests while its user listens, as with silence suppression.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use eddy_node::config::ClassName;
use indicatif::{ProgressBar, ProgressStyle};
use rand::{Rng, RngExt as _};

/// Time between two datagrams of a stream.
const GAP: Duration = Duration::from_millis(20);
/// Mean lengths of talk spurts and of the pauses between them (ITU-T P.59).
const TALK: Duration = Duration::from_millis(1004);
const PAUSE: Duration = Duration::from_millis(1587);
/// Samples of 8 kHz in a datagram, a byte each.
const SAMPLES: u32 = 160;
/// An RTP header (RFC 3550) without contributing sources.
const RTP: usize = 12;
/// Bytes of a datagram.
pub const LEN: usize = RTP + SAMPLES as usize;
/// How long the last datagrams may take.
const DRAIN: Duration = Duration::from_secs(1);
/// Timeout of a receive call, and the time between calls of `watch`.
const LOOK: Duration = Duration::from_millis(100);

/// One direction of a call.
pub struct Stream {
    pub from: UdpSocket,
    /// The entry of the sender.
    pub to: SocketAddr,
    pub receiver: UdpSocket,
    /// For each gap between datagrams: whether there is one.
    pub talks: Vec<bool>,
}

/// Draws for each gap of some seconds whether a user talks. All begin with a talk spurt.
pub fn draw(seconds: f64, rng: &mut impl Rng) -> Vec<bool> {
    let count = (seconds / GAP.as_secs_f64()).round().max(1.0) as usize;
    let mut talks = Vec::with_capacity(count);
    while talks.len() < count {
        for (is_talk, mean) in [(true, TALK), (false, PAUSE)] {
            let length = -mean.as_secs_f64() * (1.0 - rng.random::<f64>()).ln();
            let gaps = (length / GAP.as_secs_f64()).ceil() as usize;
            talks.resize(count.min(talks.len() + gaps), is_talk);
        }
    }
    talks
}

/// What arrived of a stream.
#[derive(Default)]
pub struct Heard {
    pub sent: u64,
    /// When each datagram was sent after the start and how long it took, in ns and in the order of arrival. Only the
    /// first of a number.
    pub arrivals: Vec<(u64, u64)>,
}

impl Heard {
    /// Interarrival jitter of RFC 3550, 6.4.1, after the last datagram, in ns.
    pub fn jitter_ns(&self) -> f64 {
        let steps = self.arrivals.windows(2).map(|pair| pair[1].1.abs_diff(pair[0].1) as f64);
        steps.fold(0.0, |jitter, step| jitter + (step - jitter) / 16.0)
    }

    /// How long the datagrams took, in ascending order.
    pub fn delays_ns(&self) -> Vec<u64> {
        let mut delays: Vec<u64> = self.arrivals.iter().map(|(_, delay)| *delay).collect();
        delays.sort_unstable();
        delays
    }
}

/// Sends all streams, which are of one length, from `start` on. `watch` is called now and then; its errors end the run.
///
/// # Errors
/// That of `watch`, or a socket is refused by the system.
pub fn run(
    streams: Vec<Stream>,
    start: Instant,
    class: &ClassName,
    mut watch: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Heard>> {
    let over = AtomicBool::new(false);
    for stream in &streams {
        stream.receiver.set_read_timeout(Some(LOOK)).context("cannot set a timeout")?;
    }
    std::thread::scope(|scope| {
        let listeners: Vec<_> = streams
            .iter()
            .enumerate()
            .map(|(i, stream)| {
                let over = &over;
                scope.spawn(move || listen(&stream.receiver, i as u32, stream.talks.len(), start, over))
            })
            .collect();
        let sent: Vec<AtomicU64> = streams.iter().map(|_| AtomicU64::new(0)).collect();
        let outcome = send(&streams, start, class, &sent, &mut watch).and_then(|()| {
            let sent_at = Instant::now();
            while sent_at.elapsed() < DRAIN {
                watch()?;
                std::thread::sleep(LOOK);
            }
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        let heard = listeners.into_iter().zip(sent).map(|(listener, sent)| {
            let arrivals = listener.join().unwrap_or_default();
            Heard { sent: sent.into_inner(), arrivals }
        });
        let heard = heard.collect();
        outcome.map(|()| heard)
    })
}

/// Sends a datagram of each stream that talks in every gap, one after the other.
fn send(
    streams: &[Stream],
    start: Instant,
    class: &ClassName,
    sent: &[AtomicU64],
    watch: &mut impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let count = streams.first().map_or(0, |stream| stream.talks.len() as u32);
    let template = format!("{{bar:40}} calls in class {class}, {{eta}} to go");
    let bar = ProgressBar::new(count.into()).with_style(ProgressStyle::with_template(&template)?);
    let mut watched = start;
    for number in 0..count {
        for (i, stream) in streams.iter().enumerate().filter(|(_, stream)| stream.talks[number as usize]) {
            let due = start + GAP * number + GAP * i as u32 / streams.len() as u32;
            let now = Instant::now();
            std::thread::sleep(due.saturating_duration_since(now));
            let datagram = datagram(i as u32, number, start.elapsed());
            // What an entry does not take in is lost like anything else.
            let _ = stream.from.send_to(&datagram, stream.to);
            sent[i].fetch_add(1, Ordering::Relaxed);
        }
        if watched.elapsed() >= LOOK {
            watched = Instant::now();
            bar.set_position(number.into());
            watch()?;
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Datagram `number` of a stream, as of PCMU (RFC 3551).
fn datagram(stream: u32, number: u32, sent: Duration) -> [u8; LEN] {
    let mut bytes = [0xff; LEN];
    bytes[..2].copy_from_slice(&[0x80, 0]);
    bytes[2..4].copy_from_slice(&(number as u16).to_be_bytes());
    bytes[4..8].copy_from_slice(&number.wrapping_mul(SAMPLES).to_be_bytes());
    bytes[8..12].copy_from_slice(&stream.to_be_bytes());
    bytes[12..16].copy_from_slice(&number.to_be_bytes());
    bytes[16..24].copy_from_slice(&(sent.as_nanos() as u64).to_be_bytes());
    bytes
}

/// Stream, number and time of sending of a datagram.
fn read(bytes: &[u8]) -> Option<(u32, u32, u64)> {
    let bytes: &[u8; LEN] = bytes.try_into().ok()?;
    let stream = u32::from_be_bytes(*bytes[8..].first_chunk()?);
    let number = u32::from_be_bytes(*bytes[12..].first_chunk()?);
    Some((stream, number, u64::from_be_bytes(*bytes[16..].first_chunk()?)))
}

/// Receives a stream of up to `count` datagrams until `over` is set.
fn listen(socket: &UdpSocket, stream: u32, count: usize, start: Instant, over: &AtomicBool) -> Vec<(u64, u64)> {
    let (mut buffer, mut seen, mut arrivals) = ([0; 2048], vec![false; count], Vec::new());
    while !over.load(Ordering::Relaxed) {
        let Ok((len, _)) = socket.recv_from(&mut buffer) else { continue };
        let now = start.elapsed().as_nanos() as u64;
        let Some((of, number, sent)) = read(&buffer[..len]) else { continue };
        if of == stream && seen.get(number as usize) == Some(&false) {
            seen[number as usize] = true;
            arrivals.push((sent, now.saturating_sub(sent)));
        }
    }
    arrivals
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand_chacha::ChaCha20Rng;

    use super::*;

    #[test]
    fn jitter_is_that_of_rfc_3550() {
        let heard = |delays: &[u64]| Heard { sent: 0, arrivals: delays.iter().map(|delay| (0, *delay)).collect() };
        assert_eq!(heard(&[40; 9]).jitter_ns(), 0.0);
        assert_eq!(heard(&[]).jitter_ns(), 0.0);
        // J = 16 / 16, then 1 + (16 - 1) / 16.
        assert_eq!(heard(&[0, 16, 0]).jitter_ns(), 1.9375);
        let alternating: Vec<u64> = (0..1000).map(|i| i % 2 * 100).collect();
        assert!((heard(&alternating).jitter_ns() - 100.0).abs() < 0.01);
    }

    #[test]
    fn datagrams_carry_what_they_are() {
        let bytes = datagram(7, 70_000, Duration::from_nanos(123_456_789_012));
        assert_eq!(read(&bytes), Some((7, 70_000, 123_456_789_012)));
        assert_eq!((bytes.len(), u16::from_be_bytes([bytes[2], bytes[3]])), (172, (70_000 % 65_536) as u16));
        assert_eq!(read(&bytes[1..]), None);
    }

    #[test]
    fn users_talk_and_pause_as_long_as_the_standard_says() {
        let talks = draw(20_000.0, &mut ChaCha20Rng::from_seed([1; 32]));
        assert_eq!((talks.len(), talks[0]), (1_000_000, true));
        let share = talks.iter().filter(|is_talk| **is_talk).count() as f64 / talks.len() as f64;
        let expected = TALK.as_secs_f64() / (TALK + PAUSE).as_secs_f64();
        assert!((share - expected).abs() < 0.02, "{share}, expected {expected}");
        assert_eq!(draw(0.1, &mut ChaCha20Rng::from_seed([2; 32])).len(), 5);
    }

    #[test]
    fn streams_are_counted_apart_and_once() {
        let sockets: Vec<UdpSocket> = (0..2).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let streams = (0..2)
            .map(|i| Stream {
                from: sockets[i].try_clone().unwrap(),
                to: sockets[1 - i].local_addr().unwrap(),
                receiver: sockets[1 - i].try_clone().unwrap(),
                talks: vec![true, false, true, true, false],
            })
            .collect();
        let class = "voice".parse().unwrap();
        let heard = run(streams, Instant::now(), &class, || Ok(())).unwrap();
        assert!(heard.iter().all(|heard| (heard.sent, heard.arrivals.len()) == (3, 3)));
    }
}
