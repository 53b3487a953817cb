//! Messages as they are encoded, decoded, refused and documented.

mod bodies;
mod document;
mod handles;
mod malformed_bodies;
mod malformed_headers;
mod round_trips;
