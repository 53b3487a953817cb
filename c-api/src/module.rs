//! Modules, kernels and launches.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use vgpu_guest::{CompileAt, CompileOptions as Compile, Function, LaunchConfig, Module};

use crate::device::{DEVICES, DeviceHandle};
use crate::failure::{Failure, call};
use crate::handles::{Held, Table};
use crate::pointers::{Out, elements, optional_text, sized, text};
use crate::stream::{StreamHandle, queue};

pub(crate) static MODULES: Table<Arc<Loaded>> = Table::new("module");
pub(crate) static FUNCTIONS: Table<Function> = Table::new("function");

/// Code on a device.
#[derive(Debug)]
pub struct ModuleHandle {
    _opaque: [u8; 0],
}

/// A kernel of a module.
#[derive(Debug)]
pub struct FunctionHandle {
    _opaque: [u8; 0],
}

/// A module, and the handles of the kernels that were looked up in it: their addresses.
#[derive(Debug)]
pub(crate) struct Loaded {
    module: Module,
    functions: Mutex<BTreeMap<String, usize>>,
}

/// One argument of a kernel: where its value is, and the bytes of it. Of memory on the device, the value is its address.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Argument {
    /// The value.
    pub value: *const c_void,
    /// Its size.
    pub bytes: usize,
}

/// Loads a module from `bytes` of PTX, a cubin or a fatbin.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_module_load(
    device: *mut DeviceHandle,
    image: *const c_void,
    bytes: usize,
    module: *mut *mut ModuleHandle,
) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let (place, image) = unsafe {
            (
                Out::new(module, "module")?,
                elements::<u8>(image.cast(), bytes, "image")?,
            )
        };
        let Held { session, object } = DEVICES.get(device)?;
        let loaded = Loaded {
            module: object.load_module(image)?,
            functions: Mutex::default(),
        };
        place.set(MODULES.insert(session, Arc::new(loaded)));
        Ok(())
    })
}

/// Where CUDA C++ is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum VgpuCompileAt {
    /// Here where NVIDIA's run-time compiler NVRTC is installed, by the mediator otherwise.
    Any = 0,
    /// Here. `#include` also finds files of this machine.
    Here = 1,
    /// By the mediator, of whose machine no file can be named.
    Mediator = 2,
}

/// How CUDA C++ is compiled. All bytes 0 but for `size` are the defaults.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct CompileOptions {
    /// `sizeof(vgpu_compile_options)`.
    pub size: usize,
    /// Name of the source in the compiler's messages; NULL: "source.cu".
    pub name: *const c_char,
    /// The compute capability to compile for, as 90 for 9.0; 0: the device's.
    pub capability: u32,
    /// Where it is compiled, a `vgpu_compile_at`.
    pub at: u32,
    /// Options of NVRTC, each one word, as "--use_fast_math", "-DN=256". The mediator takes those alone that name no file.
    pub options: *const *const c_char,
    /// How many there are.
    pub option_count: usize,
    /// Names of headers for `#include`.
    pub header_names: *const *const c_char,
    /// Their texts.
    pub header_texts: *const *const c_char,
    /// How many there are.
    pub header_count: usize,
}

/// Loads a module from CUDA C++, compiled for the device. `options` may be NULL. Kernels keep their names where they are
/// `extern "C"`. A source that does not compile is VGPU_ERROR_INVALID_ARGUMENT, and `vgpu_last_error_log` has the
/// compiler's messages; where nobody can compile, it is VGPU_ERROR_UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_module_compile(
    device: *mut DeviceHandle,
    source: *const c_char,
    options: *const CompileOptions,
    module: *mut *mut ModuleHandle,
) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let (place, source, options) = unsafe {
            (
                Out::new(module, "module")?,
                text(source, "source")?,
                compile_options(options)?,
            )
        };
        let Held { session, object } = DEVICES.get(device)?;
        let loaded = Loaded {
            module: object.compile_module(source, &options)?,
            functions: Mutex::default(),
        };
        place.set(MODULES.insert(session, Arc::new(loaded)));
        Ok(())
    })
}

/// # Safety
/// NULL, or options by the header's rules for pointers.
unsafe fn compile_options(given: *const CompileOptions) -> Result<Compile, Failure> {
    let mut options = Compile::default();
    // SAFETY: the header's rules for pointers.
    let Some(given) = (unsafe { sized(given, "vgpu_compile_options")? }) else {
        return Ok(options);
    };
    let texts = |list: *const *const c_char, count: usize, what: &str| {
        // SAFETY: as this function.
        let list = unsafe { elements(list, count, what)? };
        let texts = list.iter();
        texts
            // SAFETY: as this function.
            .map(|one| Ok(unsafe { text(*one, what)? }.to_owned()))
            .collect::<Result<Vec<_>, Failure>>()
    };
    // SAFETY: the header's rules for pointers.
    if let Some(name) = unsafe { optional_text(given.name, "name of the source")? } {
        options.name = name.to_owned();
    }
    options.capability = (given.capability > 0).then_some(given.capability);
    options.at = match given.at {
        at if at == VgpuCompileAt::Any as u32 => CompileAt::Any,
        at if at == VgpuCompileAt::Here as u32 => CompileAt::Here,
        at if at == VgpuCompileAt::Mediator as u32 => CompileAt::Mediator,
        other => {
            return Err(Failure::argument(format!(
                "{other} is no place to compile at: see vgpu_compile_at"
            )));
        }
    };
    options.options = texts(given.options, given.option_count, "compiler's option")?;
    let names = texts(given.header_names, given.header_count, "header's name")?;
    let headers = texts(given.header_texts, given.header_count, "header's text")?;
    options.headers = names.into_iter().zip(headers).collect();
    Ok(options)
}

