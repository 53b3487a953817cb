#![allow(unsafe_code)]
//! All access to memory shared with the peer, except [in place](crate::in_place), which follows the
//! same rules.
//!
//! # Why this is sound although the peer may write at any time
//! The peer is another address space: from the compiler's view its stores are those of a device.
//! * No `&[u8]`, `&mut [u8]` or `&u32` to shared memory ever exists; there are only raw pointers,
//!   and references to atomics of the size of the field.
//! * Control fields are read and written as atomics, each named with its partner in
//!   [`notify`](crate::notify). A field is loaded once per decision; the caller works on the copy.
//! * Ring bytes move with `memcpy` between shared memory and a private buffer. Any bit pattern is
//!   a valid byte, so a torn or changing byte is only a wrong byte, which every message of an
//!   untrusted peer may be anyway. A compiler fence after each copy keeps the optimiser from
//!   reading the source a second time instead of the private copy (the double fetch of XSA-155).
//! * Lengths and offsets are our own: checked here against the mapping's length.

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, compiler_fence};

use super::non_temporal;
#[cfg(test)]
use crate::wire::layout::PAGE;

/// A stretch of memory shared with the peer, together with the owner that keeps it mapped.
///
/// A channel copies its bytes as plain memory, so two owners of the same bytes would race in this
/// process: only this crate can copy, divide or share a region.
///
/// ```compile_fail
/// fn copies_at_once(region: &vchan::shm::Region) {
///     region.copy_in(0, b"no");
/// }
/// ```
/// ```compile_fail
/// fn two_owners(region: &vchan::shm::Region) -> vchan::shm::Region {
///     region.clone()
/// }
/// ```
pub struct Region {
    start: NonNull<u8>,
    len: usize,
    writable: bool,
    /// Unmaps when the last region over the mapping is dropped.
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the memory is reached through raw pointers and atomics only and stays mapped while
// `_owner` lives; the module documentation covers concurrent access.
unsafe impl Send for Region {}
// SAFETY: as for `Send`. Two threads of ours never copy to the same bytes: of a channel one half
// reads one ring, the other writes the other; a shared region is written through `&mut` only.
unsafe impl Sync for Region {}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} bytes, writable: {})", self.len, self.writable)
    }
}

impl Region {
    /// Describes `len` bytes of shared memory at `start`, which `owner` keeps mapped.
    ///
    /// # Safety
    /// The bytes must be mapped readable, and writable if `writable`, until the last clone of
    /// `owner` is dropped, and accessing them must not fault (no file that can shrink). No Rust
    /// reference to them may exist anywhere.
    pub unsafe fn new(
        start: NonNull<u8>,
        len: usize,
        writable: bool,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self {
            start,
            len,
            writable,
            _owner: owner,
        }
    }

    /// A part of this region.
    ///
    /// # Panics
    /// If the part does not lie within the region; callers pass offsets they computed themselves.
    #[must_use]
    pub(crate) fn part(&self, offset: usize, len: usize) -> Self {
        self.check(offset, len);
        // SAFETY: `offset` is within the mapping, checked above.
        let start = unsafe { self.start.add(offset) };
        Self {
            start,
            len,
            writable: self.writable,
            _owner: Arc::clone(&self._owner),
        }
    }

    /// Another handle to the same region.
    #[must_use]
    pub(crate) fn share(&self) -> Self {
        self.part(0, self.len)
    }

    /// The same region, made read-only for this side.
    #[must_use]
    pub(crate) fn read_only(mut self) -> Self {
        self.writable = false;
        self
    }

    /// Address of the first byte, for tests that put guards around it.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes in the region.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether this side may write.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Copies `from` into the region at `offset`.
    ///
    /// # Panics
    /// If the bytes do not fit or the region is read-only.
    #[inline]
    pub(crate) fn copy_in(&self, offset: usize, from: &[u8]) {
        self.check(offset, from.len());
        assert!(self.writable, "write to a read-only region");
        // SAFETY: destination checked above; `from` is private, so the two cannot overlap.
        unsafe { copy(from.as_ptr(), self.start.as_ptr().add(offset), from.len()) };
        compiler_fence(Ordering::SeqCst);
    }

    /// Copies bytes of the region, from `offset` on, out into `to`.
    ///
    /// # Panics
    /// If the region does not hold that many.
    #[inline]
    pub(crate) fn copy_out(&self, offset: usize, to: &mut [u8]) {
        self.check(offset, to.len());
        // SAFETY: source checked above; `to` is private, so the two cannot overlap.
        unsafe { copy(self.start.as_ptr().add(offset), to.as_mut_ptr(), to.len()) };
        compiler_fence(Ordering::SeqCst);
    }

    /// Asks for the cache lines of the byte at `offset` and of the one a line further on, which are to be read soon, and
    /// does not wait for them. A hint: beyond the end of the region nothing happens.
    #[inline]
    pub(crate) fn fetch(&self, offset: usize) {
        for at in [offset, offset + LINE] {
            if at < self.len {
                // SAFETY: inside the region, as just checked.
                fetch(unsafe { self.start.add(at) });
            }
        }
    }

