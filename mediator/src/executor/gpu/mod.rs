//! The operations on a device: what the CUDA driver API offers, for one session.
//!
//! | file | job |
//! |---|---|
//! | `device` | what a device of either kind does for this |
//! | `ranges` | which addresses the session may name |
//! | `transfers` | data between the guest's stream and the device |
//! | `regions` | the guest's memory that the device copies from and to |
//! | `modules` | code on the device |
//! | `sources` | code that is compiled first |
//! | `work` | kernels, copies and fills, checked each time that they are about to be done |
//! | `launch_attributes` | which attributes of a launch a guest may give |
//! | `action` | one of these, as the guest named it |
//! | `captures` | streams whose work is recorded |
//! | `recorded` | what was recorded, and the memory that it takes |
//! | `graphs` | graphs of that, and their launches |
//! | `cancel` | kernels that nobody wants any more |
//! | `context_limits` | limits of stacks, heap and printed output |
//! | `handles` | objects by their handles |
//! | `queue` | what the device has to do, and who waits for it |
//! | `pool` | pools of memory that is allocated and freed in the order of a stream |
//! | `streams` | in which order: streams and events |
//! | `busy` | how long the device ran kernels |
//!
//! Everything here is the same for a GPU and for the processor in its place: quotas, handles, the check
//! of every address, waits, and the reporting of failures. Nothing blocks. A request is over when its work
//! is queued; a later failure is reported with the request's number. After an error that ends a
//! context, as on a GPU, everything fails in the same way until the session is over.

mod action;
mod busy;
mod cancel;
mod captures;
mod context_limits;
pub(super) mod device;
mod graphs;
mod handles;
mod launch_attributes;
mod modules;
mod pool;
mod queue;
pub(in crate::executor) mod quota;
mod ranges;
mod recorded;
mod regions;
mod sources;
mod streams;
#[cfg(test)]
mod tests;
mod transfers;
mod work;

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::op::field::{Bytes, StreamRef};
use vgpu_protocol::op::{
    Body, Features, FenceReply, MAX_PRINTED, MemoryAllocateRows, MemoryFreeReply, MemoryInfoReply,
    ModuleCompile, Op, QuietFailure, Request, TakePrintedReply,
};
use vgpu_protocol::session::server::{Failure, Outcome};
use vgpu_protocol::status::ErrorCode;
use vgpu_transport::{Awaited, Waker};

use super::cuda_result;
use crate::compile::Compile;
use crate::policy::Share;
use crate::session::SessionEnd;
use crate::session::backend::{Event, NotOpened};
use crate::usage::Load;
use crate::worker::turns::Turns;
use action::Action;
use busy::{Ahead, Busy};
use captures::Captures;
use context_limits::ContextLimits;
use device::{Device, DeviceError, Rows, Work};
use graphs::{Graphs, Replay};
use modules::Modules;
use pool::MemoryPools;
use queue::{Calling, Held, Purpose, Queued, Reclaim, Wait, Wanted, What};
use quota::{OfGuest, Quota};
use ranges::Ranges;
use regions::Regions;
use sources::{Code, Compiling};
use streams::Streams;
use transfers::{Download, Full, Image, Pool, Upload, bytes_of};

/// `CU_DEVICE_ATTRIBUTE_MAX_PITCH`.
const MAX_PITCH: usize = 11;

/// Copies to the device whose bytes wait in its queue.
const MOST_UPLOADS: usize = 48;

/// Interval of the sign to waiting guests that the device is working.
const BEAT: Duration = Duration::from_millis(500);

/// How long one call of the driver may take before the device counts as lost.
const LONGEST_CALL: Duration = Duration::from_secs(300);

/// The limits of a session on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of device memory.
    pub memory: u64,
    /// Objects of each kind.
    pub objects: u32,
    /// Longest time that a kernel may run.
    pub kernel_time: Duration,
    /// Bytes of the guest's memory that may be mapped and page-locked.
    pub pinned: u64,
}

