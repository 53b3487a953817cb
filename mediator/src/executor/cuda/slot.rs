//! One chunk on its way through the GPU.
//!
//! A slot owns a stream, page-locked memory on this side and memory on the device, so that copies in,
//! the kernel and the copy out of one chunk run beside those of the others.
//!
//! The device writes to and reads from the page-locked memory while the work is under way. So that
//! memory is handed out only in states in which no work is: that is what makes the methods safe.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{CUdeviceptr, CUevent, CUstream};

use super::device::Device;
use super::driver::{
    CallError, EVENT_DEFAULT, HOST_PORTABLE, STREAM_NON_BLOCKING, check, check_query,
};

/// The three ranges of a slot start at multiples of so many floats, 256 bytes, as the device's own
/// allocations do.
const ALIGN_ELEMENTS: usize = 64;
/// How long to wait for work whose result nobody wants any more, before the device counts as lost.
const DRAIN: Duration = Duration::from_secs(2);

/// How often to look meanwhile.
const DRAIN_LOOK: Duration = Duration::from_micros(50);

/// What the slot's memory may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No work is under way; the inputs may be written.
    Free,
    /// Work is under way on so many elements; the memory is the device's.
    Submitted(usize),
    /// The work on so many elements is done; the result may be read.
    Done(usize),
}

/// How long the device worked on a chunk, counted from the pipeline's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// When its first copy started, nanoseconds.
    pub(super) start_ns: u64,
    /// When its last copy ended, nanoseconds.
    pub(super) end_ns: u64,
}

/// Room for one chunk, and the stream it goes through.
#[derive(Debug)]
pub(super) struct Slot {
    device: Arc<Device>,
    state: State,
    /// Elements that fit.
    capacity: usize,
    /// From the start of one range to that of the next, in elements.
    stride: usize,
    /// Three ranges of floats: a, b, c. What the driver maps has been written by the kernel (zeros)
    /// or by this process, so it is initialised; and a float may have any bit pattern.
    host: *mut f32,
    /// The same on the device.
    memory: CUdeviceptr,
    stream: CUstream,
    /// Before the first copy and after the last one.
    started: CUevent,
    ended: CUevent,
}

// SAFETY: the slot owns its memory and handles, which belong to no thread; the context is made
// current by `Device::bind` before a slot is used.
unsafe impl Send for Slot {}

impl Slot {
    /// Bytes that a slot for `capacity` elements takes on this side and once more on the device, or
    /// `None` where no machine could have them.
    pub(super) fn bytes(capacity: usize) -> Option<usize> {
        let stride = capacity.checked_next_multiple_of(ALIGN_ELEMENTS)?;
        let bytes = stride.checked_mul(3 * size_of::<f32>())?;
        (bytes <= isize::MAX.unsigned_abs()).then_some(bytes)
    }

    /// Allocates a slot for chunks of up to `capacity` elements, at least one, whose
    /// [`bytes`](Self::bytes) are `bytes`. The device's context is current.
    pub(super) fn new(
        device: &Arc<Device>,
        capacity: usize,
        bytes: usize,
    ) -> Result<Slot, CallError> {
        let driver = device.driver();
        // From here on `drop` frees what was had.
        let mut slot = Slot {
            device: Arc::clone(device),
            state: State::Free,
            capacity,
            stride: bytes / (3 * size_of::<f32>()),
            host: ptr::null_mut(),
            memory: 0,
            stream: ptr::null_mut(),
            started: ptr::null_mut(),
            ended: ptr::null_mut(),
        };
        let mut host = ptr::null_mut();
        // SAFETY: each output is writable, the context is current, the flags are valid.
        unsafe {
            // First what fails at once where it does not fit; page-locking takes its time.
            check((driver.mem_alloc)(&mut slot.memory, bytes), "cuMemAlloc")?;
            let code = (driver.mem_host_alloc)(&mut host, bytes, HOST_PORTABLE);
            check(code, "cuMemHostAlloc")?;
            slot.host = host.cast::<f32>();
            let code = (driver.stream_create)(&mut slot.stream, STREAM_NON_BLOCKING);
            check(code, "cuStreamCreate")?;
            check(
                (driver.event_create)(&mut slot.started, EVENT_DEFAULT),
                "cuEventCreate",
            )?;
            check(
                (driver.event_create)(&mut slot.ended, EVENT_DEFAULT),
                "cuEventCreate",
            )?;
        }
        Ok(slot)
    }

