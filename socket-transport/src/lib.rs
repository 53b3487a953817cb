#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]
//! # Modules
//! | module | what it does |
//! |---|---|
//! | [`handshake`] | authentication: bytes in, bytes out, no socket |
//! | [`record`] | the encrypted stream: records sealed and opened, no socket |
//! | `transport` | a session's stream on a socket: its waits and its end |
//! | `outgoing`, `incoming` | its bytes to and from the kernel, in few system calls |
//! | `unix`, `tcp`, `resolve` | from an address to a connected socket, within a deadline |
//! | `secret`, `secrets` | a name with its key, and the files that hold them |

mod error;
pub mod handshake;
mod incoming;
mod outgoing;
mod pending;
pub mod record;
mod resolve;
mod secret;
mod secret_line;
mod secrets;
mod socket;
mod tcp;
mod transport;
mod unix;

pub use error::{AcceptError, ConnectError};
pub use secret::Secret;
pub use secret_line::{MAX_NAME, SecretError};
pub use secrets::{Expected, Secrets};
pub use tcp::{accept_tcp, connect_tcp};
pub use transport::SocketTransport;
pub use unix::{connect_unix, connect_unix_stream, dial_unix};
