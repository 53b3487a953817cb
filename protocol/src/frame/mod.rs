//! Frames: a 32-byte header, then `body_len` bytes.
//!
//! Decoding copies the header once and validates every field before anything acts on it. An invalid
//! header ends the session: after it the two sides no longer agree where the next frame starts.

mod error;
mod flags;
mod header;

pub use error::FrameError;
pub use flags::Flags;
pub use header::{FrameHeader, within};

/// The first four bytes of every frame: `VGPU`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"VGPU");

/// Length of a frame header in bytes.
pub const HEADER_LEN: usize = 32;

/// Largest body of a [`Op::Data`](crate::op::Op::Data) frame, in bytes.
pub const MAX_DATA: u32 = 1 << 20;
