//! Either side's stream: a ring, a socket, or any other transport; and one wait for all there is.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use vchan::Channel;
use vchan::two_channels::{Side, TwoChannels};
use vgpu_socket_transport::SocketTransport;
use vgpu_transport::clock;
use vgpu_transport::{Awaited, Interest, Transport, TransportError, Waker};

use super::backend::Also;

/// First and longest turn in which a stream without a descriptor is looked at.
const LOOK_INTERVAL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

type Result<T> = std::result::Result<T, TransportError>;

/// A connected stream.
pub enum Stream {
    /// Rings in shared memory.
    Channel(Box<Channel>),
    /// A socket.
    Socket(Box<SocketTransport>),
    /// Anything else.
    Other(Box<dyn Transport>),
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Stream").field(&self.describe()).finish()
    }
}

impl From<Channel> for Stream {
    fn from(channel: Channel) -> Self {
        Self::Channel(Box::new(channel))
    }
}

impl From<SocketTransport> for Stream {
    fn from(socket: SocketTransport) -> Self {
        Self::Socket(Box::new(socket))
    }
}

impl Stream {
    fn inner(&mut self) -> &mut dyn Transport {
        match self {
            Self::Channel(channel) => channel.as_mut(),
            Self::Socket(socket) => socket.as_mut(),
            Self::Other(transport) => transport.as_mut(),
        }
    }

    /// Whether the other side is known to be gone, whatever of its bytes is still unread. A file says nothing of this.
    pub(crate) fn is_cut(&self) -> bool {
        match self {
            // A peer that breaks the rules is told of by the next read.
            Self::Channel(channel) => channel.peer_gone().unwrap_or(false),
            Self::Socket(socket) => {
                // Which the kernel tells only if it is asked.
                let wanted = PollFlags::from_bits_retain(libc::POLLRDHUP);
                let mut fds = [PollFd::new(SocketTransport::as_fd(socket), wanted)];
                let now = Some(TimeSpec::new(0, 0));
                matches!(ppoll(&mut fds, now, None), Ok(1..))
            }
            Self::Other(_) => false,
        }
    }

