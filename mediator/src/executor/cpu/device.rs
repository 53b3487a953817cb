//! The processor as a device: PTX by `vgpu-ptx`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Instant;

use vgpu_protocol::op::{
    LaunchAttribute, MAX_ATTRIBUTES, NO_ATTRIBUTE, ParameterPlace, STREAM_FLAGS,
};
use vgpu_protocol::status::ErrorCode;
use vgpu_ptx as ptx;
use vgpu_transport::Waker;

use super::registration::Registration;
use crate::executor::cuda_result;
use crate::executor::gpu::device::{
    self, Answer, Answered, Call, Caller, Description, DeviceError, Done, Key, Layout, Limit, Part,
    Region, Rows, Span, Word,
};

/// Copies and fills of at most this many bytes are done at once if nothing is queued before them: they take
/// no longer than passing them to another thread.
const AT_ONCE: u64 = 512 << 10;

/// Bytes of a piece of a copy from or to a region.
const PIECE: usize = 128 << 10;

/// Bytes that a row counts for beyond its own.
const ROW: u64 = 64;

/// Allocated rows begin at multiples of this many bytes, as on a GPU.
const PITCH: u64 = 512;

type Work = device::Work<Vec<u8>, Function, Infallible>;
type Finished = Done<Vec<u8>>;

/// A device, and the streams that its session's work goes to.
pub(in crate::executor) struct CpuDevice {
    description: Description,
    /// As many as the description says.
    multiprocessors: u32,
    device: ptx::Device,
    /// Where its clock begins.
    origin: Instant,
    /// The default stream, which those share that wait for it, and the others by their keys.
    default: ptx::Stream,
    streams: HashMap<Key, ptx::Stream>,
    events: HashMap<Key, ptx::Event>,
    /// Ends the kernels that are queued, by their tags.
    cancels: HashMap<u64, ptx::Cancel>,
    waker: Arc<Waker>,
    tell: mpsc::Sender<Finished>,
    finished: mpsc::Receiver<Finished>,
}

/// A kernel and the module that it belongs to.
#[derive(Debug, Clone)]
pub(in crate::executor) struct Function {
    module: ptx::Loaded,
    kernel: ptx::Kernel,
    /// More than 48 KiB of shared memory may be asked for.
    shared_opt_in: bool,
}

impl Function {
    /// Blocks of this size that a multiprocessor has at once.
    fn blocks_at_once(&self, block: [u32; 3], shared_bytes: u32) -> u32 {
        let threads = block.iter().fold(1u32, |all, n| all.saturating_mul(*n));
        let opt_in = self.shared_opt_in;
        self.kernel
            .blocks_per_multiprocessor(threads, shared_bytes, opt_in)
    }
}

