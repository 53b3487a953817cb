//! The notify bits: how a side that is about to sleep asks to be woken, without a lost wake-up.
//!
//! Each side's notify byte says what *that side must tell the other about*. The one who moves an
//! index and the one who wants to hear of it meet like this:
//!
//! ```text
//!   mover                                sleeper
//!   index.store(new, Release)            byte |= bit           (request)
//!   fence(SeqCst)            <-------->  fence(SeqCst)
//!   byte & bit ?  clear, ring            index.load(Acquire)   still nothing? sleep
//! ```
//!
//! The two fences are a pair: in every execution either the mover sees the bit or the sleeper sees
//! the index. Without one of them both may read old values and the sleeper sleeps for ever;
//! `tests/loom_notify.rs` explores all interleavings, with a twin that lacks the fence and fails.
//!
//! The functions are generic so that the same code runs under loom's atomics.

use crate::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};

/// A notify byte in shared memory.
pub trait NotifyByte {
    /// Relaxed load.
    fn load(&self) -> u8;
    /// Atomically sets `bits`.
    fn set(&self, bits: u8);
    /// Atomically clears `bits`; returns what the byte was before.
    fn clear(&self, bits: u8) -> u8;
    /// A sequentially consistent fence.
    fn fence();
}

/// A ring index in shared memory.
pub trait RingIndex {
    /// Release store: all ring bytes copied before are visible to whoever loads this value.
    fn publish(&self, value: u32);
    /// Acquire load: pairs with [`publish`](Self::publish).
    fn observe(&self) -> u32;
}

impl NotifyByte for AtomicU8 {
    #[inline]
    fn load(&self) -> u8 {
        self.load(Ordering::Relaxed)
    }
    #[inline]
    fn set(&self, bits: u8) {
        self.fetch_or(bits, Ordering::SeqCst);
    }
    #[inline]
    fn clear(&self, bits: u8) -> u8 {
        self.fetch_and(!bits, Ordering::SeqCst)
    }
    #[inline]
    fn fence() {
        fence(Ordering::SeqCst);
    }
}

impl RingIndex for AtomicU32 {
    #[inline]
    fn publish(&self, value: u32) {
        self.store(value, Ordering::Release);
    }
    #[inline]
    fn observe(&self) -> u32 {
        self.load(Ordering::Acquire)
    }
}

/// Mover: publishes `value`, then says whether the peer asked (by `bit`) to be told. If so the
/// request is taken and the caller must ring the doorbell.
#[inline]
pub fn publish<B: NotifyByte>(index: &impl RingIndex, value: u32, byte: &B, bit: u8) -> bool {
    index.publish(value);
    // Pairs with the fence in `request`.
    B::fence();
    // The plain load keeps the usual case, an awake peer, free of a locked operation.
    byte.load() & bit != 0 && byte.clear(bit) & bit != 0
}

/// Sleeper: asks to be told. The caller must look at the index again before it sleeps.
#[inline]
pub fn request<B: NotifyByte>(byte: &B, bit: u8) {
    byte.set(bit);
    // Pairs with the fence in `publish`.
    B::fence();
}

/// Sleeper: takes a request back that turned out not to be needed. If the peer has taken it
/// already, its ring comes anyway and is harmless.
#[inline]
pub fn withdraw<B: NotifyByte>(byte: &B, bit: u8) {
    if byte.load() & bit != 0 {
        byte.clear(bit);
    }
}
