//! Voice: a stream of datagrams from each user to the other one of a call, and what is heard of it.
//!
//! A datagram is as long as one of the [`Codec`] with its RTP header, and carries its stream, number and time of
//! sending. Users talk and listen, and a stream rests while its user listens, as with silence suppression.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use rand::{Rng, RngExt as _};

/// Time between two datagrams of a stream.
const GAP: Duration = Duration::from_millis(20);
/// Gaps in a second.
pub const PER_SECOND: usize = 50;
/// Mean lengths of talk spurts and of the pauses between them (ITU-T P.59).
const TALK: Duration = Duration::from_millis(1004);
const PAUSE: Duration = Duration::from_millis(1587);
/// An RTP header (RFC 3550) without contributing sources.
const RTP: usize = 12;
/// Bytes of RTP header, number and time of sending.
const HEADER: usize = RTP + 12;
/// How long the last datagrams may take.
const DRAIN: Duration = Duration::from_secs(1);
/// Timeout of a receive call, and the time between calls of `watch`.
const LOOK: Duration = Duration::from_millis(100);

/// How voice becomes datagrams, one every 20 ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codec {
    pub name: &'static str,
    /// Bytes of a datagram, with the RTP header.
    pub len: usize,
    /// Steps of the RTP clock in a datagram.
    ticks: u32,
    payload_type: u8,
}

/// 64 kbit/s, 8 kHz (RFC 3551).
const G711: Codec = Codec { name: "G.711", len: RTP + 160, ticks: 160, payload_type: 0 };
/// Opus at a constant 24 kbit/s, 48 kHz (RFC 7587), of the first dynamic payload type.
const OPUS: Codec = Codec { name: "Opus at 24 kbit/s", len: RTP + 60, ticks: 960, payload_type: 96 };

impl Codec {
    /// G.711, or Opus if a class with this many kbit/s of datagrams has no room for it.
    pub fn for_class(kbit_s: u64) -> Codec {
        if kbit_s * GAP.as_millis() as u64 >= 8 * G711.len as u64 { G711 } else { OPUS }
    }
}

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

/// Sends all streams, which are of one length, from `start` on; a progress bar says `what` they are. `watch` is called
/// now and then; its errors end the run.
///
/// # Errors
/// That of `watch`, or a socket is refused by the system.
pub fn run(
    streams: Vec<Stream>,
    start: Instant,
    (codec, what): (Codec, &str),
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
        let outcome = send(&streams, start, (codec, what), &sent, &mut watch).and_then(|()| {
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
    (codec, what): (Codec, &str),
    sent: &[AtomicU64],
    watch: &mut impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let count = streams.first().map_or(0, |stream| stream.talks.len() as u32);
    let template = format!("{{bar:40}} {what}, {{eta}} to go");
    let bar = ProgressBar::new(count.into()).with_style(ProgressStyle::with_template(&template)?);
    let mut watched = start;
    for number in 0..count {
        for (i, stream) in streams.iter().enumerate().filter(|(_, stream)| stream.talks[number as usize]) {
            let due = start + GAP * number + GAP * i as u32 / streams.len() as u32;
            let now = Instant::now();
            std::thread::sleep(due.saturating_duration_since(now));
            let datagram = datagram(codec, i as u32, number, start.elapsed());
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

/// Datagram `number` of a stream: bytes of the RTP header, then the whole number and the time of sending.
fn datagram(codec: Codec, stream: u32, number: u32, sent: Duration) -> Vec<u8> {
    let mut bytes = vec![0x80, codec.payload_type];
    bytes.extend((number as u16).to_be_bytes());
    bytes.extend(number.wrapping_mul(codec.ticks).to_be_bytes());
    bytes.extend(stream.to_be_bytes());
    bytes.extend(number.to_be_bytes());
    bytes.extend((sent.as_nanos() as u64).to_be_bytes());
    bytes.resize(codec.len, 0xff);
    bytes
}

/// Stream, number and time of sending of a datagram.
fn read(bytes: &[u8]) -> Option<(u32, u32, u64)> {
    let bytes: &[u8; HEADER] = bytes.first_chunk()?;
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
        for (codec, len) in [(G711, 172), (OPUS, 72)] {
            let bytes = datagram(codec, 7, 70_000, Duration::from_nanos(123_456_789_012));
            assert_eq!(read(&bytes), Some((7, 70_000, 123_456_789_012)));
            assert_eq!((bytes.len(), u16::from_be_bytes([bytes[2], bytes[3]])), (len, (70_000 % 65_536) as u16));
            assert_eq!(read(&bytes[..HEADER - 1]), None);
        }
    }

    #[test]
    fn opus_takes_the_place_of_g711_where_there_is_no_room() {
        assert_eq!([38, 68, 69, 76].map(Codec::for_class), [OPUS, OPUS, G711, G711]);
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
        let heard = run(streams, Instant::now(), (G711, "calls"), || Ok(())).unwrap();
        assert!(heard.iter().all(|heard| (heard.sent, heard.arrivals.len()) == (3, 3)));
    }
}
