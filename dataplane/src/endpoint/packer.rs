//! Filling cells with frames, at the entry and the exit.
//!
//! One cell per channel is under construction during a turn: datagrams of a channel that wait together
//! share it. At the end of the turn all are finished, so nothing waits for company here.

use hashbrown::HashMap;
use wire::frames::{Frame, Writer, Written};
use wire::ids::ChannelIndex;

use crate::buffer::{Cell, FreeList, Opened};
use crate::ledger::DropReason;

/// A cell whose inside is being written.
struct Building {
    channel: ChannelIndex,
    cell: Cell<Opened>,
    written: Written,
}

/// Cells under construction and cells done, in the order in which their channels must send them.
pub struct Packer {
    payload: usize,
    cells: Vec<Building>,
    /// The channel's last cell, as an index into `cells`.
    last: HashMap<ChannelIndex, usize, foldhash::fast::RandomState>,
}

impl Packer {
    /// For cells of `payload` inner bytes.
    pub fn new(payload: usize) -> Packer {
        Packer { payload, cells: Vec::with_capacity(256), last: HashMap::default() }
    }

    /// Appends a frame to the channel's cell, or to a new one.
    ///
    /// # Errors
    /// No buffer is free, or the frame fits no cell.
    pub fn put(&mut self, channel: ChannelIndex, frame: &Frame<'_>, free: &mut FreeList) -> Result<(), DropReason> {
        if let Some(&at) = self.last.get(&channel) {
            let building = &mut self.cells[at];
            let mut writer = Writer::resume(building.cell.body_mut(self.payload), building.written);
            if writer.put(frame) {
                building.written = writer.written();
                return Ok(());
            }
        }
        let mut cell = Cell::own(free.take().ok_or(DropReason::NoBuffer)?);
        let mut writer = Writer::new(cell.body_mut(self.payload));
        if !writer.put(frame) {
            free.give(cell.into_buffer());
            return Err(DropReason::TooLarge);
        }
        let written = writer.written();
        self.last.insert(channel, self.cells.len());
        self.cells.push(Building { channel, cell, written });
        Ok(())
    }

    /// Pads all cells and hands them over in order, each with its channel.
    pub fn finish(&mut self) -> impl Iterator<Item = (ChannelIndex, Cell<Opened>)> {
        self.last.clear();
        let payload = self.payload;
        self.cells.drain(..).map(move |mut building| {
            Writer::resume(building.cell.body_mut(payload), building.written).finish();
            (building.channel, building.cell)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::cell::Direction;
    use wire::frames::parse;

    #[test]
    fn datagrams_of_a_channel_share_cells_and_keep_their_order() {
        let mut free = FreeList::new(8);
        let mut packer = Packer::new(208);
        for i in 0..6u8 {
            for channel in [3, 4] {
                let frame = Frame::Dgram { flow: u16::from(i), data: &[i; 60] };
                packer.put(ChannelIndex(channel), &frame, &mut free).unwrap();
            }
        }
        let too_large = Frame::Dgram { flow: 1, data: &[0; 204] };
        assert_eq!(packer.put(ChannelIndex(3), &too_large, &mut free), Err(DropReason::TooLarge));
        let mut cells: Vec<_> = packer.finish().collect();
        assert_eq!(cells.len(), 4, "three datagrams of 65 bytes to a cell");
        for channel in [3, 4] {
            let flows: Vec<u16> = cells
                .iter_mut()
                .filter(|(of, _)| *of == ChannelIndex(channel))
                .flat_map(|(_, cell)| {
                    parse(cell.body_mut(208), Direction::Forward)
                        .unwrap()
                        .map(|frame| match frame {
                            Frame::Dgram { flow, .. } => flow,
                            other => panic!("{other:?}"),
                        })
                        .collect::<Vec<_>>()
                })
                .collect();
            assert_eq!(flows, [0, 1, 2, 3, 4, 5]);
        }
    }
}
