//! Bytes of a request's data on their way from one side to the other.

use std::ops::Range;

/// Bytes that wait at most, of one request and in one direction.
pub(super) const CAPACITY: usize = 64 << 10;

/// Bytes received from one side and not yet sent to the other. Allocated on first use.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    /// Empty, or [`CAPACITY`] bytes.
    bytes: Vec<u8>,
    filled: Range<usize>,
}

/// Memory of buffers that are not used at the moment.
#[derive(Debug, Default)]
pub(super) struct Pool(Vec<Vec<u8>>);

impl Buffer {
    /// The bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.filled.clone()]
    }

    /// Room for more bytes; empty if there is none.
    pub(super) fn space(&mut self, pool: &mut Pool) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = pool.0.pop().unwrap_or_else(|| vec![0; CAPACITY]);
        }
        if self.filled.end == self.bytes.len() && self.filled.start > 0 {
            self.bytes.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        &mut self.bytes[self.filled.end..]
    }

    /// Notes that `n` bytes were put into [`space`](Self::space).
    pub(super) fn filled(&mut self, n: usize) {
        self.filled.end += n;
        debug_assert!(self.filled.end <= self.bytes.len());
    }

    /// Notes that the first `n` bytes have gone on.
    pub(super) fn taken(&mut self, n: usize) {
        self.filled.start += n;
        debug_assert!(self.filled.start <= self.filled.end);
        if self.filled.is_empty() {
            self.filled = 0..0;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.filled.is_empty()
    }

    /// Drops what is there and gives the memory back.
    pub(super) fn release(&mut self, pool: &mut Pool) {
        self.filled = 0..0;
        let bytes = std::mem::take(&mut self.bytes);
        if !bytes.is_empty() {
            pool.0.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_the_order_in_which_they_went_in() {
        let (mut buffer, mut pool) = (Buffer::default(), Pool::default());
        let mut numbers = (0..=250u8).cycle();
        let mut wanted = numbers.clone();
        let mut passed = 0;
        for round in 0..2000 {
            let space = buffer.space(&mut pool);
            let n = space.len().min(round * 37 % 5000);
            for byte in &mut space[..n] {
                *byte = numbers.next().unwrap();
            }
            buffer.filled(n);
            let n = buffer.bytes().len().min(round * 53 % 4900);
            for byte in &buffer.bytes()[..n] {
                assert_eq!(*byte, wanted.next().unwrap());
            }
            passed += n;
            buffer.taken(n);
        }
        assert!(passed > 1 << 20);
        buffer.release(&mut pool);
        assert_eq!((buffer.is_empty(), pool.0.len()), (true, 1));
    }
}
