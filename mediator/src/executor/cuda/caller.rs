//! The calls of the driver that may take their time, those about modules and kernels among them.
#![allow(unsafe_code)]

use std::ffi::{CString, c_int, c_uint, c_void};
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{CUdeviceptr, CUfunction};
use vgpu_protocol::op::{NO_ATTRIBUTE, ParameterPlace};

use super::super::cuda_result;
use super::super::gpu::device::{Answer, Answered, Call, Caller, DeviceError, Layout, Limit};
use super::device::Device;
use super::driver::{CallError, check, size};
use super::graph::Graph;
use super::handles::{Function, Module, Registration};
use super::image;
use super::printed;

/// Attributes that are asked for, and some to come.
const FUNCTION_ATTRIBUTES: c_int = 16;

/// An error as the engine has it; one that spoils the context is the last that the driver is asked for.
pub(super) fn device_error(device: &Device, error: CallError) -> DeviceError {
    if error.is_sticky() {
        device.lose(error);
    }
    DeviceError {
        code: error.code,
        text: error.to_string(),
        sticky: error.is_sticky(),
    }
}

/// The error for every request once the device is lost.
pub(super) fn lost(device: &Device) -> DeviceError {
    match device.lost_by() {
        Some(error) => DeviceError {
            code: error.code,
            text: error.to_string(),
            sticky: true,
        },
        None => DeviceError {
            code: cuda_result::CONTEXT_IS_DESTROYED,
            text: "an earlier error ended this session's use of the GPU".to_owned(),
            sticky: true,
        },
    }
}

/// Makes the driver's calls that may take their time.
#[derive(Clone)]
pub(in crate::executor) struct CudaCaller(pub(super) Arc<Device>);

impl CudaCaller {
    fn error(&self, error: CallError) -> DeviceError {
        device_error(&self.0, error)
    }

    fn allocate(&self, bytes: u64) -> Result<CUdeviceptr, CallError> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut address = 0;
        // SAFETY: the output is writable and the context current.
        let code = unsafe { (self.0.driver().mem_alloc)(&mut address, bytes) };
        check(code, "cuMemAlloc")?;
        Ok(address)
    }

    /// Address of the first row, and the pitch in bytes.
    fn allocate_rows(
        &self,
        width: u64,
        height: u64,
        element_bytes: u8,
    ) -> Result<(CUdeviceptr, u64), CallError> {
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let (mut address, mut pitch) = (0, 0);
        // SAFETY: both outputs are writable and the context current; what no memory holds is refused.
        let code = unsafe {
            (self.0.driver().mem_alloc_pitch)(
                &mut address,
                &mut pitch,
                size(width),
                size(height),
                element_bytes.into(),
            )
        };
        check(code, "cuMemAllocPitch")?;
        Ok((address, pitch as u64))
    }

    /// `address` is the session's own, and nothing that is queued names it.
    fn free(&self, address: CUdeviceptr) -> Result<(), CallError> {
        // SAFETY: the caller's promise.
        check(unsafe { (self.0.driver().mem_free)(address) }, "cuMemFree")
    }

    fn load(&self, image: &[u8]) -> Result<Module, CallError> {
        let mut module = ptr::null_mut();
        // SAFETY: the image ends where it says, and with zeros: `image::fit`. The context is current.
        let code = unsafe {
            (self.0.driver().module_load_data)(&mut module, image.as_ptr().cast::<c_void>())
        };
        check(code, "cuModuleLoadData")?;
        Ok(Module {
            module,
            may_print: image::may_print(image),
        })
    }

    fn unload(&self, module: Module) -> Result<(), CallError> {
        // SAFETY: the engine unloads a module once, when nothing that is queued uses it.
        check(
            unsafe { (self.0.driver().module_unload)(module.module) },
            "cuModuleUnload",
        )
    }

    fn function(&self, module: Module, name: &CString) -> Result<CUfunction, CallError> {
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded, the name ends with a NUL, the output is writable.
        let code = unsafe {
            (self.0.driver().module_get_function)(&mut function, module.module, name.as_ptr())
        };
        check(code, "cuModuleGetFunction")?;
        Ok(function)
    }

    fn layout(&self, function: CUfunction) -> Result<Layout, DeviceError> {
        let driver = self.0.driver();
        let Some(param_info) = driver.func_get_param_info else {
            let text = "the driver cannot tell a kernel's parameters: install one of CUDA 12.4 or \
                        later (version 550)";
            return Err(DeviceError::new(cuda_result::NOT_SUPPORTED, text));
        };
        let attribute = |number| {
            let mut value = 0;
            // SAFETY: the function is of a loaded module; `value` is writable; unknown attributes are refused.
            let code = unsafe { (driver.func_get_attribute)(&mut value, number, function) };
            check(code, "cuFuncGetAttribute").map_or(NO_ATTRIBUTE, |()| value)
        };
        let attributes = (0..FUNCTION_ATTRIBUTES).map(attribute).collect();
        let mut parameters = Vec::new();
        loop {
            let (mut offset, mut size) = (0, 0);
            // SAFETY: as above; there is no parameter beyond the last, which is refused.
            let code = unsafe { param_info(function, parameters.len(), &mut offset, &mut size) };
            if code == cuda_result::INVALID_VALUE {
                break;
            }
            check(code, "cuFuncGetParamInfo").map_err(|error| self.error(error))?;
            let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            parameters.push(ParameterPlace {
                offset: number(offset),
                size: number(size),
            });
        }
        let ends = parameters
            .iter()
            .map(|place| place.offset.saturating_add(place.size));
        Ok(Layout {
            parameter_bytes: ends.max().unwrap_or(0),
            parameters,
            attributes,
        })
    }

    fn global(&self, module: Module, name: &CString) -> Result<(u64, u64), CallError> {
        let (mut address, mut bytes) = (0, 0);
        // SAFETY: the module is loaded, the name ends with a NUL, both outputs are writable.
        let code = unsafe {
            (self.0.driver().module_get_global)(
                &mut address,
                &mut bytes,
                module.module,
                name.as_ptr(),
            )
        };
        check(code, "cuModuleGetGlobal")?;
        Ok((address, bytes as u64))
    }
}

