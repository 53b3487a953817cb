#![allow(unsafe_code)]
//! One unbroken stretch of shared memory, lent by a [`Region`].
//!
//! The rules are those of [`shm`](crate::shm): no Rust reference to the bytes ever exists; they
//! are moved by copies to and from private memory, or by the kernel, which is as indifferent to a
//! peer's changes as a device. Offsets and lengths are checked here.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::wire::shm::Region;

/// Bytes of a word.
pub(super) const WORD: usize = size_of::<u64>();
/// Bytes of words that are moved together: as many as a processor's vector registers hold. The
/// private copy of a block then need not touch memory, and the optimiser may use vectors, which it
/// does not with atomics.
const BLOCK: usize = 16 * WORD;

/// A stretch to read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretch<'a> {
    start: NonNull<u8>,
    len: usize,
    memory: PhantomData<&'a Region>,
}

/// A stretch to fill. Its creator guarantees, by a `&mut` of the ring's writing half, that it is
/// the only one over its bytes.
#[derive(Debug)]
pub(super) struct StretchMut<'a> {
    start: NonNull<u8>,
    len: usize,
    memory: PhantomData<&'a mut Region>,
}

// SAFETY: the bytes stay mapped for 'a and may be read by any number of threads; that the peer
// writes meanwhile is covered by the module's documentation.
unsafe impl Send for Stretch<'_> {}
// SAFETY: as for `Send`.
unsafe impl Sync for Stretch<'_> {}
// SAFETY: the bytes stay mapped for 'a, and no other thread of ours has a way to them.
unsafe impl Send for StretchMut<'_> {}
// SAFETY: a shared `StretchMut` gives no access at all.
unsafe impl Sync for StretchMut<'_> {}

