//! Traces of UDP packets: time, flow and length of each.
//!
//! A trace is a CSV with the columns `t_s,src,dst,payload_len` (seconds, two names or numbers, bytes), or a capture
//! (pcap or pcapng) of Ethernet, Linux cooked, loopback or raw IP. Other packets in a capture are skipped; an invalid
//! line of a CSV is an error.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use etherparse::{LaxSlicedPacket, TransportSlice};
use pcap_parser::traits::PcapNGPacketBlock;
use pcap_parser::{Block, Linktype, PcapBlockOwned, PcapError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    /// Since the first packet of the trace.
    pub(crate) at_ns: u64,
    /// A pair of endpoints in one direction.
    pub(crate) flow: usize,
    /// Bytes of payload.
    pub(crate) len: usize,
}

/// Packets in order of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trace {
    pub(crate) packets: Vec<Packet>,
    pub(crate) flows: usize,
    /// Of each flow.
    pub(crate) ways: Vec<Way>,
}

/// The conversation that a flow belongs to: all flows between two endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) conversation: usize,
    /// It leads to the endpoint that sent first.
    pub(crate) answers: bool,
}

/// Longest payload of a UDP datagram over IPv4.
const LONGEST: usize = 65_507;
/// Bytes of a capture that are buffered.
const WINDOW: usize = 1 << 20;
/// Longest trace: a day.
const LONGEST_S: f64 = 86_400.0;
const COLUMNS: &str = "t_s,src,dst,payload_len";

impl Trace {
    /// Reads a file: a capture if it begins like one, otherwise a CSV.
    ///
    /// # Errors
    /// The file cannot be read, or is neither. The error names the line or block.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Trace> {
        let name = path.display();
        let file = File::open(path).with_context(|| format!("cannot read the trace {name}"))?;
        let mut file = BufReader::with_capacity(WINDOW, file);
        let start = file.fill_buf().with_context(|| format!("cannot read the trace {name}"))?;
        let is_capture = matches!(
            start,
            [0xa1, 0xb2, 0xc3, 0xd4 | 0xd5, ..]
                | [0xd4, 0xc3, 0xb2, 0xa1, ..]
                | [0xa1, 0xb2, 0x3c, 0x4d, ..]
                | [0x4d, 0x3c, 0xb2, 0xa1, ..]
                | [0x0a, 0x0d, 0x0d, 0x0a, ..]
        );
        let trace = if is_capture { capture(file, &name.to_string())? } else { csv(file, &name.to_string())? };
        ensure!(!trace.packets.is_empty(), "{name} has no UDP packets");
        Ok(trace)
    }

    /// From times in seconds, endpoints and lengths, in any order.
    fn collect<E: std::hash::Hash + Eq + Clone>(mut found: Vec<(f64, (E, E), usize)>) -> Trace {
        found.sort_by(|one, other| one.0.total_cmp(&other.0));
        let first = found.first().map_or(0.0, |packet| packet.0);
        let (mut flows, mut ways, mut conversations) = (HashMap::new(), Vec::<Way>::new(), 0);
        let packets = found.into_iter().map(|(t_s, ends, len)| {
            let back = (ends.1.clone(), ends.0.clone());
            let flow = flows.get(&ends).copied().unwrap_or_else(|| {
                let answered = flows.get(&back).map(|&flow: &usize| ways[flow].conversation);
                ways.push(Way { conversation: answered.unwrap_or(conversations), answers: answered.is_some() });
                conversations += usize::from(answered.is_none());
                flows.insert(ends, ways.len() - 1);
                ways.len() - 1
            });
            Packet { at_ns: ((t_s - first) * 1e9).round() as u64, flow, len }
        });
        let packets = packets.collect();
        Trace { packets, flows: ways.len(), ways }
    }
}

fn csv(file: impl BufRead, name: &str) -> anyhow::Result<Trace> {
    let mut found = Vec::new();
    let mut lines = file.lines().enumerate();
    let columns = match lines.next() {
        Some((_, Ok(line))) => line,
        _ => bail!("{name} is not a trace: expected a capture (pcap, pcapng) or a CSV with the columns {COLUMNS}"),
    };
    let columns: Vec<&str> = columns.trim().split(',').map(str::trim).collect();
    let place = |wanted: &str| {
        columns.iter().position(|column| *column == wanted).with_context(|| {
            format!(
                "{name}:1: no column {wanted}: expected a capture (pcap, pcapng) or a CSV with the columns {COLUMNS}"
            )
        })
    };
    let [t_s, src, dst, len] = ["t_s", "src", "dst", "payload_len"].map(place);
    let (t_s, src, dst, len) = (t_s?, src?, dst?, len?);
    for (number, line) in lines {
        let number = number + 1;
        let line = line.with_context(|| format!("{name}:{number}: not text"))?;
        if line.trim().is_empty() {
            continue;
        }
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let field = |at: usize, column: &str| {
            fields
                .get(at)
                .copied()
                .with_context(|| format!("{name}:{number}: no {column}: {line:?} has {} fields", fields.len()))
        };
        let time: f64 = match field(t_s, "t_s")?.parse() {
            Ok(time) if (0.0..=LONGEST_S).contains(&time) => time,
            _ => bail!("{name}:{number}: invalid t_s {:?}: expected seconds from 0 to {LONGEST_S}", field(t_s, "t_s")?),
        };
        let bytes: usize = match field(len, "payload_len")?.parse() {
            Ok(bytes) if bytes <= LONGEST => bytes,
            _ => {
                bail!(
                    "{name}:{number}: invalid payload_len {:?}: expected bytes from 0 to {LONGEST}",
                    field(len, "payload_len")?
                )
            }
        };
        found.push((time, (field(src, "src")?.to_owned(), field(dst, "dst")?.to_owned()), bytes));
    }
    Ok(Trace::collect(found))
}

