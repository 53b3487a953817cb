//! Rows of kernels one behind the other in a stream, between two events that tell how long they ran.
//!
//! To take the time of a single kernel costs more than to launch it. So where a guest launches one and waits for it, over and
//! over, and nothing else is under way, one in [`SAMPLED`] is timed, and the others count as much as that one: as long as it is
//! a short one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::CUstream;
use vgpu_transport::clock;

use super::super::super::gpu::device::{Key, Span};
use super::super::driver::{CallError, EVENT_DEFAULT};
use super::super::handles::Event;
use super::{GONE, Queue};

/// Of so many single kernels of a kind one is timed.
const SAMPLED: u8 = 8;

/// Longer kernels are timed each time.
const SHORT_KERNEL: Duration = Duration::from_micros(20);

/// A kernel that seems to have run for so long is no short one any more.
const LONG_KERNEL: Duration = Duration::from_millis(5);

/// Kinds of kernels whose times are remembered.
const MOST_KINDS: usize = 1024;

/// Identifies the launched work: the address of a function or of a graph.
pub(super) type Kind = usize;

/// Kernels one behind the other. The number of the last one is not behind it yet.
pub(super) struct Row {
    /// None: a single kernel so far, which is not timed.
    began: Option<Arc<Event>>,
    /// It is also the end of the row before, with which it was given back.
    shares_began: bool,
    kernels: u32,
    since: Instant,
    first: Kind,
    /// Nanoseconds of the first one, if that is not timed.
    estimated: Option<u64>,
}

pub(super) struct Times {
    row: Row,
    /// None where nothing was timed.
    ended: Option<Arc<Event>>,
}

/// The times of single kernels.
#[derive(Default)]
pub(super) struct Samples(HashMap<Kind, Sample>);

struct Sample {
    ns: u64,
    /// How many more it stands for.
    left: u8,
}

impl Samples {
    /// The nanoseconds of a kernel that need not be timed.
    fn take(&mut self, kind: Kind) -> Option<u64> {
        let sample = self.0.get_mut(&kind)?;
        sample.left = sample.left.checked_sub(1)?;
        Some(sample.ns)
    }

    /// A kernel was timed.
    fn note(&mut self, kind: Kind, ns: u64) {
        let is_short = u128::from(ns) < SHORT_KERNEL.as_nanos();
        if self.0.len() >= MOST_KINDS && !self.0.contains_key(&kind) {
            self.0.clear();
        }
        let left = if is_short { SAMPLED - 1 } else { 0 };
        self.0.insert(kind, Sample { ns, left });
    }

    /// The next one has to be timed.
    fn forget(&mut self, kind: Kind) {
        self.0.remove(&kind);
    }
}

/// The end of a row of kernels.
pub(super) struct End {
    event: Arc<Event>,
    /// Nanoseconds on the device's clock.
    at: i64,
    /// The row's stream.
    of: Key,
}

impl Queue {
    fn event(&mut self) -> Result<Arc<Event>, CallError> {
        let unused = |event: &Arc<Event>| Arc::strong_count(event) == 1;
        match self.free_events.iter().position(unused) {
            Some(at) => Ok(self.free_events.swap_remove(at)),
            None => Event::new(&self.device, EVENT_DEFAULT).map(Arc::new),
        }
    }

    /// Launches something in a stream, as the last of a row.
    pub(super) fn in_row(
        &mut self,
        key: Key,
        kind: Kind,
        launch: impl FnOnce(CUstream) -> Result<(), CallError>,
    ) -> Result<(), CallError> {
        let lane = self.lanes.get(&key).ok_or(GONE)?;
        let new = match &lane.row {
            Some(row) => {
                // Another one follows.
                let is_timed = row.began.is_some();
                let numbered = self.number(key);
                numbered.inspect_err(|error| self.device.lose(*error))?;
                if !is_timed {
                    let began = self.record(key)?;
                    let row = self.lanes.get_mut(&key).and_then(|lane| lane.row.as_mut());
                    row.ok_or(GONE)?.began = Some(began);
                }
                None
            }
            None => Some(self.begin_row(key, kind)?),
        };
        let lane = self.lanes.get(&key).ok_or(GONE)?;
        if let Err(error) = launch(lane.stream.stream) {
            match new {
                Some(row) if !row.shares_began => self.free_events.extend(row.began),
                Some(_) => {}
                // None follows after all.
                None => self.end_row(key)?,
            }
            return Err(error);
        }
        let lane = self.lanes.get_mut(&key).ok_or(GONE)?;
        lane.row = new.or(lane.row.take());
        if let Some(row) = &mut lane.row {
            row.kernels += 1;
        }
        Ok(())
    }

    /// An event behind the work in a stream.
    fn record(&mut self, key: Key) -> Result<Arc<Event>, CallError> {
        let fresh = self.event()?;
        let lane = self.lanes.get(&key).ok_or(GONE)?;
        fresh.record(&lane.stream)?;
        Ok(fresh)
    }

