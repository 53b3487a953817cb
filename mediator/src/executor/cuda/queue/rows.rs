//! Rows of kernels one behind the other in a stream, between two events that tell how long they ran.

use std::sync::Arc;
use std::time::Instant;

use cudarc::driver::sys::CUstream;
use vgpu_transport::clock;

use super::super::super::gpu::device::{Key, Span};
use super::super::driver::{CallError, EVENT_DEFAULT};
use super::super::handles::Event;
use super::{GONE, Queue};

/// Kernels one behind the other. The number of the last one is not behind it yet.
pub(super) struct Row {
    began: Arc<Event>,
    /// It is also the end of the row before, with which it was given back.
    shares_began: bool,
    kernels: u32,
    since: Instant,
}

pub(super) struct Times {
    row: Row,
    ended: Arc<Event>,
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
        launch: impl FnOnce(CUstream) -> Result<(), CallError>,
    ) -> Result<(), CallError> {
        let lane = self.lanes.get(&key).ok_or(GONE)?;
        let new = match lane.row {
            Some(_) => {
                // Another one follows.
                let numbered = self.number(key);
                numbered.inspect_err(|error| self.device.lose(*error))?;
                None
            }
            None => Some(self.begin_row(key)?),
        };
        let lane = self.lanes.get(&key).ok_or(GONE)?;
        if let Err(error) = launch(lane.stream.stream) {
            match new {
                Some(row) if !row.shares_began => self.free_events.push(row.began),
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

    /// Begins a row of kernels behind the work in a stream.
    fn begin_row(&mut self, key: Key) -> Result<Row, CallError> {
        let lane = self.lanes.get(&key).ok_or(GONE)?;
        // If another row runs before it, this one begins when that has ended.
        let before = lane.under_way.back().and_then(|last| last.times.as_ref());
        let before = before.map(|times| Arc::clone(&times.ended));
        let shares_began = before.is_some();
        let began = match before {
            Some(before) => before,
            None => {
                let fresh = self.event()?;
                let lane = self.lanes.get(&key).ok_or(GONE)?;
                fresh.record(&lane.stream)?;
                fresh
            }
        };
        Ok(Row {
            began,
            shares_began,
            kernels: 0,
            since: clock::now(),
        })
    }

    /// Ends the row of kernels in a stream, if there is one. If that fails, the last of them has no number.
    pub(super) fn end_row(&mut self, key: Key) -> Result<(), CallError> {
        let lane = self.lanes.get_mut(&key);
        let Some(row) = lane.and_then(|lane| lane.row.take()) else {
            return Ok(());
        };
        let ended = self.device.bind().and_then(|()| {
            let ended = self.event()?;
            let lane = self.lanes.get_mut(&key).ok_or(GONE)?;
            ended.record(&lane.stream)?;
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
        let mut told = (None, 0);
        if is_sound && self.device.bind().is_ok() {
            told = (self.span(of, &times).ok(), times.row.kernels);
        }
        // Each event once: one that is here twice is never free.
        if !times.row.shares_began {
            self.free_events.push(times.row.began);
        }
        self.free_events.push(times.ended);
        told
    }

    /// When a row of the stream `of`, which is over, ran. Measured from the end of another one that ended about then:
    /// the driver tells times apart by a number of 24 bits.
    fn span(&mut self, of: Key, times: &Times) -> Result<Span, CallError> {
        let ns = times.row.began.elapsed_ns(&times.ended)?;
        let mut others = self.lanes.iter().filter(|(key, _)| **key != of);
        let alone = others.all(|(_, lane)| lane.under_way.is_empty());
        let ended = match &self.last_end {
            None => ns,
            // Nothing that is still to be told of can have run at the same time as the two, so how far apart they were
            // does not matter; to ask for that takes half as long as a launch.
            Some(last) if last.of == of && alone => last.at.saturating_add(ns),
            Some(last) => last.at.saturating_add(last.event.elapsed_ns(&times.ended)?),
        };
        if self.last_end.as_ref().is_none_or(|last| last.at <= ended) {
            self.last_end = Some(End {
                event: Arc::clone(&times.ended),
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
