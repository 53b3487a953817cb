//! The operations, one row each.
//!
//! A row is `code => Request / Reply`, the feature it needs, whether a request may be quiet, the
//! fields of both bodies in the order they lie on the wire, and, where a request has data beyond its
//! body, how many bytes of it go up to the mediator and down to the guest. Everything else about an
//! operation on the wire comes from here: see the [module](super).

use std::num::{NonZeroU16, NonZeroU64};

use super::field::{Bytes, Field, FieldError, List, PoolRef, Reader, StreamRef, Text};
use super::{Body, Features, Operation};
use crate::handle::Handle;
use crate::status::Status;

/// Longest client name, in bytes.
pub const MAX_CLIENT_NAME: usize = 64;

/// Longest of each of the texts in [`InfoReply`], in bytes.
pub const MAX_INFO_TEXT: usize = 512;

/// Most bytes of a ping.
pub const MAX_PING: usize = 4096;

/// Failures that a mediator keeps between two fences; further ones are only counted.
pub const MAX_QUIET_FAILURES: usize = 64;

/// Longest name of a device, in bytes.
pub const MAX_DEVICE_NAME: usize = 256;

/// Most attributes of a device; CUDA 13 has 150.
pub const MAX_ATTRIBUTES: usize = 256;

/// Longest name of a kernel or variable in a module, in bytes: templates make long ones.
pub const MAX_SYMBOL: usize = 8192;

/// Most attributes of a function; CUDA 13 has 16.
pub const MAX_FUNCTION_ATTRIBUTES: usize = 32;

/// Most parameters of a kernel.
pub const MAX_PARAMETERS: usize = 4096;

/// Most bytes of a kernel's packed parameters, as in CUDA since 12.1.
pub const MAX_PARAMETER_BYTES: usize = 32_764;

/// Most attributes of a launch.
pub const MAX_LAUNCH_ATTRIBUTES: usize = 8;

/// Bytes of a launch attribute's value, as of a `CUlaunchAttributeValue`.
pub const LAUNCH_ATTRIBUTE_VALUE: usize = 64;

/// Most bytes of a module's image.
pub const MAX_IMAGE: u64 = 256 << 20;

/// Most bytes of CUDA C++ and its headers in one request.
pub const MAX_SOURCE: u64 = 1 << 20;

/// Longest name of a source or a header, in bytes.
pub const MAX_SOURCE_NAME: usize = 128;

/// Most headers of a source.
pub const MAX_HEADERS: usize = 64;

/// Longest option of the compiler, in bytes.
pub const MAX_COMPILE_OPTION: usize = 512;

/// Most options of the compiler.
pub const MAX_COMPILE_OPTIONS: usize = 32;

/// Most bytes of the compiler's log in an answer.
pub const MAX_COMPILE_LOG: usize = 32 << 10;

/// Flags that a stream may have: `CU_STREAM_NON_BLOCKING`.
pub const STREAM_FLAGS: u32 = 1;

/// Flags that an event may have: `CU_EVENT_BLOCKING_SYNC` and `CU_EVENT_DISABLE_TIMING`.
pub const EVENT_FLAGS: u32 = 3;

/// Modes of a capture: `CU_STREAM_CAPTURE_MODE_GLOBAL`, `THREAD_LOCAL` and `RELAXED`.
pub const CAPTURE_MODES: u8 = 3;

/// Most bytes of printed output in one answer.
pub const MAX_PRINTED: usize = 16 << 10;

/// Bytes of a region's ticket, by which the other side maps it.
pub const REGION_TICKET: usize = 48;

/// No word is written when a copy is done.
pub const NO_WORD: u64 = u64::MAX;