impl CpuDevice {
    /// A device with this many bytes of memory.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub(super) fn new(name: &str, memory: u64) -> io::Result<Self> {
        let config = ptx::Config {
            memory,
            ..ptx::Config::default()
        };
        let description = description(name, &config);
        let multiprocessors = config.workers;
        let device = ptx::Device::new(config);
        let (tell, finished) = mpsc::channel();
        Ok(Self {
            description,
            multiprocessors,
            origin: Instant::now(),
            default: device.stream(),
            streams: HashMap::new(),
            events: HashMap::new(),
            cancels: HashMap::new(),
            device,
            waker: Arc::new(Waker::new()?),
            tell,
            finished,
        })
    }

    fn stream(&self, key: Key) -> &ptx::Stream {
        self.streams.get(&key).unwrap_or(&self.default)
    }

    fn event(&self, key: Key) -> Result<ptx::Event, DeviceError> {
        let event = self.events.get(&key).cloned();
        event.ok_or_else(|| DeviceError::new(cuda_result::INVALID_VALUE, "an event that is gone"))
    }

    /// Whether a launch asks for all its blocks at once.
    ///
    /// Other attributes have no effect: they are about caches, priorities and an earlier begin, none of which changes what a
    /// kernel computes.
    ///
    /// # Errors
    /// 720 if so and a device with the reported multiprocessors could not have them; 912 for clusters other than those that
    /// the kernel itself asks for, which a device of compute capability 8.0 does not have.
    fn is_cooperative(&self, launch: &device::Launch<Function>) -> Result<bool, DeviceError> {
        let kernel = &launch.function.kernel;
        let mut cooperative = false;
        for attribute in &launch.attributes {
            match attribute.id {
                LaunchAttribute::COOPERATIVE => cooperative = attribute.word(0) != 0,
                LaunchAttribute::CLUSTER_DIMENSION
                | LaunchAttribute::PREFERRED_CLUSTER_DIMENSION => {
                    let cluster = [0, 1, 2].map(|at| attribute.word(at));
                    if cluster != [1; 3] && Some(cluster) != kernel.cluster {
                        let text = format!("clusters of {cluster:?} blocks; this device has none");
                        return Err(DeviceError::new(cuda_result::INVALID_CLUSTER_SIZE, text));
                    }
                }
                _ => {}
            }
        }
        if cooperative {
            let count = |n: [u32; 3]| n.iter().map(|n| u64::from(*n)).product::<u64>();
            let blocks = count(launch.grid);
            let most = u64::from(
                launch
                    .function
                    .blocks_at_once(launch.block, launch.shared_bytes),
            ) * u64::from(self.multiprocessors);
            // A block that cannot be launched at all is refused as such.
            if blocks > most && most > 0 {
                let text = format!("{blocks} blocks at once, of which the device has {most}");
                let code = cuda_result::COOPERATIVE_LAUNCH_TOO_LARGE;
                return Err(DeviceError::new(code, text));
            }
        }
        Ok(cooperative)
    }

    /// Gives work to a stream; `buffer` has its buffer when it is done.
    fn queue(
        &mut self,
        tag: u64,
        stream: Key,
        work: ptx::Work,
        buffer: &Shared,
    ) -> Result<(), DeviceError> {
        let is_launch = matches!(work, ptx::Work::Launch { .. });
        let (tell, waker) = (self.tell.clone(), Arc::clone(&self.waker));
        let origin = self.origin;
        let buffer = Arc::clone(buffer);
        let done = move |done: ptx::Done| {
            let at = |time: Instant| {
                let since = time.saturating_duration_since(origin);
                i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
            };
            let ran = Span {
                began: at(done.began),
                ended: at(done.ended),
            };
            // Nobody listens any more where the session is over.
            let _ = tell.send(Finished {
                tag,
                buffer: take(&buffer),
                result: done.result.map(drop).map_err(error),
                ran: is_launch.then_some(ran),
                kernels: u32::from(is_launch),
            });
            waker.raise();
        };
        self.stream(stream).submit(work, done).map_err(error)
    }
}

impl Drop for CpuDevice {
    fn drop(&mut self) {
        let text = "the session is over";
        self.device
            .kill(ptx::Error::new(ptx::Code::ContextIsDestroyed, text));
    }
}

/// A buffer that is the stream's until its work is done.
type Shared = Arc<Mutex<Option<Vec<u8>>>>;

