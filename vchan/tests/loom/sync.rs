//! loom's primitives under the names of `src/sync.rs`, and the switch that leaves one thing out.

pub(crate) use loom::sync::{Mutex, MutexGuard};
// std's types: counting references orders nothing that the protocols rest on, and loom's panics
// where a failed model unwinds.
pub(crate) use std::sync::{Arc, OnceLock, PoisonError, Weak};

use std::cell::Cell;
use std::sync::LockResult;

/// The things that a twin leaves out of the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Without {
    /// Nothing: the code as it is.
    Nothing,
    /// The fences between index and notify byte.
    Fences,
    /// The look at the ring between the request and the sleep: the request then comes after it.
    LookBeforeSleep,
    /// The order between the last index and the live byte of a side that closes, which both the
    /// release of the live byte and the fence behind each index give.
    OrderOfClose,
    /// The look at the index after the peer was seen to have closed.
    LookAfterClose,
    /// The leader's wake-up of the follower.
    FollowerWakeUp,
    /// Noticing that another thread took an event since the last look.
    Generation,
    /// The closing half's wake-up of its own sleeping half.
    Cancel,
    /// The ring that nobody has asked for: by a side that closes, by a backend that saw a death.
    UnaskedRing,
    /// Acknowledging the doorbell before the request and the last look: it then comes after them.
    AcknowledgeFirst,
    /// The exclusion that lets only one of two sides change the state of a region: each reads, then
    /// sets.
    OneWins,
    /// The order between a peer's last access to a region and its claim to have unmapped it.
    OrderOfRelease,
    /// The second look at a region's ticket, after the claim.
    SecondLook,
}

thread_local! {
    // loom runs all threads of a model on one thread of the system.
    static WITHOUT: Cell<Without> = const { Cell::new(Without::Nothing) };
}

pub(crate) fn leave_out(what: Without) {
    WITHOUT.set(what);
}

pub(crate) fn is_left_out(what: Without) -> bool {
    WITHOUT.get() == what
}

/// The count of events; to a twin all are the same.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Generation(u64);

impl Generation {
    pub(crate) fn next(&mut self) {
        self.0 += 1;
    }
}

impl PartialEq for Generation {
    fn eq(&self, other: &Self) -> bool {
        is_left_out(Without::Generation) || self.0 == other.0
    }
}

/// loom's condition variable; its waits never time out.
#[derive(Debug, Default)]
pub(crate) struct Condvar(loom::sync::Condvar);

impl Condvar {
    pub(crate) fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        _left: std::time::Duration,
    ) -> LockResult<(MutexGuard<'a, T>, ())> {
        match self.0.wait(guard) {
            Ok(guard) => Ok((guard, ())),
            Err(error) => Err(PoisonError::new((error.into_inner(), ()))),
        }
    }

    pub(crate) fn notify_all(&self) {
        if !is_left_out(Without::FollowerWakeUp) {
            self.0.notify_all();
        }
    }
}

