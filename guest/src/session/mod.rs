//! The guest's half of a session, between a transport and the calls of [`Client`](crate::Client).
//!
//! * `wire`: whole frames, one after the other, for requests that fit one frame each way.
//! * `outgoing`, `incoming`: the two halves of a vector add as state machines without any I/O.
//! * `duplex`: moves both halves at once over one transport, on one thread.

mod duplex;
mod incoming;
mod outgoing;
mod wire;

pub(crate) use duplex::exchange_vectors;
pub(crate) use incoming::Incoming;
pub(crate) use outgoing::Outgoing;
pub(crate) use wire::Wire;
