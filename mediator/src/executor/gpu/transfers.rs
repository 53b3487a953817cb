//! Data on its way between a guest's stream and the device.
//!
//! Bytes go from the stream straight into a buffer that the device copies from, and from a buffer that it
//! copied to straight to the stream. What a session's copies hold is bounded: a few of them have several
//! buffers, so that reading and copying overlap, and all others one each.

use std::collections::VecDeque;

use vgpu_protocol::op::Op;

use super::device::{Device, DeviceError, Key, Rows};
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

/// Position in the data of rows, in the order of its bytes.
#[derive(Debug)]
struct Place {
    /// The rest: whole rows, except that the first lacks the bytes before `at`.
    rows: Rows,
    /// Bytes of the first row that are done.
    at: u64,
}

impl Place {
    /// The next part, as one copy moves it to or from a buffer: as many whole rows as have room, or of a longer
    /// row as much as has.
    fn part(&self) -> Option<Rows> {
        let Rows {
            address,
            pitch,
            width,
            height,
        } = self.rows;
        if height == 0 {
            return None;
        }
        let most = CHUNK as u64;
        if width > most {
            let bytes = most.min(width - self.at);
            return Some(Rows::range(address + self.at, bytes));
        }
        Some(Rows {
            address,
            pitch,
            width,
            height: height.min(most / width),
        })
    }

    /// The part is done.
    fn pass(&mut self, part: Rows) {
        self.at += part.width;
        if self.at == self.rows.width {
            self.at = 0;
            self.rows.height -= part.height;
            // Of the last row this may lie outside of the address space.
            let next = self
                .rows
                .address
                .wrapping_add(part.height.wrapping_mul(self.rows.pitch));
            self.rows.address = next;
        }
    }

    fn is_over(&self) -> bool {
        self.rows.height == 0
    }
}

/// Bytes of a part: no more than a buffer has.
pub(super) fn bytes_of(part: Rows) -> usize {
    usize::try_from(part.bytes()).expect("a chunk at most")
}

/// Data that comes up, to rows.
#[derive(Debug)]
pub(super) struct Upload<B> {
    pub(super) id: u32,
    pub(super) op: Op,
    pub(super) stream: Key,
    /// Buffers that it may hold, or twice as many where they are not filled.
    slots: usize,
    /// Position of the next bytes to arrive.
    to: Place,
    filling: Option<(B, usize)>,
}

