//! Memory for buffers: one mapping for the life of the process, populated at the start, so that no cell waits for a
//! page fault. Also pages of 2 MB, for buffers and other memory.
//!
//! ```text
//! mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)   zeros
//! madvise(at, len, MADV_HUGEPAGE)         pages of 2 MB, where the system gives them
//! madvise(at, len, MADV_POPULATE_WRITE)   now; before Linux 5.14 page by page as they are touched
//! ```

use std::mem::MaybeUninit;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

use wire::cell::MAX_CELL_LEN;

/// Storage of one cell.
#[repr(C, align(64))]
pub struct Buffer([u8; MAX_CELL_LEN]);

impl Buffer {
    /// All of its bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8; MAX_CELL_LEN] {
        &self.0
    }

    /// All of its bytes, writable.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8; MAX_CELL_LEN] {
        &mut self.0
    }
}

/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;
/// Debug builds leave pages until they are touched: a test process makes hundreds of arenas, uses little of each, and
/// cannot give one back.
const POPULATE: bool = !cfg!(debug_assertions);

/// `count` zeroed buffers; on huge pages if `huge` is set and the system has them.
///
/// # Panics
/// Without memory for them.
pub(crate) fn arena(count: usize, huge: bool) -> &'static mut [Buffer] {
    if count == 0 {
        return &mut [];
    }
    let len = count * size_of::<Buffer>();
    // SAFETY: a new private mapping at an address of the kernel's choice overlaps nothing.
    let at = unsafe {
        mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
            .expect("memory for buffers")
    };
    let advices = [huge.then_some(Advice::LinuxHugepage), POPULATE.then_some(Advice::LinuxPopulateWrite)];
    for advice in advices.into_iter().flatten() {
        // SAFETY: the range is the mapping just made; both change how it is backed, never what it holds.
        // An error is ignored: buffers then have ordinary pages, or get pages at their first use. Kernels before 5.14
        // do not know the second advice, and an operator cannot do anything about that. Without memory, the node is
        // ended by the kernel sooner or later, whether it was populated or not.
        let _ = unsafe { madvise(at, len, advice) };
    }
    // SAFETY: the mapping is page-aligned, which is more than a buffer wants, `len` bytes long, zeroed, owned by
    // nobody else and never unmapped; a buffer is bytes, for which zeros are valid.
    unsafe { std::slice::from_raw_parts_mut(at.cast::<Buffer>(), count) }
}

/// Asks for pages of 2 MB under memory that was not touched yet, where a whole one lies in it; changes nothing that can
/// be read there.
pub(crate) fn on_huge_pages<T>(memory: &mut [MaybeUninit<T>]) {
    let (start, len) = (memory.as_ptr().addr(), size_of_val(memory));
    let skip = start.next_multiple_of(HUGE_PAGE) - start;
    let whole = len.saturating_sub(skip) / HUGE_PAGE * HUGE_PAGE;
    if whole > 0 {
        let at = memory.as_mut_ptr().cast::<u8>().wrapping_add(skip);
        // SAFETY: the range lies within the slice; the advice changes how it is backed, never what it holds. An error
        // means ordinary pages.
        let _ = unsafe { madvise(at.cast(), whole, Advice::LinuxHugepage) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zeros_apart_and_writable() {
        for huge in [false, true] {
            let buffers = arena(1500, huge);
            buffers[1499].bytes_mut().fill(1);
            assert!(buffers[..1499].iter().all(|buffer| buffer.bytes().iter().all(|byte| *byte == 0)));
            assert_eq!(buffers.as_ptr().addr() % 64, 0);
        }
        assert!(arena(0, false).is_empty());
    }
}
