//! A stand-in for NVIDIA's driver library, for machines without a GPU. Not a module of the test:
//! `mod.rs` compiles it to `libcuda.so`.
//!
//! Its device is one of `vgpu-ptx`: kernels run, addresses are the device's own, and what a kernel does wrong is
//! what a GPU says of it. Streams keep what is queued, and a thread does one operation of each at a time, so that
//! work really is under way after a submission, and memory touched too early gives wrong results. It checks that
//! handles are live and that copies stay within allocations. What kernels print it writes to the C library's `stdout`,
//! at the calls at which NVIDIA's does: a launch, and one that synchronises.
//!
//! `VGPU_STAND_IN` says what goes wrong, as `KIND=NUMBER`, several separated by commas: `init=CODE`, `devices=COUNT`
//! (of which `CUDA_VISIBLE_DEVICES` hides some, and the memory and processors are those of one),
//! `context=CODE`, `alloc=CODE`, `module=CODE`, `limit=BYTES` of device memory, `wrong=1` for kernels that do
//! nothing, and `refuse=N`, `fault=N`, `hang=N` from, or at, the N-th launch on. `old=1`: a driver before CUDA 12.4.
//! `events=N`: no event with a time is recorded after the N-th. `quick=1`: what lies between two events took a
//! microsecond, however long this machine did other work meanwhile.
//! `pitch=BYTES`: rows are allocated at multiples of this many bytes. `halves=1`: streams write 32 bits at a time.
//! `late=FILE`: there is no driver before the file is there; `alone=FILE`: one process at a time has the GPU, by a
//! lock of the file, which ends with the process as a context does; `dies=FILE`: contexts made before the file is there
//! are broken from then on. `rest=N`: once the N-th launch is under way the device does nothing, until somebody has
//! asked for its stream: 3 s later comes the answer of then, and work is done meanwhile.
#![allow(non_snake_case)]

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, OnceLock};
use std::time::{Duration, Instant};

use vgpu_ptx::{
    Config, Device, HostMemory, Kernel, Launch, Limit, Loaded, MULTIPROCESSOR_THREADS, Module, Rows,
};

/// Events that are there at once: two for each work of a full queue, and some of the guest's.
const MOST_EVENTS: usize = 1000;
/// The largest grid and the largest block, as NVIDIA's devices have them.
const MOST_BLOCKS: [c_uint; 3] = [i32::MAX.cast_unsigned(), 65_535, 65_535];
const MOST_THREADS: [c_uint; 3] = [1024, 1024, 64];
/// As `device` says.
const MULTIPROCESSORS: u64 = 2;
const OK: c_int = 0;
const INVALID_VALUE: c_int = 1;
const OUT_OF_MEMORY: c_int = 2;
const DEVICE_UNAVAILABLE: c_int = 46;
const NO_DEVICE: c_int = 100;
const INVALID_DEVICE: c_int = 101;
const NO_BINARY_FOR_GPU: c_int = 209;
const INVALID_CONTEXT: c_int = 201;
const ECC_UNCORRECTABLE: c_int = 214;
const INVALID_HANDLE: c_int = 400;
const NOT_READY: c_int = 600;
const ILLEGAL_ADDRESS: c_int = 700;
const COOPERATIVE_LAUNCH_TOO_LARGE: c_int = 720;
const INVALID_CLUSTER_SIZE: c_int = 912;
/// A code that no CUDA version has.
const FROM_THE_FUTURE: c_int = 987;

#[derive(Clone)]
enum Operation {
    Record(usize),
    /// Until this event has come up as often as it had been recorded then.
    Wait(usize, u64),
    Call {
        function: unsafe extern "C" fn(*mut c_void),
        argument: usize,
    },
    ToDevice {
        to: Rows,
        from: usize,
    },
    FromDevice {
        to: usize,
        from: Rows,
    },
    Within {
        to: Rows,
        from: Rows,
    },
    Fill {
        to: Rows,
        value: u32,
        size: u32,
    },
    Write {
        to: usize,
        value: u32,
    },
    WriteLong {
        to: usize,
        value: u64,
    },
    Launch {
        loaded: Loaded,
        kernel: Kernel,
        how: Launch,
        parameters: Vec<u8>,
    },
}

#[derive(Default)]
struct Event {
    recorded: u64,
    come: u64,
    timed: bool,
    at: Option<Instant>,
}

#[derive(Default)]
struct Stream {
    queue: VecDeque<Operation>,
    /// Of each operation that is not done a number, in the order of all streams.
    numbers: VecDeque<u64>,
    /// It and the default stream wait for each other.
    blocking: bool,
    /// Its first operation is under way, and not in the queue.
    busy: bool,
    /// Destroyed: it goes once its work is done.
    destroyed: bool,
}

struct Function {
    loaded: Loaded,
    kernel: Kernel,
    opt_in: bool,
}

#[derive(Default)]
struct Driver {
    launches: i64,
    /// How often events were recorded that have a time.
    recorded: i64,
    /// The rest of a scenario is over.
    rested: bool,
    last_number: u64,
    next_handle: usize,
    /// Result of every call since a kernel faulted.
    fault: Option<c_int>,
    /// The file of `dies`, where it was not there when the context was made.
    dies: Option<PathBuf>,
    /// Address and bytes on the device; address and content of what is page-locked.
    memory: BTreeMap<u64, u64>,
    host: BTreeMap<usize, Vec<u64>>,
    /// Memory that was page-locked where it was, with its bytes and its address for kernels.
    registered: BTreeMap<usize, (usize, u64)>,
    streams: BTreeMap<usize, Stream>,
    events: BTreeMap<usize, Event>,
    modules: BTreeMap<usize, Loaded>,
    functions: BTreeMap<usize, Function>,
    /// Their nodes in the order in which they were added; those that join others do nothing.
    graphs: BTreeMap<usize, Vec<Option<Operation>>>,
    /// Graphs that were instantiated, each with an event at the end of its latest launch.
    execs: BTreeMap<usize, (Vec<Option<Operation>>, usize)>,
}

thread_local! {
    static CURRENT: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// The device's own memory and processors.
fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| {
        Device::new(Config {
            memory: 1 << 30,
            ..Config::default()
        })
    })
}

fn driver() -> MutexGuard<'static, Driver> {
    static DRIVER: OnceLock<Mutex<Driver>> = OnceLock::new();
    DRIVER.get_or_init(Mutex::default).lock().unwrap()
}

