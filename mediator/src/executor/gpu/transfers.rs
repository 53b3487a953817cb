//! Data on its way between a guest's stream and the device.
//!
//! Bytes go from the stream straight into a buffer that the device copies from, and from a buffer that it
//! copied to straight to the stream. What a session's copies hold is bounded: a few of them have several
//! buffers, so that reading and copying overlap, and all others one each.

use std::collections::VecDeque;

use super::device::{Device, DeviceError, Key};
use crate::session::INITIAL_CREDIT;

/// Bytes of a buffer: what a guest may send of a request without asking.
const CHUNK: usize = INITIAL_CREDIT as usize;

/// Buffers of a copy that has several.
const SLOTS: usize = 4;

/// Copies that have several at once.
const LARGE_COPIES: usize = 4;

/// Free buffers that are kept: to page-lock memory takes its time.
const KEPT: usize = 2 * SLOTS;

/// The buffers of a session.
#[derive(Debug)]
pub(super) struct Pool<B> {
    free: Vec<B>,
    large_copies: usize,
}

impl<B> Default for Pool<B> {
    fn default() -> Self {
        Self {
            free: Vec::new(),
            large_copies: 0,
        }
    }
}

impl<B> Pool<B> {
    /// How many buffers a copy of `bytes` may hold, until [`give_up`](Self::give_up).
    fn slots(&mut self, bytes: u64) -> usize {
        if bytes <= CHUNK as u64 || self.large_copies >= LARGE_COPIES {
            return 1;
        }
        self.large_copies += 1;
        SLOTS
    }

    fn give_up(&mut self, slots: usize) {
        self.large_copies -= usize::from(slots > 1);
    }

    fn take<D: Device<Buffer = B>>(&mut self, device: &mut D) -> Result<B, DeviceError> {
        match self.free.pop() {
            Some(buffer) => Ok(buffer),
            None => device.buffer(CHUNK),
        }
    }

    /// Takes a buffer back that nothing uses.
    pub(super) fn put(&mut self, buffer: B) {
        if self.free.len() < KEPT {
            self.free.push(buffer);
        }
    }
}

/// Data that comes up, to an address.
#[derive(Debug)]
pub(super) struct Upload<B> {
    pub(super) id: u32,
    pub(super) stream: Key,
    /// Buffers that it may hold.
    slots: usize,
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
        let slots = pool.slots(bytes);
        let upload = Self {
            id,
            stream,
            slots,
            to,
            left: bytes,
            filling: None,
        };
        (upload, (CHUNK * (slots - 1)) as u64)
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
            self.filling = Some((pool.take(device)?, 0));
        }
        let (buffer, filled) = self.filling.as_mut().expect("just put there");
        let most = CHUNK as u64;
        let end = usize::try_from(most.min(self.left + *filled as u64)).expect("a chunk");
        Ok(&mut buffer.as_mut()[*filled..end])
    }

    /// Notes that `n` bytes have come; gives the buffer that is full by them.
    pub(super) fn filled(&mut self, n: usize) -> Option<Full<B>> {
        let (buffer, filled) = self.filling.take()?;
        let filled = filled + n;
        self.left -= n as u64;
        if filled < CHUNK && self.left > 0 {
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
        pool.give_up(self.slots);
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
    /// Buffers that it may hold.
    slots: usize,
    /// The next piece for the device.
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
            slots: pool.slots(bytes),
            from,
            left: bytes,
            asked: 0,
            here: VecDeque::new(),
            sent: 0,
        }
    }

    /// The next piece to read from the device: address, buffer and bytes.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(super) fn next<D: Device<Buffer = B>>(
        &mut self,
        device: &mut D,
        pool: &mut Pool<B>,
    ) -> Result<Option<(u64, B, usize)>, DeviceError> {
        if self.left == 0 || self.asked + self.here.len() >= self.slots {
            return Ok(None);
        }
        let buffer = pool.take(device)?;
        let most = CHUNK as u64;
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

    /// Bytes ready for the guest.
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
        pool.give_up(self.slots);
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
            let more = self.here.max(CHUNK).min(self.whole - self.here);
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
