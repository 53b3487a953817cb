//! The queue of a session's work on a device, in order, and the requests that wait for it.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use vgpu_protocol::handle::Handle;
use vgpu_protocol::op::field::{PoolRef, StreamRef};
use vgpu_protocol::op::{
    Body, CopyFromDeviceReply, CopyRowsFromDeviceReply, EventSynchronizeReply,
    MemoryAllocateAsyncReply, MemoryAllocateReply, MemoryAllocateRowsReply, Op,
    StreamSynchronizeReply, SynchronizeReply,
};
use vgpu_protocol::session::server::Failure;
use vgpu_protocol::status::ErrorCode;
use vgpu_transport::clock;

use super::super::cuda_result;
use super::device::{
    Answer, AnsweredOf, Call, CallOf, Caller, Device, DeviceError, Done, Key, Limit, Region, Span,
    WorkOf,
};
use super::ranges::{GRAIN, PoolBlock, counted};
use super::{BEAT, Event, Gpu, LONGEST_CALL, Refused};

/// Work in the queue: what for.
#[derive(Debug)]
pub(super) struct Queued {
    what: What,
    stream: Key,
}

impl Queued {
    /// Where it is queued.
    pub(super) fn stream(&self) -> Key {
        self.stream
    }

    /// The request of a launch.
    pub(super) fn kernel(&self) -> Option<(u32, Op)> {
        match self.what {
            What::InTurn(id, op @ (Op::Launch | Op::GraphLaunch)) => Some((id, op)),
            What::Graph(id, _) => Some((id, Op::GraphLaunch)),
            _ => None,
        }
    }

    /// The request that launched the graph that it is of.
    pub(super) fn graph(&self) -> Option<u32> {
        match self.what {
            What::InTurn(id, Op::GraphLaunch)
            | What::Other(id, Op::GraphLaunch)
            | What::Graph(id, _) => Some(id),
            _ => None,
        }
    }

    /// Whether it has the device only in its session's turn: what moves data to and from it is no part of that.
    fn takes_turn(&self) -> bool {
        matches!(self.what, What::InTurn(..) | What::Graph(..))
    }
}

/// The purpose of a piece of work.
#[derive(Debug)]
pub(super) enum What {
    /// This many bytes of this upload.
    Upload { id: u32, op: Op, bytes: u64 },
    /// This many bytes of this download.
    Download(u32, usize),
    /// The work of a session's turn; its request was answered when this was queued.
    InTurn(u32, Op),
    /// The same, for a launch of a graph as a whole.
    Graph(u32, Handle),
    /// A request that was answered when this was queued.
    Other(u32, Op),
}

/// A work that the device has not been given.
pub(super) struct Held<D: Device> {
    pub(super) id: u32,
    op: Op,
    stream: Key,
    work: WorkOf<D>,
    /// The body of the reply once it has.
    reply: Vec<u8>,
}

impl<D: Device> Held<D> {
    /// Whether it is a kernel for this stream.
    pub(super) fn is_kernel_in(&self, stream: Key) -> bool {
        self.op == Op::Launch && self.stream == stream
    }
}

/// Someone who waits.
#[derive(Debug)]
pub(super) struct Wait {
    pub(super) id: u32,
    op: Op,
    until: Until,
}

/// The device's progress that a request waits for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    /// Everything up to this tag is done.
    All(u64),
    /// Everything of this stream up to this tag.
    Stream(Key, u64),
    /// This one work.
    Work(u64),
}

/// The memory that an allocation requests.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted {
    Bytes(u64),
    /// So many bytes, which are a pool's.
    FromPool(u64, PoolRef),
    Rows {
        width: u64,
        height: u64,
        element_bytes: u8,
    },
}