fn name(name: String) -> Result<CString, DeviceError> {
    CString::new(name)
        .map_err(|_| DeviceError::new(cuda_result::NOT_FOUND, "a name with a NUL in it"))
}

impl Caller for CudaCaller {
    type Module = Module;
    type Function = Function;
    type Graph = Graph;

    const MAY_WAIT: bool = true;

    fn call(&self, call: Call<Module, Function>) -> Answered<Module, Function, Graph> {
        if self.0.is_lost() {
            return Err(lost(&self.0));
        }
        let fail = |error| self.error(error);
        self.0.bind().map_err(fail)?;
        Ok(match call {
            Call::Allocate(bytes) => Answer::Address(self.allocate(bytes).map_err(fail)?),
            Call::AllocateRows {
                width,
                height,
                element_bytes,
            } => {
                let made = self.allocate_rows(width, height, element_bytes);
                let (address, pitch) = made.map_err(fail)?;
                Answer::Rows(address, pitch)
            }
            Call::Free(address) => {
                self.free(address).map_err(fail)?;
                Answer::Done
            }
            Call::Load(image) => Answer::Module(self.load(&image::fit(image)?).map_err(fail)?),
            Call::Unload(module) => {
                self.unload(module).map_err(fail)?;
                Answer::Done
            }
            Call::Function(module, text) => {
                let function = self.function(module, &name(text)?).map_err(fail)?;
                let layout = self.layout(function)?;
                let may_print = module.may_print;
                Answer::Function(
                    Function {
                        function,
                        may_print,
                    },
                    layout,
                )
            }
            Call::Register(mut region) => {
                let (start, bytes) = (region.start().as_ptr(), region.view().len());
                // SAFETY: the region keeps this, and lets it go before it is unmapped.
                let registration = unsafe { Registration::new(&self.0, start, bytes) };
                let registration = registration.map_err(fail)?;
                let there = registration.there;
                region.hold(registration, there);
                Answer::Registered(region)
            }
            Call::Unregister(region) => {
                drop(region);
                Answer::Done
            }
            Call::Global(module, text) => {
                let (address, bytes) = self.global(module, &name(text)?).map_err(fail)?;
                Answer::Global(address, bytes)
            }
            Call::SetLimit(limit, bytes) => {
                let set = self.0.driver().ctx_set_limit;
                // SAFETY: the context is current; a value that it cannot have is refused.
                let code = unsafe { set(limit as c_uint, size(bytes)) };
                check(code, "cuCtxSetLimit").map_err(fail)?;
                let bytes = self.0.limit(limit).map_err(fail)?;
                if limit == Limit::Printed
                    && let Some(capture) = printed::captured()
                {
                    let most = size(bytes).clamp(printed::KEPT, printed::MOST_KEPT);
                    capture.kept().set_most(most);
                }
                Answer::Limit(bytes)
            }
            Call::Graph(nodes) => Answer::Graph(Graph::new(&self.0, &nodes).map_err(fail)?),
        })
    }
}
