//! Mediators that relay to another one.

mod chain;
mod hostile;
#[path = "../support/mod.rs"]
mod support;
mod ways;