impl Wanted {
    /// Bytes counted to the quota before the device is asked. For rows only the driver's answer has
    /// the pitch: so far every driver has returned the next multiple of [`GRAIN`].
    pub(super) fn counted(self) -> u64 {
        let bytes = match self {
            Self::Bytes(bytes) | Self::FromPool(bytes, _) => Some(bytes),
            Self::Rows { width, height, .. } => {
                let pitch = width.checked_next_multiple_of(GRAIN);
                pitch.and_then(|pitch| pitch.checked_mul(height))
            }
        };
        bytes.and_then(counted).unwrap_or(u64::MAX)
    }

    pub(super) fn call<M, F>(self) -> Call<M, F> {
        match self {
            Self::Bytes(bytes) => Call::Allocate(bytes),
            // All of the block is used by some allocation sooner or later.
            Self::FromPool(..) => Call::Allocate(self.counted()),
            Self::Rows {
                width,
                height,
                element_bytes,
            } => Call::AllocateRows {
                width,
                height,
                element_bytes,
            },
        }
    }
}

/// Something that is given back when the queue is done up to a tag.
#[derive(Debug)]
pub(super) struct Reclaim<M> {
    /// Request that gave it back.
    id: u32,
    op: Op,
    until: u64,
    what: Given<M>,
    /// Bytes of the quota that are free then.
    counted: u64,
}

#[derive(Debug)]
enum Given<M> {
    Memory(u64),
    Module(M),
    Stream(Key),
    Event(Key),
    Region(Arc<Region>),
}

impl<M> Reclaim<M> {
    pub(super) fn memory(id: u32, until: u64, address: u64, bytes: u64) -> Self {
        Self {
            id,
            op: Op::MemoryFree,
            until,
            what: Given::Memory(address),
            counted: counted(bytes).unwrap_or(0),
        }
    }

    pub(super) fn stream(id: u32, until: u64, stream: Key) -> Self {
        Self {
            id,
            op: Op::StreamDestroy,
            until,
            what: Given::Stream(stream),
            counted: 0,
        }
    }

    pub(super) fn region(id: u32, until: u64, region: Arc<Region>) -> Self {
        Self {
            id,
            op: Op::RegionUnmap,
            until,
            what: Given::Region(region),
            counted: 0,
        }
    }

    pub(super) fn event(id: u32, until: u64, event: Key) -> Self {
        Self {
            id,
            op: Op::EventDestroy,
            until,
            what: Given::Event(event),
            counted: 0,
        }
    }

    pub(super) fn module(id: u32, until: u64, module: M, counted: u64) -> Self {
        Self {
            id,
            op: Op::ModuleUnload,
            until,
            what: Given::Module(module),
            counted,
        }
    }
}

/// The purpose of a call; the request is 0 once nobody waits for it.
#[derive(Debug)]
pub(super) enum Purpose {
    Allocate {
        id: u32,
        wanted: Wanted,
    },
    Reclaim {
        id: u32,
        op: Op,
        counted: u64,
    },
    Load {
        id: u32,
        module: Handle,
        /// Messages of the compiler that has made its image.
        log: Option<String>,
    },
    Function {
        id: u32,
        module: Handle,
        name: String,
    },
    Global {
        id: u32,
        module: Handle,
    },
    Map {
        id: u32,
        region: Handle,
        bytes: u64,
    },
    /// The device's own graph for `exec`, with its number of nodes and its deadline.
    Graph {
        id: u32,
        exec: Handle,
        nodes: usize,
        deadline: Duration,
    },
    /// A limit, for which so many bytes more are counted.
    SetLimit {
        id: u32,
        limit: Limit,
        taken: u64,
    },
}

impl Purpose {
    fn id(&mut self) -> Option<&mut u32> {
        match self {
            Self::Reclaim { .. } => None,
            Self::Allocate { id, .. }
            | Self::Load { id, .. }
            | Self::Function { id, .. }
            | Self::Global { id, .. }
            | Self::Map { id, .. }
            | Self::Graph { id, .. }
            | Self::SetLimit { id, .. } => Some(id),
        }
    }