/// The value of an attribute that the driver does not have.
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
            /// Features that the guest can use; unknown bits are ignored.
            features: Features,
            /// Name of the client program, for the mediator's log.
            client_name: Text<MAX_CLIENT_NAME>,
        } check rules::hello,
        reply {
            /// The version both speak from now on: the highest in common.
            version: NonZeroU16,
            /// The features that both sides have.
            features: Features,
            /// Lanes are numbered from 0 to one below this.
            max_lanes: NonZeroU16,
            /// Most requests under way at once, and as many quiet ones.
            max_requests: NonZeroU16,
            /// Most objects of each kind that may be open at once.
            max_handles: u32,
            /// Bytes of a request's data that may be sent before the mediator grants any.
            initial_credit: u32,
            /// Different for every session that a mediator ever opens; state of another epoch is
            /// gone.
            epoch: u64,
        }
    }

    /// Ends the session in good order. The last request.
    2 => Goodbye / GoodbyeReply {
        feature: NONE, quiet: no,
        request {}
        reply {}
    }

    /// Describes the executor and the device of the session's work, and why the executor was chosen.
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
            /// One line: why the mediator chose this executor.
            reason: Text<MAX_INFO_TEXT>,
            /// Name and version of the mediator.
            mediator: Text<MAX_INFO_TEXT>,
        }
    }

    /// Returns the same bytes. A quiet one is only received.
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
            /// Failures that the list does not name.
            dropped: u32,
            /// The first quiet requests that have failed since the last fence, on any lane.
            failures: List<QuietFailure, MAX_QUIET_FAILURES>,
        }
    }

    /// Takes data and returns its first bytes while more of it arrives. No device takes part, so it
    /// shows what the connection to the mediator can do.
    8 => Exchange / ExchangeReply {
        feature: EXCHANGE, quiet: no,
        request {
            /// Bytes that go up, fewer than 2^60.
            up: u64,
            /// Bytes that come down, the first of those that go up.
            down: u64,
        } check rules::exchange,
        reply {}
        data up |exchange| exchange.up,
        data down |exchange| exchange.down,
    }

    /// Takes printed output of kernels, the oldest first, as much as fits an answer. An answer
    /// without the flag PRINTED was the last of it.
    15 => TakePrinted / TakePrintedReply {
        feature: PRINTED, quiet: no,
        request {}
        reply {
            /// Bytes lost before these: the mediator keeps a bounded number.
            lost: u64,
            /// The bytes: as a rule lines of text, of which the last may be incomplete.
            text: Bytes<MAX_PRINTED>,
        }
    }

    /// Describes a device: everything that does not change.
    16 => DeviceInfo / DeviceInfoReply {
        feature: GPU, quiet: no,
        request {
            /// Index of the device in the session, from 0.
            device: u32,
        }
        reply {
            /// Number of devices in the session.
            devices: u32,
            /// Bytes of device memory that this session may use.
            total_memory: u64,
            /// The newest version of CUDA that the driver supports, as 1000 × major + 10 × minor.
            driver_version: u32,
            /// The device's own 16 bytes, or none.
            uuid: Bytes<16>,
            /// Its name.
            name: Text<MAX_DEVICE_NAME>,
            /// At index k the value of `CUdevice_attribute` k; -2147483648 where there is none.
            attributes: List<i32, MAX_ATTRIBUTES>,
        }
    }

    /// Has the session's work done on another of its devices (`cudaSetDevice`); at first that is device 0. Only before any
    /// other request about a device but DeviceInfo: later it is refused (708). Info describes the new one from then on.
    14 => DeviceSelect / DeviceSelectReply {
        feature: GPU, quiet: no,
        request {
            /// Index of the device in the session, from 0.
            device: u32,
        }
        reply {}
    }

    /// Returns the free and the total device memory (`cuMemGetInfo`).
    17 => MemoryInfo / MemoryInfoReply {
        feature: GPU, quiet: no,
        request {}
        reply {
            /// Bytes that can still be allocated.
            free: u64,
            /// Bytes that this session may use.
            total: u64,
        }
    }

    /// Allocates device memory (`cuMemAlloc`).
    18 => MemoryAllocate / MemoryAllocateReply {
        feature: GPU, quiet: no,
        request {
            /// Bytes to allocate.
            bytes: NonZeroU64,
        }
        reply {
            /// First address.
            address: u64,
        }
    }

    /// Frees an allocation once the work sent before is done (`cuMemFree`). Work sent later cannot
    /// use it.
    19 => MemoryFree / MemoryFreeReply {
        feature: GPU, quiet: yes,
        request {
            /// First address of the allocation.
            address: u64,
        }
        reply {}
    }

    /// Copies its data to the device (`cuMemcpyHtoDAsync` of pageable memory). It is over once its
    /// data has been taken.
    20 => CopyToDevice / CopyToDeviceReply {
        feature: GPU, quiet: yes,
        request {
            /// First address. All bytes must be within one allocation.
            to: u64,
            /// Bytes.
            bytes: NonZeroU64,
            /// The stream whose order it joins.
            stream: StreamRef,
        }
        reply {}
        data up |copy| copy.bytes.get(),
    }

    /// Copies from the device to its data, once the work before it in the stream is done (`cuMemcpyDtoHAsync`).
    21 => CopyFromDevice / CopyFromDeviceReply {
        feature: GPU, quiet: no,
        request {
            /// First address. All bytes must be within one allocation.
            from: u64,
            /// Bytes.
            bytes: NonZeroU64,
            /// The stream whose order it joins.
            stream: StreamRef,
        }
        reply {
            /// Nanoseconds for which the device ran kernels of this session since the last such
            /// answer.
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
            /// The stream whose order it joins.
            stream: StreamRef,
        }
        reply {}
    }

    /// Sets elements to one value (`cuMemsetD8Async`, `D16Async`, `D32Async`).
    23 => FillRange / FillRangeReply {
        feature: GPU, quiet: yes,
        request {
            /// First address, a multiple of `element_bytes`.
            to: u64,
            /// The value; its low bits where an element has fewer than 32.
            value: u32,
            /// Bytes of an element: 1, 2 or 4.
            element_bytes: u8,
            /// Elements.
            count: NonZeroU64,
            /// The stream whose order it joins.
            stream: StreamRef,
        } check rules::fill,
        reply {}
    }

    /// Loads a module from its data: PTX, a cubin or a fatbin (`cuModuleLoadData`). If it fails,
    /// every request that names the module fails in the same way until it is unloaded.
    24 => ModuleLoad / ModuleLoadReply {
        feature: GPU, quiet: no,
        request {
            /// The handle of the new module.
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
            /// The module.
            module: Handle,
        }
        reply {}
    }

    /// Looks a kernel up (`cuModuleGetFunction`, `cuFuncGetAttribute`, `cuFuncGetParamInfo`).
    26 => ModuleFunction / ModuleFunctionReply {
        feature: GPU, quiet: no,
        request {
            /// The module.
            module: Handle,
            /// Its name in the image.
            name: Text<MAX_SYMBOL>,
        }
        reply {
            /// Its number in the module.
            function: u32,
            /// Bytes of its packed parameters.
            parameter_bytes: u32,
            /// At index k the value of `CUfunction_attribute` k; -2147483648 where there is none.
            attributes: List<i32, MAX_FUNCTION_ATTRIBUTES>,
            /// Its parameters in order.
            parameters: List<ParameterPlace, MAX_PARAMETERS>,
        }
    }

    /// Looks a variable up (`cuModuleGetGlobal`). Copies may use its memory until the module is
    /// unloaded.
    27 => ModuleGlobal / ModuleGlobalReply {
        feature: GPU, quiet: no,
        request {
            /// The module.
            module: Handle,
            /// Its name in the image.
            name: Text<MAX_SYMBOL>,
        }
        reply {
            /// Its address.
            address: u64,
            /// Its size in bytes.
            bytes: u64,
        }
    }

    /// Sets an attribute of a kernel for the launches that follow (`cuFuncSetAttribute`).
    28 => FunctionSetAttribute / FunctionSetAttributeReply {
        feature: GPU, quiet: yes,
        request {
            /// The module.
            module: Handle,
            /// The kernel's number in the module.
            function: u32,
            /// `CUfunction_attribute`.
            attribute: u32,
            /// Its new value.
            value: i32,
        }
        reply {}
    }

    /// Returns a limit of stacks, heap or printed output (`cuCtxGetLimit`).
    62 => ContextLimit / ContextLimitReply {
        feature: GPU, quiet: no,
        request {
            /// `CU_LIMIT_STACK_SIZE` (0) of a thread, `CU_LIMIT_PRINTF_FIFO_SIZE` (1) or
            /// `CU_LIMIT_MALLOC_HEAP_SIZE` (2); others are refused (215).
            limit: u32,
        }
        reply {
            /// Bytes.
            bytes: u64,
        }
    }

    /// Sets such a limit (`cuCtxSetLimit`). Device memory beyond that for the driver's own value counts as
    /// memory of the session: a stack as often as there can be threads on the device. E_QUOTA_MEMORY: it is more than the
    /// session may have.
    63 => ContextSetLimit / ContextSetLimitReply {
        feature: GPU, quiet: no,
        request {
            /// As of ContextLimit.
            limit: u32,
            /// Bytes.
            bytes: u64,
        }
        reply {}
    }

    /// Returns how many blocks of a kernel a multiprocessor has at once
    /// (`cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags`).
    61 => FunctionOccupancy / FunctionOccupancyReply {
        feature: GPU, quiet: no,
        request {
            /// The module.
            module: Handle,
            /// The kernel's number in the module.
            function: u32,
            /// Threads of a block.
            block_threads: u32,
            /// Bytes of dynamic shared memory of a block.
            shared_bytes: u64,
            /// `CU_OCCUPANCY_DISABLE_CACHING_OVERRIDE` (1), or 0.
            flags: u32,
        }
        reply {
            /// Blocks; 0 if not even one fits.
            blocks: u32,
        }
    }

    /// Runs a kernel (`cuLaunchKernel`, `cuLaunchKernelEx`). It is over once the device has it in its queue.
    /// E_UNSUPPORTED: an attribute that names an object of the mediator's process, or one that is not known.
    29 => Launch / LaunchReply {
        feature: GPU, quiet: yes,
        request {
            /// The module.
            module: Handle,
            /// The kernel's number in the module.
            function: u32,
            /// Number of blocks.
            grid: [u32; 3],
            /// Number of threads of a block.
            block: [u32; 3],
            /// Bytes of dynamic shared memory of a block.
            shared_bytes: u32,
            /// The stream whose order it joins.
            stream: StreamRef,
            /// Longest run time in milliseconds; 0 = the mediator's own limit.
            deadline_ms: u32,
            /// The packed parameters, each at its offset.
            parameters: Bytes<MAX_PARAMETER_BYTES>,
            /// `CUlaunchAttribute`s; mostly none.
            attributes: List<LaunchAttribute, MAX_LAUNCH_ATTRIBUTES>,
        }
        reply {}
    }

    /// Waits until the device has done all work sent before, on any lane (`cuCtxSynchronize`).
    30 => Synchronize / SynchronizeReply {
        feature: GPU, quiet: no,
        request {}
        reply {
            /// Nanoseconds for which the device ran kernels of this session since the last such
            /// answer.
            device_ns: u64,
        }
    }

    /// Waits until the device has done all work sent to one stream before (`cuStreamSynchronize`).
    31 => StreamSynchronize / StreamSynchronizeReply {
        feature: GPU, quiet: no,
        request {
            /// The stream.
            stream: StreamRef,
        }
        reply {
            /// Nanoseconds for which the device ran kernels of this session since the last such
            /// answer.
            device_ns: u64,
        }
    }

    /// Opens a stream (`cuStreamCreateWithPriority`). If it fails, every request that names the
    /// stream fails in the same way until it is destroyed.
    32 => StreamCreate / StreamCreateReply {
        feature: GPU, quiet: yes,
        request {
            /// The handle of the new stream.
            stream: Handle,
            /// `CU_STREAM_NON_BLOCKING` (1): it runs beside the default stream. 0: the two wait for
            /// each other.
            flags: u32,
            /// Lower numbers first; a priority that the device does not have is replaced by the
            /// nearest one it has.
            priority: i32,
        }
        reply {}
    }

    /// Destroys a stream once the work sent before is done (`cuStreamDestroy`).
    33 => StreamDestroy / StreamDestroyReply {
        feature: GPU, quiet: yes,
        request {
            /// The stream.
            stream: Handle,
        }
        reply {}
    }

    /// Tells whether a stream has nothing left to do (`cuStreamQuery`).
    34 => StreamQuery / StreamQueryReply {
        feature: GPU, quiet: no,
        request {
            /// The stream.
            stream: StreamRef,
        }
        reply {
            /// 1 if all work sent to it before is done, 0 if not.
            done: u8,
        }
    }

    /// Makes work sent to a stream from now on wait for the latest record of an event
    /// (`cuStreamWaitEvent`). An event that was never recorded causes no wait.
    35 => StreamWaitEvent / StreamWaitEventReply {
        feature: GPU, quiet: yes,
        request {
            /// The stream that waits.
            stream: StreamRef,
            /// The event that it waits for.
            event: Handle,
        }
        reply {}
    }

    /// Makes an event (`cuEventCreate`). If it fails, every request that names the event fails in
    /// the same way until it is destroyed.
    36 => EventCreate / EventCreateReply {
        feature: GPU, quiet: yes,
        request {
            /// The handle of the new event.
            event: Handle,
            /// `CU_EVENT_DISABLE_TIMING` (2): it has no time. `CU_EVENT_BLOCKING_SYNC` (1) has no
            /// effect.
            flags: u32,
        }
        reply {}
    }

    /// Destroys an event (`cuEventDestroy`).
    37 => EventDestroy / EventDestroyReply {
        feature: GPU, quiet: yes,
        request {
            /// The event.
            event: Handle,
        }
        reply {}
    }

    /// Records an event: it is reached when the stream has done all work sent to it before
    /// (`cuEventRecord`).
    38 => EventRecord / EventRecordReply {
        feature: GPU, quiet: yes,
        request {
            /// The event.
            event: Handle,
            /// The stream.
            stream: StreamRef,
        }
        reply {}
    }

    /// Tells whether the latest record of an event has been reached (`cuEventQuery`).
    39 => EventQuery / EventQueryReply {
        feature: GPU, quiet: no,
        request {
            /// The event.
            event: Handle,
        }
        reply {
            /// 1 if it has been reached or was never recorded, 0 if not.
            done: u8,
        }
    }

    /// Waits until the latest record of an event has been reached (`cuEventSynchronize`).
    40 => EventSynchronize / EventSynchronizeReply {
        feature: GPU, quiet: no,
        request {
            /// The event.
            event: Handle,
        }
        reply {
            /// Nanoseconds for which the device ran kernels of this session since the last such
            /// answer.
            device_ns: u64,
        }
    }

    /// Returns the time between two events that have been reached (`cuEventElapsedTime`).
    41 => EventElapsed / EventElapsedReply {
        feature: GPU, quiet: no,
        request {
            /// The earlier event.
            start: Handle,
            /// The later event.
            end: Handle,
        }
        reply {
            /// Nanoseconds, with the device's resolution; 0 if the first was reached later.
            nanoseconds: u64,
        }
    }

    /// Copies its data to rows of device memory, width bytes to each (`cuMemcpy2DAsync` of pageable memory). It is over
    /// when its data has been taken.
    42 => CopyRowsToDevice / CopyRowsToDeviceReply {
        feature: GPU, quiet: yes,
        request {
            /// First address of the first row. All rows lie within one allocation.
            to: u64,
            /// Bytes from the beginning of one row to that of the next: no fewer than `width`, no more than
            /// `CU_DEVICE_ATTRIBUTE_MAX_PITCH`.
            pitch: u64,
            /// Bytes of a row.
            width: NonZeroU64,
            /// Rows. All together have fewer than 2^60 bytes.
            height: NonZeroU64,
            /// The stream whose order it joins.
            stream: StreamRef,
        } check rules::copy_rows_to_device,
        reply {}
        data up |copy| copy.width.get().saturating_mul(copy.height.get()),
    }

    /// Copies rows of device memory to its data, once the work before it in the stream is done (`cuMemcpy2DAsync`).
    43 => CopyRowsFromDevice / CopyRowsFromDeviceReply {
        feature: GPU, quiet: no,
        request {
            /// First address of the first row. All rows lie within one allocation.
            from: u64,
            /// Bytes from the beginning of one row to that of the next: no fewer than `width`, no more than
            /// `CU_DEVICE_ATTRIBUTE_MAX_PITCH`.
            pitch: u64,
            /// Bytes of a row.
            width: NonZeroU64,
            /// Rows. All together have fewer than 2^60 bytes.
            height: NonZeroU64,
            /// The stream whose order it joins.
            stream: StreamRef,
        } check rules::copy_rows_from_device,
        reply {
            /// Nanoseconds for which the device ran kernels of this session since the last such answer.
            device_ns: u64,
        }
        data down |copy| copy.width.get().saturating_mul(copy.height.get()),
    }

    /// Copies rows within the device (`cuMemcpy2DAsync`). If they overlap, the result is undefined.
    44 => CopyRowsWithinDevice / CopyRowsWithinDeviceReply {
        feature: GPU, quiet: yes,
        request {
            /// First address to write.
            to: u64,
            /// Bytes from the beginning of one row there to that of the next.
            to_pitch: u64,
            /// First address to read.
            from: u64,
            /// Bytes from the beginning of one row there to that of the next.
            from_pitch: u64,
            /// Bytes of a row.
            width: NonZeroU64,
            /// Rows.
            height: NonZeroU64,
            /// The stream whose order it joins.
            stream: StreamRef,
        }
        reply {}
    }

    /// Sets the elements of rows to one value (`cuMemsetD2D8Async`, `D2D16Async`, `D2D32Async`).
    45 => FillRows / FillRowsReply {
        feature: GPU, quiet: yes,
        request {
            /// First address, a multiple of the element's bytes.
            to: u64,
            /// Bytes from the beginning of one row to that of the next, a multiple of the element's.
            pitch: u64,
            /// The value; its low bits where an element has fewer than 32.
            value: u32,
            /// Bytes of an element: 1, 2 or 4.
            element_bytes: u8,
            /// Elements of a row.
            width: NonZeroU64,
            /// Rows.
            height: NonZeroU64,
            /// The stream whose order it joins.
            stream: StreamRef,
        } check rules::fill_rows,
        reply {}
    }

    /// Allocates device memory for rows, with a pitch chosen by the device (`cuMemAllocPitch`). MemoryFree frees it.
    46 => MemoryAllocateRows / MemoryAllocateRowsReply {
        feature: GPU, quiet: no,
        request {
            /// Bytes of a row.
            width: NonZeroU64,
            /// Rows.
            height: NonZeroU64,
            /// Bytes of what kernels will read at once: 4, 8 or 16.
            element_bytes: u8,
        }
        reply {
            /// Where the first row begins.
            address: u64,
            /// Bytes from the beginning of one row to that of the next. All of them count against the quota.
            pitch: u64,
        }
    }

    /// Allocates device memory from a pool in the order of a stream (`cuMemAllocFromPoolAsync`): what that stream has freed
    /// there can be had again at once. What is sent to other streams waits for it by way of an event. CUDA error 2: it is more
    /// than the pool may have.
    47 => MemoryAllocateAsync / MemoryAllocateAsyncReply {
        feature: GPU, quiet: no,
        request {
            /// Bytes.
            bytes: NonZeroU64,
            /// From which pool.
            pool: PoolRef,
            /// In the order of which stream.
            stream: StreamRef,
        }
        reply {
            /// Where they begin.
            address: u64,
        }
    }

    /// Frees an allocation in the order of a stream (`cuMemFreeAsync`): its pool has it from there on. Work sent later
    /// can no longer name it. MemoryFree gives it to its pool as well, in the order of all streams.
    48 => MemoryFreeAsync / MemoryFreeAsyncReply {
        feature: GPU, quiet: yes,
        request {
            /// Where the allocation begins.
            address: u64,
            /// In the order of which stream.
            stream: StreamRef,
        }
        reply {}
    }

    /// Bytes held by a pool (`cuMemPoolGetAttribute`). Against the quota counts what it has from the device, in use or not.
    49 => MemoryPoolInfo / MemoryPoolInfoReply {
        feature: GPU, quiet: no,
        request {
            /// The pool.
            pool: PoolRef,
        }
        reply {
            /// Bytes that it may keep when a wait for the device ends.
            release_threshold: u64,
            /// Bytes that it has from the device.
            reserved: u64,
            /// The most so far.
            reserved_high: u64,
            /// Bytes of them that are allocated.
            used: u64,
            /// The most so far.
            used_high: u64,
        }
    }

    /// Sets an attribute of a pool (`cuMemPoolSetAttribute`).
    50 => MemoryPoolSetAttribute / MemoryPoolSetAttributeReply {
        feature: GPU, quiet: yes,
        request {
            /// The pool.
            pool: PoolRef,
            /// `CUmemPool_attribute`: 4, the release threshold, at first 0; 6 or 8, the most bytes reserved or used.
            attribute: u32,
            /// Its new value; of the most bytes 0, which stands for as many as there are now.
            value: u64,
        }
        reply {}
    }

    /// Gives what a pool does not use back to the device (`cuMemPoolTrimTo`), once the work sent before is done.
    51 => MemoryPoolTrim / MemoryPoolTrimReply {
        feature: GPU, quiet: yes,
        request {
            /// The pool.
            pool: PoolRef,
            /// Bytes that it may keep.
            keep: u64,
        }
        reply {}
    }

    /// Begins a capture in a stream (`cuStreamBeginCapture`): what is sent to it from now on, and to streams that wait
    /// for an event of it, is recorded and not done.
    52 => StreamBeginCapture / StreamBeginCaptureReply {
        feature: GPU, quiet: yes,
        request {
            /// The stream. The default stream cannot be captured.
            stream: StreamRef,
            /// `CUstreamCaptureMode`: 0 global, 1 thread-local, where a lane is a thread, 2 relaxed.
            mode: u8,
        } check rules::begin_capture,
        reply {}
    }

    /// Ends a capture in the stream in which it was begun (`cuStreamEndCapture`). If it fails, the capture is over all the
    /// same, and every request that names the graph fails in the same way until it is destroyed.
    53 => StreamEndCapture / StreamEndCaptureReply {
        feature: GPU, quiet: no,
        request {
            /// The stream.
            stream: StreamRef,
            /// The handle of the new graph.
            graph: Handle,
        }
        reply {
            /// Kernels, copies and fills in it.
            nodes: u32,
        }
    }

    /// Tells whether a stream is capturing (`cuStreamIsCapturing`, `cuStreamGetCaptureInfo`).
    54 => StreamCaptureInfo / StreamCaptureInfoReply {
        feature: GPU, quiet: no,
        request {
            /// The stream.
            stream: StreamRef,
        }
        reply {
            /// `CUstreamCaptureStatus`: 0 it is not, 1 it is, 2 it is and the capture is invalid.
            status: u8,
            /// Of each capture in the session another number; 0 where there is none.
            capture: u64,
        }
    }

    /// Makes a graph that can be launched (`cuGraphInstantiateWithFlags`). If it fails, every request that names it fails
    /// in the same way until it is destroyed.
    55 => GraphInstantiate / GraphInstantiateReply {
        feature: GPU, quiet: yes,
        request {
            /// The graph.
            graph: Handle,
            /// The handle of what is made of it.
            exec: Handle,
            /// `CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH` (1), `UPLOAD` (2) and `USE_NODE_PRIORITY` (8) have no effect;
            /// others are refused.
            flags: u32,
        }
        reply {}
    }

    /// Launches a graph (`cuGraphLaunch`), once its launch before is done. It is over once the device has all of it in its
    /// queue.
    56 => GraphLaunch / GraphLaunchReply {
        feature: GPU, quiet: yes,
        request {
            /// The instantiated graph.
            exec: Handle,
            /// The stream whose order it joins.
            stream: StreamRef,
        }
        reply {}
    }

    /// Destroys a graph (`cuGraphDestroy`). What was instantiated from it stays.
    57 => GraphDestroy / GraphDestroyReply {
        feature: GPU, quiet: yes,
        request {
            /// The graph.
            graph: Handle,
        }
        reply {}
    }

    /// Destroys what was instantiated from a graph (`cuGraphExecDestroy`). A launch that was sent before is done.
    58 => GraphExecDestroy / GraphExecDestroyReply {
        feature: GPU, quiet: yes,
        request {
            /// The instantiated graph.
            exec: Handle,
        }
        reply {}
    }

    /// Tells what the mediator has counted for this session, and what of the device it holds: the figures of `vgpuctl
    /// status`.
    59 => Statistics / StatisticsReply {
        feature: GPU, quiet: no,
        request {}
        reply {
            /// Requests received, this one included.
            requests: u64,
            /// Requests that failed: answered with an error, or later.
            failed: u64,
            /// Kernels that were ended at their deadline.
            kernels_killed: u64,
            /// Bytes received from the guest, headers included.
            bytes_in: u64,
            /// Bytes sent to the guest before this answer, headers included.
            bytes_out: u64,
            /// Nanoseconds for which the device ran kernels of this session.
            device_ns: u64,
            /// Bytes of device memory in use.
            memory: u64,
            /// Bytes of device memory that the session may use.
            memory_limit: u64,
            /// Requests, this one included, and work of the device that are not done.
            queue: u64,
        }
    }

    /// Ends the kernels that were sent to a stream before, begun or not, and those of the graphs that were launched in it.
    /// Each that is ended fails with E_CANCELLED; other work is done. It [overtakes](#overtaking) requests that cannot start.
    /// CUDA has no counterpart: a GPU cannot end a kernel that it was given, which then runs to its end or its deadline,
    /// while those that the mediator still has are ended. Where such a kernel is there and none was ended, the answer is
    /// 801.
    60 => StreamCancel / StreamCancelReply {
        feature: GPU, quiet: no,
        request {
            /// The stream.
            stream: StreamRef,
        }
        reply {
            /// How many were ended; a graph whose launch had not begun counts as one.
            kernels: u32,
        }
    }

    /// Compiles CUDA C++ as NVRTC does (`nvrtcCompileProgram`), away from everything else of the mediator, and loads the
    /// PTX as a module. Its data is the source, then the headers in their order. No file of the mediator can be named.
    /// If it does not compile, that is the answer; then, and if it fails, every request that names the module fails until
    /// it is unloaded. E_UNSUPPORTED: the mediator has no compiler; E_RANGE: it does not take an option, or there is too
    /// much PTX; E_TIMEOUT: it took too long.
    64 => ModuleCompile / ModuleCompileReply {
        feature: GPU, quiet: no,
        request {
            /// The handle of the new module.
            module: Handle,
            /// The compute capability to compile for, 10 × major + minor; 0 = the device's. The newest one up to it
            /// that the compiler knows is taken.
            capability: u32,
            /// Bytes of the source. With all headers at most 1 MiB.
            source_bytes: NonZeroU64,
            /// Name of the source in the compiler's messages.
            name: Text<MAX_SOURCE_NAME>,
            /// Headers for `#include`.
            headers: List<SourceHeader, MAX_HEADERS>,
            /// Options of NVRTC that name no file, such as `--use_fast_math` and `-DNAME=VALUE`.
            options: List<Text<MAX_COMPILE_OPTION>, MAX_COMPILE_OPTIONS>,
        } check rules::module_compile,
        reply {
            /// `nvrtcResult`: 0 if the module is loaded, 6 if the source has errors.
            result: i32,
            /// The compiler's messages: lines of text, cut where they are too long.
            log: Bytes<MAX_COMPILE_LOG>,
        }
        data up |compile| compile.data_bytes(),
    }

    /// Maps a region that the guest has made beside the ring, and page-locks it for the device (`cuMemHostRegister`).
    /// E_UNSUPPORTED: the device cannot use this memory. E_QUOTA_MEMORY: it is more than the session may have.
    65 => RegionMap / RegionMapReply {
        feature: REGIONS, quiet: no,
        request {
            /// The handle of the new region.
            region: Handle,
            /// Its bytes.
            bytes: NonZeroU64,
            /// Where the guest's program has it. The mediator maps it there as well if it has nothing there; 0 = anywhere.
            address: u64,
            /// Its ticket.
            ticket: Bytes<REGION_TICKET>,
        }
        reply {
            /// 1: the device copies from it and to it by itself; 0: the mediator's processor does, and ordinary memory
            /// goes through the stream as fast.
            by_device: u8,
            /// Its address for kernels; 0 = they cannot reach it.
            address: u64,
        }
    }

    /// Lets go of a region once the work sent before is done (`cuMemHostUnregister`).
    66 => RegionUnmap / RegionUnmapReply {
        feature: REGIONS, quiet: yes,
        request {
            /// The region.
            region: Handle,
        }
        reply {}
    }

    /// Copies from a region to the device (`cuMemcpyHtoDAsync` of page-locked memory). It is over once the device has it in
    /// its queue: until it is done there, what the guest writes to those bytes may be copied or not.
    67 => CopyFromRegion / CopyFromRegionReply {
        feature: REGIONS, quiet: yes,
        request {
            /// First address. All bytes must be within one allocation.
            to: u64,
            /// The region.
            region: Handle,
            /// First byte of the region to copy.
            offset: u64,
            /// Bytes.
            bytes: NonZeroU64,
            /// Offset in the region of 8 bytes that become `value` once the copy is done; 18446744073709551615 = of none.
            word: u64,
            /// That value.
            value: u64,
            /// The stream whose order it joins.
            stream: StreamRef,
        }
        reply {}
    }

    /// Copies from the device to a region (`cuMemcpyDtoHAsync` of page-locked memory). It is over once the device has it in
    /// its queue.
    68 => CopyToRegion / CopyToRegionReply {
        feature: REGIONS, quiet: yes,
        request {
            /// First address. All bytes must be within one allocation.
            from: u64,
            /// The region.
            region: Handle,
            /// First byte of the region to write.
            offset: u64,
            /// Bytes.
            bytes: NonZeroU64,
            /// Offset in the region of 8 bytes that become `value` once the copy is done, after the bytes;
            /// 18446744073709551615 = of none.
            word: u64,
            /// That value.
            value: u64,
            /// The stream whose order it joins.
            stream: StreamRef,
        }
        reply {}
    }

    /// Makes a memory pool beside the default one (`cuMemPoolCreate`, of memory of the device that no other process can have).
    73 => MemoryPoolCreate / MemoryPoolCreateReply {
        feature: GPU, quiet: yes,
        request {
            /// The handle of the new pool.
            pool: Handle,
            /// Bytes that it may have from the device at most; 0 = as many as the session may.
            max_bytes: u64,
        }
        reply {}
    }

    /// Destroys a memory pool (`cuMemPoolDestroy`). What it does not use goes back to the device once the work sent before is
    /// done. Its allocations stay: each goes back when it is freed.
    74 => MemoryPoolDestroy / MemoryPoolDestroyReply {
        feature: GPU, quiet: yes,
        request {
            /// The pool.
            pool: Handle,
        }
        reply {}
    }
}

