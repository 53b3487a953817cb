//! A stand-in for NVIDIA's driver library, for machines without a GPU. Not a module of the test:
//! `mod.rs` compiles it to `libcuda.so`.
//!
//! Its device memory is memory of this process. Streams keep what is queued, and a thread does one
//! operation of each at a time, so that work really is under way after a submission, and memory
//! touched too early gives wrong sums. It checks that handles are live and that copies stay within allocations.
//!
//! `VGPU_STAND_IN` says what goes wrong, as `KIND=NUMBER`: `init=CODE`, `devices=COUNT`,
//! `context=CODE`, `alloc=CODE`, `module=CODE`, `limit=BYTES` of device memory, `wrong=1` for wrong sums, and
//! `refuse=N`, `fault=N`, `hang=N` from, or at, the N-th launch on. `late=FILE`: there is no driver
//! before the file is there; `alone=FILE`: one context at a time has the GPU, and the file marks it.
#![allow(non_snake_case)]

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, Once, OnceLock};
use std::time::Duration;

const OK: c_int = 0;
const INVALID_VALUE: c_int = 1;
const OUT_OF_MEMORY: c_int = 2;
const DEVICE_UNAVAILABLE: c_int = 46;
const NO_DEVICE: c_int = 100;
const INVALID_CONTEXT: c_int = 201;
const INVALID_HANDLE: c_int = 400;
const NOT_READY: c_int = 600;
const ILLEGAL_ADDRESS: c_int = 700;
/// A code that no CUDA version has.
const FROM_THE_FUTURE: c_int = 987;

enum Operation {
    Record(usize),
    Call {
        function: unsafe extern "C" fn(*mut c_void),
        argument: usize,
    },
    Copy {
        to: usize,
        from: usize,
        bytes: usize,
    },
    Add {
        a: usize,
        b: usize,
        c: usize,
        elements: usize,
    },
}

#[derive(Default)]
struct Driver {
    launches: i64,
    time: u64,
    next_handle: usize,
    faulted: bool,
    /// Address and content; the device's and the page-locked ones.
    device: BTreeMap<usize, Vec<u64>>,
    host: BTreeMap<usize, Vec<u64>>,
    streams: BTreeMap<usize, VecDeque<Operation>>,
    /// When the event came up last, unless it is queued again.
    events: BTreeMap<usize, Option<u64>>,
}

thread_local! {
    static CURRENT: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fn driver() -> MutexGuard<'static, Driver> {
    static DRIVER: OnceLock<Mutex<Driver>> = OnceLock::new();
    DRIVER.get_or_init(Mutex::default).lock().unwrap()
}

/// The number that the scenario gives to `kind`.
fn scenario(kind: &str) -> Option<i64> {
    let text = std::env::var("VGPU_STAND_IN").ok()?;
    text.strip_prefix(kind)?.strip_prefix('=')?.parse().ok()
}

/// The file that the scenario gives to `kind`.
fn file(kind: &str) -> Option<PathBuf> {
    let text = std::env::var("VGPU_STAND_IN").ok()?;
    Some(text.strip_prefix(kind)?.strip_prefix('=')?.into())
}

/// A code as the driver returns it, from the scenario.
fn code(kind: &str) -> c_int {
    scenario(kind).map_or(OK, |code| code as c_int)
}

fn misuse(what: &str) -> c_int {
    eprintln!("stand-in: misuse: {what}");
    INVALID_VALUE
}

/// Every call but the first few needs the context.
fn context() -> Result<MutexGuard<'static, Driver>, c_int> {
    if !CURRENT.get() {
        misuse("no context is current in this thread");
        return Err(INVALID_CONTEXT);
    }
    let driver = driver();
    if driver.faulted {
        Err(ILLEGAL_ADDRESS)
    } else {
        Ok(driver)
    }
}

macro_rules! context {
    () => {
        match context() {
            Ok(driver) => driver,
            Err(code) => return code,
        }
    };
}

impl Driver {
    fn handle(&mut self) -> usize {
        self.next_handle += 16;
        self.next_handle
    }

    fn within(memory: &BTreeMap<usize, Vec<u64>>, address: usize, bytes: usize) -> bool {
        memory
            .range(..=address)
            .next_back()
            .is_some_and(|(start, content)| address + bytes <= start + content.len() * 8)
    }

    fn check(&self, address: usize, bytes: usize, device: bool) -> bool {
        let memory = if device { &self.device } else { &self.host };
        Self::within(memory, address, bytes)
    }

    fn queue(&mut self, stream: *mut c_void, operation: Operation) -> c_int {
        static DEVICE: Once = Once::new();
        DEVICE.call_once(|| {
            std::thread::spawn(|| {
                loop {
                    std::thread::sleep(Duration::from_micros(20));
                    driver().step();
                }
            });
        });
        match self.streams.get_mut(&(stream as usize)) {
            Some(queue) => {
                queue.push_back(operation);
                OK
            }
            None => misuse("a stream that is none"),
        }
    }

