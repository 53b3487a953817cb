//! Streams over sockets, and authentication.

mod ends;
mod strangers;
mod stream;
