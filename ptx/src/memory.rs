//! The one file with `unsafe`: device memory that several workers read and write at once, and memory of the
//! program's that kernels reach, which other processes may write.
//!
//! Kernels race by design, as on a GPU. Every access is a relaxed atomic of its own size at its
//! natural alignment, so that a race gives some value and nothing worse. Accesses of different
//! sizes to the same bytes are outside of Rust's memory model; on x86-64 and aarch64 they behave as
//! the processor defines.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize};

use crate::error::{Error, invalid};

#[cfg(target_endian = "big")]
compile_error!("device memory is little-endian, and so must the processor be");

/// Bytes of a cache line: a row of lanes begins at one.
const LINE: usize = 64;

/// Bytes that are fetched from the system at once.
const CHUNK: usize = 64 << 10;
/// Bytes of a page of the system, or a part of one.
const PAGE: usize = 4096;

/// Zeroed memory of a fixed size.
///
/// The system allocates pages when they are first written, which takes a thousand times as long as
/// any access. So no access does that implicitly: each fails until [`Self::fetch`] was called for
/// its chunk, and the caller accounts for that cost.
pub(crate) struct Bytes {
    /// The first byte, aligned to [`LINE`].
    at: NonNull<u8>,
    len: usize,
    owner: Owner,
    /// The chunks that have been fetched, and the number that have not. A stale value only costs
    /// time, so all accesses are relaxed.
    fetched: Box<[AtomicBool]>,
    missing: AtomicUsize,
}

/// The owner of the memory.
enum Owner {
    /// It was allocated here.
    Allocated(NonNull<u8>, Layout),
    /// It is another's, which keeps it while this lives.
    Host(#[expect(dead_code, reason = "it only has to live")] Keeper),
}

/// Keeps memory of the program's mapped.
type Keeper = Arc<dyn Any + Send + Sync>;

// SAFETY: the memory is owned, or kept by a value that may be shared, and only reached through atomics.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.len)
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Owner::Allocated(allocated, layout) = self.owner {
            // SAFETY: allocated in `zeroed` with this layout.
            unsafe { dealloc(allocated.as_ptr(), layout) }
        }
    }
}

/// Memory of the program's that kernels are to reach ([`Device::register`](crate::Device::register)). Others may
/// change it at any time, other processes included: like all memory of a device it is only reached through atomics.
#[derive(Clone)]
pub struct HostMemory {
    at: NonNull<u8>,
    len: usize,
    keeper: Keeper,
}

// SAFETY: the pointer is only used where `Bytes` uses it.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostMemory({} bytes at {:p})", self.len, self.at)
    }
}

impl HostMemory {
    /// `len` bytes from `at` on.
    ///
    /// # Errors
    ///
    /// 1 if `at` is not a multiple of 64, or there is not one byte.
    ///
    /// # Safety
    ///
    /// While `keeper` or a clone of it lives, the bytes are mapped, may be read and written, and stay so whatever
    /// anybody does, and nothing in this process makes a reference to one of them other than to an atomic.
    pub unsafe fn new(at: NonNull<u8>, len: usize, keeper: Keeper) -> Result<Self, Error> {
        if len == 0 || !at.as_ptr().addr().is_multiple_of(LINE) {
            return invalid(format!("{len} bytes of the program's at {at:p}"));
        }
        Ok(Self { at, len, keeper })
    }

    /// The address of the first byte in this process.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.at.as_ptr().addr() as u64
    }

    pub(crate) fn len(&self) -> u64 {
        self.len as u64
    }

    pub(crate) fn bytes(&self) -> Bytes {
        let owner = Owner::Host(Arc::clone(&self.keeper));
        Bytes::new(self.at, self.len, owner)
    }
}

/// An integer with an atomic of the same size.
pub(crate) trait Word: Copy + Eq {
    /// The atomic of the same size.
    type Atomic;
    /// Relaxed.
    fn load(a: &Self::Atomic) -> Self;
    /// Relaxed.
    fn store(a: &Self::Atomic, v: Self);
    /// The low bits.
    fn low(v: u64) -> Self;
    /// The value, zeros above.
    fn wide(self) -> u64;
    /// Replaces `old` by `new`, or returns the present value as the error.
    fn swap_if(a: &Self::Atomic, old: Self, new: Self) -> Result<Self, Self>;
}

