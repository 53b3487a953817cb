//! The interface between [`Gpu`](super::Gpu) and a device: a CUDA driver, or this machine's processor.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use vchan::region::{MappedRegion, View};

use vgpu_protocol::op::{LaunchAttribute, ParameterPlace};
use vgpu_protocol::session::server::Failure;
use vgpu_protocol::status::{ErrorCode, Status};
use vgpu_transport::Waker;

/// Names a stream or an event of a device; 0 is the default stream.
pub(in crate::executor) type Key = u64;

/// Operations of a device of either kind. Its arguments have been checked: addresses lie within
/// memory of the session, and functions are of loaded modules.
pub(in crate::executor) trait Device: Send {
    /// Memory on this side that the device copies to and from.
    type Buffer: AsRef<[u8]> + AsMut<[u8]> + Send;
    /// A loaded module.
    type Module: Clone + Send + 'static;
    /// A kernel of one.
    type Function: Clone + Send + 'static;
    /// A graph that it launches as a whole. It is kept for as long as that takes.
    type Graph: Clone + Send + 'static;
    /// The thread for calls that block.
    type Caller: Caller<Module = Self::Module, Function = Self::Function, Graph = Self::Graph>;

    /// Whether it copies without this machine's processors.
    const COPIES_BY_ITSELF: bool;
    /// Works that may be in its queue before [`submit`](Self::submit) might wait.
    const MOST_WORK: usize;
    /// Bytes of memory that a byte of a module's image comes to.
    const IMAGE_COST: u64;
    /// Nodes of all graphs of its own that it may have at once; 0: it has no such graphs.
    const MOST_NODES: usize;

    /// Its description.
    fn description(&self) -> &Description;

    /// Bytes that it has left for everybody, if that can be less than the session's own share.
    fn free_memory(&self) -> Option<u64>;

    /// A buffer.
    ///
    /// # Errors
    /// There is no memory.
    fn buffer(&mut self, bytes: usize) -> Result<Self::Buffer, DeviceError>;

    /// Makes a stream with the flags of `cuStreamCreate`.
    ///
    /// # Errors
    /// The driver's.
    fn make_stream(&mut self, key: Key, flags: u32, priority: i32) -> Result<(), DeviceError>;

    /// Lets go of a stream in which nothing is queued.
    fn drop_stream(&mut self, key: Key);

    /// Makes an event.
    ///
    /// # Errors
    /// The driver's.
    fn make_event(&mut self, key: Key, has_time: bool) -> Result<(), DeviceError>;

    /// Lets go of an event that nothing queued names.
    fn drop_event(&mut self, key: Key);

    /// Nanoseconds from one event to another; both have times, and have come.
    ///
    /// # Errors
    /// The driver's.
    fn elapsed_ns(&mut self, start: Key, end: Key) -> Result<u64, DeviceError>;

    /// Queues work in a stream behind what was queued there before, and does not wait. `tags` grow.
    ///
    /// # Errors
    /// It is not queued.
    fn submit(&mut self, tag: u64, stream: Key, work: WorkOf<Self>) -> Result<(), DeviceError>;

    /// Ends a kernel in its queue, begun or not, and nothing else; it fails with
    /// [`Cancelled`](ErrorCode::Cancelled). Whether there was one under this tag.
    ///
    /// # Errors
    /// The device cannot end a kernel alone.
    fn cancel(&mut self, tag: u64) -> Result<bool, DeviceError>;

    /// Has the [`waker`](Self::waker) raised when everything that is in a stream's queue now is done, if this thread
    /// [sleeps](Self::before_sleep) until then.
    fn wake_at_end(&mut self, stream: Key);

    /// This thread is about to wait: whatever was put off until more work comes is done now.
    fn before_wait(&mut self) {}

    /// Whether [`next_done`](Self::next_done) has something, as far as a few loads tell.
    fn has_news(&self) -> bool {
        false
    }

    /// This thread is about to sleep: from here on news raise the waker.
    fn before_sleep(&mut self) {}

    /// For how long a thread that has waited for `waited` sleeps before it looks for news again, which then need not
    /// raise the waker.
    fn nap(&self, waited: Duration) -> Option<Duration> {
        let _ = waited;
        None
    }

    /// The next work that is over, in the order of its stream. Does not wait.
    fn next_done(&mut self) -> Option<Done<Self::Buffer>>;