impl ModuleCompile {
    /// Bytes of the source and its headers.
    pub fn data_bytes(&self) -> u64 {
        let headers = self.headers.as_slice().iter();
        // At most 64 numbers of 32 bits: only the source alone can be too large to add.
        let headers: u64 = headers.map(|header| u64::from(header.bytes)).sum();
        self.source_bytes.get().saturating_add(headers)
    }
}

/// Which requests that cannot start yet one behind them need not wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overtakes {
    /// None: it starts in the order of arrival.
    Nothing,
    /// Those of other lanes: nothing that it does or tells depends on them.
    OtherLanes,
    /// All: it is to end what keeps them.
    Everything,
}

impl Op {
    /// Which requests a request of this operation overtakes, where they cannot start.
    ///
    /// Everything that touches the device starts in the order of arrival. A quiet request has no answer that anybody could
    /// wait for.
    pub const fn overtakes(self, quiet: bool) -> Overtakes {
        match self {
            _ if quiet => Overtakes::Nothing,
            Self::Ping
            | Self::Fence
            | Self::Info
            | Self::DeviceInfo
            | Self::Statistics
            | Self::TakePrinted => Overtakes::OtherLanes,
            Self::StreamCancel => Overtakes::Everything,
            _ => Overtakes::Nothing,
        }
    }
}

