//! The interface between [`Gpu`](super::Gpu) and a device: a CUDA driver, or this machine's processor.

use std::sync::Arc;
use std::time::Duration;

use vgpu_protocol::op::ParameterPlace;
use vgpu_protocol::session::server::Failure;
use vgpu_protocol::status::Status;
use vgpu_transport::Waker;

/// Names a stream or an event of a device; 0 is the default stream.
pub(in crate::executor) type Key = u64;

/// What a device of either kind does. What it is given has been checked: addresses lie within what the
/// session owns, and functions are of modules that are loaded.
pub(in crate::executor) trait Device: Send {
    /// Memory on this side that the device copies to and from.
    type Buffer: AsRef<[u8]> + AsMut<[u8]> + Send;
    /// A loaded module.
    type Module: Clone + Send + 'static;
    /// A kernel of one.
    type Function: Clone + Send + 'static;
    /// The thread for calls that block.
    type Caller: Caller<Module = Self::Module, Function = Self::Function>;

    /// Works that may be in its queue before [`submit`](Self::submit) might wait.
    const MOST_WORK: usize;
    /// Whether it hands over what kernels print.
    const PRINTS: bool;
    /// Bytes of memory that a byte of a module's image comes to.
    const IMAGE_COST: u64;

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
    fn submit(
        &mut self,
        tag: u64,
        stream: Key,
        work: Work<Self::Buffer, Self::Function>,
    ) -> Result<(), DeviceError>;

    /// Has the [`waker`](Self::waker) raised when everything that is in a stream's queue now is done.
    ///
    /// # Errors
    /// The device cannot do that.
    fn wake_at_end(&mut self, stream: Key) -> Result<(), DeviceError>;

    /// The next work that is over, in the order of its stream. Does not wait.
    fn next_done(&mut self) -> Option<Done<Self::Buffer>>;

    /// At most so many bytes of what kernels have printed, the oldest first, and how many before them are lost. What a
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
}

/// Makes calls, in whatever thread.
pub(in crate::executor) trait Caller: Clone + Send + 'static {
    /// As of the device.
    type Module;
    /// As of the device.
    type Function;

    /// Whether any call may wait for work in the queue; if not, only loading takes its time.
    const MAY_WAIT: bool;

    /// Makes one.
    ///
    /// # Errors
    /// The driver's.
    fn call(
        &self,
        call: Call<Self::Module>,
    ) -> Result<Answer<Self::Module, Self::Function>, DeviceError>;
}

/// A call.
#[derive(Debug)]
pub(in crate::executor) enum Call<M> {
    /// So many bytes of memory.
    Allocate(u64),
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
}

/// The result.
#[derive(Debug)]
pub(in crate::executor) enum Answer<M, F> {
    /// Freed or unloaded.
    Done,
    /// Where the memory begins.
    Address(u64),
    /// A module.
    Module(M),
    /// A kernel.
    Function(F, Layout),
    /// Address and bytes of a variable.
    Global(u64, u64),
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

/// Something for a device's queue.
#[derive(Debug)]
pub(in crate::executor) enum Work<B, F> {
    /// The first `bytes` of `buffer` go to the device.
    Upload { to: u64, buffer: B, bytes: usize },
    /// The first `bytes` of `buffer` come from the device.
    Download { from: u64, buffer: B, bytes: usize },
    /// Within the device.
    Copy { to: u64, from: u64, bytes: u64 },
    /// `count` elements of 1, 2 or 4 bytes.
    Fill {
        to: u64,
        value: u32,
        element_bytes: u8,
        count: u64,
    },
    /// A kernel.
    Launch(Launch<F>),
    /// This event comes when what is before is done.
    Record(Key),
    /// Later work waits for this event, as it was recorded last.
    Wait(Key),
}

/// A launch.
#[derive(Debug)]
pub(in crate::executor) struct Launch<F> {
    pub(in crate::executor) function: F,
    pub(in crate::executor) grid: [u32; 3],
    pub(in crate::executor) block: [u32; 3],
    pub(in crate::executor) shared_bytes: u32,
    pub(in crate::executor) parameters: Vec<u8>,
    /// Longest time it may run.
    pub(in crate::executor) deadline: Duration,
}

/// Work that is over.
#[derive(Debug)]
pub(in crate::executor) struct Done<B> {
    pub(in crate::executor) tag: u64,
    /// Of a copy.
    pub(in crate::executor) buffer: Option<B>,
    /// How it went.
    pub(in crate::executor) result: Result<(), DeviceError>,
    /// Nanoseconds that a kernel ran.
    pub(in crate::executor) device_ns: u64,
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

/// A `CUresult` other than success.
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
            status: Status::from_raw(error.code.max(1)),
            text: error.text.clone(),
        }
    }
}