    /// Does the next operation of every stream.
    fn step(&mut self) {
        if self.faulted || scenario("hang").is_some_and(|n| self.launches >= n) {
            return;
        }
        self.time += 1;
        let heads: Vec<Operation> = self
            .streams
            .values_mut()
            .filter_map(VecDeque::pop_front)
            .collect();
        for operation in heads {
            match operation {
                Operation::Record(event) => {
                    if let Some(time) = self.events.get_mut(&event) {
                        *time = Some(self.time);
                    }
                }
                // SAFETY: the caller of cuLaunchHostFunc promised that it may be called.
                Operation::Call { function, argument } => unsafe {
                    function(argument as *mut c_void);
                },
                // SAFETY: `copy` saw both ranges within allocations.
                Operation::Copy { to, from, bytes } => unsafe {
                    std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes);
                },
                Operation::Add { a, b, c, elements } => {
                    if scenario("fault").is_some_and(|n| self.launches >= n) {
                        self.faulted = true;
                        return;
                    }
                    let wrong = if scenario("wrong").is_some() {
                        1.0
                    } else {
                        0.0
                    };
                    // SAFETY: the launch saw the three ranges within allocations.
                    unsafe {
                        let a = std::slice::from_raw_parts(a as *const f32, elements);
                        let b = std::slice::from_raw_parts(b as *const f32, elements);
                        let c = std::slice::from_raw_parts_mut(c as *mut f32, elements);
                        for i in 0..elements {
                            c[i] = a[i] + b[i];
                            if wrong != 0.0 {
                                c[i] += wrong;
                            }
                        }
                    }
                }
            }
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(_flags: c_uint) -> c_int {
    match file("late") {
        Some(file) if !file.exists() => NO_DEVICE,
        _ => code("init"),
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuDriverGetVersion(version: &mut c_int) -> c_int {
    *version = 12_040;
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(code: c_int, text: &mut *const c_char) -> c_int {
    if code == FROM_THE_FUTURE {
        return INVALID_VALUE;
    }
    let name = format!("CUDA_ERROR_{code}\0").into_bytes().leak();
    *text = name.as_ptr().cast();
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorString(code: c_int, text: &mut *const c_char) -> c_int {
    cuGetErrorName(code, text)
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetCount(count: &mut c_int) -> c_int {
    *count = scenario("devices").unwrap_or(1) as c_int;
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGet(device: &mut c_int, ordinal: c_int) -> c_int {
    *device = ordinal;
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, _device: c_int) -> c_int {
    let text = c"Stand-in GPU".to_bytes_with_nul();
    assert!(text.len() <= length as usize);
    // SAFETY: the caller gives `length` bytes, and so many fit.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, text.len()) };
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceTotalMem_v2(bytes: &mut usize, _device: c_int) -> c_int {
    *bytes = 1 << 30;
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRetain(context: &mut *mut c_void, _device: c_int) -> c_int {
    if let Some(file) = file("alone")
        && std::fs::File::create_new(file).is_err()
    {
        return DEVICE_UNAVAILABLE;
    }
    *context = 8 as *mut c_void;
    code("context")
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> c_int {
    let driver = driver();
    let objects =
        driver.device.len() + driver.host.len() + driver.streams.len() + driver.events.len();
    eprintln!("stand-in: {objects} objects left");
    if let Some(file) = file("alone") {
        let _ = std::fs::remove_file(file);
    }
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> c_int {
    CURRENT.set(!context.is_null());
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadData(module: &mut *mut c_void, image: *const c_char) -> c_int {
    let _driver = context!();
    // SAFETY: the caller gives text that ends with a NUL.
    let text = unsafe { CStr::from_ptr(image) }.to_string_lossy();
    if !text.contains(".entry vector_add(") {
        return misuse("PTX without the kernel");
    }
    *module = 24 as *mut c_void;
    code("module")
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetFunction(
    function: &mut *mut c_void,
    module: *mut c_void,
    name: *const c_char,
) -> c_int {
    let _driver = context!();
    // SAFETY: the caller gives a name that ends with a NUL.
    if module as usize != 24 || unsafe { CStr::from_ptr(name) } != c"vector_add" {
        return misuse("a function that is none");
    }
    *function = 40 as *mut c_void;
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreate(stream: &mut *mut c_void, _flags: c_uint) -> c_int {
    let mut driver = context!();
    let handle = driver.handle();
    driver.streams.insert(handle, VecDeque::new());
    *stream = handle as *mut c_void;
    OK
}

#[cfg(not(lacking))]
#[unsafe(no_mangle)]
extern "C" fn cuStreamQuery(stream: *mut c_void) -> c_int {
    let driver = context!();
    if driver.faulted {
        return ILLEGAL_ADDRESS;
    }
    match driver.streams.get(&(stream as usize)) {
        Some(queue) if queue.is_empty() => OK,
        Some(_) => NOT_READY,
        None => misuse("a stream that is none"),
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: *mut c_void) -> c_int {
    let mut driver = context!();
    match driver.streams.remove(&(stream as usize)) {
        Some(queue) if queue.is_empty() => OK,
        Some(_) => misuse("a stream destroyed with work in it"),
        None => misuse("a stream that is none"),
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuEventCreate(event: &mut *mut c_void, flags: c_uint) -> c_int {
    let mut driver = context!();
    if flags != 0 {
        return misuse("an event without times");
    }
    let handle = driver.handle();
    driver.events.insert(handle, Some(0));
    *event = handle as *mut c_void;
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: *mut c_void, stream: *mut c_void) -> c_int {
    let mut driver = context!();
    match driver.events.get_mut(&(event as usize)) {
        Some(time) => *time = None,
        None => return misuse("an event that is none"),
    }
    driver.queue(stream, Operation::Record(event as usize))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: *mut c_void) -> c_int {
    let driver = context!();
    if driver.faulted {
        return ILLEGAL_ADDRESS;
    }
    match driver.events.get(&(event as usize)) {
        Some(Some(_)) => OK,
        Some(None) => NOT_READY,
        None => INVALID_HANDLE,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime(
    milliseconds: &mut f32,
    from: *mut c_void,
    to: *mut c_void,
) -> c_int {
    let driver = context!();
    let time = |event: *mut c_void| driver.events.get(&(event as usize)).copied().flatten();
    match (time(from), time(to)) {
        (Some(from), Some(to)) => {
            *milliseconds = (to as f32 - from as f32) / 1000.0;
            OK
        }
        _ => NOT_READY,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: *mut c_void) -> c_int {
    let mut driver = context!();
    match driver.events.remove(&(event as usize)) {
        Some(_) => OK,
        None => misuse("an event that is none"),
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchHostFunc(
    stream: *mut c_void,
    function: unsafe extern "C" fn(*mut c_void),
    argument: *mut c_void,
) -> c_int {
    let mut driver = context!();
    let argument = argument as usize;
    driver.queue(stream, Operation::Call { function, argument })
}

/// Memory full of NaN, as a device's may be.
fn memory(bytes: usize) -> Vec<u64> {
    vec![u64::MAX; bytes.div_ceil(8)]
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostAlloc(address: &mut *mut c_void, bytes: usize, flags: c_uint) -> c_int {
    let mut driver = context!();
    if flags & 4 != 0 {
        return misuse("results are read from write-combined memory");
    }
    if bytes > 1 << 30 {
        return OUT_OF_MEMORY;
    }
    let content = memory(bytes);
    let start = content.as_ptr() as usize;
    driver.host.insert(start, content);
    *address = start as *mut c_void;
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(address: *mut c_void) -> c_int {
    let mut driver = context!();
    match driver.host.remove(&(address as usize)) {
        Some(_) => OK,
        None => misuse("page-locked memory that is none"),
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAlloc_v2(address: &mut u64, bytes: usize) -> c_int {
    let mut driver = context!();
    if code("alloc") != OK {
        return code("alloc");
    }
    let used: usize = driver
        .device
        .values()
        .map(|content| content.len() * 8)
        .sum();
    if scenario("limit").is_some_and(|limit| (used + bytes) as i64 > limit) {
        return OUT_OF_MEMORY;
    }
    let content = memory(bytes);
    let start = content.as_ptr() as usize;
    driver.device.insert(start, content);
    *address = start as u64;
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> c_int {
    let mut driver = context!();
    match driver.device.remove(&(address as usize)) {
        Some(_) => OK,
        None => misuse("device memory that is none"),
    }
}

fn copy(to: usize, from: usize, bytes: usize, stream: *mut c_void, to_device: bool) -> c_int {
    let mut driver = context!();
    if !driver.check(to, bytes, to_device) || !driver.check(from, bytes, !to_device) {
        return misuse("a copy beyond an allocation");
    }
    driver.queue(stream, Operation::Copy { to, from, bytes })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const c_void,
    bytes: usize,
    stream: *mut c_void,
) -> c_int {
    copy(to as usize, from as usize, bytes, stream, true)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: u64,
    bytes: usize,
    stream: *mut c_void,
) -> c_int {
    copy(to as usize, from as usize, bytes, stream, false)
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernel(
    function: *mut c_void,
    blocks: c_uint,
    _blocks_y: c_uint,
    _blocks_z: c_uint,
    threads: c_uint,
    _threads_y: c_uint,
    _threads_z: c_uint,
    _shared_bytes: c_uint,
    stream: *mut c_void,
    parameters: *const *const u64,
    _extra: *mut *mut c_void,
) -> c_int {
    let mut driver = context!();
    if function as usize != 40 || blocks == 0 || blocks > 65_535 || threads == 0 || threads > 1024 {
        return misuse("a launch that no device takes");
    }
    driver.launches += 1;
    if scenario("refuse") == Some(driver.launches) {
        return FROM_THE_FUTURE;
    }
    // SAFETY: the caller gives four pointers to eight bytes each.
    let [a, b, c, elements] = [0, 1, 2, 3].map(|i| unsafe { **parameters.add(i) } as usize);
    if [a, b, c]
        .iter()
        .any(|address| !driver.check(*address, elements * 4, true))
    {
        return misuse("a launch beyond an allocation");
    }
    driver.queue(stream, Operation::Add { a, b, c, elements })
}
