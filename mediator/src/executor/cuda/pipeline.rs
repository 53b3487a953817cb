//! The vector add, several chunks at a time.

use std::thread;
use std::time::{Duration, Instant};

use super::super::{ExecutorError, VectorAddPipeline};
use super::driver::{CallError, NOT_READY};
use super::slot::{Slot, Span};
use super::{CudaExecutor, executor_error};

/// The pauses between two looks at work that is not done yet: short at first, since a chunk takes
/// tens of microseconds, then longer, so that waiting costs nothing.
const FIRST_PAUSE: Duration = Duration::from_micros(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(1);

/// A pipeline over the executor's slots.
pub(super) struct CudaVectorAdd<'a> {
    executor: &'a mut CudaExecutor,
    /// Whether the slot's result was had already.
    counted: Vec<bool>,
    busy: Busy,
}

impl<'a> CudaVectorAdd<'a> {
    /// Takes the executor's slots, which are free.
    pub(super) fn new(executor: &'a mut CudaExecutor) -> Result<Self, ExecutorError> {
        let counted = vec![false; executor.slots.len()];
        let CudaExecutor {
            slots,
            clock,
            device,
            ..
        } = &mut *executor;
        slots[0]
            .mark(clock)
            .map_err(|error| executor_error(device, error))?;
        Ok(CudaVectorAdd {
            executor,
            counted,
            busy: Busy::default(),
        })
    }

    fn slot(&mut self, slot: usize) -> &mut Slot {
        &mut self.executor.slots[slot]
    }

    fn error(&self, error: CallError) -> ExecutorError {
        executor_error(&self.executor.device, error)
    }

    /// Adds the time of the slot that is done, once. Says no while the clock's own event, which is in
    /// another stream, has not come up yet.
    fn count(&mut self, slot: usize) -> Result<bool, ExecutorError> {
        if !self.counted[slot] {
            match self.executor.slots[slot].span(&self.executor.clock) {
                Ok(span) => self.busy.add(span),
                Err(error) if error.code == NOT_READY => return Ok(false),
                Err(error) => return Err(self.error(error)),
            }
            self.counted[slot] = true;
        }
        Ok(true)
    }

    /// No call, and no memory of a slot, once the device was given up.
    fn check_not_lost(&self) -> Result<(), ExecutorError> {
        if self.executor.device.is_lost() {
            return Err(lost());
        }
        Ok(())
    }
}

/// The answer to everything after the first error that told of the loss.
pub(super) fn lost() -> ExecutorError {
    ExecutorError::DeviceLost {
        what: "an earlier error ended this process's use of it".into(),
    }
}

impl VectorAddPipeline for CudaVectorAdd<'_> {
    fn slots(&self) -> usize {
        self.executor.slots.len()
    }

    fn input(&mut self, slot: usize, elements: usize) -> (&mut [f32], &mut [f32]) {
        self.slot(slot).input(elements)
    }

    fn submit(&mut self, slot: usize, elements: usize) -> Result<(), ExecutorError> {
        assert!(elements > 0, "an empty chunk");
        self.check_not_lost()?;
        self.counted[slot] = false;
        self.slot(slot)
            .submit(elements)
            .map_err(|error| self.error(error))
    }

    fn is_done(&mut self, slot: usize) -> Result<bool, ExecutorError> {
        self.check_not_lost()?;
        self.slot(slot).is_done().map_err(|error| self.error(error))
    }

    fn result(&mut self, slot: usize, deadline: Instant) -> Result<&[f32], ExecutorError> {
        // Not cuEventSynchronize: it would wait for a hung GPU for ever.
        let mut pause = FIRST_PAUSE;
        loop {
            // Read before the look, so that there is one after the deadline.
            let left = deadline.saturating_duration_since(Instant::now());
            if self.is_done(slot)? && self.count(slot)? {
                break;
            }
            if left.is_zero() {
                return Err(ExecutorError::TimedOut {
                    what: "the GPU to add a chunk".into(),
                });
            }
            thread::sleep(pause.min(left));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Ok(self.executor.slots[slot].output())
    }

    fn device_ns(&self) -> u64 {
        self.busy.total_ns
    }
}

/// The time during which at least one chunk was under way. Chunks overlap, and each such moment
/// counts once.
#[derive(Debug, Default)]
struct Busy {
    total_ns: u64,
    /// Up to here is counted.
    until_ns: u64,
}

impl Busy {
    /// Adds a chunk that started no earlier than the ones before.
    fn add(&mut self, span: Span) {
        let start_ns = span.start_ns.max(self.until_ns);
        self.total_ns += span.end_ns.saturating_sub(start_ns);
        self.until_ns = self.until_ns.max(span.end_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_chunks_count_once() {
        let mut busy = Busy::default();
        busy.add(Span {
            start_ns: 100,
            end_ns: 200,
        });
        assert_eq!(busy.total_ns, 100);
        busy.add(Span {
            start_ns: 150,
            end_ns: 260,
        });
        assert_eq!(busy.total_ns, 160);
        // Within what is counted, as rounding may have it.
        busy.add(Span {
            start_ns: 120,
            end_ns: 250,
        });
        assert_eq!(busy.total_ns, 160);
        busy.add(Span {
            start_ns: 1000,
            end_ns: 1001,
        });
        assert_eq!(busy.total_ns, 161);
    }
}