impl Request {
    /// The stream in which it has kernels run.
    pub fn kernel_stream(&self) -> Option<StreamRef> {
        match self {
            Self::Launch(launch) => Some(launch.stream),
            Self::GraphLaunch(launch) => Some(launch.stream),
            _ => None,
        }
    }

    /// Bytes that it moves beside the stream, in memory that both sides have.
    pub fn bytes_beside(&self) -> u64 {
        match self {
            Self::CopyFromRegion(copy) => copy.bytes.get(),
            Self::CopyToRegion(copy) => copy.bytes.get(),
            _ => 0,
        }
    }
}

/// The rules that concern more than one field.
mod rules {
    use super::*;

    /// Bytes of data, and more, that no request has.
    const MOST_DATA: u64 = 1 << 60;

    pub(super) fn hello(hello: &Hello) -> Result<(), (&'static str, FieldError)> {
        if hello.max_version < hello.min_version.get() {
            let value = hello.max_version.into();
            let rule = "below min_version";
            return Err(("max_version", FieldError::Value { value, rule }));
        }
        Ok(())
    }

    pub(super) fn fill(fill: &FillRange) -> Result<(), (&'static str, FieldError)> {
        element(fill.element_bytes)
    }

    pub(super) fn fill_rows(fill: &FillRows) -> Result<(), (&'static str, FieldError)> {
        element(fill.element_bytes)
    }

