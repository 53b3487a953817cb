//! Using the bytes in the ring where they lie, without a copy.
//!
//! Reading: [`Reader::peek`] lends what is there as [`PeerBytes`], and [`Reader::consume`] gives
//! it back to the peer. Writing: [`Writer::reserve`] lends free room as [`RingSpace`], and
//! [`Writer::commit`] hands what was put there to the peer. [`Channel`] has the same methods, and
//! the views move bytes between the ring and a file descriptor with no copy but the kernel's, or
//! from one channel's ring to another's with one ([`RingSpace::copy_from_peer`]).
//!
//! # What the peer can do
//! The memory stays shared. **The peer may change a byte at any moment, also between two of your
//! reads**, and nothing reports it. So:
//! * Never check a value in the ring and then read it there again. Copy it out once
//!   ([`PeerBytes::array`], [`PeerBytes::copy_to`]), check the copy, use the copy.
//! * Use in place what needs no check: payload that any value is good for, such as samples,
//!   pixels or numbers that are added up, and bytes that are only passed on, to a file, say.
//! * A checksum over bytes in the ring says nothing about the result of a later read.
//!
//! The types enforce the rest: there is never a `&[u8]` to shared memory, a view ends where its
//! ring does, and the bounds of a view come from this side's own indexes and one checked copy of
//! the peer's.
//!
//! # Example
//! One end fills words in place, the other adds them up in place:
//!
//! ```
//! use std::os::unix::net::UnixStream;
//! use std::time::{Duration, Instant};
//! use vchan::{Result, local};
//!
//! # fn main() -> Result<()> {
//! let deadline = Instant::now() + Duration::from_secs(10);
//! let (one, other) = UnixStream::pair().unwrap();
//! let server = std::thread::spawn(move || local::serve_on(one, 64 << 10, deadline));
//! let mut client = local::connect_on(other, deadline)?;
//! let mut server = server.join().unwrap()?;
//!
//! // At least 800 bytes of room; there may be more.
//! let mut room = server.reserve(800, deadline)?.up_to(800);
//! let mut next = 0;
//! room.fill_words(|| {
//!     next += 1;
//!     next
//! });
//! server.commit(800)?;
//!
//! let bytes = client.peek(800, deadline)?.up_to(800);
//! let mut sum = 0;
//! bytes.for_each_word(|word| sum += word);
//! assert_eq!(sum, 100 * 101 / 2);
//! let n = bytes.len();
//! client.consume(n)?;
//! # Ok(())
//! # }
//! ```

mod descriptor;
mod stretch;
mod views;

use std::time::Instant;

pub use views::{PeerBytes, RingSpace};

use crate::channel::Channel;
use crate::channel::reader::Reader;
use crate::channel::writer::Writer;
use crate::error::{Error, Result};

impl Reader {
    /// Lends the bytes in the ring, without waiting. None is taken out of the ring before
    /// [`consume`](Self::consume).
    ///
    /// `Ok(None)`: fewer than `least` bytes (0 counts as 1) are there now; the peer has then been
    /// asked to ring when it writes, so that polling the channel's descriptor works. A view of
    /// fewer than `least` bytes is the rest of the stream, an empty one its end.
    ///
    /// # Errors
    /// As [`try_read`](Self::try_read), and [`Error::TooMany`] if the ring is smaller than `least`.
    pub fn try_peek(&mut self, least: usize) -> Result<Option<PeerBytes<'_>>> {
        let least = demand("peek at", least, self.ring_bytes())?;
        let mut found = self.look(least)?;
        if found.is_none() {
            self.ask()?;
            found = self.look(least)?;
            if found.is_some() {
                self.no_longer_ask();
            }
        }
        Ok(found.map(|len| self.lend(len)))
    }

    /// Lends the bytes in the ring once there are at least `least` (0 counts as 1), waiting for
    /// them until `deadline`. None is taken out of the ring before [`consume`](Self::consume).
    ///
    /// A view of fewer than `least` bytes is the rest of the stream, an empty one its end.
    ///
    /// # Errors
    /// As [`try_peek`](Self::try_peek), and [`Error::TimedOut`].
    pub fn peek(&mut self, least: usize, deadline: Instant) -> Result<PeerBytes<'_>> {
        let least = demand("peek at", least, self.ring_bytes())?;
        loop {
            if let Some(len) = self.look(least)? {
                return Ok(self.lend(len));
            }
            self.wait_for(least, deadline)?;
        }
    }

    /// Gives the first `n` bytes of the last peek back to the peer, which may overwrite them. May
    /// be called several times for parts.
    ///
    /// # Errors
    /// [`Error::TooMany`] if fewer were peeked at, [`Error::Closed`] after a close of ours,
    /// [`Error::Peer`] if the peer has broken the rules meanwhile, [`Error::Os`] if the doorbell
    /// fails.
    pub fn consume(&mut self, n: usize) -> Result<()> {
        let n = within("consume", n, self.peeked.saturating_sub(self.bytes))?;
        self.pass(n)
    }

    fn lend(&mut self, len: u32) -> PeerBytes<'_> {
        self.peeked = self.bytes + u64::from(len);
        let (memory, span) = self.readable(len);
        PeerBytes::new(memory, span)
    }
}