impl Limits {
    /// Takes what `share` says; no more memory than there is.
    pub(super) fn take(&mut self, share: Share) {
        if let Some(mib) = share.memory_mib {
            self.memory = self.memory.min(u64::from(mib) << 20);
        }
        if let Some(seconds) = share.kernel_timeout_s {
            self.kernel_time = Duration::from_secs(seconds.into());
        }
        if let Some(mib) = share.pinned_mib {
            self.pinned = u64::from(mib) << 20;
        }
        if let Some(most) = share.max_objects {
            self.objects = self.objects.min(most);
        }
    }
}

/// Longest time that a kernel may run where nothing else is said.
pub const KERNEL_TIME: Duration = Duration::from_secs(60);

/// The error of a refused request.
type Refused = Failure;

/// The state of one session on one device.
pub(super) struct Gpu<D: Device> {
    device: D,
    limits: Limits,
    turns: Arc<Turns>,
    /// A work that waits for the session's turn on the device. Nothing is started meanwhile.
    held: Option<Held<D>>,
    /// A graph's launch of which not all is queued. Nothing is started meanwhile.
    replay: Option<Replay<D::Graph>>,
    /// The last work when the device was asked to tell of the end of what is queued in a turn.
    watched: u64,
    quota: Quota,
    ranges: Ranges,
    regions: Regions,
    modules: Modules<D>,
    streams: Streams,
    captures: Captures,
    graphs: Graphs<D::Graph>,
    pools: MemoryPools,
    context_limits: ContextLimits,
    buffers: Pool<D::Buffer>,
    uploads: Vec<Upload<D::Buffer>>,
    downloads: Vec<Download<D::Buffer>>,
    images: Vec<(Image, Code)>,
    /// Images that are whole and have yet to be loaded.
    whole: VecDeque<(Image, Code)>,
    /// Sources that are whole and have yet to be compiled.
    sources: VecDeque<(Image, Box<ModuleCompile>)>,
    /// The source that is being compiled.
    compiling: Option<Compiling>,
    compiler: Option<Arc<dyn Compile>>,
    /// Work on the device, by tag.
    queue: BTreeMap<u64, Queued>,
    last_tag: u64,
    uploads_queued: usize,
    waits: Vec<Wait>,
    /// Objects to free when the work before them is done.
    reclaims: VecDeque<Reclaim<D::Module>>,
    /// An allocation that waits for what is given back.
    short: Option<(u32, Wanted)>,
    /// A call under way in a thread of its own.
    calling: Option<Calling<D>>,
    events: VecDeque<Event>,
    /// Failures that no Fence has told.
    failures: FenceReply,
    /// Kernels ended at their deadline so far.
    kernels_killed: u64,
    /// The error for every request since the context ended.
    fault: Option<Failure>,
    /// The guest is being told that kernels have printed something.
    printed: bool,
    lost: bool,
    busy: Busy,
    ahead: Ahead,
    /// Nanoseconds of it not reported in an answer yet.
    untold_ns: u64,
    beat: Instant,
}

impl<D: Device> std::fmt::Debug for Gpu<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu")
            .field("quota", &self.quota)
            .field("queue", &self.queue.len())
            .finish_non_exhaustive()
    }
}

/// Whether an operation is about the device.
fn is_on_device(op: Op) -> bool {
    let features = op.spec().map_or(Features::NONE, |spec| spec.feature);
    features.contains(Features::GPU) || features.contains(Features::REGIONS)
}

fn refused(code: ErrorCode, text: impl Into<String>) -> Refused {
    Failure {
        status: code.into(),
        text: text.into(),
    }
}

fn invalid(text: impl Into<String>) -> Refused {
    Failure::from(&DeviceError::new(cuda_result::INVALID_VALUE, text))
}

impl<D: Device> Awaited for Gpu<D> {
    fn waker(&self) -> &Waker {
        self.device.waker()
    }

    fn has_come(&self) -> bool {
        self.device.waker().is_raised() || self.device.has_news()
    }

    fn arm(&mut self) {
        self.device.before_sleep();
    }

