//! The CUDA driver's functions, loaded at run time.
//!
//! cudarc finds and opens the library and gives the types. Its wrapper functions are not used, for
//! two reasons: they panic where a symbol is missing, and they return the driver's result as a Rust
//! `enum` of the codes that one CUDA version knows, so that a code which a newer driver adds would
//! be undefined behaviour. Here a result is an integer, and a missing symbol is an error.
//!
//! Only functions that every driver since CUDA 11.8 has are needed; what is newer may be absent.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulonglong, c_ushort, c_void};
use std::fmt;
use std::panic::catch_unwind;
use std::ptr;
use std::sync::OnceLock;

use cudarc::driver::sys::{
    self, CUDA_KERNEL_NODE_PARAMS_v1, CUDA_MEMCPY2D, CUDA_MEMCPY3D, CUDA_MEMSET_NODE_PARAMS,
    CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUgraph, CUgraphExec, CUgraphNode,
    CUlaunchConfig, CUmodule, CUstream, CUuuid,
};

use super::super::cuda_result;

/// `CUDA_SUCCESS`.
pub(super) const SUCCESS: c_int = 0;
/// `CU_STREAM_NON_BLOCKING`: no waiting for the default stream.
pub(super) const STREAM_NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DEFAULT`: with a time stamp, which `None` in cudarc's own call would leave out.
pub(super) const EVENT_DEFAULT: c_uint = 0;
/// `CU_MEMHOSTALLOC_PORTABLE`. Not write-combined: results are read from this memory.
pub(super) const HOST_PORTABLE: c_uint = 1;
/// `CU_MEMHOSTALLOC_DEVICEMAP`.
pub(super) const HOST_MAPPED: c_uint = 2;

/// The codes after which no call in this context, or process, can succeed any more.
const STICKY: [c_int; 16] = [
    4,   // CUDA_ERROR_DEINITIALIZED
    46,  // CUDA_ERROR_DEVICE_UNAVAILABLE
    201, // CUDA_ERROR_INVALID_CONTEXT
    214, // CUDA_ERROR_ECC_UNCORRECTABLE
    220, // CUDA_ERROR_NVLINK_UNCORRECTABLE
    700, // CUDA_ERROR_ILLEGAL_ADDRESS
    702, // CUDA_ERROR_LAUNCH_TIMEOUT
    709, // CUDA_ERROR_CONTEXT_IS_DESTROYED
    710, // CUDA_ERROR_ASSERT
    714, // CUDA_ERROR_HARDWARE_STACK_ERROR
    715, // CUDA_ERROR_ILLEGAL_INSTRUCTION
    716, // CUDA_ERROR_MISALIGNED_ADDRESS
    717, // CUDA_ERROR_INVALID_ADDRESS_SPACE
    718, // CUDA_ERROR_INVALID_PC
    719, // CUDA_ERROR_LAUNCH_FAILED
    cuda_result::UNKNOWN,
];

/// A driver call that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CallError {
    /// The `CUresult`.
    pub(super) code: c_int,
    /// The function, as NVIDIA's documentation names it.
    pub(super) call: &'static str,
}

impl CallError {
    /// Whether everything that follows fails too.
    pub(super) fn is_sticky(self) -> bool {
        STICKY.contains(&self.code)
    }
}

impl fmt::Display for CallError {
    /// `cuMemAlloc (CUDA_ERROR_OUT_OF_MEMORY, out of memory)`. A [`CallError`] exists only once the
    /// driver is loaded, so asking it for the text is safe.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.call)?;
        if let Ok(driver) = Driver::load() {
            let name = driver.error_text(driver.get_error_name, self.code);
            let text = driver.error_text(driver.get_error_string, self.code);
            write!(
                f,
                " ({}, {})",
                name.unwrap_or("unknown code"),
                text.unwrap_or("no text")
            )?;
        }
        Ok(())
    }
}

/// Why the driver's library cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LoadError {
    /// No library of the driver can be loaded.
    Absent,
    /// The library lacks a function.
    MissingSymbol(&'static str),
}

/// `CUhostFn`.
pub(super) type HostFunction = unsafe extern "C" fn(*mut c_void);

type ErrorText = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;

/// Declares [`Driver`]: for each function its field, its symbol and its parameters.
macro_rules! driver_functions {
    (
        needed { $($field:ident = $symbol:literal ($($parameter:ty),*);)* }
        newer { $($late:ident = $late_symbol:literal ($($late_parameter:ty),*);)* }
    ) => {
        /// The functions of the driver.
        ///
        /// The safety contract of each is the one of NVIDIA's documentation of the driver API, most
        /// of all: handles must be live, and the device's context current in the calling thread.
        pub(super) struct Driver {
            $(pub(super) $field: unsafe extern "C" fn($($parameter),*) -> c_int,)*
            $(pub(super) $late: Option<unsafe extern "C" fn($($late_parameter),*) -> c_int>,)*
        }

        impl Driver {
            fn from_library() -> Result<Driver, LoadError> {
                Ok(Driver {
                    $($field: {
                        type Function = unsafe extern "C" fn($($parameter),*) -> c_int;
                        // SAFETY: the type is the one of cuda.h for this symbol, but for the
                        // result, a C enum, which has the size and the registers of an int.
                        // `load` has seen that the library is there, and it is never closed.
                        let symbol = unsafe { sys::culib().get::<Function>($symbol.as_bytes()) };
                        *symbol.map_err(|_| LoadError::MissingSymbol($symbol))?
                    },)*
                    $($late: {
                        type Function = unsafe extern "C" fn($($late_parameter),*) -> c_int;
                        let name = $late_symbol.as_bytes();
                        // SAFETY: as above.
                        let symbol = unsafe { sys::culib().get::<Function>(name) };
                        symbol.ok().map(|symbol| *symbol)
                    },)*
                })
            }
        }
    };
}

driver_functions! {
    needed {
        init = "cuInit" (c_uint);
        driver_get_version = "cuDriverGetVersion" (*mut c_int);
        get_error_name = "cuGetErrorName" (c_int, *mut *const c_char);
        get_error_string = "cuGetErrorString" (c_int, *mut *const c_char);
        device_get_count = "cuDeviceGetCount" (*mut c_int);
        device_get = "cuDeviceGet" (*mut CUdevice, c_int);
        device_get_name = "cuDeviceGetName" (*mut c_char, c_int, CUdevice);
        device_total_mem = "cuDeviceTotalMem_v2" (*mut usize, CUdevice);
        primary_ctx_retain = "cuDevicePrimaryCtxRetain" (*mut CUcontext, CUdevice);
        primary_ctx_release = "cuDevicePrimaryCtxRelease_v2" (CUdevice);
        ctx_set_current = "cuCtxSetCurrent" (CUcontext);
        ctx_synchronize = "cuCtxSynchronize" ();
        ctx_get_limit = "cuCtxGetLimit" (*mut usize, c_uint);
        ctx_set_limit = "cuCtxSetLimit" (c_uint, usize);
        module_load_data = "cuModuleLoadData" (*mut CUmodule, *const c_void);
        module_get_function = "cuModuleGetFunction" (*mut CUfunction, CUmodule, *const c_char);
        stream_query = "cuStreamQuery" (CUstream);
        stream_synchronize = "cuStreamSynchronize" (CUstream);
        stream_destroy = "cuStreamDestroy_v2" (CUstream);
        event_create = "cuEventCreate" (*mut CUevent, c_uint);
        launch_host_func = "cuLaunchHostFunc" (CUstream, Option<HostFunction>, *mut c_void);
        event_record = "cuEventRecord" (CUevent, CUstream);
        event_elapsed_time = "cuEventElapsedTime" (*mut f32, CUevent, CUevent);
        event_destroy = "cuEventDestroy_v2" (CUevent);
        mem_host_alloc = "cuMemHostAlloc" (*mut *mut c_void, usize, c_uint);
        mem_free_host = "cuMemFreeHost" (*mut c_void);
        mem_host_register = "cuMemHostRegister_v2" (*mut c_void, usize, c_uint);
        mem_host_unregister = "cuMemHostUnregister" (*mut c_void);
        mem_alloc = "cuMemAlloc_v2" (*mut CUdeviceptr, usize);
        mem_alloc_pitch =
            "cuMemAllocPitch_v2" (*mut CUdeviceptr, *mut usize, usize, usize, c_uint);
        mem_free = "cuMemFree_v2" (CUdeviceptr);
        memcpy_htod_async = "cuMemcpyHtoDAsync_v2" (CUdeviceptr, *const c_void, usize, CUstream);
        memcpy_dtoh_async = "cuMemcpyDtoHAsync_v2" (*mut c_void, CUdeviceptr, usize, CUstream);
        launch_kernel = "cuLaunchKernel" (
            CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream,
            *mut *mut c_void, *mut *mut c_void
        );
        // With attributes.
        launch_kernel_ex = "cuLaunchKernelEx" (
            *const CUlaunchConfig, CUfunction, *mut *mut c_void, *mut *mut c_void
        );
        device_get_attribute = "cuDeviceGetAttribute" (*mut c_int, c_int, CUdevice);
        device_get_uuid = "cuDeviceGetUuid_v2" (*mut CUuuid, CUdevice);
        mem_get_info = "cuMemGetInfo_v2" (*mut usize, *mut usize);
        mem_host_get_device_pointer =
            "cuMemHostGetDevicePointer_v2" (*mut CUdeviceptr, *mut c_void, c_uint);
        memcpy_dtod_async = "cuMemcpyDtoDAsync_v2" (CUdeviceptr, CUdeviceptr, usize, CUstream);
        memcpy_2d_async = "cuMemcpy2DAsync_v2" (*const CUDA_MEMCPY2D, CUstream);
        memset_d2d8_async =
            "cuMemsetD2D8Async" (CUdeviceptr, usize, c_uchar, usize, usize, CUstream);
        memset_d2d16_async =
            "cuMemsetD2D16Async" (CUdeviceptr, usize, c_ushort, usize, usize, CUstream);
        memset_d2d32_async =
            "cuMemsetD2D32Async" (CUdeviceptr, usize, c_uint, usize, usize, CUstream);
        memset_d8_async = "cuMemsetD8Async" (CUdeviceptr, c_uchar, usize, CUstream);
        memset_d16_async = "cuMemsetD16Async" (CUdeviceptr, c_ushort, usize, CUstream);
        memset_d32_async = "cuMemsetD32Async" (CUdeviceptr, c_uint, usize, CUstream);
        module_unload = "cuModuleUnload" (CUmodule);
        module_get_global =
            "cuModuleGetGlobal_v2" (*mut CUdeviceptr, *mut usize, CUmodule, *const c_char);
        func_get_attribute = "cuFuncGetAttribute" (*mut c_int, c_int, CUfunction);
        func_set_attribute = "cuFuncSetAttribute" (CUfunction, c_int, c_int);
        occupancy_max_active_blocks = "cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags" (
            *mut c_int, CUfunction, c_int, usize, c_uint
        );
        stream_create_with_priority = "cuStreamCreateWithPriority" (*mut CUstream, c_uint, c_int);
        stream_wait_event = "cuStreamWaitEvent" (CUstream, CUevent, c_uint);
        stream_write_value32 = "cuStreamWriteValue32_v2" (CUstream, CUdeviceptr, u32, c_uint);
        stream_write_value64 = "cuStreamWriteValue64_v2" (CUstream, CUdeviceptr, u64, c_uint);
        graph_create = "cuGraphCreate" (*mut CUgraph, c_uint);
        graph_destroy = "cuGraphDestroy" (CUgraph);
        graph_add_empty_node =
            "cuGraphAddEmptyNode" (*mut CUgraphNode, CUgraph, *const CUgraphNode, usize);
        // Its first version, with the parameters of then, is in every driver.
        graph_add_kernel_node = "cuGraphAddKernelNode" (
            *mut CUgraphNode, CUgraph, *const CUgraphNode, usize, *const CUDA_KERNEL_NODE_PARAMS_v1
        );
        // The attribute's number and its value, which begins at an address for 8 bytes.
        graph_kernel_node_set_attribute =
            "cuGraphKernelNodeSetAttribute" (CUgraphNode, c_uint, *const c_void);
        graph_add_memcpy_node = "cuGraphAddMemcpyNode" (
            *mut CUgraphNode, CUgraph, *const CUgraphNode, usize, *const CUDA_MEMCPY3D, CUcontext
        );
        graph_add_memset_node = "cuGraphAddMemsetNode" (
            *mut CUgraphNode, CUgraph, *const CUgraphNode, usize, *const CUDA_MEMSET_NODE_PARAMS,
            CUcontext
        );
        graph_instantiate = "cuGraphInstantiateWithFlags" (*mut CUgraphExec, CUgraph, c_ulonglong);
        graph_launch = "cuGraphLaunch" (CUgraphExec, CUstream);
        graph_exec_destroy = "cuGraphExecDestroy" (CUgraphExec);
    }
    newer {
        // Of CUDA 12.4.
        func_get_param_info =
            "cuFuncGetParamInfo" (CUfunction, usize, *mut usize, *mut usize);
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Driver")
    }
}

impl Driver {
    /// The driver of this machine, loaded at the first call.
    pub(super) fn load() -> Result<&'static Driver, LoadError> {
        static DRIVER: OnceLock<Result<Driver, LoadError>> = OnceLock::new();
        let loaded = DRIVER.get_or_init(|| {
            // Opening the library is where cudarc panics, should the library vanish between its
            // own check and its use.
            let opened = catch_unwind(|| {
                // SAFETY: opens the library and closes it again. NVIDIA's driver allows that.
                let present = unsafe { sys::is_culib_present() };
                present.then(Driver::from_library)
            });
            opened.ok().flatten().unwrap_or(Err(LoadError::Absent))
        });
        loaded.as_ref().map_err(Clone::clone)
    }

    fn error_text(&self, function: ErrorText, code: c_int) -> Option<&'static str> {
        let mut text: *const c_char = ptr::null();
        // SAFETY: the function writes one pointer; any code is allowed.
        let code = unsafe { function(code, &mut text) };
        if code != SUCCESS || text.is_null() {
            return None;
        }
        // SAFETY: on success the driver gives a NUL-terminated string of its own, which stays.
        unsafe { CStr::from_ptr(text) }.to_str().ok()
    }
}

/// Gives `launch` packed parameters of a kernel as `cuLaunchKernel` and a graph's node take them in their `extra`.
pub(super) fn with_extra<T>(parameters: &[u8], launch: impl FnOnce(*mut *mut c_void) -> T) -> T {
    let mut bytes = parameters.len();
    // CU_LAUNCH_PARAM_BUFFER_POINTER, CU_LAUNCH_PARAM_BUFFER_SIZE, CU_LAUNCH_PARAM_END
    let mut extra = [
        ptr::without_provenance_mut::<c_void>(1),
        parameters.as_ptr().cast_mut().cast::<c_void>(),
        ptr::without_provenance_mut::<c_void>(2),
        (&raw mut bytes).cast::<c_void>(),
        ptr::null_mut(),
    ];
    launch(match bytes {
        0 => ptr::null_mut(),
        _ => extra.as_mut_ptr(),
    })
}

/// Turns what a driver function returned into a `Result`.
pub(super) fn check(code: c_int, call: &'static str) -> Result<(), CallError> {
    if code == SUCCESS {
        Ok(())
    } else {
        Err(CallError { code, call })
    }
}

/// Whether the work that a query asked about is done.
pub(super) fn check_query(code: c_int, call: &'static str) -> Result<bool, CallError> {
    if code == cuda_result::NOT_READY {
        Ok(false)
    } else {
        check(code, call).map(|()| true)
    }
}

/// A number of bytes or rows, as the driver takes it.
pub(super) fn size(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_yet_is_no_error() {
        assert_eq!(check_query(SUCCESS, "cuEventQuery"), Ok(true));
        assert_eq!(
            check_query(cuda_result::NOT_READY, "cuEventQuery"),
            Ok(false)
        );
        let error = CallError {
            code: 700,
            call: "cuEventQuery",
        };
        assert_eq!(check_query(700, "cuEventQuery"), Err(error));
        assert!(error.is_sticky());
        assert!(
            !CallError {
                code: cuda_result::OUT_OF_MEMORY,
                call: "cuMemAlloc"
            }
            .is_sticky()
        );
    }

    #[test]
    fn loading_gives_an_error_or_a_driver_but_never_a_panic() {
        if let Err(error) = Driver::load() {
            assert_eq!(error, LoadError::Absent);
            // The text of an error that cannot have come from a driver.
            assert_eq!(
                CallError {
                    code: 1,
                    call: "cuInit"
                }
                .to_string(),
                "cuInit"
            );
        }
    }
}
