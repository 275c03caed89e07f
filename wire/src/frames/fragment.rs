//! Splits a datagram that is too long for one cell (SPEC 3.11).

use std::iter::FusedIterator;

use super::Frame;

/// Bytes of a DGRAM frame before its data.
pub const DGRAM_OVERHEAD: usize = 5;
/// Bytes of a FRAG frame before its data.
pub const FRAG_OVERHEAD: usize = 8;
/// Most fragments of one datagram.
pub const FRAGMENTS_MAX: usize = 8;

/// Length of the longest datagram that one cell with this payload carries.
pub const fn max_single_cell_len(payload: usize) -> usize {
    payload - DGRAM_OVERHEAD
}

/// Length of the longest datagram that cells with this payload carry, in [`FRAGMENTS_MAX`] fragments.
pub const fn max_datagram_len(payload: usize) -> usize {
    FRAGMENTS_MAX * (payload - FRAG_OVERHEAD)
}

/// Number of cells with this payload that a datagram of `len` bytes takes: 1 if it fits in one DGRAM.
/// None if it is longer than [`max_datagram_len`].
pub const fn fragment_count(payload: usize, len: usize) -> Option<usize> {
    if len <= max_single_cell_len(payload) {
        return Some(1);
    }
    let count = len.div_ceil(payload - FRAG_OVERHEAD);
    if count <= FRAGMENTS_MAX { Some(count) } else { None }
}

/// The frames of a datagram: one DGRAM, or 2 to 8 FRAGs. Each FRAG except the last carries P - 8 bytes
/// and fills a cell. Empty if the datagram is longer than [`max_datagram_len`].
pub fn split<'a>(payload: usize, flow: u16, id: u16, data: &'a [u8]) -> Split<'a> {
    Split { payload, flow, id, data, index: 0, count: fragment_count(payload, data.len()).unwrap_or(0) }
}

/// Iterator of [`split`].
#[derive(Clone, Debug)]
pub struct Split<'a> {
    payload: usize,
    flow: u16,
    id: u16,
    /// Bytes that are not handed out yet.
    data: &'a [u8],
    index: usize,
    count: usize,
}

impl<'a> Iterator for Split<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        if self.index == self.count {
            return None;
        }
        let (flow, id, index) = (self.flow, self.id, self.index);
        self.index += 1;
        if self.count == 1 {
            return Some(Frame::Dgram { flow, data: self.data });
        }
        let (data, rest) = self.data.split_at(self.data.len().min(self.payload - FRAG_OVERHEAD));
        self.data = rest;
        Some(Frame::Frag { flow, id, index: index as u8, last: self.index == self.count, data })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count - self.index, Some(self.count - self.index))
    }
}

impl ExactSizeIterator for Split<'_> {}
impl FusedIterator for Split<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Class;
    use proptest::prelude::*;

    #[test]
    fn datagram_splits_where_the_specification_says() {
        for class in [Class::S, Class::M, Class::L] {
            let p = class.payload();
            assert_eq!(fragment_count(p, 0), Some(1));
            assert_eq!(fragment_count(p, p - 5), Some(1));
            assert_eq!(fragment_count(p, p - 4), Some(2));
            assert_eq!(fragment_count(p, 2 * (p - 8)), Some(2));
            assert_eq!(fragment_count(p, 2 * (p - 8) + 1), Some(3));
            assert_eq!(fragment_count(p, 8 * (p - 8)), Some(8));
            assert_eq!(fragment_count(p, 8 * (p - 8) + 1), None);
            let data = vec![1; 8 * (p - 8) + 1];
            assert_eq!(split(p, 0, 0, &data).count(), 0);
            let frames: Vec<_> = split(p, 0, 0, &data[1..]).collect();
            assert_eq!(frames.len(), 8);
            assert!(frames.iter().all(|frame| frame.len() == p), "each fills a cell");
        }
    }

    proptest! {
        #[test]
        fn fragment_count_matches_the_split(
            p in prop::sample::select(vec![208usize, 1152, 1328]),
            len in 0usize..11_000,
        ) {
            let data = vec![7; len];
            let frames: Vec<_> = split(p, 3, 4, &data).collect();
            prop_assert_eq!(frames.len(), fragment_count(p, len).unwrap_or(0));
            prop_assert!(frames.iter().all(|frame| frame.len() <= p));
        }
    }
}
