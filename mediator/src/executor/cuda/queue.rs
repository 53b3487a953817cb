//! A session's work on a GPU: its streams, and how far the device is with each.
//!
//! Behind each work the device writes the work's number to a word in page-locked memory, one for each stream. So a look at that
//! word tells what is done, without a call of the driver, and also after an error, when the driver answers
//! every question with the error: the first work whose number has not come is the one that failed. Where
//! kernels of several streams were under way, the oldest of them is named.
//!
//! Times are taken of a row of kernels: to read an event costs as much as a launch. So the number of the last kernel
//! that was launched is left out until it is known whether another one follows, at the latest until this
//! thread is about to wait: before it goes the event that ends the row, so whoever waits for the kernel has its time.
#![allow(unsafe_code)]

mod rows;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::{c_int, c_uint, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{CUDA_MEMCPY2D, CUdeviceptr, CUlaunchConfig, CUmemorytype, CUstream};
use vgpu_transport::Waker;
use vgpu_transport::clock;

use super::super::cuda_result;
use super::super::gpu::device::{
    self, Description, DeviceError, Done, Key, Launch, Limit, Part, Region, Rows,
};
use super::attributes;
use super::caller::{CudaCaller, device_error, lost};
use super::device::Device;
use super::driver::{
    CallError, EVENT_DEFAULT, HOST_MAPPED, HOST_PORTABLE, STREAM_NON_BLOCKING, check, size,
    with_extra,
};
use super::graph::Graph;
use super::handles::{Buffer, Event, Function, Module, Stream};
use super::printed;
use rows::{End, Row, Samples, Times};

/// `CU_EVENT_DISABLE_TIMING`.
const EVENT_DISABLE_TIMING: c_uint = 2;
/// `CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS`.
const WRITES_64_BITS: usize = 122;

/// How often the driver is asked whether something is wrong, while the word does not change.
const DRIVER_CHECK_INTERVAL: Duration = Duration::from_millis(1);

/// How many works may be behind each other without one that raises the waker.
const MOST_WITHOUT_WAKER: u64 = 128;

/// Waits of up to this long are ended by looks between short naps: where the driver's callback has to wake this thread, 60 to
/// 130 us are lost (on an H200's host).
const LONGEST_NAPPED_WAIT: Duration = Duration::from_millis(20);
/// A nap is this part of the time that was waited, and not shorter than [`LEAST_NAP`]: the end is noticed so much later.
const NAPS: u32 = 64;
const LEAST_NAP: Duration = Duration::from_micros(10);

/// How long work whose session is over may take before the device counts as lost.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
const DRAIN_CHECK_INTERVAL: Duration = Duration::from_micros(50);

type Work = device::Work<Buffer, Function, Graph>;

/// Streams that have a word: those that a session may have, those that are on their way out, and the default one.
const WORDS: usize = 1024;

/// A stream or an event that is not there: this module's own mistake.
const GONE: CallError = CallError {
    code: cuda_result::CONTEXT_IS_DESTROYED,
    call: "a stream that is gone",
};

/// The queue of one session.
pub(in crate::executor) struct Queue {
    // In this order: what belongs to the device goes before it.
    /// By their keys; 0 is the default stream.
    lanes: BTreeMap<Key, Lane>,
    events: HashMap<Key, Event>,
    /// Events that may be used again once nobody else holds them.
    free_events: Vec<Arc<Event>>,
    /// The last end of a kernel that is known.
    last_end: Option<End>,
    samples: Samples,
    /// Marks a place for a stream to wait for.
    place: Event,
    /// Nothing is ever queued here: a call that waits for it does not wait.
    empty: Option<Stream>,
    /// A kernel that may print was launched.
    prints: bool,
    /// Printed output that the driver has yet to write.
    unwritten: Unwritten,
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
    /// The row of kernels that its last works are.
    row: Option<Row>,
    /// Works since one was told of.
    untold: u64,
    /// The end of its work is to be told of before this thread sleeps.
    awaited: bool,
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

/// Output of kernels that are over, as far as the driver may not have written it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unwritten {
    None,
    /// It was asked while other work was under way. Once more when none is: then every driver does it.
    Asked,
    Some,
}

/// Objects that the device uses.
enum Used {
    Buffer(Buffer),
    Region { _used: Arc<Region> },
    Graph { _used: Graph },
}

struct UnderWay {
    tag: u64,
    used: Option<Used>,
    /// How long it may take: a kernel, or a graph.
    deadline: Option<Duration>,
    /// Such a one that may print.
    may_print: bool,
    /// Of the last kernel of a row.
    times: Option<Times>,
}

impl Lane {
    fn new(
        device: &Arc<Device>,
        own: Option<(c_uint, c_int)>,
        word: usize,
    ) -> Result<Self, CallError> {
        Ok(Self {
            under_way: VecDeque::new(),
            word,
            row: None,
            stream: Stream::new(device, own)?,
            tells: Stream::new(device, Some((STREAM_NON_BLOCKING, 0)))?,
            untold: 0,
            awaited: false,
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
            last_end: None,
            samples: Samples::default(),
            place: Event::new(device, EVENT_DISABLE_TIMING)?,
            empty: None,
            prints: false,
            unwritten: Unwritten::None,
            words,
            words_there,
            free_words: (1..WORDS).rev().collect(),
            description: device.describe()?,
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

    /// Makes calls of the driver, in the device's context, unless the device is lost.
    fn driver<T>(
        &mut self,
        calls: impl FnOnce(&mut Self) -> Result<T, CallError>,
    ) -> Result<T, DeviceError> {
        if self.device.is_lost() {
            return Err(lost(&self.device));
        }
        let made = self.device.bind().and_then(|()| calls(self));
        made.map_err(|error| device_error(&self.device, error))
    }

    fn queue(&mut self, tag: u64, key: Key, work: Work) -> Result<(), CallError> {
        self.device.bind()?;
        if !matches!(work, Work::Launch(_) | Work::Graph(..)) {
            self.end_row(key)?;
        }
        let driver = self.device.driver();
        let lane = self.lanes.get(&key).ok_or(GONE)?;
        let stream = lane.stream.stream;
        let (mut moves_data, mut deadline, mut may_print) = (false, None, false);
        // SAFETY: the context is current and the stream live. The engine has seen every range on the device
        // within an allocation of this session, which is not freed before this is done; buffers and regions stay in
        // `under_way` until then, and hold as many bytes.
        let used = unsafe {
            match work {
                Work::Upload { to, buffer } => {
                    debug_assert!(to.bytes() <= buffer.bytes as u64);
                    self.copy(Side::Here(buffer.start, to), Side::There(to), stream)?;
                    moves_data = true;
                    Some(Used::Buffer(buffer))
                }
                Work::Download { from, buffer } => {
                    debug_assert!(from.bytes() <= buffer.bytes as u64);
                    self.copy(Side::There(from), Side::Here(buffer.start, from), stream)?;
                    moves_data = true;
                    Some(Used::Buffer(buffer))
                }
                Work::FromRegion { to, part } => {
                    let start = start_of(&part, to);
                    self.copy(Side::Here(start, to), Side::There(to), stream)?;
                    self.tell_guest(&part, stream)?;
                    moves_data = true;
                    Some(Used::Region { _used: part.region })
                }
                Work::ToRegion { from, part } => {
                    let start = start_of(&part, from);
                    self.copy(Side::There(from), Side::Here(start, from), stream)?;
                    self.tell_guest(&part, stream)?;
                    moves_data = true;
                    Some(Used::Region { _used: part.region })
                }
                Work::Copy { to, from } => {
                    self.copy(Side::There(from), Side::There(to), stream)?;
                    None
                }
                Work::Fill {
                    to,
                    value,
                    element_bytes,
                } => {
                    self.fill(to, value, element_bytes, stream)?;
                    None
                }
                Work::Launch(launch) => {
                    self.launch(key, &launch)?;
                    deadline = Some(launch.deadline);
                    may_print = launch.function.may_print;
                    self.prints |= may_print;
                    None
                }
                Work::Graph(graph, most) => {
                    self.in_row(key, graph.address(), |stream| graph.launch(stream))?;
                    deadline = Some(most);
                    may_print = graph.may_print();
                    self.prints |= may_print;
                    Some(Used::Graph { _used: graph })
                }
                Work::Record(event) => {
                    let event = self.events.get(&event).ok_or(GONE)?;
                    check((driver.event_record)(event.event, stream), "cuEventRecord")?;
                    None
                }
                Work::Wait(event) => {
                    let event = self.events.get(&event).ok_or(GONE)?;
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
            // However long the stream was idle, and whoever used the word before. Relaxed: the device writes to it
            // only behind the call below.
            self.word(lane)
                .store(low(tag).wrapping_sub(1), Ordering::Relaxed);
        }
        let lane = self.lanes.get_mut(&key).ok_or(GONE)?;
        if lane.under_way.is_empty() {
            lane.first_since = clock::now();
        }
        lane.under_way.push_back(UnderWay {
            tag,
            used,
            deadline,
            may_print,
            times: None,
        });
        lane.untold += 1;
        // The session moves bytes again when a buffer is free.
        lane.awaited |= moves_data;
        let tell = lane.untold >= MOST_WITHOUT_WAKER;
        if deadline.is_none() {
            self.number(key)?;
        }
        match tell {
            true => self.tell(key),
            false => Ok(()),
        }
    }

    /// Has the device write the word of a copy, if it has one, behind the copy.
    ///
    /// # Safety
    /// The context is current and the stream live. The region is registered until this is done.
    unsafe fn tell_guest(&self, part: &Part, stream: CUstream) -> Result<(), CallError> {
        let (Some(word), Some(region)) = (part.word, part.region.there()) else {
            return Ok(());
        };
        let (driver, there) = (self.device.driver(), region + word.offset as u64);
        let whole = self.description.attributes.get(WRITES_64_BITS) == Some(&1);
        // SAFETY: the caller's promise; the word lies within the region and is aligned.
        let told = unsafe {
            match whole {
                true => {
                    let code = (driver.stream_write_value64)(stream, there, word.value, 0);
                    check(code, "cuStreamWriteValue64")
                }
                // The half that is the same more often comes first.
                false => [(there + 4, word.value >> 32), (there, word.value)]
                    .into_iter()
                    .try_for_each(|(there, half)| {
                        let code = (driver.stream_write_value32)(stream, there, low(half), 0);
                        check(code, "cuStreamWriteValue32")
                    }),
            }
        };
        told.inspect_err(|error| {
            // The copy is queued, and nobody will know when it is done.
            std::mem::forget(Arc::clone(&part.region));
            self.device.lose(*error);
        })
    }

    /// Has the device write the number of the last work of a stream behind it.
    fn number(&self, key: Key) -> Result<(), CallError> {
        let lane = self.lanes.get(&key).ok_or(GONE)?;
        let Some(last) = lane.under_way.back() else {
            return Ok(());
        };
        let word = self.words_there + (lane.word * size_of::<u32>()) as u64;
        // SAFETY: the context is current, the stream live, and the word this queue's and mapped for the device.
        let code = unsafe {
            (self.device.driver().stream_write_value32)(lane.stream.stream, word, low(last.tag), 0)
        };
        check(code, "cuStreamWriteValue32")
    }

    /// Queues a copy between rows of the same shape.
    ///
    /// # Safety
    /// The context is current and the stream live. Both sides have their bytes until the copy is done.
    unsafe fn copy(&self, from: Side, to: Side, stream: CUstream) -> Result<(), CallError> {
        let driver = self.device.driver();
        let shape = from.rows();
        debug_assert_eq!((shape.width, shape.height), {
            let to = to.rows();
            (to.width, to.height)
        });
        if shape.height > 1 {
            let both = description_of(from, to);
            // SAFETY: the caller's promise; the driver reads the description before it returns.
            let code = unsafe { (driver.memcpy_2d_async)(&raw const both, stream) };
            return check(code, "cuMemcpy2DAsync");
        }
        let bytes = size(shape.width);
        // SAFETY: the caller's promise.
        unsafe {
            match (from, to) {
                (Side::Here(from, _), Side::There(to)) => {
                    let from = from.cast::<c_void>().cast_const();
                    let code = (driver.memcpy_htod_async)(to.address, from, bytes, stream);
                    check(code, "cuMemcpyHtoDAsync")
                }
                (Side::There(from), Side::Here(to, _)) => {
                    let to = to.cast::<c_void>();
                    let code = (driver.memcpy_dtoh_async)(to, from.address, bytes, stream);
                    check(code, "cuMemcpyDtoHAsync")
                }
                (from, to) => {
                    let (to, from) = (to.rows().address, from.rows().address);
                    let code = (driver.memcpy_dtod_async)(to, from, bytes, stream);
                    check(code, "cuMemcpyDtoDAsync")
                }
            }
        }
    }

    /// Queues a fill.
    ///
    /// # Safety
    /// The context is current and the stream live. The rows are allocated until the fill is done.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the low bits of the value, as of a smaller element"
    )]
    unsafe fn fill(
        &self,
        to: Rows,
        value: u32,
        element_bytes: u8,
        stream: CUstream,
    ) -> Result<(), CallError> {
        let driver = self.device.driver();
        let (at, pitch) = (to.address, size(to.pitch));
        let (width, height) = (size(to.width / u64::from(element_bytes)), size(to.height));
        // SAFETY: the caller's promise.
        let code = unsafe {
            match (element_bytes, height) {
                (1, 1) => (driver.memset_d8_async)(at, value as u8, width, stream),
                (2, 1) => (driver.memset_d16_async)(at, value as u16, width, stream),
                (_, 1) => (driver.memset_d32_async)(at, value, width, stream),
                (1, _) => (driver.memset_d2d8_async)(at, pitch, value as u8, width, height, stream),
                (2, _) => {
                    (driver.memset_d2d16_async)(at, pitch, value as u16, width, height, stream)
                }
                _ => (driver.memset_d2d32_async)(at, pitch, value, width, height, stream),
            }
        };
        check(code, "cuMemsetAsync")
    }

    /// Has the waker raised when the work that is queued in a stream now is done.
    fn tell(&mut self, key: Key) -> Result<(), CallError> {
        self.end_row(key)?;
        let Some(lane) = self.lanes.get_mut(&key) else {
            return Ok(());
        };
        lane.untold = 0;
        lane.awaited = false;
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

    fn launch(&mut self, key: Key, launch: &Launch<Function>) -> Result<(), CallError> {
        let driver = self.device.driver();
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
        self.in_row(key, launch.function.function.addr(), |stream| {
            let function = launch.function.function;
            let (code, call) = with_extra(&launch.parameters, |extra| {
                // SAFETY: the context is current; the function's module is unloaded only when this is done; there are as
                // many bytes of parameters as the kernel has, and none of the attributes names an object. The driver copies
                // all of them before it returns.
                unsafe {
                    if launch.attributes.is_empty() {
                        let code = (driver.launch_kernel)(
                            function,
                            gx,
                            gy,
                            gz,
                            bx,
                            by,
                            bz,
                            launch.shared_bytes,
                            stream,
                            ptr::null_mut(),
                            extra,
                        );
                        return (code, "cuLaunchKernel");
                    }
                    let mut attributes = attributes::of(launch);
                    let config = CUlaunchConfig {
                        gridDimX: gx,
                        gridDimY: gy,
                        gridDimZ: gz,
                        blockDimX: bx,
                        blockDimY: by,
                        blockDimZ: bz,
                        sharedMemBytes: launch.shared_bytes,
                        hStream: stream,
                        attrs: attributes.as_mut_ptr().cast(),
                        numAttrs: c_uint::try_from(attributes.len()).unwrap_or(0),
                    };
                    let launch_ex = driver.launch_kernel_ex;
                    let code = launch_ex(&raw const config, function, ptr::null_mut(), extra);
                    (code, "cuLaunchKernelEx")
                }
            });
            check(code, call)
        })
    }

    /// The first work under way in a stream is over, in this way.
    fn first_is_over(&mut self, key: Key, result: Result<(), DeviceError>) -> Option<Done<Buffer>> {
        let lane = self.lanes.get_mut(&key)?;
        let first = lane.under_way.pop_front()?;
        lane.first_since = clock::now();
        lane.awaited &= !lane.under_way.is_empty();
        if first.may_print {
            self.unwritten = Unwritten::Some;
        }
        let lost = self.device.is_lost();
        let row = first
            .times
            .map(|times| self.row_is_over(key, times, result.is_ok() && !lost));
        let (ran, kernels) = row.unwrap_or_default();
        let buffer = match first.used {
            // The device may still write to it; then it is never freed.
            used if lost => {
                std::mem::forget(used);
                None
            }
            Some(Used::Buffer(buffer)) => Some(buffer),
            Some(Used::Region { .. } | Used::Graph { .. }) | None => None,
        };
        Some(Done {
            tag: first.tag,
            buffer,
            result,
            ran,
            kernels,
        })
    }

    /// Has the driver write what kernels that are over have printed.
    fn write_printed(&mut self) {
        let idle = self.lanes.values().all(|lane| lane.under_way.is_empty());
        if self.unwritten == Unwritten::None || (self.unwritten == Unwritten::Asked && !idle) {
            return;
        }
        // An error shows again in the next call that matters.
        let written = self.driver(|queue| match idle {
            true => {
                // SAFETY: the context is current. Nothing is queued, so it does not wait.
                check(
                    unsafe { (queue.device.driver().ctx_synchronize)() },
                    "cuCtxSynchronize",
                )
            }
            false => {
                let empty = match queue.empty.take() {
                    Some(empty) => empty,
                    None => Stream::new(&queue.device, Some((STREAM_NON_BLOCKING, 0)))?,
                };
                let empty = queue.empty.insert(empty);
                // SAFETY: the context is current and the stream live. Nothing is ever queued in it, so it does not wait.
                let code = unsafe { (queue.device.driver().stream_synchronize)(empty.stream) };
                check(code, "cuStreamSynchronize")
            }
        });
        self.unwritten = match (idle, written) {
            (false, Ok(())) => Unwritten::Asked,
            _ => Unwritten::None,
        };
    }

    /// The stream whose first work failed, if any did: the oldest kernel that is first in its stream.
    fn failed(&self) -> Option<Key> {
        let firsts = self.lanes.iter().filter_map(|(key, lane)| {
            let first = lane.under_way.front()?;
            Some((first.deadline.is_none(), first.tag, *key))
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
            let deadline = lane.under_way.front()?.deadline?;
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

/// The address of the bytes of a copy in a region.
fn start_of(part: &Part, row: Rows) -> *mut u8 {
    debug_assert!(part.offset as u64 + row.bytes() <= part.region.view().len() as u64);
    part.region.start().as_ptr().wrapping_add(part.offset)
}

/// One side of a copy.
#[derive(Clone, Copy)]
enum Side {
    /// A buffer on this side, with the bytes of the rows one after the other.
    Here(*mut u8, Rows),
    /// On the device.
    There(Rows),
}

impl Side {
    fn rows(self) -> Rows {
        let (Self::Here(_, rows) | Self::There(rows)) = self;
        rows
    }
}

/// A copy between rows, as the driver has it described.
fn description_of(from: Side, to: Side) -> CUDA_MEMCPY2D {
    let Rows { width, height, .. } = to.rows();
    let mut both = CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
        srcHost: ptr::null(),
        srcDevice: 0,
        srcArray: ptr::null_mut(),
        srcPitch: size(width),
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
        dstHost: ptr::null_mut(),
        dstDevice: 0,
        dstArray: ptr::null_mut(),
        dstPitch: size(width),
        WidthInBytes: size(width),
        Height: size(height),
    };
    match from {
        Side::Here(start, _) => {
            both.srcMemoryType = CUmemorytype::CU_MEMORYTYPE_HOST;
            both.srcHost = start.cast::<c_void>();
        }
        Side::There(rows) => {
            both.srcDevice = rows.address;
            both.srcPitch = size(rows.pitch);
        }
    }
    match to {
        Side::Here(start, _) => {
            both.dstMemoryType = CUmemorytype::CU_MEMORYTYPE_HOST;
            both.dstHost = start.cast::<c_void>();
        }
        Side::There(rows) => {
            both.dstDevice = rows.address;
            both.dstPitch = size(rows.pitch);
        }
    }
    both
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
    type Graph = Graph;
    type Caller = CudaCaller;

    const COPIES_BY_ITSELF: bool = true;
    // Well below the thousand at which a driver waits for room.
    const MOST_WORK: usize = 256;
    const IMAGE_COST: u64 = 1;
    // The driver takes about 1 KiB of this machine's memory for each.
    const MOST_NODES: usize = 1 << 14;

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
        self.driver(|queue| Buffer::new(&queue.device, bytes, HOST_PORTABLE))
    }

    fn make_stream(&mut self, key: Key, flags: u32, priority: i32) -> Result<(), DeviceError> {
        let Some(word) = self.free_words.last().copied() else {
            let text = "as many streams as this session may have are on their way out";
            return Err(DeviceError::new(cuda_result::OUT_OF_MEMORY, text));
        };
        let lane = self.driver(|queue| Lane::new(&queue.device, Some((flags, priority)), word))?;
        self.free_words.pop();
        self.lanes.insert(key, lane);
        Ok(())
    }

    fn drop_stream(&mut self, key: Key) {
        if let Some(lane) = self.lanes.remove(&key) {
            debug_assert!(lane.under_way.is_empty());
            self.free_words.push(lane.word);
        }
    }

    fn make_event(&mut self, key: Key, has_time: bool) -> Result<(), DeviceError> {
        let flags = match has_time {
            true => EVENT_DEFAULT,
            false => EVENT_DISABLE_TIMING,
        };
        let event = self.driver(|queue| Event::new(&queue.device, flags))?;
        self.events.insert(key, event);
        Ok(())
    }

    fn drop_event(&mut self, key: Key) {
        self.events.remove(&key);
    }

    fn elapsed_ns(&mut self, start: Key, end: Key) -> Result<u64, DeviceError> {
        self.driver(
            |queue| match (queue.events.get(&start), queue.events.get(&end)) {
                (Some(start), Some(end)) => start
                    .elapsed_ns(end)
                    .map(|ns| u64::try_from(ns).unwrap_or(0)),
                _ => Ok(0),
            },
        )
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
            device_error(&self.device, error)
        })
    }

    fn cancel(&mut self, _: u64) -> Result<bool, DeviceError> {
        let text = "a GPU cannot end one kernel alone; its deadline ends it";
        Err(DeviceError::new(cuda_result::NOT_SUPPORTED, text))
    }

    fn wake_at_end(&mut self, stream: Key) {
        if let Some(lane) = self.lanes.get_mut(&stream) {
            lane.awaited = true;
        }
    }

    fn before_wait(&mut self) {
        self.end_rows(None);
    }

    fn has_news(&self) -> bool {
        self.done().is_some()
    }

    fn before_sleep(&mut self) {
        let lanes = self.lanes.iter();
        let awaited = lanes.filter(|(_, lane)| lane.awaited && !lane.under_way.is_empty());
        let keys: Vec<Key> = awaited.map(|(key, _)| *key).collect();
        for key in keys {
            // A device that has failed shows that when it is asked what is done.
            let _ = self.driver(|queue| queue.tell(key));
        }
    }

    fn nap(&self, waited: Duration) -> Option<Duration> {
        let mut lanes = self.lanes.values();
        let awaited = lanes.any(|lane| lane.awaited && !lane.under_way.is_empty());
        let by_timer = awaited && waited < LONGEST_NAPPED_WAIT;
        by_timer.then(|| (waited / NAPS).max(LEAST_NAP))
    }

    fn next_done(&mut self) -> Option<Done<Buffer>> {
        if self.prints
            && let Some(capture) = printed::captured()
        {
            capture.look();
        }
        if let Some(key) = self.done() {
            return self.first_is_over(key, Ok(()));
        }
        let failed = self.failed()?;
        if self.device.is_lost() {
            return self.first_is_over(failed, Err(lost(&self.device)));
        }
        let now = clock::now();
        // This thread may have much else to do.
        self.end_rows(now.checked_sub(DRIVER_CHECK_INTERVAL));
        if let Some((late, deadline)) = self.late(now) {
            let ms = deadline.as_millis();
            // Only the end of this process ends it.
            self.device.set_lost();
            self.gone = true;
            return self.first_is_over(
                late,
                Err(DeviceError {
                    code: cuda_result::LAUNCH_TIMEOUT,
                    text: format!("the kernel ran longer than its {ms} ms"),
                    sticky: true,
                }),
            );
        }
        if now.saturating_duration_since(self.looked) < DRIVER_CHECK_INTERVAL {
            return None;
        }
        self.looked = now;
        let error = self.check_streams().err()?;
        // Work finished before the fault has been reported by its number.
        if let Some(key) = self.done() {
            return self.first_is_over(key, Ok(()));
        }
        self.device.lose(error);
        self.first_is_over(failed, Err(lost(&self.device)))
    }

    fn take_printed(&mut self, most: usize) -> (u64, Vec<u8>) {
        self.write_printed();
        let printed = printed::captured().map(|capture| capture.kept().take(most));
        let printed = printed.unwrap_or_default();
        (printed.lost, printed.text)
    }

    fn has_printed(&mut self) -> bool {
        if !self.prints {
            return false;
        }
        self.write_printed();
        printed::captured().is_some_and(|capture| !capture.kept().is_empty())
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
        let attribute = c_int::try_from(attribute).unwrap_or(c_int::MAX);
        self.driver(|queue| {
            let set = queue.device.driver().func_set_attribute;
            // SAFETY: the function is of a loaded module and the context current; what cannot be set is refused.
            check(
                unsafe { set(function.function, attribute, value) },
                "cuFuncSetAttribute",
            )
        })
    }

    fn limit(&mut self, limit: Limit) -> Result<u64, DeviceError> {
        self.driver(|queue| queue.device.limit(limit))
    }

    fn occupancy(
        &mut self,
        function: &Function,
        threads: u32,
        shared_bytes: u64,
        flags: u32,
    ) -> Result<u32, DeviceError> {
        let threads = c_int::try_from(threads).unwrap_or(c_int::MAX);
        let (shared, mut blocks) = (size(shared_bytes), 0);
        self.driver(|queue| {
            let ask = queue.device.driver().occupancy_max_active_blocks;
            // SAFETY: the output is writable, the function is of a loaded module and the context current; sizes and flags
            // that no block can have are refused.
            let code = unsafe { ask(&mut blocks, function.function, threads, shared, flags) };
            check(code, "cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags")
        })?;
        Ok(u32::try_from(blocks).unwrap_or(0))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let deadline = Instant::now() + DRAIN_LIMIT;
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
                Ok(false) if !late => thread::sleep(DRAIN_CHECK_INTERVAL),
                // The device may still use what is under way: nothing of it is freed.
                Ok(false) | Err(_) => self.device.set_lost(),
            }
        }
    }
}
