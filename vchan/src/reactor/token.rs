#![forbid(unsafe_code)]
//! Names of channels on a reactor.

/// Names a channel, or a server that waits for its client, on a reactor. Never used again for
/// another of the same reactor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub(crate) u64);