    fn nap(&self, waited: Duration) -> Option<Duration> {
        self.device.nap(waited)
    }
}

impl<D: Device> Drop for Gpu<D> {
    fn drop(&mut self) {
        self.turns.close();
    }
}

impl<D: Device> Gpu<D> {
    pub(super) fn new(
        device: D,
        limits: Limits,
        guest: Option<OfGuest>,
        turns: &Arc<Turns>,
    ) -> Self {
        turns.open(device.waker());
        Self {
            device,
            limits,
            turns: Arc::clone(turns),
            held: None,
            replay: None,
            watched: 0,
            quota: Quota::new(limits.memory, guest),
            ranges: Ranges::default(),
            regions: Regions::new(limits.objects),
            modules: Modules::new(limits.objects),
            streams: Streams::new(limits.objects),
            captures: Captures::default(),
            graphs: Graphs::new(limits.objects),
            pools: MemoryPools::new(limits.objects),
            context_limits: ContextLimits::default(),
            buffers: Pool::default(),
            uploads: Vec::new(),
            downloads: Vec::new(),
            images: Vec::new(),
            whole: VecDeque::new(),
            sources: VecDeque::new(),
            compiling: None,
            compiler: None,
            queue: BTreeMap::new(),
            last_tag: 0,
            uploads_queued: 0,
            waits: Vec::new(),
            reclaims: VecDeque::new(),
            short: None,
            calling: None,
            events: VecDeque::new(),
            failures: FenceReply::default(),
            kernels_killed: 0,
            fault: None,
            printed: false,
            lost: false,
            busy: Busy::default(),
            ahead: Ahead::default(),
            untold_ns: 0,
            beat: Instant::now(),
        }
    }

    /// Whether nothing of a session is left on the device.
    #[cfg(test)]
    pub(super) fn is_unused(&self) -> bool {
        self.quota.used() == 0 && self.queue.is_empty() && self.reclaims.is_empty()
    }

    /// Takes a request that is about the device; gives back what is not.
    pub(super) fn start(&mut self, header: &FrameHeader, request: Request) -> Result<(), Request> {
        let id = header.request_id;
        let outcome = match request {
            Request::MemoryInfo(_) => Ok(Some(self.memory_info())),
            // Also of a kernel that failed: that may be what it has to say about it.
            Request::TakePrinted(_) => Ok(Some(self.take_printed())),
            other if !is_on_device(other.op()) => return Err(other),
            request => match &self.fault {
                Some(fault) => Err(fault.clone()),
                None => self.begin(id, header.lane, request),
            },
        };
        match outcome {
            Ok(Some(body)) => self.done(id, Ok(body)),
            Ok(None) => {}
            Err(failure) => self.done(id, Err(failure)),
        }
        Ok(())
    }

