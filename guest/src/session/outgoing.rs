//! What a vector add sends: the request, then the chunks, straight from the caller's vectors.

use std::ops::Range;

use vgpu_protocol::frame::{FrameHeader, HEADER_LEN};
use vgpu_protocol::message::VectorAdd;

/// Bytes of the request's body.
const REQUEST_BODY: usize = 16;

/// The frames of one vector add, as the slices they consist of.
///
/// A frame is a front (its header, and in the first frame the request's body), a part of `a` and
/// a part of `b`, of the same range.
#[derive(Debug)]
pub(crate) struct Outgoing<'v> {
    a: &'v [u8],
    b: &'v [u8],
    request: FrameHeader,
    chunk_bytes: usize,
    front: [u8; HEADER_LEN + REQUEST_BODY],
    front_len: usize,
    /// The part of both vectors in this frame.
    part: Range<usize>,
    /// Bytes of this frame already sent.
    sent: usize,
    /// No frame follows this one.
    last: bool,
    /// The mediator wants no more.
    cut: bool,
}

impl<'v> Outgoing<'v> {
    /// `a` and `b` are the bytes of the vectors that `add`, the body of `request`, describes.
    pub(crate) fn new(a: &'v [u8], b: &'v [u8], request: FrameHeader, add: &VectorAdd) -> Self {
        debug_assert_eq!(a.len(), b.len());
        let mut front = [0; HEADER_LEN + REQUEST_BODY];
        front[..HEADER_LEN].copy_from_slice(&request.encode());
        front[HEADER_LEN..].copy_from_slice(&add.encode());
        Self {
            a,
            b,
            request,
            chunk_bytes: add.chunk_elements as usize * add.data_type.size(),
            front,
            front_len: HEADER_LEN + REQUEST_BODY,
            part: 0..0,
            sent: 0,
            last: false,
            cut: false,
        }
    }

    /// The bytes to send next; empty when all are sent.
    pub(crate) fn pending(&self) -> &[u8] {
        let in_a = self.front_len + self.part.len();
        if self.sent < self.front_len {
            &self.front[self.sent..self.front_len]
        } else if self.sent < in_a {
            &self.a[self.part.clone()][self.sent - self.front_len..]
        } else {
            &self.b[self.part.clone()][self.sent - in_a..]
        }
    }

    /// Notes that `n` of the pending bytes were sent.
    pub(crate) fn advance(&mut self, n: usize) {
        self.sent += n;
        if self.sent == self.front_len + 2 * self.part.len() && !self.last {
            self.next_frame();
        }
    }

    /// Ends the input after the frame that is being sent.
    pub(crate) fn cut(&mut self) {
        if std::mem::replace(&mut self.cut, true) {
            return;
        }
        // A chunk of which nothing was sent yet is taken back.
        if self.sent == 0 && !self.part.is_empty() {
            self.part = self.part.start..self.part.start;
            self.next_frame();
        }
    }

    /// Whether everything was sent.
    pub(crate) fn is_finished(&self) -> bool {
        self.pending().is_empty()
    }

    fn next_frame(&mut self) {
        let start = self.part.end;
        let end = if self.cut {
            start
        } else {
            self.a.len().min(start + self.chunk_bytes)
        };
        self.part = start..end;
        self.last = self.cut || end == self.a.len();
        // At most MAX_BODY: the chunk was chosen so.
        let body_len = u32::try_from(2 * self.part.len()).unwrap_or(u32::MAX);
        let header = FrameHeader::data_for(&self.request, body_len, !self.last);
        self.front[..HEADER_LEN].copy_from_slice(&header.encode());
        self.front_len = HEADER_LEN;
        self.sent = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vgpu_protocol::frame::Flags;
    use vgpu_protocol::message::{DataType, Op};

    /// Frames as (op, has_more, body), from a sender that takes `portion` bytes at a time and is
    /// cut once `cut_after` bytes were sent.
    fn frames(
        elements: u8,
        chunk: u32,
        portion: usize,
        cut_after: usize,
    ) -> Vec<(Op, bool, Vec<u8>)> {
        let a: Vec<u8> = (0..elements).flat_map(|i| [i; 4]).collect();
        let b: Vec<u8> = (0..elements).flat_map(|i| [i + 100; 4]).collect();
        let add = VectorAdd {
            elements: elements.into(),
            chunk_elements: chunk,
            data_type: DataType::F32,
        };
        let request = FrameHeader::request(Op::VectorAdd, 9)
            .with_flags(Flags::MORE)
            .with_body_len(16);
        let mut outgoing = Outgoing::new(&a, &b, request, &add);
        let mut bytes = Vec::new();
        while !outgoing.is_finished() {
            if bytes.len() >= cut_after {
                outgoing.cut();
            }
            let pending = outgoing.pending();
            let n = pending.len().min(portion);
            bytes.extend_from_slice(&pending[..n]);
            outgoing.advance(n);
        }
        let mut frames = Vec::new();
        let mut rest = bytes.as_slice();
        while let Some((header, after)) = rest.split_first_chunk::<HEADER_LEN>() {
            let header = FrameHeader::decode(header).expect("a sound header");
            assert_eq!(header.request_id, 9);
            let (body, after) = after.split_at(header.body_len as usize);
            frames.push((header.op, header.has_more(), body.to_vec()));
            rest = after;
        }
        assert!(rest.is_empty());
        frames
    }

    #[test]
    fn chunks_follow_the_request_in_any_portions() {
        for portion in [1, 3, 7, 40, 1000] {
            let frames = frames(5, 2, portion, usize::MAX);
            assert_eq!(frames.len(), 4);
            assert_eq!(
                (frames[0].0, frames[0].1, frames[0].2.len()),
                (Op::VectorAdd, true, 16)
            );
            let full = [[0; 4], [1; 4], [100; 4], [101; 4]].concat();
            assert_eq!(frames[1], (Op::Data, true, full));
            assert_eq!(frames[3], (Op::Data, false, [[4; 4], [104; 4]].concat()));
        }
    }

    #[test]
    fn a_cut_ends_the_input_with_an_empty_frame() {
        // In the request, at the start of a chunk, in the middle of one.
        for (cut_after, chunks) in [
            (1, 0),
            (56, 0),
            (57, 1),
            (56 + 40 + 16, 1),
            (56 + 40 + 17, 2),
        ] {
            let frames = frames(5, 2, 1, cut_after);
            assert_eq!(frames.len(), 2 + chunks, "cut after {cut_after}");
            assert_eq!(frames.last(), Some(&(Op::Data, false, Vec::new())));
        }
        // In the last chunk, which ends the input anyway.
        let frames = frames(5, 2, 1, 56 + 2 * (40 + 16) + 1);
        assert_eq!(frames.last().map(|frame| frame.2.len()), Some(8));
    }
}
