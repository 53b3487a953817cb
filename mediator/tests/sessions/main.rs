//! Sessions of guests with real workers, from their first byte to their end.

mod conformance;
mod dead_guests;
mod end_to_end_local;
mod guest_memory;
mod looking_costs;
mod reconnect;
mod resting_worker;
#[path = "../support/mod.rs"]
mod support;
mod warm;
mod weights;
