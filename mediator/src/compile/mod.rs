//! CUDA C++ of guests, compiled where nothing but the compiler is: in a process of its own.
//!
//! | file | where it runs |
//! |---|---|
//! | `mod` | what is asked for, and what comes of it |
//! | `ask` | in the worker, whose guest has the source: it asks the broker for a compiler |
//! | `process` | in the compiler's process, which the broker starts |
//! | `wire` | on both sides of the socket between the two |
//!
//! The broker starts the process, hands the worker its socket, and ends it at the deadline
//! (`broker/compilers.rs`). Reasons: ADR 16.

pub(crate) mod ask;
pub mod process;
pub mod wire;

use std::fmt;

use serde::{Deserialize, Serialize};
use vgpu_protocol::session::server::Failure;

/// CUDA C++, and how to compile it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Everything but the texts.
    pub order: Order,
    /// The source, then the headers.
    pub texts: Vec<u8>,
}

/// Options for the texts of a [`Job`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Version of the driver that is to load the result, as 1000 × major + 10 × minor.
    pub driver: u32,
    /// The device's compute capability, as 10 × major + minor.
    pub capability: u32,
    /// Name of the source in messages.
    pub name: String,
    /// Bytes of the source.
    pub source_bytes: u32,
    /// Names of the headers, and bytes of each.
    pub headers: Vec<(String, u32)>,
    /// Options that were checked.
    pub options: Vec<String>,
}

/// The result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// `nvrtcResult`.
    pub result: i32,
    /// The compiler's messages.
    pub log: String,
    /// The PTX where the result is 0.
    pub ptx: Vec<u8>,
}

/// Compiles, and takes the time that it takes: it is called in a thread of its own.
pub trait Compile: Send + Sync + fmt::Debug {
    /// Compiles.
    ///
    /// # Errors
    /// Nobody could be asked, or there was no answer in time.
    fn compile(&self, job: &Job) -> Result<Compiled, Failure>;
}
