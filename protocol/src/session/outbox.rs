//! Encoded frames that wait to be sent.

use crate::frame::{FrameHeader, HEADER_LEN};
use crate::op::Op;

/// Encoded frames in the order they were made.
///
/// The body of a Data frame is not kept here: it stays in the caller's memory, and is written
/// together with the bytes before it. A frame that has begun is completed before another.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Whole frames, then the header of the Data frame, if one is under way.
    before: Queue,
    data: Option<Data>,
    /// Frames queued while the data was under way.
    after: Queue,
}

/// A Data frame's body.
#[derive(Debug, Clone, Copy)]
struct Data {
    request_id: u32,
    left: usize,
}

/// Bytes of which the front has been sent.
#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    sent: usize,
}

impl Queue {
    #[inline]
    fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    fn advance(&mut self, n: usize) {
        self.sent += n;
        debug_assert!(self.sent <= self.bytes.len());
        if self.sent == self.bytes.len() {
            // The usual case.
            self.bytes.clear();
            self.sent = 0;
            return;
        }
        // Even if some always wait: the other side, which takes them, must not make this grow. As
        // many bytes go as stay at most, so each is moved once on average.
        if 2 * self.sent >= self.bytes.len() {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }
}

impl Outbox {
    /// Adds a frame whose body `write` appends; the header's `body_len` is set.
    ///
    /// # Panics
    /// The frame is longer than its operation allows.
    pub fn push(&mut self, header: FrameHeader, write: impl FnOnce(&mut Vec<u8>)) {
        let queue = match self.data {
            None => &mut self.before.bytes,
            Some(_) => &mut self.after.bytes,
        };
        let start = queue.len();
        // The header is written last, since it says how long the body is.
        queue.extend_from_slice(&[0; HEADER_LEN]);
        let body = queue.len();
        write(queue);
        let len = queue.len() - body;
        assert!(
            len <= header.op.max_body(header.is_reply()),
            "{} with {len} bytes",
            header.op
        );
        let len = u32::try_from(len).expect("bounded by the table");
        let header = header.with_body_len(len).encode();
        queue[start..body].copy_from_slice(&header);
    }

    /// Adds the header of a Data frame, whose body must be at hand.
    ///
    /// # Panics
    /// If another frame is under way.
    pub fn begin_data(&mut self, header: &FrameHeader) {
        assert!(self.data.is_none() && header.op == Op::Data);
        header.encode_to(&mut self.before.bytes);
        if header.body_len > 0 {
            self.data = Some(Data {
                request_id: header.request_id,
                left: header.body_len as usize,
            });
        }
    }

    /// The bytes to send next, before those of [`data`](Self::data).
    #[inline]
    pub fn unsent(&self) -> &[u8] {
        self.before.unsent()
    }

    /// The Data frame under way: its request, and the bytes of the body that are left.
    #[inline]
    pub fn data(&self) -> Option<(u32, usize)> {
        self.data.map(|data| (data.request_id, data.left))
    }

    /// Notes that `n` bytes were sent of [`unsent`](Self::unsent) and then of the data; returns the
    /// request of the data and the bytes of it.
    pub fn sent(&mut self, n: usize) -> Option<(u32, usize)> {
        let head = n.min(self.before.unsent().len());
        self.before.advance(head);
        let n = n - head;
        let data = self.data.as_mut().filter(|_| n > 0)?;
        data.left -= n;
        let request_id = data.request_id;
        if data.left == 0 {
            self.data = None;
            // All of `before` has been sent.
            std::mem::swap(&mut self.before, &mut self.after);
        }
        Some((request_id, n))
    }

    /// Bytes that wait, without those of the data.
    #[inline]
    pub fn len(&self) -> usize {
        self.before.unsent().len() + self.after.unsent().len()
    }

    #[cfg(test)]
    pub(super) fn allocated(&self) -> usize {
        self.before.bytes.capacity() + self.after.bytes.capacity()
    }

    /// Whether everything was sent.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.data.is_none()
    }
}