    /// Nobody waits for request `id` any more.
    pub(super) fn forget(&mut self, id: u32) {
        if let Some(own) = self.id().filter(|own| **own == id) {
            *own = 0;
        }
    }

    /// The request that waits; from here on nobody does.
    pub(super) fn take_id(&mut self) -> Option<u32> {
        let id = std::mem::take(self.id()?);
        (id != 0).then_some(id)
    }
}

/// A call in a thread of its own.
pub(super) struct Calling<D: Device> {
    pub(super) purpose: Purpose,
    answer: mpsc::Receiver<AnsweredOf<D>>,
    since: Instant,
}

impl<D: Device> Gpu<D> {
    /// Queues work.
    pub(super) fn submit(
        &mut self,
        what: What,
        stream: Key,
        work: WorkOf<D>,
    ) -> Result<(), Refused> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let tag = self.last_tag + 1;
        if let Err(error) = self.device.submit(tag, stream, work) {
            let (What::Upload { id, .. }
            | What::Download(id, _)
            | What::InTurn(id, _)
            | What::Graph(id, _)
            | What::Other(id, _)) = what;
            return Err(self.failure(id, &error));
        }
        self.last_tag = tag;
        self.uploads_queued += usize::from(matches!(what, What::Upload { .. }));
        self.queue.insert(tag, Queued { what, stream });
        Ok(())
    }

    /// Queues work that the device does in the session's turn, now or when that comes.
    pub(super) fn submit_in_turn(
        &mut self,
        id: u32,
        op: Op,
        stream: Key,
        work: WorkOf<D>,
        reply: Vec<u8>,
    ) -> Result<Option<Vec<u8>>, Refused> {
        self.sound()?;
        let held = Held {
            id,
            op,
            stream,
            work,
            reply,
        };
        match self.turns.begin() {
            true => self.submit_held(held).map(Some),
            false => {
                self.held = Some(held);
                Ok(None)
            }
        }
    }

    /// Queues work that counts as queued.
    fn submit_held(&mut self, held: Held<D>) -> Result<Vec<u8>, Refused> {
        let what = What::InTurn(held.id, held.op);
        match self.submit(what, held.stream, held.work) {
            Ok(()) => Ok(held.reply),
            Err(refused) => {
                self.turns.is_over(0);
                Err(refused)
            }
        }
    }

    /// Queues the work that waits, if it is the session's turn, and what follows of a graph.
    fn go_on_in_turn(&mut self) {
        self.turns.look();
        if let Some((id, outcome)) = self.replay_on() {
            self.done(id, outcome);
        }
        if self.held.is_some()
            && self.turns.begin()
            && let Some(held) = self.held.take()
        {
            let id = held.id;
            let outcome = self.submit_held(held);
            self.done(id, outcome);
        }
    }

    /// Has the end of this turn's work noticed at once: others wait for it.
    fn watch_turn(&mut self) {
        if self.watched == self.last_tag || !self.turns.is_ending() {
            return;
        }
        self.watched = self.last_tag;
        let works = self.queue.values().filter(|queued| queued.takes_turn());
        let mut streams: Vec<Key> = works.map(|queued| queued.stream).collect();
        streams.sort_unstable();
        streams.dedup();
        for stream in streams {
            self.device.wake_at_end(stream);
        }
    }

    pub(super) fn synchronize(&mut self, id: u32) -> Result<Option<Vec<u8>>, Refused> {
        self.check_no_capture()?;
        self.wait(id, Op::Synchronize, Until::All(self.last_tag))
    }

    pub(super) fn stream_synchronize(
        &mut self,
        id: u32,
        stream: StreamRef,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let key = self.live(stream)?;
        let until = Until::Stream(key, self.last_tag);
        self.wait(id, Op::StreamSynchronize, until)
    }

    /// Answers request `id` when the device has come so far.
    pub(super) fn wait(
        &mut self,
        id: u32,
        op: Op,
        until: Until,
    ) -> Result<Option<Vec<u8>>, Refused> {
        self.take_done();
        self.sound()?;
        if self.is_reached(until) {
            self.release_unused();
            self.go_on();
            return Ok(Some(self.told_time(op)));
        }
        let mut streams: Vec<Key> = match until {
            Until::All(_) => self.queue.values().map(|queued| queued.stream).collect(),
            Until::Stream(key, _) => vec![key],
            Until::Work(tag) => self
                .queue
                .get(&tag)
                .map(|queued| queued.stream)
                .into_iter()
                .collect(),
        };
        streams.sort_unstable();
        streams.dedup();
        for stream in streams {
            self.device.wake_at_end(stream);
        }
        self.waits.push(Wait { id, op, until });
        Ok(None)
    }

    /// Whether the device is known to be so far.
    pub(super) fn is_reached(&self, until: Until) -> bool {
        match until {
            Until::All(tag) => self.is_done(tag),
            Until::Stream(key, tag) => {
                let mut before = self.queue.range(..=tag);
                !before.any(|(_, queued)| queued.stream == key)
            }
            Until::Work(tag) => !self.queue.contains_key(&tag),
        }
    }

    /// Nothing, while no fault has ended the context.
    pub(super) fn sound(&self) -> Result<(), Refused> {
        self.fault.clone().map_or(Ok(()), Err)
    }

    /// Takes note of what the device has done.
    pub(super) fn take_done(&mut self) {
        let mut some = false;
        while let Some(done) = self.device.next_done() {
            some = true;
            self.work_is_over(done);
        }
        if some {
            self.tell_printed();
        }
    }

    /// The answer to the request that waited.
    pub(super) fn told_time(&mut self, op: Op) -> Vec<u8> {
        let device_ns = std::mem::take(&mut self.untold_ns);
        match op {
            Op::CopyFromDevice => CopyFromDeviceReply { device_ns }.encode(),
            Op::CopyRowsFromDevice => CopyRowsFromDeviceReply { device_ns }.encode(),
            Op::StreamSynchronize => StreamSynchronizeReply { device_ns }.encode(),
            Op::EventSynchronize => EventSynchronizeReply { device_ns }.encode(),
            _ => SynchronizeReply { device_ns }.encode(),
        }
    }

    /// Asks the device what is done, and does what waited for that.
    pub(super) fn look(&mut self) {
        if self.lost {
            return;
        }
        self.take_done();
        self.take_answer();
        self.take_compiled();
        self.go_on_in_turn();
        self.go_on();
        self.watch_turn();
        self.beat();
        if self.device.is_gone() {
            let why = self.fault.as_ref().map(|fault| fault.text.clone());
            self.lose(&why.unwrap_or_else(|| "the device is gone".to_owned()));
        }
    }

    pub(super) fn work_is_over(&mut self, done: Done<D::Buffer>) {
        let Some(queued) = self.queue.remove(&done.tag) else {
            return;
        };
        // Pieces of a download have no other numbers than their places.
        debug_assert!(
            self.queue
                .range(..done.tag)
                .all(|(_, earlier)| earlier.stream != queued.stream),
            "work {} is over before another of its stream",
            done.tag
        );
        if queued.takes_turn() {
            let ns = done.ran.map_or(0, Span::ns);
            self.turns.is_over(ns / u64::from(done.kernels.max(1)));
        }
        if let Some(id) = queued.graph() {
            self.graphs.ran(id, done.tag, done.ran.map_or(0, Span::ns));
        }
        let device_ns = done.ran.map_or(0, |ran| self.busy.add(ran));
        if device_ns > 0 {
            self.untold_ns = self.untold_ns.saturating_add(device_ns);
            let others = self.has_turns_work();
            let device_ns = self.ahead.measured(device_ns, others, clock::now());
            self.events.push_back(Event::Worked(device_ns));
        }
        match queued.what {
            What::Upload { id, op, bytes } => {
                self.uploads_queued -= 1;
                if let Some(buffer) = done.buffer {
                    if self.uploads.iter().any(|upload| upload.id == id) {
                        self.events.push_back(Event::Room(id, bytes));
                    }
                    self.buffers.put(buffer);
                }
                if let Err(error) = done.result {
                    self.failed_late(id, op, &error);
                }
            }
            What::Download(id, bytes) => {
                let download = self.downloads.iter_mut().find(|d| d.id == id);
                match (done.result, done.buffer, download) {
                    (Ok(()), Some(buffer), Some(download)) => {
                        download.came(buffer, bytes);
                        self.events.push_back(Event::Moved(id));
                    }
                    (result, buffer, _) => {
                        buffer
                            .into_iter()
                            .for_each(|buffer| self.buffers.put(buffer));
                        if let Err(error) = result {
                            self.fail_transfer(id, &error);
                        }
                    }
                }
            }
            What::Graph(id, exec) => match done.result {
                Ok(()) => {
                    if let Some(ran) = done.ran {
                        self.graphs.took(exec, ran.ns());
                    }
                }
                Err(error) => self.failed_late(id, Op::GraphLaunch, &error),
            },
            What::InTurn(id, op) | What::Other(id, op) => {
                if let Err(error) = done.result {
                    self.failed_late(id, op, &error);
                }
            }
        }
    }

    /// Whether work of the session's turn is under way.
    fn has_turns_work(&self) -> bool {
        self.queue.values().any(Queued::takes_turn)
    }

    /// Whether everything up to `tag` is done.
    fn is_done(&self, tag: u64) -> bool {
        self.queue
            .first_key_value()
            .is_none_or(|(first, _)| *first > tag)
    }

    /// Does what was waiting, as far as it can be done now.
    pub(super) fn go_on(&mut self) {
        while let Some(at) = self
            .waits
            .iter()
            .position(|wait| self.is_reached(wait.until))
        {
            let wait = self.waits.swap_remove(at);
            let body = self.told_time(wait.op);
            self.done(wait.id, Ok(body));
            self.release_unused();
        }
        self.compile_next();
        while self.calling.is_none() && self.fault.is_none() {
            if self
                .reclaims
                .front()
                .is_some_and(|first| self.is_done(first.until))
            {
                let Some(first) = self.reclaims.pop_front() else {
                    return;
                };
                let purpose = Purpose::Reclaim {
                    id: first.id,
                    op: first.op,
                    counted: first.counted,
                };
                let call = match first.what {
                    Given::Memory(address) => Call::Free(address),
                    Given::Module(module) => Call::Unload(module),
                    Given::Stream(key) => {
                        self.device.drop_stream(key);
                        self.stream_is_gone();
                        continue;
                    }
                    Given::Event(key) => {
                        self.device.drop_event(key);
                        continue;
                    }
                    Given::Region(region) => {
                        self.region_goes(&region);
                        Call::Unregister(region)
                    }
                };
                self.call(purpose, call);
            } else if let Some((image, code)) = self.whole.pop_front() {
                let purpose = Purpose::Load {
                    id: image.id,
                    module: code.module(),
                    log: code.into_log(),
                };
                self.call(purpose, Call::Load(image.bytes));
            } else if let Some((id, wanted)) = self.short.take() {
                // It waits again, or is refused, if that was not enough.
                match self.try_allocate(id, wanted) {
                    Err(failure) => self.done(id, Err(failure)),
                    Ok(_) if self.short.is_some() => return,
                    Ok(_) => {}
                }
            } else {
                return;
            }
        }
    }

    /// Gives something back when the work that is queued now is done.
    pub(super) fn reclaim(&mut self, reclaim: Reclaim<D::Module>) {
        self.reclaims.push_back(reclaim);
        self.go_on();
    }

    /// Makes a call: here, or in a thread of its own if it may take its time.
    pub(super) fn call(&mut self, purpose: Purpose, call: CallOf<D>) {
        let caller = self.device.caller();
        let long = matches!(
            call,
            Call::Load(_) | Call::Register(_) | Call::Unregister(_) | Call::Graph(_)
        ) || (D::Caller::MAY_WAIT && !self.queue.is_empty());
        if !long {
            let answer = caller.call(call);
            return self.answered(purpose, answer);
        }
        let (tell, answer) = mpsc::sync_channel(1);
        let waker = Arc::clone(self.device.waker());
        let spawned = thread::Builder::new().name("driver".into()).spawn(move || {
            // If the session is over, nobody wants to know.
            let _ = tell.send(caller.call(call));
            waker.raise();
        });
        match spawned {
            Ok(_) => {
                self.calling = Some(Calling {
                    purpose,
                    answer,
                    since: clock::now(),
                });
            }
            Err(error) => {
                let text = format!("no thread for a call of the driver: {error}");
                self.answered(
                    purpose,
                    Err(DeviceError::new(cuda_result::OUT_OF_MEMORY, text)),
                );
            }
        }
    }

    fn take_answer(&mut self) {
        let Some(calling) = &self.calling else {
            return;
        };
        let answer = match calling.answer.try_recv() {
            Err(mpsc::TryRecvError::Empty) => {
                if clock::now().saturating_duration_since(calling.since) > LONGEST_CALL {
                    self.lose("a call of the device's driver does not end");
                }
                return;
            }
            Err(mpsc::TryRecvError::Disconnected) => {
                let text = "the device's driver broke down in a call";
                return self.lose(text);
            }
            Ok(answer) => answer,
        };
        if let Some(calling) = self.calling.take() {
            self.answered(calling.purpose, answer);
        }
    }

    fn answered(&mut self, purpose: Purpose, answer: AnsweredOf<D>) {
        match (purpose, answer) {
            (
                Purpose::Allocate {
                    id,
                    wanted: Wanted::Bytes(bytes),
                },
                Ok(Answer::Address(address)),
            ) => {
                let body = MemoryAllocateReply { address }.encode();
                self.allocated(id, address, bytes, body);
            }
            (
                Purpose::Allocate {
                    id,
                    wanted: wanted @ Wanted::FromPool(bytes, pool),
                },
                Ok(Answer::Address(address)),
            ) => {
                let block = PoolBlock {
                    pool,
                    bytes: wanted.counted(),
                };
                self.pools.came(block);
                self.ranges.add_from_pool(address, bytes, block);
                if id == 0 {
                    // Given up meanwhile: nobody knows the address.
                    let _ = self.free(0, address);
                }
                self.done(id, Ok(MemoryAllocateAsyncReply { address }.encode()));
            }
            (
                Purpose::Allocate {
                    id,
                    wanted: wanted @ Wanted::Rows { height, .. },
                },
                Ok(Answer::Rows(address, pitch)),
            ) => {
                let bytes = pitch.saturating_mul(height);
                // Bytes that the driver adds beyond the expected pitch count as well.
                self.quota.give(wanted.counted());
                self.quota.take_all(counted(bytes).unwrap_or(u64::MAX));
                let body = MemoryAllocateRowsReply { address, pitch }.encode();
                self.allocated(id, address, bytes, body);
            }
            (Purpose::Allocate { id, wanted }, answer) => {
                self.quota.give(wanted.counted());
                // The device has less than the quota says: what the pools do not use may do.
                let full =
                    matches!(&answer, Err(error) if error.code == cuda_result::OUT_OF_MEMORY);
                match full && self.short.is_none() && self.release_all() {
                    true => self.short = Some((id, wanted)),
                    false => self.answer_failed(id, answer),
                }
            }
            (Purpose::Reclaim { counted, .. }, Ok(_)) => self.quota.give(counted),
            (Purpose::Reclaim { id, op, .. }, Err(error)) => self.failed_late(id, op, &error),
            (Purpose::Map { id, region, bytes }, answer) => {
                self.region_mapped(id, (region, bytes), answer);
            }
            (
                Purpose::Graph {
                    id,
                    exec,
                    nodes,
                    deadline,
                },
                answer,
            ) => self.graph_made(id, exec, nodes, deadline, answer),
            (Purpose::SetLimit { id, limit, taken }, answer) => {
                self.limit_set(id, limit, taken, answer);
            }
            (Purpose::Load { id, module, log }, answer) => {
                self.loaded(id, module, log.as_deref(), answer);
            }
            (Purpose::Function { id, module, name }, Ok(Answer::Function(function, layout))) => {
                self.found_function(id, module, name, function, layout);
            }
            (Purpose::Global { id, module, .. }, Ok(Answer::Global(address, bytes))) => {
                self.found_global(id, module, address, bytes);
            }
            (Purpose::Function { id, .. } | Purpose::Global { id, .. }, answer) => {
                self.answer_failed(id, answer);
            }
        }
    }

    /// There is memory for request `id`, and the quota counts it.
    fn allocated(&mut self, id: u32, address: u64, bytes: u64, body: Vec<u8>) {
        self.ranges.add_allocation(address, bytes);
        let outcome = match self.quota.is_exceeded() {
            true => Err(self.too_much(bytes, "an allocation with the driver's pitch")),
            false => Ok(body),
        };
        // Given up meanwhile, or more than the session may have: nobody knows the address.
        if id == 0 || outcome.is_err() {
            let _ = self.free(0, address);
        }
        self.done(id, outcome);
    }

    /// A call went wrong.
    pub(super) fn answer_failed(&mut self, id: u32, answer: AnsweredOf<D>) {
        let failure = match answer {
            Err(error) => self.failure(id, &error),
            Ok(_) => Failure {
                status: ErrorCode::Internal.into(),
                text: "the device's driver answered something else".to_owned(),
            },
        };
        self.done(id, Err(failure));
    }

    /// Tells those who wait for the device that it works, and dom0 for how long it has, from time to time.
    fn beat(&mut self) {
        let idle = self.queue.is_empty() && self.calling.is_none() && self.compiling.is_none();
        if idle && !self.has_unqueued() {
            self.ahead.under_way(false, self.beat);
            return;
        }
        let now = clock::now();
        if now.saturating_duration_since(self.beat) < BEAT {
            return;
        }
        self.beat = now;
        let device_ns = self.ahead.under_way(self.has_turns_work(), now);
        if device_ns > 0 {
            self.events.push_back(Event::Worked(device_ns));
        }
        let mut waiting: Vec<u32> = self.waits.iter().map(|wait| wait.id).collect();
        waiting.extend(self.uploads.iter().map(|upload| upload.id));
        waiting.extend(self.downloads.iter().map(|download| download.id));
        waiting.extend(self.short.map(|(id, _)| id));
        waiting.extend(self.held.as_ref().map(|held| held.id));
        waiting.extend(self.replay.as_ref().map(|replay| replay.id));
        waiting.extend(self.whole.iter().map(|(image, _)| image.id));
        waiting.extend(self.sources.iter().map(|(image, _)| image.id));
        let compiling = self.compiling.iter();
        waiting.extend(compiling.map(|it| it.id).filter(|id| *id != 0));
        if let Some(calling) = &mut self.calling {
            waiting.extend(calling.purpose.id().copied().filter(|id| *id != 0));
        }
        self.events.extend(waiting.into_iter().map(Event::Moved));
        if !self.may_start() {
            // What the guest waits for may stand behind quiet requests, and not have been read.
            self.events.push_back(Event::Working);
        }
    }
}