    /// At most `most` bytes of kernels' output, the oldest first, and the number of bytes lost before them. What a
    /// kernel printed is there when its launch is over.
    fn take_printed(&mut self, most: usize) -> (u64, Vec<u8>);

    /// Whether [`take_printed`](Self::take_printed) has something to give.
    fn has_printed(&mut self) -> bool;

    /// Whether it was given up because a kernel did not end. What is answered after that is an error.
    fn is_gone(&self) -> bool;

    /// Raised when work is over.
    fn waker(&self) -> &Arc<Waker>;

    /// For calls that may take their time.
    fn caller(&self) -> Self::Caller;

    /// Sets an attribute of a function.
    ///
    /// # Errors
    /// The driver's.
    fn set_attribute(
        &mut self,
        function: &mut Self::Function,
        attribute: u32,
        value: i32,
    ) -> Result<(), DeviceError>;

    /// A limit, in bytes. Does not wait.
    ///
    /// # Errors
    /// The driver's.
    fn limit(&mut self, limit: Limit) -> Result<u64, DeviceError>;

    /// Blocks of a function that a multiprocessor has at once, with so many threads and bytes of dynamic shared memory
    /// each. Does not wait.
    ///
    /// # Errors
    /// The driver's.
    fn occupancy(
        &mut self,
        function: &Self::Function,
        threads: u32,
        shared_bytes: u64,
        flags: u32,
    ) -> Result<u32, DeviceError>;
}

/// Makes calls, in whatever thread.
pub(in crate::executor) trait Caller: Clone + Send + 'static {
    /// As of the device.
    type Module;
    /// As of the device.
    type Function;
    /// As of the device.
    type Graph;

    /// Whether any call may wait for work in the queue; if not, only loading takes its time.
    const MAY_WAIT: bool;

    /// Makes one.
    ///
    /// # Errors
    /// The driver's.
    fn call(
        &self,
        call: Call<Self::Module, Self::Function>,
    ) -> Answered<Self::Module, Self::Function, Self::Graph>;
}

/// Work of a device.
pub(in crate::executor) type WorkOf<D> =
    Work<<D as Device>::Buffer, <D as Device>::Function, <D as Device>::Graph>;
/// A call for a device.
pub(in crate::executor) type CallOf<D> = Call<<D as Device>::Module, <D as Device>::Function>;
/// How a call ends.
pub(in crate::executor) type Answered<M, F, G> = Result<Answer<M, F, G>, DeviceError>;
/// How a call for a device ends.
pub(in crate::executor) type AnsweredOf<D> =
    Answered<<D as Device>::Module, <D as Device>::Function, <D as Device>::Graph>;

/// A call.
#[derive(Debug)]
pub(in crate::executor) enum Call<M, F> {
    /// This many bytes of memory.
    Allocate(u64),
    /// Memory for rows at distances that the device likes.
    AllocateRows {
        /// Bytes of a row.
        width: u64,
        /// Rows.
        height: u64,
        /// Bytes of what kernels read at once.
        element_bytes: u8,
    },
    /// The object that begins there.
    Free(u64),
    /// An image.
    Load(Vec<u8>),
    /// A module that nothing in the queue uses.
    Unload(M),
    /// The kernel of this name.
    Function(M, String),
    /// The variable of this name.
    Global(M, String),
    /// Memory that copies are to use.
    Register(Box<Region>),
    /// Memory that no copy uses any more.
    Unregister(Arc<Region>),
    /// A graph of the device's own, with these nodes.
    Graph(Vec<Node<F>>),
    /// A limit, in bytes.
    SetLimit(Limit, u64),
}

/// The result.
#[derive(Debug)]
pub(in crate::executor) enum Answer<M, F, G> {
    /// Freed, unloaded or unregistered.
    Done,
    /// First address of the memory.
    Address(u64),
    /// First address of the first row, and bytes from there to the next row.
    Rows(u64, u64),
    /// A module.
    Module(M),
    /// A kernel.
    Function(F, Layout),
    /// Address and bytes of a variable.
    Global(u64, u64),
    /// The memory that was given.
    Registered(Box<Region>),
    /// A graph.
    Graph(G),
    /// Bytes of a limit, as the driver has rounded them.
    Limit(u64),
}