    /// [`copy_in`](Self::copy_in) past the processor's caches.
    ///
    /// # Panics
    /// As it does.
    pub(crate) fn copy_in_non_temporal(&self, offset: usize, from: &[u8]) {
        self.check(offset, from.len());
        assert!(self.writable, "write to a read-only region");
        // SAFETY: as in `copy_in`.
        unsafe {
            non_temporal::copy(from.as_ptr(), self.start.as_ptr().add(offset), from.len());
        }
        compiler_fence(Ordering::SeqCst);
    }

    /// [`copy_out`](Self::copy_out) past the processor's caches.
    ///
    /// # Panics
    /// As it does.
    pub(crate) fn copy_out_non_temporal(&self, offset: usize, to: &mut [u8]) {
        self.check(offset, to.len());
        // SAFETY: as in `copy_out`.
        unsafe {
            non_temporal::copy(self.start.as_ptr().add(offset), to.as_mut_ptr(), to.len());
        }
        compiler_fence(Ordering::SeqCst);
    }

    /// Sets the bytes from `offset` on one by one, atomically: for peers in tests.
    ///
    /// # Panics
    /// If the bytes do not fit or the region is read-only.
    pub fn store_bytes(&self, offset: usize, from: &[u8]) {
        self.check(offset, from.len());
        assert!(self.writable, "write to a read-only region");
        for (at, byte) in (offset..).zip(from) {
            // Relaxed: the indexes say which bytes count, not the bytes themselves.
            self.u8_at(at).store(*byte, Ordering::Relaxed);
        }
    }

    /// Reads the bytes from `offset` on one by one, atomically: for peers in tests.
    ///
    /// # Panics
    /// If the region does not hold that many.
    pub fn load_bytes(&self, offset: usize, to: &mut [u8]) {
        self.check(offset, to.len());
        for (at, byte) in (offset..).zip(to) {
            // Relaxed: as in `store_bytes`.
            *byte = self.u8_at(at).load(Ordering::Relaxed);
        }
    }

    /// The address of `len` bytes from `offset` on, for [`in_place`](crate::in_place).
    ///
    /// # Panics
    /// If the region does not hold that many.
    #[inline]
    pub(crate) fn pointer(&self, offset: usize, len: usize) -> NonNull<u8> {
        self.check(offset, len);
        // SAFETY: `offset` is within the mapping, checked above.
        unsafe { self.start.add(offset) }
    }

    /// Sets every byte to 0.
    ///
    /// # Panics
    /// If the region is read-only.
    pub(crate) fn zero(&self) {
        assert!(self.writable, "write to a read-only region");
        // SAFETY: all of the region, which is writable.
        unsafe { std::ptr::write_bytes(self.start.as_ptr(), 0, self.len) };
        compiler_fence(Ordering::SeqCst);
    }

    /// The byte at `at`. A store to a read-only region faults.
    ///
    /// # Panics
    /// If it lies outside the region.
    #[inline]
    pub(crate) fn u8_at(&self, at: usize) -> &AtomicU8 {
        // SAFETY: `address` checks it; the memory outlives `&self` and is only ever accessed
        // atomically or copied bytewise.
        unsafe { AtomicU8::from_ptr(self.address(at)) }
    }

    /// The half word at `at`; as [`u8_at`](Self::u8_at).
    ///
    /// # Panics
    /// If it lies outside the region or is not aligned.
    #[inline]
    pub(crate) fn u16_at(&self, at: usize) -> &AtomicU16 {
        // SAFETY: as for `u8_at`.
        unsafe { AtomicU16::from_ptr(self.address(at)) }
    }

    /// The word at `at`; as [`u8_at`](Self::u8_at).
    ///
    /// # Panics
    /// If it lies outside the region or is not aligned.
    #[inline]
    pub(crate) fn u32_at(&self, at: usize) -> &AtomicU32 {
        // SAFETY: as for `u8_at`.
        unsafe { AtomicU32::from_ptr(self.address(at)) }
    }

    /// The word at `at`; as [`u32_at`](Self::u32_at).
    ///
    /// # Panics
    /// As [`u32_at`](Self::u32_at).
    #[inline]
    pub(crate) fn u64_at(&self, at: usize) -> &AtomicU64 {
        // SAFETY: as for `u8_at`.
        unsafe { AtomicU64::from_ptr(self.address(at)) }
    }

    /// The address of a `T` within the region, aligned for it.
    #[inline]
    fn address<T>(&self, at: usize) -> *mut T {
        self.check(at, size_of::<T>());
        // SAFETY: within the mapping, checked above.
        let word = unsafe { self.start.as_ptr().add(at) }.cast::<T>();
        assert!(word.is_aligned(), "offset {at} is not aligned");
        word
    }

    /// A handle to the word at `offset`, which must be a multiple of 4.
    ///
    /// # Panics
    /// If it is not, or the region does not hold it, or is read-only.
    pub(crate) fn word(&self, offset: usize) -> SharedU32 {
        assert!(self.writable, "a word of a read-only region");
        SharedU32 {
            at: NonNull::from(self.u32_at(offset)),
            _owner: Arc::clone(&self._owner),
        }
    }

