#![forbid(unsafe_code)]
//! Index arithmetic of one ring, on values that the peer may have made up.
//!
//! Both cursors here are private. The peer's cursor enters through `observe`, which checks it
//! against the possible range and keeps the checked copy; ours leaves through `advance`, whose
//! result is only ever written to the shared page, never read back.
//!
//! Indexes count bytes modulo 2^32; ring sizes are powers of two, so they divide 2^32 and an index
//! modulo the size is the offset in the ring also across the wrap.

use crate::error::{PeerError, RingName};

/// The position of `len` bytes from an index on: at most two stretches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first stretch.
    pub offset: usize,
    /// Bytes of the first stretch.
    pub first: usize,
    /// Bytes of the second stretch, which starts at offset 0.
    pub second: usize,
}

#[inline]
fn span(index: u32, len: u32, size: u32) -> Span {
    debug_assert!(len <= size && size.is_power_of_two());
    let offset = index & (size - 1);
    let first = len.min(size - offset);
    Span {
        offset: offset as usize,
        first: first as usize,
        second: (len - first) as usize,
    }
}

/// The reading end of a ring.
#[derive(Debug)]
pub struct Consumer {
    ring: RingName,
    size: u32,
    /// This side's index.
    cons: u32,
    /// The peer's index, as last checked: `prod - cons <= size` always holds.
    prod: u32,
}

impl Consumer {
    /// Starts where the indexes stand.
    ///
    /// # Errors
    /// [`PeerError::StartIndexes`] if `prod` is more than a ring ahead of `cons`.
    ///
    /// # Panics
    /// If `size` is not a power of two.
    pub fn new(ring: RingName, size: u32, cons: u32, prod: u32) -> Result<Self, PeerError> {
        check_start(ring, size, cons, prod)?;
        Ok(Self {
            ring,
            size,
            cons,
            prod,
        })
    }

    /// Bytes known to be readable.
    #[inline]
    pub fn available(&self) -> u32 {
        self.prod.wrapping_sub(self.cons)
    }

    /// The ring's bytes.
    #[inline]
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Index up to which we have read.
    #[inline]
    pub fn cons(&self) -> u32 {
        self.cons
    }

    /// Index up to which the peer has written, as last checked.
    #[inline]
    pub fn prod(&self) -> u32 {
        self.prod
    }

    /// Takes a freshly loaded `prod` of the peer.
    ///
    /// # Errors
    /// [`PeerError::Producer`] if it went back or beyond a full ring; nothing changes then.
    #[inline]
    pub fn observe(&mut self, prod: u32) -> Result<(), PeerError> {
        let ahead = prod.wrapping_sub(self.cons);
        if ahead < self.available() || ahead > self.size {
            return Err(PeerError::Producer {
                ring: self.ring,
                found: prod,
                oldest: self.prod,
                newest: self.cons.wrapping_add(self.size),
                size: self.size,
            });
        }
        self.prod = prod;
        Ok(())
    }

    /// The position of the next `len` readable bytes.
    ///
    /// # Panics
    /// If fewer are [`available`](Self::available).
    #[inline]
    pub fn readable(&self, len: u32) -> Span {
        assert!(len <= self.available());
        span(self.cons, len, self.size)
    }

    /// Gives `len` bytes back to the writer; returns the new `cons` to publish.
    ///
    /// # Panics
    /// If fewer are [`available`](Self::available).
    #[inline]
    pub fn advance(&mut self, len: u32) -> u32 {
        assert!(len <= self.available());
        self.cons = self.cons.wrapping_add(len);
        self.cons
    }
}

/// The writing end of a ring.
#[derive(Debug)]
pub struct Producer {
    ring: RingName,
    size: u32,
    /// This side's index.
    prod: u32,
    /// The peer's index, as last checked: `prod - cons <= size` always holds.
    cons: u32,
}

impl Producer {
    /// Starts where the indexes stand.
    ///
    /// # Errors
    /// [`PeerError::StartIndexes`] if `prod` is more than a ring ahead of `cons`.
    ///
    /// # Panics
    /// If `size` is not a power of two.
    pub fn new(ring: RingName, size: u32, cons: u32, prod: u32) -> Result<Self, PeerError> {
        check_start(ring, size, cons, prod)?;
        Ok(Self {
            ring,
            size,
            prod,
            cons,
        })
    }

    /// Bytes that may be written before the peer must read.
    #[inline]
    pub fn free(&self) -> u32 {
        self.size - self.unread()
    }