impl Writer {
    /// Lends free room in the ring, without waiting. The peer does not look at it before
    /// [`commit`](Self::commit).
    ///
    /// `Ok(None)`: fewer than `least` bytes (0 counts as 1) are free now; the peer has then been
    /// asked to ring when it reads, so that polling the channel's descriptor works.
    ///
    /// # Errors
    /// As [`try_write`](Self::try_write), and [`Error::TooMany`] if the ring is smaller than
    /// `least`.
    pub fn try_reserve(&mut self, least: usize) -> Result<Option<RingSpace<'_>>> {
        let least = demand("reserve", least, self.ring_bytes())?;
        let mut found = self.look(least)?;
        if found.is_none() {
            self.ask()?;
            found = self.look(least)?;
            if found.is_some() {
                self.no_longer_ask();
            }
        }
        Ok(found.map(|len| self.lend(len)))
    }

    /// Lends free room in the ring, once that is at least `least` bytes (0 counts as 1), waiting
    /// for it until `deadline`. The peer does not look at it before [`commit`](Self::commit).
    ///
    /// Do not demand more than the next message needs: a peer that waits for the whole of a large
    /// message frees no room before it has arrived.
    ///
    /// # Errors
    /// As [`try_reserve`](Self::try_reserve), and [`Error::TimedOut`].
    pub fn reserve(&mut self, least: usize, deadline: Instant) -> Result<RingSpace<'_>> {
        let least = demand("reserve", least, self.ring_bytes())?;
        loop {
            if let Some(len) = self.look(least)? {
                return Ok(self.lend(len));
            }
            self.wait_for(least, deadline)?;
        }
    }

    /// Hands the first `n` bytes of the last reservation to the peer. May be called several times
    /// for parts; bytes that are never committed stay free.
    ///
    /// Bytes that were not filled keep their old value: something this channel carried earlier, or
    /// zeros.
    ///
    /// # Errors
    /// [`Error::TooMany`] if less room was reserved, [`Error::Closed`] after a close of ours,
    /// [`Error::Peer`] if the peer has broken the rules meanwhile, [`Error::Os`] if the doorbell
    /// fails. The next [`reserve`](Self::reserve) reports that the peer is gone.
    pub fn commit(&mut self, n: usize) -> Result<()> {
        let n = within("commit", n, self.reserved.saturating_sub(self.bytes))?;
        self.pass(n)
    }

    fn lend(&mut self, len: u32) -> RingSpace<'_> {
        self.reserved = self.bytes + u64::from(len);
        let (memory, span) = self.writable(len);
        RingSpace::new(memory, span)
    }
}

impl Channel {
    /// See [`Reader::try_peek`].
    ///
    /// # Errors
    /// As [`Reader::try_peek`].
    pub fn try_peek(&mut self, least: usize) -> Result<Option<PeerBytes<'_>>> {
        self.halves().0.try_peek(least)
    }

    /// See [`Reader::peek`].
    ///
    /// # Errors
    /// As [`Reader::peek`].
    pub fn peek(&mut self, least: usize, deadline: Instant) -> Result<PeerBytes<'_>> {
        self.halves().0.peek(least, deadline)
    }

    /// See [`Reader::consume`].
    ///
    /// # Errors
    /// As [`Reader::consume`].
    pub fn consume(&mut self, n: usize) -> Result<()> {
        self.halves().0.consume(n)
    }

    /// See [`Writer::try_reserve`].
    ///
    /// # Errors
    /// As [`Writer::try_reserve`].
    pub fn try_reserve(&mut self, least: usize) -> Result<Option<RingSpace<'_>>> {
        self.halves().1.try_reserve(least)
    }

    /// See [`Writer::reserve`].
    ///
    /// # Errors
    /// As [`Writer::reserve`].
    pub fn reserve(&mut self, least: usize, deadline: Instant) -> Result<RingSpace<'_>> {
        self.halves().1.reserve(least, deadline)
    }

    /// See [`Writer::commit`].
    ///
    /// # Errors
    /// As [`Writer::commit`].
    pub fn commit(&mut self, n: usize) -> Result<()> {
        self.halves().1.commit(n)
    }
}

/// Bytes that must be there before a view is handed out, at least 1, so that only the end of the
/// stream gives an empty view.
fn demand(what: &'static str, least: usize, ring: usize) -> Result<u32> {
    within(what, least.max(1), ring as u64)
}

fn within(what: &'static str, asked: usize, most: u64) -> Result<u32> {
    match u32::try_from(asked) {
        Ok(n) if u64::from(n) <= most => Ok(n),
        _ => Err(Error::TooMany {
            what,
            asked,
            most: usize::try_from(most).unwrap_or(usize::MAX),
        }),
    }
}
