#![forbid(unsafe_code)]
//! The vgpu session protocol: the messages of a guest and its mediator, without any I/O.
//!
//! Both sides exchange frames over an ordered byte stream. A frame is a 32-byte
//! [`FrameHeader`](frame::FrameHeader) and a body. Everything that arrives is copied once, then
//! validated as a whole; a violation is a typed error that names the field and its value.
//! `docs/protocol.md` in the repository gives the byte offsets and the rules of a session.
//!
//! | module | what it holds |
//! |---|---|
//! | [`frame`] | the header, its flags and its validation |
//! | [`op`] | the table of operations and their bodies |
//! | [`session`] | both halves of a session, as state machines |
//! | [`status`] | error codes and the receiver's options for each |
//! | [`handle`] | guest-minted, generation-checked names of objects in the mediator |
//! | [`argument`] | kernel arguments in their command-line form |
//!
//! ```
//! use vgpu_protocol::frame::FrameHeader;
//! use vgpu_protocol::op::Op;
//!
//! let ping = FrameHeader::request(Op::Ping, 7).with_body_len(5);
//! let bytes = ping.encode();
//! assert_eq!(FrameHeader::decode(&bytes)?, ping);
//! # Ok::<(), vgpu_protocol::frame::FrameError>(())
//! ```

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
