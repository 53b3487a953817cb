#![forbid(unsafe_code)]
//! What a Xen guest links to send GPU work to the mediator in dom0.
//!
//! ```no_run
//! # fn main() -> vgpu_guest::Result<()> {
//! let (a, b, mut sum) = (vec![1.0; 1 << 20], vec![2.0; 1 << 20], vec![0.0; 1 << 20]);
//! let mut gpu = vgpu_guest::Client::from_env(&Default::default())?;
//! gpu.vector_add(&a, &b, &mut sum)?;
//! gpu.goodbye()
//! # }
//! ```
//!
//! | type | what it is for |
//! |---|---|
//! | [`Client`] | a session: [`info`](Client::info), [`ping`](Client::ping), [`vector_add`](Client::vector_add), [`fence`](Client::fence) |
//! | [`Endpoint`] | where the mediator is: `xen:` in a guest, `local:PATH` on one machine |
//! | [`Options`] | time limits, ring size, an interrupt flag |
//! | [`Error`] | what failed, on which [`Side`], whether to [`Retry`], what to do |

#[cfg(target_endian = "big")]
compile_error!("vector data travels little-endian, straight from memory");

mod client;
mod connect;
mod error;
mod options;
mod session;

pub use client::{Client, VectorAddReport};
pub use connect::{MEDIATOR_HINT, MediatorHint};
pub use error::{Cause, Error, Left, Result, Retry, Side};
pub use options::Options;
pub use vgpu_protocol::endpoint::{Endpoint, EndpointError, parse_list};
pub use vgpu_protocol::message::{FenceReply, InfoReply, Limits, QuietFailure};
