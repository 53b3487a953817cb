//! The CPU executor: same protocol and same results without a GPU.

use std::time::Instant;

use super::{Executor, ExecutorError, ExecutorInfo, VectorAddPipeline};

/// Two slots: one is read back to the guest while the next is being filled.
const SLOTS: usize = 2;

/// Runs a guest's work on this machine's processor.
#[derive(Debug)]
pub struct CpuExecutor {
    info: ExecutorInfo,
    /// Kept from one request to the next: fresh pages cost more than the sums.
    slots: [Slot; SLOTS],
}

impl CpuExecutor {
    /// `reason` is the line that `info` gives for the choice of this executor.
    pub fn new(reason: &str) -> Self {
        let info = ExecutorInfo {
            kind: "cpu",
            device: processor_name().unwrap_or_else(|| "CPU".into()),
            total_memory: total_memory().unwrap_or(0),
            driver: String::new(),
            reason: reason.to_owned(),
        };
        Self {
            info,
            slots: Default::default(),
        }
    }
}

impl Executor for CpuExecutor {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn vector_add(
        &mut self,
        chunk_elements: usize,
    ) -> Result<Box<dyn VectorAddPipeline + '_>, ExecutorError> {
        for slot in &mut self.slots {
            slot.make_room(chunk_elements)?;
        }
        let slots = &mut self.slots;
        Ok(Box::new(CpuVectorAdd { slots, busy_ns: 0 }))
    }
}

/// The sum overwrites `a`, so that a slot is two buffers and not three.
#[derive(Debug, Default)]
struct Slot {
    a: Vec<f32>,
    b: Vec<f32>,
    submitted: Option<usize>,
}

impl Slot {
    /// Gets a free slot ready for chunks of up to `elements`.
    fn make_room(&mut self, elements: usize) -> Result<(), ExecutorError> {
        self.submitted = None;
        for buffer in [&mut self.a, &mut self.b] {
            if buffer.len() < elements {
                *buffer = Vec::new();
                *buffer = zeroed(elements)?;
            }
        }
        Ok(())
    }
}

struct CpuVectorAdd<'e> {
    slots: &'e mut [Slot; SLOTS],
    busy_ns: u64,
}

impl VectorAddPipeline for CpuVectorAdd<'_> {
    fn slots(&self) -> usize {
        self.slots.len()
    }

    fn input(&mut self, slot: usize, elements: usize) -> (&mut [f32], &mut [f32]) {
        let slot = &mut self.slots[slot];
        slot.submitted = None;
        (&mut slot.a[..elements], &mut slot.b[..elements])
    }

    fn submit(&mut self, slot: usize, elements: usize) -> Result<(), ExecutorError> {
        let slot = &mut self.slots[slot];
        let start = Instant::now();
        add_into(&mut slot.a[..elements], &slot.b[..elements]);
        let spent = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.busy_ns = self.busy_ns.saturating_add(spent);
        slot.submitted = Some(elements);
        Ok(())
    }

    fn is_done(&mut self, slot: usize) -> Result<bool, ExecutorError> {
        Ok(self.slots[slot].submitted.is_some())
    }

    fn result(&mut self, slot: usize, _deadline: Instant) -> Result<&[f32], ExecutorError> {
        let slot = &self.slots[slot];
        let elements = slot.submitted.expect("result of a slot that was submitted");
        Ok(&slot.a[..elements])
    }

    fn device_ns(&self) -> u64 {
        self.busy_ns
    }
}

/// A plain loop over two slices of one length, which the compiler turns into vector instructions.
fn add_into(a: &mut [f32], b: &[f32]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a += *b;
    }
}

/// A buffer of zeros, or an error where the process would otherwise be aborted.
fn zeroed(elements: usize) -> Result<Vec<f32>, ExecutorError> {
    let mut buffer = Vec::new();
    buffer
        .try_reserve_exact(elements)
        .map_err(|_| ExecutorError::OutOfMemory {
            wanted: (elements as u64).saturating_mul(size_of::<f32>() as u64),
            what: "a chunk of a vector".into(),
        })?;
    buffer.resize(elements, 0.0);
    Ok(buffer)
}

/// The processor's name as the kernel gives it; absent on some architectures.
fn processor_name() -> Option<String> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Bytes of memory of this machine.
fn total_memory() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_chunks_of_different_length_through_both_slots() {
        let mut executor = CpuExecutor::new("a test");
        let mut pipeline = executor.vector_add(100).unwrap();
        assert_eq!(pipeline.slots(), SLOTS);
        for (slot, elements) in [(0, 100), (1, 100), (0, 7), (1, 1)] {
            let (a, b) = pipeline.input(slot, elements);
            for (i, (a, b)) in a.iter_mut().zip(b).enumerate() {
                *a = i as f32;
                *b = 2.0 * i as f32;
            }
            pipeline.submit(slot, elements).unwrap();
            assert!(pipeline.is_done(slot).unwrap());
            let sums = pipeline.result(slot, Instant::now()).unwrap();
            assert_eq!(sums.len(), elements);
            assert!(
                sums.iter()
                    .enumerate()
                    .all(|(i, sum)| *sum == 3.0 * i as f32)
            );
        }
    }

    #[test]
    fn asking_for_more_than_there_is_names_the_amount() {
        let mut executor = CpuExecutor::new("a test");
        let error = executor.vector_add(usize::MAX / 8).err().unwrap();
        assert!(
            matches!(error, ExecutorError::OutOfMemory { .. }),
            "{error}"
        );
    }

    #[test]
    fn info_names_a_device() {
        let executor = CpuExecutor::new("a test");
        assert!(!executor.info().device.is_empty());
        assert!(executor.info().total_memory > 0);
    }
}
