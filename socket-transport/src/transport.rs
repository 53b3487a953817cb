//! A session's bytes over a connected socket.
//!
//! Small writes are gathered and leave with the next large one, with a flush, or when the caller
//! waits; large ones go straight from the caller's memory. Reads take what the socket has in one
//! system call and hand it out in the portions that the caller asks for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use vgpu_protocol::transport::{Interest, Transport, TransportError};

use crate::pending::Pending;
use crate::record::{LENGTH, MAX_CONTENT, Records, TAG, first_record};
use crate::socket::{Ready, Received, Socket, is_gone, poll};

/// Writes below this many bytes are gathered.
const GATHERED: usize = 16 << 10;

/// A record on the wire at most, in bytes.
const MAX_RECORD: usize = LENGTH + MAX_CONTENT + TAG;

/// Records that wait for the kernel at most.
const PENDING_RECORDS: usize = 4;

/// Bytes taken from the socket at once.
const RECEIVED: usize = 4 * MAX_RECORD;

type Result<T> = std::result::Result<T, TransportError>;

/// A session's stream over a socket: as it is over `unix:`, encrypted over `tcp:`.
///
/// A read past the other side's [`close`](Transport::close) is the end of the stream. A connection
/// that breaks without it is [`TransportError::Closed`] over TCP, however it broke: nobody between
/// the two sides can make a stream end early and whole. Over a Unix socket, where nobody is in
/// between, a process that dies looks like one that closes.
pub struct SocketTransport {
    socket: Socket,
    place: String,
    records: Option<Box<Records>>,
    /// Content not yet sealed, or not yet sent.
    gathered: Pending,
    /// Records on their way to the kernel. Unused over Unix sockets.
    outgoing: Pending,
    incoming: Incoming,
    /// Set when nothing can be sent any more.
    deaf: bool,
    closed: bool,
}

/// What came from the socket and was not read yet.
#[derive(Default)]
struct Incoming {
    /// Room for what is taken from the socket; made with the first read.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Content of an opened record.
    content: Pending,
    over: Option<Over>,
}

/// Why nothing more can be read.
enum Over {
    /// The other side has closed.
    End,
    /// The connection is gone, without an end.
    Cut,
    /// What came is not what was sent.
    Violation(String),
}

