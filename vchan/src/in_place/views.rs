#![forbid(unsafe_code)]
//! The bytes that lie in a ring, or are free in it, as up to two stretches: a ring wraps.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use super::descriptor;
use super::stretch::{Stretch, StretchMut, WORD};
use crate::wire::ring::Span;
use crate::wire::shm::Region;

/// Bytes in shared memory to read, lent by [`Reader::peek`](crate::Reader::peek).
///
/// **The peer may change them at any time**, also between two reads; see
/// [`in_place`](crate::in_place) for the consequences. Copying this copies the view only.
#[derive(Debug, Clone, Copy)]
pub struct PeerBytes<'a> {
    first: Stretch<'a>,
    second: Stretch<'a>,
}

/// Room in shared memory to fill, lent by [`Writer::reserve`](crate::Writer::reserve).
///
/// It can only be written, since a read might return the peer's bytes. **The peer may change the
/// bytes put there at any time**, even before they are committed, which harms nobody but the peer.
#[derive(Debug)]
pub struct RingSpace<'a> {
    first: StretchMut<'a>,
    second: StretchMut<'a>,
}

impl<'a> PeerBytes<'a> {
    pub(crate) fn new(memory: &'a Region, span: Span) -> Self {
        Self {
            first: Stretch::new(memory, span.offset, span.first),
            second: Stretch::new(memory, 0, span.second),
        }
    }

    /// Bytes in the view.
    pub fn len(&self) -> usize {
        self.first.len() + self.second.len()
    }

    /// Whether there are no bytes; from `peek`: the end of the stream.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `n` bytes, or all if there are fewer.
    #[must_use]
    pub fn up_to(self, n: usize) -> Self {
        let n = n.min(self.len());
        self.part(0, n)
    }

    /// Without the first `n` bytes; empty if there are no more.
    #[must_use]
    pub fn after(self, n: usize) -> Self {
        let n = n.min(self.len());
        self.part(n, self.len() - n)
    }

    /// Copies the first bytes out, as many as there are and fit; returns how many.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let n = to.len().min(self.len());
        let (first, second) = to[..n].split_at_mut(n.min(self.first.len()));
        self.first.copy_to(0, first);
        self.second.copy_to(0, second);
        n
    }

    /// A copy of the `N` bytes at `offset`, such as a header to check and decode. `None` if they
    /// are not all there.
    #[inline]
    pub fn array<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.after(offset).copy_to(&mut bytes) == N).then_some(bytes)
    }

    /// A copy of the 8 bytes at `offset`, any number, as a word of native byte order. `None` if
    /// they are not all there.
    #[inline]
    pub fn word(&self, offset: usize) -> Option<u64> {
        self.array(offset).map(u64::from_ne_bytes)
    }

    /// Calls `f` with all whole words in order, in native byte order, each read once; returns how
    /// many. Up to 7 bytes at the end make no word and are left out.
    #[inline]
    pub fn for_each_word(&self, mut f: impl FnMut(u64)) -> usize {
        let words = self.len() / WORD;
        self.first.for_each_word(&mut f);
        // A word may lie across the end of the ring.
        let whole = self.first.len() / WORD * WORD;
        let mut begun = 0;
        if whole < self.first.len() && self.len() - whole >= WORD {
            f(self.word(whole).expect("8 bytes are there"));
            begun = whole + WORD - self.first.len();
        }
        self.second
            .part(begun, self.second.len() - begun)
            .for_each_word(&mut f);
        words
    }

    /// Writes the bytes to a file descriptor, straight from the ring; returns how many were
    /// written, which are then for [`consume`](crate::Reader::consume).
    ///
    /// Waits until `deadline` for `fd` to take the first byte, then writes as much as it takes
    /// without waiting. Never waits beyond `deadline`, whether `fd` is non-blocking or not, with
    /// two exceptions: regular files and disks take the time they take, and so may a blocking pipe
    /// or terminal that somebody else fills at the same moment. A blocking pipe is given 4 KiB at
    /// a time, which never makes it wait; a non-blocking one is faster.
    ///
    /// # Errors
    /// [`TimedOut`](io::ErrorKind::TimedOut), and any error of the system for `fd`, such as
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe). An error after a part was written is reported by
    /// the next call.
    pub fn write_to(&self, fd: impl AsFd, deadline: Instant) -> io::Result<usize> {
        descriptor::write_to(*self, fd.as_fd(), deadline)
    }

    /// The addresses of the bytes: two unbroken parts, the second usually empty. For calls into
    /// other libraries that take pointers and tolerate bytes that change meanwhile; making a
    /// `&[u8]` of one is undefined behaviour.
    pub fn as_ptrs(&self) -> [*const [u8]; 2] {
        [self.first.as_ptr(), self.second.as_ptr()]
    }

    pub(super) fn stretches(self) -> [Stretch<'a>; 2] {
        [self.first, self.second]
    }

    /// The part must lie within the view.
    fn part(self, offset: usize, len: usize) -> Self {
        let skipped = offset.min(self.first.len());
        let first = len.min(self.first.len() - skipped);
        Self {
            first: self.first.part(skipped, first),
            second: self.second.part(offset - skipped, len - first),
        }
    }
}

