//! Encoding, decoding, refusal and documentation of messages.

mod bodies;
mod document;
mod handles;
mod malformed_bodies;
mod malformed_headers;
mod round_trips;