    /// Begins what needs a context that is sound: the body of its reply, where it is over at once.
    fn begin(&mut self, id: u32, lane: u16, request: Request) -> Result<Option<Vec<u8>>, Refused> {
        match request {
            Request::MemoryAllocate(allocate) => {
                self.check_mode(lane)?;
                self.allocate(id, Wanted::Bytes(allocate.bytes.get()))
            }
            Request::MemoryAllocateRows(rows) => {
                self.check_mode(lane)?;
                self.allocate_rows(id, &rows)
            }
            Request::MemoryFree(free) => self.free(id, free.address),
            Request::MemoryAllocateAsync(allocate) => self.allocate_async(id, &allocate),
            Request::MemoryFreeAsync(free) => self.free_async(id, &free),
            Request::MemoryPoolCreate(create) => self.pool_create(&create),
            Request::MemoryPoolDestroy(destroy) => self.pool_destroy(destroy.pool),
            Request::MemoryPoolInfo(info) => self.pool_info(info.pool),
            Request::MemoryPoolSetAttribute(set) => self.pool_set_attribute(&set),
            Request::MemoryPoolTrim(trim) => self.pool_trim(&trim),
            Request::CopyToDevice(copy) => {
                let to = Rows::range(copy.to, copy.bytes.get());
                self.copy_to(id, Op::CopyToDevice, to, copy.stream)
            }
            Request::CopyRowsToDevice(copy) => {
                let to = self.rows(copy.to, copy.pitch, copy.width, copy.height)?;
                self.copy_to(id, Op::CopyRowsToDevice, to, copy.stream)
            }
            Request::CopyFromDevice(copy) => {
                let from = Rows::range(copy.from, copy.bytes.get());
                self.copy_from(id, Op::CopyFromDevice, from, copy.stream)
            }
            Request::CopyRowsFromDevice(copy) => {
                let from = self.rows(copy.from, copy.pitch, copy.width, copy.height)?;
                self.copy_from(id, Op::CopyRowsFromDevice, from, copy.stream)
            }
            Request::RegionMap(map) => self.region_map(id, &map),
            Request::RegionUnmap(unmap) => self.region_unmap(id, unmap.region),
            Request::CopyFromRegion(copy) => self.copy_from_region(id, &copy),
            Request::CopyToRegion(copy) => self.copy_to_region(id, &copy),
            Request::CopyWithinDevice(copy) => {
                let bytes = copy.bytes.get();
                let (to, from) = (Rows::range(copy.to, bytes), Rows::range(copy.from, bytes));
                let action = Ok(Action::Copy { to, from });
                self.act(id, Op::CopyWithinDevice, copy.stream, action)
            }
            Request::CopyRowsWithinDevice(copy) => {
                let to = self.rows(copy.to, copy.to_pitch, copy.width, copy.height);
                let from = self.rows(copy.from, copy.from_pitch, copy.width, copy.height);
                let action = to.and_then(|to| Ok(Action::Copy { to, from: from? }));
                self.act(id, Op::CopyRowsWithinDevice, copy.stream, action)
            }
            Request::FillRange(fill) => {
                let action = Ok(Self::fill_range(&fill));
                self.act(id, Op::FillRange, fill.stream, action)
            }
            Request::FillRows(fill) => {
                let action = self.fill_rows(&fill);
                self.act(id, Op::FillRows, fill.stream, action)
            }
            Request::Launch(launch) => {
                let stream = launch.stream;
                self.act(id, Op::Launch, stream, Ok(Action::Launch(launch)))
            }
            Request::StreamCancel(cancel) => self.stream_cancel(&cancel),
            Request::StreamBeginCapture(begin) => self.begin_capture(lane, &begin),
            Request::StreamEndCapture(end) => self.end_capture_to_graph(lane, &end),
            Request::StreamCaptureInfo(info) => self.capture_info(&info),
            Request::GraphInstantiate(instantiate) => self.graph_instantiate(id, &instantiate),
            Request::GraphLaunch(launch) => self.graph_launch(id, &launch),
            Request::GraphDestroy(destroy) => self.graph_destroy(destroy.graph),
            Request::GraphExecDestroy(destroy) => self.graph_exec_destroy(id, destroy.exec),
            Request::ModuleLoad(load) => self.load(id, &load),
            Request::ModuleCompile(compile) => self.compile(id, compile),
            Request::ModuleUnload(unload) => self.unload(id, unload.module),
            Request::ModuleFunction(lookup) => self.function(id, lookup),
            Request::ModuleGlobal(lookup) => self.global(id, lookup),
            Request::ContextLimit(asked) => self.context_limit(&asked),
            Request::ContextSetLimit(set) => self.context_set_limit(id, &set),
            Request::FunctionOccupancy(asked) => self.occupancy(&asked),
            Request::FunctionSetAttribute(set) => self.set_attribute(&set),
            Request::Synchronize(_) => self.synchronize(id),
            Request::StreamSynchronize(wait) => self.stream_synchronize(id, wait.stream),
            Request::StreamCreate(create) => self.stream_create(&create),
            Request::StreamDestroy(destroy) => self.stream_destroy(id, destroy.stream),
            Request::StreamQuery(query) => self.stream_query(query.stream),
            Request::StreamWaitEvent(wait) => self.stream_wait_event(id, &wait),
            Request::EventCreate(create) => self.event_create(&create),
            Request::EventDestroy(destroy) => self.event_destroy(id, destroy.event),
            Request::EventRecord(record) => self.event_record(id, &record),
            Request::EventQuery(query) => self.event_query(query.event),
            Request::EventSynchronize(wait) => self.event_synchronize(id, wait.event),
            Request::EventElapsed(elapsed) => self.event_elapsed(&elapsed),
            other => {
                let text = format!("{} is not known here", other.op());
                Err(refused(ErrorCode::Unsupported, text))
            }
        }
    }