/// Unloads a module, once the work that was sent before is done; its functions are gone with it. NULL is VGPU_OK.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_module_unload(module: *mut ModuleHandle) -> c_int {
    call(|| {
        let Some(loaded) = MODULES.remove(module)? else {
            return Ok(());
        };
        let functions = loaded
            .functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for function in functions.values() {
            // With the session they may be gone before.
            let _ = FUNCTIONS.remove::<FunctionHandle>(std::ptr::without_provenance_mut(*function));
        }
        Ok(())
    })
}

/// The kernel `name` of a module, as the image has it. It is valid as long as the module is loaded; asked for again, it
/// is the same.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_module_function(
    module: *mut ModuleHandle,
    name: *const c_char,
    function: *mut *mut FunctionHandle,
) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let (place, name) = unsafe {
            (
                Out::new(function, "function")?,
                text(name, "kernel's name")?,
            )
        };
        let Held { session, object } = MODULES.get(module)?;
        let mut functions = object
            .functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let handle = match functions.get(name) {
            Some(known) => std::ptr::without_provenance_mut(*known),
            None => {
                let found = object.module.load_function(name)?;
                let handle: *mut FunctionHandle = FUNCTIONS.insert(session, found);
                functions.insert(name.to_owned(), handle.addr());
                handle
            }
        };
        place.set(handle);
        Ok(())
    })
}

/// The value of a `CUfunction_attribute`, by its number, which `vgpu_function_attributes` names.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_function_attribute(
    function: *mut FunctionHandle,
    attribute: u32,
    value: *mut i32,
) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let place = unsafe { Out::new(value, "attribute")? };
        let found = FUNCTIONS.get(function)?.object.attribute(attribute);
        place.set(found.ok_or_else(|| {
            Failure::argument(format!("the kernel has no attribute {attribute}"))
        })?);
        Ok(())
    })
}

/// Launches a kernel: a grid of `grid_x` x `grid_y` x `grid_z` blocks of `block_x` x `block_y` x `block_z` threads, with
/// `shared_bytes` of dynamic shared memory for each block. Number and sizes of the `arguments` are checked against the
/// kernel's parameters; their values have been read when this returns.
///
/// It does not wait: a failure of the kernel is that of the next `vgpu_synchronize` or `vgpu_copy_from_device`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_launch(
    device: *mut DeviceHandle,
    function: *mut FunctionHandle,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared_bytes: u32,
    arguments: *const Argument,
    count: usize,
    stream: *mut StreamHandle,
) -> c_int {
    let config = config(
        grid_x,
        grid_y,
        grid_z,
        block_x,
        block_y,
        block_z,
        shared_bytes,
    );
    // SAFETY: the header's rules for pointers.
    unsafe { launch(device, function, config, arguments, count, stream, false) }
}

/// As `vgpu_launch`, with all blocks at once, so that they may wait for each other. A grid that the device has no room for
/// fails with CUDA error 720.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_launch_cooperative(
    device: *mut DeviceHandle,
    function: *mut FunctionHandle,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared_bytes: u32,
    arguments: *const Argument,
    count: usize,
    stream: *mut StreamHandle,
) -> c_int {
    let config = config(
        grid_x,
        grid_y,
        grid_z,
        block_x,
        block_y,
        block_z,
        shared_bytes,
    );
    // SAFETY: the header's rules for pointers.
    unsafe { launch(device, function, config, arguments, count, stream, true) }
}

fn config(gx: u32, gy: u32, gz: u32, bx: u32, by: u32, bz: u32, shared: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (gx, gy, gz),
        block_dim: (bx, by, bz),
        shared_mem_bytes: shared,
    }
}

/// Launches a kernel.
///
/// # Safety
/// The header's rules for pointers.
unsafe fn launch(
    device: *mut DeviceHandle,
    function: *mut FunctionHandle,
    config: LaunchConfig,
    arguments: *const Argument,
    count: usize,
    stream: *mut StreamHandle,
    cooperative: bool,
) -> c_int {
    call(|| {
        let queue = queue(device, stream)?;
        let function = FUNCTIONS.get(function)?.object;
        // SAFETY: the header's rules for pointers.
        let arguments = unsafe { elements(arguments, count, "list of arguments")? };
        let parameters = function.parameters();
        if arguments.len() != parameters.len() {
            return Err(Failure::argument(format!(
                "kernel '{}' has {} parameters, {} arguments were given",
                function.name(),
                parameters.len(),
                arguments.len()
            )));
        }
        let mut launch = queue.launch_builder(&function);
        for (k, (argument, parameter)) in arguments.iter().zip(parameters).enumerate() {
            // Before a byte of it is read: a wrong size is a wrong pointer, too.
            if argument.bytes != parameter.size as usize {
                return Err(Failure::argument(format!(
                    "argument {k} has {} bytes; parameter {k} of kernel '{}' has {}",
                    argument.bytes,
                    function.name(),
                    parameter.size
                )));
            }
            // SAFETY: the header's rules for pointers.
            let value: &[u8] = unsafe {
                elements(
                    argument.value.cast(),
                    argument.bytes,
                    "value of an argument",
                )?
            };
            launch = launch.arg_bytes(value);
        }
        if cooperative {
            launch = launch.cooperative();
        }
        launch.launch(config)?;
        Ok(())
    })
}
