//! The output of `cargo xtask bindgen` for the C headers; never edited by hand.
//!
//! `uapi` comes from the copies in `xen-sys/include/`, the rest from Xen's installed headers.
#![allow(
    missing_docs,
    missing_debug_implementations,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    dead_code,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::missing_safety_doc,
    clippy::undocumented_unsafe_blocks,
    clippy::ptr_as_ptr,
    clippy::cast_possible_truncation
)]

pub mod ctrl;
pub mod evtchn;
pub mod gnttab;
pub mod toollog;
pub mod uapi;
