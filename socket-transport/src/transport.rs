//! A session's stream on a connected socket: its waits and its end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vgpu_transport::{Interest, Transport, TransportError, Waker};

use crate::incoming::{DESCRIPTORS, Incoming};
use crate::outgoing::Outgoing;
use crate::record::Records;
use crate::socket::{Ready, Received, Socket, poll, poll_or};

/// How long a side that has ended its stream hears nothing before it closes. What the other one had sent before it knew of the
/// end is there by then; where it is not, a reset costs it the last words, which it was not looking at.
const QUIET: Duration = Duration::from_millis(250);

type Result<T> = std::result::Result<T, TransportError>;

/// A session's stream over a socket: plain over `unix:`, encrypted over `tcp:`.
///
/// Small writes are gathered and leave with the next large one, with a flush, or when the caller
/// waits; large ones go straight from the caller's memory. Reads take what the socket has in one
/// system call and hand it out in the portions that the caller asks for.
///
/// A read past the other side's [`close`](Transport::close) is the end of the stream. Over TCP a
/// connection that breaks without it is [`TransportError::Closed`], however it broke: nobody on the
/// path can make a truncated stream look complete. Over a Unix socket, where nobody is in between,
/// a process that dies looks like one that closes.
pub struct SocketTransport {
    socket: Socket,
    records: Option<Box<Records>>,
    outgoing: Outgoing,
    incoming: Incoming,
    closed: bool,
}

impl std::fmt::Debug for SocketTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SocketTransport")
            .field("place", &self.socket.place())
            .finish_non_exhaustive()
    }
}

impl SocketTransport {
    /// The stream on an accepted Unix socket.
    ///
    /// # Errors
    /// The system's error.
    pub fn from_unix(stream: UnixStream) -> io::Result<Self> {
        Self::connected_unix(stream, "unix: (accepted)".to_owned())
    }

    pub(crate) fn connected_unix(stream: UnixStream, place: String) -> io::Result<Self> {
        Ok(Self::new(Socket::unix(stream, place)?, None))
    }

    pub(crate) fn sealed(socket: Socket, records: Records) -> Self {
        Self::new(socket, Some(Box::new(records)))
    }

    fn new(socket: Socket, records: Option<Box<Records>>) -> Self {
        Self {
            socket,
            records,
            outgoing: Outgoing::default(),
            incoming: Incoming::default(),
            closed: false,
        }
    }

    /// Whether bytes wait for room in the kernel. A caller that polls the descriptor itself should
    /// then poll for writing too, and call [`flush`](Transport::flush) when it is possible.
    pub fn wants_write(&self) -> bool {
        self.outgoing.is_waiting()
    }

    /// Whether [`try_read`](Transport::try_read) has a result without asking the kernel.
    pub fn has_received(&self) -> bool {
        self.incoming.is_ready(self.records.is_some())
    }

    fn push(&mut self) -> Result<()> {
        self.outgoing
            .push(&self.socket, self.records.as_deref_mut())
    }

    /// Waits like [`wait_or`](Transport::wait_or). Gathered bytes are sent meanwhile, whatever the
    /// wait is for.
    fn wait_until(
        &mut self,
        interest: Option<Interest>,
        waker: Option<&Waker>,
        deadline: Instant,
    ) -> Result<()> {
        let reading = matches!(interest, Some(Interest::Read | Interest::ReadOrWrite));
        let writing = matches!(interest, Some(Interest::Write | Interest::ReadOrWrite));
        // Over a Unix socket only the kernel's room counts; records have room of their own.
        let plain = self.records.is_none();
        loop {
            match self.push() {
                // A caller that wants to write learns of it from the write; there may still be
                // bytes to read.
                Err(TransportError::Closed) => {}
                other => other?,
            }
            let may_write = self.outgoing.is_send_closed() || (!plain && self.outgoing.has_room());
            if self.closed
                || (reading && self.has_received())
                || (writing && may_write)
                || waker.is_some_and(Waker::is_raised)
            {
                return Ok(());
            }
            let wanted = Ready {
                read: reading,
                write: writing || self.wants_write(),
            };
            match poll_or(&self.socket, wanted, waker, deadline) {
                Ok(Some(ready)) => {
                    if (reading && ready.read) || (writing && plain && ready.write) {
                        return Ok(());
                    }
                }
                Ok(None) => {
                    return Err(TransportError::TimedOut(match interest {
                        Some(Interest::Read) => "read",
                        Some(Interest::Write) => "write",
                        Some(Interest::ReadOrWrite) => "read or write",
                        None => "be woken",
                    }));
                }
                Err(error) => return Err(self.socket.failed("waiting for", error)),
            }
        }
    }

