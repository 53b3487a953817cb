//! A device and what is on it, in the terms of cudarc.

mod buffer;
mod copies;
mod graph;
mod launch;
mod limits;
mod module;
mod occupancy;
mod pinned;
mod pool;
mod rows;
mod source;
mod stream;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use vgpu_protocol::handle::Handle;
use vgpu_protocol::op::field::StreamRef;
use vgpu_protocol::op::{
    self as protocol, DeviceInfo, DeviceInfoReply, DeviceSelect, EventDestroy, FenceReply,
    GraphDestroy, GraphExecDestroy, MemoryFree, MemoryFreeAsync, MemoryInfo, MemoryPoolDestroy,
    ModuleUnload, NO_ATTRIBUTE, Operation, Request, StreamDestroy, Synchronize,
};

use super::staging::Stores;
use super::{Client, Session, lock};
use crate::attributes::{
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
};
use crate::data::Data;
use crate::error::{Cause, Error, Result};
use crate::printed::Printed;
use stream::Opened;
use vgpu_protocol::status::{ErrorCode, Status};

pub use buffer::{DeviceBuffer, DevicePtr, DeviceSlice, DeviceSliceMut};
pub use copies::Element;
pub use graph::{CaptureMode, CaptureStatus, Graph, GraphExec};
pub use launch::{KernelArg, LaunchBuilder, LaunchConfig};
pub use limits::Limit;
pub use module::{Function, Module};
pub(super) use pinned::Arena;
pub use pinned::PinnedBuffer;
pub use pool::{MemoryPool, MemoryPoolStatistics};
pub use rows::{DeviceRows, PitchedBuffer, PitchedSlice, PitchedSliceMut};
pub use source::{CompileAt, CompileOptions};
pub(super) use stream::NON_BLOCKING;
pub use stream::{Event, Stream, StreamOptions};

/// `CUDA_ERROR_OUT_OF_MEMORY`.
pub(crate) const OUT_OF_MEMORY: i32 = 2;

/// A device of a session, as one thread sees it: memory, copies, modules and launches.
///
/// Clones are the same lane of the session. A thread that must not wait for another thread's calls takes a
/// lane of its own by [`lane`](Self::lane); buffers and modules may be used on any.
///
/// Launches, fills, and copies to the device and within it return at once, without waiting for the
/// device. Their later failures are the error of the next [`synchronize`](Self::synchronize) or
/// copy from the device, with the requests that failed ([`Error::failures`]).
///
/// Output printed by kernels goes to standard output, or to [`on_printed`](Self::on_printed), at
/// the latest with that call.
///
/// ```no_run
/// use vgpu_guest::{Client, Device, LaunchConfig, Options};
///
/// let device = Device::new(Client::from_env(&Options::default())?)?;
/// let module = device.load_module(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/saxpy.ptx")))?;
/// let saxpy = module.load_function("saxpy")?;
/// let x = device.clone_htod(&[1.0f32; 1000])?;
/// let mut y = device.clone_htod(&[2.0f32; 1000])?;
/// device
///     .launch_builder(&saxpy)
///     .arg(&3.0f32)
///     .arg(&x)
///     .arg(&y)
///     .arg(&1000i32)
///     .launch(LaunchConfig::for_num_elems(1000))?;
/// assert_eq!(device.clone_dtoh(&y)?, [5.0; 1000]);
/// # Ok::<(), vgpu_guest::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Device {
    lane: Arc<Mutex<Client>>,
    shared: Arc<Shared>,
    /// The stream of its work; `None` is the default stream.
    stream: Option<Arc<Opened>>,
}

/// The facts about the device that all lanes of a session share.
#[derive(Debug)]
struct Shared {
    info: DeviceInfoReply,
    session: Arc<Session>,
}

/// The mediator's counts for a session, as its administrator sees it in `vgpuctl status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    /// Requests of all lanes.
    pub requests: u64,
    /// Requests that failed: answered with an error, or later.
    pub failed_requests: u64,
    /// Kernels that were ended at their deadline.
    pub kernels_killed: u64,
    /// Bytes that the mediator has received, headers included.
    pub bytes_in: u64,
    /// Bytes that it has sent, headers included.
    pub bytes_out: u64,
    /// How long the device ran kernels of this session.
    pub device_time: Duration,
    /// Bytes of device memory in use.
    pub memory: u64,
    /// Bytes of device memory that the session may use.
    pub memory_limit: u64,
    /// Requests, the one that asks included, and work of the device that are not done.
    pub queue: u64,
}