impl<'a> Stretch<'a> {
    /// Lends `len` bytes from `offset` on.
    ///
    /// # Panics
    /// If the region does not hold that many.
    pub(super) fn new(region: &'a Region, offset: usize, len: usize) -> Self {
        Self {
            start: region.pointer(offset, len),
            len,
            memory: PhantomData,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// A part of it.
    ///
    /// # Panics
    /// If the part does not lie within, here and below.
    pub(super) fn part(&self, offset: usize, len: usize) -> Self {
        check(self.len, offset, len);
        Self {
            // SAFETY: within the stretch, checked above.
            start: unsafe { self.start.add(offset) },
            len,
            memory: PhantomData,
        }
    }

    pub(super) fn as_ptr(&self) -> *const [u8] {
        std::ptr::slice_from_raw_parts(self.start.as_ptr(), self.len)
    }

    /// Copies bytes from `offset` on out into `to`.
    #[inline]
    pub(super) fn copy_to(&self, offset: usize, to: &mut [u8]) {
        check(self.len, offset, to.len());
        // SAFETY: source checked above; `to` is private, so the two cannot overlap.
        unsafe {
            let from = self.start.as_ptr().add(offset);
            std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len());
        }
        // The optimiser must not read the source again instead of the copy.
        compiler_fence(Ordering::SeqCst);
    }

    /// Calls `f` with each whole word of the stretch, each read once.
    #[inline]
    pub(super) fn for_each_word(&self, f: &mut impl FnMut(u64)) {
        let blocks = self.len / BLOCK;
        for i in 0..blocks {
            let mut block = [0; BLOCK];
            self.copy_to(i * BLOCK, &mut block);
            words(&block).for_each(&mut *f);
        }
        let mut block = [0; BLOCK];
        let rest = &mut block[..(self.len % BLOCK) / WORD * WORD];
        self.copy_to(blocks * BLOCK, rest);
        words(rest).for_each(f);
    }

    fn iovec(&self) -> libc::iovec {
        libc::iovec {
            iov_base: self.start.as_ptr().cast(),
            iov_len: self.len,
        }
    }
}

impl<'a> StretchMut<'a> {
    /// Lends `len` bytes from `offset` on.
    ///
    /// # Panics
    /// If the region does not hold that many or is read-only.
    pub(super) fn new(region: &'a Region, offset: usize, len: usize) -> Self {
        assert!(region.is_writable(), "room in a read-only region");
        Self {
            start: region.pointer(offset, len),
            len,
            memory: PhantomData,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// A part of it.
    ///
    /// # Panics
    /// If the part does not lie within, here and below.
    pub(super) fn into_part(self, offset: usize, len: usize) -> Self {
        check(self.len, offset, len);
        Self {
            // SAFETY: within the stretch, checked above.
            start: unsafe { self.start.add(offset) },
            len,
            memory: PhantomData,
        }
    }

    /// The same bytes for a shorter time.
    pub(super) fn reborrow(&mut self) -> StretchMut<'_> {
        StretchMut {
            start: self.start,
            len: self.len,
            memory: PhantomData,
        }
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut [u8] {
        std::ptr::slice_from_raw_parts_mut(self.start.as_ptr(), self.len)
    }

    /// Copies `from` to `offset`.
    #[inline]
    pub(super) fn copy_from(&mut self, offset: usize, from: &[u8]) {
        check(self.len, offset, from.len());
        // SAFETY: destination checked above; `from` is private, so the two cannot overlap.
        unsafe {
            let to = self.start.as_ptr().add(offset);
            std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len());
        }
        compiler_fence(Ordering::SeqCst);
    }

    /// Copies all of `from` to `offset`; both may change meanwhile.
    #[inline]
    pub(super) fn copy_from_stretch(&mut self, offset: usize, from: &Stretch<'_>) {
        check(self.len, offset, from.len);
        // SAFETY: both checked. Two rings never overlap, but nothing here has to rely on that.
        unsafe {
            let to = self.start.as_ptr().add(offset);
            std::ptr::copy(from.start.as_ptr(), to, from.len);
        }
        compiler_fence(Ordering::SeqCst);
    }

    /// Fills each whole word of the stretch with a value from `f`.
    #[inline]
    pub(super) fn fill_words(&mut self, f: &mut impl FnMut() -> u64) {
        let blocks = self.len / BLOCK;
        for i in 0..blocks {
            let mut block = [0; BLOCK];
            fill(&mut block, f);
            self.copy_from(i * BLOCK, &block);
        }
        let mut block = [0; BLOCK];
        let rest = &mut block[..(self.len % BLOCK) / WORD * WORD];
        fill(rest, f);
        self.copy_from(blocks * BLOCK, rest);
    }

    fn iovec(&mut self) -> libc::iovec {
        libc::iovec {
            iov_base: self.start.as_ptr().cast(),
            iov_len: self.len,
        }
    }
}

#[inline]
fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let words = bytes.chunks_exact(WORD);
    words.map(|word| u64::from_ne_bytes(word.try_into().expect("chunks of 8")))
}

#[inline]
fn fill(bytes: &mut [u8], f: &mut impl FnMut() -> u64) {
    for word in bytes.chunks_exact_mut(WORD) {
        word.copy_from_slice(&f().to_ne_bytes());
    }
}

#[inline]
fn check(whole: usize, offset: usize, len: usize) {
    assert!(
        offset <= whole && len <= whole - offset,
        "{len} bytes at {offset} are outside a stretch of {whole}"
    );
}

/// `writev(2)`: writes the stretches to `fd`, one after the other; returns how many bytes.
pub(super) fn write(fd: BorrowedFd<'_>, from: [Stretch<'_>; 2]) -> io::Result<usize> {
    let parts = from.map(|stretch| stretch.iovec());
    // SAFETY: both parts stay mapped during the call, which only reads them.
    bytes(unsafe { libc::writev(fd.as_raw_fd(), parts.as_ptr(), 2) })
}

/// `sendmsg(2)`: as [`write`], for a socket; never waits and raises no signal.
pub(super) fn send(fd: BorrowedFd<'_>, from: [Stretch<'_>; 2]) -> io::Result<usize> {
    let mut parts = from.map(|stretch| stretch.iovec());
    // SAFETY: all-zero is a valid `msghdr`: no name, no parts, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = 2;
    // SAFETY: the message and its two parts stay valid during the call, which only reads them.
    bytes(unsafe {
        libc::sendmsg(
            fd.as_raw_fd(),
            &raw const message,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    })
}

/// `readv(2)`: reads from `fd` into the stretches, one after the other; 0 is the end of the file.
pub(super) fn read(fd: BorrowedFd<'_>, mut into: [StretchMut<'_>; 2]) -> io::Result<usize> {
    let parts = into.each_mut().map(StretchMut::iovec);
    // SAFETY: both parts stay mapped and writable during the call, and nobody else of this
    // process writes there.
    bytes(unsafe { libc::readv(fd.as_raw_fd(), parts.as_ptr(), 2) })
}

fn bytes(answer: isize) -> io::Result<usize> {
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}
