//! The dom0 side of vgpu.
//!
//! `vgpu-mediatord` is a *broker*: it waits for guests, applies the policy, and starts one *worker*
//! process for each session. A worker opens the guest's channel itself and runs the session against
//! an executor. The broker never touches CUDA, and a guest that crashes its worker loses only its
//! own session.
#![deny(unsafe_code)]

pub mod broker;
pub mod cli;
pub mod compile;
pub mod config;
pub mod control;
pub mod devices;
pub mod executor;
pub mod gpus;
pub mod guest_memory;
pub mod lines;
pub mod logging;
pub mod policy;
pub mod print;
pub mod rate;
pub mod relay;
pub mod session;
pub mod usage;
pub mod worker;
