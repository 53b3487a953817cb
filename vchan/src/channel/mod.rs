#![forbid(unsafe_code)]
//! A connected channel.

pub(crate) mod both_halves;
pub(crate) mod channel_state;
pub(crate) mod half;
pub(crate) mod look_then_sleep;
pub(crate) mod peer_end;
pub(crate) mod reader;
mod stats;
mod transport_impl;
pub(crate) mod writer;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use vgpu_transport::{Awaited, Interest, Waker};

use crate::backend::Parts;
use crate::error::{Error, Result};
use crate::reactor::token::Token;
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::waiting::machine_costs::Pace;
use crate::waiting::spin::Spin;
use crate::wire::layout::{Format, RingSizes, Role};
use crate::wire::ring::{Consumer, Producer};
use crate::wire::ring_end::RingEnd;
use both_halves::Both;
use channel_state::Shared;
pub use peer_end::PeerEnd;
pub use reader::Reader;
pub use stats::Stats;
pub use writer::Writer;

/// One end of a channel: a stream of bytes each way.
///
/// Calls that wait take a deadline; [`io::Read`](std::io::Read) and [`io::Write`](std::io::Write) wait for at most
/// [`set_timeout`](Self::set_timeout). A peer that dies, process or domain, ends every wait.
/// [`AsFd`] gives one descriptor for poll loops: after a `try_*` call has reported that it would
/// block, the descriptor becomes readable when that may have changed. Then call `try_*` again; do
/// not read from the descriptor itself.
///
/// Dropping a channel closes it at once; [`close`](Self::close) first waits for the peer to read
/// everything, and marks the end of the stream.
#[derive(Debug)]
pub struct Channel {
    // Dropped before the last reference to the shared part, which unmaps and hangs up.
    pub(crate) reader: Reader,
    writer: Writer,
}

impl Channel {
    /// Builds a channel from the parts that a backend's rendezvous produced.
    ///
    /// # Errors
    /// [`Error::Peer`] if a client finds indexes in the page that describe no ring.
    ///
    /// # Panics
    /// If the regions do not have the sizes that `parts.orders` says.
    pub(crate) fn from_parts(parts: Parts) -> Result<Self> {
        assert_eq!(
            parts.left.len(),
            parts.orders.left_bytes(),
            "size of the left ring"
        );
        assert_eq!(
            parts.right.len(),
            parts.orders.right_bytes(),
            "size of the right ring"
        );
        let writable = match parts.role {
            Role::Server => &parts.right,
            Role::Client => &parts.left,
        };
        assert!(writable.is_writable(), "the outgoing ring must be writable");
        let first_index = parts.first_index;
        let (shared, incoming, outgoing) = Shared::new(parts);
        let shared = Arc::new(shared);

        let at = |index: fn(&RingEnd) -> u32, end| first_index.unwrap_or_else(|| index(end));
        let size = |end: &RingEnd| u32::try_from(end.memory.len()).expect("orders end at 21");
        let ring_in = Consumer::new(
            incoming.name,
            size(&incoming),
            at(RingEnd::own_index, &incoming),
            at(RingEnd::peers_index, &incoming),
        )?;
        let ring_out = Producer::new(
            outgoing.name,
            size(&outgoing),
            at(RingEnd::peers_index, &outgoing),
            at(RingEnd::own_index, &outgoing),
        )?;

        let longest = shared.useful_spin(Pace::here().default_spin);
        let spin = || Spin::new(longest);
        Ok(Self {
            reader: Reader::new(Arc::clone(&shared), incoming, ring_in, spin()),
            writer: Writer::new(Arc::clone(&shared), outgoing, ring_out, spin()),
        })
    }

    /// See [`Reader::try_read`].
    ///
    /// # Errors
    /// As [`Reader::try_read`].
    #[inline]
    pub fn try_read(&mut self, buf: &mut [u8]) -> Result<Option<usize>> {
        self.reader.try_read(buf)
    }

    /// See [`Writer::try_write`].
    ///
    /// # Errors
    /// As [`Writer::try_write`].
    #[inline]
    pub fn try_write(&mut self, buf: &[u8]) -> Result<usize> {
        self.writer.try_write(buf)
    }

    /// See [`Reader::read`].
    ///
    /// # Errors
    /// As [`Reader::read`].
    #[inline]
    pub fn read(&mut self, buf: &mut [u8], deadline: Instant) -> Result<usize> {
        self.reader.read(buf, deadline)
    }

