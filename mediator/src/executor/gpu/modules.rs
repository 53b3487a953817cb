//! Code on the device: modules by their handles, kernels by their numbers in them.

use std::collections::{BTreeSet, HashMap};

use vgpu_protocol::handle::{Handle, HandleKind, HandleTable};
use vgpu_protocol::op::{
    Body, FunctionOccupancy, FunctionOccupancyReply, FunctionSetAttribute,
    FunctionSetAttributeReply, ModuleFunction, ModuleFunctionReply, ModuleGlobal,
    ModuleGlobalReply, ModuleLoad, ModuleLoadReply, ModuleUnloadReply,
};
use vgpu_protocol::session::server::Failure;
use vgpu_protocol::status::ErrorCode;

use super::device::{Answer, AnsweredOf, Call, Device, Layout};
use super::queue::{Purpose, Reclaim};
use super::sources::{self, Code};
use super::transfers::Image;
use super::{Gpu, Refused, handles, invalid, refused};

/// The modules of a session.
pub(super) struct Modules<D: Device> {
    table: HandleTable<Entry<D>>,
    most_functions: usize,
}

enum Entry<D: Device> {
    /// Its image is coming, or being loaded.
    Loading {
        counted: u64,
    },
    Loaded(Loaded<D>),
    /// It could not be loaded; whatever names it fails in the same way.
    Failed(Failure),
}

struct Loaded<D: Device> {
    module: D::Module,
    functions: Vec<Kernel<D::Function>>,
    numbers: HashMap<String, usize>,
    /// Addresses of its variables that were looked up.
    variables: BTreeSet<u64>,
    /// Bytes of the quota.
    counted: u64,
}

/// A kernel that was looked up.
#[derive(Debug)]
pub(super) struct Kernel<F> {
    name: String,
    function: F,
    reply: ModuleFunctionReply,
}

impl<F: Clone> Kernel<F> {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn parameter_bytes(&self) -> u32 {
        self.reply.parameter_bytes
    }

    pub(super) fn function(&self) -> F {
        self.function.clone()
    }
}

fn is_loading(module: Handle) -> Refused {
    handles::wrong(module, "names a module that is being loaded")
}

impl<D: Device> Modules<D> {
    pub(super) fn new(most: u32) -> Self {
        Self {
            table: HandleTable::new(HandleKind::Module, most),
            most_functions: most as usize,
        }
    }

    fn entry(&mut self, module: Handle) -> Result<&mut Entry<D>, Refused> {
        let named = self.table.get_mut(module);
        named.map_err(|error| handles::wrong(module, error))
    }

    fn loaded(&mut self, module: Handle) -> Result<&mut Loaded<D>, Refused> {
        match self.entry(module)? {
            Entry::Loaded(loaded) => Ok(loaded),
            Entry::Failed(failure) => Err(failure.clone()),
            Entry::Loading { .. } => Err(is_loading(module)),
        }
    }

    /// A kernel by its number.
    pub(super) fn kernel(
        &mut self,
        module: Handle,
        function: u32,
    ) -> Result<&mut Kernel<D::Function>, Refused> {
        let loaded = self.loaded(module)?;
        let known = loaded.functions.len();
        loaded.functions.get_mut(function as usize).ok_or_else(|| {
            let text = format!("kernel {function} of {module:?}, of which {known} were looked up");
            refused(ErrorCode::Handle, text)
        })
    }
}

impl<D: Device> Gpu<D> {
    pub(super) fn load(&mut self, id: u32, load: &ModuleLoad) -> Result<Option<Vec<u8>>, Refused> {
        let bytes = load.bytes.get();
        let counted = bytes.saturating_mul(D::IMAGE_COST);
        self.take_image(id, bytes, counted, Code::Image(load.module), Ok(()))
    }

