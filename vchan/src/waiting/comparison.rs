#![forbid(unsafe_code)]
//! Whether a half that polls before it sleeps moves its bytes faster than one that sleeps at once:
//! measured, without a clock of its own.
//!
//! Polling does harm that no single wait shows. Where a processor is shared with other work, by
//! this system or by a host below it, a thread that polls uses up its turn; it then loses the
//! processor in the middle of its work, and is no longer one that runs as soon as it is woken. How
//! much that costs, and whether polling saves more, depends on schedulers that cannot be asked. So
//! both ways are tried:
//!
//! - Time is divided into *slices*, longer than a scheduler's turns. In each, the half waits one way.
//! - Now and then, one slice is a *trial* of the way that is not in use. A trial that does clearly
//!   worse ends early.
//! - The ways are compared by the bytes moved in their latest slices.
//! - A trial that changes nothing makes the time until the next twice as long.
//! - After a long wait everything is forgotten: a half that was idle polls first, as a new one.
//!
//! Usually polling is preferred: it is given up only for a clear gain, taken up again without one,
//! and where polls find what they wait for there is no trial. It is the other way round in a
//! *stream*: bytes that go one way only, through a ring so large that the peer can go on while this
//! side is woken. There polling has to be clearly faster than sleeping at once, even where it finds
//! what it waits for. What was learnt of the one says nothing about the other.

use std::time::Duration;

use crate::waiting::spin_window::nanos;

/// Half of a ring of this many bytes takes about as long to fill as a wake-up takes.
const LARGE: u32 = 256 << 10;
/// A slice is at least this long: several turns of a scheduler.
const SLICE: Duration = Duration::from_millis(16);
/// A slice may end early after this part of it.
const EARLY: i64 = 8;
/// A trial ends early if it moves fewer bytes in a second than the other way divided by this.
const CLEARLY_WORSE: f64 = 2.0;
/// A slice of polling in usual traffic leads to a trial if at least one part in this many of it went
/// into polls that found nothing.
const IN_VAIN: i64 = 16;
/// Waits that a slice has at least.
const WAITS: u32 = 8;
/// Slices from one trial to the next: at first, and at most.
const APART: (u32, u32) = (1, 64);
/// A wait this many slices long makes the half a new one.
const IDLE: i64 = 32;

/// A way to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Poll,
    Sleep,
}

/// A kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Usual,
    Stream,
}

impl Kind {
    /// Polling is given up below the first, and taken up from the second on, in times of what sleeping
    /// at once moves. They lie apart so that equal ways do not take turns.
    const fn limits(self) -> (f64, f64) {
        match self {
            Self::Usual => (0.8, 1.0),
            Self::Stream => (1.2, 1.5),
        }
    }
}

/// The recent results of one way. Older slices count less: the latest has half of the weight.
#[derive(Debug, Clone, Copy, Default)]
struct Record {
    bytes: f64,
    nanos: f64,
}

impl Record {
    fn add(&mut self, bytes: f64, nanos: f64) {
        self.bytes = self.bytes / 2.0 + bytes;
        self.nanos = self.nanos / 2.0 + nanos;
    }

    /// Bytes per nanosecond; zero if there is no record.
    fn rate(&self) -> f64 {
        match self.nanos > 0.0 {
            true => self.bytes / self.nanos,
            false => 0.0,
        }
    }
}

/// The results for one kind of traffic.
#[derive(Debug)]
struct Ways {
    kind: Kind,
    in_use: Way,
    /// The slice under way is a trial of the other way.
    trial: bool,
    polling: Record,
    sleeping: Record,
    /// Slices between trials.
    apart: u32,
    /// Slices until the next trial.
    left: u32,
}

/// The comparison of one waiting half.
#[derive(Debug)]
pub(crate) struct Comparison {
    usual: Ways,
    stream: Ways,
    /// The kind of the slice under way.
    kind: Kind,
    current: Option<Slice>,
}

/// Bytes that a half has moved so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Moved {
    /// Bytes; the comparison is about them.
    pub(crate) bytes: u64,
    /// Stays the same as long as this side takes part in a stream only.
    pub(crate) exchanged: u64,
}

