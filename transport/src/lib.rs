#![forbid(unsafe_code)]
//! What the roads of vgpu share, whatever bytes they carry: no word here knows of sessions.
//!
//! | module | what it holds |
//! |---|---|
//! | [`transport`] | [`Transport`], the ordered byte stream that rings, files and sockets are |
//! | [`waker`] | [`Waker`], by which another thread ends a wait for a transport |
//! | [`endpoint`] | `xen:`, `local:PATH`, `tcp:HOST:PORT`, …: where a mediator is |
//! | [`clock`] | the time, for deadlines |

pub mod clock;
pub mod endpoint;
pub mod transport;
pub mod waker;

pub use endpoint::Endpoint;
pub use transport::{Interest, Transport, TransportError};
pub use waker::Waker;
