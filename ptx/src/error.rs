//! Errors, with the driver's numbers and ptxas's wording.

use std::fmt;

/// An error that the CUDA driver has a number for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The `CUresult`.
    pub code: Code,
    /// The event and its place, for people; for a module that does not load, the log as ptxas
    /// writes it.
    pub text: String,
}

impl Error {
    /// An error of this code with a description.
    #[must_use]
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }
}

/// Error 1.
pub(crate) fn invalid<T>(text: impl Into<String>) -> Result<T, Error> {
    Err(Error::new(Code::InvalidValue, text))
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}): {}",
            self.code.name(),
            self.code.number(),
            self.text
        )
    }
}

impl std::error::Error for Error {}

macro_rules! codes {
    ($($variant:ident $number:literal $name:literal $sticky:literal $doc:literal;)*) => {
        /// The results of the CUDA driver API that this crate returns.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Code { $(#[doc = $doc] $variant = $number,)* }

        impl Code {
            /// The value of the `CUresult`.
            #[must_use]
            pub fn number(self) -> u32 {
                match self { $(Self::$variant => $number,)* }
            }

            /// The name of the `CUresult`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Whether every later call in the context returns this too.
            #[must_use]
            pub fn is_sticky(self) -> bool {
                match self { $(Self::$variant => $sticky,)* }
            }
        }
    };
}

codes! {
    InvalidValue 1 "CUDA_ERROR_INVALID_VALUE" false "An argument of a launch or a copy is out of its range.";
    OutOfMemory 2 "CUDA_ERROR_OUT_OF_MEMORY" false "The quota is used up.";
    InvalidImage 200 "CUDA_ERROR_INVALID_IMAGE" false "The image is no PTX at all.";
    NoBinaryForGpu 209 "CUDA_ERROR_NO_BINARY_FOR_GPU" false "The image holds machine code only.";
    InvalidPtx 218 "CUDA_ERROR_INVALID_PTX" false "The PTX is wrong, or uses what this crate does not implement.";
    UnsupportedPtxVersion 222 "CUDA_ERROR_UNSUPPORTED_PTX_VERSION" false "The PTX is newer than the limit set.";
    InvalidHandle 400 "CUDA_ERROR_INVALID_HANDLE" false "The function is of another module.";
    NotFound 500 "CUDA_ERROR_NOT_FOUND" false "The module has no such function or variable.";
    IllegalAddress 700 "CUDA_ERROR_ILLEGAL_ADDRESS" true "An access outside of every allocation, or beyond the stack.";
    LaunchOutOfResources 701 "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES" false "A block needs more memory than one may have.";
    LaunchTimeout 702 "CUDA_ERROR_LAUNCH_TIMEOUT" true "The deadline or the budget of steps is over, or no thread can go on.";
    ContextIsDestroyed 709 "CUDA_ERROR_CONTEXT_IS_DESTROYED" true "The device has ended.";
    Assert 710 "CUDA_ERROR_ASSERT" true "A device assertion failed.";
    IllegalInstruction 715 "CUDA_ERROR_ILLEGAL_INSTRUCTION" true "A call to what is no function.";
    MisalignedAddress 716 "CUDA_ERROR_MISALIGNED_ADDRESS" true "An access not aligned to its size.";
    InvalidAddressSpace 717 "CUDA_ERROR_INVALID_ADDRESS_SPACE" true "An atomic on memory that has none.";
    InvalidPc 718 "CUDA_ERROR_INVALID_PC" true "A branch by index beyond its table.";
    LaunchFailed 719 "CUDA_ERROR_LAUNCH_FAILED" true "`trap` or `brkpt`.";
    CooperativeLaunchTooLarge 720 "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE" false "More blocks than can be resident at once.";
    Cancelled 10000 "CANCELLED" false "The launch was withdrawn. CUDA, where nothing can be, has no such result.";
    Unknown 999 "CUDA_ERROR_UNKNOWN" true "A mistake of this crate: its thread panicked.";
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Diagnostic {
    pub(crate) line: u32,
    pub(crate) fatal: bool,
    pub(crate) text: String,
}

impl Diagnostic {
    pub(crate) fn error(line: u32, text: impl Into<String>) -> Self {
        Self {
            line,
            fatal: false,
            text: text.into(),
        }
    }

    pub(crate) fn fatal(line: u32, text: impl Into<String>) -> Self {
        Self {
            line,
            fatal: true,
            text: text.into(),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.fatal { "fatal  " } else { "error  " };
        write!(
            f,
            "ptxas application ptx input, line {}; {kind} : {}",
            self.line, self.text
        )
    }
}

/// Most lines of a log, so that a hostile module cannot make it long.
const LOG_LINES: usize = 50;

/// The error for a module with these mistakes.
pub(crate) fn refused(found: &[Diagnostic]) -> Error {
    let mut log: Vec<String> = found
        .iter()
        .take(LOG_LINES)
        .map(ToString::to_string)
        .collect();
    log.push("ptxas fatal   : Ptx assembly aborted due to errors".into());
    Error::new(Code::InvalidPtx, log.join("\n"))
}
