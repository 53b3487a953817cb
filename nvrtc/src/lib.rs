//! NVIDIA's run-time compiler NVRTC, loaded at run time: CUDA C++ to PTX.
//!
//! | file | job |
//! |---|---|
//! | `library` | finding libnvrtc, and its functions: the one file with `unsafe` |
//! | `compile` | from a [`Source`] to its PTX, both bounded |
//! | `options` | options that name no file |
//! | `log` | the compiler's words, safe for a terminal |
//!
//! Functions and options are those of the NVRTC manual, from CUDA 11.2 on.
#![deny(unsafe_code)]

mod compile;
mod library;
mod log;
pub mod options;

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub use compile::{CompileError, Compiled, Header, MAX_LOG, MAX_PTX, Source};
pub use library::{NoArchitecture, Nvrtc, NvrtcNotFound, Version};
pub use log::clean;
