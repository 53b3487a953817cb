//! What a vector add receives: result chunks, straight into the caller's vector, then the reply.

use vgpu_protocol::frame::{FrameHeader, HeaderBuffer};
use vgpu_protocol::message::{Chunks, Op, VectorAdd};

use super::wire::{Reply, check_reply};
use crate::error::Cause;

/// The frames that answer one vector add.
#[derive(Debug)]
pub(crate) struct Incoming<'v> {
    out: &'v mut [u8],
    /// Bytes of `out` received.
    filled: usize,
    request: FrameHeader,
    element_size: usize,
    /// The chunks whose results have not begun.
    chunks: Chunks,
    header: HeaderBuffer,
    reading: Reading,
}

#[derive(Debug)]
enum Reading {
    Header,
    /// A result chunk that ends at this byte of `out`.
    Result {
        end: usize,
    },
    /// The body of the final reply, or of the mediator's own Goodbye.
    Reply {
        reply: Reply,
        filled: usize,
    },
}

impl<'v> Incoming<'v> {
    /// `out` are the bytes of the vector that `add`, the body of `request`, describes.
    pub(crate) fn new(out: &'v mut [u8], request: FrameHeader, add: &VectorAdd) -> Self {
        Self {
            out,
            filled: 0,
            request,
            element_size: add.data_type.size(),
            chunks: add.chunks(),
            header: HeaderBuffer::new(),
            reading: Reading::Header,
        }
    }

    /// Where the next bytes belong; never empty.
    pub(super) fn space(&mut self) -> &mut [u8] {
        match &mut self.reading {
            Reading::Header => self.header.unfilled(),
            Reading::Result { end } => &mut self.out[self.filled..*end],
            Reading::Reply { reply, filled } => &mut reply.body[*filled..],
        }
    }

    /// Notes that `n` bytes were put into [`space`](Self::space). Returns the final reply's body
    /// once it is complete.
    ///
    /// # Errors
    /// The mediator refused, or broke the protocol.
    pub(super) fn advance(&mut self, n: usize) -> Result<Option<Vec<u8>>, Cause> {
        match &mut self.reading {
            Reading::Header => match self.header.advance(n)? {
                Some(header) => self.begin(header),
                None => Ok(None),
            },
            Reading::Result { end } => {
                self.filled += n;
                if self.filled == *end {
                    self.reading = Reading::Header;
                }
                Ok(None)
            }
            Reading::Reply { reply, filled } => {
                *filled += n;
                if *filled < reply.body.len() {
                    Ok(None)
                } else {
                    self.finish()
                }
            }
        }
    }

    /// Bytes of the result received so far.
    pub(super) fn received(&self) -> usize {
        self.filled
    }

    fn begin(&mut self, header: FrameHeader) -> Result<Option<Vec<u8>>, Cause> {
        check_reply(&header)?;
        if header.op != Op::Data {
            // At most 4096 bytes: the header was validated.
            let body = vec![0; header.body_len as usize];
            let empty = body.is_empty();
            self.reading = Reading::Reply {
                reply: Reply { header, body },
                filled: 0,
            };
            return if empty { self.finish() } else { Ok(None) };
        }
        let elements = self
            .chunks
            .next()
            .ok_or_else(|| Cause::Protocol("more result data than the vector has".to_owned()))?;
        let bytes = elements as usize * self.element_size;
        let body_len = u32::try_from(bytes).unwrap_or(u32::MAX);
        let wanted = FrameHeader::data_reply_to(&self.request, body_len);
        if header != wanted {
            return Err(Cause::Protocol(format!(
                "result data of {} bytes for request {}, where {} bytes for request {} are due",
                header.body_len, header.request_id, wanted.body_len, wanted.request_id
            )));
        }
        self.reading = Reading::Result {
            end: self.filled + bytes,
        };
        Ok(None)
    }

    fn finish(&mut self) -> Result<Option<Vec<u8>>, Cause> {
        let Reading::Reply { reply, .. } = std::mem::replace(&mut self.reading, Reading::Header)
        else {
            return Ok(None);
        };
        let body = reply.body_of(&self.request)?;
        if self.filled < self.out.len() {
            return Err(Cause::Protocol(format!(
                "the reply came after {} of {} result bytes",
                self.filled,
                self.out.len()
            )));
        }
        Ok(Some(body))
    }
}
