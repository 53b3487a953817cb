#![forbid(unsafe_code)]
//! The reading half of a channel.

use std::io;
use std::time::{Duration, Instant};

use vgpu_transport::Awaited;

use crate::channel::channel_state::Shared;
use crate::channel::half::{copy_step, deadline_after};
use crate::channel::look_then_sleep::{self, Waits, Wish};
use crate::channel::peer_end::PeerEnd;
use crate::error::{Error, Result};
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::waiting::batching::Batching;
use crate::waiting::coarse_clock;
use crate::waiting::comparison::Moved;
use crate::waiting::hold_out::HoldOut;
use crate::waiting::spin::Spin;
use crate::waiting::stream_distance::StreamDistance;
use crate::wire::ring::{Consumer, Span};
use crate::wire::ring_end::RingEnd;
use crate::wire::shm::Region;

const WAITING: &str = "read from the peer";

/// Up to so many bytes a copy is over before the peer can have written more: a read that found no more than
/// these does not look again.
const SHORT: usize = 1024;

/// The reading half of a [`Channel`](crate::Channel), made by
/// [`Channel::split`](crate::Channel::split).
#[derive(Debug)]
pub struct Reader {
    // Dropped before `shared`: memory before the doorbell.
    end: RingEnd,
    ring: Consumer,
    pub(crate) shared: Arc<Shared>,
    /// The most that is copied between two publications.
    step: u32,
    /// The peer is gone and its write index was read after that: nothing more can come.
    ended: bool,
    pub(crate) spin: Spin,
    batching: Batching,
    stream_distance: StreamDistance,
    pub(crate) hold_out: HoldOut,
    pub(crate) timeout: Option<Duration>,
    pub(crate) bytes: u64,
    /// Bytes moved in other memory.
    beside: u64,
    /// Position in the stream up to which `peek` has shown it.
    pub(crate) peeked: u64,
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>, end: RingEnd, ring: Consumer, spin: Spin) -> Self {
        let step = copy_step(ring.size());
        Self {
            end,
            stream_distance: StreamDistance::new(ring.size()),
            // Where the clock is slow, wake-ups are.
            hold_out: HoldOut::new(ring.size(), coarse_clock::behind()),
            ring,
            shared,
            step,
            ended: false,
            spin,
            batching: Batching::new(),
            timeout: None,
            bytes: 0,
            beside: 0,
            peeked: 0,
        }
    }

    /// Moves the bytes that are there into `buf`, at most `buf.len()`, without waiting.
    ///
    /// `Ok(Some(0))` with a non-empty `buf` is the end of the stream: the peer has closed or died
    /// and every byte it wrote has been returned. `Ok(None)` means nothing is there now; the peer
    /// has then been asked to ring when it writes, so that polling the channel's descriptor works.
    ///
    /// # Errors
    /// [`Closed`](crate::Error::Closed) after a close of ours, [`Peer`](crate::Error::Peer) if
    /// the peer broke the rules, [`Os`](crate::Error::Os) if the doorbell fails.
    #[inline]
    pub fn try_read(&mut self, buf: &mut [u8]) -> Result<Option<usize>> {
        if self.take_known(buf)? {
            return Ok(Some(buf.len()));
        }
        self.try_read_fresh(buf)
    }

    /// [`try_read`](Self::try_read) for a caller that will [`wait`](Self::wait), not poll: the peer
    /// is not asked to ring, which would cost it an event for every message.
    #[inline]
    pub(crate) fn read_now(&mut self, buf: &mut [u8]) -> Result<Option<usize>> {
        if self.take_known(buf)? {
            return Ok(Some(buf.len()));
        }
        self.take(buf)
    }

    fn try_read_fresh(&mut self, buf: &mut [u8]) -> Result<Option<usize>> {
        if let Some(n) = self.take(buf)? {
            return Ok(Some(n));
        }
        self.ask()?;
        let taken = self.take(buf)?;
        if taken.is_some() {
            self.no_longer_ask();
        }
        Ok(taken)
    }

    /// Moves at least one byte into `buf`, waiting for it until `deadline`. Returns how many, or
    /// 0 at the end of the stream.
    ///
    /// # Errors
    /// As [`try_read`](Self::try_read), and [`TimedOut`](crate::Error::TimedOut).
    #[inline]
    pub fn read(&mut self, buf: &mut [u8], deadline: Instant) -> Result<usize> {
        if self.take_known(buf)? {
            return Ok(buf.len());
        }
        self.read_fresh(buf, deadline)
    }

    fn read_fresh(&mut self, buf: &mut [u8], deadline: Instant) -> Result<usize> {
        loop {
            if let Some(n) = self.take(buf)? {
                return Ok(n);
            }
            self.wait(deadline)?;
        }
    }

    /// Fills all of `buf`, waiting until `deadline`. Sleeps until a large part of it is there,
    /// where [`read`](Self::read) would wake for the first byte.
    ///
    /// # Errors
    /// As [`read`](Self::read); [`PeerClosed`](crate::Error::PeerClosed) if the stream ends before
    /// `buf` is full. Part of `buf` may have been filled by then.
    #[inline]
    pub fn read_exact(&mut self, buf: &mut [u8], deadline: Instant) -> Result<()> {
        if self.take_known(buf)? {
            return Ok(());
        }
        self.read_exact_fresh(buf, deadline)
    }

    fn read_exact_fresh(&mut self, buf: &mut [u8], deadline: Instant) -> Result<()> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.take(&mut buf[filled..])? {
                Some(0) => return Err(Error::PeerClosed { unread: 0 }),
                Some(n) => filled += n,
                None => {
                    // A writer that finds no room has filled more than this much.
                    let most = self.ring.size() / 2;
                    let left = u32::try_from(buf.len() - filled).unwrap_or(u32::MAX);
                    let least = left.min(most);
                    // While awake: the first step may begin while the peer writes the next.
                    self.wait_awake_for(least.min(self.step), least, None, deadline)?;
                }
            }
        }
        Ok(())
    }

    /// Waits until [`try_read`](Self::try_read) has a result.
    ///
    /// # Errors
    /// [`TimedOut`](crate::Error::TimedOut) at `deadline`, and [`Os`](crate::Error::Os).
    pub fn wait(&mut self, deadline: Instant) -> Result<()> {
        self.wait_for(1, deadline)
    }

    /// Bytes that can be read now.
    ///
    /// # Errors
    /// As [`try_read`](Self::try_read).
    pub fn available(&mut self) -> Result<usize> {
        self.shared.check()?;
        self.refresh()?;
        Ok(self.ring.available() as usize)
    }

    /// How the peer ended its stream, for a protocol that does not mark its own end. Call it once
    /// the stream has been read to its end. The answer is the peer's claim.
    ///
    /// # Errors
    /// [`Peer`](crate::Error::Peer) if the peer broke the rules.
    pub fn peer_end(&self) -> Result<PeerEnd> {
        if !self.shared.peer_gone()? {
            return Ok(PeerEnd::Open);
        }
        Ok(match self.end.stream_ended() {
            Some(true) => PeerEnd::Closed,
            Some(false) => PeerEnd::Gone,
            None if self.shared.peer_vanished() => PeerEnd::Gone,
            None => PeerEnd::ClosedOrGone,
        })
    }

    /// Sets how long [`io::Read::read`] waits. `None`, the default, waits until the peer writes,
    /// closes or dies.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// The ring's size in bytes.
    pub fn ring_bytes(&self) -> usize {
        self.ring.size() as usize
    }

    /// Whether a read would not block. A broken or closed channel is ready: the read reports it.
    pub(crate) fn is_ready(&mut self) -> Result<bool> {
        self.has(1)
    }

    /// Whether `least` bytes are there, or no more can come.
    fn has(&mut self, least: u32) -> Result<bool> {
        if self.ended || self.ring.available() >= least || self.shared.is_unusable() {
            return Ok(true);
        }
        self.refresh()?;
        if self.ring.available() < least {
            return self.shared.peer_gone();
        }
        // They lie in the writer's cache. Whoever waits has some way to go from here to the read.
        self.end.memory.fetch(self.ring.readable(1).offset);
        Ok(true)
    }

    /// Bytes in the ring that can be used in place. `None`: fewer than `least`, and the peer may
    /// write more. Fewer than `least` bytes are the last of the stream; 0 is its end.
    pub(crate) fn look(&mut self, least: u32) -> Result<Option<u32>> {
        self.shared.check()?;
        if !self.ended {
            self.refresh()?;
            // Read the index once more after seeing the close, as in `take`.
            if self.ring.available() < least && self.shared.peer_gone()? {
                self.refresh()?;
                if self.ring.available() == 0 {
                    self.shared.check_end()?;
                    self.ended = true;
                }
                return Ok(Some(self.ring.available()));
            }
        }
        let available = self.ring.available();
        Ok((available >= least || self.ended).then_some(available))
    }

    /// The ring's memory and the position of the next `len` bytes in it. [`look`](Self::look) must
    /// have found that many.
    pub(crate) fn readable(&self, len: u32) -> (&Region, Span) {
        (&self.end.memory, self.ring.readable(len))
    }

    /// Gives the next `len` bytes back to the peer. [`look`](Self::look) must have found that many.
    pub(crate) fn pass(&mut self, len: u32) -> Result<()> {
        self.shared.check()?;
        self.bytes += u64::from(len);
        self.advance(len)
    }

    /// Waits until [`look`](Self::look) has a result.
    pub(crate) fn wait_for(&mut self, least: u32, deadline: Instant) -> Result<()> {
        self.wait_for_or(least, None, deadline)
    }

    /// [`wait`](Self::wait), ended also by `awaited`. For a reader that is not split off its channel.
    pub(crate) fn wait_or(
        &mut self,
        awaited: Option<&mut dyn Awaited>,
        deadline: Instant,
    ) -> Result<()> {
        self.wait_for_or(1, awaited, deadline)
    }

    fn wait_for_or(
        &mut self,
        least: u32,
        awaited: Option<&mut dyn Awaited>,
        deadline: Instant,
    ) -> Result<()> {
        self.wait_awake_for(least, least, awaited, deadline)
    }

    /// Waits until `awake` bytes are seen while polling, or `least` after a sleep.
    fn wait_awake_for(
        &mut self,
        awake: u32,
        least: u32,
        awaited: Option<&mut dyn Awaited>,
        deadline: Instant,
    ) -> Result<()> {
        // Relaxed: see `Shared::read`.
        self.shared.read.store(self.bytes, Ordering::Relaxed);
        let mut side = ForData {
            reader: self,
            awake,
            plenty: least,
            least,
        };
        let outcome = look_then_sleep::wait_or(&mut side, awaited, deadline, WAITING);
        if side.plenty > least {
            self.hold_out.found(self.ring.available());
        }
        outcome
    }

    /// Asks the peer to ring when it writes, for a call that is about to report "would block".
    pub(crate) fn ask(&mut self) -> Result<()> {
        // Old events must not make a poll loop spin; anything later makes the descriptor readable
        // again.
        self.shared.acknowledge()?;
        self.ask_for(1);
        Ok(())
    }

    /// Asks the peer to ring when `least` bytes are there.
    pub(crate) fn ask_for(&self, least: u32) {
        self.end.ask.arm(self.ring.cons().wrapping_add(least));
    }

    /// Withdraws [`ask_for`](Self::ask_for).
    pub(crate) fn no_longer_ask(&self) {
        self.end.ask.disarm();
    }

    /// Bytes have moved in other memory that both sides have.
    pub(crate) fn count_beside(&mut self, bytes: u64) {
        self.beside = self.beside.wrapping_add(bytes);
    }

    /// Bytes that this side has moved.
    pub(crate) fn moved(&self) -> Moved {
        let written = self.written();
        let bytes = self.bytes.wrapping_add(written).wrapping_add(self.beside);
        Moved::of(bytes, written, self.ring.size())
    }

    /// Bytes that this side has written.
    fn written(&self) -> u64 {
        // Relaxed: a count that this side's writer stores; nothing else depends on it.
        self.shared.written.load(Ordering::Relaxed)
    }

    /// Whether the peer's index has changed since it was last seen.
    #[inline]
    pub(crate) fn has_moved(&self) -> bool {
        self.end.peers_index() != self.ring.prod()
    }

    /// Reads the peer's index for a call that wants `wanted` bytes; pauses first or reads it
    /// several times where that pays.
    fn refresh_for(&mut self, wanted: u32) -> Result<()> {
        let before = self.ring.available();
        let written = self.written();
        for _ in 0..self.batching.pauses(wanted, written) {
            std::hint::spin_loop();
        }
        self.refresh()?;
        let found = self.ring.available() - before;
        self.batching.found(found);
        if !self.spin.pays() {
            return Ok(());
        }
        let available = self.ring.available();
        self.stream_distance
            .keep_apart(found, available, written, || {
                observe(&mut self.ring, &self.end, &self.shared)?;
                Ok(self.ring.available())
            })
    }

    /// Drops the bytes that are there, for a close. Returns whether there were any.
    pub(crate) fn discard(&mut self) -> Result<bool> {
        self.refresh()?;
        let len = self.ring.available();
        if len > 0 {
            self.advance(len)?;
        }
        Ok(len > 0)
    }

    /// Fills `buf` if that needs no read of the peer's index and takes at most one step; otherwise
    /// returns false and does nothing.
    #[inline]
    fn take_known(&mut self, buf: &mut [u8]) -> Result<bool> {
        let most = self.ring.available().min(self.step);
        let len = match u32::try_from(buf.len()) {
            Ok(len) if len <= most && !self.shared.is_unusable() => len,
            _ => return Ok(false),
        };
        self.take_next(buf, len)?;
        self.bytes += u64::from(len);
        Ok(true)
    }

    /// `None`: nothing there. `Some(0)`: the end, or an empty `buf`.
    fn take(&mut self, buf: &mut [u8]) -> Result<Option<usize>> {
        self.shared.check()?;
        if buf.is_empty() {
            return Ok(Some(0));
        }
        let mut n = self.copy(buf)?;
        // The order matters: a peer that writes and then closes must not lose its last bytes, so
        // the index is read once more after the close has been seen.
        if n == 0 && !self.ended && self.shared.peer_gone()? {
            n = self.copy(buf)?;
            if n == 0 {
                self.shared.check_end()?;
                self.ended = true;
            }
        }
        Ok((n > 0 || self.ended).then_some(n))
    }

    fn copy(&mut self, buf: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let left = u32::try_from(buf.len() - done).unwrap_or(u32::MAX);
            if self.ring.available() < left && !self.ended {
                if (1..=SHORT).contains(&done) {
                    self.batching.found(0);
                    break;
                }
                match self.refresh_for(left) {
                    // The bytes read so far were valid; the error is sticky and comes next time.
                    Err(_) if done > 0 => break,
                    outcome => outcome?,
                }
            }
            let len = self.ring.available().min(left).min(self.step);
            if len == 0 {
                break;
            }
            let next = &mut buf[done..done + len as usize];
            done += len as usize;
            self.take_next(next, len)?;
        }
        self.bytes += done as u64;
        Ok(done)
    }

    /// Moves the next `len` bytes to `to`, which has that length. They must be there.
    #[inline]
    fn take_next(&mut self, to: &mut [u8], len: u32) -> Result<()> {
        // The private cursor first, as in `Writer::put_next`.
        let span = self.ring.readable(len);
        let cons = self.ring.advance(len);
        if span.second == 0 {
            self.end.memory.copy_out(span.offset, to);
        } else {
            let (first, second) = to.split_at_mut(span.first);
            self.end.memory.copy_out(span.offset, first);
            self.end.memory.copy_out(0, second);
        }
        self.shared.publish(&self.end, cons)
    }

    /// Gives the next `len` bytes back to the peer. They must be there.
    fn advance(&mut self, len: u32) -> Result<()> {
        let cons = self.ring.advance(len);
        self.shared.publish(&self.end, cons)
    }

    /// Reads the peer's index, once, and checks it.
    #[inline]
    fn refresh(&mut self) -> Result<()> {
        observe(&mut self.ring, &self.end, &self.shared)
    }
}

