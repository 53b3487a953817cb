//! The ways in which guests reach the mediator.

pub mod discovery;
pub mod file;