    /// A request is over; 0 stands for one that nobody waits for any more.
    fn done(&mut self, id: u32, outcome: Outcome) {
        if id != 0 {
            self.events.push_back(Event::Done(id, outcome));
        }
    }

    fn memory_info(&self) -> Vec<u8> {
        let own = self.quota.left();
        let free = self.device.free_memory().map_or(own, |all| all.min(own));
        let total = self.limits.memory;
        MemoryInfoReply { free, total }.encode()
    }

    fn take_printed(&mut self) -> Vec<u8> {
        self.take_done();
        let (lost, text) = self.device.take_printed(MAX_PRINTED);
        self.tell_printed();
        let text = Bytes::new(&text).expect("no more than was asked for");
        TakePrintedReply { lost, text }.encode()
    }

    /// Has replies say whether kernels have printed something.
    pub(in crate::executor::gpu) fn tell_printed(&mut self) {
        let printed = self.device.has_printed();
        if printed != self.printed {
            self.printed = printed;
            self.events.push_back(Event::Printed(printed));
        }
    }

    /// Counts `bytes` to the quota, before anybody is asked for them.
    fn count(&mut self, bytes: u64, what: &str) -> Result<(), Refused> {
        match self.quota.take(bytes) {
            true => Ok(()),
            false => Err(self.too_much(bytes, what)),
        }
    }

    fn too_much(&self, bytes: u64, what: &str) -> Refused {
        let total = self.limits.memory;
        let left = self.quota.left();
        let text = format!("{what} needs {bytes} bytes; {left} are left of {total}");
        refused(ErrorCode::QuotaMemory, text)
    }

    fn allocate(&mut self, id: u32, wanted: Wanted) -> Result<Option<Vec<u8>>, Refused> {
        let outcome = self.try_allocate(id, wanted);
        if self.short.is_some() {
            self.go_on();
        }
        outcome
    }

    /// Whether one more allocation may be there.
    fn check_allocations(&self) -> Result<(), Refused> {
        let most = self.limits.objects;
        if self.ranges.allocations() < most as usize {
            return Ok(());
        }
        let text = format!("{most} allocations are there, and no more are allowed");
        Err(refused(ErrorCode::QuotaHandles, text))
    }

    /// Allocates, or has the allocation wait in `short` for what is given back.
    fn try_allocate(&mut self, id: u32, wanted: Wanted) -> Result<Option<Vec<u8>>, Refused> {
        self.check_allocations()?;
        match self.count(wanted.counted(), "an allocation") {
            Ok(()) => self.call(Purpose::Allocate { id, wanted }, wanted.call()),
            // What the pools do not use, and what is about to be given back, may do.
            Err(_) if self.release_all() || !self.reclaims.is_empty() => {
                self.short = Some((id, wanted));
            }
            Err(refused) => return Err(refused),
        }
        Ok(None)
    }

    fn allocate_rows(
        &mut self,
        id: u32,
        rows: &MemoryAllocateRows,
    ) -> Result<Option<Vec<u8>>, Refused> {
        if ![4, 8, 16].contains(&rows.element_bytes) {
            return Err(invalid(format!(
                "elements of {} bytes, where a device reads 4, 8 or 16 at once",
                rows.element_bytes
            )));
        }
        let wanted = Wanted::Rows {
            width: rows.width.get(),
            height: rows.height.get(),
            element_bytes: rows.element_bytes,
        };
        self.allocate(id, wanted)
    }

