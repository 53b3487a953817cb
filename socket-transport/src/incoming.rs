//! From the socket to the reader: plain bytes, or records to be opened.

use vgpu_transport::TransportError;

use crate::pending::Pending;
use crate::record::{LENGTH, MAX_RECORD, Records, first_record};
use crate::socket::{Received, Socket};

/// Most bytes taken from the socket at once.
const RECEIVED: usize = 4 * MAX_RECORD;

/// The kernel fills a reader's buffer of at least this many bytes directly.
const DIRECT: usize = 16 << 10;

/// The violation, for the message.
pub(crate) const DESCRIPTORS: &str = "descriptors came, which no session has";

type Result<T> = std::result::Result<T, TransportError>;

/// Bytes received from the socket and not read yet.
#[derive(Default)]
pub(crate) struct Incoming {
    /// Room for received bytes; allocated by the first read.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Content of an opened record.
    content: Pending,
    over: Option<Over>,
}

/// The reasons why nothing more can be read.
enum Over {
    /// The other side has closed.
    End,
    /// The connection broke, without an end of the stream.
    Cut,
    /// The bytes received are not those sent.
    Violation(String),
}

impl Over {
    fn descriptors() -> Self {
        Self::Violation(DESCRIPTORS.to_owned())
    }

    /// The result of every later read.
    fn answer(&self) -> Result<Option<usize>> {
        match self {
            Self::End => Ok(Some(0)),
            Self::Cut => Err(TransportError::Closed),
            Self::Violation(what) => Err(TransportError::PeerViolation(what.clone())),
        }
    }
}

impl Incoming {
    /// Whether a read has a result without asking the kernel.
    pub(crate) fn is_ready(&self, sealed: bool) -> bool {
        let whole = match sealed {
            true => first_record(self.unread()).is_some(),
            false => self.start < self.end,
        };
        whole || self.over.is_some() || !self.content.is_empty()
    }

    /// Reads plain bytes. Takes what the socket has in one system call: into `buf`, and the excess
    /// of a small one into memory of its own.
    pub(crate) fn read_plain(&mut self, socket: &Socket, buf: &mut [u8]) -> Result<Option<usize>> {
        let n = buf.len().min(self.end - self.start);
        if n > 0 {
            buf[..n].copy_from_slice(&self.bytes[self.start..self.start + n]);
            self.start += n;
            return Ok(Some(n));
        }
        if let Some(over) = &self.over {
            return over.answer();
        }
        let room = self.room();
        let then = if buf.len() < DIRECT { room } else { &mut [] };
        match socket.receive(buf, then) {
            Ok(Received::Bytes(n)) => {
                self.end += n.saturating_sub(buf.len());
                Ok(Some(n.min(buf.len())))
            }
            Ok(Received::Nothing) => Ok(None),
            Ok(Received::End) => {
                self.over = Some(Over::End);
                Ok(Some(0))
            }
            Ok(Received::Descriptors) => self.over.insert(Over::descriptors()).answer(),
            Err(error) => Err(self.failed(socket, error)),
        }
    }

    /// Reads the content of records: as many as are complete and fit `buf`.
    pub(crate) fn read_records(
        &mut self,
        socket: &Socket,
        records: &mut Records,
        buf: &mut [u8],
    ) -> Result<Option<usize>> {
        let mut filled = 0;
        while filled < buf.len() {
            filled += self.take_content(&mut buf[filled..]);
            if filled == buf.len() || self.open_next(records, buf, &mut filled) {
                continue;
            }
            if filled > 0 {
                break;
            }
            if let Some(over) = &self.over {
                return over.answer();
            }
            match socket.receive(self.room(), &mut []) {
                Ok(Received::Bytes(n)) => self.end += n,
                Ok(Received::Nothing) => return Ok(None),
                Ok(Received::End) => self.over = Some(Over::Cut),
                Ok(Received::Descriptors) => self.over = Some(Over::descriptors()),
                Err(error) => return Err(self.failed(socket, error)),
            }
        }
        Ok(Some(filled))
    }

    fn failed(&mut self, socket: &Socket, error: std::io::Error) -> TransportError {
        self.over = Some(Over::Cut);
        socket.failed("reading from", error)
    }

    fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The room for further bytes. There always is some: an incomplete record is shorter than the
    /// whole buffer.
    fn room(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes.resize(RECEIVED, 0);
        }
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.bytes[self.end..]
    }

    fn take_content(&mut self, buf: &mut [u8]) -> usize {
        let n = buf.len().min(self.content.len());
        buf[..n].copy_from_slice(&self.content.bytes()[..n]);
        self.content.advance(n);
        n
    }

    /// Opens the next record, if it is complete; straight into `buf` after `filled` where it fits.
    /// Returns whether there may be another.
    fn open_next(&mut self, records: &mut Records, buf: &mut [u8], filled: &mut usize) -> bool {
        if self.over.is_some() {
            return false;
        }
        let unread = &self.bytes[self.start..self.end];
        let Some(whole) = first_record(unread) else {
            return false;
        };
        let sealed = &unread[LENGTH..whole];
        let room = &mut buf[*filled..];
        let opened = if room.len() >= sealed.len() {
            records.open(sealed, room).inspect(|n| *filled += n)
        } else {
            let content = self.content.end();
            content.resize(sealed.len(), 0);
            let opened = records.open(sealed, content);
            content.truncate(*opened.as_ref().unwrap_or(&0));
            opened
        };
        self.start += whole;
        match opened {
            Ok(0) => self.over = Some(Over::End),
            Ok(_) => {}
            Err(error) => self.over = Some(Over::Violation(error.to_string())),
        }
        self.over.is_none()
    }
}
