//! The hops of others, by their own libraries.

use anyhow::{Context, anyhow, bail};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use snow::TransportState;
use sphinx_packet::header::delays::Delay;
use sphinx_packet::payload::PAYLOAD_OVERHEAD_SIZE;
use sphinx_packet::route::{Destination, DestinationAddressBytes, Node, NodeAddressBytes};
use sphinx_packet::{ProcessedPacket, ProcessedPacketData, SphinxPacket, SphinxPacketBuilder, crypto};

use super::candidate::{Candidate, Hop, PACKETS, PAYLOAD};

/// Bytes of the largest packet of any of them.
const ROOM: usize = 2048;

/// A packet in memory that was allocated before.
struct Datagram {
    bytes: [u8; ROOM],
    len: usize,
}

impl Datagram {
    /// Empty ones for a round: packets in, and packets out.
    fn both_ways() -> [Vec<Datagram>; 2] {
        [(); 2].map(|()| (0..PACKETS).map(|_| Datagram { bytes: [0; ROOM], len: 0 }).collect())
    }

    fn get(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// # Errors
/// A handshake fails.
pub(super) fn candidates() -> anyhow::Result<Vec<Candidate>> {
    let noise = "read a message of one session, write it to the next";
    let chacha = "Noise_NN_25519_ChaChaPoly_BLAKE2s";
    let aes = "Noise_NN_25519_AESGCM_SHA256";
    Ok(vec![
        Candidate::new("sphinx-packet", "", "unwrap a Sphinx packet: X25519, HKDF, HMAC, LIONESS", Sphinx::new()?),
        Candidate::new("boringtun", "", "WireGuard: decapsulate, and encapsulate for the next peer", WireGuard::new()?),
        Candidate::new("snow", "ChaCha20-Poly1305", noise, Noise::new(chacha)?),
        Candidate::new("snow", "AES-256-GCM", noise, Noise::new(aes)?),
    ])
}

/// Payload of packet `i`: an IPv4 packet, since WireGuard reads its header.
fn payload(i: usize) -> Vec<u8> {
    let mut packet = vec![i as u8; PAYLOAD];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(PAYLOAD as u16).to_be_bytes());
    packet
}

fn payloads() -> Vec<Vec<u8>> {
    (0..PACKETS).map(payload).collect()
}

/// The first of three hops. The library has no replay filter, so every round uses the same packets.
struct Sphinx {
    keys: Vec<crypto::PrivateKey>,
    wire: Vec<Vec<u8>>,
    packets: Vec<SphinxPacket>,
    out: Vec<ProcessedPacket>,
}

impl Sphinx {
    fn new() -> anyhow::Result<Sphinx> {
        let keys: Vec<crypto::PrivateKey> = (1..=3).map(|hop| crypto::PrivateKey::from([hop; 32])).collect();
        let node = |(hop, key)| Node::new(NodeAddressBytes::from_bytes([hop; 32]), crypto::PublicKey::from(key));
        let route: Vec<Node> = (1..).zip(&keys).map(node).collect();
        let destination = Destination::new(DestinationAddressBytes::from_bytes([9; 32]), [4; 16]);
        let delays = [Delay::new_from_millis(1); 3];
        let builder = SphinxPacketBuilder::new().with_payload_size(PAYLOAD + PAYLOAD_OVERHEAD_SIZE);
        let wire = payloads()
            .iter()
            .map(|payload| Ok(builder.build_packet(payload, &route, &destination, &delays)?.to_bytes()))
            .collect::<anyhow::Result<_>>()?;
        Ok(Sphinx { keys, wire, packets: Vec::with_capacity(PACKETS), out: Vec::with_capacity(PACKETS) })
    }
}

/// The next hop and its packet.
fn next_hop(processed: ProcessedPacket) -> Option<(NodeAddressBytes, SphinxPacket)> {
    match processed.data {
        ProcessedPacketData::ForwardHop { next_hop_packet, next_hop_address, .. } => {
            Some((next_hop_address, next_hop_packet))
        }
        ProcessedPacketData::FinalHop { .. } => None,
    }
}

impl Hop for Sphinx {
    fn prepare(&mut self) -> anyhow::Result<()> {
        self.out.clear();
        self.packets = self.wire.iter().map(|bytes| SphinxPacket::from_bytes(bytes)).collect::<Result<_, _>>()?;
        Ok(())
    }

    fn run(&mut self) -> anyhow::Result<()> {
        for packet in self.packets.drain(..) {
            self.out.push(packet.process(&self.keys[0])?);
        }
        Ok(())
    }