    pub(super) fn begin_capture(
        begin: &StreamBeginCapture,
    ) -> Result<(), (&'static str, FieldError)> {
        let value = begin.mode.into();
        if begin.mode >= CAPTURE_MODES {
            let rule = "0, 1 or 2 needed";
            return Err(("mode", FieldError::Value { value, rule }));
        }
        Ok(())
    }

    fn element(bytes: u8) -> Result<(), (&'static str, FieldError)> {
        let value = bytes.into();
        if ![1, 2, 4].contains(&value) {
            let rule = "1, 2 or 4 needed";
            return Err(("element_bytes", FieldError::Value { value, rule }));
        }
        Ok(())
    }

    pub(super) fn copy_rows_to_device(
        copy: &CopyRowsToDevice,
    ) -> Result<(), (&'static str, FieldError)> {
        rows(copy.width, copy.height)
    }

    pub(super) fn copy_rows_from_device(
        copy: &CopyRowsFromDevice,
    ) -> Result<(), (&'static str, FieldError)> {
        rows(copy.width, copy.height)
    }

    /// The data of rows has a length that can be counted.
    fn rows(width: NonZeroU64, height: NonZeroU64) -> Result<(), (&'static str, FieldError)> {
        let bytes = width.checked_mul(height);
        if bytes.is_none_or(|bytes| bytes.get() >= MOST_DATA) {
            let (value, rule) = (height.get(), "2^60 bytes and more have no room anywhere");
            return Err(("height", FieldError::Value { value, rule }));
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

    pub(super) fn module_compile(
        compile: &ModuleCompile,
    ) -> Result<(), (&'static str, FieldError)> {
        let value = compile.data_bytes();
        if value > MAX_SOURCE {
            let rule = "at most 1 MiB allowed, with the headers";
            return Err(("source_bytes", FieldError::Value { value, rule }));
        }
        Ok(())
    }

    pub(super) fn exchange(exchange: &Exchange) -> Result<(), (&'static str, FieldError)> {
        if exchange.up >= MOST_DATA {
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

/// The place of a kernel's parameter among the packed ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterPlace {
    /// Offset in bytes.
    pub offset: u32,
    /// Size in bytes.
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
        // A guest uses this offset and size in its own packed parameters.
        let end = u64::from(offset) + u64::from(size);
        if end > MAX_PARAMETER_BYTES as u64 {
            let rule = "beyond the longest parameters";
            return Err(FieldError::Value { value: end, rule });
        }
        Ok(Self { offset, size })
    }
}

/// A `CUlaunchAttribute`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchAttribute {
    /// `CUlaunchAttributeID`.
    pub id: u32,
    /// `CUlaunchAttributeValue`, as it lies in memory.
    pub value: [u8; LAUNCH_ATTRIBUTE_VALUE],
}

impl LaunchAttribute {
    /// `CU_LAUNCH_ATTRIBUTE_IGNORE`: it has no effect.
    pub const IGNORE: u32 = 0;
    /// `CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW`: memory that the cache is to keep, or not.
    pub const ACCESS_POLICY_WINDOW: u32 = 1;
    /// `CU_LAUNCH_ATTRIBUTE_COOPERATIVE`: all blocks run at once, so that they may wait for each other.
    pub const COOPERATIVE: u32 = 2;
    /// `CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY`.
    pub const SYNCHRONIZATION_POLICY: u32 = 3;
    /// `CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION`: blocks of a cluster in x, y and z.
    pub const CLUSTER_DIMENSION: u32 = 4;
    /// `CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE`.
    pub const CLUSTER_SCHEDULING_POLICY_PREFERENCE: u32 = 5;
    /// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`: it may begin before the kernel in front of it has ended.
    pub const PROGRAMMATIC_STREAM_SERIALIZATION: u32 = 6;
    /// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT`; its value names an event.
    pub const PROGRAMMATIC_EVENT: u32 = 7;
    /// `CU_LAUNCH_ATTRIBUTE_PRIORITY`: lower numbers first.
    pub const PRIORITY: u32 = 8;
    /// `CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP`.
    pub const MEM_SYNC_DOMAIN_MAP: u32 = 9;
    /// `CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN`.
    pub const MEM_SYNC_DOMAIN: u32 = 10;
    /// `CU_LAUNCH_ATTRIBUTE_PREFERRED_CLUSTER_DIMENSION`.
    pub const PREFERRED_CLUSTER_DIMENSION: u32 = 11;
    /// `CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT`; its value names an event.
    pub const LAUNCH_COMPLETION_EVENT: u32 = 12;
    /// `CU_LAUNCH_ATTRIBUTE_DEVICE_UPDATABLE_KERNEL_NODE`; its value names a node of a graph.
    pub const DEVICE_UPDATABLE_KERNEL_NODE: u32 = 13;
    /// `CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT`.
    pub const PREFERRED_SHARED_MEMORY_CARVEOUT: u32 = 14;
    /// `CU_LAUNCH_ATTRIBUTE_NVLINK_UTIL_CENTRIC_SCHEDULING`.
    pub const NVLINK_UTIL_CENTRIC_SCHEDULING: u32 = 16;

    /// The attribute `id` with these bytes as the first of its value, zeros behind; `None` where there are more than a
    /// value has.
    pub fn new(id: u32, value: &[u8]) -> Option<Self> {
        let mut whole = [0; LAUNCH_ATTRIBUTE_VALUE];
        whole.get_mut(..value.len())?.copy_from_slice(value);
        Some(Self { id, value: whole })
    }

    /// The 32-bit word of the value at place `at`, of 16.
    ///
    /// # Panics
    /// `at` is 16 or more.
    pub fn word(&self, at: usize) -> u32 {
        let bytes = &self.value[4 * at..][..4];
        u32::from_le_bytes(bytes.try_into().expect("four bytes"))
    }
}

impl Field for LaunchAttribute {
    const NAME: &'static str = "id u32, value 64 bytes";
    const MAX_LEN: usize = 4 + LAUNCH_ATTRIBUTE_VALUE;

    fn write(&self, body: &mut Vec<u8>) {
        self.id.write(body);
        body.extend_from_slice(&self.value);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FieldError> {
        let id = u32::read(reader)?;
        let value = reader.take(LAUNCH_ATTRIBUTE_VALUE)?;
        let value = value.try_into().expect("as many as asked for");
        Ok(Self { id, value })
    }
}

/// A header of a source: its text is part of the request's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceHeader {
    /// As `#include` names it.
    pub name: Text<MAX_SOURCE_NAME>,
    /// Bytes of its text.
    pub bytes: u32,
}

impl Field for SourceHeader {
    const NAME: &'static str = "name text, bytes u32";
    const MAX_LEN: usize = <Text<MAX_SOURCE_NAME> as Field>::MAX_LEN + 4;

    fn write(&self, body: &mut Vec<u8>) {
        self.name.write(body);
        self.bytes.write(body);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FieldError> {
        Ok(Self {
            name: Text::read(reader)?,
            bytes: u32::read(reader)?,
        })
    }
}

/// One quiet request that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuietFailure {
    /// The request's id.
    pub request_id: u32,
    /// Its operation.
    pub op: Op,
    /// Its error; never [`Status::Ok`].
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
