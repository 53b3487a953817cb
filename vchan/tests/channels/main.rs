//! Channels of this machine, with good peers and bad: all that can share a process.
//!
//! Tests that examine the whole process, such as its open files, are in `leftovers/`.

#[path = "../liar/mod.rs"]
mod liar;

mod conformance_local;
mod examples;
mod hostile_descriptors;
mod hostile_extension;
mod hostile_history;
mod hostile_rendezvous;
mod hostile_states;
mod in_place;
mod looking;
mod parts_and_wakers;
mod peer_end;
mod prop_ring;
mod reactor;
mod region;
mod region_hostile;
mod two_channels;
