//! Modules from CUDA C++: a source comes as an image does, is compiled elsewhere, and is an image then.

use std::sync::{Arc, mpsc};
use std::thread;

use vgpu_nvrtc::{clean, options};
use vgpu_protocol::handle::Handle;
use vgpu_protocol::op::field::Bytes;
use vgpu_protocol::op::{Body, MAX_COMPILE_LOG, ModuleCompile, ModuleCompileReply};
use vgpu_protocol::session::server::Failure;
use vgpu_protocol::status::ErrorCode;

use super::device::Device;
use super::transfers::Image;
use super::{Gpu, Refused, invalid, refused};
use crate::compile::{Compile, Compiled, Job, Order};

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `MINOR`.
const CAPABILITY: (usize, usize) = (75, 76);

/// `NVRTC_ERROR_COMPILATION`.
const COMPILATION: i32 = 6;

/// The format of an image.
#[derive(Debug)]
pub(super) enum Code {
    /// The image of this module.
    Image(Handle),
    /// The source of a module.
    Source(Box<ModuleCompile>),
    /// PTX of this module that a compiler has made, saying this.
    Compiled(Handle, String),
}

impl Code {
    pub(super) fn module(&self) -> Handle {
        match self {
            Self::Image(module) | Self::Compiled(module, _) => *module,
            Self::Source(compile) => compile.module,
        }
    }

    /// The compiler's messages, if there was one.
    pub(super) fn into_log(self) -> Option<String> {
        match self {
            Self::Compiled(_, log) => Some(log),
            Self::Image(_) | Self::Source(_) => None,
        }
    }
}

/// A source that is being compiled.
#[derive(Debug)]
pub(super) struct Compiling {
    /// The request, or 0 once nobody waits for it.
    pub(super) id: u32,
    module: Handle,
    answer: mpsc::Receiver<Result<Compiled, Failure>>,
}

/// The answer to a source with this result.
pub(super) fn answer(result: i32, log: &str) -> Vec<u8> {
    let log = clean(log.as_bytes(), MAX_COMPILE_LOG);
    let log = Bytes::new(log.as_bytes()).expect("no more than was asked for");
    ModuleCompileReply { result, log }.encode()
}

impl<D: Device> Gpu<D> {
    /// Has sources compiled by this.
    pub(in crate::executor) fn set_compiler(&mut self, compiler: Option<Arc<dyn Compile>>) {
        self.compiler = compiler;
    }

    pub(super) fn compile(
        &mut self,
        id: u32,
        compile: ModuleCompile,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let bytes = compile.data_bytes();
        let possible = match &self.compiler {
            None => Err(refused(
                ErrorCode::Unsupported,
                "this mediator does not compile; compile in the guest, or load PTX",
            )),
            Some(_) => check_options(&compile),
        };
        self.take_image(id, bytes, 0, Code::Source(Box::new(compile)), possible)
    }

    /// Begins with the next source, if none is being compiled.
    pub(super) fn compile_next(&mut self) {
        if self.compiling.is_some() || self.fault.is_some() {
            return;
        }
        let Some((image, compile)) = self.sources.pop_front() else {
            return;
        };
        let Some(compiler) = self.compiler.clone() else {
            return;
        };
        let (id, module) = (image.id, compile.module);
        let job = match self.job(&compile, image.bytes) {
            Ok(job) => job,
            Err(failure) => return self.load_failed(id, module, failure),
        };
        let (tell, answer) = mpsc::sync_channel(1);
        let waker = Arc::clone(self.device.waker());
        let spawned = thread::Builder::new()
            .name("compile".into())
            .spawn(move || {
                // If the session is over, nobody wants to know.
                let _ = tell.send(compiler.compile(&job));
                waker.raise();
            });
        match spawned {
            Ok(_) => self.compiling = Some(Compiling { id, module, answer }),
            Err(error) => {
                let text = format!("no thread to have a source compiled: {error}");
                self.load_failed(id, module, refused(ErrorCode::QuotaMemory, text));
            }
        }
    }

    fn job(&self, compile: &ModuleCompile, texts: Vec<u8>) -> Result<Job, Refused> {
        if std::str::from_utf8(&texts).is_err() {
            return Err(invalid("the source is not UTF-8"));
        }
        let description = self.device.description();
        let attribute = |number| description.attributes.get(number).copied().unwrap_or(0);
        let own = attribute(CAPABILITY.0) * 10 + attribute(CAPABILITY.1);
        let capability = match compile.capability {
            0 => u32::try_from(own).unwrap_or(0),
            given => given,
        };
        let headers = compile.headers.as_slice().iter();
        let options = compile.options.as_slice().iter();
        let order = Order {
            driver: description.driver_version,
            capability,
            name: compile.name.as_str().to_owned(),
            source_bytes: u32::try_from(compile.source_bytes.get()).expect("at most MAX_SOURCE"),
            headers: headers
                .map(|header| (header.name.as_str().to_owned(), header.bytes))
                .collect(),
            options: options.map(|option| option.as_str().to_owned()).collect(),
        };
        Ok(Job { order, texts })
    }

    /// Takes what a compiler has answered.
    pub(super) fn take_compiled(&mut self) {
        let Some(compiling) = &self.compiling else {
            return;
        };
        let (id, module) = (compiling.id, compiling.module);
        let outcome = match compiling.answer.try_recv() {
            Err(mpsc::TryRecvError::Empty) => return,
            Err(mpsc::TryRecvError::Disconnected) => {
                Err(refused(ErrorCode::Internal, "the compiler gave no answer"))
            }
            Ok(outcome) => outcome,
        };
        self.compiling = None;
        match outcome {
            Ok(Compiled {
                result: 0,
                log,
                ptx,
            }) if !ptx.is_empty() => {
                let counted = (ptx.len() as u64).saturating_mul(D::IMAGE_COST);
                match self.count_module(module, counted) {
                    Ok(()) => {
                        let image = Image::of(id, ptx);
                        self.whole.push_back((image, Code::Compiled(module, log)));
                    }
                    Err(failure) => self.load_failed(id, module, failure),
                }
            }
            Ok(Compiled { result, log, .. }) => {
                let first = log.lines().next().unwrap_or("the compiler made nothing");
                let failure = invalid(format!("the module does not compile: {first}"));
                self.spoil(module, failure);
                // Whatever a compiler says that has made nothing.
                let result = if result == 0 { COMPILATION } else { result };
                self.done(id, Ok(answer(result, &log)));
            }
            Err(failure) => self.load_failed(id, module, failure),
        }
    }
}

/// Options that could name a file of this machine are refused before anybody is asked.
fn check_options(compile: &ModuleCompile) -> Result<(), Refused> {
    for option in compile.options.as_slice() {
        options::check(option.as_str())
            .map_err(|error| refused(ErrorCode::Range, error.to_string()))?;
    }
    Ok(())
}