fn capture(file: impl BufRead + Send, name: &str) -> anyhow::Result<Trace> {
    let damaged = |what: String| anyhow::anyhow!("{name} is a damaged capture: {what}");
    let mut reader = pcap_parser::create_reader(WINDOW, file).map_err(|why| damaged(format!("{why:?}")))?;
    let mut found = Vec::new();
    // Link type and clock ticks per second: of a pcap file, and (with an offset in seconds) of each pcapng interface.
    let mut legacy = (Linktype::ETHERNET, 1e6);
    let mut interfaces: Vec<(Linktype, f64, f64)> = Vec::new();
    let mut blocks = 0u64;
    loop {
        match reader.next() {
            Ok((offset, block)) => {
                blocks += 1;
                let packet = match &block {
                    PcapBlockOwned::LegacyHeader(header) => {
                        legacy = (header.network, if header.is_nanosecond_precision() { 1e9 } else { 1e6 });
                        None
                    }
                    PcapBlockOwned::Legacy(packet) => {
                        let t_s = f64::from(packet.ts_sec) + f64::from(packet.ts_usec) / legacy.1;
                        Some((t_s, legacy.0, packet.data))
                    }
                    PcapBlockOwned::NG(Block::SectionHeader(_)) => {
                        interfaces.clear();
                        None
                    }
                    PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
                        let units = interface.ts_resolution().unwrap_or(1_000_000) as f64;
                        interfaces.push((interface.linktype, units, interface.ts_offset() as f64));
                        None
                    }
                    PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                        let Some((link, units, offset)) = interfaces.get(packet.if_id as usize) else {
                            return Err(damaged(format!("block {blocks} names an unknown interface")));
                        };
                        let ticks = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                        Some((ticks as f64 / units + offset, *link, packet.packet_data()))
                    }
                    PcapBlockOwned::NG(_) => None,
                };
                if let Some((t_s, link, bytes)) = packet
                    && let Some((ends, len)) = udp(link, bytes).with_context(|| name.to_owned())?
                {
                    found.push((t_s, ends, len));
                }
                reader.consume(offset);
            }
            Err(PcapError::Eof) => break,
            Err(PcapError::Incomplete(_)) => {
                if reader.reader_exhausted() {
                    return Err(damaged(format!("it ends within block {}", blocks + 1)));
                }
                reader.refill().map_err(|_| damaged(format!("block {} cannot be read", blocks + 1)))?;
            }
            Err(PcapError::UnexpectedEof) => {
                return Err(damaged(format!("it ends within block {}", blocks + 1)));
            }
            Err(_) => return Err(damaged(format!("block {} is invalid", blocks + 1))),
        }
    }
    let (first, last) =
        found.iter().fold((f64::INFINITY, 0.0f64), |ends, packet| (ends.0.min(packet.0), ends.1.max(packet.0)));
    ensure!(found.is_empty() || last - first <= LONGEST_S, "{name} is longer than a day");
    Ok(Trace::collect(found))
}

/// Source and destination of a UDP packet.
type Ends = (std::net::SocketAddr, std::net::SocketAddr);

