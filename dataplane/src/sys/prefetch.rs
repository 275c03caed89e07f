//! Hints to the processor that memory is read soon. It may ignore them.

/// Bytes of a cache line.
const LINE: usize = 64;

/// Has the lines of `at` on their way to the first cache.
pub fn prefetch<T>(at: &T) {
    prefetch_lines((&raw const *at).cast(), size_of::<T>());
}

/// Has the lines that hold `len` bytes from `at` on on their way to the first cache. Whatever the address, nothing is
/// read and nothing can fault.
pub(crate) fn prefetch_lines(at: *const u8, len: usize) {
    let skew = at.addr() % LINE;
    for offset in (0..len + skew).step_by(LINE) {
        prefetch_line(at.wrapping_add(offset).wrapping_sub(skew));
    }
}

#[cfg(target_arch = "x86_64")]
fn prefetch_line(at: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: PREFETCHT0 is a hint; it does not fault, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
}

#[cfg(not(target_arch = "x86_64"))]
fn prefetch_line(_at: *const u8) {}
