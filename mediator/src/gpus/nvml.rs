//! The functions of NVIDIA's management library that are needed here, loaded at run time.
//!
//! The crate nvml-wrapper loads and describes all of its hundreds, which is a thirtieth of vgpu-mediatord, whose size
//! has a limit. Names, types and numbers are those of NVIDIA's `nvml.h`. A function that the library lacks is like one
//! that the GPU does not support: its figure is left out.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::fmt;
use std::ptr;

use libloading::Library;

/// `NVML_SUCCESS`.
const SUCCESS: c_int = 0;
/// `NVML_TEMPERATURE_GPU`.
const TEMPERATURE_GPU: c_int = 0;
/// `NVML_VOLATILE_ECC`: since the driver was loaded.
const VOLATILE_ECC: c_int = 0;
/// `NVML_FEATURE_ENABLED`.
const ENABLED: c_int = 1;
/// `NVML_VALUE_NOT_AVAILABLE`, in both its sizes.
const NOT_AVAILABLE: (c_uint, c_ulonglong) = (c_uint::MAX, c_ulonglong::MAX);

/// Bytes for a name: `NVML_DEVICE_NAME_V2_BUFFER_SIZE`, and as many for a UUID.
const TEXT: c_uint = 96;

/// Why the library gives no figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Error {
    /// It is not there, or lacks a function that every version has.
    Absent,
    /// A call failed: with what, in the library's own words.
    Failed(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str(
                "NVIDIA's management library (libnvidia-ml.so.1) is not installed or cannot be loaded",
            ),
            Self::Failed(why) => write!(f, "NVIDIA's management library: {why}"),
        }
    }
}

/// The library, started.
pub(super) struct Nvml(Library);

/// `nvmlDevice_t`.
type Handle = *mut c_void;

/// One GPU.
#[derive(Clone, Copy)]
pub(super) struct Device<'a> {
    nvml: &'a Nvml,
    handle: Handle,
}

/// `nvmlMemory_v2_t`.
#[repr(C)]
pub(super) struct Memory {
    version: c_uint,
    pub(super) total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    pub(super) used: c_ulonglong,
}

/// `nvmlUtilization_t`, in percent.
#[repr(C)]
struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

/// `nvmlProcessInfo_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ProcessInfo {
    pub(super) pid: c_uint,
    used: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

impl ProcessInfo {
    /// Bytes of the GPU's memory that it has.
    pub(super) fn used(&self) -> Option<u64> {
        (self.used != NOT_AVAILABLE.1).then_some(self.used)
    }
}

/// `nvmlAccountingStats_t`.
#[repr(C)]
#[derive(Default)]
struct AccountingStats {
    gpu: c_uint,
    memory: c_uint,
    most_memory: c_ulonglong,
    time_ms: c_ulonglong,
    start_us: c_ulonglong,
    is_running: c_uint,
    reserved: [c_uint; 5],
}

/// Kinds of errors of memory: `nvmlMemoryErrorType_t`.
#[derive(Debug, Clone, Copy)]
pub(super) enum EccErrors {
    Corrected = 0,
    Uncorrected = 1,
}

impl Nvml {
    /// Loads and starts it.
    pub(super) fn start() -> Result<Self, Error> {
        // SAFETY: NVIDIA's library may be loaded by any program.
        let library = unsafe { Library::new("libnvidia-ml.so.1") };
        let nvml = Self(library.map_err(|_| Error::Absent)?);
        // SAFETY: its type in nvml.h.
        let init = unsafe { nvml.function::<unsafe extern "C" fn() -> c_int>("nvmlInit_v2") };
        // SAFETY: it may be called at any time. Nothing ends it but the process.
        let code = unsafe { init.ok_or(Error::Absent)?() };
        nvml.check(code, "nvmlInit")?;
        Ok(nvml)
    }

    /// # Safety
    /// `F` is the type of this function in nvml.h; a C enum is an int.
    unsafe fn function<F: Copy>(&self, name: &str) -> Option<F> {
        // SAFETY: the caller's promise. The library is never closed.
        unsafe { self.0.get::<F>(name.as_bytes()) }
            .ok()
            .map(|found| *found)
    }