    fn is_correct(&mut self) -> anyhow::Result<bool> {
        let mut correct = self.out.len() == PACKETS;
        for (processed, payload) in self.out.drain(..).zip(payloads()) {
            let (second, packet) = next_hop(processed).context("the first hop is the last")?;
            let (third, packet) = next_hop(packet.process(&self.keys[1])?).context("the second hop is the last")?;
            let ProcessedPacketData::FinalHop { payload: found, .. } = packet.process(&self.keys[2])?.data else {
                bail!("the third hop is not the last");
            };
            let hops = [second, third].map(|address| address.to_bytes()[0]);
            correct &= hops == [2, 3] && found.recover_plaintext()? == payload;
        }
        Ok(correct)
    }
}

/// Two tunnels, and the hop between them.
struct WireGuard {
    client: Tunn,
    hop: [Tunn; 2],
    server: Tunn,
    payloads: Vec<Vec<u8>>,
    /// Packets in, and out.
    wire: [Vec<Datagram>; 2],
}

/// Both ends of a tunnel after their handshake and a first packet.
fn tunnel(seed: u8) -> anyhow::Result<(Tunn, Tunn)> {
    let keys = [seed, seed + 1].map(|seed| StaticSecret::from([seed; 32]));
    let public = keys.each_ref().map(PublicKey::from);
    let [own, other] = keys;
    let mut first = Tunn::new(own, public[1], None, None, 1, None);
    let mut second = Tunn::new(other, public[0], None, None, 2, None);
    let (mut there, mut back) = ([0; ROOM], [0; ROOM]);
    let TunnResult::WriteToNetwork(hello) = first.format_handshake_initiation(&mut there, false) else {
        bail!("the handshake does not start");
    };
    let TunnResult::WriteToNetwork(answer) = second.decapsulate(None, hello, &mut back) else {
        bail!("the handshake is not answered");
    };
    let TunnResult::WriteToNetwork(keepalive) = first.decapsulate(None, answer, &mut there) else {
        bail!("the handshake does not complete");
    };
    match second.decapsulate(None, keepalive, &mut back) {
        TunnResult::Done => Ok((first, second)),
        other => bail!("the first packet: {other:?}"),
    }
}

impl WireGuard {
    fn new() -> anyhow::Result<WireGuard> {
        let (client, hop_in) = tunnel(1)?;
        let (hop_out, server) = tunnel(3)?;
        let hop = [hop_in, hop_out];
        Ok(WireGuard { client, hop, server, payloads: payloads(), wire: Datagram::both_ways() })
    }
}

/// Encapsulates a packet into a datagram.
fn encapsulate(tunnel: &mut Tunn, packet: &[u8], datagram: &mut Datagram) -> anyhow::Result<()> {
    datagram.len = match tunnel.encapsulate(packet, &mut datagram.bytes) {
        TunnResult::WriteToNetwork(bytes) => bytes.len(),
        other => bail!("encapsulate: {other:?}"),
    };
    Ok(())
}

/// Decapsulates a datagram into a packet.
fn decapsulate<'a>(tunnel: &mut Tunn, datagram: &[u8], buffer: &'a mut [u8]) -> anyhow::Result<&'a [u8]> {
    match tunnel.decapsulate(None, datagram, buffer) {
        TunnResult::WriteToTunnelV4(packet, _) => Ok(packet),
        TunnResult::Err(why) => Err(anyhow!("decapsulate: {why:?}")),
        _ => Err(anyhow!("decapsulate: no packet")),
    }
}

impl Hop for WireGuard {
    fn prepare(&mut self) -> anyhow::Result<()> {
        for (packet, datagram) in self.payloads.iter().zip(&mut self.wire[0]) {
            encapsulate(&mut self.client, packet, datagram)?;
        }
        Ok(())
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let WireGuard { hop: [before, behind], wire: [from, to], .. } = self;
        let mut buffer = [0; ROOM];
        for (datagram, out) in from.iter().zip(to) {
            let packet = decapsulate(before, datagram.get(), &mut buffer)?;
            encapsulate(behind, packet, out)?;
        }
        Ok(())
    }

    fn is_correct(&mut self) -> anyhow::Result<bool> {
        let mut buffer = [0; ROOM];
        let mut correct = true;
        for (datagram, payload) in self.wire[1].iter().zip(&self.payloads) {
            correct &= decapsulate(&mut self.server, datagram.get(), &mut buffer)? == payload;
        }
        Ok(correct)
    }
}

/// Two sessions, and the hop between them.
struct Noise {
    client: TransportState,
    hop: [TransportState; 2],
    server: TransportState,
    payloads: Vec<Vec<u8>>,
    /// Packets in, and out.
    wire: [Vec<Datagram>; 2],
}

/// Both ends of a session after their handshake.
fn session(pattern: &str) -> anyhow::Result<(TransportState, TransportState)> {
    let mut first = snow::Builder::new(pattern.parse()?).build_initiator()?;
    let mut second = snow::Builder::new(pattern.parse()?).build_responder()?;
    let (mut message, mut nothing) = ([0; ROOM], [0; ROOM]);
    let len = first.write_message(&[], &mut message)?;
    second.read_message(&message[..len], &mut nothing)?;
    let len = second.write_message(&[], &mut message)?;
    first.read_message(&message[..len], &mut nothing)?;
    Ok((first.into_transport_mode()?, second.into_transport_mode()?))
}

impl Noise {
    fn new(pattern: &str) -> anyhow::Result<Noise> {
        let (client, hop_in) = session(pattern)?;
        let (hop_out, server) = session(pattern)?;
        let hop = [hop_in, hop_out];
        Ok(Noise { client, hop, server, payloads: payloads(), wire: Datagram::both_ways() })
    }
}

/// Encrypts a payload into a message.
fn write(session: &mut TransportState, payload: &[u8], message: &mut Datagram) -> anyhow::Result<()> {
    message.len = session.write_message(payload, &mut message.bytes)?;
    Ok(())
}

impl Hop for Noise {
    fn prepare(&mut self) -> anyhow::Result<()> {
        for (payload, message) in self.payloads.iter().zip(&mut self.wire[0]) {
            write(&mut self.client, payload, message)?;
        }
        Ok(())
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let Noise { hop: [before, behind], wire: [from, to], .. } = self;
        let mut buffer = [0; ROOM];
        for (message, out) in from.iter().zip(to) {
            let len = before.read_message(message.get(), &mut buffer)?;
            write(behind, &buffer[..len], out)?;
        }
        Ok(())
    }

    fn is_correct(&mut self) -> anyhow::Result<bool> {
        let mut buffer = [0; ROOM];
        let mut correct = true;
        for (message, payload) in self.wire[1].iter().zip(&self.payloads) {
            let len = self.server.read_message(message.get(), &mut buffer)?;
            correct &= &buffer[..len] == payload;
        }
        Ok(correct)
    }
}
