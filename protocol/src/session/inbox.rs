//! Received bytes to frames.

use std::ops::Range;

use super::passed_over::PassedOver;
use crate::frame::{FrameError, FrameHeader, HEADER_LEN};
use crate::op::{Op, Overtakes};

/// Bytes received beyond the needs of a frame: a small frame and several after it arrive with one
/// read, and of a large body only this much is copied once more.
pub const READ_AHEAD: usize = 4096;

/// Bytes that are read at once behind a frame whose time has not come.
const READ_BEHIND: usize = 64 << 10;

/// The next received item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// A whole frame; its body is [`Inbox::body`] until the next call.
    Frame(FrameHeader),
    /// The header of a Data frame; its body must be taken out.
    Data(FrameHeader),
}

/// Assembles the frames of one direction.
#[derive(Debug)]
pub struct Inbox {
    /// The other side is the mediator.
    replies: bool,
    buffer: Vec<u8>,
    /// Bytes received and not used.
    unread: Range<usize>,
    /// The body of the last frame.
    body: Range<usize>,
    /// Bytes of a Data frame's body that have not been taken.
    data_left: usize,
    /// Up to this place of the buffer frames have been looked at by [`take_behind`](Self::take_behind).
    looked: usize,
    /// The requests before that place.
    passed_over: PassedOver,
}

impl Inbox {
    /// An inbox for frames of guests.
    pub fn of_requests() -> Self {
        Self {
            replies: false,
            buffer: vec![0; READ_AHEAD],
            unread: 0..0,
            body: 0..0,
            data_left: 0,
            looked: 0,
            passed_over: PassedOver::default(),
        }
    }

    /// An inbox for frames of mediators.
    pub fn of_replies() -> Self {
        Self {
            replies: true,
            ..Self::of_requests()
        }
    }

    /// The buffer for the next bytes; never empty. Invalidates [`body`](Self::body).
    pub fn space(&mut self) -> &mut [u8] {
        let wanted = self.missing().max(READ_AHEAD);
        self.move_to_front();
        let end = self.unread.end;
        let size = end.max(wanted) + usize::from(end >= wanted);
        if self.buffer.len() < size {
            self.buffer.resize(size, 0);
        }
        &mut self.buffer[end..size]
    }

    /// The buffer for bytes behind a frame whose time has not come; empty once `most` bytes wait.
    pub fn space_behind(&mut self, most: usize) -> &mut [u8] {
        let room = most.saturating_sub(self.unread.len()).min(READ_BEHIND);
        if room == 0 {
            return &mut [];
        }
        self.move_to_front();
        let end = self.unread.end;
        if self.buffer.len() < end + room {
            self.buffer.resize(end + room, 0);
        }
        &mut self.buffer[end..end + room]
    }

    fn move_to_front(&mut self) {
        self.body = 0..0;
        let start = self.unread.start;
        if start > 0 && !self.unread.is_empty() {
            self.buffer.copy_within(self.unread.clone(), 0);
        }
        self.unread = 0..self.unread.len();
        self.looked = self.looked.saturating_sub(start);
    }

    /// Bytes that have come and are not used.
    #[inline]
    pub fn unread(&self) -> usize {
        self.unread.len()
    }

    /// Takes a whole frame out of those whose time has not come, with its body: one that by `overtakes` may start before
    /// all that are before it. Lanes from `lanes` on have none. Frames that break a rule are left to [`next`](Self::next),
    /// and what is behind them is not looked at.
    pub fn take_behind(
        &mut self,
        lanes: u16,
        overtakes: impl Fn(&FrameHeader) -> Overtakes,
    ) -> Option<(FrameHeader, Vec<u8>)> {
        let ready = self.passed_over.ready().find_map(|lane| {
            let (at, header, body) = self.first_of(lane)?;
            (overtakes(&header) == Overtakes::OtherLanes).then_some((at, header, body))
        });
        if let Some((at, header, body)) = ready {
            self.passed_over.pop(header.lane);
            return Some((header, self.take_out(at, body)));
        }
        let mut at = self.looked.max(self.first_behind());
        loop {
            let (header, body) = self.frame_at(at)?;
            let end = body.end;
            if header.op != Op::Data && header.lane < lanes {
                let overtakes = overtakes(&header);
                let taken = match overtakes {
                    Overtakes::Nothing => false,
                    Overtakes::OtherLanes => self.passed_over.is_empty(header.lane),
                    Overtakes::Everything => true,
                };
                if taken {
                    return Some((header, self.take_out(at, body)));
                }
                let overtakes = overtakes == Overtakes::OtherLanes;
                self.passed_over.push(header.lane, overtakes);
            }
            self.looked = end;
            at = end;
        }
    }

    /// The first request of a lane among those that were passed over: its place, its header and the place of its body.
    fn first_of(&self, lane: u16) -> Option<(usize, FrameHeader, Range<usize>)> {
        let mut at = self.first_behind();
        while at < self.looked {
            let (header, body) = self.frame_at(at)?;
            if header.op != Op::Data && header.lane == lane {
                return Some((at, header, body));
            }
            at = body.end;
        }
        None
    }