impl<'a> RingSpace<'a> {
    /// The caller guarantees that this is the only view over its bytes.
    pub(crate) fn new(memory: &'a Region, span: Span) -> Self {
        Self {
            first: StretchMut::new(memory, span.offset, span.first),
            second: StretchMut::new(memory, 0, span.second),
        }
    }

    /// Bytes of room.
    pub fn len(&self) -> usize {
        self.first.len() + self.second.len()
    }

    /// Whether there is no room; never the case with what `reserve` returns.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `n` bytes, or all if there are fewer.
    #[must_use]
    pub fn up_to(self, n: usize) -> Self {
        let n = n.min(self.len());
        self.part(0, n)
    }

    /// Without the first `n` bytes; empty if there are no more.
    #[must_use]
    pub fn after(self, n: usize) -> Self {
        let n = n.min(self.len());
        let rest = self.len() - n;
        self.part(n, rest)
    }

    /// The same room for a shorter time, to be filled part by part.
    pub fn reborrow(&mut self) -> RingSpace<'_> {
        RingSpace {
            first: self.first.reborrow(),
            second: self.second.reborrow(),
        }
    }

    /// Copies the first bytes of `from` to the beginning, as many as fit; returns how many.
    pub fn copy_from(&mut self, from: &[u8]) -> usize {
        let n = from.len().min(self.len());
        let (first, second) = from[..n].split_at(n.min(self.first.len()));
        self.first.copy_from(0, first);
        self.second.copy_from(0, second);
        n
    }

    /// Copies the first bytes of another channel's ring to the beginning, as many as there are and
    /// fit; returns how many. For payload that is passed on: bytes that its peer changes meanwhile
    /// are passed on changed.
    pub fn copy_from_peer(&mut self, from: PeerBytes<'_>) -> usize {
        let n = from.len().min(self.len());
        let mut done = 0;
        while done < n {
            let (rest, split) = (from.after(done).up_to(n - done), self.first.len());
            // Neither side's stretch may end within a copy.
            let (to, at) = match done < split {
                true => (&mut self.first, done),
                false => (&mut self.second, done - split),
            };
            let piece = match rest.first.len() {
                0 => rest.second,
                _ => rest.first,
            };
            let len = piece.len().min(to.len() - at);
            to.copy_from_stretch(at, &piece.part(0, len));
            done += len;
        }
        n
    }

    /// Fills all whole words in order, in native byte order, with values from `f`; returns how
    /// many. Up to 7 bytes at the end make no word and are left as they are.
    #[inline]
    pub fn fill_words(&mut self, mut f: impl FnMut() -> u64) -> usize {
        let words = self.len() / WORD;
        let len = self.len();
        self.first.fill_words(&mut f);
        // A word may lie across the end of the ring.
        let whole = self.first.len() / WORD * WORD;
        let mut begun = 0;
        if whole < self.first.len() && len - whole >= WORD {
            let word = f().to_ne_bytes();
            let here = self.first.len() - whole;
            self.first.copy_from(whole, &word[..here]);
            begun = WORD - here;
            self.second.copy_from(0, &word[here..]);
        }
        let rest = self.second.len() - begun;
        self.second
            .reborrow()
            .into_part(begun, rest)
            .fill_words(&mut f);
        words
    }

    /// Reads from a file descriptor straight into the ring; returns how many bytes came, which
    /// are then for [`commit`](crate::Writer::commit). 0 is the end of the file.
    ///
    /// Waits until `deadline` for `fd` to have something, then reads once. Never waits beyond
    /// `deadline`, whether `fd` is non-blocking or not, with two exceptions: regular files and
    /// disks take the time they take, and so may a blocking descriptor that somebody else reads
    /// at the same moment.
    ///
    /// # Errors
    /// [`TimedOut`](io::ErrorKind::TimedOut), any error of the system for `fd`, and
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if there is no room to read into.
    pub fn read_from(&mut self, fd: impl AsFd, deadline: Instant) -> io::Result<usize> {
        descriptor::read_from(self, fd.as_fd(), deadline)
    }

    /// The addresses of the room: two unbroken parts, the second usually empty. For calls into
    /// other libraries that take pointers to write to; making a `&mut [u8]` of one is undefined
    /// behaviour.
    pub fn as_mut_ptrs(&mut self) -> [*mut [u8]; 2] {
        [self.first.as_mut_ptr(), self.second.as_mut_ptr()]
    }

    pub(super) fn stretches(&mut self) -> [StretchMut<'_>; 2] {
        [self.first.reborrow(), self.second.reborrow()]
    }

    /// The part must lie within the room.
    fn part(self, offset: usize, len: usize) -> Self {
        let skipped = offset.min(self.first.len());
        let first = len.min(self.first.len() - skipped);
        Self {
            first: self.first.into_part(skipped, first),
            second: self.second.into_part(offset - skipped, len - first),
        }
    }
}
