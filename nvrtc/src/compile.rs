//! From source to PTX.

use std::ffi::CString;

use crate::library::Nvrtc;
use crate::log::clean;

/// Most bytes of a log that are kept.
pub const MAX_LOG: usize = 64 << 10;

/// Most bytes of PTX that are taken.
pub const MAX_PTX: usize = 16 << 20;

/// CUDA C++ and the way to compile it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// Its name in the compiler's messages.
    pub name: String,
    /// The text.
    pub text: String,
    /// Headers for `#include`, which stand before those of the file system.
    pub headers: Vec<Header>,
    /// Options of NVRTC but that for the architecture, as they are.
    pub options: Vec<String>,
}

/// A header in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// As `#include` names it.
    pub name: String,
    /// The text.
    pub text: String,
}

impl Source {
    /// A text without headers and options.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            name: "source.cu".to_owned(),
            text: text.into(),
            ..Self::default()
        }
    }
}

/// The result of a compilation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// PTX.
    pub ptx: String,
    /// The compiler's warnings; empty as a rule. See [`clean`].
    pub log: String,
}

/// Why there is no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// NVRTC says so.
    #[error("{name} ({result}){}", first_line(.log))]
    Nvrtc {
        /// `nvrtcResult`.
        result: i32,
        /// Its name, as in `NVRTC_ERROR_COMPILATION`.
        name: String,
        /// The compiler's messages, of at most [`MAX_LOG`] bytes. See [`clean`].
        log: String,
    },
    /// A text that C has no string for.
    #[error("{0} has a NUL byte")]
    Nul(String),
    /// More PTX than is taken.
    #[error("the PTX has {0} bytes; at most {MAX_PTX} are taken")]
    TooLong(usize),
}

/// The line of a log that has the first error, behind a colon.
fn first_line(log: &str) -> String {
    let mut lines = log.lines();
    let line = lines
        .find(|line| line.contains("error"))
        .or(log.lines().next());
    line.map(|line| format!(": {}", line.trim()))
        .unwrap_or_default()
}

impl Nvrtc {
    /// Compiles `source` for the virtual architecture `compute_<architecture>`, as
    /// [`architecture`](Self::architecture) gives it.
    ///
    /// # Errors
    /// It cannot be compiled, and why.
    pub fn compile(&self, source: &Source, architecture: u32) -> Result<Compiled, CompileError> {
        let string = |what: &str, text: &str| {
            CString::new(text).map_err(|_| CompileError::Nul(what.to_owned()))
        };
        let text = string("the source", &source.text)?;
        let name = string("the source's name", &source.name)?;
        let mut names = Vec::new();
        let mut texts = Vec::new();
        for Header { name, text } in &source.headers {
            names.push(string("a header's name", name)?);
            texts.push(string("a header", text)?);
        }
        let mut options = vec![string(
            "",
            &format!("--gpu-architecture=compute_{architecture}"),
        )?];
        for option in &source.options {
            options.push(string("an option", option)?);
        }
        let failed = |result: i32, log: Vec<u8>| CompileError::Nvrtc {
            result,
            name: self.result_name(result),
            log: clean(&log, MAX_LOG),
        };
        let program = self
            .program(&text, &name, &names, &texts)
            .map_err(|result| failed(result, Vec::new()))?;
        let outcome = program.compile(&options);
        // What is there of it helps also where it is cut.
        let log = program.log(MAX_LOG * 2).unwrap_or_default();
        if let Err(result) = outcome {
            return Err(failed(result, log));
        }
        let bytes = program
            .ptx_bytes()
            .map_err(|result| failed(result, Vec::new()))?;
        if bytes > MAX_PTX {
            return Err(CompileError::TooLong(bytes));
        }
        let mut ptx = program.ptx().map_err(|result| failed(result, Vec::new()))?;
        if ptx.last() == Some(&0) {
            ptx.pop();
        }
        Ok(Compiled {
            ptx: String::from_utf8_lossy(&ptx).into_owned(),
            log: clean(&log, MAX_LOG),
        })
    }
}
