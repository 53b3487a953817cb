//! Replies on their way out, without I/O.

use std::collections::VecDeque;

use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::status::{Status, encode_error_text};

/// Above this many bytes of replies that the guest has not taken, the session stops reading
/// requests. A guest that asks and never reads answers stops itself.
pub const CAPACITY: usize = 64 << 10;

/// One whole frame: what a request is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    header: FrameHeader,
    body: Vec<u8>,
}

impl Reply {
    /// The request succeeded. `body` is at most what its operation allows.
    pub fn ok(request: &FrameHeader, body: Vec<u8>) -> Self {
        Self::new(FrameHeader::reply_to(request, Status::OK), body)
    }

    /// The request failed; `text` says why, for people.
    pub fn error(request: &FrameHeader, status: Status, text: &str) -> Self {
        let body = encode_error_text(text).to_vec();
        Self::new(FrameHeader::reply_to(request, status), body)
    }

    /// The mediator ends the session of its own accord.
    pub fn closing(status: Status, text: &str) -> Self {
        let body = encode_error_text(text).to_vec();
        Self::new(FrameHeader::closing(status), body)
    }

    fn new(header: FrameHeader, body: Vec<u8>) -> Self {
        // Every body made here is at most 4096 bytes; frames carry no more than 16 MiB.
        let body_len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        Self {
            header: header.with_body_len(body_len),
            body,
        }
    }

    /// How the request went.
    pub fn status(&self) -> Status {
        self.header.status
    }

    /// The frame as it goes out.
    pub fn encode(&self) -> Vec<u8> {
        [&self.header.encode()[..], &self.body].concat()
    }
}

/// Encoded replies in the order they were made.
#[derive(Debug, Default)]
pub struct Outbox {
    frames: VecDeque<Vec<u8>>,
    /// Bytes of the first frame that are gone already.
    sent: usize,
    waiting: usize,
}

impl Outbox {
    /// Adds a reply at the end.
    pub fn push(&mut self, reply: &Reply) {
        let frame = reply.encode();
        self.waiting += frame.len();
        self.frames.push_back(frame);
    }

    /// The bytes to send next; empty when there are none.
    pub fn unsent(&self) -> &[u8] {
        self.frames.front().map_or(&[], |frame| &frame[self.sent..])
    }

    /// Notes that `n` bytes of [`unsent`](Self::unsent) were sent.
    pub fn advance(&mut self, n: usize) {
        let Some(frame) = self.frames.front() else {
            return;
        };
        let n = n.min(frame.len() - self.sent);
        self.sent += n;
        self.waiting -= n;
        if self.sent == frame.len() {
            self.frames.pop_front();
            self.sent = 0;
        }
    }

    /// Whether everything was sent.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether so much is waiting that no further request should be read.
    pub fn is_full(&self) -> bool {
        self.waiting > CAPACITY
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vgpu_protocol::message::Op;
    use vgpu_protocol::status::ErrorCode;

    #[test]
    fn bytes_leave_in_order_and_in_any_portions() {
        let request = FrameHeader::request(Op::Ping, 5);
        let replies = [
            Reply::ok(&request, b"hello".to_vec()),
            Reply::error(&request, ErrorCode::Range.into(), "too far"),
        ];
        let wanted: Vec<u8> = replies.iter().flat_map(Reply::encode).collect();
        for portion in [1, 7, 40, 1000] {
            let mut outbox = Outbox::default();
            replies.iter().for_each(|reply| outbox.push(reply));
            let mut got = Vec::new();
            while !outbox.is_empty() {
                let unsent = outbox.unsent();
                let n = unsent.len().min(portion);
                got.extend_from_slice(&unsent[..n]);
                outbox.advance(n);
            }
            assert_eq!(got, wanted);
            assert_eq!(outbox.unsent(), b"");
            assert!(!outbox.is_full());
        }
    }

    #[test]
    fn a_guest_that_never_reads_fills_it() {
        let request = FrameHeader::request(Op::Ping, 5);
        let mut outbox = Outbox::default();
        let pushed = std::iter::repeat_with(|| {
            outbox.push(&Reply::ok(&request, vec![0; 4096]));
            outbox.is_full()
        })
        .position(|full| full);
        assert_eq!(pushed, Some(15));
    }
}