macro_rules! words {
    ($($int:ident $atomic:ident)*) => { $(
        impl Word for $int {
            type Atomic = $atomic;
            #[inline(always)]
            fn load(a: &$atomic) -> Self { a.load(Relaxed) }
            #[inline(always)]
            fn store(a: &$atomic, v: Self) { a.store(v, Relaxed); }
            #[inline(always)]
            #[allow(clippy::cast_possible_truncation, reason = "the low bits are meant")]
            fn low(v: u64) -> Self { v as Self }
            #[inline(always)]
            #[allow(clippy::cast_lossless, reason = "of every size")]
            fn wide(self) -> u64 { self as u64 }
            #[inline(always)]
            fn swap_if(a: &$atomic, old: Self, new: Self) -> Result<Self, Self> {
                // Pairs with the same exchange of other workers: writes of a lane before it are
                // visible after it.
                a.compare_exchange_weak(old, new, AcqRel, Acquire)
            }
        }
    )* };
}
words! { u8 AtomicU8 u16 AtomicU16 u32 AtomicU32 u64 AtomicU64 }

impl Bytes {
    /// `len` bytes, all zero. None if there is no memory for them.
    pub(crate) fn zeroed(len: u64) -> Option<Self> {
        let len = usize::try_from(len).ok()?;
        // Room to start at a line: with a larger alignment the system's allocator would write the
        // zeros itself, while with this one large memory arrives as pages that cost nothing until
        // used.
        let size = len.checked_add(LINE)?.checked_next_multiple_of(16)?;
        let layout = Layout::from_size_align(size, 16).ok()?;
        // SAFETY: the size is not zero.
        let allocated = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let skip = allocated.as_ptr().addr().wrapping_neg() % LINE;
        // SAFETY: `skip` is less than a line, which the size has beyond `len`.
        let at = unsafe { allocated.add(skip) };
        Some(Self::new(at, len, Owner::Allocated(allocated, layout)))
    }

    fn new(at: NonNull<u8>, len: usize, owner: Owner) -> Self {
        let chunks = len.div_ceil(CHUNK);
        Self {
            at,
            len,
            owner,
            fetched: (0..chunks).map(|_| AtomicBool::new(false)).collect(),
            missing: AtomicUsize::new(chunks),
        }
    }

    /// The same, all of it fetched.
    pub(crate) fn fetched(len: u64) -> Option<Self> {
        let bytes = Self::zeroed(len)?;
        bytes.fetch_all(0, len);
        Some(bytes)
    }

    /// Whether the bytes at `at` have been fetched, or are outside.
    #[inline(always)]
    pub(crate) fn is_there(&self, at: u64) -> bool {
        self.missing.load(Relaxed) == 0 || self.chunk_is_there(at)
    }

    #[inline(always)]
    fn chunk_is_there(&self, at: u64) -> bool {
        let chunk = usize::try_from(at / CHUNK as u64).unwrap_or(usize::MAX);
        self.fetched.get(chunk).is_none_or(|c| c.load(Relaxed))
    }

    /// Makes the system allocate the pages of the chunk at `at`.
    #[cold]
    pub(crate) fn fetch(&self, at: u64) {
        let Some(start) = usize::try_from(at).ok().filter(|at| *at < self.len) else {
            return;
        };
        let chunk = start / CHUNK;
        let bytes = chunk * CHUNK..self.len.min((chunk + 1) * CHUNK);
        let last = bytes.end - 1;
        for byte in bytes.step_by(PAGE).chain([last]) {
            // SAFETY: `byte` is less than `len`, so inside; the memory is initialised and only reached through
            // atomics.
            let byte = unsafe { &*self.at.as_ptr().add(byte).cast::<AtomicU8>() };
            // Written, not only read: for a read the system maps a page of zeros that the next
            // write replaces. An exchange, because compilers turn other operations that change
            // nothing into reads.
            let _any = byte.compare_exchange(0, 0, Relaxed, Relaxed);
        }
        if !self.fetched[chunk].swap(true, Relaxed) {
            self.missing.fetch_sub(1, Relaxed);
        }
    }

