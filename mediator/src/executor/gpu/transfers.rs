//! Data on its way between a guest's stream and the device.
//!
//! Bytes go from the stream straight into a buffer that the device copies from, and from a buffer that it
//! copied to straight to the stream. What a session's copies hold is bounded: a few of them have several
//! large buffers, so that reading and copying overlap, and all others one small buffer each.

use std::collections::VecDeque;

use super::device::{Device, DeviceError, Key};
use crate::session::INITIAL_CREDIT;

/// Bytes of a large buffer.
const LARGE: usize = 512 << 10;

/// Bytes of a small buffer: what a guest may send of a request without asking.
const SMALL: usize = INITIAL_CREDIT as usize;

/// Large buffers of one copy.
const SLOTS: usize = 4;

/// Copies that have large buffers at once.
const LARGE_COPIES: usize = 4;

/// Free buffers of each size that are kept: to page-lock memory takes its time.
const KEPT: usize = 2 * SLOTS;

/// What a copy may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    /// Bytes of a buffer.
    chunk: usize,
    slots: usize,
}

impl Share {
    const SMALL: Share = Share {
        chunk: SMALL,
        slots: 1,
    };
    const LARGE: Share = Share {
        chunk: LARGE,
        slots: SLOTS,
    };

    /// Bytes that may be on their way.
    fn window(self) -> u64 {
        (self.chunk * self.slots) as u64
    }
}

/// The buffers of a session.
#[derive(Debug)]
pub(super) struct Pool<B> {
    small: Vec<B>,
    large: Vec<B>,
    large_copies: usize,
}

impl<B> Default for Pool<B> {
    fn default() -> Self {
        Self {
            small: Vec::new(),
            large: Vec::new(),
            large_copies: 0,
        }
    }
}

impl<B: AsRef<[u8]>> Pool<B> {
    /// What a copy of `bytes` may hold, until [`give_up`](Self::give_up).
    fn share(&mut self, bytes: u64) -> Share {
        if bytes <= SMALL as u64 || self.large_copies >= LARGE_COPIES {
            return Share::SMALL;
        }
        self.large_copies += 1;
        Share::LARGE
    }

    fn give_up(&mut self, share: Share) {
        if share == Share::LARGE {
            self.large_copies -= 1;
        }
    }

    fn take<D: Device<Buffer = B>>(
        &mut self,
        device: &mut D,
        share: Share,
    ) -> Result<B, DeviceError> {
        let kept = match share.chunk {
            LARGE => &mut self.large,
            _ => &mut self.small,
        };
        match kept.pop() {
            Some(buffer) => Ok(buffer),
            None => device.buffer(share.chunk),
        }
    }

    /// Takes a buffer back that nothing uses.
    pub(super) fn put(&mut self, buffer: B) {
        let kept = match buffer.as_ref().len() {
            LARGE => &mut self.large,
            _ => &mut self.small,
        };
        if kept.len() < KEPT {
            kept.push(buffer);
        }
    }
}

/// Data that comes up, to an address.
#[derive(Debug)]
pub(super) struct Upload<B> {
    pub(super) id: u32,
    pub(super) stream: Key,
    share: Share,
    /// Where the next bytes that come belong.
    to: u64,
    /// Bytes that have not come.
    left: u64,
    filling: Option<(B, usize)>,
}

