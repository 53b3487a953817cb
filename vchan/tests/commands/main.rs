//! The command `vchan`, as a process of its own.

#[path = "../xenstore_rs/mod.rs"]
mod xenstore_rs;

mod command;
mod connect_again;
mod pipe;
mod xenstore_absent;