    /// A handle to the byte at `offset`.
    ///
    /// # Panics
    /// If the region does not hold it, or is read-only.
    pub(crate) fn byte(&self, offset: usize) -> SharedU8 {
        assert!(self.writable, "a byte of a read-only region");
        SharedU8 {
            at: NonNull::from(self.u8_at(offset)),
            _owner: Arc::clone(&self._owner),
        }
    }

    #[inline]
    fn check(&self, offset: usize, len: usize) {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => {}
            _ => outside(offset, len, self.len),
        }
    }
}

#[cold]
#[inline(never)]
fn outside(offset: usize, len: usize, region: usize) -> ! {
    panic!("{len} bytes at {offset} are outside a region of {region}");
}

/// Copies of up to this many bytes are made inline: a call would cost more than the copy.
const SMALL: usize = 64;

/// Bytes of a cache line; where it has more, one line is asked for twice.
const LINE: usize = 64;

/// Has the processor fetch the line at `at`, where it has an instruction for that.
#[inline(always)]
#[cfg_attr(
    not(all(target_arch = "x86_64", not(miri))),
    allow(unused_variables, reason = "there is no such instruction")
)]
fn fetch(at: NonNull<u8>) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which changes no memory and does not fault at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.as_ptr().cast()) };
    }
}

/// `copy_nonoverlapping` with small copies inline.
///
/// # Safety
/// As of [`copy_nonoverlapping`](std::ptr::copy_nonoverlapping), for `len` bytes.
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    /// Copies the first and the last `size_of::<T>()` of `len` bytes, which overlap in the middle.
    #[inline(always)]
    unsafe fn ends<T>(from: *const u8, to: *mut u8, len: usize) {
        let last = len - size_of::<T>();
        // SAFETY: the caller has checked that a `T` fits; unaligned access is meant.
        unsafe {
            let (head, tail) = (
                from.cast::<T>().read_unaligned(),
                from.add(last).cast::<T>().read_unaligned(),
            );
            to.cast::<T>().write_unaligned(head);
            to.add(last).cast::<T>().write_unaligned(tail);
        }
    }
    // SAFETY: each arm moves bytes of the `len` only.
    unsafe {
        if len > SMALL {
            std::ptr::copy_nonoverlapping(from, to, len);
        } else if len > 32 {
            ends::<[u64; 4]>(from, to, len);
        } else if len >= 16 {
            ends::<[u64; 2]>(from, to, len);
        } else if len >= 8 {
            ends::<u64>(from, to, len);
        } else if len >= 4 {
            ends::<u32>(from, to, len);
        } else if len >= 2 {
            ends::<u16>(from, to, len);
        } else if len == 1 {
            *to = *from;
        }
    }
}
/// A word shared with the peer, and the owner that keeps it mapped.
pub struct SharedU32 {
    at: NonNull<AtomicU32>,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the word is only ever accessed atomically and stays mapped while `_owner` lives.
unsafe impl Send for SharedU32 {}
// SAFETY: as for `Send`.
unsafe impl Sync for SharedU32 {}

impl Deref for SharedU32 {
    type Target = AtomicU32;

    #[inline(always)]
    fn deref(&self) -> &AtomicU32 {
        // SAFETY: aligned and mapped, checked by `Region::word`; never accessed but atomically.
        unsafe { self.at.as_ref() }
    }
}

impl fmt::Debug for SharedU32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// A byte shared with the peer, and the owner that keeps it mapped.
pub struct SharedU8 {
    at: NonNull<AtomicU8>,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the byte is only ever accessed atomically and stays mapped while `_owner` lives.
unsafe impl Send for SharedU8 {}
// SAFETY: as for `Send`.
unsafe impl Sync for SharedU8 {}

impl Deref for SharedU8 {
    type Target = AtomicU8;

    #[inline(always)]
    fn deref(&self) -> &AtomicU8 {
        // SAFETY: mapped, checked by `Region::byte`; never accessed but atomically.
        unsafe { self.at.as_ref() }
    }
}

impl fmt::Debug for SharedU8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Private zeroed memory in place of shared memory, for tests of its contents.
#[cfg(test)]
pub(crate) fn test_region(pages: usize) -> Region {
    use std::alloc::{Layout, alloc_zeroed, dealloc};

    struct Heap(NonNull<u8>, Layout);
    // SAFETY: the address is only used to free the memory, once.
    unsafe impl Send for Heap {}
    // SAFETY: as above.
    unsafe impl Sync for Heap {}
    impl Drop for Heap {
        fn drop(&mut self) {
            // SAFETY: allocated below with this layout; the regions over it are gone.
            unsafe { dealloc(self.0.as_ptr(), self.1) };
        }
    }

    let layout = Layout::from_size_align(pages * PAGE, PAGE).unwrap();
    // SAFETY: the layout is not empty: tests ask for a page at least.
    let start = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap();
    // SAFETY: allocated above, readable and writable until `Heap` drops.
    unsafe { Region::new(start, layout.size(), true, Arc::new(Heap(start, layout))) }
}
