//! A vector add as a guest would have it made, for what is no session: the proof that a device works, and
//! the command of the file protocol.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use vgpu_protocol::handle::{Handle, HandleKind};
use vgpu_protocol::op::field::{Bytes, StreamRef};
use vgpu_protocol::op::{
    Body, CopyFromDevice, CopyToDevice, Launch, MemoryAllocate, MemoryFree, ModuleFunction,
    ModuleLoad, ModuleUnload, Op, Operation, Request,
};
use vgpu_protocol::session::server::Failure;
use vgpu_protocol::status::ErrorCode;

use super::Executor;
use crate::session::one_request::one_request;

/// The kernel for any GPU from Maxwell on: the driver compiles it for the one it finds.
const KERNEL: &[u8] = include_bytes!("vector_add.ptx");

/// Threads in a block; every GPU can have 1024.
const THREADS: u32 = 256;

const FLOAT: u64 = size_of::<f32>() as u64;

/// Operations of the trial.
pub(crate) const OPERATIONS: [Op; 8] = [
    Op::MemoryAllocate,
    Op::ModuleLoad,
    Op::ModuleFunction,
    Op::CopyToDevice,
    Op::Launch,
    Op::CopyFromDevice,
    Op::ModuleUnload,
    Op::MemoryFree,
];

/// Adds `a[i] = i as f32` and `b[i] = 2 * i` on the executor's device, and returns how many sums are wrong.
///
/// # Errors
/// Whatever the executor says; [`ErrorCode::Timeout`].
pub(crate) fn wrong_sums(
    executor: &mut dyn Executor,
    elements: usize,
    deadline: Instant,
) -> Result<usize, Failure> {
    let elements = u32::try_from(elements).expect("a trial is short");
    let outcome = Trial { executor, deadline }.add(elements);
    // Late failures belong to this trial, not to the next session.
    let _ = executor.take_failures();
    let sums = outcome?;
    let (sums, _) = sums.as_chunks::<4>();
    let wanted = (0..elements).map(|i| i as f32 + 2.0 * i as f32);
    let right = sums
        .iter()
        .zip(wanted)
        .filter(|(sum, wanted)| f32::from_le_bytes(**sum) == *wanted);
    Ok(elements as usize - right.count())
}

struct Trial<'e> {
    executor: &'e mut dyn Executor,
    deadline: Instant,
}

impl Trial<'_> {
    /// Runs one request, with its data up; its reply, and its data down.
    fn run<O: Operation + Into<Request>>(
        &mut self,
        request: O,
        up: &[u8],
    ) -> Result<(O::Reply, Vec<u8>), Failure> {
        let answer = one_request(self.executor, &request.into(), up, self.deadline)?;
        let reply = O::Reply::decode(&answer.body).map_err(|error| Failure {
            status: ErrorCode::Internal.into(),
            text: error.to_string(),
        })?;
        Ok((reply, answer.data))
    }

    fn add(&mut self, elements: u32) -> Result<Vec<u8>, Failure> {
        let vector = nonzero(FLOAT * u64::from(elements));
        let bytes = nonzero(3 * vector.get());
        let address = self.run(MemoryAllocate { bytes }, &[])?.0.address;
        let sums = self.add_at(address, elements, vector);
        let freed = self.run(MemoryFree { address }, &[]);
        let sums = sums?;
        freed.map(|_| sums)
    }

    /// In memory for three vectors.
    fn add_at(&mut self, a: u64, elements: u32, vector: NonZeroU64) -> Result<Vec<u8>, Failure> {
        // No number is used twice. Relaxed: nothing else goes by it.
        static GENERATION: AtomicU32 = AtomicU32::new(1);
        let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
        let module = Handle::new(HandleKind::Module, 0, generation).map_err(|error| Failure {
            status: ErrorCode::Internal.into(),
            text: error.to_string(),
        })?;
        let load = ModuleLoad {
            module,
            bytes: nonzero(KERNEL.len() as u64),
        };
        let sums = match self.run(load, KERNEL) {
            Ok(_) => self.launch(module, a, elements, vector),
            Err(failure) => Err(failure),
        };
        let unloaded = self.run(ModuleUnload { module }, &[]);
        let sums = sums?;
        unloaded.map(|_| sums)
    }

    fn launch(
        &mut self,
        module: Handle,
        a: u64,
        elements: u32,
        vector: NonZeroU64,
    ) -> Result<Vec<u8>, Failure> {
        let name = "vector_add".into();
        let function = self.run(ModuleFunction { module, name }, &[])?.0.function;
        let (b, c) = (a + vector.get(), a + 2 * vector.get());
        let numbers = (0..elements).map(|i| i as f32);
        let up: Vec<u8> = numbers
            .clone()
            .chain(numbers.map(|a| 2.0 * a))
            .flat_map(f32::to_le_bytes)
            .collect();
        let stream = StreamRef::DEFAULT;
        let copy = CopyToDevice {
            to: a,
            bytes: nonzero(2 * vector.get()),
            stream,
        };
        self.run(copy, &up)?;
        // In the order and of the types of vector_add.cu.
        let parameters = [a, b, c, elements.into()].map(u64::to_le_bytes).concat();
        let launch = Launch {
            module,
            function,
            grid: [elements.div_ceil(THREADS), 1, 1],
            block: [THREADS, 1, 1],
            shared_bytes: 0,
            stream,
            deadline_ms: 0,
            parameters: Bytes::new(&parameters).expect("short"),
            attributes: Default::default(),
        };
        self.run(launch, &[])?;
        let copy = CopyFromDevice {
            from: c,
            bytes: vector,
            stream,
        };
        self.run(copy, &[]).map(|(_, sums)| sums)
    }
}

fn nonzero(n: u64) -> NonZeroU64 {
    NonZeroU64::new(n).expect("something to add")
}