/// Endpoints and payload length of a frame, if it is a UDP packet. The capture may have truncated it.
fn udp(link: Linktype, frame: &[u8]) -> anyhow::Result<Option<(Ends, usize)>> {
    let ip_at = match link {
        Linktype::ETHERNET => None,
        Linktype::RAW | Linktype::IPV4 | Linktype::IPV6 => Some(0),
        Linktype::NULL | Linktype::LOOP => Some(4),
        Linktype::LINUX_SLL => Some(16),
        Linktype::LINUX_SLL2 => Some(20),
        other => bail!("unsupported link type {}: expected Ethernet, Linux cooked, loopback or raw IP", other.0),
    };
    let sliced = match ip_at {
        None => LaxSlicedPacket::from_ethernet(frame).ok(),
        Some(at) => frame.get(at..).and_then(|ip| LaxSlicedPacket::from_ip(ip).ok()),
    };
    let Some(LaxSlicedPacket { net: Some(net), transport: Some(TransportSlice::Udp(udp)), .. }) = sliced else {
        return Ok(None);
    };
    let (from, to): (std::net::IpAddr, std::net::IpAddr) = match &net {
        etherparse::LaxNetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        etherparse::LaxNetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        _ => return Ok(None),
    };
    let len = usize::from(udp.length()).saturating_sub(8).min(LONGEST);
    Ok(Some((((from, udp.source_port()).into(), (to, udp.destination_port()).into()), len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> anyhow::Result<Trace> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Trace::read(file.path())
    }

    #[test]
    fn csv_columns_may_be_in_any_order() {
        let trace = of(b"payload_len,t_s,src,dst\n74,10.5,0,1\n18,10.25,a,b\n\n20,10.75,0,1\n").unwrap();
        let packet = |at_ns, flow, len| Packet { at_ns, flow, len };
        assert_eq!(trace.flows, 2);
        assert_eq!(trace.packets, [packet(0, 0, 18), packet(250_000_000, 1, 74), packet(500_000_000, 1, 20)]);
    }

    #[test]
    fn csv_error_names_its_line() {
        for (text, wanted) in [
            ("", "is not a trace"),
            ("a,b\n1,2\n", ":1: no column t_s"),
            ("t_s,src,dst,payload_len\n", "has no UDP packets"),
            ("t_s,src,dst,payload_len\n0,0,1,9\nx,0,1,9\n", ":3: invalid t_s \"x\""),
            ("t_s,src,dst,payload_len\n-1,0,1,9\n", ":2: invalid t_s"),
            ("t_s,src,dst,payload_len\n0,0,1,70000\n", ":2: invalid payload_len \"70000\""),
            ("t_s,src,dst,payload_len\n0,0,1\n", ":2: no payload_len"),
        ] {
            let error = format!("{:#}", of(text.as_bytes()).unwrap_err());
            assert!(error.contains(wanted), "{text:?}: {error}");
        }
        assert!(of(b"t_s,src,dst,payload_len\n\xff\xfe\n").is_err());
        assert!(Trace::read(Path::new("/nowhere/x.csv")).is_err());
    }

    /// An Ethernet frame with a UDP datagram of `len` bytes.
    fn frame(port: u16, len: usize) -> Vec<u8> {
        let builder =
            etherparse::PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64).udp(port, 9);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, &vec![0; len]).unwrap();
        bytes
    }

    fn pcap(packets: &[(u32, u32, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = 0xa1b2_c3d4u32.to_le_bytes().to_vec();
        bytes.extend([2, 0, 4, 0]);
        for word in [0u32, 0, 65_535, 1] {
            bytes.extend(word.to_le_bytes());
        }
        for (s, us, frame) in packets {
            for word in [*s, *us, frame.len() as u32, frame.len() as u32] {
                bytes.extend(word.to_le_bytes());
            }
            bytes.extend(frame);
        }
        bytes
    }

    #[test]
    fn capture_skips_packets_that_are_not_udp() {
        let mut arp = vec![0xff; 60];
        arp[12..14].copy_from_slice(&[8, 6]);
        let packets = [(7, 0, frame(1, 100)), (7, 20_000, arp), (7, 40_000, frame(1, 0)), (8, 0, frame(2, 1200))];
        let trace = of(&pcap(&packets)).unwrap();
        let packet = |at_ns, flow, len| Packet { at_ns, flow, len };
        assert_eq!(trace.flows, 2);
        assert_eq!(trace.packets, [packet(0, 0, 100), packet(40_000_000, 0, 0), packet(1_000_000_000, 1, 1200)]);
    }

    #[test]
    fn truncated_packet_keeps_its_length() {
        let mut short = frame(1, 1000);
        short.truncate(60);
        assert_eq!(of(&pcap(&[(1, 0, short)])).unwrap().packets[0].len, 1000);
    }

    #[test]
    fn damaged_or_unsupported_capture_is_refused() {
        let whole = pcap(&[(1, 0, frame(1, 100)), (2, 0, frame(1, 100))]);
        let error = format!("{:#}", of(&whole[..whole.len() - 10]).unwrap_err());
        assert!(error.contains("damaged capture") && error.contains("block 3"), "{error}");
        let mut other = whole;
        other[20] = 105;
        let error = format!("{:#}", of(&other).unwrap_err());
        assert!(error.contains("link type 105"), "{error}");
    }

    #[test]
    fn no_flipped_bit_panics_the_capture_reader() {
        let whole = pcap(&[(1, 0, frame(1, 100)), (2, 0, frame(1, 100))]);
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                let _ = of(&bytes);
            }
        }
    }
}
