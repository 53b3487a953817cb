//! Frames over a transport, with a limit on how long nothing may move.

use std::time::{Duration, Instant};

use vgpu_protocol::clock;
use vgpu_protocol::frame::{FrameHeader, HeaderBuffer};
use vgpu_protocol::message::Op;
use vgpu_protocol::status::decode_error_text;
use vgpu_protocol::transport::{Interest, Transport, TransportError};

use crate::error::Cause;
use crate::options::{Options, after};

/// How often a wait looks whether the program was told to stop.
const LOOK: Duration = Duration::from_millis(100);

/// A transport with a session's patience.
pub(crate) struct Wire {
    pub(super) transport: Box<dyn Transport>,
    options: Options,
    header: HeaderBuffer,
    /// Something was written and not yet flushed.
    pub(super) unflushed: bool,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire")
            .field("transport", &self.transport.describe())
            .finish_non_exhaustive()
    }
}

/// A reply as it came, its body not yet read as a message.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) header: FrameHeader,
    pub(super) body: Vec<u8>,
}

impl Reply {
    /// The body, if this answers `request` and says that all went well.
    pub(super) fn body_of(self, request: &FrameHeader) -> Result<Vec<u8>, Cause> {
        let Self { header, body } = self;
        let unasked = header.op == Op::Goodbye && header.request_id == 0;
        if !unasked
            && header
                != (FrameHeader {
                    flags: header.flags,
                    ..expected(request, &header)
                })
        {
            return Err(Cause::Protocol(format!(
                "{} {} was answered by {} {} (lane {})",
                request.op, request.request_id, header.op, header.request_id, header.lane
            )));
        }
        if header.status.is_ok() && !unasked {
            return Ok(body);
        }
        Err(Cause::Refused {
            op: header.op,
            status: header.status,
            text: decode_error_text(&body),
        })
    }
}

fn expected(request: &FrameHeader, reply: &FrameHeader) -> FrameHeader {
    FrameHeader::reply_to(request, reply.status).with_body_len(reply.body_len)
}

impl Wire {
    pub(crate) fn new(transport: Box<dyn Transport>, options: Options) -> Self {
        Self {
            transport,
            options,
            header: HeaderBuffer::new(),
            unflushed: false,
        }
    }

    pub(crate) fn set_options(&mut self, options: Options) {
        self.options = options;
    }

    /// The stall limit, as requests carry it.
    pub(crate) fn deadline_ms(&self) -> u32 {
        u32::try_from(self.options.stall_timeout.as_millis()).unwrap_or(u32::MAX)
    }

    /// Sends one request and takes its reply.
    pub(crate) fn call(&mut self, request: FrameHeader, body: &[u8]) -> Result<Vec<u8>, Cause> {
        self.send(request, body)?;
        self.receive()?.body_of(&request)
    }

    /// Sends one request.
    pub(crate) fn send(&mut self, request: FrameHeader, body: &[u8]) -> Result<(), Cause> {
        debug_assert_eq!(request.body_len as usize, body.len());
        let written = self
            .write(&request.encode())
            .and_then(|()| self.write(body));
        match written {
            // The mediator may have said why before it closed.
            Err(Cause::Transport(TransportError::Closed)) => Err(self.last_words()),
            other => other,
        }
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), Cause> {
        let mut moved = clock::now();
        while !bytes.is_empty() {
            match self.transport.try_write(bytes)? {
                0 => self.wait(Interest::Write, moved)?,
                n => {
                    bytes = &bytes[n..];
                    self.unflushed = true;
                    moved = clock::now();
                }
            }
        }
        Ok(())
    }

    /// Why the mediator closed: its Goodbye, if one is still to be read.
    fn last_words(&mut self) -> Cause {
        match self.receive() {
            Ok(Reply { header, body }) if header.op == Op::Goodbye => Cause::Refused {
                op: Op::Goodbye,
                status: header.status,
                text: decode_error_text(&body),
            },
            _ => Cause::Transport(TransportError::Closed),
        }
    }

    /// Takes the next frame, which must be a reply that fits memory set aside for it.
    fn receive(&mut self) -> Result<Reply, Cause> {
        let mut moved = clock::now();
        let header = loop {
            match self.transport.try_read(self.header.unfilled())? {
                Some(0) => return Err(TransportError::Closed.into()),
                Some(n) => {
                    moved = clock::now();
                    if let Some(header) = self.header.advance(n)? {
                        break header;
                    }
                }
                None => self.wait(Interest::Read, moved)?,
            }
        };
        check_reply(&header)?;
        if header.op == Op::Data {
            return Err(Cause::Protocol("data came where none was asked for".into()));
        }
        // At most 4096 bytes: the header was validated.
        let mut body = vec![0; header.body_len as usize];
        let mut filled = 0;
        while filled < body.len() {
            match self.transport.try_read(&mut body[filled..])? {
                Some(0) => return Err(TransportError::Closed.into()),
                Some(n) => {
                    filled += n;
                    moved = clock::now();
                }
                None => self.wait(Interest::Read, moved)?,
            }
        }
        Ok(Reply { header, body })
    }

    /// # Errors
    /// [`Cause::Interrupted`] when the program was told to stop.
    pub(super) fn check_interrupt(&self) -> Result<(), Cause> {
        if self.options.interrupted() {
            Err(Cause::Interrupted)
        } else {
            Ok(())
        }
    }

    /// Waits until something may move.
    ///
    /// # Errors
    /// [`Cause::Stalled`] when nothing has moved since `moved` for as long as the options allow.
    pub(super) fn wait(&mut self, interest: Interest, moved: Instant) -> Result<(), Cause> {
        let limit = after(moved, self.options.stall_timeout);
        if std::mem::take(&mut self.unflushed) {
            match self.transport.flush(limit) {
                Err(TransportError::TimedOut(_)) => {
                    return Err(Cause::Stalled(self.options.stall_timeout));
                }
                other => other?,
            }
        }
        if self.options.interrupted() {
            return Err(Cause::Interrupted);
        }
        let until = limit.min(clock::now() + LOOK);
        match self.transport.wait(interest, until) {
            // Not the clock: the last look must come after the limit.
            Err(TransportError::TimedOut(_)) if until >= limit => {
                Err(Cause::Stalled(self.options.stall_timeout))
            }
            Err(TransportError::TimedOut(_)) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Closes the transport, waiting at most the stall limit for what was written to be taken: over
    /// NFS that is several calls to a server that may be busy.
    pub(crate) fn close(&mut self) -> Result<(), Cause> {
        let deadline = after(Instant::now(), self.options.stall_timeout);
        Ok(self.transport.close(deadline)?)
    }
}

/// The mediator only ever answers.
pub(super) fn check_reply(header: &FrameHeader) -> Result<(), Cause> {
    if header.is_reply() {
        return Ok(());
    }
    Err(Cause::Protocol(format!("{} came as a request", header.op)))
}
