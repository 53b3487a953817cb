#![deny(unsafe_code)]
#![doc = include_str!("../README.md")]

mod allocations;
mod approximate;
mod ast;
mod context;
mod decode;
mod device;
mod environment;
mod error;
mod exec;
mod format;
mod grid;
mod half;
mod image;
mod launch;
mod lex;
mod loaded;
mod memory;
mod module;
mod number;
mod occupancy;
mod ops;
mod output;
mod parse;
mod pool;
mod program;
mod quota;
mod space;
mod stream;
// For the tests, the fuzzing and the list in docs/ptx.md.
#[doc(hidden)]
pub mod table;
mod types;

pub use allocations::Rows;
pub use context::{Config, Limit};
pub use device::Device;
pub use error::{Code, Error};
pub use grid::Report;
pub use launch::{Cancel, Launch};
pub use loaded::Loaded;
pub use memory::HostMemory;
pub use module::{COMPUTE_CAPABILITY, Kernel, Module, ModuleVariable, Options};
pub use occupancy::{
    MULTIPROCESSOR_BLOCKS, MULTIPROCESSOR_SHARED, MULTIPROCESSOR_THREADS, RESERVED_SHARED,
};
pub use output::{Output, Printed};
pub use program::Parameter;
pub use stream::{Done, Event, Stream, Work};
pub use types::{Space, Type};