    /// Opens the handle of a module, and takes this many bytes of data for it if that is `possible`.
    pub(super) fn take_image(
        &mut self,
        id: u32,
        bytes: u64,
        counted: u64,
        code: Code,
        possible: Result<(), Refused>,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let module = code.module();
        handles::open(
            &mut self.modules.table,
            module,
            Entry::Loading { counted: 0 },
        )?;
        let outcome = possible
            .and_then(|()| {
                let coming = self.images.iter().chain(&self.whole);
                let coming = coming.map(|(image, _)| image.whole() as u64);
                let sources = self.sources.iter().map(|(image, _)| image.whole() as u64);
                let coming: u64 = coming.chain(sources).sum();
                if coming + bytes > vgpu_protocol::op::MAX_IMAGE {
                    let text = format!("{coming} bytes of images are coming already");
                    return Err(refused(ErrorCode::QuotaMemory, text));
                }
                Ok(())
            })
            .and_then(|()| self.count_module(module, counted));
        if let Err(failure) = outcome {
            *self.modules.entry(module)? = Entry::Failed(failure.clone());
            return Err(failure);
        }
        let whole = usize::try_from(bytes).expect("at most MAX_IMAGE");
        let (image, room) = Image::new(id, whole);
        self.events.push_back(super::Event::Room(id, room));
        self.images.push((image, code));
        Ok(None)
    }

    /// Counts the image of a module that is being loaded to the quota.
    pub(super) fn count_module(&mut self, module: Handle, counted: u64) -> Result<(), Refused> {
        self.count(counted, "a module")?;
        *self.modules.entry(module)? = Entry::Loading { counted };
        Ok(())
    }

    /// An image that will not be loaded.
    pub(super) fn spoil_image(&mut self, image: &Image, code: &Code, error: ErrorCode, text: &str) {
        log::debug!("request {}: the module is not loaded: {text}", image.id);
        let failure = self.fault.clone();
        let failure = failure.unwrap_or_else(|| refused(error, format!("the module: {text}")));
        self.spoil(code.module(), failure);
    }

    pub(super) fn spoil(&mut self, module: Handle, failure: Failure) {
        if let Ok(entry) = self.modules.entry(module)
            && let Entry::Loading { counted } = entry
        {
            self.quota.give(*counted);
            *entry = Entry::Failed(failure);
        }
    }

    /// The result of loading a module.
    pub(super) fn loaded(
        &mut self,
        id: u32,
        module: Handle,
        log: Option<&str>,
        answer: AnsweredOf<D>,
    ) {
        let loaded = match answer {
            Ok(Answer::Module(loaded)) => loaded,
            Ok(_) => {
                let text = "the device's driver answered something else";
                return self.load_failed(id, module, refused(ErrorCode::Internal, text));
            }
            Err(error) => {
                let failure = self.failure(id, &error);
                return self.load_failed(id, module, failure);
            }
        };
        if let Ok(entry) = self.modules.entry(module)
            && let Entry::Loading { counted } = entry
        {
            *entry = Entry::Loaded(Loaded {
                module: loaded,
                functions: Vec::new(),
                numbers: HashMap::new(),
                variables: BTreeSet::new(),
                counted: *counted,
            });
        }
        self.done(
            id,
            Ok(match log {
                None => ModuleLoadReply {}.encode(),
                Some(log) => sources::answer(0, log),
            }),
        );
    }

    pub(super) fn load_failed(&mut self, id: u32, module: Handle, failure: Failure) {
        self.spoil(module, failure.clone());
        self.done(id, Err(failure));
    }

    pub(super) fn unload(&mut self, id: u32, module: Handle) -> Result<Option<Vec<u8>>, Refused> {
        if let Entry::Loading { .. } = self.modules.entry(module)? {
            return Err(is_loading(module));
        }
        let closed = self.modules.table.close(module);
        if let Ok(Entry::Loaded(loaded)) = closed {
            for variable in loaded.variables {
                self.ranges.remove_variable(variable);
            }
            let reclaim = Reclaim::module(id, self.last_tag, loaded.module, loaded.counted);
            self.reclaim(reclaim);
        }
        Ok(Some(ModuleUnloadReply {}.encode()))
    }