/// A limit of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::executor) enum Limit {
    /// `CU_LIMIT_STACK_SIZE`: a thread's.
    Stack = 0,
    /// `CU_LIMIT_PRINTF_FIFO_SIZE`.
    Printed = 1,
    /// `CU_LIMIT_MALLOC_HEAP_SIZE`.
    Heap = 2,
}

/// A kernel's launch parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::executor) struct Layout {
    /// Bytes of the packed parameters.
    pub(in crate::executor) parameter_bytes: u32,
    /// Each parameter's place.
    pub(in crate::executor) parameters: Vec<ParameterPlace>,
    /// By `CUfunction_attribute`.
    pub(in crate::executor) attributes: Vec<i32>,
}

/// Rows of bytes on a device, at equal distances. One row is a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::executor) struct Rows {
    /// First address of the first row.
    pub(in crate::executor) address: u64,
    /// Bytes from the beginning of one to that of the next.
    pub(in crate::executor) pitch: u64,
    /// Bytes of each.
    pub(in crate::executor) width: u64,
    /// How many there are.
    pub(in crate::executor) height: u64,
}

impl Rows {
    /// One row.
    pub(in crate::executor) fn range(address: u64, bytes: u64) -> Self {
        Self {
            address,
            pitch: bytes,
            width: bytes,
            height: 1,
        }
    }

    /// The bytes of all rows.
    pub(in crate::executor) fn bytes(&self) -> u64 {
        self.width.saturating_mul(self.height)
    }

    /// Bytes from the first of the first row to the last of the last one, where numbers have that.
    pub(in crate::executor) fn span(&self) -> Option<u64> {
        let last = (self.height.checked_sub(1)?).checked_mul(self.pitch)?;
        last.checked_add(self.width)
    }
}

/// Something for a device's queue.
#[derive(Debug)]
pub(in crate::executor) enum Work<B, F, G> {
    /// The first bytes of `buffer` go to the device, as many as the rows have.
    Upload { to: Rows, buffer: B },
    /// The first bytes of `buffer` come from the device, as many as the rows have.
    Download { from: Rows, buffer: B },
    /// One row goes to the device from a region.
    FromRegion { to: Rows, part: Part },
    /// One row comes from the device to a region.
    ToRegion { from: Rows, part: Part },
    /// Within the device, between rows of the same shape.
    Copy { to: Rows, from: Rows },
    /// Elements of 1, 2 or 4 bytes, as many as fill the rows.
    Fill {
        to: Rows,
        value: u32,
        element_bytes: u8,
    },
    /// A kernel.
    Launch(Launch<F>),
    /// A graph of the device's own, which may run for so long.
    Graph(G, Duration),
    /// This event comes when what is before is done.
    Record(Key),
    /// Later work waits for this event, as it was recorded last.
    Wait(Key),
}

/// Memory of the guest's that this process has mapped.
pub(in crate::executor) struct Region {
    // In this order: the device lets go of it before it is unmapped.
    /// The device's part of it; dropping that ends it.
    registration: Option<Box<dyn Any + Send + Sync>>,
    /// Its address for the device, where the device reads and writes it by itself.
    there: Option<u64>,
    view: Arc<View>,
    _mapped: MappedRegion,
}

impl Region {
    /// All of a region that both sides may write.
    ///
    /// # Errors
    /// It has ended, or is for reading only.
    pub(in crate::executor) fn new(mapped: MappedRegion) -> Result<Self, vchan::Error> {
        let view = mapped.view(0, mapped.len())?;
        match view.is_writable() {
            true => Ok(Self {
                registration: None,
                there: None,
                view: Arc::new(view),
                _mapped: mapped,
            }),
            false => Err(vchan::region::RegionError::ReadOnly.into()),
        }
    }

    /// Its bytes.
    pub(in crate::executor) fn view(&self) -> &View {
        &self.view
    }

    /// The same, for who keeps them mapped.
    pub(in crate::executor) fn kept(&self) -> Arc<View> {
        Arc::clone(&self.view)
    }

    /// The address of its first byte.
    pub(in crate::executor) fn start(&self) -> NonNull<u8> {
        self.view.as_ptr()
    }

    /// The address of its first byte for the device.
    pub(in crate::executor) fn there(&self) -> Option<u64> {
        self.there
    }

