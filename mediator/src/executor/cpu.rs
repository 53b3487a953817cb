//! The CPU executor: same protocol and same results without a GPU.

mod device;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::op::{FenceReply, Request};

use self::device::CpuDevice;
use super::gpu::Gpu;
use super::vector_add::{CHUNK, Pipeline, VectorAdds};
use super::{Executor, ExecutorError, ExecutorInfo, KERNEL_TIME, Limits, unsupported};
use crate::policy::Share;
use crate::session::backend::{Also, Backend, Event};
use crate::usage::Load;

/// Slots of a vector add: one is read back to the guest while the next is being filled, and the
/// guest knows of the room for two more, so that it need not wait to hear of it.
const SLOTS: usize = 4;

/// Slots that are kept from one request to the next: fresh pages cost more than the sums.
const KEPT: usize = 2 * SLOTS;

/// Device memory of a session, at most, and at most this part of the machine's.
const MEMORY: (u64, u64) = (1 << 30, 8);

/// Objects of each kind where nothing is said of them.
const OBJECTS: u32 = 1 << 16;

/// Runs a guest's work on this machine's processor.
#[derive(Debug)]
pub struct CpuExecutor {
    info: ExecutorInfo,
    limits: Limits,
    /// Present from the first request on that is for it.
    gpu: Option<Gpu<CpuDevice>>,
    free: Arc<Mutex<Vec<Slot>>>,
    adds: VectorAdds<CpuPipeline>,
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
        let limits = Limits {
            memory: MEMORY.0.min(info.total_memory / MEMORY.1),
            objects: OBJECTS,
            kernel_time: KERNEL_TIME,
        };
        Self {
            info,
            limits,
            gpu: None,
            free: Arc::default(),
            adds: VectorAdds::default(),
        }
    }
}

impl CpuExecutor {
    /// The device that runs PTX, from the first request on that is for it.
    fn gpu(&mut self) -> Result<&mut Gpu<CpuDevice>, ExecutorError> {
        if self.gpu.is_none() {
            let device =
                CpuDevice::new(&self.info.device, self.limits.memory).map_err(|error| {
                    ExecutorError::Unavailable {
                        what: format!("no thread or descriptor for the cpu device: {error}"),
                        advice: "raise the mediator's limits of open files and of threads".into(),
                    }
                })?;
            self.gpu = Some(Gpu::new(device, self.limits));
        }
        Ok(self.gpu.as_mut().expect("just put there"))
    }

    /// The device, if the data of request `id` is its business.
    fn gpu_of(&mut self, id: u32) -> Option<&mut Gpu<CpuDevice>> {
        self.gpu.as_mut().filter(|gpu| gpu.has(id))
    }
}

impl Executor for CpuExecutor {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn set_share(&mut self, share: Share) {
        self.limits.take(share);
    }

    fn take_failures(&mut self) -> FenceReply {
        let gpu = self.gpu.as_mut();
        gpu.map(Gpu::take_failures).unwrap_or_default()
    }
}

impl Backend for CpuExecutor {
    fn start(&mut self, header: &FrameHeader, request: Request) {
        let id = header.request_id;
        let request = match request {
            Request::VectorAdd(add) => {
                return self.adds.start(id, &add, CpuPipeline::new(&self.free));
            }
            request => match self.gpu() {
                Ok(gpu) => match gpu.start(header, request) {
                    Ok(()) => return,
                    Err(request) => request,
                },
                Err(error) => return self.adds.refuse(id, &error),
            },
        };
        self.adds.refuse(id, &unsupported(&self.info, request.op()));
    }

    fn input(&mut self, id: u32) -> &mut [u8] {
        match self.gpu.as_mut().filter(|gpu| gpu.has(id)) {
            Some(gpu) => gpu.input(id),
            None => self.adds.input(id),
        }
    }

    fn filled(&mut self, id: u32, n: usize) {
        match self.gpu_of(id) {
            Some(gpu) => gpu.filled(id, n),
            None => self.adds.filled(id, n),
        }
    }

    fn output(&mut self, id: u32) -> &[u8] {
        match self.gpu.as_mut().filter(|gpu| gpu.has(id)) {
            Some(gpu) => gpu.output(id),
            None => self.adds.output(id),
        }
    }

    fn sent(&mut self, id: u32, n: usize) {
        match self.gpu_of(id) {
            Some(gpu) => gpu.sent(id, n),
            None => self.adds.sent(id, n),
        }
    }