    pub(super) fn function(
        &mut self,
        id: u32,
        lookup: ModuleFunction,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let module = lookup.module;
        let most = self.modules.most_functions;
        let loaded = self.modules.loaded(module)?;
        let name = lookup.name.as_str();
        if let Some(number) = loaded.numbers.get(name) {
            return Ok(Some(loaded.functions[*number].reply.encode()));
        }
        if loaded.functions.len() >= most {
            let text = format!("{most} kernels of this module were looked up already");
            return Err(refused(ErrorCode::QuotaHandles, text));
        }
        let call = Call::Function(loaded.module.clone(), name.to_owned());
        let name = name.to_owned();
        self.call(Purpose::Function { id, module, name }, call);
        Ok(None)
    }

    pub(super) fn found_function(
        &mut self,
        id: u32,
        module: Handle,
        name: String,
        function: D::Function,
        layout: Layout,
    ) {
        let outcome = self.modules.loaded(module).and_then(|loaded| {
            let number = u32::try_from(loaded.functions.len()).expect("bounded by the handles");
            let reply = reply(number, &name, layout)?;
            let body = reply.encode();
            loaded.numbers.insert(name.clone(), loaded.functions.len());
            loaded.functions.push(Kernel {
                name,
                function,
                reply,
            });
            Ok(body)
        });
        self.done(id, outcome);
    }

    pub(super) fn global(
        &mut self,
        id: u32,
        lookup: ModuleGlobal,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let module = lookup.module;
        let loaded = self.modules.loaded(module)?;
        let call = Call::Global(loaded.module.clone(), lookup.name.as_str().to_owned());
        self.call(Purpose::Global { id, module }, call);
        Ok(None)
    }

    pub(super) fn found_global(&mut self, id: u32, module: Handle, address: u64, bytes: u64) {
        let outcome = self.modules.loaded(module).map(|loaded| {
            if loaded.variables.insert(address) {
                self.ranges.add_variable(address, bytes);
            }
            ModuleGlobalReply { address, bytes }.encode()
        });
        self.done(id, outcome);
    }

    pub(super) fn set_attribute(
        &mut self,
        set: &FunctionSetAttribute,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let kernel = self.modules.kernel(set.module, set.function)?;
        self.device
            .set_attribute(&mut kernel.function, set.attribute, set.value)
            .map_err(|error| Failure::from(&error))?;
        if let Some(value) = kernel.reply.attributes.get_mut(set.attribute as usize) {
            *value = set.value;
        }
        Ok(Some(FunctionSetAttributeReply {}.encode()))
    }
}

impl<D: Device> Gpu<D> {
    pub(super) fn occupancy(
        &mut self,
        asked: &FunctionOccupancy,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let function = self
            .modules
            .kernel(asked.module, asked.function)?
            .function();
        let (threads, shared) = (asked.block_threads, asked.shared_bytes);
        if threads == 0 {
            return Err(invalid("blocks of no threads"));
        }
        let blocks = self
            .device
            .occupancy(&function, threads, shared, asked.flags);
        let blocks = blocks.map_err(|error| Failure::from(&error))?;
        Ok(Some(FunctionOccupancyReply { blocks }.encode()))
    }
}

fn reply(number: u32, name: &str, layout: Layout) -> Result<ModuleFunctionReply, Refused> {
    let mut reply = ModuleFunctionReply {
        function: number,
        parameter_bytes: layout.parameter_bytes,
        attributes: Default::default(),
        parameters: Default::default(),
    };
    for value in layout.attributes {
        if reply.attributes.push(value).is_err() {
            break;
        }
    }
    for place in layout.parameters {
        let end = u64::from(place.offset) + u64::from(place.size);
        if end > layout.parameter_bytes.into() {
            return Err(invalid(format!(
                "kernel {name} has parameters beyond its parameters"
            )));
        }
        if reply.parameters.push(place).is_err() {
            let text = format!("kernel {name} has more parameters than can be told");
            return Err(refused(ErrorCode::Unsupported, text));
        }
    }
    Ok(reply)
}
