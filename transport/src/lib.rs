#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]
//! # Modules
//! | module | what it holds |
//! |---|---|
//! | [`transport`] | [`Transport`], the ordered byte stream that rings, files and sockets are |
//! | [`waker`] | [`Waker`], by which another thread ends a wait for a transport |
//! | [`awaited`] | [`Awaited`], whatever else ends one |
//! | [`error`] | [`TransportError`] |
//! | [`endpoint`] | `xen:`, `local:PATH`, `tcp:HOST:PORT`, …: the addresses of mediators |
//! | [`clock`] | the time, for deadlines |
//! | [`output`] | writing all of a text to standard output, blocking or not |

pub mod awaited;
pub mod clock;
pub mod endpoint;
pub mod error;
pub mod output;
pub mod transport;
pub mod waker;

pub use awaited::Awaited;
pub use endpoint::Endpoint;
pub use error::TransportError;
pub use transport::{Interest, Transport};
pub use waker::{LONGEST_POLL, Waker};