    fn cancel(&mut self, id: u32) {
        self.adds.cancel(id);
        if let Some(gpu) = &mut self.gpu {
            gpu.cancel(id);
        }
    }

    fn may_start(&self) -> bool {
        self.gpu.as_ref().is_none_or(Gpu::may_start)
    }

    fn load(&self) -> Load {
        let memory_limit = self.limits.memory;
        let gpu = self.gpu.as_ref().map(Gpu::standing);
        gpu.unwrap_or(Load {
            memory_limit,
            ..Load::default()
        })
    }

    fn next_event(&mut self) -> Option<Event> {
        let event = self.adds.next_event();
        event.or_else(|| self.gpu.as_mut()?.next_event())
    }

    fn also(&mut self) -> Also<'_> {
        // The sums are there when `filled` returns; the device is another thread's.
        match self.gpu.as_ref().and_then(Gpu::awaited) {
            Some(waker) => Also::Waker(waker),
            None => Also::Nothing,
        }
    }
}

/// The sum overwrites `a`, so that a slot is two buffers and not three.
#[derive(Debug, Default)]
struct Slot {
    a: Vec<f32>,
    b: Vec<f32>,
    submitted: usize,
}

impl Slot {
    fn make_room(&mut self, elements: usize) -> Result<(), ExecutorError> {
        for buffer in [&mut self.a, &mut self.b] {
            if buffer.len() < elements {
                *buffer = Vec::new();
                *buffer = zeroed(elements)?;
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct CpuPipeline {
    slots: [Slot; SLOTS],
    /// Where the slots come from, and go back to.
    free: Arc<Mutex<Vec<Slot>>>,
    busy_ns: u64,
}

impl CpuPipeline {
    fn new(free: &Arc<Mutex<Vec<Slot>>>) -> Self {
        let mut kept = free.lock().unwrap_or_else(PoisonError::into_inner);
        Self {
            slots: std::array::from_fn(|_| kept.pop().unwrap_or_default()),
            free: Arc::clone(free),
            busy_ns: 0,
        }
    }
}

impl Drop for CpuPipeline {
    fn drop(&mut self) {
        let mut kept = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let room = KEPT.saturating_sub(kept.len()).min(SLOTS);
        // The first is used by every request, also a small one: it goes on top, still in the cache.
        let first = self.slots[..room].iter_mut().rev();
        kept.extend(first.map(std::mem::take));
    }
}

impl Pipeline for CpuPipeline {
    fn slots(&self) -> usize {
        SLOTS
    }

    fn input(
        &mut self,
        slot: usize,
        elements: usize,
    ) -> Result<(&mut [f32], &mut [f32]), ExecutorError> {
        debug_assert!(elements <= CHUNK);
        let slot = &mut self.slots[slot];
        slot.make_room(elements)?;
        Ok((&mut slot.a[..elements], &mut slot.b[..elements]))
    }

    fn submit(&mut self, slot: usize, elements: usize) -> Result<(), ExecutorError> {
        let slot = &mut self.slots[slot];
        let start = Instant::now();
        add_into(&mut slot.a[..elements], &slot.b[..elements]);
        let spent = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.busy_ns = self.busy_ns.saturating_add(spent);
        slot.submitted = elements;
        Ok(())
    }

    fn is_done(&mut self, _slot: usize) -> Result<bool, ExecutorError> {
        Ok(true)
    }

    fn result(&self, slot: usize) -> &[f32] {
        let slot = &self.slots[slot];
        &slot.a[..slot.submitted]
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
    use crate::executor::vector_add::tests::add_on;
    use crate::session::one_request::one_request;
    use std::time::Duration;
    use vgpu_protocol::op::Info;

    fn deadline() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn sums_come_whatever_the_portions_and_the_number_of_chunks() {
        let mut executor = CpuExecutor::new("a test");
        for n in [1, 2, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 3] {
            for portion in [usize::MAX, 65_537, 4093] {
                add_on(&mut executor, n, portion);
            }
        }
    }

    #[test]
    fn what_it_does_not_know_is_refused_by_name() {
        let mut executor = CpuExecutor::new("a test");
        let failure = one_request(&mut executor, &Request::Info(Info {}), &[], deadline());
        let failure = failure.unwrap_err();
        assert!(
            failure.text.contains("Info") && failure.text.contains("cpu"),
            "{}",
            failure.text
        );
    }

    #[test]
    fn info_names_a_device() {
        let executor = CpuExecutor::new("a test");
        assert!(!executor.info().device.is_empty());
        assert!(executor.info().total_memory > 0);
    }
}