    /// Takes the frame at a place of the buffer out of it; returns its body.
    fn take_out(&mut self, at: usize, body: Range<usize>) -> Vec<u8> {
        let content = self.buffer[body.clone()].to_vec();
        self.buffer.copy_within(body.end..self.unread.end, at);
        let len = body.end - at;
        self.unread.end -= len;
        self.body = 0..0;
        if at < self.looked {
            self.looked -= len;
        }
        content
    }

    /// The frames that [`take_behind`](Self::take_behind) has passed over and whose time has not come yet.
    pub fn passed_over(&self) -> impl Iterator<Item = (FrameHeader, &[u8])> {
        let mut at = self.first_behind();
        std::iter::from_fn(move || {
            let (header, body) = self.frame_at(at).filter(|_| at < self.looked)?;
            at = body.end;
            Some((header, &self.buffer[body]))
        })
    }

    /// Where the frames begin whose time has not come: behind what is left of the last one.
    fn first_behind(&self) -> usize {
        self.unread.start + self.data_left
    }

    /// The whole and sound frame at a place of the buffer, and the place of its body.
    fn frame_at(&self, at: usize) -> Option<(FrameHeader, Range<usize>)> {
        let bytes = self.buffer.get(at..self.unread.end)?.first_chunk()?;
        let header = FrameHeader::decode(bytes).ok()?;
        let body = at + HEADER_LEN;
        let end = body + header.body_len as usize;
        let whole = end <= self.unread.end && header.is_reply() == self.replies;
        whole.then_some((header, body..end))
    }

    /// Notes that `n` bytes were put into [`space`](Self::space).
    pub fn received(&mut self, n: usize) {
        self.unread.end += n;
        debug_assert!(self.unread.end <= self.buffer.len());
    }

    /// Bytes that the frame at the front needs in all, as far as known.
    fn missing(&self) -> usize {
        match self.header() {
            Some(Ok(header)) if header.op != Op::Data => HEADER_LEN + header.body_len as usize,
            _ => HEADER_LEN,
        }
    }

    fn header(&self) -> Option<Result<FrameHeader, FrameError>> {
        if self.data_left > 0 {
            return None;
        }
        let bytes = self.buffer[self.unread.clone()].first_chunk()?;
        Some(FrameHeader::decode(bytes))
    }

    /// The next frame, if it is complete. The data of the one before must have been taken out.
    ///
    /// # Errors
    /// The header breaks a rule, or has the wrong direction; the stream is unusable from then on.
    #[allow(
        clippy::should_implement_trait,
        reason = "it fails, and can go on after nothing"
    )]
    pub fn next(&mut self) -> Result<Option<Received>, FrameError> {
        let Some(header) = self.header() else {
            return Ok(None);
        };
        let header = header?;
        if header.is_reply() != self.replies {
            return Err(FrameError::Direction {
                op: header.op,
                reply: header.is_reply(),
            });
        }
        let body = self.unread.start + HEADER_LEN;
        if header.op == Op::Data {
            self.unread.start = body;
            self.data_left = header.body_len as usize;
            return Ok(Some(Received::Data(header)));
        }
        let end = body + header.body_len as usize;
        if end > self.unread.end {
            return Ok(None);
        }
        if self.unread.start < self.looked {
            self.passed_over.pop(header.lane);
        }
        self.body = body..end;
        self.unread.start = end;
        Ok(Some(Received::Frame(header)))
    }

    /// The body of the last [`Received::Frame`].
    pub fn body(&self) -> &[u8] {
        &self.buffer[self.body.clone()]
    }

    /// Bytes still to be taken of the last [`Received::Data`].
    #[inline]
    pub fn data_left(&self) -> usize {
        self.data_left
    }

    /// Bytes of the data that may be read straight to their destination: only if many are left, and
    /// none is here already.
    #[inline]
    pub fn direct(&self) -> usize {
        match self.unread.is_empty() && self.data_left > READ_AHEAD {
            true => self.data_left,
            false => 0,
        }
    }

    /// Notes `n` bytes of data that were read without passing through here.
    pub fn took(&mut self, n: usize) {
        self.data_left -= n;
    }

    /// Moves buffered data to `to`, as much as fits; returns the number of bytes.
    pub fn take(&mut self, to: &mut [u8]) -> usize {
        let n = to.len().min(self.data_left).min(self.unread.len());
        let from = self.unread.start;
        to[..n].copy_from_slice(&self.buffer[from..from + n]);
        self.skip(n);
        n
    }

    /// Drops up to `n` buffered bytes of data; returns the number of bytes.
    pub fn drop_data(&mut self) -> usize {
        let n = self.data_left.min(self.unread.len());
        self.skip(n);
        n
    }

    fn skip(&mut self, n: usize) {
        self.unread.start += n;
        self.data_left -= n;
    }

    /// Whether there are unused bytes.
    #[inline]
    pub fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Whether a frame has begun and is not complete; an end of the stream here would cut it.
    #[inline]
    pub fn is_partial(&self) -> bool {
        self.data_left > 0 || !self.unread.is_empty()
    }
}