    /// Keeps what the device holds of it until it goes. For the device it begins at `there`.
    pub(in crate::executor) fn hold(&mut self, registration: impl Any + Send + Sync, there: u64) {
        self.registration = Some(Box::new(registration));
        self.there = Some(there);
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("view", &self.view)
            .finish_non_exhaustive()
    }
}

/// The bytes of a region that are copied, from `offset` on.
#[derive(Debug)]
pub(in crate::executor) struct Part {
    pub(in crate::executor) region: Arc<Region>,
    pub(in crate::executor) offset: usize,
    /// Written behind the copy, by the device where it can.
    pub(in crate::executor) word: Option<Word>,
}

/// A word at which the guest looks. It lies within the region and is aligned.
#[derive(Debug, Clone, Copy)]
pub(in crate::executor) struct Word {
    pub(in crate::executor) offset: usize,
    pub(in crate::executor) value: u64,
}

/// A launch.
#[derive(Debug)]
pub(in crate::executor) struct Launch<F> {
    pub(in crate::executor) function: F,
    pub(in crate::executor) grid: [u32; 3],
    pub(in crate::executor) block: [u32; 3],
    pub(in crate::executor) shared_bytes: u32,
    pub(in crate::executor) parameters: Vec<u8>,
    /// They name nothing but memory of the session.
    pub(in crate::executor) attributes: Vec<LaunchAttribute>,
    /// Longest time it may run.
    pub(in crate::executor) deadline: Duration,
}

/// A node of a graph of the device's own.
#[derive(Debug)]
pub(in crate::executor) struct Node<F> {
    /// The nodes that are done before it begins, by their places; lower ones than its own.
    pub(in crate::executor) before: [Option<u32>; 2],
    pub(in crate::executor) work: NodeWork<F>,
}

/// As the [`Work`] of these names.
#[derive(Debug)]
pub(in crate::executor) enum NodeWork<F> {
    /// It joins those before it.
    Nothing,
    Launch(Launch<F>),
    Copy {
        to: Rows,
        from: Rows,
    },
    Fill {
        to: Rows,
        value: u32,
        element_bytes: u8,
    },
}

/// Work that is over.
#[derive(Debug)]
pub(in crate::executor) struct Done<B> {
    pub(in crate::executor) tag: u64,
    /// Of a copy.
    pub(in crate::executor) buffer: Option<B>,
    /// Its result.
    pub(in crate::executor) result: Result<(), DeviceError>,
    /// When a kernel ran, or a row of kernels of which this was the last.
    pub(in crate::executor) ran: Option<Span>,
    /// The number of them.
    pub(in crate::executor) kernels: u32,
}

/// Time of a kernel, in nanoseconds of the device's clock, which may begin anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::executor) struct Span {
    pub(in crate::executor) began: i64,
    pub(in crate::executor) ended: i64,
}

impl Span {
    /// Its length in nanoseconds.
    pub(in crate::executor) fn ns(self) -> u64 {
        u64::try_from(self.ended.saturating_sub(self.began)).unwrap_or(0)
    }
}

/// The fixed properties of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::executor) struct Description {
    pub(in crate::executor) name: String,
    pub(in crate::executor) uuid: [u8; 16],
    pub(in crate::executor) total_memory: u64,
    pub(in crate::executor) driver_version: u32,
    /// By `CUdevice_attribute`.
    pub(in crate::executor) attributes: Vec<i32>,
}

/// A `CUresult` other than success, or [`ErrorCode::Cancelled`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::executor) struct DeviceError {
    /// The number.
    pub(in crate::executor) code: i32,
    /// For people.
    pub(in crate::executor) text: String,
    /// Whether everything that follows fails in the same way.
    pub(in crate::executor) sticky: bool,
}

impl DeviceError {
    /// The result that the guest receives.
    pub(in crate::executor) fn status(&self) -> Status {
        match self.code == ErrorCode::Cancelled.to_raw() {
            true => ErrorCode::Cancelled.into(),
            false => Status::from_raw(self.code.max(1)),
        }
    }

    /// One that concerns a single call.
    pub(in crate::executor) fn new(code: i32, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
            sticky: false,
        }
    }
}

impl From<&DeviceError> for Failure {
    fn from(error: &DeviceError) -> Self {
        Self {
            status: error.status(),
            text: error.text.clone(),
        }
    }
}
