#![deny(unsafe_code)]
#![doc = include_str!("../README.md")]
//! # Which call for which purpose
//! | you want | use |
//! |---|---|
//! | a stream of bytes | [`Channel::read`], [`read_exact`](Channel::read_exact), [`write_all`](Channel::write_all), or [`std::io::Read`] and [`Write`](std::io::Write) with [`Channel::set_timeout`] |
//! | no copy: fill and look at the ring itself, or move bytes between it and a file or socket | [`Channel::reserve`] and [`peek`](Channel::peek): [`in_place`] |
//! | one thread for each direction | [`Channel::split`] |
//! | a poll loop of your own | `try_…` calls, and the descriptor that a channel lends with [`AsFd`](std::os::fd::AsFd) |
//! | one thread for many channels | [`reactor`] |
//! | one thread between two channels, or a channel and a socket | [`two_channels`] |
//! | buffers of many megabytes that both sides address | [`region`] |
//! | to know why it failed, and to tell a person | [`Error`], [`Error::advice`] |
//!
//! # Failures
//! * The peer **closes**, or its process ends: the bytes it wrote before are still read, then reads
//!   return 0, the end. Writes fail with [`Error::PeerClosed`], which gives the bytes left unread.
//!   [`Channel::peer_end`] tells the two apart, unless the peer is libxenvchan.
//! * Its **domain is destroyed**: every waiting call wakes, and reads end with
//!   [`Error::PeerLost`]. Drop the channel then: its mapping keeps the dead domain in `xl list`.
//! * It **breaks the rules**: [`Error::Peer`] names the field and the value, now and in every
//!   later call. Close the channel.
//! * It does **nothing**: [`Error::TimedOut`] at the deadline. The channel stays usable.
//!
//! To check a message, copy it first: the peer can still change bytes in the ring. The copying
//! calls always do; with [in-place access](in_place) it is up to you.
//!
//! # In a poll loop
//! ```
//! use std::os::fd::AsFd;
//! use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
//!
//! /// What the peer sends until it closes.
//! fn receive(channel: &mut vchan::Channel) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
//!     let mut received = Vec::new();
//!     let mut buf = [0; 4096];
//!     loop {
//!         // Until it says that it would block: only then the peer has been asked to ring.
//!         match channel.try_read(&mut buf)? {
//!             Some(0) => return Ok(received), // the end
//!             Some(n) => received.extend(&buf[..n]),
//!             None => {
//!                 let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
//!                 poll(&mut fds, PollTimeout::NONE)?;
//!             }
//!         }
//!     }
//! }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let soon = std::time::Instant::now() + std::time::Duration::from_secs(10);
//! # let (one, other) = std::os::unix::net::UnixStream::pair()?;
//! # let server = std::thread::spawn(move || vchan::local::serve_on(one, 4096, soon));
//! # let mut channel = vchan::local::connect_on(other, soon)?;
//! # let mut peer = server.join().unwrap()?;
//! # peer.write_all(b"hello", soon)?;
//! # drop(peer);
//! # assert_eq!(receive(&mut channel)?, b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! # How the crate is laid out
//! * [`layout`]: the control page's offsets, ring orders and the rule by which a server picks them.
//! * [`extension`]: the additions to libxenvchan's format that two sides of this crate use.
//! * [`ring`]: index arithmetic on values the peer may have made up. Pure, no memory, no OS.
//! * [`shm`]: the memory shared with the peer, and the rules for touching it.
//! * [`in_place`]: using the bytes in the ring without a copy.
//! * [`notify`]: the notify bits and the fences that keep a wake-up from being lost.
//! * [`backend`]: the interface of a carrier; [`local`] and [`xen`] implement it.
//! * [`Channel`], [`Reader`], [`Writer`]: the interface for applications. [`address`]: a channel's
//!   address.
//! * [`reactor`]: many channels over one event-channel handle, in one poll loop.
//! * [`two_channels`]: one wait for two channels.
//! * [`region`]: bulk buffers beside the ring.
//!
//! # Terms
//! The *server* provides the memory, the *client* maps it. The **left** ring carries client to
//! server, the **right** ring server to client. Sizes are in bytes.

pub mod address;
pub mod backend;
mod channel;
mod connect_options;
pub mod domain;
pub mod error;
pub mod in_place;
pub mod local;
pub mod reactor;
pub mod region;
mod sync;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod testing;
pub mod two_channels;
mod waiting;
mod wire;
pub mod xen;

pub use address::Address;
pub use channel::{Channel, PeerEnd, Reader, Stats, Writer};
pub use connect_options::Setup;
pub use domain::DomId;
pub use error::{Error, PeerError, Result};
pub use in_place::{PeerBytes, RingSpace};
pub use vgpu_transport::{Interest, Transport, TransportError};
pub use waiting::machine_costs::DEFAULT_SPIN;
pub use wire::layout::{Format, RingSizes};
pub use wire::{control_page, extension, extension_page, layout, notify, ring, shm};