/// A buffer that is full, and where its bytes belong.
#[derive(Debug)]
pub(super) struct Full<B> {
    pub(super) to: Rows,
    pub(super) buffer: B,
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Upload<B> {
    /// Begins one; also says how many bytes may come beyond the first.
    pub(super) fn new(id: u32, op: Op, stream: Key, to: Rows, pool: &mut Pool<B>) -> (Self, u64) {
        let slots = pool.slots(to.bytes());
        let upload = Self {
            id,
            op,
            stream,
            slots,
            to: Place { rows: to, at: 0 },
            filling: None,
        };
        (upload, (CHUNK * (slots - 1)) as u64)
    }

    /// Room for the next bytes; `None` once all have arrived.
    ///
    /// # Errors
    /// There is no memory for them.
    pub(super) fn room<D: Device<Buffer = B>>(
        &mut self,
        device: &mut D,
        pool: &mut Pool<B>,
    ) -> Result<&mut [u8], DeviceError> {
        let Some(part) = self.to.part() else {
            return Ok(&mut []);
        };
        if self.filling.is_none() {
            self.filling = Some((pool.take(device)?, 0));
        }
        let (buffer, filled) = self.filling.as_mut().expect("just put there");
        Ok(&mut buffer.as_mut()[*filled..bytes_of(part)])
    }

    /// Notes that `n` bytes have come; gives the buffer that is full by them.
    pub(super) fn filled(&mut self, n: usize) -> Option<Full<B>> {
        let (buffer, filled) = self.filling.take()?;
        let filled = filled + n;
        let part = self.to.part()?;
        if filled < bytes_of(part) {
            self.filling = Some((buffer, filled));
            return None;
        }
        self.to.pass(part);
        Some(Full { to: part, buffer })
    }

    /// Whether all bytes have come.
    pub(super) fn is_over(&self) -> bool {
        self.to.is_over()
    }

    pub(super) fn end(self, pool: &mut Pool<B>) {
        pool.give_up(self.slots);
        if let Some((buffer, _)) = self.filling {
            pool.put(buffer);
        }
    }
}

/// Data that goes down, from rows.
#[derive(Debug)]
pub(super) struct Download<B> {
    pub(super) id: u32,
    pub(super) op: Op,
    pub(super) stream: Key,
    /// Buffers that it may hold.
    slots: usize,
    /// First position not yet requested from the device.
    from: Place,
    /// Asked for and not here.
    asked: usize,
    /// Here and not sent, in order, each with its bytes.
    here: VecDeque<(B, usize)>,
    /// Bytes of the first that were sent.
    sent: usize,
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Download<B> {
    pub(super) fn new(id: u32, op: Op, stream: Key, from: Rows, pool: &mut Pool<B>) -> Self {
        Self {
            id,
            op,
            stream,
            slots: pool.slots(from.bytes()),
            from: Place { rows: from, at: 0 },
            asked: 0,
            here: VecDeque::new(),
            sent: 0,
        }
    }

    /// The next piece to read from the device, and a buffer for it.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(super) fn next<D: Device<Buffer = B>>(
        &mut self,
        device: &mut D,
        pool: &mut Pool<B>,
    ) -> Result<Option<(Rows, B)>, DeviceError> {
        if self.asked + self.here.len() >= self.slots {
            return Ok(None);
        }
        let Some(part) = self.from.part() else {
            return Ok(None);
        };
        let buffer = pool.take(device)?;
        self.from.pass(part);
        self.asked += 1;
        Ok(Some((part, buffer)))
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
        self.from.is_over() && self.asked == 0 && self.here.is_empty()
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

    /// One that is there already.
    pub(super) fn of(id: u32, bytes: Vec<u8>) -> Self {
        let whole = bytes.len();
        Self {
            id,
            bytes,
            here: whole,
            whole,
        }
    }

    /// Room for the next bytes, allocated as they arrive, not when they are announced.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of rows one after the other.
    fn parts(rows: Rows) -> Vec<Rows> {
        let mut place = Place { rows, at: 0 };
        let mut all = Vec::new();
        while let Some(part) = place.part() {
            place.pass(part);
            all.push(part);
        }
        assert!(place.is_over());
        all
    }

    #[test]
    fn parts_are_all_of_the_rows_in_order_and_none_is_larger_than_a_buffer() {
        let chunk = CHUNK as u64;
        let widths = [
            1,
            3,
            1000,
            chunk / 2 + 1,
            chunk - 1,
            chunk,
            chunk + 1,
            3 * chunk + 7,
        ];
        for (width, height) in widths.into_iter().flat_map(|w| [(w, 1), (w, 2), (w, 7)]) {
            let rows = Rows {
                address: 1 << 40,
                pitch: width + 13,
                width,
                height,
            };
            let parts = parts(rows);
            // The address of each byte of the data, checked by the first and last of each part.
            let place = |byte: u64| rows.address + byte / width * rows.pitch + byte % width;
            let mut byte = 0;
            for part in &parts {
                assert!((1..=chunk).contains(&part.bytes()), "{part:?}");
                assert_eq!(part.address, place(byte), "{part:?} of {rows:?}");
                byte += part.bytes();
                assert_eq!(
                    part.address + part.span().expect("small") - 1,
                    place(byte - 1),
                    "{part:?} of {rows:?}"
                );
            }
            assert_eq!(byte, rows.bytes());
            // Two behind each other have more than a buffer's bytes, so that credit for that many bytes asks for no
            // more than twice as many buffers.
            let mut pairs = parts.windows(2);
            assert!(
                pairs.all(|two| two[0].bytes() + two[1].bytes() > chunk),
                "{rows:?}"
            );
        }
        assert_eq!(parts(Rows::range(7, 2 * chunk + 1)).len(), 3);
    }

    #[test]
    fn the_last_row_may_end_where_addresses_do() {
        let rows = Rows {
            address: u64::MAX - 25,
            pitch: 20,
            width: 5,
            height: 2,
        };
        assert_eq!(parts(rows), [rows]);
    }
}
