//! The one file with `unsafe`: device memory that several workers read and write at once.
//!
//! Kernels race by design, as on a GPU. Every access is a relaxed atomic of its own size at its
//! natural alignment, so that a race gives some value and nothing worse. Accesses of different
//! sizes to the same bytes are outside of what Rust's model describes; on x86-64 and aarch64 they
//! are what the processor does with them.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

#[cfg(target_endian = "big")]
compile_error!("device memory is little-endian, and so must the processor be");

/// Bytes of a cache line: a row of lanes begins at one.
const LINE: usize = 64;

/// Zeroed memory of a fixed size.
pub(crate) struct Bytes {
    /// Where it begins: a multiple of [`LINE`].
    at: NonNull<u8>,
    allocated: NonNull<u8>,
    len: usize,
    layout: Layout,
}

// SAFETY: the memory is owned and only reached through atomics.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({})", self.len)
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.allocated.as_ptr(), self.layout) }
    }
}

/// An integer with an atomic of the same size.
pub(crate) trait Word: Copy + Eq {
    /// That atomic.
    type Atomic;
    /// Relaxed.
    fn load(a: &Self::Atomic) -> Self;
    /// Relaxed.
    fn store(a: &Self::Atomic, v: Self);
    /// The low bits.
    fn low(v: u64) -> Self;
    /// The value, zeros above.
    fn wide(self) -> u64;
    /// Replaces `old` by `new`, or says what is there instead.
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
                // Pairs with the same exchange of other workers: what a lane wrote before it is seen after it.
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
        // Room to begin at a line: for a larger alignment the system's allocator would write the zeros itself,
        // where for this one large memory comes as pages that cost nothing until they are used.
        let size = len.checked_add(LINE)?.checked_next_multiple_of(16)?;
        let layout = Layout::from_size_align(size, 16).ok()?;
        // SAFETY: the size is not zero.
        let allocated = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let skip = allocated.as_ptr().addr().wrapping_neg() % LINE;
        // SAFETY: `skip` is less than a line, which the size has beyond `len`.
        let at = unsafe { allocated.add(skip) };
        Some(Self {
            at,
            allocated,
            len,
            layout,
        })
    }

    pub(crate) fn len(&self) -> u64 {
        self.len as u64
    }

    /// `count` consecutive values from byte `at`; none if they do not lie inside, aligned.
    #[inline(always)]
    fn atomics<T: Word>(&self, at: u64, count: usize) -> Option<&[T::Atomic]> {
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

    /// 32 values that lie one behind the other.
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

    /// A value from each of 32 places; none if one does not lie inside, aligned.
    #[inline(always)]
    pub(crate) fn gather<T: Word + Default>(&self, at: &[u64; 32]) -> Option<[T; 32]> {
        let size = size_of::<T>();
        let all = self.atomics::<T>(0, self.len / size)?;
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

    /// Replaces a value by `f` of it in one step; gives the old one.
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

    /// Copies out; the range must lie inside.
    pub(crate) fn read(&self, at: u64, out: &mut [u8]) -> Option<()> {
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

    /// Copies in; the range must lie inside.
    pub(crate) fn write(&self, at: u64, data: &[u8]) -> Option<()> {
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
        let b = Bytes::zeroed(10).unwrap();
        assert_eq!(b.load::<u32>(4), Some(0));
        assert_eq!(b.load::<u32>(8), None);
        assert_eq!(b.load::<u32>(2), None);
        assert_eq!(b.load::<u8>(u64::MAX), None);
        assert_eq!(b.store(9, 1u8), Some(()));
        assert_eq!(b.store(10, 1u8), None);
        assert!(b.load_row::<u8>(0, &mut [0; 32]).is_none());
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
