//! The operations, one row each.
//!
//! A row is `code => Request / Reply`, the feature it needs, whether a request may be quiet, the
//! fields of both bodies in the order they lie on the wire, and, where a request has data beyond its
//! body, how many bytes of it go up to the mediator and down to the guest. Everything else about an
//! operation on the wire comes from here: see the [module](super).

use std::num::{NonZeroU16, NonZeroU64};

use super::field::{Bytes, Field, FieldError, List, Reader, StreamRef, Text};
use super::{Body, Features, Operation};
use crate::handle::Handle;
use crate::status::Status;

/// Longest client name, in bytes.
pub const MAX_CLIENT_NAME: usize = 64;

/// Longest of each of the texts in [`InfoReply`], in bytes.
pub const MAX_INFO_TEXT: usize = 512;

/// Most bytes of a ping.
pub const MAX_PING: usize = 4096;

/// Failures a mediator keeps between two fences; what exceeds them is counted only.
pub const MAX_QUIET_FAILURES: usize = 64;

/// Longest name of a device, in bytes.
pub const MAX_DEVICE_NAME: usize = 256;

/// Attributes of a device at most; CUDA 13 has 150.
pub const MAX_ATTRIBUTES: usize = 256;

/// Longest name of a kernel or variable in a module, in bytes: templates make long ones.
pub const MAX_SYMBOL: usize = 8192;

/// Attributes of a function at most; CUDA 13 has 16.
pub const MAX_FUNCTION_ATTRIBUTES: usize = 32;

/// Parameters of a kernel at most.
pub const MAX_PARAMETERS: usize = 4096;

/// Bytes of a kernel's packed parameters at most, as CUDA has it from 12.1 on.
pub const MAX_PARAMETER_BYTES: usize = 32_764;

/// Bytes of a module's image at most.
pub const MAX_IMAGE: u64 = 256 << 20;

/// Flags that a stream may have: `CU_STREAM_NON_BLOCKING`.
pub const STREAM_FLAGS: u32 = 1;

/// Flags that an event may have: `CU_EVENT_BLOCKING_SYNC` and `CU_EVENT_DISABLE_TIMING`.
pub const EVENT_FLAGS: u32 = 3;

/// Bytes at most that one answer has of what kernels have printed.
pub const MAX_PRINTED: usize = 16 << 10;

/// What stands for an attribute that the driver does not have.
pub const NO_ATTRIBUTE: i32 = i32::MIN;