/// Something of the device that nobody holds any more.
#[derive(Debug, Clone, Copy)]
pub(super) enum Dropped {
    Memory(u64),
    Module(Handle),
    Stream(Handle),
    Event(Handle),
    Graph(Handle),
    GraphExec(Handle),
    Region(Handle),
    MemoryPool(Handle),
}

impl Device {
    /// The first device of the session of `client`.
    ///
    /// # Errors
    /// The mediator has none, or the session failed.
    pub fn new(client: Client) -> Result<Self> {
        Self::of(client, 0)
    }

    /// The device of the session of `client` with this number, from 0: what the mediator's administrator gives this guest,
    /// in that order ([`Client::devices`] lists them). All work of the session is done on this one.
    ///
    /// # Errors
    /// CUDA error 101 where there is no such device; 708 where the session has used another one already; the session
    /// failed.
    pub fn with_ordinal(mut client: Client, ordinal: u32) -> Result<Self> {
        client.request("device select", DeviceSelect { device: ordinal })?;
        Self::of(client, ordinal)
    }

    fn of(mut client: Client, device: u32) -> Result<Self> {
        let info = client.request("device info", DeviceInfo { device })?;
        let session = Arc::clone(&client.session);
        Ok(Self {
            lane: Arc::new(Mutex::new(client)),
            shared: Arc::new(Shared { info, session }),
            stream: None,
        })
    }

    /// The same device on a lane of its own, for another thread.
    ///
    /// # Errors
    /// Those of [`Client::lane`].
    pub fn lane(&self) -> Result<Self> {
        let lane = lock(&self.lane).lane()?;
        Ok(Self {
            lane: Arc::new(Mutex::new(lane)),
            shared: Arc::clone(&self.shared),
            stream: None,
        })
    }

    /// The same lane, with the default stream.
    fn base(&self) -> Self {
        Self {
            stream: None,
            ..self.clone()
        }
    }

    fn stream_ref(&self) -> StreamRef {
        let stream = self.stream.as_ref();
        stream.map_or(StreamRef::DEFAULT, |stream| StreamRef::of(stream.handle))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.info.name
    }

    /// Bytes of memory that this session may have.
    pub fn total_memory(&self) -> u64 {
        self.shared.info.total_memory
    }

