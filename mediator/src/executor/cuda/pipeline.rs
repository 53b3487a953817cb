//! The vector add, several chunks at a time.

use std::sync::{Arc, Mutex, PoisonError};

use super::super::ExecutorError;
use super::super::cuda_result::{NOT_READY, OUT_OF_MEMORY};
use super::super::vector_add::{CHUNK, Pipeline};
use super::device::Device;
use super::driver::CallError;
use super::executor_error;
use super::slot::{Clock, Slot, Span};

/// Chunks of a vector add under way at once: one being filled, one copied in, one computed, one
/// copied out, and room for two more of which the guest knows already.
const SLOTS: usize = 6;

/// Slots that are kept from one request to the next: page-locking memory takes its time.
const KEPT: usize = 2 * SLOTS;

/// Slots that no request uses.
pub(super) type FreeSlots = Arc<Mutex<Vec<Slot>>>;

/// The slots of one vector add.
#[derive(Debug)]
pub(super) struct CudaPipeline {
    // In this order: slots and clock are dropped before the device that they belong to.
    slots: [Option<Used>; SLOTS],
    /// Marked when the first slot is taken.
    clock: Option<Clock>,
    free: FreeSlots,
    device: Arc<Device>,
    busy: Busy,
}

#[derive(Debug)]
struct Used {
    slot: Slot,
    /// Whether the time of its last chunk was added.
    counted: bool,
}

impl CudaPipeline {
    /// A pipeline that takes its slots when it needs them.
    pub(super) fn new(device: &Arc<Device>, free: &FreeSlots) -> Self {
        Self {
            slots: Default::default(),
            clock: None,
            free: Arc::clone(free),
            device: Arc::clone(device),
            busy: Busy::default(),
        }
    }

    fn used(&mut self, slot: usize) -> &mut Used {
        self.slots[slot]
            .as_mut()
            .expect("a slot whose input was asked for")
    }

    fn error(&self, error: CallError) -> ExecutorError {
        executor_error(&self.device, error)
    }

    /// A free slot, or a new one.
    fn take_slot(&self) -> Result<Slot, ExecutorError> {
        // The executor may have moved to another thread.
        self.device.bind().map_err(|error| self.error(error))?;
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = free.pop() {
            return Ok(slot);
        }
        drop(free);
        new_slot(&self.device).map_err(|error| match error.code {
            OUT_OF_MEMORY => ExecutorError::OutOfMemory {
                wanted: slot_bytes() as u64,
                what: format!("a chunk of {CHUNK} elements on the GPU"),
            },
            _ => self.error(error),
        })
    }

    /// Adds the time of the slot that is done, once. Says no while the clock's own event, which is in
    /// another stream, has not come up yet.
    fn count(&mut self, slot: usize) -> Result<bool, ExecutorError> {
        let (Some(used), Some(clock)) = (&mut self.slots[slot], &self.clock) else {
            return Ok(true);
        };
        if used.counted {
            return Ok(true);
        }
        match used.slot.span(clock) {
            Ok(span) => self.busy.add(span),
            Err(error) if error.code == NOT_READY => return Ok(false),
            Err(error) => return Err(self.error(error)),
        }
        used.counted = true;
        Ok(true)
    }

    /// No call, and no memory of a slot, once the device was given up.
    fn check_not_lost(&self) -> Result<(), ExecutorError> {
        match self.device.is_lost() {
            true => Err(lost()),
            false => Ok(()),
        }
    }
}

/// Room for one chunk.
///
/// # Errors
/// Whatever the driver says.
pub(super) fn new_slot(device: &Arc<Device>) -> Result<Slot, CallError> {
    device.bind()?;
    Slot::new(device, CHUNK, slot_bytes())
}

fn slot_bytes() -> usize {
    Slot::bytes(CHUNK).expect("a chunk has an address")
}

/// The answer to everything after the first error that told of the loss.
pub(super) fn lost() -> ExecutorError {
    ExecutorError::DeviceLost {
        what: "an earlier error ended this process's use of it".into(),
    }
}

impl Drop for CudaPipeline {
    fn drop(&mut self) {
        if self.device.is_lost() || self.device.bind().is_err() {
            return;
        }
        for used in self.slots.iter_mut().filter_map(Option::take) {
            let mut slot = used.slot;
            slot.drain();
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            if free.len() < KEPT && !self.device.is_lost() {
                free.push(slot);
            }
        }
    }
}

impl Pipeline for CudaPipeline {
    fn slots(&self) -> usize {
        SLOTS
    }

    fn input(
        &mut self,
        slot: usize,
        elements: usize,
    ) -> Result<(&mut [f32], &mut [f32]), ExecutorError> {
        self.check_not_lost()?;
        if self.slots[slot].is_none() {
            let mut taken = self.take_slot()?;
            if self.clock.is_none() {
                let marked = Clock::new(&self.device).and_then(|clock| {
                    taken.mark(&clock)?;
                    Ok(clock)
                });
                self.clock = Some(marked.map_err(|error| self.error(error))?);
            }
            self.slots[slot] = Some(Used {
                slot: taken,
                counted: false,
            });
        }
        Ok(self.used(slot).slot.input(elements))
    }

    fn submit(&mut self, slot: usize, elements: usize) -> Result<(), ExecutorError> {
        self.check_not_lost()?;
        let used = self.used(slot);
        used.counted = false;
        let submitted = used.slot.submit(elements);
        submitted.map_err(|error| self.error(error))
    }

    fn is_done(&mut self, slot: usize) -> Result<bool, ExecutorError> {
        self.check_not_lost()?;
        let done = self.used(slot).slot.is_done();
        Ok(done.map_err(|error| self.error(error))? && self.count(slot)?)
    }

    fn result(&self, slot: usize) -> &[f32] {
        let used = self.slots[slot].as_ref().expect("a slot that is done");
        used.slot.output()
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