    fn check(&self, code: c_int, call: &str) -> Result<(), Error> {
        if code == SUCCESS {
            return Ok(());
        }
        type ErrorString = unsafe extern "C" fn(c_int) -> *const c_char;
        // SAFETY: its type in nvml.h.
        let words = unsafe { self.function::<ErrorString>("nvmlErrorString") };
        // SAFETY: it takes any number.
        let words = words.map(|words| unsafe { words(code) });
        let words = words.filter(|words| !words.is_null());
        // SAFETY: a text of the library's own, which stays and ends with a NUL.
        let words = words.map(|words| unsafe { CStr::from_ptr(words) }.to_string_lossy());
        let words = words.unwrap_or("no text".into());
        Err(Error::Failed(format!("{call}: error {code} ({words})")))
    }

    /// The number of GPUs.
    pub(super) fn device_count(&self) -> Result<u32, Error> {
        type Count = unsafe extern "C" fn(*mut c_uint) -> c_int;
        // SAFETY: its type in nvml.h.
        let function = unsafe { self.function::<Count>("nvmlDeviceGetCount_v2") };
        let mut count = 0;
        // SAFETY: the output is writable.
        let code = unsafe { function.ok_or(Error::Absent)?(&mut count) };
        self.check(code, "nvmlDeviceGetCount").map(|()| count)
    }

    /// The GPU with this number, if it answers.
    pub(super) fn device(&self, index: u32) -> Option<Device<'_>> {
        type ByIndex = unsafe extern "C" fn(c_uint, *mut Handle) -> c_int;
        // SAFETY: its type in nvml.h.
        let function = unsafe { self.function::<ByIndex>("nvmlDeviceGetHandleByIndex_v2") }?;
        let mut handle = ptr::null_mut();
        // SAFETY: the output is writable; a number that no GPU has is refused.
        let code = unsafe { function(index, &mut handle) };
        (code == SUCCESS).then_some(Device { nvml: self, handle })
    }
}

