#![deny(unsafe_code)]
//! A byte channel between two Xen domains over granted memory.
//!
//! The wire format is libxenvchan's (`xen/io/libxenvchan.h`), so either end may be any existing
//! libxenvchan program. The same ring also runs over a memfd without Xen ([`local`]).
//!
//! A server and a client, here in one process over [`local`]; with `xen::Server` and
//! `xen::connect` in place of the last two functions they are two domains:
//!
//! ```
//! use std::os::unix::net::UnixStream;
//! use std::time::{Duration, Instant};
//! use vchan::{Channel, Result, local};
//!
//! fn soon() -> Instant {
//!     Instant::now() + Duration::from_secs(10)
//! }
//!
//! /// Sends back what comes, until the other side closes.
//! fn echo(mut channel: Channel) -> Result<()> {
//!     let mut buf = [0; 4096];
//!     loop {
//!         match channel.read(&mut buf, soon())? {
//!             0 => return Ok(()),
//!             n => channel.write_all(&buf[..n], soon())?,
//!         }
//!     }
//! }
//!
//! fn ask(mut channel: Channel) -> Result<()> {
//!     channel.write_all(b"hello", soon())?;
//!     let mut answer = [0; 5];
//!     let mut filled = 0;
//!     while filled < answer.len() {
//!         filled += channel.read(&mut answer[filled..], soon())?;
//!     }
//!     assert_eq!(&answer, b"hello");
//!     // Waits until the other side has read everything.
//!     channel.close(soon())
//! }
//!
//! # fn main() -> Result<()> {
//! let (one, other) = UnixStream::pair().unwrap();
//! let server = std::thread::spawn(move || echo(local::serve_on(one, 64 << 10, soon())?));
//! ask(local::connect_on(other, soon())?)?;
//! server.join().unwrap()
//! # }
//! ```
//!
//! # How the crate is laid out
//! * [`layout`]: the control page's offsets, ring orders and the rule by which a server picks them.
//! * [`ring`]: index arithmetic on values the peer may have made up. Pure, no memory, no OS.
//! * [`shm`]: the only file that touches shared memory.
//! * [`in_place`]: using the bytes in the ring without a copy.
//! * [`notify`]: the notify bits and the fences that keep a wake-up from being lost.
//! * [`backend`]: what a carrier has to provide; [`local`] and [`xen`] are the two there are.
//! * [`channel`], [`reader`], [`writer`]: what applications use.
//! * [`reactor`]: many channels over one event-channel handle, in one poll loop.
//! * [`region`]: bulk buffers beside the ring.
//! * [`conformance`]: what every channel must do, whatever carries it.
//!
//! # Terms
//! The *server* provides the memory, the *client* maps it. The **left** ring carries client to
//! server, the **right** ring server to client. Sizes are in bytes.

pub mod backend;
pub mod channel;
pub mod conformance;
pub mod domain;
pub mod error;
pub mod in_place;
pub mod layout;
pub mod local;
pub mod notify;
mod poll;
pub mod reactor;
pub mod reader;
pub mod region;
pub mod ring;
mod shared;
pub mod shm;
mod spin;
mod sync;
mod wait;
pub mod writer;
pub mod xen;

pub use channel::{Channel, Stats};
pub use domain::DomId;
pub use error::{Error, PeerError, Result};
pub use in_place::{PeerBytes, RingSpace};
pub use layout::RingSizes;
pub use reader::Reader;
pub use spin::DEFAULT_SPIN;
pub use writer::Writer;
