//! Executors: what runs a guest's work.
//!
//! A worker process owns one [`Executor`] for the one session it serves. The broker never makes
//! one: it asks a short-lived child process which executor this machine can offer, because a CUDA
//! driver that was initialised cannot be used after a fork and may take its process down.

pub mod cpu;
pub mod cuda;
mod error;
mod probe;

use std::time::Instant;

pub use error::ExecutorError;
pub use probe::{ExecutorChoice, ProbeError, probe};

/// What an executor is, for `info`, logs and `vgpuctl`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutorInfo {
    /// `cuda` or `cpu`.
    pub kind: &'static str,
    /// The device's own name, as in `NVIDIA H100 PCIe`.
    pub device: String,
    /// Bytes of memory that the device has.
    pub total_memory: u64,
    /// The driver's version as people write it; empty where there is no driver.
    pub driver: String,
    /// Why this executor was taken, in one line.
    pub reason: String,
}

/// A way to run a guest's work.
pub trait Executor: Send {
    /// What this executor is.
    fn info(&self) -> &ExecutorInfo;

    /// A pipeline that adds vectors chunk by chunk.
    ///
    /// It holds at most [`VectorAddPipeline::slots`] × 3 × `chunk_elements` floats, all of them
    /// allocated here, so that running out of memory is found before any of the guest's data moves.
    ///
    /// # Errors
    /// [`ExecutorError::OutOfMemory`] when the buffers cannot be had; whatever the device says.
    fn vector_add(
        &mut self,
        chunk_elements: usize,
    ) -> Result<Box<dyn VectorAddPipeline + '_>, ExecutorError>;
}

/// Chunks on their way through a device: each slot is filled, submitted, and read back.
///
/// A slot is free at first, taken from [`submit`](Self::submit) on, and free again once its
/// [`result`](Self::result) was had. A session writes a result out piece by piece while it fills
/// other slots, so it asks for the same result again for each piece; the buffer must therefore keep
/// it until the slot's next [`input`](Self::input). Slots are used in turn, and results asked for in
/// that order.
///
/// # Panics
/// All methods may panic when `slot` is not below [`slots`](Self::slots), when `elements` is 0 or
/// above the chunk size, or when a slot is used in the wrong state: those are the session's own
/// mistakes, never a guest's.
pub trait VectorAddPipeline {
    /// How many chunks may be under way at once; at least 1.
    fn slots(&self) -> usize;

    /// The free slot's two input buffers, `elements` long each. The session reads from the
    /// transport straight into them; what they hold before is unspecified.
    fn input(&mut self, slot: usize, elements: usize) -> (&mut [f32], &mut [f32]);

    /// Starts adding the first `elements` of the slot's inputs. Does not wait for the device.
    ///
    /// # Errors
    /// Whatever the device says; the slot is free again then.
    fn submit(&mut self, slot: usize, elements: usize) -> Result<(), ExecutorError>;

    /// Whether the submitted slot's result is there. Does not wait.
    ///
    /// # Errors
    /// Whatever the device says.
    fn is_done(&mut self, slot: usize) -> Result<bool, ExecutorError>;

    /// Waits for the submitted slot and gives its result, as long as was submitted. Gives the same
    /// again, without waiting, until the slot's next [`input`](Self::input).
    ///
    /// # Errors
    /// [`ExecutorError::TimedOut`] when the result is not there at `deadline`; whatever the
    /// device says.
    fn result(&mut self, slot: usize, deadline: Instant) -> Result<&[f32], ExecutorError>;

    /// Nanoseconds that the device spent so far on chunks whose results were had (each chunk counted
    /// once): copies and kernels, measured on the device where it can measure.
    fn device_ns(&self) -> u64;
}