    /// The descriptor for [`TwoChannels`]; `None` for a stream that must be polled by its own calls.
    fn side(&mut self, interest: Option<Interest>) -> Option<Side<'_>> {
        match (self, interest) {
            (_, None) => Some(Side::Nothing),
            (Self::Channel(channel), Some(interest)) => Some(Side::Channel(channel, interest)),
            (Self::Socket(socket), Some(interest)) => {
                // Gathered bytes leave when the kernel has room.
                let interest = match interest {
                    Interest::Read if socket.wants_write() => Interest::ReadOrWrite,
                    interest => interest,
                };
                Some(Side::Descriptor(SocketTransport::as_fd(socket), interest))
            }
            (Self::Other(_), Some(_)) => None,
        }
    }

    /// Whether `interest` is met now. Also sends on what the stream has gathered.
    fn is_ready(&mut self, interest: Interest) -> Result<bool> {
        match self.wait(interest, clock::now()) {
            Ok(()) => Ok(true),
            Err(TransportError::TimedOut(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Transport for Stream {
    fn try_read(&mut self, buf: &mut [u8]) -> Result<Option<usize>> {
        self.inner().try_read(buf)
    }

    fn try_write(&mut self, buf: &[u8]) -> Result<usize> {
        self.inner().try_write(buf)
    }

    fn try_write_parts(&mut self, parts: &[&[u8]]) -> Result<usize> {
        self.inner().try_write_parts(parts)
    }

    fn wait_or(
        &mut self,
        interest: Option<Interest>,
        waker: &Waker,
        deadline: Instant,
    ) -> Result<()> {
        self.inner().wait_or(interest, waker, deadline)
    }

    fn wait_with(
        &mut self,
        interest: Option<Interest>,
        awaited: &mut dyn Awaited,
        deadline: Instant,
    ) -> Result<()> {
        self.inner().wait_with(interest, awaited, deadline)
    }

    fn wait(&mut self, interest: Interest, deadline: Instant) -> Result<()> {
        self.inner().wait(interest, deadline)
    }

    fn flush(&mut self, deadline: Instant) -> Result<()> {
        self.inner().flush(deadline)
    }

    fn close(&mut self, deadline: Instant) -> Result<()> {
        self.inner().close(deadline)
    }

    fn describe(&self) -> String {
        match self {
            Self::Channel(channel) => channel.describe(),
            Self::Socket(socket) => socket.describe(),
            Self::Other(transport) => transport.describe(),
        }
    }
}

/// One wait for the guest's stream and for what a backend waits for.
#[derive(Debug)]
pub(crate) struct Waiting {
    both: TwoChannels,
    turn: Duration,
}

impl Waiting {
    pub(crate) fn new() -> Self {
        Self {
            both: TwoChannels::new(),
            turn: LOOK_INTERVAL.0,
        }
    }

    /// Bytes have moved.
    pub(crate) fn progress(&mut self) {
        self.turn = LOOK_INTERVAL.0;
    }

    /// Waits until the stream may do what is wanted of it, or there is something else to do. May
    /// return early for no reason.
    ///
    /// # Errors
    /// [`TransportError::TimedOut`] at `deadline`.
    pub(crate) fn wait(
        &mut self,
        (near, interest): (&mut Stream, Option<Interest>),
        also: Also<'_>,
        deadline: Instant,
    ) -> Result<()> {
        match (also, interest) {
            (Also::Stream(far, far_interest), _) => {
                self.wait_for_both((near, interest), (far, far_interest), deadline)
            }
            (Also::Awaited(awaited), _) => near.wait_with(interest, awaited, deadline),
            (Also::Nothing, Some(interest)) => near.wait(interest, deadline),
            (Also::Nothing, None) => {
                // Nothing can be done before a deadline: the loop asked for none of the two.
                std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
                Err(TransportError::TimedOut("go on"))
            }
        }
    }

    /// Waits until either stream may do what is wanted of it.
    ///
    /// Errors of a stream are reported by its own calls.
    fn wait_for_both(
        &mut self,
        near: (&mut Stream, Option<Interest>),
        far: (&mut Stream, Option<Interest>),
        deadline: Instant,
    ) -> Result<()> {
        let mut streams = [near, far];
        for (stream, interest) in &mut streams {
            // A socket may have taken more from the kernel than was read from it.
            if let (Stream::Socket(_) | Stream::Other(_), Some(interest)) = (&stream, *interest)
                && stream.is_ready(interest)?
            {
                return Ok(());
            }
        }
        let outcome = self.sleep(&mut streams, deadline);
        match outcome {
            Err(TransportError::TimedOut(_)) if Instant::now() < deadline => Ok(()),
            // The one that did not sleep has not been looked at since.
            Err(error @ TransportError::TimedOut(_)) => {
                for (stream, interest) in &mut streams {
                    if let Some(interest) = *interest
                        && stream.is_ready(interest)?
                    {
                        return Ok(());
                    }
                }
                Err(error)
            }
            outcome => outcome,
        }
    }

    fn sleep(
        &mut self,
        streams: &mut [(&mut Stream, Option<Interest>); 2],
        deadline: Instant,
    ) -> Result<()> {
        let [(near, near_wants), (far, far_wants)] = streams;
        let (near_wants, far_wants) = (*near_wants, *far_wants);
        match (near.side(near_wants), far.side(far_wants)) {
            (Some(near), Some(far)) => Ok(self.both.wait([near, far], deadline)?),
            // Only one of them can sleep: it does so in turns, the other one is asked in between.
            (None, _) => near.wait(near_wants.unwrap_or(Interest::Read), self.turn(deadline)),
            (_, None) => far.wait(far_wants.unwrap_or(Interest::Read), self.turn(deadline)),
        }
    }

    fn turn(&mut self, deadline: Instant) -> Instant {
        let end = deadline.min(clock::now() + self.turn);
        self.turn = (self.turn * 2).min(LOOK_INTERVAL.1);
        end
    }
}