    /// Major and minor.
    pub fn compute_capability(&self) -> (i32, i32) {
        let of = |number| self.attribute(number).unwrap_or(0);
        (
            of(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            of(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        )
    }

    /// The value of a `CUdevice_attribute` by its number, which [`attributes`](crate::attributes) names; `None` where the driver has none.
    pub fn attribute(&self, number: u32) -> Option<i32> {
        attribute(self.shared.info.attributes.as_slice(), number)
    }

    /// Everything that does not change about it.
    pub fn info(&self) -> &DeviceInfoReply {
        &self.shared.info
    }

    /// Bytes of memory that are free, and that this session may have.
    ///
    /// # Errors
    /// The session failed.
    pub fn memory_info(&self) -> Result<(u64, u64)> {
        let reply = self.ask("memory info", MemoryInfo {})?;
        Ok((reply.free, reply.total))
    }

    /// The mediator's counts for this session so far, and what it holds of the device. Reading resets nothing.
    ///
    /// # Errors
    /// The session failed.
    pub fn statistics(&self) -> Result<Statistics> {
        let reply = self.ask("statistics", protocol::Statistics {})?;
        Ok(Statistics {
            requests: reply.requests,
            failed_requests: reply.failed,
            kernels_killed: reply.kernels_killed,
            bytes_in: reply.bytes_in,
            bytes_out: reply.bytes_out,
            device_time: Duration::from_nanos(reply.device_ns),
            memory: reply.memory,
            memory_limit: reply.memory_limit,
            queue: reply.queue,
        })
    }

    /// Waits until the device has done everything that was sent before, on any lane. Returns how long it
    /// ran kernels of this session since the last time that this was told to anybody.
    ///
    /// # Errors
    /// Something that was sent before has failed: [`Error::failures`] says what; or the session failed.
    pub fn synchronize(&self) -> Result<Duration> {
        const DOING: &str = "synchronize";
        let mut client = self.client()?;
        let reply = client.request(DOING, Synchronize {});
        let reply = told(&mut client, DOING, reply)?;
        Ok(client.device_time(reply.device_ns))
    }

    /// The ids of the requests that the last call on this lane has sent without waiting for the device: a launch, a copy, a
    /// fill, a graph's launch, the record of an event or a wait for one. A later error names them, if it is theirs
    /// ([`Error::failures`]). One, but several for a large copy of ordinary memory, which goes in pieces; none before the
    /// first such call. What was only dropped changes nothing here.
    ///
    /// ```no_run
    /// # use vgpu_guest::{Client, Device, Options};
    /// # let device = Device::new(Client::from_env(&Options::default())?)?;
    /// let mut buffer = device.alloc::<u32>(1000)?;
    /// device.memset(&mut buffer, 7)?;
    /// let fill = device.last_requests();
    /// if let Err(error) = device.synchronize() {
    ///     let failed = error.failures().iter().any(|failed| fill.contains(&failed.request_id));
    ///     eprintln!("{error}; the fill failed: {failed}");
    /// }
    /// # Ok::<(), vgpu_guest::Error>(())
    /// ```
    pub fn last_requests(&self) -> Vec<u32> {
        lock(&self.lane).last_requests.clone()
    }

    /// Has `take` called with each line that kernels print: [`Client::on_printed`].
    pub fn on_printed(&self, take: impl FnMut(Printed<'_>) + Send + 'static) {
        lock(&self.lane).on_printed(take);
    }

    /// Runs `run` with the client, for what a client can do besides.
    pub fn with_client<R>(&self, run: impl FnOnce(&mut Client) -> R) -> R {
        run(&mut lock(&self.lane))
    }

    /// Ends the session in good order, for all its lanes. Buffers and modules go with it.
    ///
    /// # Errors
    /// Those of [`Client::goodbye`].
    pub fn goodbye(self) -> Result<()> {
        lock(&self.lane).end()
    }

    /// The client, once what was dropped is on its way back.
    fn client(&self) -> Result<MutexGuard<'_, Client>> {
        let mut client = lock(&self.lane);
        let dropped = std::mem::take(&mut *lock(&self.shared.session.dropped));
        for dropped in dropped {
            self.give_back(&mut client, dropped)?;
        }
        Ok(client)
    }

    fn give_back(&self, client: &mut Client, dropped: Dropped) -> Result<()> {
        match dropped {
            Dropped::Memory(address) => {
                client.send_quiet("free", MemoryFree { address })?;
            }
            Dropped::Module(module) => {
                client.send_quiet("unload", ModuleUnload { module })?;
                lock(&self.shared.session.modules).release(module);
            }
            Dropped::Stream(stream) => {
                client.send_quiet("destroy a stream", StreamDestroy { stream })?;
                lock(&self.shared.session.streams).release(stream);
            }
            Dropped::Event(event) => {
                client.send_quiet("destroy an event", EventDestroy { event })?;
                lock(&self.shared.session.events).release(event);
            }
            Dropped::Graph(graph) => {
                client.send_quiet("destroy a graph", GraphDestroy { graph })?;
                lock(&self.shared.session.graphs).release(graph);
            }
            Dropped::Region(region) => client.unmap_memory(region)?,
            Dropped::MemoryPool(pool) => {
                client.send_quiet("destroy a memory pool", MemoryPoolDestroy { pool })?;
                lock(&self.shared.session.memory_pools).release(pool);
            }
            Dropped::GraphExec(exec) => {
                client.send_quiet("destroy a graph", GraphExecDestroy { exec })?;
                lock(&self.shared.session.graph_execs).release(exec);
            }
        }
        Ok(())
    }

    /// Gives something back without waiting for a call of another thread.
    fn drop_on_device(&self, dropped: Dropped) {
        let mut client = match self.lane.try_lock() {
            Ok(client) => client,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return lock(&self.shared.session.dropped).push(dropped);
            }
        };
        // A session that has failed has nothing to give back to.
        let _ = self.give_back(&mut client, dropped);
    }

    /// Frees memory in the order of this stream, or of all where another thread's call is under way.
    fn drop_in_order(&self, address: u64) {
        let mut client = match self.lane.try_lock() {
            Ok(client) => client,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return self.drop_on_device(Dropped::Memory(address)),
        };
        let stream = self.stream_ref();
        // A session that has failed has nothing to give back to.
        let _ = client.send_quiet("free", MemoryFreeAsync { address, stream });
    }

    fn ask<O>(&self, doing: &'static str, request: O) -> Result<O::Reply>
    where
        O: Operation + Into<Request>,
    {
        let mut client = self.client()?;
        let reply = client.request(doing, request);
        explained(&mut client, reply)
    }

    fn send<O>(&self, doing: &'static str, request: O) -> Result<()>
    where
        O: Operation + Into<Request>,
    {
        self.send_with(doing, request, &mut Data::none())
    }

    fn send_with<O>(&self, doing: &'static str, request: O, data: &mut Data<'_>) -> Result<()>
    where
        O: Operation + Into<Request>,
    {
        let mut client = self.client()?;
        client.noting_requests(|client, requests| {
            let id = client.send_quiet_with(doing, request, data)?;
            requests.push(id);
            Ok(())
        })
    }

    /// Sends bytes that have been taken when this returns.
    fn send_bytes(&self, doing: &'static str, to: u64, bytes: &[u8]) -> Result<()> {
        let (stores, stream) = (Stores::of(bytes.len()), self.stream_ref());
        let mut client = self.client()?;
        client.noting_requests(|client, requests| {
            client.copy_up(doing, to, bytes, stores, stream, requests)
        })
    }

    /// Runs a request that waits for the device, and keeps the device's time for the next answer that reports it.
    fn wait_with<O>(
        &self,
        doing: &'static str,
        request: O,
        data: &mut Data<'_>,
        device_ns: impl FnOnce(&O::Reply) -> u64,
    ) -> Result<()>
    where
        O: Operation + Into<Request>,
    {
        let mut client = self.client()?;
        let outcome = client.request_with(doing, request, data);
        let reply = told(&mut client, doing, outcome)?;
        client.keep_device_time(device_ns(&reply));
        Ok(())
    }

    fn is_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared.session, &other.shared.session)
    }

    /// `other` is of the same session.
    fn check_session(&self, doing: &'static str, other: &Self) -> Result<()> {
        match self.is_of(other) {
            true => Ok(()),
            false => Err(self.wrong(
                doing,
                "a buffer, function, stream, event or graph of another session",
            )),
        }
    }

    /// An argument is wrong.
    fn wrong(&self, doing: &'static str, what: impl Into<String>) -> Error {
        lock(&self.lane).error(doing, Cause::Input(what.into()))
    }
}

fn attribute(attributes: &[i32], number: u32) -> Option<i32> {
    let value = attributes.get(usize::try_from(number).ok()?)?;
    (*value != NO_ATTRIBUTE).then_some(*value)
}

/// The failures that no fence has told, if asking is of any use.
fn failures(client: &mut Client) -> Option<FenceReply> {
    let fence = client.fence().ok()?;
    (!fence.is_empty()).then_some(fence)
}

/// An error with what failed before it, which may be its cause.
pub(super) fn explained<R>(client: &mut Client, outcome: Result<R>) -> Result<R> {
    outcome.map_err(|mut error| {
        if matches!(error.cause(), Cause::Refused { .. }) && !error.cause().ends_session() {
            error.failures = failures(client).map(Box::new);
        }
        error
    })
}

/// Whether it says that there is no memory for what was asked.
pub(super) fn is_out_of_memory(error: &Error) -> bool {
    let out_of_memory = [ErrorCode::QuotaMemory.into(), Status::Cuda(OUT_OF_MEMORY)];
    error
        .status()
        .is_some_and(|status| out_of_memory.contains(&status))
}

impl Client {
    /// Runs `send`, whose requests are the last from then on.
    fn noting_requests(
        &mut self,
        send: impl FnOnce(&mut Self, &mut Vec<u32>) -> Result<()>,
    ) -> Result<()> {
        let mut requests = std::mem::take(&mut self.last_requests);
        requests.clear();
        let sent = send(self, &mut requests);
        self.last_requests = requests;
        sent
    }

    /// Keeps what a call has heard of the device's time for the next wait that tells it.
    pub(super) fn keep_device_time(&self, ns: u64) {
        self.session.untold_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// The device's time as reported by a wait for it, and by copies before.
    fn device_time(&self, ns: u64) -> Duration {
        let before = self.session.untold_ns.swap(0, Ordering::Relaxed);
        Duration::from_nanos(ns.saturating_add(before))
    }
}

/// The same for what has to tell of earlier failures: they are an error of its own.
fn told<R>(client: &mut Client, doing: &'static str, outcome: Result<R>) -> Result<R> {
    let reply = explained(client, outcome)?;
    if client.quiet_requests_failed()
        && let Some(failures) = failures(client)
    {
        return Err(client.error(doing, Cause::Failed(failures)));
    }
    Ok(reply)
}
