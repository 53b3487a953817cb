//! Copies past the processor's caches, for bytes that a device reads next, or that are too many to stay in a cache.
//!
//! An ordinary store first reads the line that it writes to and puts out another one; a non-temporal store does neither.
#![allow(unsafe_code)]

/// `copy_nonoverlapping` with non-temporal stores, where the processor has them. Whoever sees what this thread stores
/// afterwards sees the bytes as well.
///
/// # Safety
/// As of [`copy_nonoverlapping`](std::ptr::copy_nonoverlapping), for `len` bytes.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
pub(super) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(super) use x86_64::copy;

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86_64 {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    use std::ptr;

    const LINE: usize = 64;
    /// Hardware prefetches within a page, each page's lines for themselves.
    const PAGE: usize = 4096;
    /// Pages that are copied side by side: with one alone a processor has too few reads under way.
    const PAGES: usize = 4;

    /// The other one describes it.
    pub(in super::super) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
        let head = to.align_offset(LINE).min(len);
        // SAFETY: each copies bytes of the `len` that no other one does; lines of `to` are aligned from `head` on.
        unsafe {
            ptr::copy_nonoverlapping(from, to, head);
            let mut at = head;
            while len - at >= PAGES * PAGE {
                for line in (at..at + PAGE).step_by(LINE) {
                    for page in 0..PAGES {
                        let at = line + page * PAGE;
                        copy_line(from.add(at), to.add(at));
                    }
                }
                at += PAGES * PAGE;
            }
            while len - at >= LINE {
                copy_line(from.add(at), to.add(at));
                at += LINE;
            }
            ptr::copy_nonoverlapping(from.add(at), to.add(at), len - at);
            // Non-temporal stores are not ordered with others.
            _mm_sfence();
        }
    }

    /// # Safety
    /// `from` may be read and `to` written for [`LINE`] bytes, which do not overlap; `to` is aligned to 16.
    #[inline(always)]
    unsafe fn copy_line(from: *const u8, to: *mut u8) {
        let (from, to) = (from.cast::<__m128i>(), to.cast::<__m128i>());
        // SAFETY: the caller's promise. All reads come first, so that they are under way at once.
        unsafe {
            let parts = [0, 1, 2, 3].map(|part| _mm_loadu_si128(from.add(part)));
            for (part, bytes) in parts.into_iter().enumerate() {
                _mm_stream_si128(to.add(part), bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_byte_is_copied_and_none_beside_them() {
        let from: Vec<u8> = (0..70_000u32).map(|at| (at * 7 % 251) as u8).collect();
        for len in [0, 1, 15, 63, 64, 65, 4095, 16_384, 16_500, 33_000, 65_600] {
            for (from_at, to_at) in [(0, 0), (1, 0), (0, 1), (3, 17), (64, 63)] {
                let mut to = vec![0xee; to_at + len + 100];
                let source = &from[from_at..from_at + len];
                // SAFETY: both have `len` bytes, of different allocations.
                unsafe { super::copy(source.as_ptr(), to[to_at..].as_mut_ptr(), len) };
                assert_eq!(&to[to_at..to_at + len], source, "{len} bytes");
                let beside = to[..to_at].iter().chain(&to[to_at + len..]);
                assert!(beside.copied().all(|byte| byte == 0xee), "{len} bytes");
            }
        }
    }
}