/// The number that the scenario gives to `kind`.
fn scenario(kind: &str) -> Option<i64> {
    said(kind)?.parse().ok()
}

/// The file that the scenario gives to `kind`.
fn file(kind: &str) -> Option<PathBuf> {
    said(kind).map(PathBuf::from)
}

fn said(kind: &str) -> Option<String> {
    let text = std::env::var("VGPU_STAND_IN").ok()?;
    let mut parts = text.split(',');
    parts.find_map(|part| Some(part.strip_prefix(kind)?.strip_prefix('=')?.to_owned()))
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
    let mut driver = driver();
    if driver.dies.as_ref().is_some_and(|file| file.exists()) {
        driver.fault = Some(ECC_UNCORRECTABLE);
    }
    match driver.fault {
        Some(code) => Err(code),
        None => Ok(driver),
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

    fn has_host(&self, address: usize, bytes: usize) -> bool {
        let before = self.host.range(..=address).next_back();
        let registered = self.registered.range(..=address).next_back();
        before.is_some_and(|(start, content)| address + bytes <= start + content.len() * 8)
            || registered.is_some_and(|(start, (len, _))| address + bytes <= start + len)
    }

    /// Where the host has page-locked memory by its address on the device.
    fn host_at(&self, there: u64) -> Option<usize> {
        let mut registered = self.registered.iter();
        let found = registered.find_map(|(start, (len, address))| {
            let offset = usize::try_from(there.checked_sub(*address)?).ok()?;
            (offset < *len).then_some(start + offset)
        });
        found.or_else(|| usize::try_from(there).ok())
    }

    fn has(&self, address: u64, bytes: u64) -> bool {
        let allocated = self.memory.range(..=address).next_back();
        let allocated =
            allocated.is_some_and(|(start, len)| address - start <= *len && bytes <= len - (address - start));
        // A variable of a module.
        allocated || device().range(address).is_ok()
    }

    /// Rows from the first byte of the first to the last of the last.
    fn has_rows(&self, rows: Rows) -> bool {
        let (pitch, width, height) = (rows.pitch, rows.width, rows.height);
        pitch >= width && height > 0 && self.has(rows.address, (height - 1) * pitch + width)
    }

    fn queue(&mut self, stream: *mut c_void, operation: Operation) -> c_int {
        static DEVICE: Once = Once::new();
        DEVICE.call_once(|| {
            std::thread::spawn(|| {
                loop {
                    if !step() {
                        std::thread::sleep(Duration::from_micros(20));
                    }
                }
            });
        });
        if stream.is_null() {
            self.streams.entry(0).or_default();
        }
        self.last_number += 1;
        match self.streams.get_mut(&(stream as usize)) {
            Some(stream) => {
                stream.queue.push_back(operation);
                stream.numbers.push_back(self.last_number);
                OK
            }
            None => misuse("a stream that is none"),
        }
    }

    /// Whether the next operation of a stream can be done.
    fn is_ready(&self, handle: usize, stream: &Stream) -> bool {
        let is_later = |other: &Stream| other.numbers.front() > stream.numbers.front();
        let mut awaited = self.streams.iter().filter(|(other, awaited)| match handle {
            0 => **other != 0 && awaited.blocking,
            _ => **other == 0 && stream.blocking,
        });
        match stream.queue.front() {
            _ if stream.busy => false,
            _ if !awaited.all(|(_, other)| other.numbers.is_empty() || is_later(other)) => false,
            Some(Operation::Wait(event, times)) => self
                .events
                .get(event)
                .is_none_or(|event| event.come >= *times),
            next => next.is_some(),
        }
    }
}

/// Does the next operation of every stream; says whether there was one.
fn step() -> bool {
    let streams: Vec<usize> = driver().streams.keys().copied().collect();
    let mut any = false;
    for handle in streams {
        let mut driver = driver();
        let stands = |kind| scenario(kind).is_some_and(|n| driver.launches >= n);
        if driver.fault.is_some() || stands("hang") || (stands("rest") && !driver.rested) {
            return false;
        }
        let ready = driver.streams.get(&handle).is_some_and(|stream| driver.is_ready(handle, stream));
        let Some(stream) = driver.streams.get_mut(&handle).filter(|_| ready) else {
            continue;
        };
        let Some(operation) = stream.queue.pop_front() else {
            continue;
        };
        stream.busy = true;
        let launches = driver.launches;
        // Calls of the driver go on meanwhile.
        drop(driver);
        let end = move |result: Result<(), c_int>| {
            let mut driver = self::driver();
            if let Err(code) = result {
                driver.fault.get_or_insert(code);
            }
            if let Some(stream) = driver.streams.get_mut(&handle) {
                stream.busy = false;
                stream.numbers.pop_front();
                if stream.destroyed && stream.queue.is_empty() {
                    driver.streams.remove(&handle);
                }
            }
        };
        match operation {
            // Kernels of several streams run beside each other.
            Operation::Launch { .. } => {
                std::thread::spawn(move || end(run(operation, launches)));
            }
            operation => end(run(operation, launches)),
        }
        any = true;
    }
    any
}

fn run(operation: Operation, launches: i64) -> Result<(), c_int> {
    let number = |error: vgpu_ptx::Error| error.code.number() as c_int;
    match operation {
        Operation::Record(event) => {
            if let Some(event) = driver().events.get_mut(&event) {
                event.come += 1;
                event.at = Some(Instant::now());
            }
        }
        Operation::Wait(..) => {}
        // SAFETY: the caller of cuLaunchHostFunc promised that it may be called.
        Operation::Call { function, argument } => unsafe {
            function(argument as *mut c_void);
        },
        Operation::ToDevice { to, from } => {
            let bytes = (to.width * to.height) as usize;
            // SAFETY: the copy saw the range within page-locked memory.
            let from = unsafe { std::slice::from_raw_parts(from as *const u8, bytes) };
            device().write_rows(to, from).map_err(number)?;
        }
        Operation::FromDevice { to, from } => {
            let bytes = (from.width * from.height) as usize;
            // SAFETY: as above.
            let to = unsafe { std::slice::from_raw_parts_mut(to as *mut u8, bytes) };
            device().read_rows(from, to).map_err(number)?;
        }
        Operation::Within { to, from } => device().copy_rows(to, from).map_err(number)?,
        Operation::Fill { to, value, size } => device().fill_rows(to, value, size).map_err(number)?,
        // SAFETY: the caller of cuStreamWriteValue32 gave a word of page-locked memory.
        Operation::Write { to, value } => unsafe {
            AtomicU32::from_ptr(to as *mut u32).store(value, Ordering::Release);
        },
        // SAFETY: the same.
        Operation::WriteLong { to, value } => unsafe {
            AtomicU64::from_ptr(to as *mut u64).store(value, Ordering::Release);
        },
        Operation::Launch {
            loaded,
            kernel,
            how,
            parameters,
        } => {
            if scenario("fault").is_some_and(|n| launches >= n) {
                return Err(ILLEGAL_ADDRESS);
            }
            if scenario("wrong").is_none() {
                device().launch(&loaded, &kernel, &how, &parameters).map_err(number)?;
            }
        }
    }
    Ok(())
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
    *count = visible().len() as c_int;
    OK
}

/// The last byte tells devices apart.
fn uuid(device: c_int) -> [u8; 16] {
    let mut uuid = *b"a stand-in's own";
    uuid[15] = device as u8;
    uuid
}

/// The devices that this process sees, as the driver counts them: all, or those that the variable names by number or
/// UUID up to the first name that is none's.
fn visible() -> Vec<c_int> {
    let all = 0..scenario("devices").unwrap_or(1) as c_int;
    let Ok(names) = std::env::var("CUDA_VISIBLE_DEVICES") else {
        return all.collect();
    };
    let is = |device: &c_int, name: &str| {
        let digits: String = uuid(*device).iter().map(|byte| format!("{byte:02x}")).collect();
        let own = name.strip_prefix("GPU-").map(|name| name.replace('-', ""));
        name == device.to_string() || own == Some(digits)
    };
    names.split(',').map_while(|name| all.clone().find(|device| is(device, name))).collect()
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGet(device: &mut c_int, ordinal: c_int) -> c_int {
    match visible().get(ordinal as usize) {
        Some(found) => *device = *found,
        None => return INVALID_DEVICE,
    }
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) -> c_int {
    let text = match device {
        0 => "Stand-in GPU\0".to_owned(),
        other => format!("Stand-in GPU {other}\0"),
    };
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

/// The locked file of `alone`, while this process has the GPU.
fn alone() -> MutexGuard<'static, Option<std::fs::File>> {
    static ALONE: Mutex<Option<std::fs::File>> = Mutex::new(None);
    ALONE.lock().unwrap()
}

/// Locks `file` for this process (fcntl(2), F_SETLK), if no other has it.
fn lock(file: &std::fs::File) -> bool {
    /// `struct flock` of 64-bit Linux.
    #[repr(C)]
    struct Flock {
        kind: i16,
        whence: i16,
        start: i64,
        len: i64,
        pid: i32,
    }
    unsafe extern "C" {
        fn fcntl(file: c_int, command: c_int, lock: *const Flock) -> c_int;
    }
    const F_SETLK: c_int = 6;
    const F_WRLCK: i16 = 1;
    let whole = Flock { kind: F_WRLCK, whence: 0, start: 0, len: 0, pid: 0 };
    // SAFETY: the descriptor is open, and F_SETLK reads one `struct flock`.
    unsafe { fcntl(std::os::fd::AsRawFd::as_raw_fd(file), F_SETLK, &whole) == 0 }
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRetain(context: &mut *mut c_void, _device: c_int) -> c_int {
    if let Some(file) = file("alone") {
        let options = std::fs::File::options().create(true).truncate(false).write(true).open(file);
        let file = options.expect("the file of `alone`");
        if !lock(&file) {
            return DEVICE_UNAVAILABLE;
        }
        *alone() = Some(file);
    }
    *context = 8 as *mut c_void;
    driver().dies = file("dies").filter(|file| !file.exists());
    code("context")
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> c_int {
    let driver = driver();
    let objects = driver.memory.len()
        + driver.host.len()
        + driver.registered.len()
        + driver.streams.iter().filter(|(handle, stream)| **handle != 0 && !stream.destroyed).count()
        + driver.events.len()
        + driver.modules.len()
        + driver.graphs.len()
        + driver.execs.len();
    eprintln!("stand-in: {objects} objects left");
    // Its end is that of the lock.
    *alone() = None;
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> c_int {
    CURRENT.set(!context.is_null());
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetAttribute(value: &mut c_int, attribute: c_int, device: c_int) -> c_int {
    *value = match attribute {
        1 | 2 | 3 => 1024,
        4 => 64,
        5 => c_int::MAX,
        6 | 7 => 65_535,
        8 => 48 << 10,
        10 => 32,
        11 => c_int::MAX,
        16 => MULTIPROCESSORS as c_int,
        19 => 1,
        // The number of its PCI bus.
        33 => 0x40 + device,
        39 => MULTIPROCESSOR_THREADS as c_int,
        41 => 1,
        75 => 8,
        95 => 1,
        97 => 227 << 10,
        122 => c_int::from(scenario("halves").is_none()),
        9..=135 => 0,
        _ => return INVALID_VALUE,
    };
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid_v2(uuid: &mut [u8; 16], device: c_int) -> c_int {
    *uuid = self::uuid(device);
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuMemGetInfo_v2(free: &mut usize, total: &mut usize) -> c_int {
    let driver = context!();
    *total = 1 << 30;
    *free = *total - driver.memory.values().sum::<u64>() as usize;
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadData(module: &mut *mut c_void, image: *const c_char) -> c_int {
    drop(context!());
    if code("module") != OK {
        return code("module");
    }
    // SAFETY: the caller gives text that ends with a NUL, or a binary, whose first bytes tell.
    let text = unsafe { CStr::from_ptr(image) }.to_bytes();
    if text.starts_with(b"\x7fELF") || text.starts_with(b"\x50\xed\x55\xba") {
        return NO_BINARY_FOR_GPU;
    }
    let loaded = Module::load(text).and_then(|module| device().load(&module));
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => return error.code.number() as c_int,
    };
    let mut driver = context!();
    let handle = driver.handle();
    driver.modules.insert(handle, loaded);
    *module = handle as *mut c_void;
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: *mut c_void) -> c_int {
    let mut driver = context!();
    match driver.modules.remove(&(module as usize)) {
        Some(loaded) => {
            let _ = device().unload(&loaded);
            OK
        }
        None => misuse("a module that is none"),
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetFunction(
    function: &mut *mut c_void,
    module: *mut c_void,
    name: *const c_char,
) -> c_int {
    let mut driver = context!();
    let Some(loaded) = driver.modules.get(&(module as usize)).cloned() else {
        return misuse("a module that is none");
    };
    // SAFETY: the caller gives a name that ends with a NUL.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    match loaded.module().kernel(&name) {
        Ok(kernel) => {
            let handle = driver.handle();
            let found = Function {
                loaded,
                kernel,
                opt_in: false,
            };
            driver.functions.insert(handle, found);
            *function = handle as *mut c_void;
            OK
        }
        Err(error) => error.code.number() as c_int,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetGlobal_v2(
    address: &mut u64,
    bytes: &mut usize,
    module: *mut c_void,
    name: *const c_char,
) -> c_int {
    let driver = context!();
    let Some(loaded) = driver.modules.get(&(module as usize)) else {
        return misuse("a module that is none");
    };
    // SAFETY: the caller gives a name that ends with a NUL.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    match loaded.variable(&name) {
        Ok((at, size)) => {
            (*address, *bytes) = (at, size as usize);
            OK
        }
        Err(error) => error.code.number() as c_int,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncGetAttribute(
    value: &mut c_int,
    attribute: c_int,
    function: *mut c_void,
) -> c_int {
    let driver = context!();
    let Some(function) = driver.functions.get(&(function as usize)) else {
        return misuse("a function that is none");
    };
    *value = match attribute {
        0 => function.kernel.max_threads as c_int,
        1 => function.kernel.shared_bytes as c_int,
        8 if function.opt_in => (227 << 10) - function.kernel.shared_bytes as c_int,
        8 => (48 << 10) - function.kernel.shared_bytes as c_int,
        2..=15 => 0,
        _ => return INVALID_VALUE,
    };
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: *mut c_void, attribute: c_int, value: c_int) -> c_int {
    let mut driver = context!();
    let Some(function) = driver.functions.get_mut(&(function as usize)) else {
        return misuse("a function that is none");
    };
    if attribute != 8 || !(0..=227 << 10).contains(&value) {
        return INVALID_VALUE;
    }
    function.opt_in = true;
    OK
}

fn limit(number: c_uint) -> Option<Limit> {
    [Limit::Stack, Limit::Printed, Limit::Heap].get(number as usize).copied()
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetLimit(bytes: &mut usize, number: c_uint) -> c_int {
    let _driver = context!();
    let Some(limit) = limit(number) else {
        return misuse("a limit that is none");
    };
    *bytes = device().limit(limit) as usize;
    OK
}

/// Heaps are of whole pages.
#[unsafe(no_mangle)]
extern "C" fn cuCtxSetLimit(number: c_uint, bytes: usize) -> c_int {
    let _driver = context!();
    let (Some(limit), Some(rounded)) = (limit(number), bytes.checked_next_multiple_of(4096)) else {
        return INVALID_VALUE;
    };
    let bytes = if limit == Limit::Heap { rounded } else { bytes };
    let set = device().set_limit(limit, bytes as u64);
    set.map_or_else(|error| error.code.number() as c_int, |()| OK)
}

#[unsafe(no_mangle)]
extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    blocks: &mut c_int,
    function: *mut c_void,
    threads: c_int,
    shared: usize,
    flags: c_uint,
) -> c_int {
    let driver = context!();
    let Some(function) = driver.functions.get(&(function as usize)) else {
        return misuse("a function that is none");
    };
    if threads <= 0 || flags > 1 {
        return INVALID_VALUE;
    }
    let shared = u32::try_from(shared).unwrap_or(u32::MAX);
    let opt_in = function.opt_in;
    *blocks = function.kernel.blocks_per_multiprocessor(threads as u32, shared, opt_in) as c_int;
    OK
}

#[cfg(not(old))]
#[unsafe(no_mangle)]
extern "C" fn cuFuncGetParamInfo(
    function: *mut c_void,
    index: usize,
    offset: &mut usize,
    size: &mut usize,
) -> c_int {
    let driver = context!();
    let Some(function) = driver.functions.get(&(function as usize)) else {
        return misuse("a function that is none");
    };
    match function.kernel.parameters.get(index) {
        Some(parameter) => {
            (*offset, *size) = (parameter.offset as usize, parameter.size as usize);
            OK
        }
        None => INVALID_VALUE,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreate(stream: &mut *mut c_void, flags: c_uint) -> c_int {
    let mut driver = context!();
    let handle = driver.handle();
    let new = Stream {
        blocking: flags & 1 == 0,
        ..Stream::default()
    };
    driver.streams.insert(handle, new);
    *stream = handle as *mut c_void;
    OK
}

#[cfg(not(lacking))]
#[unsafe(no_mangle)]
extern "C" fn cuStreamQuery(stream: *mut c_void) -> c_int {
    let mut driver = context!();
    match driver.streams.get(&(stream as usize)) {
        Some(stream) if stream.queue.is_empty() && !stream.busy => OK,
        Some(_) => {
            if scenario("rest").is_some_and(|n| driver.launches >= n) && !driver.rested {
                driver.rested = true;
                drop(driver);
                std::thread::sleep(Duration::from_secs(3));
            }
            NOT_READY
        }
        // The default stream, to which nothing was sent.
        None if stream.is_null() => OK,
        None => misuse("a stream that is none"),
    }
}

/// Writes what kernels have printed so far.
fn write_printed() {
    unsafe extern "C" {
        static stdout: *mut c_void;
        fn fwrite(bytes: *const u8, size: usize, count: usize, to: *mut c_void) -> usize;
    }
    let text = device().take_printed(usize::MAX).text;
    // SAFETY: the C library's own stream, and so many bytes.
    unsafe { fwrite(text.as_ptr(), 1, text.len(), stdout) };
}

/// Waits until the driver is so far.
fn wait_until(done: impl Fn(&Driver) -> bool) -> c_int {
    loop {
        let driver = context!();
        if done(&driver) {
            write_printed();
            return OK;
        }
        drop(driver);
        std::thread::sleep(Duration::from_micros(20));
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> c_int {
    wait_until(|driver| driver.streams.values().all(|stream| stream.queue.is_empty() && !stream.busy))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: *mut c_void) -> c_int {
    wait_until(|driver| {
        let stream = driver.streams.get(&(stream as usize));
        stream.is_none_or(|stream| stream.queue.is_empty() && !stream.busy)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: *mut c_void) -> c_int {
    let mut driver = context!();
    let handle = stream as usize;
    // What only tells somebody may outlive the handle.
    let tells = |work: &Operation| {
        matches!(work, Operation::Record(_) | Operation::Wait(..) | Operation::Call { .. })
    };
    match driver.streams.get_mut(&handle) {
        // The last operation may have shown that it is over before this library's own thread notes it.
        Some(stream) if stream.queue.is_empty() => {
            driver.streams.remove(&handle);
            OK
        }
        Some(stream) if stream.queue.iter().all(tells) => {
            stream.destroyed = true;
            OK
        }
        Some(_) => misuse("a stream destroyed with work in it"),
        None => misuse("a stream that is none"),
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreateWithPriority(
    stream: &mut *mut c_void,
    flags: c_uint,
    _priority: c_int,
) -> c_int {
    cuStreamCreate(stream, flags)
}

#[unsafe(no_mangle)]
extern "C" fn cuEventCreate(event: &mut *mut c_void, flags: c_uint) -> c_int {
    let mut driver = context!();
    if flags & !2 != 0 {
        return misuse("an event with flags that nobody needs");
    }
    if driver.events.len() >= MOST_EVENTS {
        return misuse("more events than can be under way");
    }
    let handle = driver.handle();
    let timed = flags & 2 == 0;
    let new = Event {
        timed,
        ..Event::default()
    };
    driver.events.insert(handle, new);
    *event = handle as *mut c_void;
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: *mut c_void, stream: *mut c_void) -> c_int {
    let mut driver = context!();
    let timed = match driver.events.get_mut(&(event as usize)) {
        Some(event) => {
            event.recorded += 1;
            event.timed
        }
        None => return misuse("an event that is none"),
    };
    driver.recorded += i64::from(timed);
    if timed && scenario("events").is_some_and(|most| driver.recorded > most) {
        return FROM_THE_FUTURE;
    }
    driver.queue(stream, Operation::Record(event as usize))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: *mut c_void) -> c_int {
    let driver = context!();
    match driver.events.get(&(event as usize)) {
        Some(event) if event.come == event.recorded => OK,
        Some(_) => NOT_READY,
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
    let time = |event: *mut c_void| {
        let event = driver.events.get(&(event as usize))?;
        event.at.filter(|_| event.come == event.recorded)
    };
    match (time(from), time(to)) {
        (Some(_), Some(_)) if scenario("quick").is_some() => {
            *milliseconds = 0.001;
            OK
        }
        (Some(from), Some(to)) => {
            *milliseconds = to.saturating_duration_since(from).as_secs_f32() * 1000.0;
            OK
        }
        _ => NOT_READY,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(
    stream: *mut c_void,
    event: *mut c_void,
    _flags: c_uint,
) -> c_int {
    let mut driver = context!();
    let times = match driver.events.get(&(event as usize)) {
        Some(event) => event.recorded,
        None => return misuse("an event that is none"),
    };
    driver.queue(stream, Operation::Wait(event as usize, times))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWriteValue32_v2(
    stream: *mut c_void,
    to: u64,
    value: u32,
    _flags: c_uint,
) -> c_int {
    let mut driver = context!();
    let Some(to) = driver.host_at(to) else {
        return misuse("a word outside of page-locked memory");
    };
    if !driver.has_host(to, 4) {
        return misuse("a word outside of page-locked memory");
    }
    driver.queue(stream, Operation::Write { to, value })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWriteValue64_v2(
    stream: *mut c_void,
    to: u64,
    value: u64,
    _flags: c_uint,
) -> c_int {
    let mut driver = context!();
    let Some(to) = driver.host_at(to) else {
        return misuse("a word outside of page-locked memory");
    };
    if !driver.has_host(to, 8) || !to.is_multiple_of(8) {
        return misuse("a word outside of page-locked memory");
    }
    if scenario("halves").is_some() {
        return misuse("a device that writes 32 bits at a time");
    }
    driver.queue(stream, Operation::WriteLong { to, value })
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

/// Memory full of NaN, as a host's may be.
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
extern "C" fn cuMemHostRegister_v2(address: *mut c_void, bytes: usize, _flags: c_uint) -> c_int {
    let mut driver = context!();
    if code("register") != OK {
        return code("register");
    }
    if driver.has_host(address as usize, 1) {
        return misuse("memory that is page-locked already");
    }
    let Some(start) = NonNull::new(address.cast::<u8>()) else {
        return INVALID_VALUE;
    };
    // SAFETY: as with the real driver, the caller keeps it mapped until it is let go.
    let memory = unsafe { HostMemory::new(start, bytes, Arc::new(())) };
    match memory.and_then(|memory| device().register(&memory)) {
        Ok(there) => {
            driver.registered.insert(address as usize, (bytes, there));
            OK
        }
        Err(error) => error.code.number() as c_int,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostUnregister(address: *mut c_void) -> c_int {
    let mut driver = context!();
    let Some((bytes, there)) = driver.registered.remove(&(address as usize)) else {
        return misuse("memory that is not page-locked");
    };
    let _ = device().unregister(there);
    let all = address as usize..address as usize + bytes;
    let mut queued = driver.streams.values().flat_map(|stream| &stream.queue);
    let uses = queued.any(|operation| match operation {
        Operation::ToDevice { from, .. } => all.contains(from),
        Operation::FromDevice { to, .. } => all.contains(to),
        _ => false,
    });
    match uses {
        true => misuse("memory is let go while a copy uses it"),
        false => OK,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAlloc_v2(address: &mut u64, bytes: usize) -> c_int {
    let mut driver = context!();
    if code("alloc") != OK {
        return code("alloc");
    }
    let used: u64 = driver.memory.values().sum();
    if scenario("limit").is_some_and(|limit| (used + bytes as u64) as i64 > limit) {
        return OUT_OF_MEMORY;
    }
    match device().allocate(bytes as u64) {
        Ok(start) => {
            // As a device's may be.
            let _ = device().fill(start, u32::MAX, 1, bytes as u64);
            driver.memory.insert(start, bytes as u64);
            *address = start;
            OK
        }
        Err(error) => error.code.number() as c_int,
    }
}

/// Rows at distances that no real driver has: multiples of the BYTES in `pitch=BYTES`.
#[unsafe(no_mangle)]
extern "C" fn cuMemAllocPitch_v2(
    address: &mut u64,
    pitch: &mut usize,
    width: usize,
    height: usize,
    element: c_uint,
) -> c_int {
    if !matches!(element, 4 | 8 | 16) || width == 0 || height == 0 {
        return misuse("rows of an element that is none");
    }
    *pitch = width.next_multiple_of(scenario("pitch").map_or(512, |pitch| pitch as usize));
    cuMemAlloc_v2(address, *pitch * height)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> c_int {
    let mut driver = context!();
    match driver.memory.remove(&address) {
        Some(_) => {
            let _ = device().free(address);
            OK
        }
        None => misuse("device memory that is none"),
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostGetDevicePointer_v2(
    there: &mut u64,
    here: *mut c_void,
    _flags: c_uint,
) -> c_int {
    let driver = context!();
    match driver.registered.get(&(here as usize)) {
        Some((_, address)) => *there = *address,
        None if driver.has_host(here as usize, 1) => *there = here as u64,
        None => return misuse("page-locked memory that is none"),
    }
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const c_void,
    bytes: usize,
    stream: *mut c_void,
) -> c_int {
    let mut driver = context!();
    let from = from as usize;
    if !driver.has(to, bytes as u64) || !driver.has_host(from, bytes) {
        return misuse("a copy beyond an allocation");
    }
    let to = Rows::range(to, bytes as u64);
    driver.queue(stream, Operation::ToDevice { to, from })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: u64,
    bytes: usize,
    stream: *mut c_void,
) -> c_int {
    let mut driver = context!();
    let to = to as usize;
    if !driver.has(from, bytes as u64) || !driver.has_host(to, bytes) {
        return misuse("a copy beyond an allocation");
    }
    let from = Rows::range(from, bytes as u64);
    driver.queue(stream, Operation::FromDevice { to, from })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(
    to: u64,
    from: u64,
    bytes: usize,
    stream: *mut c_void,
) -> c_int {
    let mut driver = context!();
    let bytes = bytes as u64;
    if !driver.has(to, bytes) || !driver.has(from, bytes) {
        return misuse("a copy beyond an allocation");
    }
    let (to, from) = (Rows::range(to, bytes), Rows::range(from, bytes));
    driver.queue(stream, Operation::Within { to, from })
}

/// `CUDA_MEMCPY2D`, as cuda.h has it.
#[repr(C)]
pub struct Memcpy2d {
    from_x: usize,
    from_y: usize,
    from_type: c_int,
    from_host: usize,
    from_device: u64,
    from_array: usize,
    from_pitch: usize,
    to_x: usize,
    to_y: usize,
    to_type: c_int,
    to_host: usize,
    to_device: u64,
    to_array: usize,
    to_pitch: usize,
    width: usize,
    height: usize,
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpy2DAsync_v2(copy: &Memcpy2d, stream: *mut c_void) -> c_int {
    const HOST: c_int = 1;
    const DEVICE: c_int = 2;
    let mut driver = context!();
    if (copy.from_x, copy.from_y, copy.to_x, copy.to_y) != (0, 0, 0, 0) {
        return misuse("a copy from the middle of something");
    }
    if copy.from_pitch < copy.width || copy.to_pitch < copy.width {
        return misuse("a copy between rows that overlap");
    }
    let rows = |address: u64, pitch: usize| Rows {
        address,
        pitch: pitch as u64,
        width: copy.width as u64,
        height: copy.height as u64,
    };
    let (to, from) = (rows(copy.to_device, copy.to_pitch), rows(copy.from_device, copy.from_pitch));
    let bytes = copy.width * copy.height;
    // What lies on the host is a buffer of the mediator's, in which rows lie behind each other.
    let packed = |host: usize, pitch: usize| pitch == copy.width && driver.has_host(host, bytes);
    let operation = match (copy.from_type, copy.to_type) {
        (HOST, DEVICE) if packed(copy.from_host, copy.from_pitch) && driver.has_rows(to) => {
            Operation::ToDevice { to, from: copy.from_host }
        }
        (DEVICE, HOST) if packed(copy.to_host, copy.to_pitch) && driver.has_rows(from) => {
            Operation::FromDevice { to: copy.to_host, from }
        }
        (DEVICE, DEVICE) if driver.has_rows(to) && driver.has_rows(from) => {
            Operation::Within { to, from }
        }
        _ => return misuse("a copy of rows beyond an allocation"),
    };
    driver.queue(stream, operation)
}

fn fill_rows(to: Rows, value: u32, size: u32, stream: *mut c_void) -> c_int {
    let mut driver = context!();
    if !driver.has_rows(to) {
        return misuse("a fill beyond an allocation");
    }
    driver.queue(stream, Operation::Fill { to, value, size })
}

fn fill(to: u64, value: u32, size: u32, count: usize, stream: *mut c_void) -> c_int {
    fill_rows(Rows::range(to, count as u64 * u64::from(size)), value, size, stream)
}

fn fill_2d(
    to: u64,
    pitch: usize,
    value: u32,
    size: u32,
    (width, height): (usize, usize),
    stream: *mut c_void,
) -> c_int {
    let rows = Rows {
        address: to,
        pitch: pitch as u64,
        width: width as u64 * u64::from(size),
        height: height as u64,
    };
    fill_rows(rows, value, size, stream)
}

macro_rules! fill_2d {
    ($($name:ident $value:ty;)*) => { $(
        #[unsafe(no_mangle)]
        extern "C" fn $name(
            to: u64,
            pitch: usize,
            value: $value,
            width: usize,
            height: usize,
            stream: *mut c_void,
        ) -> c_int {
            fill_2d(to, pitch, value.into(), size_of::<$value>() as u32, (width, height), stream)
        }
    )* };
}

fill_2d! {
    cuMemsetD2D8Async u8;
    cuMemsetD2D16Async u16;
    cuMemsetD2D32Async u32;
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: *mut c_void) -> c_int {
    fill(to, value.into(), 1, count, stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: *mut c_void) -> c_int {
    fill(to, value.into(), 2, count, stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: *mut c_void) -> c_int {
    fill(to, value, 4, count, stream)
}

/// The packed parameters: from one pointer to each, or packed already.
///
/// # Safety
/// As cuLaunchKernel has it.
unsafe fn packed(
    kernel: &Kernel,
    each: *const *const u8,
    extra: *const *const c_void,
) -> Option<Vec<u8>> {
    let bytes = kernel.parameter_bytes as usize;
    let mut parameters = vec![0; bytes];
    if !each.is_null() {
        for (k, parameter) in kernel.parameters.iter().enumerate() {
            let (offset, size) = (parameter.offset as usize, parameter.size as usize);
            // SAFETY: the caller gives a pointer to so many bytes for each parameter.
            let from = unsafe { std::slice::from_raw_parts(*each.add(k), size) };
            parameters[offset..offset + size].copy_from_slice(from);
        }
    } else if !extra.is_null() {
        // SAFETY: CU_LAUNCH_PARAM_BUFFER_POINTER, the bytes, CU_LAUNCH_PARAM_BUFFER_SIZE, how many.
        unsafe {
            let number = |k: usize| (*extra.add(k)) as usize;
            if (number(0), number(2), number(4)) != (1, 2, 0) {
                return None;
            }
            let given = *(*extra.add(3)).cast::<usize>();
            if given != bytes {
                return None;
            }
            let from = std::slice::from_raw_parts((*extra.add(1)).cast::<u8>(), given);
            parameters.copy_from_slice(from);
        }
    } else if bytes > 0 {
        return None;
    }
    Some(parameters)
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernel(
    function: *mut c_void,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared_bytes: c_uint,
    stream: *mut c_void,
    each: *const *const u8,
    extra: *const *const c_void,
) -> c_int {
    let mut driver = context!();
    write_printed();
    let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
    // SAFETY: the caller's promise.
    let launch = unsafe { launch(&driver, function as usize, grid, block, shared_bytes, each, extra) };
    let operation = match launch {
        Ok(operation) => operation,
        Err(code) => return code,
    };
    driver.launches += 1;
    if scenario("refuse") == Some(driver.launches) {
        return FROM_THE_FUTURE;
    }
    driver.queue(stream, operation)
}

/// `CUlaunchAttribute`, as cuda.h has it.
#[repr(C, align(8))]
pub struct Attribute {
    id: c_uint,
    padding: c_uint,
    value: [c_uint; 16],
}

/// `CUlaunchConfig`, as cuda.h has it.
#[repr(C)]
pub struct LaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    stream: *mut c_void,
    attributes: *const Attribute,
    count: c_uint,
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernelEx(
    config: &LaunchConfig,
    function: *mut c_void,
    each: *const *const u8,
    extra: *const *const c_void,
) -> c_int {
    let mut driver = context!();
    write_printed();
    let (grid, block, shared) = (config.grid, config.block, config.shared_bytes);
    // SAFETY: the caller's promise.
    let launch = unsafe { launch(&driver, function as usize, grid, block, shared, each, extra) };
    let mut operation = match launch {
        Ok(operation) => operation,
        Err(code) => return code,
    };
    if config.attributes.is_null() || config.count == 0 {
        return misuse("a launch without attributes, which costs more by this call");
    }
    // SAFETY: the caller's promise.
    let attributes = unsafe { std::slice::from_raw_parts(config.attributes, config.count as usize) };
    for attribute in attributes {
        match set(&mut operation, attribute.id, &attribute.value) {
            OK => {}
            code => return code,
        }
    }
    driver.launches += 1;
    if scenario("refuse") == Some(driver.launches) {
        return FROM_THE_FUTURE;
    }
    driver.queue(config.stream, operation)
}

/// Gives a launch an attribute.
fn set(operation: &mut Operation, id: c_uint, value: &[c_uint; 16]) -> c_int {
    let Operation::Launch { kernel, how, .. } = operation else {
        return misuse("an attribute of what is no kernel");
    };
    match id {
        // CU_LAUNCH_ATTRIBUTE_COOPERATIVE
        2 if value[0] != 0 => {
            let count = |n: [c_uint; 3]| n.iter().map(|n| u64::from(*n)).product::<u64>();
            let threads = c_uint::try_from(count(how.block)).unwrap_or(c_uint::MAX);
            let most = kernel.blocks_per_multiprocessor(threads, how.shared, how.shared_opt_in);
            if count(how.grid) > u64::from(most) * MULTIPROCESSORS {
                return COOPERATIVE_LAUNCH_TOO_LARGE;
            }
            how.cooperative = true;
            OK
        }
        // CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        4 if value[..3] != [1; 3] => INVALID_CLUSTER_SIZE,
        7 | 12 | 13 => misuse("an attribute with an object of another process"),
        0..=16 => OK,
        _ => INVALID_VALUE,
    }
}

/// A kernel's launch.
///
/// # Safety
/// As `cuLaunchKernel`.
unsafe fn launch(
    driver: &Driver,
    function: usize,
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    each: *const *const u8,
    extra: *const *const c_void,
) -> Result<Operation, c_int> {
    let Some(Function {
        loaded,
        kernel,
        opt_in,
    }) = driver.functions.get(&function)
    else {
        return Err(misuse("a function that is none"));
    };
    let within = |size: [c_uint; 3], most: [c_uint; 3]| {
        let mut each = size.iter().zip(most);
        each.all(|(n, most)| (1..=most).contains(n))
    };
    if !within(grid, MOST_BLOCKS) || !within(block, MOST_THREADS) {
        return Err(INVALID_VALUE);
    }
    let threads: u64 = block.iter().map(|n| u64::from(*n)).product();
    let most = if *opt_in { 227 << 10 } else { 48 << 10 };
    let shared = kernel.shared_bytes.saturating_add(shared_bytes);
    if threads > u64::from(kernel.max_threads) || shared > most {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller's promise.
    let Some(parameters) = (unsafe { packed(kernel, each, extra) }) else {
        return Err(misuse("parameters that are not the kernel's"));
    };
    Ok(Operation::Launch {
        loaded: loaded.clone(),
        kernel: kernel.clone(),
        how: Launch {
            shared: shared_bytes,
            shared_opt_in: *opt_in,
            ..Launch::new(grid, block)
        },
        parameters,
    })
}

/// `CUDA_KERNEL_NODE_PARAMS_v1`, as cuda.h has it.
#[repr(C)]
pub struct KernelNode {
    function: usize,
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    each: *const *const u8,
    extra: *const *const c_void,
}

/// `CUDA_MEMCPY3D`, as cuda.h has it.
#[repr(C)]
pub struct Memcpy3d {
    from: Side3d,
    to: Side3d,
    width: usize,
    height: usize,
    depth: usize,
}

/// One side of it: the place in it, its memory, and its shape.
#[repr(C)]
struct Side3d {
    place: [usize; 4],
    kind: c_int,
    host: usize,
    device: u64,
    array: usize,
    reserved: usize,
    pitch: usize,
    height: usize,
}

/// `CUDA_MEMSET_NODE_PARAMS`, as cuda.h has it.
#[repr(C)]
pub struct MemsetNode {
    to: u64,
    pitch: usize,
    value: c_uint,
    size: c_uint,
    width: usize,
    height: usize,
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphCreate(graph: *mut *mut c_void, flags: c_uint) -> c_int {
    let mut driver = context!();
    if flags != 0 {
        return misuse("flags of a graph");
    }
    let handle = driver.handle();
    driver.graphs.insert(handle, Vec::new());
    // SAFETY: the caller's promise.
    unsafe { *graph = handle as *mut c_void };
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphDestroy(graph: *mut c_void) -> c_int {
    match context!().graphs.remove(&(graph as usize)) {
        Some(_) => OK,
        None => misuse("a graph that is none"),
    }
}

/// The bits of a node's handle that are its number in its graph, from 1 on; the others are the graph's handle.
const NODE: u32 = 20;

/// Adds a node.
///
/// # Safety
/// As `cuGraphAddKernelNode`.
unsafe fn add_node(
    driver: &mut Driver,
    node: *mut usize,
    graph: *mut c_void,
    (before, count): (*const usize, usize),
    operation: Option<Operation>,
) -> c_int {
    let before = match count {
        0 => &[],
        // SAFETY: the caller's promise.
        _ => unsafe { std::slice::from_raw_parts(before, count) },
    };
    let Some(nodes) = driver.graphs.get_mut(&(graph as usize)) else {
        return misuse("a graph that is none");
    };
    let first = (graph as usize) << NODE;
    let is_node = |node: &usize| (1..=nodes.len()).contains(&node.wrapping_sub(first));
    if !before.iter().all(is_node) {
        return misuse("a node that is none");
    }
    nodes.push(operation);
    // SAFETY: the caller's promise.
    unsafe { *node = first + nodes.len() };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphAddEmptyNode(
    node: *mut usize,
    graph: *mut c_void,
    before: *const usize,
    count: usize,
) -> c_int {
    let mut driver = context!();
    // SAFETY: the caller's promise.
    unsafe { add_node(&mut driver, node, graph, (before, count), None) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphAddKernelNode(
    node: *mut usize,
    graph: *mut c_void,
    before: *const usize,
    count: usize,
    kernel: *const KernelNode,
) -> c_int {
    let mut driver = context!();
    // SAFETY: the caller's promise, also below.
    let kernel = unsafe { &*kernel };
    let (grid, block, shared) = (kernel.grid, kernel.block, kernel.shared_bytes);
    let launch = unsafe {
        launch(&driver, kernel.function, grid, block, shared, kernel.each, kernel.extra)
    };
    match launch {
        Ok(launch) => unsafe {
            add_node(&mut driver, node, graph, (before, count), Some(launch))
        },
        Err(code) => code,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphKernelNodeSetAttribute(
    node: usize,
    id: c_uint,
    value: &[c_uint; 16],
) -> c_int {
    let mut driver = context!();
    let (graph, number) = (node >> NODE, node & ((1 << NODE) - 1));
    let nodes = driver.graphs.get_mut(&graph);
    let Some(Some(operation)) = nodes.and_then(|nodes| nodes.get_mut(number.wrapping_sub(1))) else {
        return misuse("a node that is none");
    };
    match id {
        // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, of launches alone.
        6 => INVALID_VALUE,
        _ => set(operation, id, value),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphAddMemcpyNode(
    node: *mut usize,
    graph: *mut c_void,
    before: *const usize,
    count: usize,
    copy: *const Memcpy3d,
    _context: *mut c_void,
) -> c_int {
    let mut driver = context!();
    // SAFETY: the caller's promise.
    let copy = unsafe { &*copy };
    let rows = |side: &Side3d| {
        let plain = side.place == [0; 4] && side.kind == 2 && copy.depth == 1;
        let rows = Rows {
            address: side.device,
            pitch: side.pitch as u64,
            width: copy.width as u64,
            height: copy.height as u64,
        };
        (plain && driver.has_rows(rows)).then_some(rows)
    };
    let (Some(to), Some(from)) = (rows(&copy.to), rows(&copy.from)) else {
        return misuse("a copy beyond an allocation");
    };
    let copy = Some(Operation::Within { to, from });
    // SAFETY: the caller's promise.
    unsafe { add_node(&mut driver, node, graph, (before, count), copy) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphAddMemsetNode(
    node: *mut usize,
    graph: *mut c_void,
    before: *const usize,
    count: usize,
    fill: *const MemsetNode,
    _context: *mut c_void,
) -> c_int {
    let mut driver = context!();
    // SAFETY: the caller's promise.
    let fill = unsafe { &*fill };
    let to = Rows {
        address: fill.to,
        pitch: fill.pitch as u64,
        width: fill.width as u64 * u64::from(fill.size),
        height: fill.height as u64,
    };
    if !driver.has_rows(to) {
        return misuse("a fill beyond an allocation");
    }
    let (value, size) = (fill.value, fill.size);
    let fill = Some(Operation::Fill { to, value, size });
    // SAFETY: the caller's promise.
    unsafe { add_node(&mut driver, node, graph, (before, count), fill) }
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphInstantiateWithFlags(exec: *mut usize, graph: *mut c_void, _flags: u64) -> c_int {
    let mut driver = context!();
    let Some(nodes) = driver.graphs.get(&(graph as usize)).cloned() else {
        return misuse("a graph that is none");
    };
    let (handle, event) = (driver.handle(), driver.handle());
    driver.events.insert(event, Event::default());
    driver.execs.insert(handle, (nodes, event));
    // SAFETY: the caller's promise.
    unsafe { *exec = handle };
    OK
}

/// Its nodes run one behind the other, in the order in which they were added, and behind those of its launch before,
/// whichever stream that was in.
#[unsafe(no_mangle)]
extern "C" fn cuGraphLaunch(exec: usize, stream: *mut c_void) -> c_int {
    let mut driver = context!();
    write_printed();
    let Some((nodes, event)) = driver.execs.get(&exec).cloned() else {
        return misuse("a graph that is none");
    };
    let before = driver.events.get(&event).map_or(0, |event| event.recorded);
    let nodes = nodes.into_iter().flatten();
    let ends = [Operation::Wait(event, before), Operation::Record(event)].map(std::iter::once);
    let [wait, record] = ends;
    if let Some(event) = driver.events.get_mut(&event) {
        event.recorded += 1;
    }
    for operation in wait.chain(nodes).chain(record) {
        driver.launches += i64::from(matches!(operation, Operation::Launch { .. }));
        match driver.queue(stream, operation) {
            OK => {}
            code => return code,
        }
    }
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphExecDestroy(exec: usize) -> c_int {
    let mut driver = context!();
    match driver.execs.remove(&exec) {
        Some((_, event)) => {
            driver.events.remove(&event);
            OK
        }
        None => misuse("a graph that is none"),
    }
}