impl Device<'_> {
    /// The output of a function that takes a GPU and has one output.
    ///
    /// # Safety
    /// In nvml.h the function `name` takes a device and a pointer to a `T`, and nothing else.
    unsafe fn value<T>(self, name: &str, mut value: T) -> Option<T> {
        type Get<T> = unsafe extern "C" fn(Handle, *mut T) -> c_int;
        // SAFETY: the caller's promise.
        let function = unsafe { self.nvml.function::<Get<T>>(name) }?;
        // SAFETY: the handle is the library's, and the output writable.
        let code = unsafe { function(self.handle, &raw mut value) };
        (code == SUCCESS).then_some(value)
    }

    fn text(self, name: &str) -> Option<String> {
        type Text = unsafe extern "C" fn(Handle, *mut c_char, c_uint) -> c_int;
        // SAFETY: the type of both functions that are asked for here, in nvml.h.
        let function = unsafe { self.nvml.function::<Text>(name) }?;
        let mut text = [0 as c_char; TEXT as usize];
        // SAFETY: it writes at most the given length; the last byte is held back, so that a NUL is there.
        let code = unsafe { function(self.handle, text.as_mut_ptr(), TEXT - 1) };
        // SAFETY: the array ends with a NUL and lives on.
        let text = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy();
        (code == SUCCESS).then(|| text.into_owned())
    }

    pub(super) fn name(self) -> Option<String> {
        self.text("nvmlDeviceGetName")
    }

    pub(super) fn uuid(self) -> Option<String> {
        self.text("nvmlDeviceGetUUID")
    }

    pub(super) fn memory(self) -> Option<Memory> {
        // `nvmlMemory_v2`: size and version.
        let version = c_uint::try_from(size_of::<Memory>()).ok()? | 2 << 24;
        let memory = Memory {
            version,
            total: 0,
            reserved: 0,
            free: 0,
            used: 0,
        };
        // SAFETY: its type in nvml.h.
        unsafe { self.value("nvmlDeviceGetMemoryInfo_v2", memory) }
    }

    /// Part of the last sample period in which a kernel ran, in percent.
    pub(super) fn busy_percent(self) -> Option<u32> {
        let rates = Utilization { gpu: 0, memory: 0 };
        // SAFETY: its type in nvml.h.
        let rates = unsafe { self.value("nvmlDeviceGetUtilizationRates", rates) };
        rates.map(|rates| rates.gpu)
    }

    /// Degrees Celsius.
    pub(super) fn temperature(self) -> Option<u32> {
        type Temperature = unsafe extern "C" fn(Handle, c_int, *mut c_uint) -> c_int;
        // SAFETY: its type in nvml.h.
        let function = unsafe {
            self.nvml
                .function::<Temperature>("nvmlDeviceGetTemperature")
        }?;
        let mut degrees = 0;
        // SAFETY: the handle is the library's, and the output writable.
        let code = unsafe { function(self.handle, TEMPERATURE_GPU, &mut degrees) };
        (code == SUCCESS).then_some(degrees)
    }

    /// Milliwatts.
    pub(super) fn power(self) -> Option<u32> {
        // SAFETY: its type in nvml.h.
        unsafe { self.value::<c_uint>("nvmlDeviceGetPowerUsage", 0) }
    }

    /// Milliwatts.
    pub(super) fn power_limit(self) -> Option<u32> {
        // SAFETY: its type in nvml.h.
        unsafe { self.value::<c_uint>("nvmlDeviceGetEnforcedPowerLimit", 0) }
    }

    /// Errors of memory since the driver was loaded.
    pub(super) fn ecc_errors(self, kind: EccErrors) -> Option<u64> {
        type Errors = unsafe extern "C" fn(Handle, c_int, c_int, *mut c_ulonglong) -> c_int;
        // SAFETY: its type in nvml.h.
        let function = unsafe { self.nvml.function::<Errors>("nvmlDeviceGetTotalEccErrors") }?;
        let mut errors = 0;
        // SAFETY: the handle is the library's, and the output writable.
        let code = unsafe { function(self.handle, kind as c_int, VOLATILE_ECC, &mut errors) };
        (code == SUCCESS).then_some(errors)
    }

    /// The processes that compute there; none where there are more than `most`.
    pub(super) fn processes(self, most: usize) -> Option<Vec<ProcessInfo>> {
        type Processes = unsafe extern "C" fn(Handle, *mut c_uint, *mut ProcessInfo) -> c_int;
        let name = "nvmlDeviceGetComputeRunningProcesses_v3";
        // SAFETY: its type in nvml.h.
        let function = unsafe { self.nvml.function::<Processes>(name) }?;
        let none = ProcessInfo {
            pid: 0,
            used: 0,
            gpu_instance: 0,
            compute_instance: 0,
        };
        let mut processes = vec![none; most];
        let mut count = c_uint::try_from(most).ok()?;
        // SAFETY: the handle is the library's, and there is room for `count` of them.
        let code = unsafe { function(self.handle, &mut count, processes.as_mut_ptr()) };
        processes.truncate(usize::try_from(count).ok()?);
        (code == SUCCESS).then_some(processes)
    }

    /// Whether there are accounts of processes.
    pub(super) fn has_accounts(self) -> bool {
        // SAFETY: its type in nvml.h.
        let mode = unsafe { self.value::<c_int>("nvmlDeviceGetAccountingMode", 0) };
        mode == Some(ENABLED)
    }

    /// Part of a process's life in which a kernel ran, in percent.
    pub(super) fn busy_percent_of(self, pid: u32) -> Option<u32> {
        type Stats = unsafe extern "C" fn(Handle, c_uint, *mut AccountingStats) -> c_int;
        // SAFETY: its type in nvml.h.
        let function = unsafe { self.nvml.function::<Stats>("nvmlDeviceGetAccountingStats") }?;
        let mut stats = AccountingStats::default();
        // SAFETY: the handle is the library's, and the output writable; unknown processes are refused.
        let code = unsafe { function(self.handle, pid, &raw mut stats) };
        (code == SUCCESS && stats.gpu != NOT_AVAILABLE.0).then_some(stats.gpu)
    }
}
