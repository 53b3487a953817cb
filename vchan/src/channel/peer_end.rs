#![forbid(unsafe_code)]
//! How a stream of the peer's can end.

/// How the peer ended its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerEnd {
    /// It has not.
    Open,
    /// It called `close`: what it wrote is all it had to write.
    Closed,
    /// It went without: its process or its domain ended, or it dropped the channel. It may have
    /// had more to write.
    Gone,
    /// One of the two. libxenvchan's format does not tell them apart.
    ClosedOrGone,
}
