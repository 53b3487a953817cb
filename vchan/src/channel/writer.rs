#![forbid(unsafe_code)]
//! The writing half of a channel.

use std::io;
use std::time::{Duration, Instant};

use vgpu_transport::Awaited;

use crate::channel::channel_state::Shared;
use crate::channel::half::{copy_step, deadline_after};
use crate::channel::look_then_sleep::{self, Waits, Wish};
use crate::error::Result;
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::waiting::comparison::Moved;
use crate::waiting::spin::Spin;
use crate::waiting::stream_distance::StreamDistance;
use crate::wire::ring::{Producer, Span};
use crate::wire::ring_end::RingEnd;
use crate::wire::shm::Region;

const WAITING: &str = "write to the peer";
const DRAINING: &str = "see the peer read everything";

/// How long a sleeper holds out for [`Wish::Plenty`].
const HOLD_OUT: Duration = Duration::from_millis(2);

/// The writing half of a [`Channel`](crate::Channel), made by
/// [`Channel::split`](crate::Channel::split).
#[derive(Debug)]
pub struct Writer {
    // Dropped before `shared`: memory before the doorbell.
    end: RingEnd,
    ring: Producer,
    pub(crate) shared: Arc<Shared>,
    /// The most that is copied between two publications.
    step: u32,
    pub(crate) spin: Spin,
    stream_distance: StreamDistance,
    pub(crate) timeout: Option<Duration>,
    pub(crate) bytes: u64,
    /// Position in the stream up to which `reserve` has lent room.
    pub(crate) reserved: u64,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, end: RingEnd, ring: Producer, spin: Spin) -> Self {
        let step = copy_step(ring.size());
        Self {
            end,
            stream_distance: StreamDistance::new(ring.size()),
            ring,
            shared,
            step,
            spin,
            timeout: None,
            bytes: 0,
            reserved: 0,
        }
    }

    /// Copies as much of `buf` as fits into the ring, without waiting; returns how many bytes.
    ///
    /// 0 with a non-empty `buf` means the ring is full; the peer has then been asked to ring when
    /// it reads, so that polling the channel's descriptor works.
    ///
    /// # Errors
    /// [`PeerClosed`](crate::Error::PeerClosed), [`Closed`](crate::Error::Closed) after a close of ours,
    /// [`Peer`](crate::Error::Peer) if the peer broke the rules, [`Os`](crate::Error::Os) if the doorbell fails.
    #[inline]
    pub fn try_write(&mut self, buf: &[u8]) -> Result<usize> {
        if self.put_known(buf)? {
            return Ok(buf.len());
        }
        self.try_write_fresh(buf)
    }

    /// [`try_write`](Self::try_write) for a caller that will [`wait`](Self::wait), not poll: the peer
    /// is not asked to ring.
    #[inline]
    pub(crate) fn write_now(&mut self, buf: &[u8]) -> Result<usize> {
        if self.put_known(buf)? {
            return Ok(buf.len());
        }
        self.put(buf)
    }

    /// [`write_now`](Self::write_now) of all `parts`, one after the other. As much as fits and is
    /// no longer than one step is handed to the peer at once.
    pub(crate) fn write_parts_now(&mut self, parts: &[&[u8]]) -> Result<usize> {
        if let [part] | [part, []] = parts {
            return self.write_now(part);
        }
        let bytes = parts.iter().map(|part| part.len()).sum();
        let known = self.known_room(bytes);
        if known.is_none() {
            return self.put_parts(parts, bytes);
        }
        let mut prod = None;
        for part in parts.iter().filter(|part| !part.is_empty()) {
            prod = Some(self.copy_next(part, ring_len(part.len())));
        }
        prod.map_or(Ok(()), |prod| self.publish(prod))?;
        Ok(bytes)
    }

    fn try_write_fresh(&mut self, buf: &[u8]) -> Result<usize> {
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
    /// As [`try_write`](Self::try_write), and [`TimedOut`](crate::Error::TimedOut); part of `buf`
    /// may have been written by then.
    #[inline]
    pub fn write_all(&mut self, buf: &[u8], deadline: Instant) -> Result<()> {
        if self.put_known(buf)? {
            return Ok(());
        }
        self.write_all_fresh(buf, deadline)
    }

    fn write_all_fresh(&mut self, mut buf: &[u8], deadline: Instant) -> Result<()> {
        while !buf.is_empty() {
            match self.put(buf)? {
                0 => {
                    let left = u32::try_from(buf.len()).unwrap_or(u32::MAX);
                    let plenty = self.ring.size() / 4;
                    self.wait_for_room(left.min(plenty), plenty, None, deadline)?;
                }
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
        let mut side = Waiting {
            writer: self,
            wait: Wait::Drain,
        };
        look_then_sleep::wait(&mut side, deadline, DRAINING)?;
        self.shared.check()?;
        self.check_drained()
    }

    /// Waits until the peer has read everything, then closes the whole channel, including the
    /// reading half: libxenvchan's format has no half-close. The channel is closed whatever this
    /// returns.
    ///
    /// # Errors
    /// As [`drain`](Self::drain).
    pub fn close(mut self, deadline: Instant) -> Result<()> {
        self.close_now(deadline)
    }

    /// [`close`](Self::close) for a writer that is shared, for instance behind a mutex.
    ///
    /// # Errors
    /// As [`close`](Self::close).
    pub fn close_now(&mut self, deadline: Instant) -> Result<()> {
        let outcome = self.drain(deadline);
        self.end_stream();
        self.shared.close();
        outcome
    }

    /// Marks, where the format can, that the coming close is the end of the stream.
    pub(crate) fn end_stream(&self) {
        self.end.end_stream();
    }

    /// Closes the whole channel at once, as dropping both halves does: the peer can still read the
    /// bytes written, but the stream is not marked as complete. See [`Reader::peer_end`].
    ///
    /// [`Reader::peer_end`]: crate::Reader::peer_end
    pub fn abandon(&mut self) {
        self.shared.close();
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

    /// Whether the peer has asked to be woken by a write, as a reader does that found nothing to
    /// read. A hint: it may have changed by the time this returns.
    pub fn peer_awaits_data(&self) -> bool {
        self.end.peer_waits()
    }

    /// Sets how long [`io::Write::write`] waits. `None`, the default, waits until the peer reads,
    /// closes or dies.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// The ring's size in bytes.
    pub fn ring_bytes(&self) -> usize {
        self.ring.size() as usize
    }

    /// Whether a write would not block. A broken or closed channel is ready: the write reports it.
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

    /// Bytes of the ring that can be filled. `None`: fewer than `least`, until the peer reads.
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

    /// The ring's memory and the position of the next `len` bytes in it. [`look`](Self::look) must
    /// have found room for that many.
    pub(crate) fn writable(&self, len: u32) -> (&Region, Span) {
        (&self.end.memory, self.ring.writable(len))
    }

    /// Hands the next `len` bytes of the ring to the peer. [`look`](Self::look) must have found
    /// room for that many.
    pub(crate) fn pass(&mut self, len: u32) -> Result<()> {
        self.shared.check()?;
        self.advance(len)
    }

    /// Waits until [`look`](Self::look) has a result.
    pub(crate) fn wait_for(&mut self, least: u32, deadline: Instant) -> Result<()> {
        self.wait_for_room(least, least, None, deadline)
    }

    /// [`wait`](Self::wait), ended also by `awaited`. For a writer that is not split off its channel.
    pub(crate) fn wait_or(
        &mut self,
        awaited: Option<&mut dyn Awaited>,
        deadline: Instant,
    ) -> Result<()> {
        self.wait_for_room(1, 1, awaited, deadline)
    }

    /// Waits for room for `least` bytes, and holds out for a moment for `plenty`.
    fn wait_for_room(
        &mut self,
        least: u32,
        plenty: u32,
        awaited: Option<&mut dyn Awaited>,
        deadline: Instant,
    ) -> Result<()> {
        let mut side = Waiting {
            writer: self,
            wait: Wait::Room { least, plenty },
        };
        look_then_sleep::wait_or(&mut side, awaited, deadline, WAITING)
    }

    /// Asks the peer to ring when it reads, for a call that is about to report "no room".
    pub(crate) fn ask(&mut self) -> Result<()> {
        // Old events must not make a poll loop spin; anything later makes the descriptor readable
        // again.
        self.shared.acknowledge()?;
        self.ask_for(1);
        Ok(())
    }

    /// Asks the peer to ring when `least` bytes are free.
    pub(crate) fn ask_for(&self, least: u32) {
        self.end.ask.arm(self.ring.cons_for(least));
    }

    /// Asks the peer to ring when it has read everything.
    pub(crate) fn ask_for_drain(&self) {
        self.ask_for(self.ring.size());
    }

    /// Withdraws [`ask_for`](Self::ask_for).
    pub(crate) fn no_longer_ask(&self) {
        self.end.ask.disarm();
    }

    /// Whether the peer's index has changed since it was last seen.
    #[inline]
    pub(crate) fn has_moved(&self) -> bool {
        self.end.peers_index() != self.ring.cons()
    }

    /// Whether the wait for the peer to read everything is over, successfully or not.
    pub(crate) fn is_drained_or_over(&mut self) -> Result<bool> {
        if self.shared.is_unusable() {
            return Ok(true);
        }
        self.refresh()?;
        Ok(self.ring.unread() == 0 || self.shared.peer_gone()?)
    }

    /// Fails if the peer is gone and has left bytes unread.
    pub(crate) fn check_drained(&mut self) -> Result<()> {
        // The peer may have read the rest between our last read of its index and its close.
        self.refresh()?;
        match self.ring.unread() {
            0 => Ok(()),
            unread => Err(self.shared.end(unread)),
        }
    }

    /// Writes all of `buf` if that needs no read of the peer's index and takes at most one step;
    /// otherwise returns false and does nothing.
    #[inline]
    fn put_known(&mut self, buf: &[u8]) -> Result<bool> {
        let Some(len) = self.known_room(buf.len()) else {
            return Ok(false);
        };
        let prod = self.copy_next(buf, len);
        self.publish(prod)?;
        Ok(true)
    }

    /// `bytes` as a length in the ring, if they are known to fit, take at most one step, and this
    /// side may write.
    #[inline]
    fn known_room(&self, bytes: usize) -> Option<u32> {
        let most = self.ring.free().min(self.step);
        let len = u32::try_from(bytes).ok().filter(|len| *len <= most)?;
        self.shared.may_write().then_some(len)
    }

    fn put(&mut self, buf: &[u8]) -> Result<usize> {
        self.put_parts(&[buf], buf.len())
    }

    /// Copies as much of `parts`, `bytes` in all, as fits into the ring.
    fn put_parts(&mut self, parts: &[&[u8]], bytes: usize) -> Result<usize> {
        self.shared.check()?;
        if self.shared.peer_gone()? {
            self.refresh()?;
            return Err(self.shared.end(self.ring.unread()));
        }
        let (mut parts, mut part): (_, &[u8]) = (parts.iter(), &[]);
        let mut done = 0;
        while done < bytes {
            let left = u32::try_from(bytes - done).unwrap_or(u32::MAX);
            if self.ring.free() < left {
                match self.refresh_apart() {
                    // The bytes written so far count; the error is sticky and comes next time.
                    Err(_) if done > 0 => break,
                    outcome => outcome?,
                }
            }
            let len = self.ring.free().min(left).min(self.step);
            if len == 0 {
                break;
            }
            done += len as usize;
            let (mut due, mut prod) = (len as usize, None);
            while due > 0 {
                while part.is_empty() {
                    part = parts.next().expect("they have as many bytes as they say");
                }
                let (now, later) = part.split_at(part.len().min(due));
                prod = Some(self.copy_next(now, ring_len(now.len())));
                (part, due) = (later, due - now.len());
            }
            prod.map_or(Ok(()), |prod| self.publish(prod))?;
        }
        Ok(done)
    }

    /// Copies `from`, `len` bytes long, to the peer's next bytes. There must be room. Returns the
    /// index to publish.
    #[inline]
    fn copy_next(&mut self, from: &[u8], len: u32) -> u32 {
        // The private cursor first: after a copy to memory that may alias anything it would be
        // loaded again.
        let span = self.ring.writable(len);
        let prod = self.ring.advance(len);
        self.bytes += u64::from(len);
        if span.second == 0 {
            self.end.memory.copy_in(span.offset, from);
        } else {
            let (first, second) = from.split_at(span.first);
            self.end.memory.copy_in(span.offset, first);
            self.end.memory.copy_in(0, second);
        }
        prod
    }

    /// Hands the next `len` bytes, which lie in the ring, to the peer.
    fn advance(&mut self, len: u32) -> Result<()> {
        let prod = self.ring.advance(len);
        self.bytes += u64::from(len);
        self.publish(prod)
    }

    #[inline]
    fn publish(&self, prod: u32) -> Result<()> {
        // Relaxed: read by this side's reader only, as a hint.
        self.shared.written.store(self.bytes, Ordering::Relaxed);
        self.shared.publish(&self.end, prod)
    }

    /// Reads the peer's index, several times where the reader is close ahead in the ring.
    fn refresh_apart(&mut self) -> Result<()> {
        let before = self.ring.free();
        self.refresh()?;
        let found = self.ring.free() - before;
        if !self.spin.pays() {
            return Ok(());
        }
        // This side does not answer: a ring that stays nearly full is that of a stream.
        let free = self.ring.free();
        self.stream_distance.keep_apart(found, free, 0, || {
            observe(&mut self.ring, &self.end, &self.shared)?;
            Ok(self.ring.free())
        })
    }

    /// Reads the peer's index, once, and checks it.
    #[inline]
    fn refresh(&mut self) -> Result<()> {
        observe(&mut self.ring, &self.end, &self.shared)
    }
}

/// [`Writer::refresh`] on borrowed fields.
#[inline]
fn observe(ring: &mut Producer, end: &RingEnd, shared: &Shared) -> Result<()> {
    ring.observe(end.peers_index())
        .map_err(|error| shared.fail(error))
}

/// The condition a writer waits for.
#[derive(Clone, Copy)]
enum Wait {
    /// Room for `least` bytes. `plenty` keeps a nearly full ring from costing a wait for each
    /// message.
    Room { least: u32, plenty: u32 },
    /// The peer has read everything.
    Drain,
}

/// A writer that waits.
struct Waiting<'a> {
    writer: &'a mut Writer,
    wait: Wait,
}

impl Waits for Waiting<'_> {
    fn shared(&self) -> &Shared {
        &self.writer.shared
    }

    fn spin(&mut self) -> &mut Spin {
        &mut self.writer.spin
    }

    fn moved(&self) -> Moved {
        let writer = &*self.writer;
        // Relaxed: a count that this side's reader stores; nothing else depends on it.
        let read = writer.shared.read.load(Ordering::Relaxed);
        Moved::of(writer.bytes, read, writer.ring.size())
    }

    #[inline]
    fn has_moved(&self) -> bool {
        self.writer.has_moved()
    }

    fn holds_out(&mut self, polling_pays: bool) -> Option<Duration> {
        // Where polling does not pay, holding out does not either: take what comes.
        let more = matches!(self.wait, Wait::Room { least, plenty } if plenty > least);
        (more && polling_pays).then_some(HOLD_OUT)
    }

    fn is_ready(&mut self, wish: Wish) -> Result<bool> {
        match self.wait.room(wish) {
            Some(bytes) => self.writer.has_room(bytes),
            None => self.writer.is_drained_or_over(),
        }
    }

    fn ask(&mut self, wish: Wish) {
        match self.wait.room(wish) {
            Some(bytes) => self.writer.ask_for(bytes),
            None => self.writer.ask_for_drain(),
        }
    }

    fn withdraw(&mut self) {
        self.writer.no_longer_ask();
    }
}

impl Wait {
    /// The bytes of room that fulfil `wish`; `None` when waiting for [`Wait::Drain`].
    fn room(self, wish: Wish) -> Option<u32> {
        match (self, wish) {
            (Self::Room { plenty, .. }, Wish::Awake | Wish::Plenty) => Some(plenty),
            (Self::Room { least, .. }, Wish::Enough) => Some(least),
            (Self::Drain, _) => None,
        }
    }
}

/// Waits at most [`Writer::set_timeout`] for room for one byte.
impl io::Write for Writer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.put_known(buf)? {
            return Ok(buf.len());
        }
        let deadline = deadline_after(self.timeout);
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

/// A byte count as a ring length, for bytes that are known to fit.
fn ring_len(len: usize) -> u32 {
    u32::try_from(len).expect("no ring has 4 GiB")
}
