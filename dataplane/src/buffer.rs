//! Storage for cells: buffers from one arena, allocated at start.
//!
//! A buffer is bytes only, 1472 of them: the longest cell, 23 cache lines. Whoever holds the
//! `&'static mut` owns it; there is no reference count and no lock. What is known about its contents
//! is in the type of the [`Cell`] around it and in the side arrays of its batch.

use std::marker::PhantomData;

use wire::cell::{Block, HEADER_LEN};

use crate::sys;
pub use crate::sys::Buffer;

/// Cells that are prefetched before the one that a stage works on.
pub(crate) const PREFETCHED: usize = 4;

/// The free buffers of a node.
///
/// At rest, free + pooled + queued = total, which is part of the ledger's test.
pub struct FreeList {
    buffers: Vec<&'static mut Buffer>,
    total: usize,
}

impl FreeList {
    /// Allocates `total` buffers for the life of the process.
    pub fn new(total: usize) -> FreeList {
        FreeList::on(total, false)
    }

    /// The same, on huge pages if `hugepages` is set and the system has them.
    pub fn on(total: usize, hugepages: bool) -> FreeList {
        FreeList { buffers: sys::arena(total, hugepages).iter_mut().collect(), total }
    }

    /// Takes a buffer, if one is free.
    pub fn take(&mut self) -> Option<&'static mut Buffer> {
        self.buffers.pop()
    }

    pub fn give(&mut self, buffer: &'static mut Buffer) {
        debug_assert!(self.buffers.len() < self.total);
        self.buffers.push(buffer);
    }

    /// `buffers` buffers go to another core, full or empty; they were taken before.
    pub(crate) fn part_with(&mut self, buffers: usize) {
        self.total -= buffers;
    }

    /// `buffers` buffers come from another core; they are given, or kept full, afterwards.
    pub fn adopt(&mut self, buffers: usize) {
        self.total += buffers;
    }

    /// Number of free buffers.
    pub fn free(&self) -> usize {
        self.buffers.len()
    }

    /// All buffers there are.
    pub fn total(&self) -> usize {
        self.total
    }
}

/// A cell as it is on the wire. Only its length is known.
pub enum Sealed {}
/// A cell whose layer was removed or added. It has passed every check and may be pooled.
pub enum Opened {}

/// An exclusive reference to a buffer whose contents are in state `S`.
///
/// A sealed cell cannot be pooled and an opened one cannot be sent:
///
/// ```
/// use dataplane::buffer::{Cell, FreeList, Opened, Sealed};
/// fn pool(_: Cell<Opened>) {}
/// let cell: Cell<Sealed> = Cell::new(FreeList::new(1).take().unwrap());
/// pool(cell.opened());
/// ```
///
/// ```compile_fail
/// use dataplane::buffer::{Cell, FreeList, Opened, Sealed};
/// fn pool(_: Cell<Opened>) {}
/// let cell: Cell<Sealed> = Cell::new(FreeList::new(1).take().unwrap());
/// pool(cell);
/// ```
pub struct Cell<S> {
    buffer: &'static mut Buffer,
    state: PhantomData<S>,
}

impl<S> Cell<S> {
    /// The header block in its present state.
    pub fn header(&self) -> &Block {
        self.buffer.bytes().first_chunk::<HEADER_LEN>().expect("a buffer is longer than a header")
    }

    /// The first `len` bytes of the cell.
    pub fn bytes(&self, len: usize) -> &[u8] {
        &self.buffer.bytes()[..len]
    }

    /// The first `len` bytes of the cell, writable.
    pub fn bytes_mut(&mut self, len: usize) -> &mut [u8] {
        &mut self.buffer.bytes_mut()[..len]
    }

    /// `len` bytes of body, writable.
    pub fn body_mut(&mut self, len: usize) -> &mut [u8] {
        &mut self.buffer.bytes_mut()[HEADER_LEN..HEADER_LEN + len]
    }

    /// Has its first `len` bytes on their way to the cache.
    pub(crate) fn prefetch(&self, len: usize) {
        sys::prefetch_lines(self.buffer.bytes().as_ptr(), len);
    }

    /// Gives up the contents.
    pub fn into_buffer(self) -> &'static mut Buffer {
        self.buffer
    }
}

impl Cell<Sealed> {
    /// A buffer that was just received into.
    pub fn new(buffer: &'static mut Buffer) -> Self {
        Cell { buffer, state: PhantomData }
    }

    /// Every check of this hop has passed and its layer is off (or, backward, on).
    pub fn opened(self) -> Cell<Opened> {
        Cell { buffer: self.buffer, state: PhantomData }
    }
}

impl Cell<Opened> {
    /// A buffer that this node fills itself: an injected cell, or one of its applications'.
    pub fn own(buffer: &'static mut Buffer) -> Self {
        Cell { buffer, state: PhantomData }
    }

    /// Ready for the wire under an enciphered header.
    pub fn seal(self, header: &Block) -> Cell<Sealed> {
        self.buffer.bytes_mut()[..HEADER_LEN].copy_from_slice(header);
        Cell { buffer: self.buffer, state: PhantomData }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_23_cache_lines() {
        assert_eq!(size_of::<Buffer>(), 23 * 64);
        assert_eq!(align_of::<Buffer>(), 64);
    }

    #[test]
    fn what_is_taken_can_be_given_back_and_no_more() {
        let mut free = FreeList::new(2);
        let (a, b) = (free.take().unwrap(), free.take().unwrap());
        assert!(free.take().is_none());
        free.give(a);
        free.give(b);
        assert_eq!((free.free(), free.total()), (2, 2));
    }
}
