//! State shared by all work on a device.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::allocations::Allocations;
use crate::environment::Environment;
use crate::error::{Error, invalid};
use crate::output::MOST;
use crate::quota::Quota;

/// The size of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Bytes that may be allocated; each allocation counts as a multiple of 512.
    pub memory: u64,
    /// Most bytes of registers, stacks and shared memory of all blocks that have begun.
    pub run_memory: u64,
    /// Bytes for `malloc` in kernels, unless [`Device::set_limit`](crate::Device::set_limit) says otherwise.
    pub heap: u64,
    /// Bytes of stack per thread for calls of unknown depth, likewise. The need of a call chain without
    /// recursion is always met.
    pub stack: u32,
    /// Threads that execute the device's work. With one, every launch gives the same result.
    pub workers: u32,
    /// Use the processor's wide vectors if it has them.
    pub wide_vectors: bool,
}

impl Default for Config {
    /// 4 GiB of memory, 1 GiB for running blocks, a heap of 8 MiB, 1024 bytes of stack, all
    /// processors.
    fn default() -> Self {
        let workers =
            std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
        Self {
            memory: 4 << 30,
            run_memory: 1 << 30,
            heap: 8 << 20,
            stack: 1024,
            workers,
            wide_vectors: true,
        }
    }
}

/// A limit that a program may set, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Of a thread's stack for calls of unknown depth (`CU_LIMIT_STACK_SIZE`): [`Config::stack`] at first.
    Stack,
    /// Of printed output that is kept until somebody takes it (`CU_LIMIT_PRINTF_FIFO_SIZE`): 1 MiB at first.
    Printed,
    /// For `malloc` in kernels (`CU_LIMIT_MALLOC_HEAP_SIZE`): [`Config::heap`] at first.
    Heap,
}

/// Most bytes of a stack, as on a GPU.
const MOST_STACK: u64 = 512 << 10;

/// Their values now.
#[derive(Debug)]
struct Limits {
    stack: u32,
    printed: u64,
    heap: u64,
}

/// State shared by all work on a device.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) config: Config,
    limits: Mutex<Limits>,
    pub(crate) environment: Environment,
    /// For blocks that have begun.
    pub(crate) run_memory: Arc<Quota>,
    memory: Mutex<Allocations>,
    /// Set after `fault`, which is written once. Running work reads it between slices, as a hint to
    /// check.
    faulty: AtomicBool,
    fault: Mutex<Option<Error>>,
    launches: AtomicU64,
}

impl Context {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            environment: Environment::default(),
            run_memory: Quota::new(config.run_memory),
            memory: Mutex::new(Allocations::new(config.memory)),
            faulty: AtomicBool::new(false),
            fault: Mutex::default(),
            launches: AtomicU64::new(1),
            limits: Mutex::new(Limits {
                stack: config.stack,
                printed: MOST as u64,
                heap: config.heap,
            }),
            config,
        }
    }

    pub(crate) fn limit(&self, limit: Limit) -> u64 {
        let limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        match limit {
            Limit::Stack => limits.stack.into(),
            Limit::Printed => limits.printed,
            Limit::Heap => limits.heap,
        }
    }

    pub(crate) fn set_limit(&self, limit: Limit, bytes: u64) -> Result<(), Error> {
        // The lock under which a launch makes the heap.
        let _allocations = self.sound()?;
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        match limit {
            Limit::Stack => match u32::try_from(bytes) {
                Ok(stack) if bytes <= MOST_STACK => limits.stack = stack,
                _ => return invalid(format!("a stack of {bytes} bytes; at most {MOST_STACK}")),
            },
            Limit::Printed => {
                limits.printed = bytes;
                let most = usize::try_from(bytes).unwrap_or(usize::MAX);
                self.environment.set_most_printed(most);
            }
            Limit::Heap if self.environment.heap().1 > 0 => {
                return invalid("the heap is in use, and its size is what it is");
            }
            Limit::Heap => limits.heap = bytes,
        }
        Ok(())
    }

    /// Whether a fault has ended the context.
    pub(crate) fn is_faulty(&self) -> bool {
        // Pairs with the release store in `fail`.
        self.faulty.load(Ordering::Acquire)
    }

    /// The error that every call returns after a fault.
    pub(crate) fn fault(&self) -> Option<Error> {
        if !self.is_faulty() {
            return None;
        }
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        fault.clone()
    }

    /// Makes every call return this error from now on, unless there is an earlier one.
    pub(crate) fn fail(&self, error: Error) {
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        fault.get_or_insert(error);
        // Pairs with the acquire load in `is_faulty`.
        self.faulty.store(true, Ordering::Release);
    }

    /// An error if a fault has ended the context.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.fault().map_or(Ok(()), Err)
    }

    /// The allocations, also after a fault.
    pub(crate) fn allocations(&self) -> MutexGuard<'_, Allocations> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The allocations, if no fault has ended the context.
    pub(crate) fn sound(&self) -> Result<MutexGuard<'_, Allocations>, Error> {
        let a = self.allocations();
        self.check()?;
        Ok(a)
    }

    /// A number unique among the device's launches.
    pub(crate) fn launch_id(&self) -> u64 {
        self.launches.fetch_add(1, Ordering::Relaxed)
    }
}
