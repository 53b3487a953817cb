//! Modules from CUDA C++: compiled here, or by the mediator.

use std::num::NonZeroU64;

use vgpu_protocol::handle::Handle;
use vgpu_protocol::op::field::{List, Text};
use vgpu_protocol::op::{
    MAX_COMPILE_OPTION, MAX_SOURCE, MAX_SOURCE_NAME, ModuleCompile, SourceHeader,
};
use vgpu_protocol::status::{ErrorCode, Status};

use super::module::Module;
use super::{Device, explained};
use crate::data::Data;
use crate::error::{Cause, Error, Result};

const DOING: &str = "compile a module";

/// `CUDA_ERROR_UNSUPPORTED_PTX_VERSION`: NVRTC is newer than the driver.
const UNSUPPORTED_PTX_VERSION: Status = Status::Cuda(222);

/// Advice where nobody compiles.
const NO_COMPILER: &str = "install NVIDIA's run-time compiler (cuda-nvrtc) here or at the mediator, or name its \
                           library in VGPU_NVRTC; or compile with nvcc -ptx and load the PTX";

/// Where CUDA C++ is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CompileAt {
    /// Here where NVRTC is here, by the mediator otherwise.
    #[default]
    Any,
    /// Here. `#include` also finds files of this machine.
    Here,
    /// By the mediator, of whose machine no file can be named.
    Mediator,
}

/// How CUDA C++ is compiled, in the terms of NVRTC. `CompileOptions::default()` suits most kernels:
///
/// ```no_run
/// # fn compile(device: &vgpu_guest::Device) -> vgpu_guest::Result<()> {
/// use vgpu_guest::CompileOptions;
///
/// let options = CompileOptions {
///     use_fast_math: true,
///     defines: vec![("N".to_owned(), "256".to_owned())],
///     ..CompileOptions::default()
/// };
/// let module = device.compile_module("extern \"C\" __global__ void k(float *x) { x[N] = 1; }", &options)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CompileOptions {
    /// Name of the source in messages; empty for `source.cu`.
    pub name: String,
    /// The compute capability to compile for, as 90 for 9.0; `None` for the device's. The newest one up to it that the
    /// compiler knows is taken.
    pub capability: Option<u32>,
    /// `--use_fast_math`.
    pub use_fast_math: bool,
    /// The version of the language, as in `c++17`; `None` for the compiler's own.
    pub standard: Option<String>,
    /// Macros and their values; an empty value defines the name alone.
    pub defines: Vec<(String, String)>,
    /// Names and texts of headers for `#include`.
    pub headers: Vec<(String, String)>,
    /// Further options of NVRTC, each one word, as `--fmad=false`. The mediator takes those alone that name no file.
    pub options: Vec<String>,
    /// Where it is compiled.
    pub at: CompileAt,
}

impl CompileOptions {
    /// The options as NVRTC has them, but for the architecture.
    fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        if self.use_fast_math {
            words.push("--use_fast_math".to_owned());
        }
        words.extend(
            self.standard
                .iter()
                .map(|standard| format!("--std={standard}")),
        );
        for (name, value) in &self.defines {
            words.push(match value.is_empty() {
                true => format!("-D{name}"),
                false => format!("-D{name}={value}"),
            });
        }
        words.extend(self.options.iter().cloned());
        words
    }

    fn name(&self) -> &str {
        match self.name.is_empty() {
            true => "source.cu",
            false => &self.name,
        }
    }
}

impl Device {
    /// Loads a module from CUDA C++, compiled for this device: by NVRTC here where it is installed, by the mediator
    /// otherwise. Kernels keep their names where they are `extern "C"`; other names are mangled.
    ///
    /// # Errors
    /// It does not compile ([`Cause::Compile`], with the compiler's log); nobody here or there can compile
    /// ([`Cause::NoCompiler`]); the device cannot load the result; the session failed.
    pub fn compile_module(&self, source: &str, options: &CompileOptions) -> Result<Module> {
        if source.is_empty() {
            return Err(self.wrong(DOING, "a source with nothing in it"));
        }
        match options.at {
            CompileAt::Here => self.compile_here(source, options),
            CompileAt::Mediator => self.compile_there(source, options),
            CompileAt::Any => match self.compile_here(source, options) {
                Err(error) if matches!(error.cause(), Cause::NoCompiler { .. }) => {
                    log::debug!("{error}; the mediator is asked");
                    self.compile_there(source, options)
                }
                Err(error) if error.status() == Some(UNSUPPORTED_PTX_VERSION) => {
                    log::debug!("{error}; the mediator is asked, whose compiler may be older");
                    let compiled = self.compile_there(source, options);
                    compiled.map_err(|there| match there.cause() {
                        Cause::NoCompiler { .. } => error,
                        _ => there,
                    })
                }
                outcome => outcome,
            },
        }
    }

    fn capability(&self, options: &CompileOptions) -> u32 {
        let (major, minor) = self.compute_capability();
        let own = u32::try_from(major * 10 + minor).unwrap_or(0);
        options.capability.unwrap_or(own)
    }

    fn compile_here(&self, source: &str, options: &CompileOptions) -> Result<Module> {
        let driver = self.info().driver_version;
        let capability = self.capability(options);
        let ptx = here::compile(source, options, driver, capability)
            .map_err(|cause| self.failed(cause))?;
        self.load_module(ptx.as_bytes())
    }

