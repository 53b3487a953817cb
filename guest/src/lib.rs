#![forbid(unsafe_code)]
//! The library that a Xen guest links to send GPU work to the mediator in dom0.
//!
//! ```
//! use vgpu_guest::{Client, Options};
//!
//! fn main() -> vgpu_guest::Result<()> {
//! # use std::time::{Duration, Instant};
//! # use vgpu_mediator::{executor::cpu::CpuExecutor, session, usage::Observed};
//! # let socket = std::env::temp_dir().join(format!("vgpu-example-{}.sock", std::process::id()));
//! # let listener = vchan::local::Listener::bind(&socket).expect("a free path");
//! # // SAFETY: this process has no other thread yet.
//! # unsafe { std::env::set_var("VGPU_ENDPOINT", format!("local:{}", socket.display())) };
//! # let mediator = std::thread::spawn(move || {
//! #     let time = Duration::from_secs(30);
//! #     let stream = listener.accept(Instant::now() + time).expect("a guest");
//! #     let ring = vchan::local::connect_on(stream, Instant::now() + time).expect("a ring");
//! #     let terms = session::Terms {
//! #         max_lanes: 4.try_into().expect("not 0"), max_requests: 4.try_into().expect("not 0"),
//! #         max_handles: 1, initial_credit: session::INITIAL_CREDIT,
//! #         features: vgpu_protocol::op::Features::ALL,
//! #     };
//! #     let settings = session::Settings {
//! #         terms, timeouts: session::Timeouts { hello: time, idle: time, stall: time, request: None }, epoch: 1,
//! #         reason: None, refusal: None, operations: session::OpSet::ALL,
//! #     };
//! #     let mut cpu = || Ok(Box::new(CpuExecutor::new("an example")) as _);
//! #     let (observed, stop) = (Observed::default(), Default::default());
//! #     session::serve(&mut ring.into(), &mut cpu, &settings, &observed, &stop)
//! # });
//!     let (a, b, mut sum) = (vec![1.0; 100_000], vec![2.0; 100_000], vec![0.0; 100_000]);
//!     // The mediator that `VGPU_ENDPOINT` names; without it, the one in dom0.
//!     let mut gpu = Client::from_env(&Options::default())?;
//!     gpu.vector_add(&a, &b, &mut sum)?;
//!     assert!(sum.iter().all(|&x| x == 3.0));
//!     // The sum stays what it is, also if the mediator is gone by now.
//!     gpu.goodbye().ok();
//! #   mediator.join().expect("the mediator ended");
//!     Ok(())
//! }
//! ```
//!
//! | type | what it is for |
//! |---|---|
//! | [`Client`] | a session: [`info`](Client::info), [`devices`](Client::devices), [`ping`](Client::ping), [`vector_add`](Client::vector_add), [`fence`](Client::fence); [`lane`](Client::lane) for another thread |
//! | [`Device`] | what the session's device can do: [`DeviceBuffer`], [`PitchedBuffer`], copies, [`Module`] (from PTX, machine code or [CUDA C++](Device::compile_module)), [`Function`], [`LaunchBuilder`], [`Stream`], [`Event`], [`Graph`] |
//! | [`Printed`] | a line that a kernel has printed ([`Client::on_printed`]) |
//! | [`Endpoint`] | where the mediator is: `xen:` in a guest, `local:PATH` and `unix:PATH` on one machine, `tcp:HOST:PORT` anywhere |
//! | [`Options`] | time limits, ring size, the secret for `tcp:`, an interrupt flag |
//! | [`Error`] | what failed, on which [`Side`], whether to [`Retry`], what to do |

#[cfg(target_endian = "big")]
compile_error!("vector data travels little-endian, straight from memory");

pub mod attributes;
mod client;
// The suite that every endpoint must pass: for this project's tests and `vgpu conformance`.
#[doc(hidden)]
pub mod conformance;
mod connect;
mod data;
mod error;
mod options;
mod printed;
mod pump;
mod wire;

/// Compiles the README's example. The one above runs, beside a mediator in hidden lines, which the README could not
/// hide.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub use client::{
    CaptureMode, CaptureStatus, Client, CompileAt, CompileOptions, CopyWay, Device, DeviceBuffer,
    DevicePtr, DeviceRows, DeviceSlice, DeviceSliceMut, Element, Event, Function, Graph, GraphExec,
    KernelArg, LaunchBuilder, LaunchConfig, Limit, MemoryPool, MemoryPoolStatistics, Module,
    PinnedBuffer, PitchedBuffer, PitchedSlice, PitchedSliceMut, Statistics, Stream, StreamOptions,
    VectorAddReport,
};
pub use connect::{MEDIATOR_HINT, MediatorHint, SECRET_FILE};
pub use error::{Cause, Error, ErrorKind, Result, Retry, Side, Skipped};
pub use options::Options;
pub use printed::Printed;
pub use vgpu_protocol as protocol;
pub use vgpu_protocol::op::{
    DeviceInfoReply, FenceReply, HelloReply, InfoReply, LaunchAttribute, QuietFailure,
};
pub use vgpu_protocol::session::client::{NotSent, Violation};
pub use vgpu_transport::endpoint::{Endpoint, EndpointError, parse_list};