    fn free(&mut self, id: u32, address: u64) -> Result<Option<Vec<u8>>, Refused> {
        self.free_in(id, address, None)?;
        Ok(Some(MemoryFreeReply {}.encode()))
    }

    /// Rows that a copy or fill names: with a pitch that the driver takes, whoever owns them.
    fn rows(
        &self,
        address: u64,
        pitch: u64,
        width: NonZeroU64,
        height: NonZeroU64,
    ) -> Result<Rows, Refused> {
        let width = width.get();
        let attributes = &self.device.description().attributes;
        let most = attributes.get(MAX_PITCH).copied().unwrap_or(0);
        let most = u64::try_from(most).ok().filter(|most| *most > 0);
        if pitch < width || most.is_some_and(|most| pitch > most) {
            return Err(invalid(format!(
                "rows of {width} bytes every {pitch}, where a device takes distances from their length to {}",
                most.unwrap_or(u64::MAX)
            )));
        }
        Ok(Rows {
            address,
            pitch,
            width,
            height: height.get(),
        })
    }

    fn copy_to(
        &mut self,
        id: u32,
        op: Op,
        to: Rows,
        stream: StreamRef,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let stream = self.live(stream)?;
        self.ranges.check_rows(to).map_err(invalid)?;
        let (upload, room) = Upload::new(id, op, stream, to, &mut self.buffers);
        if room > 0 {
            self.events.push_back(Event::Room(id, room));
        }
        self.uploads.push(upload);
        Ok(None)
    }

    fn copy_from(
        &mut self,
        id: u32,
        op: Op,
        from: Rows,
        stream: StreamRef,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let stream = self.live(stream)?;
        self.ranges.check_rows(from).map_err(invalid)?;
        let download = Download::new(id, op, stream, from, &mut self.buffers);
        self.downloads.push(download);
        self.ask_for_more(id);
        Ok(None)
    }

    /// The reply to work that has nothing more to say.
    fn answer(op: Op) -> Vec<u8> {
        debug_assert!(op.check_reply(&[]).is_ok());
        Vec::new()
    }

    /// Requests more of a download from the device, as far as there are buffers.
    fn ask_for_more(&mut self, id: u32) {
        loop {
            let Some(download) = self.downloads.iter_mut().find(|d| d.id == id) else {
                return;
            };
            let next = match download.next(&mut self.device, &mut self.buffers) {
                Ok(None) => return,
                Ok(Some(next)) => next,
                Err(error) => return self.fail_transfer(id, &error),
            };
            let stream = download.stream;
            let (from, buffer) = next;
            let what = What::Download(id, bytes_of(from));
            if let Err(failure) = self.submit(what, stream, Work::Download { from, buffer }) {
                return self.end_transfer(id, Err(failure));
            }
        }
    }

    fn fail_transfer(&mut self, id: u32, error: &DeviceError) {
        let failure = self.failure(id, error);
        self.end_transfer(id, Err(failure));
    }

    /// A copy or an image is over.
    fn end_transfer(&mut self, id: u32, outcome: Outcome) {
        if self.forget_transfer(id) {
            self.done(id, outcome);
        }
    }

    /// Returns whether there was one.
    fn forget_transfer(&mut self, id: u32) -> bool {
        if let Some(at) = self.uploads.iter().position(|upload| upload.id == id) {
            self.uploads.swap_remove(at).end(&mut self.buffers);
        } else if let Some(at) = self.downloads.iter().position(|d| d.id == id) {
            self.downloads.swap_remove(at).end(&mut self.buffers);
        } else if let Some(at) = self.images.iter().position(|(image, _)| image.id == id) {
            let (image, code) = self.images.swap_remove(at);
            self.spoil_image(&image, &code, ErrorCode::Cancelled, "its data never came");
        } else {
            return false;
        }
        true
    }

