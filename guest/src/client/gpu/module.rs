//! Code on the device.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};

use bytemuck::Pod;
use vgpu_protocol::handle::Handle;
use vgpu_protocol::op::field::Text;
use vgpu_protocol::op::{
    FunctionSetAttribute, MAX_SYMBOL, ModuleFunction, ModuleFunctionReply, ModuleGlobal,
    ModuleLoad, ParameterPlace,
};

use super::{Device, DeviceSliceMut, Dropped, attribute, explained, lock};
use crate::attributes::{
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK as MAX_SHARED_PER_BLOCK,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MAX_DYNAMIC_SHARED,
    CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as FIXED_SHARED,
};
use crate::data::Data;
use crate::error::Result;

/// A loaded module; unloaded when this and its functions are dropped, once the work sent before is done.
/// Clones are the same module.
#[derive(Debug, Clone)]
pub struct Module(Arc<Loaded>);

#[derive(Debug)]
struct Loaded {
    device: Device,
    handle: Handle,
    /// Bytes of dynamic shared memory that kernels were allowed, by their numbers.
    allowed: Mutex<BTreeMap<u32, u32>>,
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.device.drop_on_device(Dropped::Module(self.handle));
    }
}

/// A kernel, with what it wants. Clones are the same kernel.
#[derive(Debug, Clone)]
pub struct Function(Arc<Found>);

#[derive(Debug)]
struct Found {
    module: Module,
    name: String,
    told: ModuleFunctionReply,
}

impl Device {
    /// Loads a module from PTX, a cubin or a fatbin.
    ///
    /// # Errors
    /// The image is not one, or not for this device; it cannot be compiled, and the error says why; the
    /// session failed.
    pub fn load_module(&self, image: &[u8]) -> Result<Module> {
        const DOING: &str = "load a module";
        let Some(bytes) = NonZeroU64::new(image.len() as u64) else {
            return Err(self.wrong(DOING, "an image with nothing in it"));
        };
        let (module, loaded) = self.new_module(DOING)?;
        let mut data = Data::up(image);
        let mut client = self.client()?;
        let reply = client.request_with(DOING, ModuleLoad { module, bytes }, &mut data);
        let reply = explained(&mut client, reply);
        drop(client);
        reply.map(|_| loaded)
    }

    /// A handle for a module that is about to be loaded. Dropped where that fails, too: the mediator remembers a module
    /// that could not be loaded.
    pub(super) fn new_module(&self, doing: &'static str) -> Result<(Handle, Module)> {
        let handle = lock(&self.shared.session.modules).mint();
        let Some(handle) = handle else {
            let what = "as many modules as this session may have; drop one first";
            return Err(self.wrong(doing, what));
        };
        let device = self.base();
        let loaded = Loaded {
            device,
            handle,
            allowed: Mutex::default(),
        };
        Ok((handle, Module(Arc::new(loaded))))
    }
}

impl Module {
    /// The kernel of this name, as the image has it.
    ///
    /// # Errors
    /// There is none (`CUDA_ERROR_NOT_FOUND`); the session failed.
    pub fn load_function(&self, name: &str) -> Result<Function> {
        let device = &self.0.device;
        let told = device.ask(
            "look a kernel up",
            ModuleFunction {
                module: self.0.handle,
                name: self.name(name)?,
            },
        )?;
        Ok(Function(Arc::new(Found {
            module: self.clone(),
            name: name.to_owned(),
            told,
        })))
    }

    /// The variable of this name, with as many elements as it has.
    ///
    /// # Errors
    /// There is none (`CUDA_ERROR_NOT_FOUND`), or its size is no multiple of an element's; the session failed.
    pub fn variable<T: Pod>(&self, name: &str) -> Result<DeviceSliceMut<'_, T>> {
        const DOING: &str = "look a variable up";
        let device = &self.0.device;
        let request = ModuleGlobal {
            module: self.0.handle,
            name: self.name(name)?,
        };
        let found = device.ask(DOING, request)?;
        let size = size_of::<T>().max(1) as u64;
        if !found.bytes.is_multiple_of(size) {
            let what = format!(
                "variable '{name}' has {} bytes, which is no number of {size}",
                found.bytes
            );
            return Err(device.wrong(DOING, what));
        }
        let len = usize::try_from(found.bytes / size).unwrap_or(usize::MAX);
        Ok(DeviceSliceMut::new(device, found.address, len))
    }

    fn name(&self, name: &str) -> Result<Text<MAX_SYMBOL>> {
        if name.len() > MAX_SYMBOL {
            let what = format!("a name of {} bytes; at most {MAX_SYMBOL}", name.len());
            return Err(self.0.device.wrong("look a name up", what));
        }
        Ok(name.into())
    }
}

impl Function {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Each parameter's place among the packed ones.
    pub fn parameters(&self) -> &[ParameterPlace] {
        self.0.told.parameters.as_slice()
    }

    /// Bytes of the packed parameters.
    pub fn parameter_bytes(&self) -> usize {
        self.0.told.parameter_bytes as usize
    }

    /// Value of a `CUfunction_attribute`, by its number, which [`attributes`](crate::attributes) names, when the kernel was looked up; `None` if
    /// the driver has no such attribute.
    pub fn attribute(&self, number: u32) -> Option<i32> {
        attribute(self.0.told.attributes.as_slice(), number)
    }

    /// Sets a `CUfunction_attribute` for launches from here on.
    ///
    /// # Errors
    /// The driver does not take it; the session failed.
    pub fn set_attribute(&self, number: u32, value: i32) -> Result<()> {
        let request = FunctionSetAttribute {
            module: self.handle(),
            function: self.number(),
            attribute: number,
            value,
        };
        let device = self.device();
        device.ask("set an attribute", request)?;
        if let (MAX_DYNAMIC_SHARED, Ok(bytes)) = (number, u32::try_from(value)) {
            lock(&self.0.module.0.allowed).insert(self.number(), bytes);
        }
        Ok(())
    }

    /// Most bytes of dynamic shared memory of a block in a launch; `None` where neither driver nor device says.
    pub(super) fn most_dynamic_shared(&self) -> Option<u32> {
        if let Some(allowed) = lock(&self.0.module.0.allowed).get(&self.number()) {
            return Some(*allowed);
        }
        let of_kernel = |number| u32::try_from(self.attribute(number)?).ok();
        let of_device = u32::try_from(self.device().attribute(MAX_SHARED_PER_BLOCK)?).ok();
        let fixed = of_kernel(FIXED_SHARED).unwrap_or(0);
        match (of_kernel(MAX_DYNAMIC_SHARED), of_device) {
            // It was allowed more before it was looked up.
            (Some(told), Some(of_device)) if told > of_device => Some(told),
            (told, Some(of_device)) => {
                let left = of_device.saturating_sub(fixed);
                Some(told.map_or(left, |told| told.min(left)))
            }
            (told, None) => told,
        }
    }

    pub(super) fn device(&self) -> &Device {
        &self.0.module.0.device
    }

    pub(super) fn handle(&self) -> Handle {
        self.0.module.0.handle
    }

    pub(super) fn number(&self) -> u32 {
        self.0.told.function
    }
}