impl Moved {
    /// Of a half that has moved `bytes` and whose ring has so many, on a side that has moved `back`
    /// against its direction.
    pub(crate) fn of(bytes: u64, back: u64, ring: u32) -> Self {
        match is_large(ring) {
            true => Self {
                bytes,
                exchanged: back,
            },
            false => Self::usual(bytes),
        }
    }

    /// Of a half that takes no part in a stream.
    pub(crate) fn usual(bytes: u64) -> Self {
        Self {
            bytes,
            exchanged: bytes,
        }
    }
}

/// Whether one side can go on in a ring of so many bytes while the other is woken.
pub(crate) fn is_large(ring: u32) -> bool {
    ring >= LARGE
}

/// The slice under way.
#[derive(Debug, Default)]
struct Slice {
    /// Bytes that the half had moved at the beginning.
    moved: Moved,
    /// Nanoseconds so far.
    nanos: i64,
    /// Those of polls that found nothing.
    in_vain: i64,
    waits: u32,
}

impl Slice {
    fn begin(moved: Moved) -> Self {
        Self {
            moved,
            ..Self::default()
        }
    }

    fn kind(&self, now: Moved) -> Kind {
        match now.exchanged == self.moved.exchanged {
            true => Kind::Stream,
            false => Kind::Usual,
        }
    }
}

/// The traffic between two calls of [`Comparison::passed`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Passed {
    /// Nanoseconds.
    pub(crate) nanos: i64,
    /// Nanoseconds of polls that found nothing.
    pub(crate) in_vain: i64,
    pub(crate) waits: u32,
}

impl Comparison {
    pub(crate) fn new() -> Self {
        Self {
            usual: Ways::new(Kind::Usual),
            stream: Ways::new(Kind::Stream),
            kind: Kind::Usual,
            current: None,
        }
    }

    /// Nanoseconds after which, at the latest, [`passed`](Self::passed) should be called while the
    /// half is at work.
    pub(crate) fn patience() -> i64 {
        nanos(SLICE) / EARLY
    }

    /// Whether the half may poll now.
    #[inline]
    pub(crate) fn polls(&self) -> bool {
        match self.kind {
            Kind::Usual => self.usual.polls(),
            Kind::Stream => self.stream.polls(),
        }
    }

    /// Takes note of what happened since the last call; `now` is what has been moved so far.
    pub(crate) fn passed(&mut self, passed: Passed, now: Moved) {
        let slice = nanos(SLICE);
        if passed.nanos >= slice.saturating_mul(IDLE) {
            *self = Self::new();
        }
        let Some(current) = &mut self.current else {
            self.current = Some(Slice::begin(now));
            return;
        };
        current.nanos = current.nanos.saturating_add(passed.nanos);
        current.in_vain = current.in_vain.saturating_add(passed.in_vain);
        current.waits = current.waits.saturating_add(passed.waits);
        if current.waits < WAITS || current.nanos < slice / EARLY {
            return;
        }
        let kind = current.kind(now);
        let known = match self.kind {
            Kind::Usual => &mut self.usual,
            Kind::Stream => &mut self.stream,
        };
        let bytes = now.bytes.wrapping_sub(current.moved.bytes) as f64;
        let nanos = current.nanos as f64;
        if kind == known.kind {
            if current.nanos < slice && !known.fails(bytes / nanos) {
                return;
            }
            known.add(bytes, nanos);
            known.next(current.in_vain >= current.nanos / IN_VAIN);
        }
        self.kind = kind;
        self.current = Some(Slice::begin(now));
    }
}