    /// Begins a row of kernels behind the work in a stream.
    fn begin_row(&mut self, key: Key, first: Kind) -> Result<Row, CallError> {
        let mut row = Row {
            began: None,
            shares_began: false,
            kernels: 0,
            since: clock::now(),
            first,
            estimated: None,
        };
        let alone = self.lanes.values().all(|lane| lane.under_way.is_empty());
        if alone && let Some(ns) = self.samples.take(first) {
            row.estimated = Some(ns);
            return Ok(row);
        }
        let lane = self.lanes.get(&key).ok_or(GONE)?;
        // If another row runs before it, this one begins when that has ended.
        let before = lane.under_way.back().and_then(|last| last.times.as_ref());
        let before = before.and_then(|times| times.ended.clone());
        row.shares_began = before.is_some();
        row.began = Some(match before {
            Some(before) => before,
            None => self.record(key)?,
        });
        Ok(row)
    }

    /// Ends the row of kernels in a stream, if there is one. If that fails, the last of them has no number.
    pub(super) fn end_row(&mut self, key: Key) -> Result<(), CallError> {
        let lane = self.lanes.get_mut(&key);
        let Some(row) = lane.and_then(|lane| lane.row.take()) else {
            return Ok(());
        };
        let ended = self.device.bind().and_then(|()| {
            let ended = match row.began {
                Some(_) => Some(self.record(key)?),
                None => None,
            };
            let lane = self.lanes.get_mut(&key).ok_or(GONE)?;
            if let Some(last) = lane.under_way.back_mut() {
                last.times = Some(Times { row, ended });
            }
            self.number(key)
        });
        ended.inspect_err(|error| self.device.lose(*error))
    }

    /// The same in every stream, or in those whose row began before `before`.
    pub(super) fn end_rows(&mut self, before: Option<Instant>) {
        let ends = |row: &Row| before.is_none_or(|before| row.since <= before);
        let lanes = self.lanes.iter();
        let some = lanes.filter(|(_, lane)| lane.row.as_ref().is_some_and(ends));
        let keys: Vec<Key> = some.map(|(key, _)| *key).collect();
        for key in keys {
            // Then the device is lost.
            let _ = self.end_row(key);
        }
    }

    /// A row of the stream `of` is over: when it ran, if that is known, and how many kernels it had.
    pub(super) fn row_is_over(
        &mut self,
        of: Key,
        times: Times,
        is_sound: bool,
    ) -> (Option<Span>, u32) {
        let Times { row, ended } = times;
        let mut told = (None, 0);
        if is_sound && self.device.bind().is_ok() {
            let first = row.estimated.map(|ns| self.estimate(ns));
            let ran = match (&row.began, &ended) {
                (Some(began), Some(ended)) => self.span(of, began, ended).ok().map(|rest| Span {
                    began: first.map_or(rest.began, |first| first.began),
                    ..rest
                }),
                _ => first,
            };
            told = (ran, row.kernels);
            if clock::now().saturating_duration_since(row.since) > LONG_KERNEL {
                self.samples.forget(row.first);
            } else if let Some(ran) = ran
                && row.began.is_some()
                && row.kernels == 1
            {
                self.samples.note(row.first, ran.ns());
            }
        }
        // Each event once: one that is here twice is never free.
        if !row.shares_began {
            self.free_events.extend(row.began);
        }
        self.free_events.extend(ended);
        told
    }

    /// A kernel that was not timed ran for about so long, behind everything that was.
    fn estimate(&mut self, ns: u64) -> Span {
        let began = self.last_end.as_ref().map_or(0, |last| last.at);
        let ended = began.saturating_add_unsigned(ns);
        if let Some(last) = &mut self.last_end {
            last.at = ended;
        }
        Span { began, ended }
    }

    /// When a row of the stream `of`, which is over, ran. Measured from the end of another one that ended about then:
    /// the driver tells times apart by a number of 24 bits.
    fn span(
        &mut self,
        of: Key,
        row_began: &Event,
        row_ended: &Arc<Event>,
    ) -> Result<Span, CallError> {
        let ns = row_began.elapsed_ns(row_ended)?;
        let mut others = self.lanes.iter().filter(|(key, _)| **key != of);
        let alone = others.all(|(_, lane)| lane.under_way.is_empty());
        let ended = match &self.last_end {
            None => ns,
            // Nothing that is still to be told of can have run at the same time as the two, so how far apart they were
            // does not matter; to ask for that takes half as long as a launch.
            Some(last) if last.of == of && alone => last.at.saturating_add(ns),
            Some(last) => last.at.saturating_add(last.event.elapsed_ns(row_ended)?),
        };
        if self.last_end.as_ref().is_none_or(|last| last.at <= ended) {
            self.last_end = Some(End {
                event: Arc::clone(row_ended),
                at: ended,
                of,
            });
        }
        Ok(Span {
            began: ended.saturating_sub(ns),
            ended,
        })
    }
}