operations! {
    /// Opens the session. The first request, and only the first.
    1 => Hello / HelloReply {
        feature: NONE, quiet: no,
        request {
            /// Oldest version the guest speaks.
            min_version: NonZeroU16,
            /// Newest version the guest speaks, not below `min_version`.
            max_version: u16,
            /// What the guest can use; unknown bits are ignored.
            features: Features,
            /// Which program this is, for the mediator's log.
            client_name: Text<MAX_CLIENT_NAME>,
        } check rules::hello,
        reply {
            /// The version both speak from now on: the highest in common.
            version: NonZeroU16,
            /// What both sides have.
            features: Features,
            /// Lanes are numbered from 0 to one below this.
            max_lanes: NonZeroU16,
            /// Requests that may be under way at once, and quiet ones as many again.
            max_requests: NonZeroU16,
            /// Objects of each kind that may be open at once.
            max_handles: u32,
            /// Bytes of a request's data that may be sent before the mediator grants any.
            initial_credit: u32,
            /// Different for every session a mediator ever opens; state of another epoch is gone.
            epoch: u64,
        }
    }

    /// Ends the session in good order. The last request.
    2 => Goodbye / GoodbyeReply {
        feature: NONE, quiet: no,
        request {}
        reply {}
    }

    /// What executes the session's work, and why that.
    5 => Info / InfoReply {
        feature: NONE, quiet: no,
        request {}
        reply {
            /// Bytes of device memory.
            total_memory: u64,
            /// `cuda`, `cpu` or `relay`.
            executor: Text<MAX_INFO_TEXT>,
            /// The device's name.
            device: Text<MAX_INFO_TEXT>,
            /// Driver name and version.
            driver: Text<MAX_INFO_TEXT>,
            /// One line: why the mediator took this executor.
            reason: Text<MAX_INFO_TEXT>,
            /// Name and version of the mediator.
            mediator: Text<MAX_INFO_TEXT>,
        }
    }

    /// Sends the same bytes back. A quiet one is only received.
    6 => Ping / PingReply {
        feature: NONE, quiet: yes,
        request {
            /// Any bytes.
            payload: Bytes<MAX_PING>,
        }
        reply {
            /// The same bytes.
            payload: Bytes<MAX_PING>,
        }
    }

    /// Waits for every request of its lane before it, and reports the quiet ones that failed.
    7 => Fence / FenceReply {
        feature: QUIET, quiet: no,
        request {}
        reply {
            /// Failures that no entry of the list names.
            dropped: u32,
            /// The first quiet requests that failed since the fence before, of any lane.
            failures: List<QuietFailure, MAX_QUIET_FAILURES>,
        }
    }

    /// Takes data and sends its first bytes back while more of it comes: no device has to do with it, so that it
    /// shows what the way to the mediator can do.
    8 => Exchange / ExchangeReply {
        feature: EXCHANGE, quiet: no,
        request {
            /// Bytes that come up, fewer than 2^60.
            up: u64,
            /// Bytes that go down, the first of those that come.
            down: u64,
        } check rules::exchange,
        reply {}
        data up |exchange| exchange.up,
        data down |exchange| exchange.down,
    }

    /// Takes what kernels have printed: the oldest first, as much as an answer holds. An answer without the flag
    /// PRINTED was the last of it.
    15 => TakePrinted / TakePrintedReply {
        feature: PRINTED, quiet: no,
        request {}
        reply {
            /// Bytes that were printed before these and are lost: the mediator keeps a bounded number.
            lost: u64,
            /// The bytes, whatever they are: lines of text, as a rule, whose last may have no end yet.
            text: Bytes<MAX_PRINTED>,
        }
    }

    /// What a device is and can do: everything that does not change.
    16 => DeviceInfo / DeviceInfoReply {
        feature: GPU, quiet: no,
        request {
            /// Which device of the session, from 0.
            device: u32,
        }
        reply {
            /// Devices of the session.
            devices: u32,
            /// Bytes of device memory that this session may have.
            total_memory: u64,
            /// The newest version of CUDA that the driver knows, as 1000 × major + 10 × minor.
            driver_version: u32,
            /// The device's own 16 bytes, or none.
            uuid: Bytes<16>,
            /// Its name.
            name: Text<MAX_DEVICE_NAME>,
            /// At place k the value of `CUdevice_attribute` k; -2147483648 where there is none.
            attributes: List<i32, MAX_ATTRIBUTES>,
        }
    }

    /// How much device memory there is (`cuMemGetInfo`).
    17 => MemoryInfo / MemoryInfoReply {
        feature: GPU, quiet: no,
        request {}
        reply {
            /// Bytes that can still be allocated.
            free: u64,
            /// Bytes that this session may have.
            total: u64,
        }
    }

    /// Allocates device memory (`cuMemAlloc`).
    18 => MemoryAllocate / MemoryAllocateReply {
        feature: GPU, quiet: no,
        request {
            /// Bytes.
            bytes: NonZeroU64,
        }
        reply {
            /// Where they begin.
            address: u64,
        }
    }

    /// Frees an allocation once the work sent before is done (`cuMemFree`). Work sent later can no longer name it.
    19 => MemoryFree / MemoryFreeReply {
        feature: GPU, quiet: yes,
        request {
            /// Where the allocation begins.
            address: u64,
        }
        reply {}
    }

    /// Copies its data to the device (`cuMemcpyHtoDAsync` of pageable memory). It is over when its data has been taken.
    20 => CopyToDevice / CopyToDeviceReply {
        feature: GPU, quiet: yes,
        request {
            /// First address. The bytes lie within one allocation.
            to: u64,
            /// Bytes.
            bytes: NonZeroU64,
            /// In the order of which stream.
            stream: StreamRef,
        }
        reply {}
        data up |copy| copy.bytes.get(),
    }

    /// Copies from the device to its data, once the work before it in the stream is done (`cuMemcpyDtoHAsync`).
    21 => CopyFromDevice / CopyFromDeviceReply {
        feature: GPU, quiet: no,
        request {
            /// First address. The bytes lie within one allocation.
            from: u64,
            /// Bytes.
            bytes: NonZeroU64,
            /// In the order of which stream.
            stream: StreamRef,
        }
        reply {
            /// Nanoseconds that the device ran kernels of this session, since the last such answer.
            device_ns: u64,
        }
        data down |copy| copy.bytes.get(),
    }

    /// Copies within the device (`cuMemcpyDtoDAsync`).
    22 => CopyWithinDevice / CopyWithinDeviceReply {
        feature: GPU, quiet: yes,
        request {
            /// First address to write.
            to: u64,
            /// First address to read.
            from: u64,
            /// Bytes.
            bytes: NonZeroU64,
            /// In the order of which stream.
            stream: StreamRef,
        }
        reply {}
    }

    /// Sets elements to one value (`cuMemsetD8Async`, `D16Async`, `D32Async`).
    23 => Fill / FillReply {
        feature: GPU, quiet: yes,
        request {
            /// First address, a multiple of the element's bytes.
            to: u64,
            /// The value; its low bits where an element has fewer than 32.
            value: u32,
            /// Bytes of an element: 1, 2 or 4.
            element_bytes: u8,
            /// Elements.
            count: NonZeroU64,
            /// In the order of which stream.
            stream: StreamRef,
        } check rules::fill,
        reply {}
    }

    /// Loads a module from its data: PTX, a cubin or a fatbin (`cuModuleLoadData`). Where it fails, whatever
    /// names the module fails in the same way until it is unloaded.
    24 => ModuleLoad / ModuleLoadReply {
        feature: GPU, quiet: no,
        request {
            /// The module from now on.
            module: Handle,
            /// Bytes of the image, at most 256 MiB.
            bytes: NonZeroU64,
        } check rules::module_load,
        reply {}
        data up |load| load.bytes.get(),
    }

    /// Unloads a module once the work sent before is done (`cuModuleUnload`).
    25 => ModuleUnload / ModuleUnloadReply {
        feature: GPU, quiet: yes,
        request {
            /// Which.
            module: Handle,
        }
        reply {}
    }

    /// Looks a kernel up (`cuModuleGetFunction`, `cuFuncGetAttribute`, `cuFuncGetParamInfo`).
    26 => ModuleFunction / ModuleFunctionReply {
        feature: GPU, quiet: no,
        request {
            /// Where.
            module: Handle,
            /// Its name, as the image has it.
            name: Text<MAX_SYMBOL>,
        }
        reply {
            /// Its number in the module.
            function: u32,
            /// Bytes of its packed parameters.
            parameter_bytes: u32,
            /// At place k the value of `CUfunction_attribute` k; -2147483648 where there is none.
            attributes: List<i32, MAX_FUNCTION_ATTRIBUTES>,
            /// Its parameters in their order.
            parameters: List<ParameterPlace, MAX_PARAMETERS>,
        }
    }

    /// Looks a variable up (`cuModuleGetGlobal`). Copies may name its memory until the module is unloaded.
    27 => ModuleGlobal / ModuleGlobalReply {
        feature: GPU, quiet: no,
        request {
            /// Where.
            module: Handle,
            /// Its name, as the image has it.
            name: Text<MAX_SYMBOL>,
        }
        reply {
            /// Where it lies.
            address: u64,
            /// Its bytes.
            bytes: u64,
        }
    }

    /// Sets an attribute of a kernel for the launches that follow (`cuFuncSetAttribute`).
    28 => FunctionSetAttribute / FunctionSetAttributeReply {
        feature: GPU, quiet: yes,
        request {
            /// The module.
            module: Handle,
            /// The kernel's number there.
            function: u32,
            /// `CUfunction_attribute`.
            attribute: u32,
            /// Its new value.
            value: i32,
        }
        reply {}
    }

    /// Runs a kernel (`cuLaunchKernel`). It is over when the device has it in its queue.
    29 => Launch / LaunchReply {
        feature: GPU, quiet: yes,
        request {
            /// The module.
            module: Handle,
            /// The kernel's number there.
            function: u32,
            /// Blocks.
            grid: [u32; 3],
            /// Threads of a block.
            block: [u32; 3],
            /// Bytes of dynamic shared memory of a block.
            shared_bytes: u32,
            /// In the order of which stream.
            stream: StreamRef,
            /// Longest time it may run; 0 = the mediator's own limit.
            deadline_ms: u32,
            /// The parameters, each at its place.
            parameters: Bytes<MAX_PARAMETER_BYTES>,
        }
        reply {}
    }

    /// Waits until the device has done everything that was sent before, on any lane (`cuCtxSynchronize`).
    30 => Synchronize / SynchronizeReply {
        feature: GPU, quiet: no,
        request {}
        reply {
            /// Nanoseconds that the device ran kernels of this session, since the last such answer.
            device_ns: u64,
        }
    }

    /// Waits until the device has done everything that was sent to one stream before (`cuStreamSynchronize`).
    31 => StreamSynchronize / StreamSynchronizeReply {
        feature: GPU, quiet: no,
        request {
            /// Which.
            stream: StreamRef,
        }
        reply {
            /// Nanoseconds that the device ran kernels of this session, since the last such answer.
            device_ns: u64,
        }
    }

    /// Opens a stream (`cuStreamCreateWithPriority`). Where it fails, whatever names the stream fails in the
    /// same way until it is destroyed.
    32 => StreamCreate / StreamCreateReply {
        feature: GPU, quiet: yes,
        request {
            /// The stream from now on.
            stream: Handle,
            /// `CU_STREAM_NON_BLOCKING` (1): it runs beside the default stream. 0: the two wait for each other.
            flags: u32,
            /// Lower numbers first; what the device does not have is taken for the nearest that it has.
            priority: i32,
        }
        reply {}
    }

    /// Destroys a stream once the work sent before is done (`cuStreamDestroy`).
    33 => StreamDestroy / StreamDestroyReply {
        feature: GPU, quiet: yes,
        request {
            /// Which.
            stream: Handle,
        }
        reply {}
    }

    /// Whether a stream has nothing left to do (`cuStreamQuery`).
    34 => StreamQuery / StreamQueryReply {
        feature: GPU, quiet: no,
        request {
            /// Which.
            stream: StreamRef,
        }
        reply {
            /// 1 if everything that was sent to it before is done, 0 if not.
            done: u8,
        }
    }

    /// Has what is sent to a stream from now on wait for an event, as it was recorded last
    /// (`cuStreamWaitEvent`). An event that was never recorded is not waited for.
    35 => StreamWaitEvent / StreamWaitEventReply {
        feature: GPU, quiet: yes,
        request {
            /// Which waits.
            stream: StreamRef,
            /// For what.
            event: Handle,
        }
        reply {}
    }

    /// Makes an event (`cuEventCreate`). Where it fails, whatever names the event fails in the same way until it is
    /// destroyed.
    36 => EventCreate / EventCreateReply {
        feature: GPU, quiet: yes,
        request {
            /// The event from now on.
            event: Handle,
            /// `CU_EVENT_DISABLE_TIMING` (2): it has no time. `CU_EVENT_BLOCKING_SYNC` (1) changes nothing.
            flags: u32,
        }
        reply {}
    }

    /// Destroys an event (`cuEventDestroy`).
    37 => EventDestroy / EventDestroyReply {
        feature: GPU, quiet: yes,
        request {
            /// Which.
            event: Handle,
        }
        reply {}
    }

    /// Records an event: it comes when the stream has done what was sent to it before (`cuEventRecord`).
    38 => EventRecord / EventRecordReply {
        feature: GPU, quiet: yes,
        request {
            /// Which.
            event: Handle,
            /// Where.
            stream: StreamRef,
        }
        reply {}
    }

    /// Whether an event has come, as it was recorded last (`cuEventQuery`).
    39 => EventQuery / EventQueryReply {
        feature: GPU, quiet: no,
        request {
            /// Which.
            event: Handle,
        }
        reply {
            /// 1 if it has come or was never recorded, 0 if not.
            done: u8,
        }
    }

    /// Waits until an event has come, as it was recorded last (`cuEventSynchronize`).
    40 => EventSynchronize / EventSynchronizeReply {
        feature: GPU, quiet: no,
        request {
            /// Which.
            event: Handle,
        }
        reply {
            /// Nanoseconds that the device ran kernels of this session, since the last such answer.
            device_ns: u64,
        }
    }

    /// The time between two events that have come (`cuEventElapsedTime`).
    41 => EventElapsed / EventElapsedReply {
        feature: GPU, quiet: no,
        request {
            /// The earlier.
            start: Handle,
            /// The later.
            end: Handle,
        }
        reply {
            /// Nanoseconds, as finely as the device tells them; 0 where the first came later.
            nanoseconds: u64,
        }
    }
}

