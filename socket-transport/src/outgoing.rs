//! From the writer to the socket: small writes gathered, large ones passed on or sealed at once.

use vgpu_transport::TransportError;

use crate::pending::Pending;
use crate::record::{MAX_CONTENT, MAX_RECORD, Records};
use crate::socket::Socket;

/// Writes below this many bytes are gathered.
const GATHERED: usize = 16 << 10;

/// Most records that wait for the kernel.
const PENDING_RECORDS: usize = 4;

type Result<T> = std::result::Result<T, TransportError>;

/// Bytes written and not yet passed to the kernel.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// Content not yet sealed, or not yet sent.
    gathered: Pending,
    /// Records on their way to the kernel. Unused where nothing is sealed.
    sealed: Pending,
    /// Nothing more can be sent.
    send_closed: bool,
}

impl Outgoing {
    /// Whether nothing more can be sent.
    pub(crate) fn is_send_closed(&self) -> bool {
        self.send_closed
    }

    /// Whether anything waits for the kernel.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.send_closed && self.gathered.len() + self.sealed.len() > 0
    }

    /// Whether another record may wait for the kernel.
    pub(crate) fn has_room(&self) -> bool {
        self.sealed.len() + MAX_RECORD <= PENDING_RECORDS * MAX_RECORD
    }

    /// Takes bytes of `parts`, one after the other; 0: there is no room.
    pub(crate) fn write(
        &mut self,
        socket: &Socket,
        records: Option<&mut Records>,
        parts: &[&[u8]],
    ) -> Result<usize> {
        let bytes = parts.iter().map(|part| part.len()).sum();
        if bytes < GATHERED && self.gathered.len() + bytes < MAX_CONTENT {
            for part in parts {
                self.gathered.end().extend_from_slice(part);
            }
            return Ok(bytes);
        }
        match records {
            Some(records) => self.write_records(socket, records, parts),
            None => self.write_plain(socket, parts),
        }
    }

    /// Passes waiting bytes to the kernel, as far as it has room.
    pub(crate) fn push(&mut self, socket: &Socket, records: Option<&mut Records>) -> Result<()> {
        if self.send_closed {
            return Ok(());
        }
        let Some(records) = records else {
            return match self.gathered.is_empty() {
                true => Ok(()),
                false => self.write_plain(socket, &[]).map(drop),
            };
        };
        self.push_sealed(socket)?;
        if !self.gathered.is_empty() && self.has_room() {
            self.seal_gathered(records);
            self.push_sealed(socket)?;
        }
        Ok(())
    }

    /// [`push`](Self::push) for sealed records only.
    pub(crate) fn push_sealed(&mut self, socket: &Socket) -> Result<()> {
        while !self.send_closed && !self.sealed.is_empty() {
            match socket.send(self.sealed.bytes(), &[]) {
                Ok(0) => break,
                Ok(n) => self.sealed.advance(n),
                Err(error) => return Err(self.failed(socket, error)),
            }
        }
        Ok(())
    }

    /// Seals the end of the stream.
    pub(crate) fn end(&mut self, records: &mut Records) {
        records.seal(&[], self.sealed.end());
    }

    /// Sends `parts` as they are, after what was gathered, in one system call.
    fn write_plain(&mut self, socket: &Socket, parts: &[&[u8]]) -> Result<usize> {
        let gathered = self.gathered.len();
        match socket.send(self.gathered.bytes(), parts) {
            Ok(sent) => {
                self.gathered.advance(sent);
                Ok(sent.saturating_sub(gathered))
            }
            Err(error) => Err(self.failed(socket, error)),
        }
    }

    fn write_records(
        &mut self,
        socket: &Socket,
        records: &mut Records,
        parts: &[&[u8]],
    ) -> Result<usize> {
        if !self.has_room() {
            self.push_sealed(socket)?;
        }
        let mut taken = 0;
        for part in parts {
            let n = self.seal(records, part);
            taken += n;
            if n < part.len() {
                break;
            }
        }
        self.push_sealed(socket)?;
        Ok(taken)
    }

    /// Seals as much of `buf` as there is room for; returns its bytes.
    fn seal(&mut self, records: &mut Records, buf: &[u8]) -> usize {
        let mut taken = 0;
        while taken < buf.len() && self.has_room() {
            let rest = &buf[taken..];
            if self.gathered.is_empty() && rest.len() >= MAX_CONTENT {
                records.seal(&rest[..MAX_CONTENT], self.sealed.end());
                taken += MAX_CONTENT;
                continue;
            }
            // The rest of a large write waits briefly for the next header.
            let n = rest.len().min(MAX_CONTENT - self.gathered.len());
            self.gathered.end().extend_from_slice(&rest[..n]);
            taken += n;
            if self.gathered.len() == MAX_CONTENT {
                self.seal_gathered(records);
            }
        }
        taken
    }

    fn seal_gathered(&mut self, records: &mut Records) {
        records.seal(self.gathered.bytes(), self.sealed.end());
        self.gathered.clear();
    }

    /// No later call accepts bytes that can never be sent.
    fn failed(&mut self, socket: &Socket, error: std::io::Error) -> TransportError {
        self.send_closed = true;
        self.gathered.clear();
        self.sealed.clear();
        socket.failed("writing to", error)
    }
}
