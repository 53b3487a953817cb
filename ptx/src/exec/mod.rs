//! The executor: warps of 32 lanes in lock-step over decoded instructions.

mod access;
mod atomic;
pub(crate) mod block;
mod builtin;
mod call;
mod cost;
pub(crate) mod cx;
mod lanes;
mod load_store;
mod matrix;
mod registers;
mod run;
mod together;
pub(crate) mod vectors;
mod warp;