    /// The same for all chunks of a range that have not been fetched.
    pub(crate) fn fetch_all(&self, at: u64, len: u64) {
        if self.missing.load(Relaxed) == 0 {
            return;
        }
        let end = at.saturating_add(len).min(self.len());
        let mut at = at;
        while at < end {
            if !self.chunk_is_there(at) {
                self.fetch(at);
            }
            at = (at / CHUNK as u64 + 1) * CHUNK as u64;
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len as u64
    }

    /// `count` consecutive values from byte `at`, at most as many as a chunk holds; none if they
    /// are not inside, aligned, and fetched.
    #[inline(always)]
    fn atomics<T: Word>(&self, at: u64, count: usize) -> Option<&[T::Atomic]> {
        let last = || at.wrapping_add((size_of::<T>() * (count - 1)) as u64);
        if self.missing.load(Relaxed) != 0
            && !(self.chunk_is_there(at) && self.chunk_is_there(last()))
        {
            return None;
        }
        self.range::<T>(at, count)
    }

    /// `count` consecutive values from byte `at`, whether fetched or not; none if they are not
    /// inside and aligned.
    #[inline(always)]
    fn range<T: Word>(&self, at: u64, count: usize) -> Option<&[T::Atomic]> {
        let size = size_of::<T>();
        let at = usize::try_from(at).ok()?;
        if at % size != 0 || at > self.len || self.len - at < size * count {
            return None;
        }
        // SAFETY: the range was just checked; `self.at` is a multiple of 64, so `at` aligns the atomics, which have
        // the size of their integers; the memory is initialised and lives as long as `self`.
        unsafe {
            Some(std::slice::from_raw_parts(
                self.at.as_ptr().add(at).cast::<T::Atomic>(),
                count,
            ))
        }
    }

    #[inline(always)]
    pub(crate) fn load<T: Word>(&self, at: u64) -> Option<T> {
        self.atomics::<T>(at, 1).map(|a| T::load(&a[0]))
    }

    #[inline(always)]
    pub(crate) fn store<T: Word>(&self, at: u64, v: T) -> Option<()> {
        self.atomics::<T>(at, 1).map(|a| T::store(&a[0], v))
    }

    /// Loads 32 consecutive values.
    #[inline(always)]
    pub(crate) fn load_row<T: Word>(&self, at: u64, out: &mut [T; 32]) -> Option<()> {
        // Two at a time where that is aligned: each of them is still read whole.
        if size_of::<T>() == 4
            && let Some(pairs) = self.atomics::<u64>(at, 16)
        {
            for (v, a) in out.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
                let both = u64::load(a);
                *v = [T::low(both), T::low(both >> 32)];
            }
            return Some(());
        }
        let a = self.atomics::<T>(at, 32)?;
        for (v, a) in out.iter_mut().zip(a) {
            *v = T::load(a);
        }
        Some(())
    }

    #[inline(always)]
    pub(crate) fn store_row<T: Word>(&self, at: u64, v: &[T; 32]) -> Option<()> {
        if size_of::<T>() == 4
            && let Some(pairs) = self.atomics::<u64>(at, 16)
        {
            for (v, a) in v.as_chunks::<2>().0.iter().zip(pairs) {
                u64::store(a, v[0].wide() | v[1].wide() << 32);
            }
            return Some(());
        }
        let a = self.atomics::<T>(at, 32)?;
        for (v, a) in v.iter().zip(a) {
            T::store(a, *v);
        }
        Some(())
    }

    /// A value from each of 32 places; none if one is not inside, aligned and fetched.
    #[inline(always)]
    pub(crate) fn gather<T: Word + Default>(&self, at: &[u64; 32]) -> Option<[T; 32]> {
        let size = size_of::<T>();
        let all = self.range::<T>(0, self.len / size)?;
        if self.missing.load(Relaxed) != 0 && !at.iter().all(|at| self.chunk_is_there(*at)) {
            return None;
        }
        let mut low = 0;
        for at in at {
            low |= at;
        }
        if low & (size as u64 - 1) != 0 {
            return None;
        }
        let mut v = [T::default(); 32];
        let mut inside = true;
        for l in 0..32 {
            match usize::try_from(at[l])
                .ok()
                .and_then(|at| all.get(at / size))
            {
                Some(a) => v[l] = T::load(a),
                None => inside = false,
            }
        }
        inside.then_some(v)
    }