    /// See [`Reader::read_exact`].
    ///
    /// # Errors
    /// As [`Reader::read_exact`].
    #[inline]
    pub fn read_exact(&mut self, buf: &mut [u8], deadline: Instant) -> Result<()> {
        self.reader.read_exact(buf, deadline)
    }

    /// See [`Writer::write_all`].
    ///
    /// # Errors
    /// As [`Writer::write_all`].
    #[inline]
    pub fn write_all(&mut self, buf: &[u8], deadline: Instant) -> Result<()> {
        self.writer.write_all(buf, deadline)
    }

    /// Waits until what `interest` names may make progress. May return early for no reason.
    ///
    /// # Errors
    /// [`Error::TimedOut`] at `deadline`, [`Error::Os`].
    pub fn wait(&mut self, interest: Interest, deadline: Instant) -> Result<()> {
        self.wait_until(interest, None, deadline)
    }

    /// [`wait`](Self::wait), ended also by `waker`, which stays raised.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_or(&mut self, interest: Interest, waker: &Waker, deadline: Instant) -> Result<()> {
        self.wait_until(interest, Some(&mut { waker }), deadline)
    }

    fn wait_until(
        &mut self,
        interest: Interest,
        awaited: Option<&mut dyn Awaited>,
        deadline: Instant,
    ) -> Result<()> {
        match interest {
            Interest::Read => self.reader.wait_or(awaited, deadline),
            Interest::Write => self.writer.wait_or(awaited, deadline),
            Interest::ReadOrWrite => {
                let mut both = Both {
                    reader: &mut self.reader,
                    writer: &mut self.writer,
                    drains: false,
                };
                look_then_sleep::wait_or(
                    &mut both,
                    awaited,
                    deadline,
                    "read from or write to the peer",
                )
            }
        }
    }

    /// Waits until the peer has read all that was written. Does not read meanwhile.
    ///
    /// # Errors
    /// See [`Writer::drain`].
    pub fn drain(&mut self, deadline: Instant) -> Result<()> {
        self.writer.drain(deadline)
    }

    /// Waits until the peer has read everything written, then closes. Bytes that the peer sends
    /// meanwhile are dropped, so that two sides may close at the same time. The channel is closed
    /// in any case: the result only says whether the peer read everything.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if it had not by `deadline`, [`Error::PeerClosed`] if it went away
    /// before, [`Error::Peer`].
    pub fn close(&mut self, deadline: Instant) -> Result<()> {
        if matches!(self.reader.shared.check(), Err(Error::Closed)) {
            return Ok(());
        }
        let outcome = self.drain_discarding(deadline);
        self.writer.end_stream();
        self.reader.shared.close();
        log::debug!("{} closed: {:?}", self.describe(), self.stats());
        outcome
    }

    fn drain_discarding(&mut self, deadline: Instant) -> Result<()> {
        let mut both = Both {
            reader: &mut self.reader,
            writer: &mut self.writer,
            drains: true,
        };
        look_then_sleep::wait(&mut both, deadline, "see the peer read everything")?;
        self.reader.shared.check()?;
        self.writer.check_drained()
    }

    /// Splits the channel for two threads. Either half may be dropped first; the channel closes
    /// with the last, or with [`Writer::close`].
    ///
    /// # Errors
    /// [`Error::Os`] when no descriptor can be allocated.
    pub fn split(self) -> Result<(Reader, Writer)> {
        self.reader.shared.waiters.enable_cancel()?;
        Ok((self.reader, self.writer))
    }

    /// Both halves at once, for one thread that uses data of one while it fills the other.
    /// [`split`](Self::split) is for two threads.
    pub fn halves(&mut self) -> (&mut Reader, &mut Writer) {
        (&mut self.reader, &mut self.writer)
    }

    /// Bytes that can be read now.
    ///
    /// # Errors
    /// As [`try_read`](Self::try_read).
    pub fn available(&mut self) -> Result<usize> {
        self.reader.available()
    }

    /// Bytes of the ring this side reads.
    pub fn incoming_ring_bytes(&self) -> usize {
        self.reader.ring_bytes()
    }

    /// Bytes of the ring this side writes.
    pub fn outgoing_ring_bytes(&self) -> usize {
        self.writer.ring_bytes()
    }

    /// Sizes of the rings.
    pub fn ring_sizes(&self) -> RingSizes {
        let (incoming, outgoing) = (self.reader.ring_bytes(), self.writer.ring_bytes());
        match self.reader.shared.role() {
            Role::Server => RingSizes {
                server_to_client: outgoing,
                client_to_server: incoming,
            },
            Role::Client => RingSizes {
                server_to_client: incoming,
                client_to_server: outgoing,
            },
        }
    }

    /// The wire format in use.
    pub fn format(&self) -> Format {
        self.reader.shared.format()
    }

    /// The channel's counters so far.
    pub fn stats(&self) -> Stats {
        let shared = &self.reader.shared;
        Stats {
            bytes_read: self.reader.bytes,
            bytes_written: self.writer.bytes,
            events_sent: shared.events_sent.load(Ordering::Relaxed),
            events_received: shared.events_received.load(Ordering::Relaxed),
            sleeps: shared.sleeps.load(Ordering::Relaxed),
            spin_hits: self.reader.spin.hits + self.writer.spin.hits,
            spin_misses: self.reader.spin.misses + self.writer.spin.misses,
        }
    }

    /// Whether the peer has closed or died. Bytes it wrote before may still be there to read.
    ///
    /// # Errors
    /// [`Error::Peer`].
    pub fn peer_gone(&self) -> Result<bool> {
        if let Err(error @ Error::Peer(_)) = self.reader.shared.check() {
            return Err(error);
        }
        self.reader.shared.peer_gone()
    }

    /// See [`Reader::peer_end`].
    ///
    /// # Errors
    /// As [`Reader::peer_end`].
    pub fn peer_end(&self) -> Result<PeerEnd> {
        self.reader.peer_end()
    }

    /// The longest time for which a waiting call polls the ring before it sleeps.
    pub fn spin(&self) -> Duration {
        self.reader.spin.max()
    }

    /// Sets the longest time for which a waiting call polls the ring before it sleeps; zero
    /// disables polling, and more than a day counts as a day. The actual time depends on how well
    /// polling has paid so far; an idle channel never polls, whatever is set. Default:
    /// [`DEFAULT_SPIN`](crate::DEFAULT_SPIN), longer where system calls are slow, and zero over
    /// `local` with one processor.
    pub fn set_spin(&mut self, spin: Duration) {
        let spin = self.reader.shared.useful_spin(spin);
        self.reader.spin.set_max(spin);
        self.writer.spin.set_max(spin);
    }

    /// Sets how long [`io::Read`](std::io::Read) and [`io::Write`](std::io::Write) wait. `None`,
    /// the default, waits until the peer acts, closes or dies.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.reader.set_timeout(timeout);
        self.writer.set_timeout(timeout);
    }

    /// This channel's token on its [`Reactor`](crate::reactor::Reactor); `None` for a channel on
    /// none.
    pub fn token(&self) -> Option<Token> {
        self.reader.shared.backend.token()
    }

    /// The peer's address, for messages.
    pub fn describe(&self) -> String {
        self.reader.shared.backend.describe()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.reader.shared
    }

    /// Bytes moved so far, in both directions.
    pub(crate) fn moved(&self) -> u64 {
        self.reader.moved().bytes
    }

    /// Whether the peer's index for `interest` has changed since it was last seen.
    #[inline]
    pub(crate) fn has_moved(&self, interest: Interest) -> bool {
        (reads(interest) && self.reader.has_moved())
            || (writes(interest) && self.writer.has_moved())
    }

    /// Whether a call for `interest` would not block.
    pub(crate) fn is_ready(&mut self, interest: Interest) -> Result<bool> {
        Ok((reads(interest) && self.reader.is_ready()?)
            || (writes(interest) && self.writer.is_ready()?))
    }

    /// Asks the peer to ring when `interest` may make progress.
    pub(crate) fn ask(&self, interest: Interest) {
        if reads(interest) {
            self.reader.ask_for(1);
        }
        if writes(interest) {
            self.writer.ask_for(1);
        }
    }

    /// Withdraws [`ask`](Self::ask).
    pub(crate) fn no_longer_ask(&self, interest: Interest) {
        if reads(interest) {
            self.reader.no_longer_ask();
        }
        if writes(interest) {
            self.writer.no_longer_ask();
        }
    }
}

fn reads(interest: Interest) -> bool {
    interest != Interest::Write
}

fn writes(interest: Interest) -> bool {
    interest != Interest::Read
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.shared.backend.poll_fd()
    }
}
