//! Datagrams of applications on their way: a batch as it was received, and what one turn sends.

use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;

use hashbrown::HashMap;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha20Rng;

use crate::sys;

/// Names an application socket.
pub type SocketId = u32;

/// Names a flow of a worker: the place of its record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(pub u32);

impl FlowId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Messages of one receive call.
const MESSAGES: usize = 8;
/// Bytes of the space for one message: the longest datagram, and the longest burst.
const MESSAGE_LEN: usize = 65_536;
/// Messages lie this far apart so that their first lines do not share the same few places of the cache.
const STRIDE: usize = MESSAGE_LEN + 1536;
/// Datagrams of a burst that a local sender can make the kernel carry (UDP_MAX_SEGMENTS).
const GRO_SEGMENTS_MAX: usize = 128;
/// Datagrams of one batch at most.
pub(crate) const RECEIVE_BATCH_MAX: usize = MESSAGES * GRO_SEGMENTS_MAX;
/// Bytes of one batch at most.
pub(crate) const RECEIVE_BATCH_BYTES_MAX: usize = MESSAGES * MESSAGE_LEN;

/// A datagram of a batch.
struct Item {
    from: SocketAddr,
    len: usize,
    at: usize,
}

/// A batch of datagrams from one application socket.
pub struct ReceiveBatch {
    socket: SocketId,
    bytes: Box<[u8]>,
    items: Vec<Item>,
}

impl Default for ReceiveBatch {
    fn default() -> ReceiveBatch {
        ReceiveBatch {
            socket: 0,
            bytes: vec![0; MESSAGES * STRIDE].into(),
            items: Vec::with_capacity(RECEIVE_BATCH_MAX),
        }
    }
}

impl ReceiveBatch {
    /// One that holds nothing and can receive nothing: takes the place of one that is being read.
    pub(crate) fn placeholder() -> ReceiveBatch {
        ReceiveBatch { socket: 0, bytes: Box::default(), items: Vec::new() }
    }

    /// The socket that received them.
    pub fn socket(&self) -> SocketId {
        self.socket
    }

    /// Sender and bytes of each.
    pub fn iter(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        self.items.iter().map(|item| (item.from, &self.bytes[item.at..item.at + item.len]))
    }

    /// Starts a batch of `socket`.
    pub(crate) fn start(&mut self, socket: SocketId) {
        self.socket = socket;
        self.items.clear();
    }

    /// Number of datagrams.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Adds a datagram, if there is room.
    pub(crate) fn push(&mut self, from: SocketAddr, bytes: &[u8]) {
        let at = self.items.len() * STRIDE;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.items.push(Item { from, len: bytes.len(), at });
    }

    /// True if [`Self::push`] takes no more.
    pub(crate) fn is_full(&self) -> bool {
        self.items.len() == MESSAGES
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Receives what waits at a socket, at most a batch; bursts come apart here. Whether there may be more.
    pub(crate) fn fill(&mut self, socket: &UdpSocket) -> bool {
        let ReceiveBatch { bytes, items, .. } = self;
        let buffers = bytes.chunks_exact_mut(STRIDE).map(|chunk| &mut chunk[..MESSAGE_LEN]);
        let got = sys::recv(socket, buffers, 1, |i, sys::Received { len, segment, from }| {
            let (start, step) = (i * STRIDE, segment.unwrap_or(len));
            items.push(Item { from, len: step, at: start });
            let others = (step..len).step_by(step.max(1));
            items.extend(others.map(|at| Item { from, len: step.min(len - at), at: start + at }));
        });
        matches!(got, Ok(MESSAGES))
    }
}

/// Longest datagram of a burst: whatever fits an Ethernet frame. Longer ones the kernel may have to fragment, and
/// then it refuses the burst.
const GSO_PAYLOAD_MAX: usize = 1472;

/// One datagram on its way to an application.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The socket it leaves from.
    pub socket: SocketId,
    pub to: SocketAddr,
    /// Its flow: the order within one is kept.
    pub flow: FlowId,
    range: Range<usize>,
}

/// Datagrams on their way to applications, collected over a turn.
#[derive(Default)]
pub struct SendBatch {
    bytes: Vec<u8>,
    pub(crate) items: Vec<Outgoing>,
    ranks: HashMap<FlowId, u32, foldhash::fast::RandomState>,
    order: Vec<u32>,
}

impl SendBatch {
    pub fn push(&mut self, socket: SocketId, to: SocketAddr, flow: FlowId, data: &[u8]) {
        self.push_behind(socket, to, flow, &[], data);
    }

