#![forbid(unsafe_code)]
//! Sessions over sockets: `unix:PATH` within one machine, `tcp:HOST:PORT` over a network.
//!
//! Both give a [`SocketTransport`], which carries a session as a ring does. They differ in trust. A
//! Unix socket identifies the process at the other end, and its bytes never leave the kernel, so
//! they are sent in the clear. Over TCP both sides first prove that they know the same [`Secret`],
//! and everything after that is encrypted and authenticated, including the end of the stream.
//!
//! | module | what it does |
//! |---|---|
//! | [`handshake`] | authentication: bytes in, bytes out, no socket |
//! | [`record`] | the encrypted stream: records sealed and opened, no socket |
//! | `transport` | a session's stream on a socket: its waits and its end |
//! | `outgoing`, `incoming` | its bytes to and from the kernel, in few system calls |
//! | `unix`, `tcp`, `resolve` | from an address to a connected socket, within a deadline |
//! | `secret`, `secrets` | a name with its key, and the files that hold them |
//!
//! ```
//! # use std::os::unix::net::UnixStream;
//! # use std::time::{Duration, Instant};
//! use vgpu_transport::Transport;
//! use vgpu_socket_transport::SocketTransport;
//!
//! let deadline = Instant::now() + Duration::from_secs(10);
//! let (ours, theirs) = UnixStream::pair()?;
//! let (mut ours, mut theirs) = (SocketTransport::from_unix(ours)?, SocketTransport::from_unix(theirs)?);
//! ours.write_all(b"hello", deadline)?;
//! ours.close(deadline)?;
//! let mut hello = [0; 5];
//! theirs.read_exact(&mut hello, deadline)?;
//! assert_eq!(&hello, b"hello");
//! assert_eq!(theirs.try_read(&mut hello)?, Some(0), "the end of the stream");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

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
