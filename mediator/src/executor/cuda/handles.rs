//! Driver objects of a session: modules and kernels; and, freed when dropped, page-locked memory, streams, events.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_uint, c_void};
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{CUdeviceptr, CUevent, CUfunction, CUmodule, CUstream};

use super::device::Device;
use super::driver::{CallError, HOST_MAPPED, HOST_PORTABLE, check, check_query};

/// A kernel.
#[derive(Debug, Clone, Copy)]
pub(in crate::executor) struct Function {
    pub(super) function: CUfunction,
    pub(super) may_print: bool,
}

// SAFETY: the handle belongs to no thread.
unsafe impl Send for Function {}

/// A module.
#[derive(Debug, Clone, Copy)]
pub(in crate::executor) struct Module {
    pub(super) module: CUmodule,
    pub(super) may_print: bool,
}

// SAFETY: the handle belongs to no thread.
unsafe impl Send for Module {}

/// Page-locked memory, all of it initialised.
pub(in crate::executor) struct Buffer {
    pub(super) start: *mut u8,
    pub(super) bytes: usize,
    device: Arc<Device>,
}

// SAFETY: the buffer owns its memory, which belongs to no thread.
unsafe impl Send for Buffer {}

impl Buffer {
    pub(super) fn new(
        device: &Arc<Device>,
        bytes: usize,
        flags: c_uint,
    ) -> Result<Self, CallError> {
        let mut start = ptr::null_mut();
        // SAFETY: the output is writable, and the context current by `bind`.
        let code = unsafe { (device.driver().mem_host_alloc)(&mut start, bytes, flags) };
        check(code, "cuMemHostAlloc")?;
        let start = start.cast::<u8>();
        // SAFETY: `bytes` bytes were allocated.
        unsafe { ptr::write_bytes(start, 0, bytes) };
        Ok(Self {
            start,
            bytes,
            device: Arc::clone(device),
        })
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: allocated, initialised, and not used by the device: queueing a buffer gives it away
        // until its work is done.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.device.is_lost() && self.device.bind().is_ok() {
            // SAFETY: this buffer's own memory, which no work uses: see `Queue::drop`.
            unsafe { (self.device.driver().mem_free_host)(self.start.cast::<c_void>()) };
        }
    }
}

/// Memory of the guest's that the device reads and writes, until this is dropped.
pub(super) struct Registration {
    start: *mut u8,
    /// Its address for the device.
    pub(super) there: CUdeviceptr,
    device: Arc<Device>,
}

// SAFETY: it names memory, which belongs to no thread.
unsafe impl Send for Registration {}
// SAFETY: it has no method that takes a reference.
unsafe impl Sync for Registration {}

impl Registration {
    /// Page-locks `bytes` bytes from `start` on.
    ///
    /// # Safety
    /// They are mapped until this is dropped.
    pub(super) unsafe fn new(
        device: &Arc<Device>,
        start: *mut u8,
        bytes: usize,
    ) -> Result<Self, CallError> {
        let (driver, here) = (device.driver(), start.cast::<c_void>());
        let flags = HOST_PORTABLE | HOST_MAPPED;
        // SAFETY: the caller's promise; the context is current by `bind`.
        let code = unsafe { (driver.mem_host_register)(here, bytes, flags) };
        check(code, "cuMemHostRegister")?;
        let mut registration = Self {
            start,
            there: 0,
            device: Arc::clone(device),
        };
        let there = &mut registration.there;
        // SAFETY: the output is writable, and the memory has just been registered for this.
        let code = unsafe { (driver.mem_host_get_device_pointer)(there, here, 0) };
        check(code, "cuMemHostGetDevicePointer")?;
        Ok(registration)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if !self.device.is_lost() && self.device.bind().is_ok() {
            // SAFETY: registered in `new`, and no work uses it: see `Queue::drop`.
            unsafe { (self.device.driver().mem_host_unregister)(self.start.cast::<c_void>()) };
        }
    }
}

/// An event.
pub(super) struct Event {
    pub(super) event: CUevent,
    device: Arc<Device>,
}

// SAFETY: the handle belongs to no thread.
unsafe impl Send for Event {}
// SAFETY: the driver locks for itself.
unsafe impl Sync for Event {}

impl Event {
    pub(super) fn new(device: &Arc<Device>, flags: c_uint) -> Result<Self, CallError> {
        let mut event = ptr::null_mut();
        // SAFETY: the output is writable, the flags are valid and the context is current.
        let code = unsafe { (device.driver().event_create)(&mut event, flags) };
        check(code, "cuEventCreate")?;
        Ok(Self {
            event,
            device: Arc::clone(device),
        })
    }

    /// Records it in a stream of the same device, whose context is current.
    pub(super) fn record(&self, stream: &Stream) -> Result<(), CallError> {
        // SAFETY: both are live, and the context is current.
        let code = unsafe { (self.device.driver().event_record)(self.event, stream.stream) };
        check(code, "cuEventRecord")
    }

    /// Nanoseconds from this one to `end`, negative where that came first; both have come.
    pub(super) fn elapsed_ns(&self, end: &Event) -> Result<i64, CallError> {
        let mut ms = 0.0f32;
        // SAFETY: both are live and have times; the output is writable.
        let code =
            unsafe { (self.device.driver().event_elapsed_time)(&mut ms, self.event, end.event) };
        check(code, "cuEventElapsedTime")?;
        #[allow(clippy::cast_possible_truncation, reason = "`as` saturates")]
        Ok((f64::from(ms) * 1e6) as i64)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if !self.device.is_lost() && self.device.bind().is_ok() {
            // SAFETY: this one's own handle, not used afterwards.
            unsafe { (self.device.driver().event_destroy)(self.event) };
        }
    }
}

/// A stream.
pub(super) struct Stream {
    pub(super) stream: CUstream,
    device: Arc<Device>,
}

// SAFETY: the handle belongs to no thread.
unsafe impl Send for Stream {}

impl Stream {
    /// The default stream, or one of its own with these flags and this priority.
    pub(super) fn new(
        device: &Arc<Device>,
        own: Option<(c_uint, c_int)>,
    ) -> Result<Self, CallError> {
        let mut stream = ptr::null_mut();
        if let Some((flags, priority)) = own {
            // SAFETY: the output is writable, the flags are valid and the context is current.
            let code = unsafe {
                (device.driver().stream_create_with_priority)(&mut stream, flags, priority)
            };
            check(code, "cuStreamCreateWithPriority")?;
        }
        Ok(Self {
            stream,
            device: Arc::clone(device),
        })
    }

    /// Whether everything in it is done.
    pub(super) fn is_done(&self) -> Result<bool, CallError> {
        // SAFETY: the stream is live and the context current.
        let code = unsafe { (self.device.driver().stream_query)(self.stream) };
        check_query(code, "cuStreamQuery")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.stream.is_null() && !self.device.is_lost() && self.device.bind().is_ok() {
            // SAFETY: this one's own handle, not used afterwards.
            unsafe { (self.device.driver().stream_destroy)(self.stream) };
        }
    }
}
