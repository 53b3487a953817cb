//! Streams over sockets, and who may open one.

mod ends;
mod strangers;
mod stream;
