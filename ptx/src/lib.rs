#![deny(unsafe_code)]
//! Runs the PTX that nvcc, NVRTC and Triton emit, on a CPU: with a GPU's results and errors, and
//! with bounds that hold against a hostile program.
//!
//! A [`Module`] is loaded from text (or a fatbin) and put on a [`Device`]; its kernels are launched
//! with grid, block and packed parameters. Warps of 32 lanes run in lock-step over decoded
//! instructions; device addresses are the device's own numbers, and every access is checked.
//! `docs/ptx.md` lists the implemented instructions and the differences from a GPU.
//!
//! ```
//! use vgpu_ptx::{Config, Device, Launch, Module};
//!
//! let module = Module::load(b".version 8.0
//! .target sm_80
//! .address_size 64
//! .visible .entry twice(.param .u64 data) {
//!     .reg .b64 %a; .reg .b32 %i, %v;
//!     ld.param.u64 %a, [data];
//!     mov.u32 %i, %tid.x;
//!     mad.wide.u32 %a, %i, 4, %a;
//!     ld.global.u32 %v, [%a];
//!     add.u32 %v, %v, %v;
//!     st.global.u32 [%a], %v;
//!     ret;
//! }")?;
//! let device = Device::new(Config::default());
//! let loaded = device.load(&module)?;
//! let data = device.allocate(16)?;
//! device.write(data, &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0])?;
//! let kernel = module.kernel("twice")?;
//! device.launch(&loaded, &kernel, &Launch::new([1; 3], [4, 1, 1]), &data.to_le_bytes())?;
//! let mut out = [0; 16];
//! device.read(data, &mut out)?;
//! assert_eq!(out[12], 8);
//! # Ok::<(), vgpu_ptx::Error>(())
//! ```

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
mod ops;
mod parse;
mod pool;
mod program;
mod quota;
mod space;
mod stream;
pub mod table;
mod types;

pub use allocations::Rows;
pub use context::Config;
pub use device::Device;
pub use error::{Code, Error};
pub use grid::Report;
pub use launch::{Cancel, Launch};
pub use loaded::Loaded;
pub use module::{COMPUTE_CAPABILITY, Kernel, Module, ModuleVariable, Options};
pub use program::Parameter;
pub use stream::{Done, Event, Stream, Work};
pub use types::{Space, Type};