/// The rules that concern more than one field.
mod rules {
    use super::*;

    pub(super) fn hello(hello: &Hello) -> Result<(), (&'static str, FieldError)> {
        if hello.max_version < hello.min_version.get() {
            let value = hello.max_version.into();
            let rule = "below min_version";
            return Err(("max_version", FieldError::Value { value, rule }));
        }
        Ok(())
    }

    pub(super) fn fill(fill: &Fill) -> Result<(), (&'static str, FieldError)> {
        let value = fill.element_bytes.into();
        if ![1, 2, 4].contains(&value) {
            let rule = "1, 2 or 4 needed";
            return Err(("element_bytes", FieldError::Value { value, rule }));
        }
        Ok(())
    }

    pub(super) fn module_load(load: &ModuleLoad) -> Result<(), (&'static str, FieldError)> {
        let value = load.bytes.get();
        if value > MAX_IMAGE {
            let rule = "at most 256 MiB allowed";
            return Err(("bytes", FieldError::Value { value, rule }));
        }
        Ok(())
    }

    pub(super) fn exchange(exchange: &Exchange) -> Result<(), (&'static str, FieldError)> {
        if exchange.up >= 1 << 60 {
            let (value, rule) = (exchange.up, "2^60 and more have no room anywhere");
            return Err(("up", FieldError::Value { value, rule }));
        }
        if exchange.down > exchange.up {
            let (value, rule) = (exchange.down, "more than come up");
            return Err(("down", FieldError::Value { value, rule }));
        }
        Ok(())
    }
}