impl Ways {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            in_use: match kind {
                Kind::Usual => Way::Poll,
                Kind::Stream => Way::Sleep,
            },
            trial: false,
            polling: Record::default(),
            sleeping: Record::default(),
            apart: APART.0,
            left: APART.0,
        }
    }

    #[inline]
    fn polls(&self) -> bool {
        (self.in_use == Way::Poll) != self.trial
    }

    /// Whether the slice under way is a trial that may end already at this rate.
    fn fails(&self, rate: f64) -> bool {
        let usual = match self.in_use {
            Way::Poll => self.polling.rate(),
            Way::Sleep => self.sleeping.rate(),
        };
        self.trial && rate * CLEARLY_WORSE < usual
    }

    /// Records a slice.
    fn add(&mut self, bytes: f64, nanos: f64) {
        match self.polls() {
            true => self.polling.add(bytes, nanos),
            false => self.sleeping.add(bytes, nanos),
        }
    }

    /// Chooses how to wait in the next slice. Polls were `in_vain` for a part of this one.
    fn next(&mut self, in_vain: bool) {
        if !std::mem::take(&mut self.trial) {
            if in_vain || self.in_use == Way::Sleep || self.kind == Kind::Stream {
                self.left = self.left.saturating_sub(1);
                self.trial = self.left == 0;
            }
            return;
        }
        let (give_up, take_up) = self.kind.limits();
        let (polling, sleeping) = (self.polling.rate(), self.sleeping.rate());
        let better = if polling < sleeping * give_up {
            Way::Sleep
        } else if polling < sleeping * take_up {
            self.in_use
        } else {
            Way::Poll
        };
        self.apart = match better == self.in_use {
            true => (self.apart * 2).min(APART.1),
            false => APART.0,
        };
        self.in_use = better;
        self.left = self.apart;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A half at work: what it has moved, and nanoseconds spent in each way.
    struct Half {
        comparison: Comparison,
        moved: Moved,
        kind: Kind,
        polling: i64,
        sleeping: i64,
        /// Whether polls find nothing.
        in_vain: bool,
    }

    impl Half {
        fn new(kind: Kind) -> Self {
            let mut comparison = Comparison::new();
            comparison.passed(Passed::default(), Moved::default());
            Self {
                comparison,
                moved: Moved::default(),
                kind,
                polling: 0,
                sleeping: 0,
                in_vain: true,
            }
        }

        /// Works for `slices` with these bytes per microsecond, if it polls and if it sleeps.
        fn work(&mut self, slices: u32, mut rates: impl FnMut(bool) -> u64) {
            (self.polling, self.sleeping) = (0, 0);
            let step = nanos(SLICE) / 32;
            for _ in 0..32 * slices {
                let polls = self.comparison.polls();
                match polls {
                    true => self.polling += step,
                    false => self.sleeping += step,
                }
                self.moved.bytes += rates(polls) * step.unsigned_abs() / 1000;
                if self.kind == Kind::Usual {
                    self.moved.exchanged += 1;
                }
                let passed = Passed {
                    nanos: step,
                    in_vain: if polls && self.in_vain { step / 4 } else { 0 },
                    waits: 4,
                };
                self.comparison.passed(passed, self.moved);
            }
        }

        /// The part of the last work's time in which it polled.
        fn polled(&self) -> f64 {
            self.polling as f64 / (self.polling + self.sleeping) as f64
        }
    }

    const KINDS: [Kind; 2] = [Kind::Usual, Kind::Stream];

    fn either(polling: u64, sleeping: u64) -> impl FnMut(bool) -> u64 {
        move |polls| if polls { polling } else { sleeping }
    }

    #[test]
    fn it_polls_first_and_where_both_ways_are_equal() {
        let mut half = Half::new(Kind::Usual);
        half.work(1, either(10, 10));
        assert_eq!(half.polled(), 1.0);
        half.work(1000, either(10, 10));
        assert!(half.polled() > 0.95, "{}", half.polled());
        // Not worth a change.
        half.work(1000, either(10, 12));
        assert!(half.polled() > 0.95, "{}", half.polled());
    }

    #[test]
    fn where_polling_is_much_faster_the_other_way_costs_little() {
        for kind in KINDS {
            let mut half = Half::new(kind);
            half.work(60, either(100, 1));
            assert!(half.polled() > 0.95, "{kind:?}: {}", half.polled());
            half.work(1000, either(100, 1));
            assert!(half.polled() > 0.997, "{kind:?}: {}", half.polled());
        }
    }

    #[test]
    fn where_sleeping_at_once_is_faster_it_is_used() {
        for kind in KINDS {
            for (polling, sleeping) in [(10, 15), (10, 30), (1, 100), (0, 10)] {
                let mut half = Half::new(kind);
                half.work(10, either(polling, sleeping));
                half.work(1000, either(polling, sleeping));
                let polled = half.polled();
                assert!(polled < 0.03, "{kind:?}, {sleeping}: {polled}");
            }
        }
    }

    #[test]
    fn where_polls_find_something_there_is_no_trial() {
        let mut half = Half::new(Kind::Usual);
        half.in_vain = false;
        // Also where the other way would be faster by chance.
        half.work(1000, either(10, 30));
        assert_eq!(half.polled(), 1.0);
        half.in_vain = true;
        half.work(140, either(10, 30));
        half.work(1000, either(10, 30));
        assert!(half.polled() < 0.03, "{}", half.polled());
    }

    #[test]
    fn a_stream_sleeps_unless_polling_is_clearly_faster() {
        // Also where polls find what they wait for.
        for in_vain in [true, false] {
            let mut half = Half::new(Kind::Stream);
            half.in_vain = in_vain;
            half.work(200, either(10, 10));
            assert!(half.polled() < 0.1, "{in_vain}: {}", half.polled());
            half.work(140, either(20, 10));
            half.work(1000, either(20, 10));
            assert!(half.polled() > 0.97, "{in_vain}: {}", half.polled());
            half.work(140, either(11, 10));
            half.work(1000, either(11, 10));
            assert!(half.polled() < 0.03, "{in_vain}: {}", half.polled());
        }
    }

    #[test]
    fn a_stream_says_nothing_about_other_traffic() {
        let mut half = Half::new(Kind::Usual);
        half.in_vain = false;
        half.work(10, either(10, 1));
        half.kind = Kind::Stream;
        half.work(200, either(10, 30));
        assert!(half.polled() < 0.2, "{}", half.polled());
        half.kind = Kind::Usual;
        // Until the kind is noticed.
        half.work(1, either(10, 1));
        assert!(half.polled() > 0.7, "{}", half.polled());
        half.work(1000, either(10, 1));
        assert_eq!(half.polled(), 1.0);
        // Nor does what was learnt of a stream get lost.
        half.kind = Kind::Stream;
        half.work(20, either(10, 30));
        assert!(half.polled() < 0.2, "{}", half.polled());
    }

    #[test]
    fn it_follows_a_change_of_the_machine() {
        for kind in KINDS {
            let mut half = Half::new(kind);
            for _ in 0..3 {
                half.work(1000, either(10, 30));
                half.work(140, either(100, 1));
                half.work(1000, either(100, 1));
                assert!(half.polled() > 0.99, "{kind:?}: {}", half.polled());
                half.work(260, either(10, 30));
                half.work(1000, either(10, 30));
                assert!(half.polled() < 0.03, "{kind:?}: {}", half.polled());
            }
        }
    }

    // Rates that vary by a factor of nine from one moment to the next.
    #[test]
    fn noise_does_not_hide_a_large_difference() {
        let mut state = 1u64;
        let mut noise = move || {
            // Knuth's linear congruential generator (MMIX).
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            1 + (state >> 33) % 9
        };
        for kind in KINDS {
            let mut half = Half::new(kind);
            half.work(2000, |polls| noise() * if polls { 10 } else { 30 });
            assert!(half.polled() < 0.1, "{kind:?}: {}", half.polled());
            let mut half = Half::new(kind);
            half.work(2000, |polls| noise() * if polls { 30 } else { 10 });
            assert!(half.polled() > 0.9, "{kind:?}: {}", half.polled());
        }
    }

    #[test]
    fn a_long_wait_makes_it_new() {
        let mut half = Half::new(Kind::Usual);
        half.work(1000, either(10, 30));
        assert!(!half.comparison.polls() || half.polled() < 0.03);
        let long = Passed {
            nanos: nanos(SLICE) * IDLE,
            in_vain: 0,
            waits: 1,
        };
        half.comparison.passed(long, half.moved);
        half.work(1, either(10, 30));
        assert_eq!(half.polled(), 1.0);
    }

    #[test]
    fn any_times_and_bytes_are_fine() {
        let mut comparison = Comparison::new();
        for bytes in [0, u64::MAX, 0, 5] {
            for nanos in [0, 1, i64::MAX] {
                for exchanged in [0, u64::MAX] {
                    let passed = Passed {
                        nanos,
                        in_vain: nanos,
                        waits: u32::MAX,
                    };
                    comparison.passed(passed, Moved { bytes, exchanged });
                }
            }
        }
        let _ = comparison.polls();
    }
}
