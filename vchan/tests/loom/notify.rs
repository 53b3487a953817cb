//! Every interleaving of the notify protocols, bit and wait word, as the memory model allows it.
//!
//! One thread publishes an index as a writer does, the other goes to sleep as a reader does; the
//! code is the crate's own, over loom's atomics. The twins leave out one thing each and must lose a
//! wake-up.

use ::vchan::layout::bit;
use ::vchan::notify::{NotifyByte, RingIndex, WaitWord, arm, publish, publish_past, request};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering, fence};
use loom::thread;

struct Index(AtomicU32);

impl RingIndex for Index {
    fn publish(&self, value: u32) {
        self.0.store(value, Ordering::Release);
    }
    fn observe(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
}

/// `FENCES` false: the twin without fences.
struct Byte<const FENCES: bool>(AtomicU8);

impl<const FENCES: bool> NotifyByte for Byte<FENCES> {
    fn load(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
    fn set(&self, bits: u8) {
        self.0.fetch_or(bits, Ordering::SeqCst);
    }
    fn clear(&self, bits: u8) -> u8 {
        self.0.fetch_and(!bits, Ordering::SeqCst)
    }
    fn fence() {
        if FENCES {
            fence(Ordering::SeqCst);
        }
    }
}

/// The sleeper wants to see `last`; the mover publishes 1 to `last`.
/// The doorbell is a flag that stays up, like a readable descriptor. If the sleeper has decided to
/// sleep, the flag must be up once the mover is through, or the sleeper would never wake.
fn explore<const FENCES: bool>(last: u32, look_again: bool) {
    loom::model(move || {
        let shared = Arc::new((
            Index(AtomicU32::new(0)),
            Byte::<FENCES>(AtomicU8::new(0)),
            AtomicBool::new(false),
        ));
        let mover = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let (index, byte, bell) = &*shared;
                for value in 1..=last {
                    if publish(index, value, byte, bit::WRITE) {
                        bell.store(true, Ordering::SeqCst);
                    }
                }
            })
        };
        let (index, byte, bell) = &*shared;
        let mut sleeps = index.observe() != last;
        if sleeps {
            request(byte, bit::WRITE);
            sleeps = !look_again || index.observe() != last;
        }
        mover.join().unwrap();
        assert!(!sleeps || bell.load(Ordering::SeqCst), "lost wake-up");
    });
}

#[test]
fn no_wake_up_is_lost() {
    explore::<true>(1, true);
}

#[test]
fn no_wake_up_is_lost_over_two_publications() {
    explore::<true>(2, true);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn without_the_fences_a_wake_up_is_lost() {
    explore::<false>(1, true);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn without_the_second_look_a_wake_up_is_lost() {
    explore::<true>(1, false);
}

/// A wait word; `FENCES` as for [`Byte`].
struct Word<const FENCES: bool>(AtomicU32);

impl<const FENCES: bool> WaitWord for Word<FENCES> {
    fn load(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
    fn store(&self, value: u32) {
        self.0.store(value, Ordering::Release);
    }
    fn take(&self) {
        self.0.swap(0, Ordering::SeqCst);
    }
    fn fence() {
        if FENCES {
            fence(Ordering::SeqCst);
        }
    }
}

/// The state of a wait word before the mover starts.
#[derive(Clone, Copy)]
enum Before {
    Nothing,
    /// The sleeper has armed for an earlier index, and arms anew while the mover may just be taking
    /// the request.
    ArmedFor(u32),
}

/// As [`explore`], with a wait word.
fn explore_word<const FENCES: bool>(before: Before, last: u32, look_again: bool) {
    loom::model(move || {
        let shared = Arc::new((
            Index(AtomicU32::new(0)),
            Word::<FENCES>(AtomicU32::new(0)),
            AtomicBool::new(false),
        ));
        let (index, word, bell) = &*shared;
        match before {
            Before::Nothing => {}
            Before::ArmedFor(seen) => arm(word, seen),
        }
        let mover = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let (index, word, bell) = &*shared;
                for value in 1..=last {
                    if publish_past(index, value, word) {
                        bell.store(true, Ordering::SeqCst);
                    }
                }
            })
        };
        let mut sleeps = index.observe() != last;
        if sleeps {
            arm(word, last);
            sleeps = !look_again || index.observe() != last;
        }
        mover.join().unwrap();
        assert!(!sleeps || bell.load(Ordering::SeqCst), "lost wake-up");
    });
}

#[test]
fn no_wake_up_is_lost_with_a_wait_word() {
    explore_word::<true>(Before::Nothing, 1, true);
    explore_word::<true>(Before::Nothing, 2, true);
}

#[test]
fn no_wake_up_is_lost_when_the_mover_takes_a_request_that_was_renewed() {
    explore_word::<true>(Before::ArmedFor(1), 2, true);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn without_the_fences_a_wait_word_is_missed() {
    explore_word::<false>(Before::Nothing, 1, true);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn without_the_second_look_a_wait_word_is_missed() {
    explore_word::<true>(Before::Nothing, 1, false);
}
