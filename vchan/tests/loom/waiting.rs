//! The crate's own files, except the sleep in the kernel.

#[path = "backend_poll.rs"]
pub(crate) mod backend_poll;
#[path = "../../src/waiting/batching.rs"]
pub(crate) mod batching;
#[path = "../../src/waiting/coarse_clock.rs"]
pub(crate) mod coarse_clock;
#[path = "../../src/waiting/comparison.rs"]
pub(crate) mod comparison;
#[path = "../../src/waiting/hold_out.rs"]
pub(crate) mod hold_out;
#[path = "../../src/waiting/machine_costs.rs"]
pub(crate) mod machine_costs;
#[path = "../../src/waiting/rest.rs"]
pub(crate) mod rest;
#[path = "../../src/waiting/spin.rs"]
pub(crate) mod spin;
#[path = "../../src/waiting/spin_window.rs"]
pub(crate) mod spin_window;
#[path = "../../src/waiting/stream_distance.rs"]
pub(crate) mod stream_distance;
#[path = "../../src/waiting/waiters.rs"]
pub(crate) mod waiters;