    /// Adds a datagram with a header in front.
    pub(crate) fn push_behind(&mut self, socket: SocketId, to: SocketAddr, flow: FlowId, header: &[u8], data: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(header);
        self.bytes.extend_from_slice(data);
        self.items.push(Outgoing { socket, to, flow, range: start..self.bytes.len() });
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Removes the datagrams of sockets for which `keep` is false. Returns how many.
    pub(crate) fn retain(&mut self, keep: impl Fn(SocketId) -> bool) -> usize {
        let before = self.items.len();
        self.items.retain(|item| keep(item.socket));
        before - self.items.len()
    }

    /// Puts the flows into a uniform random order, and keeps the order within each (SPEC 6.4).
    pub(crate) fn shuffle_flows(&mut self, rng: &mut ChaCha20Rng) {
        self.ranks.clear();
        for item in &self.items {
            let fresh = self.ranks.len() as u32;
            self.ranks.entry(item.flow).or_insert(fresh);
        }
        self.order.clear();
        self.order.extend(0..self.ranks.len() as u32);
        self.order.shuffle(rng);
        let (ranks, order) = (&self.ranks, &self.order);
        self.items.sort_by_key(|item| order[ranks[&item.flow] as usize]);
    }

    /// The number of datagrams from the `at`th on that can leave as one burst, and the length of each. They have one
    /// socket, one address and one length; the last may be shorter.
    fn burst(&self, at: usize) -> (usize, usize) {
        let first = &self.items[at];
        let len = first.range.len();
        if !(1..=GSO_PAYLOAD_MAX).contains(&len) {
            return (1, len);
        }
        let most = sys::GSO_SEGMENTS_MAX.min(sys::GSO_BYTES_MAX / len);
        let alike = |item: &&Outgoing| (item.socket, item.to) == (first.socket, first.to);
        let mut count = 0;
        for item in self.items[at..].iter().take(most).take_while(alike) {
            let this = item.range.len();
            if this == 0 || this > len {
                break;
            }
            count += 1;
            if this < len {
                break;
            }
        }
        (count, len)
    }

    /// The datagrams of a range as messages: those from the `bursts_from`th on joined where that can be.
    pub(crate) fn messages(&self, range: Range<usize>, bursts_from: usize) -> impl Iterator<Item = sys::Message> {
        let mut at = range.start;
        std::iter::from_fn(move || {
            let to = self.items[..range.end].get(at)?.to;
            let (pieces, len) = if at >= bursts_from { self.burst(at) } else { (1, 0) };
            at += pieces;
            Some(sys::Message { to, pieces, segment: (pieces > 1).then_some(len as u16) })
        })
    }

    /// The datagrams in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Outgoing, &[u8])> {
        self.items.iter().map(|item| (item, &self.bytes[item.range.clone()]))
    }

    pub fn clear(&mut self) {
        self.items.clear();
        self.bytes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use std::collections::HashMap as Map;

    #[test]
    fn flows_leave_in_random_order_and_whole() {
        let to = "1.2.3.4:5".parse().unwrap();
        let mut rng = ChaCha20Rng::seed_from_u64(4);
        let mut orders: Map<Vec<u32>, u32> = Map::new();
        for _ in 0..6000 {
            let mut send_batch = SendBatch::default();
            for (i, flow) in [7, 8, 7, 9, 9, 8, 7].into_iter().enumerate() {
                send_batch.push(0, to, FlowId(flow), &[i as u8]);
            }
            send_batch.shuffle_flows(&mut rng);
            for flow in [7, 8, 9] {
                assert!(send_batch.iter().filter(|(item, _)| item.flow.0 == flow).map(|(_, data)| data[0]).is_sorted());
            }
            let mut flows: Vec<u32> = send_batch.iter().map(|(item, _)| item.flow.0).collect();
            flows.dedup();
            *orders.entry(flows).or_default() += 1;
        }
        assert_eq!(orders.len(), 6, "each flow is one block");
        // Chi-squared with 5 degrees of freedom: 20.5 has p = 0.001.
        let chi: f64 = orders.values().map(|n| (f64::from(*n) - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi < 20.5, "{orders:?}");
    }

    #[test]
    fn burst_ends_at_another_length_address_or_socket() {
        let [a, b] = ["1.2.3.4:5", "1.2.3.4:6"].map(|to| to.parse().unwrap());
        let mut send_batch = SendBatch::default();
        for (socket, to, len) in
            [(0, a, 10), (0, a, 10), (0, a, 7), (0, a, 10), (0, b, 10), (1, b, 10), (1, b, 11), (1, b, 0), (1, b, 2000)]
        {
            send_batch.push(socket, to, FlowId(1), &[1; 2000][..len]);
        }
        let bursts: Vec<_> = (0..9).map(|at| send_batch.burst(at)).collect();
        let want = [(3, 10), (2, 10), (1, 7), (1, 10), (1, 10), (1, 10), (1, 11), (1, 0), (1, 2000)];
        assert_eq!(bursts, want);
        let mut long = SendBatch::default();
        (0..100).for_each(|_| long.push(0, a, FlowId(1), &[1; 1400]));
        assert_eq!(long.burst(0), (46, 1400));
        assert_eq!(long.burst(60), (40, 1400));
    }

    #[test]
    fn a_batch_takes_bursts_apart_and_keeps_empty_datagrams() {
        let (from, at) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        at.set_nonblocking(true).unwrap();
        sys::enable_gro(&at).unwrap();
        let to = at.local_addr().unwrap();
        let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
        let burst = sys::Message { to, pieces: 1, segment: Some(1000) };
        sys::send(&from, std::iter::once(burst), std::iter::once(&bytes[..4321])).unwrap();
        from.send_to(&[], to).unwrap();
        from.send_to(&bytes, to).unwrap();
        let mut receive_batch = ReceiveBatch::default();
        receive_batch.start(3);
        assert!(!receive_batch.fill(&at));
        let lens: Vec<_> = receive_batch.iter().map(|(_, bytes)| bytes.len()).collect();
        assert_eq!(lens, [1000, 1000, 1000, 1000, 321, 0, 5000]);
        let all: Vec<u8> = receive_batch.iter().take(5).flat_map(|(_, bytes)| bytes.to_vec()).collect();
        assert_eq!(all, bytes[..4321]);
        assert!(receive_batch.iter().all(|(sender, _)| sender == from.local_addr().unwrap()));
    }
}