impl std::fmt::Debug for SocketTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SocketTransport")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl SocketTransport {
    /// The stream on an accepted Unix socket.
    ///
    /// # Errors
    /// The system's.
    pub fn from_unix(stream: UnixStream) -> io::Result<Self> {
        Self::connected_unix(stream, "unix: (accepted)".to_owned())
    }

    pub(crate) fn connected_unix(stream: UnixStream, place: String) -> io::Result<Self> {
        Ok(Self::new(Socket::unix(stream)?, None, place))
    }

    pub(crate) fn sealed(socket: Socket, records: Records, place: String) -> Self {
        Self::new(socket, Some(Box::new(records)), place)
    }

    fn new(socket: Socket, records: Option<Box<Records>>, place: String) -> Self {
        Self {
            socket,
            place,
            records,
            gathered: Pending::default(),
            outgoing: Pending::default(),
            incoming: Incoming::default(),
            deaf: false,
            closed: false,
        }
    }

    /// Whether bytes wait for room in the kernel. Who polls the descriptor itself should then poll
    /// for writing too, and call [`flush`](Transport::flush) when it is possible.
    pub fn wants_write(&self) -> bool {
        !self.deaf && self.gathered.len() + self.outgoing.len() > 0
    }

    /// Whether [`try_read`](Transport::try_read) has something without asking the kernel.
    pub fn has_received(&self) -> bool {
        let Incoming { content, over, .. } = &self.incoming;
        let whole = match self.records {
            Some(_) => first_record(self.incoming.unread()).is_some(),
            None => !self.incoming.unread().is_empty(),
        };
        whole || over.is_some() || !content.is_empty()
    }

    fn failed(&self, doing: &str, source: io::Error) -> TransportError {
        if is_gone(&source) {
            return TransportError::Closed;
        }
        TransportError::Io {
            context: format!("{doing} {}", self.place),
            source,
        }
    }

    /// Gives bytes to the kernel; no error that says "gone" passes unnoticed by later calls.
    fn send(&mut self, of: Queue, then: &[u8]) -> Result<usize> {
        let first = match of {
            Queue::Gathered => self.gathered.bytes(),
            Queue::Outgoing => self.outgoing.bytes(),
        };
        match self.socket.send(first, then) {
            Ok(n) => Ok(n),
            Err(error) => {
                self.deaf = true;
                self.gathered.clear();
                self.outgoing.clear();
                Err(self.failed("writing to", error))
            }
        }
    }

    /// Gives the kernel what waits, as far as it has room.
    fn push(&mut self) -> Result<()> {
        if self.deaf {
            return Ok(());
        }
        if self.records.is_none() {
            if !self.gathered.is_empty() {
                let n = self.send(Queue::Gathered, &[])?;
                self.gathered.advance(n);
            }
            return Ok(());
        }
        self.push_records()?;
        if !self.gathered.is_empty() && self.has_room() {
            self.seal_gathered();
            self.push_records()?;
        }
        Ok(())
    }

    fn push_records(&mut self) -> Result<()> {
        while !self.outgoing.is_empty() {
            match self.send(Queue::Outgoing, &[])? {
                0 => break,
                n => self.outgoing.advance(n),
            }
        }
        Ok(())
    }

    /// Whether another record may wait for the kernel.
    fn has_room(&self) -> bool {
        self.outgoing.len() + MAX_RECORD <= PENDING_RECORDS * MAX_RECORD
    }

    fn seal_gathered(&mut self) {
        if let Some(records) = &mut self.records {
            records.seal(self.gathered.bytes(), self.outgoing.end());
            self.gathered.clear();
        }
    }

    /// Sends `buf` as it is, after what was gathered.
    fn write_plain(&mut self, buf: &[u8]) -> Result<usize> {
        let gathered = self.gathered.len();
        let sent = self.send(Queue::Gathered, buf)?;
        self.gathered.advance(sent);
        Ok(sent.saturating_sub(gathered))
    }

    fn write_records(&mut self, buf: &[u8]) -> Result<usize> {
        if !self.has_room() {
            self.push_records()?;
        }
        let mut taken = 0;
        while taken < buf.len() && self.has_room() {
            let rest = &buf[taken..];
            let Some(records) = &mut self.records else {
                break;
            };
            if self.gathered.is_empty() && rest.len() >= MAX_CONTENT {
                records.seal(&rest[..MAX_CONTENT], self.outgoing.end());
                taken += MAX_CONTENT;
                continue;
            }
            // The end of a large write waits a moment for the next header.
            let n = rest.len().min(MAX_CONTENT - self.gathered.len());
            self.gathered.end().extend_from_slice(&rest[..n]);
            taken += n;
            if self.gathered.len() == MAX_CONTENT {
                self.seal_gathered();
            }
        }
        self.push_records()?;
        Ok(taken)
    }

    /// Takes what the socket has: into `buf` first where that is wanted as it is.
    fn receive(&mut self, buf: &mut [u8]) -> Result<Received> {
        if !self.deaf {
            // The other side may wait for these; whether it takes them is the writer's to know.
            let _ = self.push_records();
        }
        let incoming = &mut self.incoming;
        if incoming.bytes.is_empty() {
            incoming.bytes.resize(RECEIVED, 0);
        }
        incoming.make_room();
        let plain = self.records.is_none();
        let first: &mut [u8] = if plain { buf } else { &mut [] };
        let direct = first.len();
        // What is large enough is read straight into the caller's memory and nowhere else.
        let then = match direct {
            0..GATHERED => &mut incoming.bytes[incoming.end..],
            _ => &mut [],
        };
        match self.socket.receive(first, then) {
            Ok(Received::Bytes(n)) => {
                incoming.end += n.saturating_sub(direct);
                Ok(Received::Bytes(n.min(if plain { direct } else { n })))
            }
            Ok(other) => Ok(other),
            Err(error) => {
                self.incoming.over.get_or_insert(Over::Cut);
                Err(self.failed("reading from", error))
            }
        }
    }

    fn read_plain(&mut self, buf: &mut [u8]) -> Result<Option<usize>> {
        let n = self.incoming.take(buf);
        if n > 0 {
            return Ok(Some(n));
        }
        if let Some(over) = &self.incoming.over {
            return over.answer();
        }
        match self.receive(buf)? {
            Received::Bytes(n) => Ok(Some(n)),
            Received::Nothing => Ok(None),
            Received::End => {
                self.incoming.over = Some(Over::End);
                Ok(Some(0))
            }
        }
    }

    fn read_records(&mut self, buf: &mut [u8]) -> Result<Option<usize>> {
        let mut filled = 0;
        while filled < buf.len() {
            filled += self.incoming.take_content(&mut buf[filled..]);
            if filled == buf.len() || self.open_next(buf, &mut filled) {
                continue;
            }
            if filled > 0 {
                break;
            }
            if let Some(over) = &self.incoming.over {
                return over.answer();
            }
            match self.receive(&mut [])? {
                Received::Bytes(_) => {}
                Received::Nothing => return Ok(None),
                Received::End => self.incoming.over = Some(Over::Cut),
            }
        }
        Ok(Some(filled))
    }

    /// Opens the next record, if it is whole; straight into `buf` after `filled` where it fits.
    /// Returns whether there is more to look at.
    fn open_next(&mut self, buf: &mut [u8], filled: &mut usize) -> bool {
        let Incoming {
            bytes,
            start,
            end,
            content,
            over,
        } = &mut self.incoming;
        let Some(records) = self.records.as_mut().filter(|_| over.is_none()) else {
            return false;
        };
        let unread = &bytes[*start..*end];
        let Some(whole) = first_record(unread) else {
            return false;
        };
        let sealed = &unread[LENGTH..whole];
        let room = &mut buf[*filled..];
        let opened = if room.len() >= sealed.len() {
            records.open(sealed, room).inspect(|n| *filled += n)
        } else {
            let end = content.end();
            end.resize(sealed.len(), 0);
            let opened = records.open(sealed, end);
            end.truncate(*opened.as_ref().unwrap_or(&0));
            opened
        };
        *start += whole;
        match opened {
            Ok(0) => *over = Some(Over::End),
            Ok(_) => {}
            Err(error) => *over = Some(Over::Violation(error.to_string())),
        }
        over.is_none()
    }

    /// Waits until all that was written is with the kernel.
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
                Err(error) => return Err(self.failed("waiting for", error)),
            }
        }
    }

    /// Throws away what the socket has. Returns whether more may come.
    fn discard(&mut self) -> Result<bool> {
        let mut scrap = [0; GATHERED];
        match self.socket.receive(&mut scrap, &mut []) {
            Ok(received) => Ok(received != Received::End),
            Err(error) => Err(self.failed("reading from", error)),
        }
    }

    /// Waits until the other side has ended its stream too. A socket that is closed with bytes
    /// unread resets the connection, and what was sent last may never arrive.
    fn linger(&mut self, deadline: Instant) {
        let wanted = Ready {
            read: true,
            write: false,
        };
        while let Ok(Some(_)) = poll(&self.socket, wanted, deadline) {
            if !self.discard().is_ok_and(|more| more) || Instant::now() >= deadline {
                return;
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Queue {
    Gathered,
    Outgoing,
}

impl Over {
    /// What every read from then on returns.
    fn answer(&self) -> Result<Option<usize>> {
        match self {
            Self::End => Ok(Some(0)),
            Self::Cut => Err(TransportError::Closed),
            Self::Violation(what) => Err(TransportError::PeerViolation(what.clone())),
        }
    }
}

impl Incoming {
    fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn make_room(&mut self) {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// Moves bytes as they came.
    fn take(&mut self, buf: &mut [u8]) -> usize {
        let n = buf.len().min(self.end - self.start);
        buf[..n].copy_from_slice(&self.bytes[self.start..self.start + n]);
        self.start += n;
        n
    }

    fn take_content(&mut self, buf: &mut [u8]) -> usize {
        let n = buf.len().min(self.content.len());
        buf[..n].copy_from_slice(&self.content.bytes()[..n]);
        self.content.advance(n);
        n
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
        match self.records {
            Some(_) => self.read_records(buf),
            None => self.read_plain(buf),
        }
    }

    fn try_write(&mut self, buf: &[u8]) -> Result<usize> {
        if self.closed || self.deaf {
            return Err(TransportError::Closed);
        }
        if buf.len() < GATHERED && self.gathered.len() + buf.len() < MAX_CONTENT {
            self.gathered.end().extend_from_slice(buf);
            return Ok(buf.len());
        }
        match self.records {
            Some(_) => self.write_records(buf),
            None => self.write_plain(buf),
        }
    }

    /// What waits to be sent goes out meanwhile, whatever is waited for.
    fn wait(&mut self, interest: Interest, deadline: Instant) -> Result<()> {
        let reading = !matches!(interest, Interest::Write);
        let writing = !matches!(interest, Interest::Read);
        // Over a Unix socket only the kernel's room counts; records have some of their own.
        let plain = self.records.is_none();
        loop {
            match self.push() {
                // Who wants to write is told by the write; there may be bytes left to read.
                Err(TransportError::Closed) => {}
                other => other?,
            }
            let may_write = self.deaf || (!plain && self.has_room());
            if self.closed || (reading && self.has_received()) || (writing && may_write) {
                return Ok(());
            }
            let wanted = Ready {
                read: reading,
                write: writing || self.wants_write(),
            };
            match poll(&self.socket, wanted, deadline) {
                Ok(Some(ready)) => {
                    if (reading && ready.read) || (writing && plain && ready.write) {
                        return Ok(());
                    }
                }
                Ok(None) => {
                    return Err(TransportError::TimedOut(match interest {
                        Interest::Read => "read",
                        Interest::Write => "write",
                        Interest::ReadOrWrite => "read or write",
                    }));
                }
                Err(error) => return Err(self.failed("waiting for", error)),
            }
        }
    }

    /// Where the other side sends and takes nothing, its bytes come first: this returns early so
    /// that the caller reads them, and the rest leaves with its next call.
    fn flush(&mut self, deadline: Instant) -> Result<()> {
        if self.closed || self.deaf {
            return Err(TransportError::Closed);
        }
        self.drain(deadline, true)
    }

    fn close(&mut self, deadline: Instant) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        let drained = match self.deaf {
            true => Err(TransportError::Closed),
            false => self.drain(deadline, false),
        };
        self.closed = true;
        if drained.is_ok()
            && let Some(records) = &mut self.records
        {
            records.seal(&[], self.outgoing.end());
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
        self.place.clone()
    }
}

impl AsFd for SocketTransport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
