//! One completed handshake as control sees it: keys, sequence numbers and replay window of its control
//! cells (SPEC 3.6, 4.4).
//!
//! The header keys go to the data plane when the slot is installed; control does not keep them.

use std::net::SocketAddr;
use std::time::Duration;

use wire::cell::{CellKind, Class, Header, SEQ_END};
use wire::ids::{Side, SlotId};
use wire::link::{ControlKey, LinkSecrets};
use wire::replay::Window;
use zeroize::Zeroizing;

use crate::counters::Refusal;

pub(crate) struct Slot {
    pub(crate) id: SlotId,
    pub(crate) created_at: Duration,
    /// The address that the handshake came from or went to.
    pub(crate) peer: SocketAddr,
    /// The resumption token that names this handshake in the next one.
    pub(crate) resume: Zeroizing<[u8; 32]>,
    seal: ControlKey,
    open: ControlKey,
    /// Next sequence number to send.
    next_seq: u64,
    window: Window,
}

impl Slot {
    /// `window` numbers are in its replay window.
    pub(crate) fn new(
        (id, side): (SlotId, Side),
        peer: SocketAddr,
        now: Duration,
        secrets: &LinkSecrets,
        window: usize,
    ) -> Slot {
        let (seal, open) = match side {
            Side::Up => (&secrets.control_r2i, &secrets.control_i2r),
            Side::Down => (&secrets.control_i2r, &secrets.control_r2i),
        };
        Slot {
            id,
            created_at: now,
            peer,
            resume: secrets.resume.clone(),
            seal: ControlKey::new(seal),
            open: ControlKey::new(open),
            next_seq: 0,
            window: Window::new(0, window),
        }
    }

    /// Seals a cell under the next sequence number. None once the numbers are used up.
    pub(crate) fn seal(
        &mut self,
        kind: CellKind,
        channel: u32,
        sub: u8,
        class: Class,
        content: &[u8],
    ) -> Option<(Header, Vec<u8>)> {
        if self.next_seq >= SEQ_END {
            return None;
        }
        let header = Header { channel, seq: self.next_seq, sub, kind, class };
        self.next_seq += 1;
        let mut body = Vec::with_capacity(content.len() + wire::cell::TAG_LEN);
        body.extend_from_slice(content);
        body.extend_from_slice(&[0; wire::cell::TAG_LEN]);
        self.seal.seal(&header, &mut body);
        Some((header, body))
    }

    /// Opens a cell. Its number is marked as seen only if the cell is authentic. `header` is in the clear.
    pub(crate) fn open<'a>(&mut self, header: &Header, body: &'a mut [u8]) -> Result<&'a mut [u8], Refusal> {
        self.window.accept(header.seq).map_err(|_| Refusal::CellReplayed)?;
        let content = self.open.open(header, body).ok_or(Refusal::CellForged)?;
        self.mark_seen(header.seq)?;
        Ok(content)
    }

    /// Marks the number of an authentic cell as seen.
    pub(crate) fn mark_seen(&mut self, seq: u64) -> Result<(), Refusal> {
        self.window.mark_seen(seq).map_err(|_| Refusal::CellReplayed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_without_numbers_seals_nothing() {
        let secrets = LinkSecrets::derive(&[1; 32], &[2; 32], &[3; 32], &[4; 32]);
        let peer = ([192, 0, 2, 1], 1).into();
        let mut slot = Slot::new((SlotId(0), Side::Down), peer, Duration::ZERO, &secrets, 64);
        slot.next_seq = SEQ_END - 1;
        let mut seal = || slot.seal(CellKind::Link, 0, 0, Class::S, &[0; 8]).map(|(header, _)| header.seq);
        assert_eq!((seal(), seal(), seal()), (Some(SEQ_END - 1), None, None));
    }
}