    /// Replaces a value by `f` of it in one step; returns the old one.
    #[inline]
    pub(crate) fn update<T: Word>(&self, at: u64, mut f: impl FnMut(T) -> T) -> Option<T> {
        let a = &self.atomics::<T>(at, 1)?[0];
        let mut old = T::load(a);
        loop {
            match T::swap_if(a, old, f(old)) {
                Ok(old) => return Some(old),
                Err(now) => old = now,
            }
        }
    }

    /// Copies out; the range must be inside. Fetches chunks as needed.
    pub(crate) fn read(&self, at: u64, out: &mut [u8]) -> Option<()> {
        self.fetch_all(at, out.len() as u64);
        let mut bytes = out.iter_mut();
        let mut at = at;
        while !at.is_multiple_of(8) && bytes.len() > 0 {
            *bytes.next()? = self.load(at)?;
            at += 1;
        }
        let mut words = bytes.into_slice().chunks_exact_mut(8);
        for w in &mut words {
            w.copy_from_slice(&self.load::<u64>(at)?.to_le_bytes());
            at += 8;
        }
        for b in words.into_remainder() {
            *b = self.load(at)?;
            at += 1;
        }
        Some(())
    }

    /// Copies in; the range must be inside. Fetches chunks as needed.
    pub(crate) fn write(&self, at: u64, data: &[u8]) -> Option<()> {
        self.fetch_all(at, data.len() as u64);
        let lead = usize::try_from(at.wrapping_neg() % 8).ok()?.min(data.len());
        let (head, rest) = data.split_at(lead);
        let mut at = at;
        for b in head {
            self.store(at, *b)?;
            at += 1;
        }
        let (words, tail) = rest.as_chunks::<8>();
        for w in words {
            self.store(at, u64::from_le_bytes(*w))?;
            at += 8;
        }
        for b in tail {
            self.store(at, *b)?;
            at += 1;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_is_reached() {
        let b = Bytes::fetched(10).unwrap();
        assert_eq!(b.load::<u32>(4), Some(0));
        assert_eq!(b.load::<u32>(8), None);
        assert_eq!(b.load::<u32>(2), None);
        assert_eq!(b.load::<u8>(u64::MAX), None);
        assert_eq!(b.store(9, 1u8), Some(()));
        assert_eq!(b.store(10, 1u8), None);
        assert!(b.load_row::<u8>(0, &mut [0; 32]).is_none());
    }

    #[test]
    fn no_access_makes_pages_by_the_way() {
        let chunk = CHUNK as u64;
        let b = Bytes::zeroed(3 * chunk).unwrap();
        b.fetch(chunk + 5);
        for (at, there) in [
            (0, false),
            (chunk - 4, false),
            (chunk, true),
            (2 * chunk - 4, true),
            (2 * chunk, false),
        ] {
            assert_eq!(b.is_there(at), there, "{at}");
            assert_eq!(b.load::<u32>(at).is_some(), there, "{at}");
            assert_eq!(b.store(at, 7u32).is_some(), there, "{at}");
            assert_eq!(b.update::<u32>(at, |v| v).is_some(), there, "{at}");
            let mut places = [chunk; 32];
            places[7] = at;
            assert_eq!(b.gather::<u32>(&places).is_some(), there, "{at}");
        }
        // Rows whose first or last lanes are in a chunk that has not been fetched.
        for at in [chunk - 64, 2 * chunk - 64] {
            assert!(b.load_row(at, &mut [0u32; 32]).is_none());
            assert!(b.store_row(at, &[1u32; 32]).is_none());
        }
        b.fetch_all(chunk - 1, chunk);
        assert!(b.is_there(0) && b.is_there(2 * chunk - 1) && !b.is_there(2 * chunk));
        b.read(0, &mut vec![0; 3 * CHUNK]).unwrap();
        assert_eq!(b.missing.load(Relaxed), 0);
        assert!(b.load_row(chunk - 64, &mut [0u32; 32]).is_some());
    }

    #[test]
    fn copies_are_whole_at_any_offset() {
        let b = Bytes::zeroed(64).unwrap();
        let data: Vec<u8> = (0..40).collect();
        for at in 0..20 {
            b.write(at, &data).unwrap();
            let mut back = vec![0; 40];
            b.read(at, &mut back).unwrap();
            assert_eq!(back, data);
        }
        assert!(b.write(30, &data).is_none());
    }
}
