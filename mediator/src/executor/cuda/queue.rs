//! A session's work on a GPU: its streams, and how far the device is with each.
//!
//! Behind each work the device writes the work's number to a word in page-locked memory, one for each stream. So a look at that
//! word tells what is done, without a call of the driver, and also after an error, when the driver answers
//! every question with the error: the first work whose number has not come is the one that failed. Where
//! kernels of several streams were under way, the oldest of them is named.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, HashMap, VecDeque};
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
    self, Answer, Call, Caller, Description, DeviceError, Done, Key, Launch, Layout,
};
use super::device::Device;
use super::driver::{CallError, check, check_query};
use super::image;

/// `CU_STREAM_NON_BLOCKING`.
const STREAM_NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DEFAULT`.
const EVENT_DEFAULT: c_uint = 0;
/// `CU_EVENT_DISABLE_TIMING`.
const EVENT_DISABLE_TIMING: c_uint = 2;
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

/// Streams that have a word: those that a session may have, those that are on their way out, and the default one.
const WORDS: usize = 1024;

/// The queue of one session.
pub(super) struct Queue {
    // In this order: what belongs to the device goes before it.
    /// By their keys; 0 is the default stream.
    lanes: BTreeMap<Key, Lane>,
    events: HashMap<Key, Event>,
    /// Events that may be used again once nobody else holds them.
    free_events: Vec<Arc<Event>>,
    /// Marks a place for a stream to wait for.
    place: Event,
    /// The words of the streams.
    words: Buffer,
    /// Their address on the device.
    words_there: CUdeviceptr,
    free_words: Vec<usize>,
    description: Description,
    looked: Instant,
    /// A kernel did not end.
    gone: bool,
    device: Arc<Device>,
}

/// One stream.
struct Lane {
    under_way: VecDeque<UnderWay>,
    /// Which word is its own.
    word: usize,
    stream: Stream,
    /// Host functions run here, so that the work itself does not wait for this machine.
    tells: Stream,
    /// Works since one was told of.
    untold: u64,
    /// When the first work under way began to be the first.
    first_since: Instant,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("lanes", &self.lanes.len())
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
    fn new(device: &Arc<Device>, flags: c_uint) -> Result<Self, CallError> {
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
    /// The default stream, or one of its own with these flags and this priority.
    fn new(device: &Arc<Device>, own: Option<(c_uint, c_int)>) -> Result<Self, CallError> {
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
    fn is_done(&self) -> Result<bool, CallError> {
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

impl Lane {
    fn new(
        device: &Arc<Device>,
        own: Option<(c_uint, c_int)>,
        word: usize,
    ) -> Result<Self, CallError> {
        Ok(Self {
            under_way: VecDeque::new(),
            word,
            stream: Stream::new(device, own)?,
            tells: Stream::new(device, Some((STREAM_NON_BLOCKING, 0)))?,
            untold: 0,
            first_since: clock::now(),
        })
    }
}

impl Queue {
    /// A queue with nothing in it.
    pub(super) fn new(device: &Arc<Device>) -> Result<Self, CallError> {
        device.bind()?;
        let bytes = WORDS * size_of::<u32>();
        let words = Buffer::new(device, bytes, HOST_PORTABLE | HOST_MAPPED)?;
        let mut words_there = 0;
        // SAFETY: the output is writable, and the memory was allocated for this.
        let code = unsafe {
            (device.driver().mem_host_get_device_pointer)(
                &mut words_there,
                words.start.cast::<c_void>(),
                0,
            )
        };
        check(code, "cuMemHostGetDevicePointer")?;
        Ok(Self {
            lanes: BTreeMap::from([(0, Lane::new(device, None, 0)?)]),
            events: HashMap::new(),
            free_events: Vec::new(),
            place: Event::new(device, EVENT_DISABLE_TIMING)?,
            words,
            words_there,
            free_words: (1..WORDS).rev().collect(),
            description: describe(device)?,
            looked: clock::now(),
            gone: false,
            device: Arc::clone(device),
        })
    }

    /// The word of a stream.
    fn word(&self, lane: &Lane) -> &AtomicU32 {
        debug_assert!(lane.word < WORDS);
        // SAFETY: within the page-locked memory of this queue, which is aligned to a page, lives as long, and is read
        // and written here and by the device whole words at a time only.
        unsafe { AtomicU32::from_ptr(self.words.start.cast::<u32>().add(lane.word)) }
    }

    /// Whether the device is done with work `tag` of a stream.
    fn has_reached(&self, lane: &Lane, tag: u64) -> bool {
        // Acquire: the device writes it behind the bytes of the copies that it covers.
        let reached = self.word(lane).load(Ordering::Acquire);
        // Fewer than 2^31 are under way.
        reached.wrapping_sub(low(tag)).cast_signed() >= 0
    }

    fn error(&self, error: CallError) -> DeviceError {
        device_error(&self.device, error)
    }

    fn event(&mut self) -> Result<Arc<Event>, CallError> {
        let unused = |event: &Arc<Event>| Arc::strong_count(event) == 1;
        match self.free_events.iter().position(unused) {
            Some(at) => Ok(self.free_events.swap_remove(at)),
            None => Event::new(&self.device, EVENT_DEFAULT).map(Arc::new),
        }
    }

    fn queue(&mut self, tag: u64, key: Key, work: Work) -> Result<(), CallError> {
        self.device.bind()?;
        let driver = self.device.driver();
        let gone = CallError {
            code: CONTEXT_IS_DESTROYED,
            call: "a stream that is gone",
        };
        let lane = self.lanes.get(&key).ok_or(gone)?;
        let (stream, word) = (lane.stream.stream, lane.word);
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
                    times = Some(self.launch(key, &launch)?);
                    None
                }
                Work::Record(event) => {
                    let event = self.events.get(&event).ok_or(gone)?;
                    check((driver.event_record)(event.event, stream), "cuEventRecord")?;
                    None
                }
                Work::Wait(event) => {
                    let event = self.events.get(&event).ok_or(gone)?;
                    let code = (driver.stream_wait_event)(stream, event.event, 0);
                    check(code, "cuStreamWaitEvent")?;
                    None
                }
            }
        };
        if let Some(lane) = self
            .lanes
            .get(&key)
            .filter(|lane| lane.under_way.is_empty())
        {
            // However long the stream was idle, and whoever had the word before. Relaxed: the device writes to it
            // only behind the call below.
            self.word(lane)
                .store(low(tag).wrapping_sub(1), Ordering::Relaxed);
        }
        let lane = self.lanes.get_mut(&key).ok_or(gone)?;
        if lane.under_way.is_empty() {
            lane.first_since = clock::now();
        }
        lane.under_way.push_back(UnderWay { tag, buffer, times });
        lane.untold += 1;
        let tell = wake || lane.untold >= UNTOLD;
        let word = self.words_there + (word * size_of::<u32>()) as u64;
        // SAFETY: the word is this queue's and mapped for the device.
        let code = unsafe { (driver.stream_write_value32)(stream, word, low(tag), 0) };
        check(code, "cuStreamWriteValue32")?;
        match tell {
            true => self.tell(key),
            false => Ok(()),
        }
    }

    /// Has the waker raised when the work that is queued in a stream now is done.
    fn tell(&mut self, key: Key) -> Result<(), CallError> {
        let Some(lane) = self.lanes.get_mut(&key) else {
            return Ok(());
        };
        lane.untold = 0;
        self.place.record(&lane.stream)?;
        let tells = lane.tells.stream;
        // SAFETY: stream and event are live and the context is current; `drop` waits for what is queued, or
        // the device counts as lost and its waker is never freed.
        unsafe {
            let code = (self.device.driver().stream_wait_event)(tells, self.place.event, 0);
            check(code, "cuStreamWaitEvent")?;
            self.device.raise_after(tells)
        }
    }

    fn launch(&mut self, key: Key, launch: &Launch<Function>) -> Result<Times, CallError> {
        let ended = self.event()?;
        let fresh = self.event()?;
        let gone = CallError {
            code: CONTEXT_IS_DESTROYED,
            call: "a stream that is gone",
        };
        let lane = self.lanes.get(&key).ok_or(gone)?;
        // Where another kernel runs before it, this one begins when that has ended.
        let before = lane.under_way.back().and_then(|last| last.times.as_ref());
        let began = match before.map(|times| Arc::clone(&times.ended)) {
            Some(before) => {
                self.free_events.push(fresh);
                before
            }
            None => {
                fresh.record(&lane.stream)?;
                fresh
            }
        };
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
                lane.stream.stream,
                ptr::null_mut(),
                extra,
            )
        };
        check(code, "cuLaunchKernel")?;
        ended.record(&lane.stream)?;
        Ok(Times {
            began,
            ended,
            deadline: launch.deadline,
        })
    }

    /// The first work under way in a stream is over, in this way.
    fn first_is_over(&mut self, key: Key, result: Result<(), DeviceError>) -> Option<Done<Buffer>> {
        let lane = self.lanes.get_mut(&key)?;
        let first = lane.under_way.pop_front()?;
        lane.first_since = clock::now();
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

    /// The stream whose first work failed, if any did: the oldest kernel that is first in its stream.
    fn failed(&self) -> Option<Key> {
        let firsts = self.lanes.iter().filter_map(|(key, lane)| {
            let first = lane.under_way.front()?;
            Some((first.times.is_none(), first.tag, *key))
        });
        firsts.min().map(|(_, _, key)| key)
    }

    /// The first stream whose first work is done.
    fn done(&self) -> Option<Key> {
        let mut lanes = self.lanes.iter();
        lanes
            .find(|(_, lane)| {
                let first = lane.under_way.front();
                first.is_some_and(|first| self.has_reached(lane, first.tag))
            })
            .map(|(key, _)| *key)
    }

    /// A stream whose first work is a kernel that has run for too long, and how long it may.
    fn late(&self, now: Instant) -> Option<(Key, Duration)> {
        self.lanes.iter().find_map(|(key, lane)| {
            let deadline = lane.under_way.front()?.times.as_ref()?.deadline;
            let ran = now.saturating_duration_since(lane.first_since);
            // One look after the deadline.
            let runs = ran > deadline && !self.has_reached(lane, lane.under_way.front()?.tag);
            runs.then_some((*key, deadline))
        })
    }

    /// Whether any stream knows of an error; all know of the same.
    fn check_streams(&self) -> Result<(), CallError> {
        self.device.bind()?;
        let mut busy = self
            .lanes
            .values()
            .filter(|lane| !lane.under_way.is_empty());
        match busy.next() {
            Some(lane) => lane.stream.is_done().map(drop),
            None => Ok(()),
        }
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

    fn make_stream(&mut self, key: Key, flags: u32, priority: i32) -> Result<(), DeviceError> {
        if self.device.is_lost() {
            return Err(lost(&self.device));
        }
        let Some(word) = self.free_words.pop() else {
            let text = "as many streams as this session may have are on their way out";
            return Err(DeviceError::new(super::driver::OUT_OF_MEMORY, text));
        };
        let lane = self
            .device
            .bind()
            .and_then(|()| Lane::new(&self.device, Some((flags, priority)), word));
        match lane {
            Ok(lane) => {
                self.lanes.insert(key, lane);
                Ok(())
            }
            Err(error) => {
                self.free_words.push(word);
                Err(self.error(error))
            }
        }
    }

    fn drop_stream(&mut self, key: Key) {
        if let Some(lane) = self.lanes.remove(&key) {
            debug_assert!(lane.under_way.is_empty());
            self.free_words.push(lane.word);
        }
    }

    fn make_event(&mut self, key: Key, has_time: bool) -> Result<(), DeviceError> {
        if self.device.is_lost() {
            return Err(lost(&self.device));
        }
        let flags = match has_time {
            true => EVENT_DEFAULT,
            false => EVENT_DISABLE_TIMING,
        };
        let event = self
            .device
            .bind()
            .and_then(|()| Event::new(&self.device, flags));
        let event = event.map_err(|error| self.error(error))?;
        self.events.insert(key, event);
        Ok(())
    }

    fn drop_event(&mut self, key: Key) {
        self.events.remove(&key);
    }

    fn elapsed_ns(&mut self, start: Key, end: Key) -> Result<u64, DeviceError> {
        if self.device.is_lost() {
            return Err(lost(&self.device));
        }
        match (self.events.get(&start), self.events.get(&end)) {
            (Some(start), Some(end)) => self
                .device
                .bind()
                .and_then(|()| start.elapsed_ns(end))
                .map_err(|error| self.error(error)),
            _ => Ok(0),
        }
    }

    fn submit(&mut self, tag: u64, stream: Key, work: Work) -> Result<(), DeviceError> {
        if self.device.is_lost() {
            return Err(lost(&self.device));
        }
        self.queue(tag, stream, work).map_err(|error| {
            let lane = self.lanes.get_mut(&stream);
            let half =
                lane.filter(|lane| lane.under_way.back().is_some_and(|last| last.tag == tag));
            // Half of it is queued: from here on the word tells nothing.
            if let Some(lane) = half {
                self.device.lose(error);
                std::mem::forget(lane.under_way.pop_back());
                return lost(&self.device);
            }
            self.error(error)
        })
    }

    fn wake_at_end(&mut self, stream: Key) -> Result<(), DeviceError> {
        if self.device.is_lost() {
            return Err(lost(&self.device));
        }
        self.device
            .bind()
            .and_then(|()| self.tell(stream))
            .map_err(|error| self.error(error))
    }

    fn next_done(&mut self) -> Option<Done<Buffer>> {
        if let Some(key) = self.done() {
            return self.first_is_over(key, Ok(()));
        }
        let failed = self.failed()?;
        if self.device.is_lost() {
            return self.first_is_over(failed, Err(lost(&self.device)));
        }
        let now = clock::now();
        if let Some((late, deadline)) = self.late(now) {
            let ms = deadline.as_millis();
            // Only the end of this process ends it.
            self.device.set_lost();
            self.gone = true;
            return self.first_is_over(
                late,
                Err(DeviceError {
                    code: LAUNCH_TIMEOUT,
                    text: format!("the kernel ran longer than its {ms} ms"),
                    sticky: true,
                }),
            );
        }
        if now.saturating_duration_since(self.looked) < LOOK {
            return None;
        }
        self.looked = now;
        let error = self.check_streams().err()?;
        // What the device has done before, it has also said.
        if let Some(key) = self.done() {
            return self.first_is_over(key, Ok(()));
        }
        self.device.lose(error);
        self.first_is_over(failed, Err(lost(&self.device)))
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
            // Read before the look, so that there is one after the deadline.
            let late = Instant::now() >= deadline;
            let all = self.device.bind().and_then(|()| {
                for lane in self.lanes.values() {
                    if !lane.stream.is_done()? || !lane.tells.is_done()? {
                        return Ok(false);
                    }
                }
                Ok(true)
            });
            match all {
                Ok(true) => break,
                Ok(false) if !late => thread::sleep(DRAIN_LOOK),
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
