#![forbid(unsafe_code)]
//! How one half of a channel waits: for how long it polls the ring, and how it sleeps.
//!
//! `spin` polls, for as long as `spin_window` allows and at the rate that `machine_costs` measured;
//! `waiters`, `backend_poll` and `poll` sleep, and `coarse_clock` and `alarm` spare them readings of
//! a slow clock. `comparison` finds out which of the two is faster. `batching`, `stream_distance` and
//! `hold_out` wait a little although there is something to do, so that the next step is a larger one;
//! `rest` makes that rare where it does not pay.

pub(crate) mod alarm;
pub(crate) mod backend_poll;
pub(crate) mod batching;
pub(crate) mod coarse_clock;
pub(crate) mod comparison;
pub(crate) mod hold_out;
pub(crate) mod machine_costs;
pub(crate) mod poll;
pub(crate) mod rest;
pub(crate) mod spin;
pub(crate) mod spin_window;
pub(crate) mod stream_distance;
pub(crate) mod waiters;