    /// Bytes written which the peer is not known to have read.
    #[inline]
    pub fn unread(&self) -> u32 {
        self.prod.wrapping_sub(self.cons)
    }

    /// The ring's bytes.
    #[inline]
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Index up to which the peer has read, as last checked.
    #[inline]
    pub fn cons(&self) -> u32 {
        self.cons
    }

    /// Index up to which the peer must have read for `bytes` to be free.
    #[inline]
    pub fn cons_for(&self, bytes: u32) -> u32 {
        self.prod.wrapping_sub(self.size).wrapping_add(bytes)
    }

    /// Takes a freshly loaded `cons` of the peer.
    ///
    /// # Errors
    /// [`PeerError::Consumer`] if it went back or beyond our `prod`; nothing changes then.
    #[inline]
    pub fn observe(&mut self, cons: u32) -> Result<(), PeerError> {
        if self.prod.wrapping_sub(cons) > self.unread() {
            return Err(PeerError::Consumer {
                ring: self.ring,
                found: cons,
                oldest: self.cons,
                newest: self.prod,
                size: self.size,
            });
        }
        self.cons = cons;
        Ok(())
    }

    /// The position of the next `len` bytes to write.
    ///
    /// # Panics
    /// If fewer are [`free`](Self::free).
    #[inline]
    pub fn writable(&self, len: u32) -> Span {
        assert!(len <= self.free());
        span(self.prod, len, self.size)
    }

    /// Hands `len` bytes to the reader; returns the new `prod` to publish.
    ///
    /// # Panics
    /// If fewer are [`free`](Self::free).
    #[inline]
    pub fn advance(&mut self, len: u32) -> u32 {
        assert!(len <= self.free());
        self.prod = self.prod.wrapping_add(len);
        self.prod
    }
}

fn check_start(ring: RingName, size: u32, cons: u32, prod: u32) -> Result<(), PeerError> {
    assert!(size.is_power_of_two(), "ring sizes are powers of two");
    if prod.wrapping_sub(cons) > size {
        return Err(PeerError::StartIndexes {
            ring,
            prod,
            cons,
            size,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumer(cons: u32) -> Consumer {
        Consumer::new(RingName::Left, 1024, cons, cons).unwrap()
    }

    // docs/threat-model.md, cases 1 to 4.
    #[test]
    fn case_01_to_04_impossible_producer_indexes_are_named() {
        let mut ring = consumer(0);
        ring.observe(100).unwrap();
        for prod in [1025, 0xFFFF_FFFF, 99, 0] {
            let error = ring.observe(prod).unwrap_err();
            assert!(matches!(error, PeerError::Producer { found, .. } if found == prod));
        }
        assert_eq!(ring.available(), 100, "a refused value must not be kept");
    }

    #[test]
    fn impossible_consumer_indexes_are_named() {
        let mut ring = Producer::new(RingName::Right, 1024, 0, 0).unwrap();
        ring.advance(100);
        ring.observe(50).unwrap();
        for cons in [101, 49, 0xFFFF_FFFF] {
            let error = ring.observe(cons).unwrap_err();
            assert!(matches!(error, PeerError::Consumer { found, .. } if found == cons));
        }
        assert_eq!(ring.unread(), 50);
    }

    // docs/threat-model.md, cases 5 and 8.
    #[test]
    fn case_05_08_full_and_empty_across_the_wrap_of_u32() {
        let start = 0xFFFF_FF00;
        let mut writer = Producer::new(RingName::Left, 1024, start, start).unwrap();
        let mut reader = consumer(start);
        assert_eq!(writer.free(), 1024);
        assert_eq!(
            writer.writable(1024),
            Span {
                offset: 768,
                first: 256,
                second: 768
            }
        );
        let prod = writer.advance(1024);
        assert_eq!((prod, writer.free()), (0x300, 0));
        reader.observe(prod).unwrap();
        assert_eq!(reader.available(), 1024);
        assert_eq!(
            reader.readable(1024),
            Span {
                offset: 768,
                first: 256,
                second: 768
            }
        );
        let cons = reader.advance(1024);
        writer.observe(cons).unwrap();
        assert_eq!((writer.free(), reader.available()), (1024, 0));
    }

    #[test]
    fn start_indexes_more_than_a_ring_apart_are_refused() {
        assert!(Consumer::new(RingName::Left, 1024, 5, 1029).is_ok());
        assert!(Consumer::new(RingName::Left, 1024, 5, 1030).is_err());
        assert!(Producer::new(RingName::Left, 1024, 5, 4).is_err());
    }
}