fn take(buffer: &Shared) -> Option<Vec<u8>> {
    buffer.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Does what is no launch.
fn copy(device: &ptx::Device, work: &mut Work) -> Result<(), ptx::Error> {
    match work {
        Work::Upload { to, buffer } => {
            let bytes = in_buffer(to, buffer);
            device.write_rows(rows(*to), &buffer[..bytes])
        }
        Work::Download { from, buffer } => {
            let bytes = in_buffer(from, buffer);
            device.read_rows(rows(*from), &mut buffer[..bytes])
        }
        Work::FromRegion { to, part } => {
            in_pieces(*to, |piece, at, bytes| {
                read(&part.region, part.offset + at, bytes)?;
                device.write_rows(rows(piece), bytes)
            })?;
            tell(part)
        }
        Work::ToRegion { from, part } => {
            in_pieces(*from, |piece, at, bytes| {
                device.read_rows(rows(piece), bytes)?;
                write(&part.region, part.offset + at, bytes)
            })?;
            tell(part)
        }
        Work::Copy { to, from } => device.copy_rows(rows(*to), rows(*from)),
        Work::Fill {
            to,
            value,
            element_bytes,
        } => device.fill_rows(rows(*to), *value, (*element_bytes).into()),
        Work::Launch(_) | Work::Graph(..) | Work::Record(_) | Work::Wait(_) => {
            unreachable!("that is the stream's")
        }
    }
}

/// Moves one row in pieces: gives each, the bytes before it, and as many bytes for it.
fn in_pieces(
    row: Rows,
    mut moves: impl FnMut(Rows, usize, &mut [u8]) -> Result<(), ptx::Error>,
) -> Result<(), ptx::Error> {
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < row.width {
        let left = usize::try_from(row.width - at).unwrap_or(PIECE);
        let bytes = &mut buffer[..left.min(PIECE)];
        let piece = Rows::range(row.address + at, bytes.len() as u64);
        let before = usize::try_from(at).expect("the region has as many");
        moves(piece, before, bytes)?;
        at += bytes.len() as u64;
    }
    Ok(())
}

fn read(region: &Region, at: usize, bytes: &mut [u8]) -> Result<(), ptx::Error> {
    region
        .view()
        .read_at(at, bytes)
        .map_err(|error| outside(&error))
}

fn write(region: &Region, at: usize, bytes: &[u8]) -> Result<(), ptx::Error> {
    region
        .view()
        .write_at(at, bytes)
        .map_err(|error| outside(&error))
}

/// Writes the word of a copy, if it has one.
fn tell(part: &Part) -> Result<(), ptx::Error> {
    let Some(Word { offset, value }) = part.word else {
        return Ok(());
    };
    let written = part.region.view().store_u64(offset, value);
    written.map_err(|error| outside(&error))
}

fn outside(error: &vchan::Error) -> ptx::Error {
    ptx::Error::new(ptx::Code::InvalidValue, error.to_string())
}

/// Bytes of a buffer that go to rows or come from them: as many as those have.
fn in_buffer(rows: &Rows, buffer: &[u8]) -> usize {
    usize::try_from(rows.bytes()).map_or(buffer.len(), |bytes| bytes.min(buffer.len()))
}

fn rows(rows: Rows) -> ptx::Rows {
    let Rows {
        address,
        pitch,
        width,
        height,
    } = rows;
    ptx::Rows {
        address,
        pitch,
        width,
        height,
    }
}

/// Cost of a copy or fill, as bytes of one long row; `None` for other work.
fn cost(work: &Work) -> Option<u64> {
    match work {
        Work::Upload { to, .. }
        | Work::FromRegion { to, .. }
        | Work::Copy { to, .. }
        | Work::Fill { to, .. } => Some(to),
        Work::Download { from, .. } | Work::ToRegion { from, .. } => Some(from),
        Work::Launch(_) | Work::Graph(..) | Work::Record(_) | Work::Wait(_) => None,
    }
    .map(|rows| rows.bytes().saturating_add(ROW.saturating_mul(rows.height)))
}

/// The buffer of a copy.
fn buffer_of(work: Work) -> Option<Vec<u8>> {
    match work {
        Work::Upload { buffer, .. } | Work::Download { buffer, .. } => Some(buffer),
        _ => None,
    }
}

fn error(error: ptx::Error) -> DeviceError {
    DeviceError {
        code: match error.code {
            ptx::Code::Cancelled => ErrorCode::Cancelled.to_raw(),
            code => i32::try_from(code.number()).unwrap_or(i32::MAX),
        },
        sticky: error.code.is_sticky(),
        text: error.text,
    }
}

impl device::Device for CpuDevice {
    type Buffer = Vec<u8>;
    type Module = ptx::Loaded;
    type Function = Function;
    type Graph = Infallible;
    type Caller = CpuCaller;

    const COPIES_BY_ITSELF: bool = false;
    const MOST_WORK: usize = 1024;
    // Decoded code is much larger than its text.
    const IMAGE_COST: u64 = 16;
    const MOST_NODES: usize = 0;

    fn description(&self) -> &Description {
        &self.description
    }

    fn free_memory(&self) -> Option<u64> {
        let (used, all) = self.device.memory();
        Some(all - used)
    }

    fn buffer(&mut self, bytes: usize) -> Result<Vec<u8>, DeviceError> {
        let mut buffer = Vec::new();
        if buffer.try_reserve_exact(bytes).is_err() {
            let text = format!("no memory for {bytes} bytes on their way");
            return Err(DeviceError::new(cuda_result::OUT_OF_MEMORY, text));
        }
        buffer.resize(bytes, 0);
        Ok(buffer)
    }

    fn make_stream(&mut self, key: Key, flags: u32, _: i32) -> Result<(), DeviceError> {
        if flags & STREAM_FLAGS != 0 {
            self.streams.insert(key, self.device.stream());
        }
        // Others and the default stream wait for each other: they are one.
        Ok(())
    }

    fn drop_stream(&mut self, key: Key) {
        self.streams.remove(&key);
    }

    fn make_event(&mut self, key: Key, _: bool) -> Result<(), DeviceError> {
        self.events.insert(key, ptx::Event::new());
        Ok(())
    }

    fn drop_event(&mut self, key: Key) {
        self.events.remove(&key);
    }

    fn elapsed_ns(&mut self, start: Key, end: Key) -> Result<u64, DeviceError> {
        let (start, end) = (self.event(start)?.time(), self.event(end)?.time());
        let between = end
            .zip(start)
            .map(|(end, start)| end.saturating_duration_since(start));
        Ok(between.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
    }

    fn submit(&mut self, tag: u64, stream: Key, mut work: Work) -> Result<(), DeviceError> {
        let idle = self.stream(stream).pending() == 0;
        if idle && cost(&work).is_some_and(|bytes| bytes <= AT_ONCE + ROW) {
            let result = copy(&self.device, &mut work).map_err(error);
            // Behind what the stream has told of before.
            let _ = self.tell.send(Finished {
                tag,
                buffer: buffer_of(work),
                result,
                ran: None,
                kernels: 0,
            });
            self.waker.raise();
            return Ok(());
        }
        let shared = Shared::default();
        let mut cancel = None;
        let work = match work {
            Work::Launch(launch) => {
                let how = ptx::Launch {
                    shared: launch.shared_bytes,
                    shared_opt_in: launch.function.shared_opt_in,
                    cooperative: self.is_cooperative(&launch)?,
                    deadline: Some(launch.deadline),
                    ..ptx::Launch::new(launch.grid, launch.block)
                };
                cancel = Some(how.cancel.clone());
                ptx::Work::Launch {
                    loaded: launch.function.module,
                    kernel: launch.function.kernel,
                    how,
                    parameters: launch.parameters,
                }
            }
            Work::Graph(graph, _) => match graph {},
            Work::Record(event) => ptx::Work::Record(self.event(event)?),
            Work::Wait(event) => ptx::Work::Wait(self.event(event)?),
            Work::Copy { to, from } => ptx::Work::Copy {
                to: rows(to),
                from: rows(from),
            },
            Work::Fill {
                to,
                value,
                element_bytes,
            } => ptx::Work::Fill {
                to: rows(to),
                value,
                size: element_bytes.into(),
            },
            mut transfer @ (Work::Upload { .. }
            | Work::Download { .. }
            | Work::FromRegion { .. }
            | Work::ToRegion { .. }) => {
                let (device, shared) = (self.device.clone(), Arc::clone(&shared));
                ptx::Work::Host(Box::new(move || {
                    let result = copy(&device, &mut transfer);
                    *shared.lock().unwrap_or_else(PoisonError::into_inner) = buffer_of(transfer);
                    result
                }))
            }
        };
        self.queue(tag, stream, work, &shared)?;
        self.cancels.extend(cancel.map(|cancel| (tag, cancel)));
        Ok(())
    }

    fn cancel(&mut self, tag: u64) -> Result<bool, DeviceError> {
        let cancel = self.cancels.get(&tag);
        cancel.into_iter().for_each(ptx::Cancel::withdraw);
        Ok(cancel.is_some())
    }

    // It is raised after each work.
    fn wake_at_end(&mut self, _: Key) {}

    fn next_done(&mut self) -> Option<Finished> {
        let done = self.finished.try_recv().ok()?;
        self.cancels.remove(&done.tag);
        Some(done)
    }

    fn take_printed(&mut self, most: usize) -> (u64, Vec<u8>) {
        let printed = self.device.take_printed(most);
        (printed.lost, printed.text)
    }

    fn has_printed(&mut self) -> bool {
        self.device.has_printed()
    }

    fn is_gone(&self) -> bool {
        // Its kernels end when they are told to.
        false
    }

    fn waker(&self) -> &Arc<Waker> {
        &self.waker
    }

    fn caller(&self) -> CpuCaller {
        CpuCaller(self.device.clone())
    }

    fn set_attribute(
        &mut self,
        function: &mut Function,
        attribute: u32,
        value: i32,
    ) -> Result<(), DeviceError> {
        let invalid = || {
            let text = format!("attribute {attribute} cannot be {value}");
            Err(DeviceError::new(cuda_result::INVALID_VALUE, text))
        };
        match attribute {
            MAX_DYNAMIC_SHARED => {
                let fixed = function.kernel.shared_bytes;
                let most = SHARED_OPT_IN.saturating_sub(fixed);
                match u32::try_from(value) {
                    Ok(value) if value <= most => {
                        function.shared_opt_in = true;
                        Ok(())
                    }
                    _ => invalid(),
                }
            }
            CARVEOUT if (-1..=100).contains(&value) => Ok(()),
            _ => invalid(),
        }
    }

    fn limit(&mut self, limit: Limit) -> Result<u64, DeviceError> {
        Ok(self.device.limit(of_processor(limit)))
    }

    fn occupancy(
        &mut self,
        function: &Function,
        threads: u32,
        shared_bytes: u64,
        flags: u32,
    ) -> Result<u32, DeviceError> {
        if flags > DISABLE_CACHING_OVERRIDE {
            let text = format!("flags {flags:#x} of an occupancy");
            return Err(DeviceError::new(cuda_result::INVALID_VALUE, text));
        }
        let shared = u32::try_from(shared_bytes).unwrap_or(u32::MAX);
        Ok(function.blocks_at_once([threads, 1, 1], shared))
    }
}

/// Makes the device's calls.
#[derive(Clone)]
pub(in crate::executor) struct CpuCaller(ptx::Device);

impl Caller for CpuCaller {
    type Module = ptx::Loaded;
    type Function = Function;
    type Graph = Infallible;

    const MAY_WAIT: bool = false;

    fn call(
        &self,
        call: Call<ptx::Loaded, Function>,
    ) -> Answered<ptx::Loaded, Function, Infallible> {
        Ok(match call {
            Call::Allocate(bytes) => Answer::Address(self.0.allocate(bytes).map_err(error)?),
            Call::AllocateRows { width, height, .. } => {
                let pitch = width.checked_next_multiple_of(PITCH);
                let bytes = pitch.and_then(|pitch| pitch.checked_mul(height));
                let (Some(pitch), Some(bytes)) = (pitch, bytes) else {
                    let text =
                        format!("{height} rows of {width} bytes are more than any memory has");
                    return Err(DeviceError::new(cuda_result::OUT_OF_MEMORY, text));
                };
                Answer::Rows(self.0.allocate(bytes).map_err(error)?, pitch)
            }
            Call::Free(address) => {
                self.0.free(address).map_err(error)?;
                Answer::Done
            }
            Call::Load(image) => {
                let module = ptx::Module::load(&image).map_err(error)?;
                Answer::Module(self.0.load(&module).map_err(error)?)
            }
            Call::Unload(module) => {
                self.0.unload(&module).map_err(error)?;
                Answer::Done
            }
            Call::Function(module, name) => {
                let kernel = module.module().kernel(&name).map_err(error)?;
                let layout = layout(&kernel, module.module());
                let function = Function {
                    module,
                    kernel,
                    shared_opt_in: false,
                };
                Answer::Function(function, layout)
            }
            Call::Register(mut region) => {
                let registration = Registration::new(&self.0, region.kept()).map_err(error)?;
                let there = registration.there();
                region.hold(registration, there);
                Answer::Registered(region)
            }
            Call::Unregister(region) => {
                drop(region);
                Answer::Done
            }
            Call::Graph(_) => {
                let text = "the processor has no graphs of its own";
                return Err(DeviceError::new(cuda_result::NOT_SUPPORTED, text));
            }
            Call::SetLimit(limit, bytes) => {
                let limit = of_processor(limit);
                self.0.set_limit(limit, bytes).map_err(error)?;
                Answer::Limit(self.0.limit(limit))
            }
            Call::Global(module, name) => {
                let (address, bytes) = module.variable(&name).map_err(error)?;
                Answer::Global(address, bytes)
            }
        })
    }
}

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const MAX_DYNAMIC_SHARED: u32 = 8;
/// `CU_OCCUPANCY_DISABLE_CACHING_OVERRIDE`.
const DISABLE_CACHING_OVERRIDE: u32 = 1;
/// `CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT`.
const CARVEOUT: u32 = 9;
/// Shared memory of a block where a kernel asks for it.
const SHARED_OPT_IN: u32 = 227 << 10;
/// The same where it does not.
const SHARED: u32 = 48 << 10;

fn of_processor(limit: Limit) -> ptx::Limit {
    match limit {
        Limit::Stack => ptx::Limit::Stack,
        Limit::Printed => ptx::Limit::Printed,
        Limit::Heap => ptx::Limit::Heap,
    }
}

fn layout(kernel: &ptx::Kernel, module: &ptx::Module) -> Layout {
    let number = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    let (major, minor) = module.version();
    let (cc_major, cc_minor) = ptx::COMPUTE_CAPABILITY;
    Layout {
        parameter_bytes: kernel.parameter_bytes,
        parameters: kernel
            .parameters
            .iter()
            .map(|parameter| ParameterPlace {
                offset: parameter.offset,
                size: parameter.size,
            })
            .collect(),
        // In the order of CUfunction_attribute.
        attributes: vec![
            number(kernel.max_threads),
            number(kernel.shared_bytes),
            i32::try_from(kernel.const_bytes).unwrap_or(i32::MAX),
            number(kernel.local_bytes),
            number(kernel.registers),
            number(10 * major + minor),
            number(10 * cc_major + cc_minor),
            0,
            number(SHARED.saturating_sub(kernel.shared_bytes)),
            -1,
        ],
    }
}

/// The properties of a device with this many bytes of memory.
pub(super) fn describe(name: &str, memory: u64) -> Description {
    let config = ptx::Config {
        memory,
        ..ptx::Config::default()
    };
    description(name, &config)
}

/// The device's properties, in the terms of a GPU.
fn description(name: &str, config: &ptx::Config) -> Description {
    let (major, minor) = ptx::COMPUTE_CAPABILITY;
    let number = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    // Numbers of CUdevice_attribute.
    let known = [
        (1, 1024), // threads of a block
        (2, 1024), // of a block, x, y, z
        (3, 1024),
        (4, 64),
        (5, i32::MAX), // of a grid, x, y, z
        (6, 65_535),
        (7, 65_535),
        (8, number(SHARED)),          // shared memory of a block
        (9, 64 << 10),                // constant memory
        (10, 32),                     // lanes of a warp
        (11, i32::MAX),               // pitch
        (12, 64 << 10),               // registers of a block
        (13, 1_000_000),              // kHz
        (14, 512),                    // alignment of textures
        (16, number(config.workers)), // multiprocessors
        (19, 1),                      // kernels reach page-locked memory
        (31, 1),                      // kernels at once
        (36, 1_000_000),              // kHz of the memory
        (37, 64),                     // bits of its bus
        (38, 1 << 20),                // level 2 cache
        (39, number(ptx::MULTIPROCESSOR_THREADS)),
        (40, 1),             // copy engines
        (41, 1),             // one address space
        (75, number(major)), // compute capability
        (76, number(minor)),
        (81, number(ptx::MULTIPROCESSOR_SHARED)),
        (82, 64 << 10),              // its registers
        (95, 1),                     // cooperative launches
        (97, number(SHARED_OPT_IN)), // shared memory of a block that asks for it
        (106, number(ptx::MULTIPROCESSOR_BLOCKS)),
        (111, number(ptx::RESERVED_SHARED)),
    ];
    let mut attributes = vec![0; 136];
    attributes[0] = NO_ATTRIBUTE;
    for (attribute, value) in known {
        attributes[attribute] = value;
    }
    debug_assert!(attributes.len() <= MAX_ATTRIBUTES);
    Description {
        name: name.to_owned(),
        uuid: *b"vgpu-ptx on cpu!",
        total_memory: config.memory,
        driver_version: 12_040,
        attributes,
    }
}
