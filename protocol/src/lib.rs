#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]
//! # Modules
//! | module | what it holds |
//! |---|---|
//! | [`frame`] | the header, its flags and its validation |
//! | [`op`] | the table of operations and their bodies |
//! | [`session`] | both halves of a session, as state machines |
//! | [`status`] | error codes and the receiver's options for each |
//! | [`handle`] | guest-minted, generation-checked names of objects in the mediator |
//! | [`argument`] | kernel arguments in their command-line form |

pub mod argument;
pub mod frame;
pub mod handle;
pub mod op;
pub mod session;
pub mod status;

/// The newest protocol version this crate speaks.
pub const VERSION: u16 = 1;

/// The oldest protocol version this crate still speaks.
pub const MIN_VERSION: u16 = 1;