/// A buffer that is full, and where its bytes belong.
#[derive(Debug)]
pub(super) struct Full<B> {
    pub(super) to: u64,
    pub(super) buffer: B,
    pub(super) bytes: usize,
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Upload<B> {
    /// Begins one; also says how many bytes may come beyond the first.
    pub(super) fn new(
        id: u32,
        stream: Key,
        to: u64,
        bytes: u64,
        pool: &mut Pool<B>,
    ) -> (Self, u64) {
        let share = pool.share(bytes);
        let upload = Self {
            id,
            stream,
            share,
            to,
            left: bytes,
            filling: None,
        };
        (upload, share.window() - u64::from(INITIAL_CREDIT))
    }

    /// Where the next bytes belong; nothing once all have come.
    ///
    /// # Errors
    /// There is no memory for them.
    pub(super) fn room<D: Device<Buffer = B>>(
        &mut self,
        device: &mut D,
        pool: &mut Pool<B>,
    ) -> Result<&mut [u8], DeviceError> {
        if self.left == 0 {
            return Ok(&mut []);
        }
        if self.filling.is_none() {
            self.filling = Some((pool.take(device, self.share)?, 0));
        }
        let (buffer, filled) = self.filling.as_mut().expect("just put there");
        let most = self.share.chunk as u64;
        let end = usize::try_from(most.min(self.left + *filled as u64)).expect("a chunk");
        Ok(&mut buffer.as_mut()[*filled..end])
    }

    /// Notes that `n` bytes have come; gives the buffer that is full by them.
    pub(super) fn filled(&mut self, n: usize) -> Option<Full<B>> {
        let (buffer, filled) = self.filling.take()?;
        let filled = filled + n;
        self.left -= n as u64;
        if filled < self.share.chunk && self.left > 0 {
            self.filling = Some((buffer, filled));
            return None;
        }
        let to = self.to;
        self.to += filled as u64;
        Some(Full {
            to,
            buffer,
            bytes: filled,
        })
    }

    /// Whether all bytes have come.
    pub(super) fn is_over(&self) -> bool {
        self.left == 0
    }

    pub(super) fn end(self, pool: &mut Pool<B>) {
        pool.give_up(self.share);
        if let Some((buffer, _)) = self.filling {
            pool.put(buffer);
        }
    }
}

/// Data that goes down, from an address.
#[derive(Debug)]
pub(super) struct Download<B> {
    pub(super) id: u32,
    pub(super) stream: Key,
    share: Share,
    /// What is to be asked of the device next.
    from: u64,
    /// Bytes that the device was not asked for.
    left: u64,
    /// Asked for and not here.
    asked: usize,
    /// Here and not sent, in order, each with its bytes.
    here: VecDeque<(B, usize)>,
    /// Bytes of the first that were sent.
    sent: usize,
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Download<B> {
    pub(super) fn new(id: u32, stream: Key, from: u64, bytes: u64, pool: &mut Pool<B>) -> Self {
        Self {
            id,
            stream,
            share: pool.share(bytes),
            from,
            left: bytes,
            asked: 0,
            here: VecDeque::new(),
            sent: 0,
        }
    }

    /// What the device is to be asked for next: address, buffer and bytes.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(super) fn next<D: Device<Buffer = B>>(
        &mut self,
        device: &mut D,
        pool: &mut Pool<B>,
    ) -> Result<Option<(u64, B, usize)>, DeviceError> {
        if self.left == 0 || self.asked + self.here.len() >= self.share.slots {
            return Ok(None);
        }
        let buffer = pool.take(device, self.share)?;
        let most = self.share.chunk as u64;
        let bytes = usize::try_from(most.min(self.left)).expect("a chunk");
        let from = self.from;
        self.from += bytes as u64;
        self.left -= bytes as u64;
        self.asked += 1;
        Ok(Some((from, buffer, bytes)))
    }

    /// The oldest that was asked for is here.
    pub(super) fn came(&mut self, buffer: B, bytes: usize) {
        self.asked -= 1;
        self.here.push_back((buffer, bytes));
    }

    /// What is at hand for the guest.
    pub(super) fn output(&self) -> &[u8] {
        match self.here.front() {
            Some((buffer, bytes)) => &buffer.as_ref()[self.sent..*bytes],
            None => &[],
        }
    }

    /// Notes that `n` bytes were sent.
    pub(super) fn sent(&mut self, n: usize, pool: &mut Pool<B>) {
        self.sent += n;
        if self
            .here
            .front()
            .is_some_and(|(_, bytes)| self.sent == *bytes)
        {
            let (buffer, _) = self.here.pop_front().expect("just seen");
            self.sent = 0;
            pool.put(buffer);
        }
    }

    /// Whether everything was sent.
    pub(super) fn is_over(&self) -> bool {
        self.left == 0 && self.asked == 0 && self.here.is_empty()
    }

    pub(super) fn end(self, pool: &mut Pool<B>) {
        pool.give_up(self.share);
        self.here
            .into_iter()
            .for_each(|(buffer, _)| pool.put(buffer));
    }
}

/// An image that comes up.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) id: u32,
    pub(super) bytes: Vec<u8>,
    /// Bytes that have come; `bytes` has room for a few more.
    here: usize,
    whole: usize,
}

impl Image {
    /// Begins one, and says how many bytes may come beyond the first.
    pub(super) fn new(id: u32, whole: usize) -> (Self, u64) {
        let image = Self {
            id,
            bytes: Vec::new(),
            here: 0,
            whole,
        };
        (image, u64::MAX)
    }

    /// Where the next bytes belong. Room is made as they come, not as they are announced.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.here == self.bytes.len() {
            let more = self.here.max(LARGE).min(self.whole - self.here);
            if self.bytes.try_reserve(more).is_err() {
                return &mut [];
            }
            self.bytes.resize(self.here + more, 0);
        }
        &mut self.bytes[self.here..]
    }

    pub(super) fn filled(&mut self, n: usize) {
        self.here += n;
    }

    /// Bytes that it has, or will have.
    pub(super) fn whole(&self) -> usize {
        self.whole
    }

    pub(super) fn is_over(&self) -> bool {
        self.here == self.whole
    }
}

/// Bytes more that may come of an upload when one of its buffers is free again.
pub(super) fn room_of<B: AsRef<[u8]>>(buffer: &B) -> u64 {
    buffer.as_ref().len() as u64
}
