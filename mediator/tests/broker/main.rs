//! The broker and `vgpuctl`: who is admitted, what is told and counted, and the broker's own life.

mod cli;
mod crowds;
mod figures;
mod json;
mod kick;
mod metrics;
mod open_files;
mod reload;
mod rules;
mod sockets;
mod standard_streams;
mod strangers_sockets;
#[path = "../support/mod.rs"]
mod support;
mod top;