    /// The ranges a and b for `elements` elements. A result that was there is gone.
    ///
    /// # Panics
    /// When work is under way, or `elements` is more than fits.
    pub(super) fn input(&mut self, elements: usize) -> (&mut [f32], &mut [f32]) {
        assert!(
            !matches!(self.state, State::Submitted(_)),
            "the slot is under way"
        );
        assert!(
            elements <= self.capacity,
            "more elements than the slot holds"
        );
        self.state = State::Free;
        // SAFETY: the memory is initialised and the device does not use it, since no work is under
        // way; the two ranges do not overlap, since `elements` is at most the stride; both borrow
        // the slot.
        unsafe {
            let a = std::slice::from_raw_parts_mut(self.range(0), elements);
            let b = std::slice::from_raw_parts_mut(self.range(1), elements);
            (a, b)
        }
    }

    /// Queues the copies in, the kernel and the copy out for the first `elements` elements.
    ///
    /// # Errors
    /// The slot is free again then; if the part that was queued does not end soon, the device is
    /// lost.
    ///
    /// # Panics
    /// When work is under way, or `elements` is more than fits.
    pub(super) fn submit(&mut self, elements: usize) -> Result<(), CallError> {
        assert!(
            !matches!(self.state, State::Submitted(_)),
            "the slot is under way"
        );
        assert!(
            elements <= self.capacity,
            "more elements than the slot holds"
        );
        self.state = State::Submitted(elements);
        self.queue(elements).inspect_err(|_| {
            self.drain();
        })
    }

    fn queue(&mut self, elements: usize) -> Result<(), CallError> {
        let driver = self.device.driver();
        let bytes = elements * size_of::<f32>();
        let [a, b, c] =
            [0, 1, 2].map(|range| self.memory + (range * self.stride * size_of::<f32>()) as u64);
        // SAFETY: the context is current and the handles are live. Each range on either side holds
        // `elements` elements, stays until `drop`, which waits for the work, and is not touched from
        // here while the state is `Submitted`. The ranges on the device do not overlap. The slot holds
        // the device.
        unsafe {
            check(
                (driver.event_record)(self.started, self.stream),
                "cuEventRecord",
            )?;
            for (to, from) in [(a, self.range(0)), (b, self.range(1))] {
                let from = from.cast::<c_void>().cast_const();
                let code = (driver.memcpy_htod_async)(to, from, bytes, self.stream);
                check(code, "cuMemcpyHtoDAsync")?;
            }
            self.device
                .launch_vector_add(self.stream, a, b, c, elements)?;
            let to = self.range(2).cast::<c_void>();
            let code = (driver.memcpy_dtoh_async)(to, c, bytes, self.stream);
            check(code, "cuMemcpyDtoHAsync")?;
            check(
                (driver.event_record)(self.ended, self.stream),
                "cuEventRecord",
            )?;
            self.device.raise_after(self.stream)
        }
    }

    /// Whether the submitted work is done, without waiting.
    ///
    /// # Errors
    /// What the device says; errors of work queued earlier come up here.
    ///
    /// # Panics
    /// When nothing was submitted.
    pub(super) fn is_done(&mut self) -> Result<bool, CallError> {
        let elements = match self.state {
            State::Done(_) => return Ok(true),
            State::Submitted(elements) => elements,
            State::Free => panic!("nothing was submitted to the slot"),
        };
        // SAFETY: the event is live and the context current.
        let code = unsafe { (self.device.driver().event_query)(self.ended) };
        let done = check_query(code, "cuEventQuery")?;
        if done {
            self.state = State::Done(elements);
        }
        Ok(done)
    }

    /// The result.
    ///
    /// # Panics
    /// Unless [`is_done`](Self::is_done) said yes since the last submission.
    pub(super) fn output(&self) -> &[f32] {
        let State::Done(elements) = self.state else {
            panic!("the slot has no result")
        };
        // SAFETY: initialised, `elements` long, and the device is done with it; borrows the slot.
        unsafe { std::slice::from_raw_parts(self.range(2), elements) }
    }