    /// Waits until the kernel has all written bytes.
    fn drain(&mut self, deadline: Instant, until_readable: bool) -> Result<()> {
        let mut listening = true;
        loop {
            self.push()?;
            if !self.wants_write() {
                return Ok(());
            }
            let wanted = Ready {
                read: listening,
                write: true,
            };
            match poll(&self.socket, wanted, deadline) {
                Ok(Some(ready)) if ready.write => {}
                Ok(Some(_)) if until_readable => return Ok(()),
                // A side that has ended its stream may still take the end of this one.
                Ok(Some(_)) => listening = self.discard()?,
                Ok(None) => return Err(TransportError::TimedOut("write")),
                Err(error) => return Err(self.socket.failed("waiting for", error)),
            }
        }
    }

    /// Discards the bytes in the socket. Returns whether more may come.
    fn discard(&mut self) -> Result<bool> {
        let mut scrap = [0; 16 << 10];
        match self.socket.receive(&mut scrap, &mut []) {
            Ok(Received::Descriptors) => Err(TransportError::PeerViolation(DESCRIPTORS.to_owned())),
            Ok(received) => Ok(received != Received::End),
            Err(error) => Err(self.socket.failed("reading from", error)),
        }
    }

    /// Waits until the other side has ended its stream too, or sends nothing more. Closing a socket with unread bytes
    /// resets the connection, and the last bytes sent may never arrive.
    fn linger(&mut self, deadline: Instant) {
        let wanted = Ready {
            read: true,
            write: false,
        };
        let quiet = || deadline.min(Instant::now() + QUIET);
        while let Ok(Some(_)) = poll(&self.socket, wanted, quiet()) {
            if !self.discard().is_ok_and(|more| more) || Instant::now() >= deadline {
                return;
            }
        }
    }
}

impl Transport for SocketTransport {
    fn try_read(&mut self, buf: &mut [u8]) -> Result<Option<usize>> {
        if self.closed {
            return Err(TransportError::Closed);
        }
        if buf.is_empty() {
            return Ok(Some(0));
        }
        // The other side may wait for these; a failure is left to the next write to report.
        let _ = self.outgoing.push_sealed(&self.socket);
        match &mut self.records {
            Some(records) => self.incoming.read_records(&self.socket, records, buf),
            None => self.incoming.read_plain(&self.socket, buf),
        }
    }

    fn try_write(&mut self, buf: &[u8]) -> Result<usize> {
        self.try_write_parts(&[buf])
    }

    /// Bytes that are sent at once are sent in one system call.
    fn try_write_parts(&mut self, parts: &[&[u8]]) -> Result<usize> {
        if self.closed || self.outgoing.is_send_closed() {
            return Err(TransportError::Closed);
        }
        let records = self.records.as_deref_mut();
        self.outgoing.write(&self.socket, records, parts)
    }

    fn wait(&mut self, interest: Interest, deadline: Instant) -> Result<()> {
        self.wait_until(Some(interest), None, deadline)
    }

    fn wait_or(
        &mut self,
        interest: Option<Interest>,
        waker: &Waker,
        deadline: Instant,
    ) -> Result<()> {
        self.wait_until(interest, Some(waker), deadline)
    }

    /// If the other side sends without reading, its bytes come first: this returns early so that
    /// the caller reads them, and the rest is sent by its next call.
    fn flush(&mut self, deadline: Instant) -> Result<()> {
        if self.closed || self.outgoing.is_send_closed() {
            return Err(TransportError::Closed);
        }
        self.drain(deadline, true)
    }

    fn close(&mut self, deadline: Instant) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        let drained = match self.outgoing.is_send_closed() {
            true => Err(TransportError::Closed),
            false => self.drain(deadline, false),
        };
        self.closed = true;
        if drained.is_ok()
            && let Some(records) = &mut self.records
        {
            self.outgoing.end(records);
            // A peer that is gone by now has read all it wanted.
            let _ = self.drain(deadline, false);
        }
        self.socket.finish_sending();
        if self.socket.is_tcp() {
            self.linger(deadline);
        }
        drained
    }

    fn describe(&self) -> String {
        self.socket.place().to_owned()
    }
}

impl AsFd for SocketTransport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
