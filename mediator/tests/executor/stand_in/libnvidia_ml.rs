//! A stand-in for NVIDIA's management library, for machines without a GPU. Not a module of the test: `mod.rs`
//! compiles it to `libnvidia-ml.so.1`.
//!
//! It has two GPUs, and the second one gives less. On the first all children of this process's parent compute, which are
//! the mediator's processes. `VGPU_STAND_IN` says what goes wrong: with `nvml=1` it does not
//! return from its start, with `nvml=2` from the second reading.
#![allow(non_snake_case)]

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const OK: c_int = 0;
const INVALID_ARGUMENT: c_int = 2;
const NOT_SUPPORTED: c_int = 3;

fn hang_at(step: &str) {
    while std::env::var("VGPU_STAND_IN").is_ok_and(|scenario| scenario == format!("nvml={step}")) {
        std::thread::sleep(Duration::from_secs(1));
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> c_int {
    hang_at("1");
    OK
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> c_int {
    OK
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCount_v2(count: &mut c_uint) -> c_int {
    static READ: AtomicU32 = AtomicU32::new(0);
    if READ.fetch_add(1, Ordering::Relaxed) > 0 {
        hang_at("2");
    }
    *count = 2;
    OK
}

/// A handle is the GPU's number and one.
#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: &mut *mut c_void) -> c_int {
    if index > 1 {
        return INVALID_ARGUMENT;
    }
    *device = (index as usize + 1) as *mut c_void;
    OK
}

/// Writes a text of the first or second GPU.
unsafe fn text(device: *mut c_void, of: [&str; 2], to: *mut c_char, room: c_uint) -> c_int {
    let Some(text) = of.get((device as usize).wrapping_sub(1)) else {
        return INVALID_ARGUMENT;
    };
    assert!(text.len() < room as usize);
    // SAFETY: the caller gives `room` bytes, and so many fit with a NUL.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), to.cast(), text.len());
        to.add(text.len()).write(0);
    }
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetName(device: *mut c_void, to: *mut c_char, room: c_uint) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { text(device, ["Stand-in GPU", "Another\nGPU"], to, room) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUUID(device: *mut c_void, to: *mut c_char, room: c_uint) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { text(device, ["GPU-61207374", "GPU-616e642d"], to, room) }
}

/// `nvmlMemory_v2_t`.
#[repr(C)]
pub struct Memory {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMemoryInfo_v2(_device: *mut c_void, memory: &mut Memory) -> c_int {
    if memory.version as usize != size_of::<Memory>() | 2 << 24 {
        return INVALID_ARGUMENT;
    }
    (memory.total, memory.reserved) = (1 << 30, 1 << 20);
    (memory.used, memory.free) = (1 << 28, (1 << 30) - (1 << 28));
    OK
}

/// `nvmlUtilization_t`.
#[repr(C)]
pub struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetUtilizationRates(device: *mut c_void, rates: &mut Utilization) -> c_int {
    if device as usize != 1 {
        return NOT_SUPPORTED;
    }
    (rates.gpu, rates.memory) = (42, 7);
    OK
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetTemperature(_device: *mut c_void, sensor: c_int, degrees: &mut c_uint) -> c_int {
    if sensor != 0 {
        return INVALID_ARGUMENT;
    }
    *degrees = 61;
    OK
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPowerUsage(device: *mut c_void, milliwatts: &mut c_uint) -> c_int {
    if device as usize != 1 {
        return NOT_SUPPORTED;
    }
    *milliwatts = 402_500;
    OK
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetEnforcedPowerLimit(device: *mut c_void, milliwatts: &mut c_uint) -> c_int {
    nvmlDeviceGetPowerUsage(device, milliwatts)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: *mut c_void,
    kind: c_int,
    counter: c_int,
    errors: &mut c_ulonglong,
) -> c_int {
    if device as usize != 1 {
        return NOT_SUPPORTED;
    }
    // Volatile ones: three that were corrected, none that were not.
    *errors = match (kind, counter) {
        (0, 0) => 3,
        (1, 0) => 0,
        _ => return INVALID_ARGUMENT,
    };
    OK
}

/// `nvmlProcessInfo_t`.
#[repr(C)]
pub struct ProcessInfo {
    pid: c_uint,
    used_memory: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// The processes with the same parent.
fn siblings() -> Vec<u32> {
    let parent_of = |process: &str| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // Behind the name, which may hold anything: the state, and the parent.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let own = parent_of("self");
    let entries = std::fs::read_dir("/proc").expect("/proc");
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let pids = names.filter_map(|name| name.parse().ok());
    pids.filter(|pid: &u32| parent_of(&pid.to_string()) == own).collect()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: *mut c_void,
    count: &mut c_uint,
    to: *mut ProcessInfo,
) -> c_int {
    const INSUFFICIENT_SIZE: c_int = 7;
    let pids = match device as usize {
        1 => siblings(),
        _ => Vec::new(),
    };
    let room = std::mem::replace(count, pids.len() as c_uint);
    if (room as usize) < pids.len() {
        return INSUFFICIENT_SIZE;
    }
    for (place, pid) in pids.into_iter().enumerate() {
        let process = ProcessInfo { pid, used_memory: 1 << 29, gpu_instance: u32::MAX, compute_instance: u32::MAX };
        // SAFETY: the caller gives room for so many.
        unsafe { to.add(place).write(process) };
    }
    OK
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetAccountingMode(device: *mut c_void, on: &mut c_int) -> c_int {
    *on = c_int::from(device as usize == 1);
    OK
}

/// `nvmlAccountingStats_t`.
#[repr(C)]
pub struct AccountingStats {
    gpu: c_uint,
    memory: c_uint,
    most_memory: c_ulonglong,
    time: c_ulonglong,
    start: c_ulonglong,
    runs: c_uint,
    reserved: [c_uint; 5],
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetAccountingStats(_device: *mut c_void, _pid: c_uint, stats: &mut AccountingStats) -> c_int {
    *stats = AccountingStats { gpu: 17, memory: 3, most_memory: 1 << 29, time: 0, start: 1, runs: 1, reserved: [0; 5] };
    OK
}
