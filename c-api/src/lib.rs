//! `libvgpu.so.0`: the library `vgpu-guest` for programs in C and C++.
//!
//! The header `include/vgpu.h` is made from this crate's public items and their comments, which are therefore written
//! for readers of C: `UPDATE_DOCS=1 cargo test -p vgpu-c header` writes it. Nothing here is an interface for Rust.
#![allow(
    clippy::missing_safety_doc,
    reason = "the head of the header has the rules for all pointers"
)]

pub mod device;
pub mod failure;
mod handles;
pub mod memory;
pub mod module;
pub mod pinned;
mod pointers;
pub mod rows;
pub mod session;
pub mod stream;