/// Where a parameter of a kernel lies among the packed ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterPlace {
    /// Bytes before it.
    pub offset: u32,
    /// Its own bytes.
    pub size: u32,
}

impl Field for ParameterPlace {
    const NAME: &'static str = "offset u32, size u32";
    const MAX_LEN: usize = 8;

    fn write(&self, body: &mut Vec<u8>) {
        self.offset.write(body);
        self.size.write(body);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FieldError> {
        let (offset, size) = (u32::read(reader)?, u32::read(reader)?);
        // What is told to a guest goes into its own packed parameters.
        let end = u64::from(offset) + u64::from(size);
        if end > MAX_PARAMETER_BYTES as u64 {
            let rule = "beyond the longest parameters";
            return Err(FieldError::Value { value: end, rule });
        }
        Ok(Self { offset, size })
    }
}

/// One quiet request that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuietFailure {
    /// Which request.
    pub request_id: u32,
    /// What it was.
    pub op: Op,
    /// How it failed; never [`Status::Ok`].
    pub status: Status,
}

impl Field for QuietFailure {
    const NAME: &'static str = "request id u32, op u16, status i32";
    const MAX_LEN: usize = 10;

    fn write(&self, body: &mut Vec<u8>) {
        self.request_id.write(body);
        self.op.code().write(body);
        self.status.write(body);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FieldError> {
        let request_id = u32::read(reader)?;
        let code = u16::read(reader)?;
        let op = Op::from_code(code).ok_or(FieldError::Value {
            value: code.into(),
            rule: "not an operation of this version",
        })?;
        let status = Status::read(reader)?;
        if status.is_ok() {
            let rule = "a failure needs an error code";
            return Err(FieldError::Value { value: 0, rule });
        }
        Ok(Self {
            request_id,
            op,
            status,
        })
    }
}