pub(crate) mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    use super::{Without, is_left_out};
    use std::cell::{Cell, RefCell};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32 as Plain, Ordering::Relaxed};
    use vchan::layout::live;

    /// The state that a region's peer sets in the header.
    const RELEASED: u8 = 0;

    thread_local! {
        /// Requests that a twin holds back until it sleeps.
        static LATE: RefCell<Vec<Late>> = const { RefCell::new(Vec::new()) };
        /// A live byte was seen at 0.
        static CLOSE_SEEN: Cell<bool> = const { Cell::new(false) };
    }

    enum Late {
        Bits(Arc<loom::sync::atomic::AtomicU8>, u8),
        Word(Arc<loom::sync::atomic::AtomicU32>, u32),
    }

    /// Must be called first in every execution.
    pub(crate) fn start() {
        LATE.take();
        CLOSE_SEEN.set(false);
    }

    /// The held-back requests of a twin, made now.
    pub(crate) fn make_late_requests() {
        for late in LATE.take() {
            match late {
                Late::Bits(byte, bits) => drop(byte.fetch_or(bits, Ordering::SeqCst)),
                Late::Word(word, value) => word.store(value, Ordering::SeqCst),
            }
        }
    }

    pub(crate) fn fence(ordering: Ordering) {
        if !is_left_out(Without::Fences) && !is_left_out(Without::OrderOfClose) {
            loom::sync::atomic::fence(ordering);
        }
    }

    #[derive(Debug)]
    pub(crate) struct AtomicBool(loom::sync::atomic::AtomicBool);

    impl AtomicBool {
        pub(crate) fn new(value: bool) -> Self {
            Self(loom::sync::atomic::AtomicBool::new(value))
        }

        pub(crate) fn load(&self, ordering: Ordering) -> bool {
            self.0.load(ordering)
        }

        pub(crate) fn store(&self, value: bool, ordering: Ordering) {
            self.0.store(value, ordering);
        }

        pub(crate) fn swap(&self, value: bool, ordering: Ordering) -> bool {
            // A failed model is over: a channel dropped while it unwinds counts as closed already.
            std::thread::panicking() || self.0.swap(value, ordering)
        }
    }

    /// A live or notify byte, or the state of a region.
    #[derive(Debug)]
    pub(crate) struct AtomicU8 {
        byte: Arc<loom::sync::atomic::AtomicU8>,
        is_live: bool,
    }

    impl AtomicU8 {
        pub(crate) fn live(value: u8) -> Self {
            let byte = Arc::new(loom::sync::atomic::AtomicU8::new(value));
            Self {
                byte,
                is_live: true,
            }
        }

        pub(crate) fn notify(value: u8) -> Self {
            let byte = Arc::new(loom::sync::atomic::AtomicU8::new(value));
            Self {
                byte,
                is_live: false,
            }
        }

        pub(crate) fn load(&self, ordering: Ordering) -> u8 {
            let value = self.byte.load(ordering);
            if self.is_live && value == live::CLOSED {
                CLOSE_SEEN.set(true);
            }
            value
        }

        pub(crate) fn store(&self, value: u8, ordering: Ordering) {
            let relaxed = is_left_out(Without::OrderOfClose)
                || (is_left_out(Without::OrderOfRelease) && value == RELEASED);
            let ordering = if relaxed { Ordering::Relaxed } else { ordering };
            self.byte.store(value, ordering);
        }

        pub(crate) fn fetch_or(&self, bits: u8, ordering: Ordering) -> u8 {
            if is_left_out(Without::LookBeforeSleep) {
                let late = Late::Bits(Arc::clone(&self.byte), bits);
                LATE.with_borrow_mut(|all| all.push(late));
                return 0;
            }
            self.byte.fetch_or(bits, ordering)
        }

        pub(crate) fn compare_exchange(
            &self,
            current: u8,
            new: u8,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u8, u8> {
            if !is_left_out(Without::OneWins) {
                return self.byte.compare_exchange(current, new, success, failure);
            }
            match self.byte.load(failure) {
                found if found == current => {
                    self.byte.store(new, success);
                    Ok(found)
                }
                found => Err(found),
            }
        }

        pub(crate) fn fetch_and(&self, bits: u8, ordering: Ordering) -> u8 {
            self.byte.fetch_and(bits, ordering)
        }
    }

    /// An index of a ring, or a wait word.
    #[derive(Debug)]
    pub(crate) struct AtomicU32 {
        word: Arc<loom::sync::atomic::AtomicU32>,
        is_wait_word: bool,
        /// The value of the last load, for the twin that does not look again.
        last: Plain,
    }

    impl AtomicU32 {
        pub(crate) fn new(value: u32) -> Self {
            Self {
                word: Arc::new(loom::sync::atomic::AtomicU32::new(value)),
                is_wait_word: false,
                last: Plain::new(value),
            }
        }

        pub(crate) fn wait_word() -> Self {
            Self {
                is_wait_word: true,
                ..Self::new(0)
            }
        }

        pub(crate) fn load(&self, ordering: Ordering) -> u32 {
            let is_index = !self.is_wait_word;
            if is_index && is_left_out(Without::LookAfterClose) && CLOSE_SEEN.get() {
                return self.last.load(Relaxed);
            }
            let value = self.word.load(ordering);
            self.last.store(value, Relaxed);
            value
        }

        pub(crate) fn store(&self, value: u32, ordering: Ordering) {
            if self.is_wait_word && value != 0 && is_left_out(Without::LookBeforeSleep) {
                let late = Late::Word(Arc::clone(&self.word), value);
                return LATE.with_borrow_mut(|all| all.push(late));
            }
            self.word.store(value, ordering);
        }

        pub(crate) fn swap(&self, value: u32, ordering: Ordering) -> u32 {
            self.word.swap(value, ordering)
        }
    }
}
