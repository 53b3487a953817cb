#![forbid(unsafe_code)]
//! The vgpu session protocol, without any I/O.
pub mod transport;
