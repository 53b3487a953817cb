//! The notify bits: how a side that is about to sleep asks to be woken, without a lost wake-up.
//!
//! Each side's notify byte names the events of which *that side must notify the other*. The side
//! that moves an index and the side that waits for it synchronise like this:
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
//! `tests/loom/notify.rs` explores all interleavings, with a twin that lacks the fence and fails.
//!
//! In the [extension](crate::extension) each waiting half has a **wait word** of its own in place
//! of a bit, which holds the index at which it wants to be woken:
//!
//! ```text
//!   mover                                sleeper
//!   index.store(new, Release)            word = ARMED | wanted     (arm)
//!   fence(SeqCst)            <-------->  fence(SeqCst)
//!   word set and reached ?  take, ring   index.load(Acquire)       still short of it? sleep
//! ```
//!
//! The mover takes the word with a swap. If the sleeper has armed anew for a later index in
//! between, the swap takes that too, and the ring wakes it early: it looks and arms once more.
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
    /// Release store: all ring bytes copied before are visible to a side that loads this value.
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

/// Set in a wait word whose owner waits; the other bits are the low ones of the wanted index.
pub const ARMED: u32 = 1 << 31;

/// The wait word of a side that wants to be woken once the index has reached `wanted`.
#[inline]
pub fn armed_for(wanted: u32) -> u32 {
    ARMED | wanted
}

/// Whether `index` has reached the one that an armed `word` asks for. Rings are far smaller than
/// 2^30 bytes, so of two indexes modulo 2^31 the one less than half way ahead is the later one.
#[inline]
pub fn is_reached(word: u32, index: u32) -> bool {
    word & ARMED != 0 && index.wrapping_sub(word) & !ARMED < 1 << 30
}

/// A wait word in shared memory.
pub trait WaitWord {
    /// Relaxed load.
    fn load(&self) -> u32;
    /// Release store: pairs with [`take`](Self::take). The side that takes the request rings after all that
    /// its owner did before, such as acknowledging an earlier ring.
    fn store(&self, value: u32);
    /// Takes the request, whatever it is by now; sequentially consistent, so also an acquire load.
    fn take(&self);
    /// A sequentially consistent fence.
    fn fence();
}

impl WaitWord for AtomicU32 {
    #[inline]
    fn load(&self) -> u32 {
        self.load(Ordering::Relaxed)
    }
    #[inline]
    fn store(&self, value: u32) {
        self.store(value, Ordering::Release);
    }
    #[inline]
    fn take(&self) {
        self.swap(0, Ordering::SeqCst);
    }
    #[inline]
    fn fence() {
        fence(Ordering::SeqCst);
    }
}

/// Mover: publishes `value`, then says whether the peer waits for an index up to `value`. If so the
/// request is taken and the caller must ring the doorbell.
#[inline]
pub fn publish_past<W: WaitWord>(index: &impl RingIndex, value: u32, word: &W) -> bool {
    index.publish(value);
    // Pairs with the fence in `arm`.
    W::fence();
    // The plain load keeps the usual case, an awake peer, free of a locked operation.
    let reached = is_reached(word.load(), value);
    if reached {
        word.take();
    }
    reached
}

/// Sleeper: asks to be told when the index reaches `wanted`. The caller must look at the index
/// again before it sleeps.
#[inline]
pub fn arm<W: WaitWord>(word: &W, wanted: u32) {
    word.store(armed_for(wanted));
    // Pairs with the fence in `publish_past`.
    W::fence();
}

/// Sleeper: withdraws a request that turned out not to be needed. If the peer has taken it already,
/// its ring comes anyway and is harmless.
#[inline]
pub fn disarm<W: WaitWord>(word: &W) {
    if word.load() != 0 {
        word.store(0);
    }
}

/// Sleeper: withdraws a request that turned out not to be needed. If the peer has taken it already,
/// its ring comes anyway and is harmless.
#[inline]
pub fn withdraw<B: NotifyByte>(byte: &B, bit: u8) {
    if byte.load() & bit != 0 {
        byte.clear(bit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wanted_index_is_reached_from_there_on() {
        for start in [0, 5, ARMED - 2, ARMED, ARMED + 7, u32::MAX - 3] {
            let word = armed_for(start);
            for ahead in [0, 1, 1 << 21] {
                assert!(is_reached(word, start.wrapping_add(ahead)), "{start:#x}");
            }
            for behind in [1, 2, 1 << 21] {
                assert!(!is_reached(word, start.wrapping_sub(behind)), "{start:#x}");
            }
        }
        assert!(!is_reached(0, 0), "nobody waits");
        assert!(!is_reached(5, 5), "without the flag nobody waits");
    }
}