    fn compile_there(&self, source: &str, options: &CompileOptions) -> Result<Module> {
        let (request, bytes) = self.request(source, options)?;
        let (module, loaded) = self.new_module(DOING)?;
        let mut client = self.client()?;
        let reply = client.request_with(DOING, request(module), &mut Data::up(&bytes));
        let reply = explained(&mut client, reply);
        drop(client);
        let reply = reply.map_err(without_compiler)?;
        let log = String::from_utf8_lossy(reply.log.as_slice());
        // The mediator may be anybody.
        let log: String = log.chars().map(printable).collect();
        if reply.result != 0 {
            let result = reply.result;
            return Err(self.failed(Cause::Compile { result, log }));
        }
        told(&log);
        Ok(loaded)
    }

    /// The request, once it has a handle, and its data.
    fn request(
        &self,
        source: &str,
        options: &CompileOptions,
    ) -> Result<(impl FnOnce(Handle) -> ModuleCompile, Vec<u8>)> {
        let name = |name: &str| -> Result<Text<MAX_SOURCE_NAME>> {
            match name.len() <= MAX_SOURCE_NAME {
                true => Ok(name.into()),
                false => {
                    let what = format!("a name of {} bytes; at most {MAX_SOURCE_NAME}", name.len());
                    Err(self.wrong(DOING, what))
                }
            }
        };
        let mut data = source.as_bytes().to_vec();
        let mut headers = List::default();
        for (called, text) in &options.headers {
            data.extend_from_slice(text.as_bytes());
            let header = SourceHeader {
                name: name(called)?,
                // A longer one is refused below.
                bytes: u32::try_from(text.len()).unwrap_or(u32::MAX),
            };
            headers
                .push(header)
                .map_err(|_| self.wrong(DOING, "too many headers"))?;
        }
        if data.len() as u64 > MAX_SOURCE {
            let what = format!(
                "a source of {} bytes with its headers; at most {MAX_SOURCE}",
                data.len()
            );
            return Err(self.wrong(DOING, what));
        }
        let mut words = List::default();
        for word in options.words() {
            if word.len() > MAX_COMPILE_OPTION {
                let what = format!(
                    "an option of {} bytes; at most {MAX_COMPILE_OPTION}",
                    word.len()
                );
                return Err(self.wrong(DOING, what));
            }
            let word = Text::from(word.as_str());
            words
                .push(word)
                .map_err(|_| self.wrong(DOING, "too many options"))?;
        }
        let bytes = NonZeroU64::new(source.len() as u64);
        let source_bytes = bytes.ok_or_else(|| self.wrong(DOING, "a source with nothing in it"))?;
        let name = name(options.name())?;
        let capability = options.capability.unwrap_or(0);
        let request = move |module| ModuleCompile {
            module,
            capability,
            source_bytes,
            name,
            headers,
            options: words,
        };
        Ok((request, data))
    }

    fn failed(&self, cause: Cause) -> Error {
        super::lock(&self.lane).error(DOING, cause)
    }
}

/// The compiler's warnings, for the log.
fn told(log: &str) {
    if !log.trim().is_empty() {
        log::info!("the compiler: {}", log.trim_end());
    }
}

fn printable(c: char) -> char {
    match c.is_control() && c != '\n' && c != '\t' {
        true => ' ',
        false => c,
    }
}

/// A mediator that cannot compile has words of its own for it.
fn without_compiler(mut error: Error) -> Error {
    if let Cause::Refused {
        status: Status::Mediator(ErrorCode::Unsupported),
        text,
        ..
    } = error.cause()
    {
        let what = format!("there is no NVRTC here, and of the mediator: {text}");
        error.cause = Box::new(Cause::NoCompiler {
            what,
            advice: NO_COMPILER.to_owned(),
        });
    }
    error
}

#[cfg(feature = "nvrtc")]
mod here {
    //! NVRTC in this process.

    use std::sync::OnceLock;

    use vgpu_nvrtc::{CompileError, Header, Nvrtc, Source, Version};

    use super::{Cause, CompileOptions, told};

    /// Once loaded it stays: it is large.
    static NVRTC: OnceLock<Nvrtc> = OnceLock::new();

    pub(super) fn compile(
        source: &str,
        options: &CompileOptions,
        driver: u32,
        capability: u32,
    ) -> Result<String, Cause> {
        let nvrtc = match NVRTC.get() {
            Some(nvrtc) => nvrtc,
            None => {
                let found = Nvrtc::open(Some(Version::of_driver(driver)));
                let found = found.map_err(|error| Cause::NoCompiler {
                    what: error.to_string(),
                    advice: error.advice().to_owned(),
                })?;
                log::debug!("NVRTC {} ({})", found.version(), found.path().display());
                NVRTC.get_or_init(|| found)
            }
        };
        let architecture = nvrtc
            .architecture(capability)
            .map_err(|error| Cause::Input(error.to_string()))?;
        let headers = options.headers.iter();
        let source = Source {
            name: options.name().to_owned(),
            text: source.to_owned(),
            headers: headers
                .map(|(name, text)| Header {
                    name: name.clone(),
                    text: text.clone(),
                })
                .collect(),
            options: options.words(),
        };
        match nvrtc.compile(&source, architecture) {
            Ok(compiled) => {
                told(&compiled.log);
                Ok(compiled.ptx)
            }
            Err(CompileError::Nvrtc { result, name, log }) => Err(Cause::Compile {
                result,
                log: match log.is_empty() {
                    true => name,
                    false => log,
                },
            }),
            Err(error) => Err(Cause::Input(error.to_string())),
        }
    }
}

#[cfg(not(feature = "nvrtc"))]
mod here {
    //! Built without NVRTC.

    use super::{Cause, CompileOptions, NO_COMPILER};

    pub(super) fn compile(_: &str, _: &CompileOptions, _: u32, _: u32) -> Result<String, Cause> {
        Err(Cause::NoCompiler {
            what: "this program was built without the feature nvrtc of vgpu-guest".to_owned(),
            advice: NO_COMPILER.to_owned(),
        })
    }
}