    pub(super) fn input(&mut self, id: u32) -> &mut [u8] {
        if let Some(at) = self.images.iter().position(|(image, _)| image.id == id) {
            return self.images[at].0.room();
        }
        let Some(at) = self.uploads.iter().position(|upload| upload.id == id) else {
            return &mut [];
        };
        // Looked at once more, as the borrow of the failing case would last.
        let failed = self.uploads[at]
            .room(&mut self.device, &mut self.buffers)
            .err();
        if let Some(error) = failed {
            self.fail_transfer(id, &error);
            return &mut [];
        }
        let room = self.uploads[at].room(&mut self.device, &mut self.buffers);
        room.unwrap_or_default()
    }

    pub(super) fn filled(&mut self, id: u32, n: usize) {
        if let Some(at) = self.images.iter().position(|(image, _)| image.id == id) {
            self.images[at].0.filled(n);
            if self.images[at].0.is_over() {
                match self.images.swap_remove(at) {
                    (image, Code::Source(compile)) => self.sources.push_back((image, compile)),
                    image => self.whole.push_back(image),
                }
                self.go_on();
            }
            return;
        }
        let Some(upload) = self.uploads.iter_mut().find(|upload| upload.id == id) else {
            return;
        };
        let Some(full) = upload.filled(n) else {
            return;
        };
        let (over, op, stream) = (upload.is_over(), upload.op, upload.stream);
        let Full { to, buffer } = full;
        let what = What::Upload {
            id,
            op,
            bytes: to.bytes(),
        };
        match self.submit(what, stream, Work::Upload { to, buffer }) {
            Ok(()) if over => self.end_transfer(id, Ok(Self::answer(op))),
            Ok(()) => {}
            Err(failure) => self.end_transfer(id, Err(failure)),
        }
    }

    pub(super) fn output(&mut self, id: u32) -> &[u8] {
        let download = self.downloads.iter().find(|download| download.id == id);
        download.map_or(&[], Download::output)
    }

    pub(super) fn sent(&mut self, id: u32, n: usize) {
        let Some(download) = self.downloads.iter_mut().find(|d| d.id == id) else {
            return;
        };
        download.sent(n, &mut self.buffers);
        if download.is_over() {
            let op = download.op;
            let body = self.told_time(op);
            self.end_transfer(id, Ok(body));
        } else {
            self.ask_for_more(id);
        }
    }

    pub(super) fn cancel(&mut self, id: u32) {
        self.forget_transfer(id);
        self.waits.retain(|wait| wait.id != id);
        if self.short.is_some_and(|(short, _)| short == id) {
            self.short = None;
        }
        if let Some(calling) = &mut self.calling {
            calling.purpose.forget(id);
        }
        self.whole.retain(|(image, _)| image.id != id);
        self.sources.retain(|(image, _)| image.id != id);
        if let Some(compiling) = self.compiling.as_mut().filter(|it| it.id == id) {
            compiling.id = 0;
        }
        let held = self.held.take_if(|held| held.id == id).is_some();
        if held || self.replay.take_if(|replay| replay.id == id).is_some() {
            self.turns.forget();
        }
        self.events.retain(|event| event.request() != Some(id));
    }

    /// Whether a request has work that is not in the device's queue yet.
    fn has_unqueued(&self) -> bool {
        self.held.is_some() || self.replay.is_some()
    }

    /// Whether another request may be started.
    pub(super) fn may_start(&self) -> bool {
        self.calling.is_none()
            && !self.has_unqueued()
            && self.short.is_none()
            && self.whole.is_empty()
            && self.queue.len() < D::MOST_WORK
            && self.uploads_queued < MOST_UPLOADS
    }

    /// The source of its next event; `None` while nothing is under way.
    pub(super) fn awaited(&mut self) -> Option<&mut dyn Awaited> {
        self.device.before_wait();
        let idle = self.queue.is_empty()
            && self.calling.is_none()
            && self.compiling.is_none()
            && !self.has_unqueued();
        match idle || self.lost {
            true => None,
            false => Some(self),
        }
    }

