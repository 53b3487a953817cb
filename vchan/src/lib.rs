#![deny(unsafe_code)]
//! A byte channel between two Xen domains over granted memory.
//!
//! The wire format is libxenvchan's (`xen/io/libxenvchan.h`), so either end may be any existing
//! libxenvchan program. The same ring also runs over a memfd without Xen ([`local`]).
//!
//! # How the crate is laid out
//! * [`layout`]: the control page's offsets, ring orders and the rule by which a server picks them.
//! * [`ring`]: index arithmetic on values the peer may have made up. Pure, no memory, no OS.
//! * [`shm`]: the only file that touches shared memory.
//! * [`notify`]: the notify bits and the fences that keep a wake-up from being lost.
//! * [`backend`]: what a carrier (Xen, or a memfd) has to provide.
//! * [`channel`]: reading, writing, waiting and closing; what applications use.
//!
//! # Terms
//! The *server* provides the memory, the *client* maps it. The **left** ring carries client to
//! server, the **right** ring server to client. Sizes are in bytes.

pub mod backend;
pub mod channel;
pub mod conformance;
pub mod domain;
pub mod error;
pub mod layout;
pub mod local;
pub mod notify;
pub mod reader;
pub mod ring;
mod shared;
pub mod shm;
mod wait;
pub mod writer;
pub mod xen;

pub use channel::{Channel, Stats};
pub use domain::DomId;
pub use error::{Error, PeerError, Result};
pub use layout::RingSizes;
pub use reader::Reader;
pub use wait::DEFAULT_SPIN;
pub use writer::Writer;
