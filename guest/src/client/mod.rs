//! A session with a mediator: one file for each family of operations.

mod exchange;
mod gpu;
mod session;
mod staging;
mod vector_add;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vchan::region::Regions;
use vgpu_protocol::handle::{HandleKind, HandleMinter};
use vgpu_protocol::op::{
    Body, Features, FenceReply, HelloReply, Op, Operation, Request, TakePrinted, TakePrintedReply,
};
use vgpu_protocol::session::client::Violation;
use vgpu_transport::{Endpoint, clock};

use crate::data::Data;
use crate::error::{Cause, Error, Result, Skipped};
use crate::printed::Printer;
use crate::pump::Lane;
use crate::wire::{Asked, Done};

pub(crate) use gpu::OUT_OF_MEMORY;
pub use gpu::{
    CaptureMode, CaptureStatus, CompileAt, CompileOptions, Device, DeviceBuffer, DevicePtr,
    DeviceRows, DeviceSlice, DeviceSliceMut, Element, Event, Function, Graph, GraphExec, KernelArg,
    LaunchBuilder, LaunchConfig, Limit, MemoryPool, MemoryPoolStatistics, Module, PinnedBuffer,
    PitchedBuffer, PitchedSlice, PitchedSliceMut, Statistics, Stream, StreamOptions,
};
pub use staging::CopyWay;
pub(crate) use vector_add::PIECE;
pub use vector_add::VectorAddReport;

/// Answers with what was printed at most that one request takes: what a mediator keeps, and half as much again.
const PRINTED_AT_ONCE: usize = 96;

/// An open session with a mediator, as one thread sees it.
///
/// A client is one lane of its session: it runs one request at a time, in order. Threads that share a
/// session get a client each from [`lane`](Self::lane).
///
/// After an error [`Error::retry`] says whether the session can still be used. Dropping the last client
/// of a session without [`goodbye`](Self::goodbye) is safe on both sides: the mediator frees what
/// belonged to the session, and nothing is left in xenstore.
#[derive(Debug)]
pub struct Client {
    lane: Lane,
    /// The lane in headers; a wrong one only in tests of refusals.
    header_lane: u16,
    session: Arc<Session>,
    quiet_failed: bool,
    /// The requests of the last call that did not wait for the device, with room for more.
    last_requests: Vec<u32>,
}

/// The facts that all lanes of a session share.
#[derive(Debug)]
struct Session {
    endpoint: Option<Endpoint>,
    skipped: Vec<Skipped>,
    agreed: HelloReply,
    /// Destination of kernels' printed output.
    printer: Mutex<Printer>,
    modules: Mutex<HandleMinter>,
    streams: Mutex<HandleMinter>,
    events: Mutex<HandleMinter>,
    graphs: Mutex<HandleMinter>,
    graph_execs: Mutex<HandleMinter>,
    /// Dropped while their lane was in a call; the next call of any lane gives them back.
    dropped: Mutex<Vec<gpu::Dropped>>,
    /// Makes memory that the mediator can map, where the transport has such memory.
    regions: Option<Regions>,
    region_handles: Mutex<HandleMinter>,
    memory_pools: Mutex<HandleMinter>,
    /// Memory for copies of ordinary memory.
    staging: Mutex<staging::State>,
    pinned: Mutex<gpu::Arena>,
    adder: Mutex<vector_add::Adder>,
    /// Held by the add that asks for a place. Taken before `adder`.
    asking: Mutex<()>,
    /// An add has left its places.
    left: Condvar,
    heard: Mutex<vector_add::Heard>,
    /// Failures that a call has heard of and that the next fence is to tell.
    failures: Mutex<FenceReply>,
    /// Requests were sent that may fail without being answered with that: some, and some that are the device's. Relaxed
    /// everywhere: who ends a session while others send does not hear of what they send.
    sent_quiet: AtomicBool,
    sent_work: AtomicBool,
    /// Nanoseconds of kernels that a copy has heard of and that the next wait for the device is to tell. Relaxed
    /// everywhere: a number and nothing else.
    untold_ns: AtomicU64,
}

