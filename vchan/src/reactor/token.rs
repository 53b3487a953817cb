#![forbid(unsafe_code)]
//! Names of channels on a reactor.

/// The name of a channel, or of a server that waits for its client, on a reactor. Never reused
/// within one reactor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub(crate) u64);
