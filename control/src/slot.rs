//! One completed handshake as control sees it: the keys of its control cells, their numbers, their
//! window (SPEC 3.6, 4.4).
//!
//! The header keys are not here: they go to the data plane when the slot is made.

use std::net::SocketAddr;
use std::time::Duration;

use wire::cell::{Class, Header, Kind, SEQ_END};
use wire::ids::{Side, SlotId};
use wire::link::{ControlKey, LinkSecrets};
use wire::replay::{WIDTH_DEFAULT, Window};
use zeroize::Zeroizing;

use crate::counters::Refusal;

/// Keys, numbers and window of one handshake.
pub(crate) struct Slot {
    pub(crate) id: SlotId,
    pub(crate) made: Duration,
    /// The address that the handshake came from or went to.
    pub(crate) peer: SocketAddr,
    /// Names this handshake in the next one.
    pub(crate) resume: Zeroizing<[u8; 32]>,
    seal: ControlKey,
    open: ControlKey,
    sent: u64,
    window: Window,
}

impl Slot {
    pub(crate) fn new(id: SlotId, side: Side, peer: SocketAddr, now: Duration, secrets: &LinkSecrets) -> Slot {
        let (seal, open) = match side {
            Side::Up => (&secrets.control_r2i, &secrets.control_i2r),
            Side::Down => (&secrets.control_i2r, &secrets.control_r2i),
        };
        Slot {
            id,
            made: now,
            peer,
            resume: secrets.resume.clone(),
            seal: ControlKey::new(seal),
            open: ControlKey::new(open),
            sent: 0,
            window: Window::new(0, WIDTH_DEFAULT),
        }
    }

    /// Seals a cell under the next number. Nothing once the numbers are used up.
    pub(crate) fn seal(
        &mut self,
        kind: Kind,
        channel: u32,
        sub: u8,
        class: Class,
        content: &[u8],
    ) -> Option<(Header, Vec<u8>)> {
        if self.sent >= SEQ_END {
            return None;
        }
        let header = Header { channel, seq: self.sent, sub, kind, class };
        self.sent += 1;
        let mut body = Vec::with_capacity(content.len() + wire::cell::TAG_LEN);
        body.extend_from_slice(content);
        body.extend_from_slice(&[0; wire::cell::TAG_LEN]);
        self.seal.seal(&header, &mut body);
        Some((header, body))
    }

    /// Opens a cell; its number is marked only if it is authentic.
    pub(crate) fn open<'a>(&mut self, header: &Header, body: &'a mut [u8]) -> Result<&'a mut [u8], Refusal> {
        self.window.accept(header.seq).map_err(|_| Refusal::CellReplayed)?;
        let content = self.open.open(header, body).ok_or(Refusal::CellForged)?;
        self.window.mark_seen(header.seq).map_err(|_| Refusal::CellReplayed)?;
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_whose_numbers_are_used_up_seals_nothing() {
        let secrets = LinkSecrets::derive(&[1; 32], &[2; 32], &[3; 32], &[4; 32]);
        let mut slot = Slot::new(SlotId(0), Side::Down, ([192, 0, 2, 1], 1).into(), Duration::ZERO, &secrets);
        slot.sent = SEQ_END - 1;
        let mut seal = || slot.seal(Kind::Link, 0, 0, Class::S, &[0; 8]).map(|(header, _)| header.seq);
        assert_eq!((seal(), seal(), seal()), (Some(SEQ_END - 1), None, None));
    }
}