impl Session {
    fn new(
        endpoint: Option<Endpoint>,
        skipped: Vec<Skipped>,
        agreed: HelloReply,
        regions: Option<Regions>,
    ) -> Self {
        let minter = |kind| Mutex::new(HandleMinter::new(kind, agreed.max_handles));
        Self {
            endpoint,
            skipped,
            printer: Mutex::default(),
            modules: minter(HandleKind::Module),
            streams: minter(HandleKind::Stream),
            events: minter(HandleKind::Event),
            graphs: minter(HandleKind::Graph),
            graph_execs: minter(HandleKind::GraphExec),
            dropped: Mutex::default(),
            regions,
            region_handles: minter(HandleKind::Region),
            memory_pools: minter(HandleKind::MemoryPool),
            staging: Mutex::default(),
            pinned: Mutex::default(),
            adder: Mutex::default(),
            asking: Mutex::default(),
            left: Condvar::new(),
            heard: Mutex::default(),
            failures: Mutex::default(),
            sent_quiet: AtomicBool::new(false),
            sent_work: AtomicBool::new(false),
            untold_ns: AtomicU64::new(0),
            agreed,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No step leaves what it guards half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// Runs a request that has no data, `doing` what its errors say.
    fn request<O>(&mut self, doing: &'static str, request: O) -> Result<O::Reply>
    where
        O: Operation + Into<Request>,
    {
        self.request_with(doing, request, &mut Data::none())
    }

    /// Runs a request whose data is `data`.
    fn request_with<O>(
        &mut self,
        doing: &'static str,
        request: O,
        data: &mut Data<'_>,
    ) -> Result<O::Reply>
    where
        O: Operation + Into<Request>,
    {
        let done = self.run(doing, request.into(), false, data)?;
        self.quiet_failed = done.failures;
        Body::decode(&done.body).map_err(|error| self.broken(doing, error.into()))
    }

    /// The same for one whose work may fail after the answer: it is the last request from then on.
    fn request_noted<O>(&mut self, doing: &'static str, request: O) -> Result<O::Reply>
    where
        O: Operation + Into<Request>,
    {
        self.last_requests.clear();
        let done = self.run(doing, request.into(), false, &mut Data::none())?;
        self.last_requests.push(done.id);
        self.quiet_failed = done.failures;
        Body::decode(&done.body).map_err(|error| self.broken(doing, error.into()))
    }

    /// Sends a quiet request; returns its id.
    fn send_quiet<O>(&mut self, doing: &'static str, request: O) -> Result<u32>
    where
        O: Operation + Into<Request>,
    {
        self.send_quiet_with(doing, request, &mut Data::none())
    }

    /// Sends a quiet request whose data is `data`; returns its id when the data has been taken.
    fn send_quiet_with<O>(
        &mut self,
        doing: &'static str,
        request: O,
        data: &mut Data<'_>,
    ) -> Result<u32>
    where
        O: Operation + Into<Request>,
    {
        let done = self.run(doing, request.into(), true, data)?;
        Ok(done.id)
    }

    fn run(
        &mut self,
        doing: &'static str,
        request: Request,
        quiet: bool,
        data: &mut Data<'_>,
    ) -> Result<Done> {
        let is_last = request.op() == Op::Goodbye;
        if quiet || request.kernel_stream().is_some() {
            self.session.sent_quiet.store(true, Ordering::Relaxed);
            if request.op() != Op::Ping {
                self.session.sent_work.store(true, Ordering::Relaxed);
            }
        }
        let done = self.run_alone(doing, request, quiet, data);
        if !quiet && !is_last && self.lane.has_printed() {
            self.bring_printed();
        }
        done
    }

    /// Hands over what kernels have printed. What is wrong with the session the next request finds, too.
    fn bring_printed(&mut self) {
        if !self.session.agreed.features.contains(Features::PRINTED) {
            return;
        }
        for _ in 0..PRINTED_AT_ONCE {
            let request = TakePrinted {}.into();
            let answer = self.run_alone("take what was printed", request, false, &mut Data::none());
            let Ok(done) = answer else { return };
            let Ok(reply) = TakePrintedReply::decode(&done.body) else {
                return;
            };
            self.printer().print(reply.lost, reply.text.as_slice());
            if !self.lane.has_printed() {
                return;
            }
        }
    }

    fn printer(&self) -> MutexGuard<'_, Printer> {
        lock(&self.session.printer)
    }

    fn run_alone(
        &mut self,
        doing: &'static str,
        request: Request,
        quiet: bool,
        data: &mut Data<'_>,
    ) -> Result<Done> {
        let asked = Asked {
            lane: self.lane.number(),
            header_lane: self.header_lane,
            quiet,
            request,
            moved: clock::now(),
        };
        self.lane
            .run(doing, asked, data)
            .map_err(|cause| self.error(doing, cause))
    }

    /// The answer to a request makes no sense: the session is over.
    fn broken(&mut self, doing: &'static str, violation: Violation) -> Error {
        let cause = Cause::Protocol(violation);
        self.lane.end(doing, &cause);
        self.error(doing, cause)
    }

    fn error(&self, doing: &'static str, cause: Cause) -> Error {
        Error::new(doing, Some(self.session.agreed.epoch), cause)
    }

    /// Sends what follows on a lane that the mediator may not have offered.
    pub(crate) fn use_header_lane(&mut self, header_lane: u16) {
        self.header_lane = header_lane;
    }
}