    /// The next event, after polling the device.
    pub(super) fn next_event(&mut self) -> Option<Event> {
        if self.events.is_empty() {
            // Before the look at what it was raised for.
            self.device.waker().lower();
            self.look();
        }
        self.events.pop_front()
    }

    /// Its holdings and waiting work.
    pub(super) fn standing(&self) -> Load {
        let of_graph = self.replay.as_ref().map_or(0, Replay::left);
        let unqueued = usize::from(self.held.is_some()) + of_graph;
        Load {
            memory: self.quota.used(),
            memory_limit: self.limits.memory,
            queued: (self.queue.len() + unqueued) as u64,
            kernels_killed: self.kernels_killed,
        }
    }

    /// The failures that no Fence has told.
    pub(super) fn take_failures(&mut self) -> FenceReply {
        if !self.failures.is_empty() {
            self.events.push_back(Event::Failures(false));
        }
        std::mem::take(&mut self.failures)
    }

    /// The answer to request `id` after an error, which may have ended the context.
    fn failure(&mut self, id: u32, error: &DeviceError) -> Failure {
        if let Some(fault) = &self.fault {
            return fault.clone();
        }
        if !error.sticky {
            return Failure::from(error);
        }
        // A device tells of a kernel's fault by whatever is called next.
        self.take_done();
        let mut queued = self.queue.values();
        if let Some((kernel, op)) = queued.find_map(Queued::kernel) {
            self.failed_late(kernel, op, error);
        }
        match &self.fault {
            Some(fault) => fault.clone(),
            None => {
                let failure = Failure::from(error);
                self.end_context(failure.clone(), Some(id));
                failure
            }
        }
    }

    /// Request `id` has failed after it was answered.
    fn failed_late(&mut self, id: u32, op: Op, error: &DeviceError) {
        if self.fault.is_some() {
            return;
        }
        let status = error.status();
        self.kernels_killed += u64::from(error.code == cuda_result::LAUNCH_TIMEOUT);
        self.failures.add(QuietFailure {
            request_id: id,
            op,
            status,
        });
        self.events.push_back(Event::FailedLater(op));
        self.events.push_back(Event::Failures(true));
        if error.sticky {
            let text = format!("{op}, request {id}, failed: {}", error.text);
            self.end_context(Failure { status, text }, None);
        }
    }

    /// From here on everything is answered with `fault`; so is all that is under way, but `except`.
    fn end_context(&mut self, fault: Failure, except: Option<u32>) {
        self.fault = Some(fault.clone());
        let held = self.held.take().map(|held| held.id);
        let replay = self.replay.take().map(|replay| replay.id);
        if let Some(id) = held.or(replay) {
            self.turns.forget();
            if Some(id) != except {
                self.done(id, Err(fault.clone()));
            }
        }
        let mut under_way: Vec<u32> = self.waits.drain(..).map(|wait| wait.id).collect();
        under_way.extend(self.short.take().map(|(id, _)| id));
        under_way.extend(self.whole.drain(..).map(|(image, _)| image.id));
        under_way.extend(self.sources.drain(..).map(|(image, _)| image.id));
        let compiling = self.compiling.as_mut();
        under_way.extend(
            compiling
                .map(|it| std::mem::take(&mut it.id))
                .filter(|id| *id != 0),
        );
        under_way.extend(self.uploads.iter().map(|upload| upload.id));
        under_way.extend(self.downloads.iter().map(|download| download.id));
        under_way.extend(self.images.iter().map(|(image, _)| image.id));
        if let Some(calling) = &mut self.calling {
            under_way.extend(calling.purpose.take_id());
        }
        for id in under_way.into_iter().filter(|id| Some(*id) != except) {
            self.forget_transfer(id);
            self.done(id, Err(fault.clone()));
        }
    }

    /// The device answers no more: the session is over.
    fn lose(&mut self, text: &str) {
        self.lost = true;
        self.events.push_back(Event::Lost(Box::new(NotOpened {
            code: ErrorCode::BackendLost,
            text: text.to_owned(),
            end: SessionEnd::ExecutorLost(text.to_owned()),
        })));
    }
}
