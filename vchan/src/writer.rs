#![forbid(unsafe_code)]
//! The writing half of a channel.

use std::io;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::layout::bit;
use crate::ring::{Producer, Span};
use crate::shared::Shared;
use crate::shm::Region;
use crate::spin::Spin;
use crate::sync::Arc;

const WAITING: &str = "write to the peer";
const DRAINING: &str = "see the peer read everything";

/// The writing half of a [`Channel`](crate::Channel), made by
/// [`Channel::split`](crate::Channel::split).
#[derive(Debug)]
pub struct Writer {
    pub(crate) shared: Arc<Shared>,
    ring: Producer,
    /// Where the peer's read index lies in the control page.
    cons_at: usize,
    /// Where our write index lies.
    prod_at: usize,
    step: u32,
    pub(crate) spin: Spin,
    pub(crate) timeout: Option<Duration>,
    pub(crate) bytes: u64,
    /// Up to which byte of the stream `reserve` has handed out room.
    pub(crate) reserved: u64,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, ring: Producer, spin: Spin) -> Self {
        let (at, _) = shared.outgoing();
        let (cons_at, prod_at, step) = (at.cons, at.prod, copy_step(ring.size()));
        Self {
            shared,
            ring,
            cons_at,
            prod_at,
            step,
            spin,
            timeout: None,
            bytes: 0,
            reserved: 0,
        }
    }

    /// Puts what fits of `buf` into the ring, without waiting; returns how many bytes.
    ///
    /// 0 with a non-empty `buf` means the ring is full; the peer has then been asked to ring when
    /// it reads, so that polling the channel's descriptor works.
    ///
    /// # Errors
    /// [`PeerClosed`](crate::Error::PeerClosed), [`Closed`](crate::Error::Closed) after a close of ours,
    /// [`Peer`](crate::Error::Peer) if the peer broke the rules, [`Os`](crate::Error::Os) if the doorbell fails.
    pub fn try_write(&mut self, buf: &[u8]) -> Result<usize> {
        let n = self.put(buf)?;
        if n > 0 || buf.is_empty() {
            return Ok(n);
        }
        self.ask()?;
        let n = self.put(buf)?;
        if n > 0 {
            self.no_longer_ask();
        }
        Ok(n)
    }

    /// Writes all of `buf`, waiting for room until `deadline`. The peer sees every byte at once;
    /// there is nothing to flush.
    ///
    /// # Errors
    /// As [`try_write`](Self::try_write), and [`TimedOut`](crate::Error::TimedOut); a part of `buf` may
    /// have been written then.
    pub fn write_all(&mut self, mut buf: &[u8], deadline: Instant) -> Result<()> {
        while !buf.is_empty() {
            match self.put(buf)? {
                0 => self.wait(deadline)?,
                n => buf = &buf[n..],
            }
        }
        Ok(())
    }

    /// Waits until [`try_write`](Self::try_write) can take a byte or has an error to report.
    ///
    /// # Errors
    /// [`TimedOut`](crate::Error::TimedOut) at `deadline`, and [`Os`](crate::Error::Os).
    pub fn wait(&mut self, deadline: Instant) -> Result<()> {
        self.wait_for(1, deadline)
    }

    /// Waits until the peer has read everything written so far.
    ///
    /// # Errors
    /// [`PeerClosed`](crate::Error::PeerClosed) if it went away without reading all,
    /// [`TimedOut`](crate::Error::TimedOut) at `deadline`, and as [`try_write`](Self::try_write).
    pub fn drain(&mut self, deadline: Instant) -> Result<()> {
        self.wait_until(deadline, DRAINING, Self::is_drained_or_over)?;
        self.shared.check()?;
        self.check_drained()
    }

    /// Waits until the peer has read everything, then closes the whole channel, also the reading
    /// half: libxenvchan's format has no half-close. The channel is closed whatever this returns.
    ///
    /// # Errors
    /// As [`drain`](Self::drain).
    pub fn close(mut self, deadline: Instant) -> Result<()> {
        self.close_now(deadline)
    }

    /// [`close`](Self::close) for a writer that is shared, for instance behind a mutex.
    ///
    /// # Errors
    /// As there.
    pub fn close_now(&mut self, deadline: Instant) -> Result<()> {
        let outcome = self.drain(deadline);
        self.shared.close();
        outcome
    }

    /// Bytes that fit now.
    ///
    /// # Errors
    /// As [`try_write`](Self::try_write).
    pub fn room(&mut self) -> Result<usize> {
        self.shared.check()?;
        self.refresh()?;
        Ok(self.ring.free() as usize)
    }

    /// Whether the peer has asked to be woken by the next write, which a reader does that found
    /// nothing to read. A hint: it may have changed by the time this returns.
    pub fn peer_awaits_data(&self) -> bool {
        self.shared.peer_asked(bit::WRITE)
    }

    /// Sets how long [`io::Write::write`] waits; `None`, the default, is until the peer reads,
    /// closes or dies.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// The ring's size in bytes.
    pub fn ring_bytes(&self) -> usize {
        self.ring.size() as usize
    }

    /// Whether a write would not block. A broken or closed channel is ready to say so.
    pub(crate) fn is_ready(&mut self) -> Result<bool> {
        self.has_room(1)
    }

    /// Whether `least` bytes fit, or there is an end or an error to report.
    fn has_room(&mut self, least: u32) -> Result<bool> {
        if self.ring.free() >= least || self.shared.is_unusable() {
            return Ok(true);
        }
        self.refresh()?;
        Ok(self.ring.free() >= least || self.shared.peer_gone()?)
    }

    /// How much of the ring is there to be filled. `None`: less than `least`, until the peer reads.
    pub(crate) fn look(&mut self, least: u32) -> Result<Option<u32>> {
        self.shared.check()?;
        self.refresh()?;
        if self.shared.peer_gone()? {
            self.refresh()?;
            return Err(self.shared.end(self.ring.unread()));
        }
        let free = self.ring.free();
        Ok((free >= least).then_some(free))
    }

    /// The memory of the ring, and where the next `len` bytes go in it; [`look`](Self::look) has
    /// found room for that many.
    pub(crate) fn writable(&self, len: u32) -> (&Region, Span) {
        (self.shared.outgoing().1, self.ring.writable(len))
    }

    /// Hands the next `len` bytes of the ring to the peer; [`look`](Self::look) has found room for
    /// that many.
    pub(crate) fn pass(&mut self, len: u32) -> Result<()> {
        self.shared.check()?;
        let prod = self.ring.advance(len);
        self.bytes += u64::from(len);
        self.shared.publish(self.prod_at, prod, bit::WRITE)
    }

    /// Waits until [`look`](Self::look) has an answer.
    pub(crate) fn wait_for(&mut self, least: u32, deadline: Instant) -> Result<()> {
        self.wait_until(deadline, WAITING, |writer| writer.has_room(least))
    }

    /// Asks the peer to ring when it reads, for a call that is about to report "no room".
    pub(crate) fn ask(&mut self) -> Result<()> {
        // Old events must not make a poll loop spin; what comes from here on wakes it again.
        self.shared.acknowledge()?;
        self.shared.request(bit::READ);
        Ok(())
    }

    /// Takes that back.
    pub(crate) fn no_longer_ask(&self) {
        self.shared.withdraw(bit::READ);
    }

    /// Whether waiting for the peer to read has come to its end, good or bad.
    pub(crate) fn is_drained_or_over(&mut self) -> Result<bool> {
        if self.shared.is_unusable() {
            return Ok(true);
        }
        self.refresh()?;
        Ok(self.ring.unread() == 0 || self.shared.peer_gone()?)
    }

    /// Fails if the peer is gone and has left bytes behind.
    pub(crate) fn check_drained(&mut self) -> Result<()> {
        // The peer may have read the rest between our last look and its close.
        self.refresh()?;
        match self.ring.unread() {
            0 => Ok(()),
            unread => Err(self.shared.end(unread)),
        }
    }

    fn wait_until(
        &mut self,
        deadline: Instant,
        waiting: &'static str,
        mut ready: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        // Taken out so that `ready` may borrow the rest.
        let mut spin = std::mem::replace(&mut self.spin, Spin::new(Duration::ZERO));
        let shared = Arc::clone(&self.shared);
        let outcome = shared.wait_until(&mut spin, bit::READ, deadline, waiting, || ready(self));
        self.spin = spin;
        outcome
    }

    #[inline]
    fn put(&mut self, buf: &[u8]) -> Result<usize> {
        self.shared.check()?;
        if self.shared.peer_gone()? {
            self.refresh()?;
            return Err(self.shared.end(self.ring.unread()));
        }
        let mut done = 0;
        while done < buf.len() {
            let left = u32::try_from(buf.len() - done).unwrap_or(u32::MAX);
            if self.ring.free() < left {
                match self.refresh() {
                    // What was written so far counts; the error is sticky and comes next time.
                    Err(_) if done > 0 => break,
                    outcome => outcome?,
                }
            }
            let len = self.ring.free().min(left).min(self.step);
            if len == 0 {
                break;
            }
            let span = self.ring.writable(len);
            let (_, memory) = self.shared.outgoing();
            let (first, second) = buf[done..done + span.first + span.second].split_at(span.first);
            memory.copy_in(span.offset, first);
            if !second.is_empty() {
                memory.copy_in(0, second);
            }
            done += len as usize;
            let prod = self.ring.advance(len);
            self.shared.publish(self.prod_at, prod, bit::WRITE)?;
        }
        self.bytes += done as u64;
        Ok(done)
    }

    /// Reads the peer's index, once, and checks it.
    #[inline]
    fn refresh(&mut self) -> Result<()> {
        let cons = crate::notify::RingIndex::observe(self.shared.index(self.cons_at));
        self.ring
            .observe(cons)
            .map_err(|error| self.shared.fail(error))
    }
}

/// Waits for at most [`Writer::set_timeout`] for room for one byte.
impl io::Write for Writer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let deadline = deadline_after(self.timeout);
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match self.put(buf)? {
                0 => self.wait(deadline)?,
                n => return Ok(n),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes copied between two publications of an index: a large copy is handed over in steps, so
/// that the other side works on the first part, still in the cache, while we copy the next.
pub(crate) fn copy_step(ring_bytes: u32) -> u32 {
    (ring_bytes / 4).clamp(4 << 10, 64 << 10)
}

/// "No timeout" is ten years: far beyond any wait, and safely within what a clock can express.
pub(crate) fn deadline_after(timeout: Option<Duration>) -> Instant {
    const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
    Instant::now() + timeout.unwrap_or(FOREVER).min(FOREVER)
}