    /// Marks the time that [`span`](Self::span) of all slots counts from.
    pub(super) fn mark(&mut self, clock: &Clock) -> Result<(), CallError> {
        // SAFETY: stream and event are live and the context is current.
        let code = unsafe { (self.device.driver().event_record)(clock.event, self.stream) };
        check(code, "cuEventRecord")
    }

    /// When the device worked on the chunk that is done.
    pub(super) fn span(&self, clock: &Clock) -> Result<Span, CallError> {
        Ok(Span {
            start_ns: self.elapsed_ns(clock.event, self.started)?,
            end_ns: self.elapsed_ns(clock.event, self.ended)?,
        })
    }

    fn elapsed_ns(&self, from: CUevent, to: CUevent) -> Result<u64, CallError> {
        let mut milliseconds = 0.0f32;
        // SAFETY: both events are live and have time stamps; the output is writable.
        let code =
            unsafe { (self.device.driver().event_elapsed_time)(&mut milliseconds, from, to) };
        check(code, "cuEventElapsedTime")?;
        // `as` saturates, and takes a negative number as 0.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Ok((f64::from(milliseconds) * 1e6) as u64)
    }

    /// Waits until the device is done with the slot, whatever came of the work; also with the call
    /// that says so, which comes after the result. If that does not happen within [`DRAIN`], the
    /// device is lost; the slot must not be used then.
    pub(super) fn drain(&mut self) {
        let deadline = Instant::now() + DRAIN;
        loop {
            // Read before the look, so that there is one after the deadline.
            let late = Instant::now() >= deadline;
            // Not the event: where the submission failed midway, it was not recorded.
            // SAFETY: the stream is live and the context current.
            let code = unsafe { (self.device.driver().stream_query)(self.stream) };
            match check_query(code, "cuStreamQuery") {
                Ok(true) => break,
                Ok(false) if !late => thread::sleep(DRAIN_LOOK),
                Ok(false) | Err(_) => {
                    // The state stays: the device may still write.
                    self.device.set_lost();
                    return;
                }
            }
        }
        self.state = State::Free;
    }

    /// Where range 0 (a), 1 (b) or 2 (c) starts.
    fn range(&self, range: usize) -> *mut f32 {
        debug_assert!(range < 3);
        // SAFETY: the allocation holds three strides.
        unsafe { self.host.add(range * self.stride) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // A slot may be dropped by another thread than the one that used it.
        if self.device.is_lost() || self.device.bind().is_err() {
            return;
        }
        if !self.stream.is_null() {
            self.drain();
        }
        if self.device.is_lost() {
            return;
        }
        let driver = self.device.driver();
        // SAFETY: all of it is this slot's, no work uses it, and it is not used afterwards. Results
        // are dropped: an error left by earlier work changes nothing here.
        unsafe {
            for event in [self.ended, self.started] {
                if !event.is_null() {
                    (driver.event_destroy)(event);
                }
            }
            if !self.stream.is_null() {
                (driver.stream_destroy)(self.stream);
            }
            if self.memory != 0 {
                (driver.mem_free)(self.memory);
            }
            if !self.host.is_null() {
                (driver.mem_free_host)(self.host.cast::<c_void>());
            }
        }
    }
}

/// An event whose time the spans are counted from.
#[derive(Debug)]
pub(super) struct Clock {
    device: Arc<Device>,
    event: CUevent,
}

// SAFETY: as for `Slot`.
unsafe impl Send for Clock {}

impl Clock {
    /// A clock that has yet to be marked. The device's context is current.
    pub(super) fn new(device: &Arc<Device>) -> Result<Clock, CallError> {
        let mut event = ptr::null_mut();
        // SAFETY: the output is writable and the context current.
        let code = unsafe { (device.driver().event_create)(&mut event, EVENT_DEFAULT) };
        check(code, "cuEventCreate")?;
        Ok(Clock {
            device: Arc::clone(device),
            event,
        })
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        if !self.device.is_lost() && self.device.bind().is_ok() {
            // SAFETY: this clock's own event, not used afterwards.
            unsafe { (self.device.driver().event_destroy)(self.event) };
        }
    }
}