/// [`Reader::refresh`] on borrowed fields.
#[inline]
fn observe(ring: &mut Consumer, end: &RingEnd, shared: &Shared) -> Result<()> {
    ring.observe(end.peers_index())
        .map_err(|error| shared.fail(error))
}

/// A reader that waits for a number of bytes.
struct ForData<'a> {
    reader: &'a mut Reader,
    /// While polling, be content with this many.
    awake: u32,
    /// Sleep a moment for this many.
    plenty: u32,
    /// Sleep until this many are there.
    least: u32,
}

impl ForData<'_> {
    fn amount(&self, wish: Wish) -> u32 {
        match wish {
            Wish::Awake => self.awake,
            Wish::Plenty => self.plenty,
            Wish::Enough => self.least,
        }
    }
}

impl Waits for ForData<'_> {
    fn shared(&self) -> &Shared {
        &self.reader.shared
    }

    fn spin(&mut self) -> &mut Spin {
        &mut self.reader.spin
    }

    fn moved(&self) -> Moved {
        self.reader.moved()
    }

    #[inline]
    fn has_moved(&self) -> bool {
        self.reader.has_moved()
    }

    fn holds_out(&mut self, polling_pays: bool) -> Option<Duration> {
        if polling_pays {
            // A poll that fails says that the writer pauses.
            return None;
        }
        let reader = &mut *self.reader;
        let written = reader.written();
        let amount = reader.hold_out.amount(reader.bytes, written)?;
        self.plenty = self.least.max(amount);
        (self.plenty > self.least).then(|| reader.hold_out.moment())
    }

    fn is_ready(&mut self, wish: Wish) -> Result<bool> {
        self.reader.has(self.amount(wish))
    }

    fn ask(&mut self, wish: Wish) {
        self.reader.ask_for(self.amount(wish));
    }

    fn withdraw(&mut self) {
        self.reader.no_longer_ask();
    }
}

/// Waits for at most [`Reader::set_timeout`]; 0 is the end of the stream.
impl io::Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(Self::read(self, buf, deadline_after(self.timeout))?)
    }
}
