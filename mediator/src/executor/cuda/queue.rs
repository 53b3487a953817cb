//! A session's work on a GPU: one stream, and how far the device is with it.
//!
//! Behind each work the device writes the work's number to a word in page-locked memory. So a look at that
//! word tells what is done, without a call of the driver, and also after an error, when the driver answers
//! every question with the error: the first work whose number has not come is the one that failed.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::{CString, c_int, c_uint, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{CUdeviceptr, CUevent, CUfunction, CUmodule, CUstream};
use vgpu_protocol::op::{NO_ATTRIBUTE, ParameterPlace};
use vgpu_transport::Waker;
use vgpu_transport::clock;

use super::super::gpu::device::{
    self, Answer, Call, Caller, Description, DeviceError, Done, Launch, Layout,
};
use super::device::Device;
use super::driver::{CallError, check, check_query};
use super::image;

/// `CU_STREAM_DEFAULT`.
const STREAM_DEFAULT: c_uint = 0;
/// `CU_STREAM_NON_BLOCKING`.
const STREAM_NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DEFAULT`.
const EVENT_DEFAULT: c_uint = 0;
/// `CU_MEMHOSTALLOC_PORTABLE` and `DEVICEMAP`.
const HOST_PORTABLE: c_uint = 1;
const HOST_MAPPED: c_uint = 2;
/// `CUDA_ERROR_INVALID_VALUE`.
const INVALID_VALUE: c_int = 1;
/// `CUDA_ERROR_LAUNCH_TIMEOUT`.
const LAUNCH_TIMEOUT: c_int = 702;
/// `CUDA_ERROR_CONTEXT_IS_DESTROYED`.
const CONTEXT_IS_DESTROYED: c_int = 709;
/// `CUDA_ERROR_NOT_SUPPORTED`.
const NOT_SUPPORTED: c_int = 801;

/// Attributes that are asked for: those of CUDA 13, and some to come.
const DEVICE_ATTRIBUTES: c_int = 160;
const FUNCTION_ATTRIBUTES: c_int = 16;

/// How often the driver is asked whether something is wrong, while the word does not change.
const LOOK: Duration = Duration::from_millis(1);

/// How many works may be behind each other without one that raises the waker.
const UNTOLD: u64 = 32;

/// How long work whose session is over may take before the device counts as lost.
const DRAIN: Duration = Duration::from_secs(2);
const DRAIN_LOOK: Duration = Duration::from_micros(50);

type Work = device::Work<Buffer, Function>;

/// The queue of one session.
pub(super) struct Queue {
    // In this order: what belongs to the device goes before it.
    under_way: VecDeque<UnderWay>,
    /// Events that may be used again once nobody else holds them.
    free_events: Vec<Arc<Event>>,
    /// Marks a place for `tells` to wait for.
    place: Event,
    word: Buffer,
    /// The address of the word on the device.
    word_there: CUdeviceptr,
    stream: Stream,
    /// Host functions run here, so that the work itself does not wait for this machine.
    tells: Stream,
    description: Description,
    /// A number is written less often than it must be told of.
    untold: u64,
    /// When the first work under way began to be the first.
    first_since: Instant,
    looked: Instant,
    /// A kernel did not end.
    gone: bool,
    device: Arc<Device>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("under_way", &self.under_way.len())
            .finish_non_exhaustive()
    }
}

struct UnderWay {
    tag: u64,
    buffer: Option<Buffer>,
    /// Of a launch.
    times: Option<Times>,
}

struct Times {
    began: Arc<Event>,
    ended: Arc<Event>,
    deadline: Duration,
}

/// Page-locked memory, all of it initialised.
pub(super) struct Buffer {
    start: *mut u8,
    bytes: usize,
    device: Arc<Device>,
}

// SAFETY: the buffer owns its memory, which belongs to no thread.
unsafe impl Send for Buffer {}

impl Buffer {
    fn new(device: &Arc<Device>, bytes: usize, flags: c_uint) -> Result<Self, CallError> {
        let mut start = ptr::null_mut();
        // SAFETY: the output is writable, and the context current by `bind`.
        let code = unsafe { (device.driver().mem_host_alloc)(&mut start, bytes, flags) };
        check(code, "cuMemHostAlloc")?;
        let start = start.cast::<u8>();
        // SAFETY: so many bytes were allocated.
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
        // SAFETY: allocated, initialised, and not used by the device: whoever queues a buffer gives it away
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

struct Event {
    event: CUevent,
    device: Arc<Device>,
}

// SAFETY: the handle belongs to no thread.
unsafe impl Send for Event {}
// SAFETY: the driver locks for itself.
unsafe impl Sync for Event {}

impl Event {
    fn new(device: &Arc<Device>) -> Result<Self, CallError> {
        let mut event = ptr::null_mut();
        // SAFETY: the output is writable and the context current.
        let code = unsafe { (device.driver().event_create)(&mut event, EVENT_DEFAULT) };
        check(code, "cuEventCreate")?;
        Ok(Self {
            event,
            device: Arc::clone(device),
        })
    }

    /// Records it in a stream of the same device, whose context is current.
    fn record(&self, stream: &Stream) -> Result<(), CallError> {
        // SAFETY: both are live, and the context is current.
        let code = unsafe { (self.device.driver().event_record)(self.event, stream.stream) };
        check(code, "cuEventRecord")
    }

    /// Nanoseconds from this one to `end`; both have come.
    fn elapsed_ns(&self, end: &Event) -> Result<u64, CallError> {
        let mut ms = 0.0f32;
        // SAFETY: both are live and have times; the output is writable.
        let code =
            unsafe { (self.device.driver().event_elapsed_time)(&mut ms, self.event, end.event) };
        check(code, "cuEventElapsedTime")?;
        // `as` saturates, and takes a negative number as 0.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Ok((f64::from(ms) * 1e6) as u64)
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

struct Stream {
    stream: CUstream,
    device: Arc<Device>,
}

// SAFETY: the handle belongs to no thread.
unsafe impl Send for Stream {}

impl Stream {
    fn new(device: &Arc<Device>, flags: c_uint) -> Result<Self, CallError> {
        let mut stream = ptr::null_mut();
        // SAFETY: the output is writable and the context current.
        let code = unsafe { (device.driver().stream_create)(&mut stream, flags) };
        check(code, "cuStreamCreate")?;
        Ok(Self {
            stream,
            device: Arc::clone(device),
        })
    }

    /// Whether everything in it is done.
    fn is_done(&self) -> Result<bool, CallError> {
        // SAFETY: the stream is live and the context current.
        let code = unsafe { (self.device.driver().stream_query)(self.stream) };
        check_query(code, "cuStreamQuery")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.device.is_lost() && self.device.bind().is_ok() {
            // SAFETY: this one's own handle, not used afterwards.
            unsafe { (self.device.driver().stream_destroy)(self.stream) };
        }
    }
}

/// A kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Function(CUfunction);

// SAFETY: the handle belongs to no thread.
unsafe impl Send for Function {}

/// A module.
#[derive(Debug, Clone, Copy)]
pub(super) struct Module(CUmodule);

// SAFETY: the handle belongs to no thread.
unsafe impl Send for Module {}

impl Queue {
    /// A queue with nothing in it.
    pub(super) fn new(device: &Arc<Device>) -> Result<Self, CallError> {
        device.bind()?;
        let word = Buffer::new(device, size_of::<u32>(), HOST_PORTABLE | HOST_MAPPED)?;
        let mut word_there = 0;
        // SAFETY: the output is writable, and the memory was allocated for this.
        let code = unsafe {
            (device.driver().mem_host_get_device_pointer)(
                &mut word_there,
                word.start.cast::<c_void>(),
                0,
            )
        };
        check(code, "cuMemHostGetDevicePointer")?;
        let now = clock::now();
        Ok(Self {
            under_way: VecDeque::new(),
            free_events: Vec::new(),
            place: Event::new(device)?,
            word,
            word_there,
            stream: Stream::new(device, STREAM_DEFAULT)?,
            tells: Stream::new(device, STREAM_NON_BLOCKING)?,
            description: describe(device)?,
            untold: 0,
            first_since: now,
            looked: now,
            gone: false,
            device: Arc::clone(device),
        })
    }

    /// The low half of the number of the last work that is done.
    fn reached(&self) -> u32 {
        let word = self.word.start.cast::<u32>();
        // SAFETY: page-locked memory of a page's alignment, four bytes long, which lives as long as this and
        // is written by the device only, whole.
        let word = unsafe { AtomicU32::from_ptr(word) };
        // Acquire: the device writes it behind the bytes of the copies that it covers.
        word.load(Ordering::Acquire)
    }

    fn has_reached(&self, tag: u64) -> bool {
        // Fewer than 2^31 are under way.
        self.reached().wrapping_sub(low(tag)).cast_signed() >= 0
    }

    fn error(&self, error: CallError) -> DeviceError {
        device_error(&self.device, error)
    }

    fn event(&mut self) -> Result<Arc<Event>, CallError> {
        let unused = |event: &Arc<Event>| Arc::strong_count(event) == 1;
        match self.free_events.iter().position(unused) {
            Some(at) => Ok(self.free_events.swap_remove(at)),
            None => Event::new(&self.device).map(Arc::new),
        }
    }

    fn queue(&mut self, tag: u64, work: Work) -> Result<(), CallError> {
        self.device.bind()?;
        let driver = self.device.driver();
        let stream = self.stream.stream;
        let (mut wake, mut times) = (false, None);
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        // SAFETY: the context is current and the stream live. The engine has seen every range on the device
        // within an allocation of this session, which is not freed before this is done; the buffers stay in
        // `under_way` until then, and hold as many bytes.
        let buffer = unsafe {
            match work {
                Work::Upload { to, buffer, bytes } => {
                    debug_assert!(bytes <= buffer.bytes);
                    let from = buffer.start.cast::<c_void>().cast_const();
                    let code = (driver.memcpy_htod_async)(to, from, bytes, stream);
                    check(code, "cuMemcpyHtoDAsync")?;
                    wake = true;
                    Some(buffer)
                }
                Work::Download {
                    from,
                    buffer,
                    bytes,
                } => {
                    debug_assert!(bytes <= buffer.bytes);
                    let to = buffer.start.cast::<c_void>();
                    let code = (driver.memcpy_dtoh_async)(to, from, bytes, stream);
                    check(code, "cuMemcpyDtoHAsync")?;
                    wake = true;
                    Some(buffer)
                }
                Work::Copy { to, from, bytes } => {
                    let code = (driver.memcpy_dtod_async)(to, from, size(bytes), stream);
                    check(code, "cuMemcpyDtoDAsync")?;
                    None
                }
                Work::Fill {
                    to,
                    value,
                    element_bytes,
                    count,
                } => {
                    let count = size(count);
                    // The low bits of the value, as of a smaller element.
                    #[allow(clippy::cast_possible_truncation)]
                    let code = match element_bytes {
                        1 => (driver.memset_d8_async)(to, value as u8, count, stream),
                        2 => (driver.memset_d16_async)(to, value as u16, count, stream),
                        _ => (driver.memset_d32_async)(to, value, count, stream),
                    };
                    check(code, "cuMemsetAsync")?;
                    None
                }
                Work::Launch(launch) => {
                    times = Some(self.launch(&launch)?);
                    None
                }
            }
        };
        self.under_way.push_back(UnderWay { tag, buffer, times });
        if self.under_way.len() == 1 {
            self.first_since = clock::now();
        }
        // SAFETY: the word is this queue's and mapped for the device.
        let code = unsafe { (driver.stream_write_value32)(stream, self.word_there, low(tag), 0) };
        check(code, "cuStreamWriteValue32")?;
        self.untold += 1;
        match wake || self.untold >= UNTOLD {
            true => self.tell(),
            false => Ok(()),
        }
    }

    /// Has the waker raised when the work that is queued now is done.
    fn tell(&mut self) -> Result<(), CallError> {
        self.untold = 0;
        self.place.record(&self.stream)?;
        let tells = self.tells.stream;
        // SAFETY: stream and event are live and the context is current; `drop` waits for what is queued, or
        // the device counts as lost and its waker is never freed.
        unsafe {
            let code = (self.device.driver().stream_wait_event)(tells, self.place.event, 0);
            check(code, "cuStreamWaitEvent")?;
            self.device.raise_after(tells)
        }
    }

    fn launch(&mut self, launch: &Launch<Function>) -> Result<Times, CallError> {
        // Where another kernel runs before it, this one begins when that has ended.
        let before = self.under_way.back().and_then(|last| last.times.as_ref());
        let began = match before.map(|times| Arc::clone(&times.ended)) {
            Some(ended) => ended,
            None => {
                let began = self.event()?;
                began.record(&self.stream)?;
                began
            }
        };
        let ended = self.event()?;
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
        let mut bytes = launch.parameters.len();
        // CU_LAUNCH_PARAM_BUFFER_POINTER, CU_LAUNCH_PARAM_BUFFER_SIZE, CU_LAUNCH_PARAM_END
        let mut extra = [
            ptr::without_provenance_mut::<c_void>(1),
            launch.parameters.as_ptr().cast_mut().cast::<c_void>(),
            ptr::without_provenance_mut::<c_void>(2),
            (&raw mut bytes).cast::<c_void>(),
            ptr::null_mut(),
        ];
        let extra = match bytes {
            0 => ptr::null_mut(),
            _ => extra.as_mut_ptr(),
        };
        // SAFETY: the context is current; the function's module is unloaded only when this is done; there are as
        // many bytes of parameters as the kernel has, which the driver copies before it returns.
        let code = unsafe {
            (self.device.driver().launch_kernel)(
                launch.function.0,
                gx,
                gy,
                gz,
                bx,
                by,
                bz,
                launch.shared_bytes,
                self.stream.stream,
                ptr::null_mut(),
                extra,
            )
        };
        check(code, "cuLaunchKernel")?;
        ended.record(&self.stream)?;
        Ok(Times {
            began,
            ended,
            deadline: launch.deadline,
        })
    }

    /// The first work under way is over, in this way.
    fn first_is_over(&mut self, result: Result<(), DeviceError>) -> Option<Done<Buffer>> {
        let first = self.under_way.pop_front()?;
        self.first_since = clock::now();
        let mut device_ns = 0;
        let lost = self.device.is_lost();
        if let Some(times) = first.times {
            if !lost && result.is_ok() && self.device.bind().is_ok() {
                device_ns = times.began.elapsed_ns(&times.ended).unwrap_or(0);
            }
            self.free_events.extend([times.began, times.ended]);
        }
        // The device may still write to it; then it is never freed.
        let buffer = match lost {
            true => {
                std::mem::forget(first.buffer);
                None
            }
            false => first.buffer,
        };
        Some(Done {
            tag: first.tag,
            buffer,
            result,
            device_ns,
        })
    }
}

/// The low half of a number.
#[allow(clippy::cast_possible_truncation, reason = "that is what is wanted")]
fn low(tag: u64) -> u32 {
    tag as u32
}

impl device::Device for Queue {
    type Buffer = Buffer;
    type Module = Module;
    type Function = Function;
    type Caller = CudaCaller;

    // Well below the thousand at which a driver waits for room.
    const MOST_WORK: usize = 256;
    const IMAGE_COST: u64 = 1;

    fn description(&self) -> &Description {
        &self.description
    }

    fn free_memory(&self) -> Option<u64> {
        if self.device.is_lost() || self.device.bind().is_err() {
            return None;
        }
        let (mut free, mut total) = (0, 0);
        // SAFETY: both are writable and the context is current.
        let code = unsafe { (self.device.driver().mem_get_info)(&mut free, &mut total) };
        check(code, "cuMemGetInfo").ok().map(|()| free as u64)
    }

    fn buffer(&mut self, bytes: usize) -> Result<Buffer, DeviceError> {
        self.device
            .bind()
            .and_then(|()| Buffer::new(&self.device, bytes, HOST_PORTABLE))
            .map_err(|error| self.error(error))
    }

    fn submit(&mut self, tag: u64, work: Work) -> Result<(), DeviceError> {
        if self.device.is_lost() {
            return Err(lost(&self.device));
        }
        let before = self.under_way.len();
        self.queue(tag, work).map_err(|error| {
            // Half of it is queued: from here on the word tells nothing.
            if self.under_way.len() > before {
                self.device.lose(error);
                std::mem::forget(self.under_way.pop_back());
                return lost(&self.device);
            }
            self.error(error)
        })
    }

    fn wake_at_end(&mut self) -> Result<(), DeviceError> {
        if self.device.is_lost() {
            return Err(lost(&self.device));
        }
        self.device
            .bind()
            .and_then(|()| self.tell())
            .map_err(|error| self.error(error))
    }

    fn next_done(&mut self) -> Option<Done<Buffer>> {
        let first = self.under_way.front()?;
        if self.has_reached(first.tag) {
            return self.first_is_over(Ok(()));
        }
        if self.device.is_lost() {
            return self.first_is_over(Err(lost(&self.device)));
        }
        let now = clock::now();
        if let Some(times) = &first.times
            && now.saturating_duration_since(self.first_since) > times.deadline
        {
            let ms = times.deadline.as_millis();
            // Only the end of this process ends it.
            self.device.set_lost();
            self.gone = true;
            return self.first_is_over(Err(DeviceError {
                code: LAUNCH_TIMEOUT,
                text: format!("the kernel ran longer than its {ms} ms"),
                sticky: true,
            }));
        }
        if now.saturating_duration_since(self.looked) < LOOK {
            return None;
        }
        self.looked = now;
        let error = self
            .device
            .bind()
            .and_then(|()| self.stream.is_done())
            .err()?;
        // What the device has done before, it has also said.
        match self.under_way.front().map(|first| first.tag) {
            Some(tag) if self.has_reached(tag) => self.first_is_over(Ok(())),
            _ => {
                self.device.lose(error);
                self.first_is_over(Err(lost(&self.device)))
            }
        }
    }

    fn is_gone(&self) -> bool {
        self.gone
    }

    fn waker(&self) -> &Arc<Waker> {
        self.device.waker()
    }

    fn caller(&self) -> CudaCaller {
        CudaCaller(Arc::clone(&self.device))
    }

    fn set_attribute(
        &mut self,
        function: &mut Function,
        attribute: u32,
        value: i32,
    ) -> Result<(), DeviceError> {
        if self.device.is_lost() {
            return Err(lost(&self.device));
        }
        let attribute = c_int::try_from(attribute).unwrap_or(c_int::MAX);
        // SAFETY: the function is of a loaded module and the context current; what cannot be set is refused.
        let set = self.device.bind().and_then(|()| unsafe {
            let code = (self.device.driver().func_set_attribute)(function.0, attribute, value);
            check(code, "cuFuncSetAttribute")
        });
        set.map_err(|error| self.error(error))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let deadline = Instant::now() + DRAIN;
        while !self.device.is_lost() {
            let both = self
                .device
                .bind()
                .and_then(|()| Ok(self.stream.is_done()? && self.tells.is_done()?));
            match both {
                Ok(true) => break,
                Ok(false) if Instant::now() < deadline => thread::sleep(DRAIN_LOOK),
                // The device may still use what is under way: nothing of it is freed.
                Ok(false) | Err(_) => self.device.set_lost(),
            }
        }
    }
}

/// An error as the engine has it; one that spoils the context is the last that the driver is asked for.
fn device_error(device: &Device, error: CallError) -> DeviceError {
    if error.is_sticky() {
        device.lose(error);
    }
    DeviceError {
        code: error.code,
        text: error.to_string(),
        sticky: error.is_sticky(),
    }
}

/// What everything is answered with once the device is lost.
fn lost(device: &Device) -> DeviceError {
    match device.lost_by() {
        Some(error) => DeviceError {
            code: error.code,
            text: error.to_string(),
            sticky: true,
        },
        None => DeviceError {
            code: CONTEXT_IS_DESTROYED,
            text: "an earlier error ended this session's use of the GPU".to_owned(),
            sticky: true,
        },
    }
}

fn describe(device: &Device) -> Result<Description, CallError> {
    let attribute = |number| device.attribute(number).unwrap_or(NO_ATTRIBUTE);
    Ok(Description {
        name: device.name()?,
        uuid: device.uuid()?,
        total_memory: device.total_memory()?,
        driver_version: device.driver_version()?,
        attributes: (0..DEVICE_ATTRIBUTES)
            .map(|number| match number {
                0 => NO_ATTRIBUTE,
                number => attribute(number),
            })
            .collect(),
    })
}

/// Makes the driver's calls that may take their time.
#[derive(Clone)]
pub(super) struct CudaCaller(Arc<Device>);

impl CudaCaller {
    fn error(&self, error: CallError) -> DeviceError {
        device_error(&self.0, error)
    }

    fn allocate(&self, bytes: u64) -> Result<CUdeviceptr, CallError> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut address = 0;
        // SAFETY: the output is writable and the context current.
        let code = unsafe { (self.0.driver().mem_alloc)(&mut address, bytes) };
        check(code, "cuMemAlloc")?;
        Ok(address)
    }

    /// `address` is the session's own, and nothing that is queued names it.
    fn free(&self, address: CUdeviceptr) -> Result<(), CallError> {
        // SAFETY: the caller's promise.
        check(unsafe { (self.0.driver().mem_free)(address) }, "cuMemFree")
    }

    fn load(&self, image: &[u8]) -> Result<Module, CallError> {
        let mut module = ptr::null_mut();
        // SAFETY: the image ends where it says, and with zeros: `image::fit`. The context is current.
        let code = unsafe {
            (self.0.driver().module_load_data)(&mut module, image.as_ptr().cast::<c_void>())
        };
        check(code, "cuModuleLoadData")?;
        Ok(Module(module))
    }

    fn unload(&self, module: Module) -> Result<(), CallError> {
        // SAFETY: the engine unloads a module once, when nothing that is queued uses it.
        check(
            unsafe { (self.0.driver().module_unload)(module.0) },
            "cuModuleUnload",
        )
    }

    fn function(&self, module: Module, name: &CString) -> Result<CUfunction, CallError> {
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded, the name ends with a NUL, the output is writable.
        let code = unsafe {
            (self.0.driver().module_get_function)(&mut function, module.0, name.as_ptr())
        };
        check(code, "cuModuleGetFunction")?;
        Ok(function)
    }

    fn layout(&self, function: CUfunction) -> Result<Layout, DeviceError> {
        let driver = self.0.driver();
        let Some(param_info) = driver.func_get_param_info else {
            let text = "the driver cannot tell a kernel's parameters: install one of CUDA 12.4 or \
                        later (version 550)";
            return Err(DeviceError::new(NOT_SUPPORTED, text));
        };
        let attribute = |number| {
            let mut value = 0;
            // SAFETY: the function is of a loaded module; `value` is writable; unknown attributes are refused.
            let code = unsafe { (driver.func_get_attribute)(&mut value, number, function) };
            check(code, "cuFuncGetAttribute").map_or(NO_ATTRIBUTE, |()| value)
        };
        let attributes = (0..FUNCTION_ATTRIBUTES).map(attribute).collect();
        let mut parameters = Vec::new();
        loop {
            let (mut offset, mut size) = (0, 0);
            // SAFETY: as above; there is no parameter beyond the last, which is refused.
            let code = unsafe { param_info(function, parameters.len(), &mut offset, &mut size) };
            if code == INVALID_VALUE {
                break;
            }
            check(code, "cuFuncGetParamInfo").map_err(|error| self.error(error))?;
            let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            parameters.push(ParameterPlace {
                offset: number(offset),
                size: number(size),
            });
        }
        let ends = parameters
            .iter()
            .map(|place| place.offset.saturating_add(place.size));
        Ok(Layout {
            parameter_bytes: ends.max().unwrap_or(0),
            parameters,
            attributes,
        })
    }

    fn global(&self, module: Module, name: &CString) -> Result<(u64, u64), CallError> {
        let (mut address, mut bytes) = (0, 0);
        // SAFETY: the module is loaded, the name ends with a NUL, both outputs are writable.
        let code = unsafe {
            (self.0.driver().module_get_global)(&mut address, &mut bytes, module.0, name.as_ptr())
        };
        check(code, "cuModuleGetGlobal")?;
        Ok((address, bytes as u64))
    }
}

/// `CUDA_ERROR_NOT_FOUND`.
const NOT_FOUND: c_int = 500;

fn name(name: String) -> Result<CString, DeviceError> {
    CString::new(name).map_err(|_| DeviceError::new(NOT_FOUND, "a name with a NUL in it"))
}

impl Caller for CudaCaller {
    type Module = Module;
    type Function = Function;

    const MAY_WAIT: bool = true;

    fn call(&self, call: Call<Module>) -> Result<Answer<Module, Function>, DeviceError> {
        if self.0.is_lost() {
            return Err(lost(&self.0));
        }
        let fail = |error| self.error(error);
        self.0.bind().map_err(fail)?;
        Ok(match call {
            Call::Allocate(bytes) => Answer::Address(self.allocate(bytes).map_err(fail)?),
            Call::Free(address) => {
                self.free(address).map_err(fail)?;
                Answer::Done
            }
            Call::Load(image) => Answer::Module(self.load(&image::fit(image)?).map_err(fail)?),
            Call::Unload(module) => {
                self.unload(module).map_err(fail)?;
                Answer::Done
            }
            Call::Function(module, text) => {
                let function = self.function(module, &name(text)?).map_err(fail)?;
                Answer::Function(Function(function), self.layout(function)?)
            }
            Call::Global(module, text) => {
                let (address, bytes) = self.global(module, &name(text)?).map_err(fail)?;
                Answer::Global(address, bytes)
            }
        })
    }
}
