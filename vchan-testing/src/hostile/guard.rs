#![allow(unsafe_code)]
//! Inaccessible pages right before and after the memory that the peer shares with us, so that an
//! access beyond it ends the program.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use vchan::layout::PAGE;
use vchan::shm::Region;
use vchan::testing::RawRegion;

/// One page without access, for as long as this lives.
#[derive(Debug)]
pub(super) struct Guard(NonNull<c_void>);

// SAFETY: the address is only used to unmap, once.
unsafe impl Send for Guard {}

impl Guard {
    /// Guards both sides of `region`, unless something else is mapped there already.
    pub(super) fn around(region: &Region) -> Vec<Self> {
        let start = region.start().as_ptr().addr();
        let end = start + region.len().next_multiple_of(PAGE);
        let before = start - start % PAGE - PAGE;
        [before, end].into_iter().filter_map(Self::at).collect()
    }

    fn at(address: usize) -> Option<Self> {
        // SAFETY: `MAP_FIXED_NOREPLACE` replaces no mapping, and nothing points into a free page.
        let mapped = unsafe {
            mmap_anonymous(
                NonZeroUsize::new(address),
                NonZeroUsize::new(PAGE)?,
                ProtFlags::PROT_NONE,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE,
            )
        };
        let guard = Self(mapped.ok()?);
        // Kernels before 4.17 take the address as a hint.
        (guard.0.as_ptr().addr() == address).then_some(guard)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // SAFETY: the page was mapped by `at`, and nothing can refer to it.
        let _ = unsafe { munmap(self.0, PAGE) };
    }
}
