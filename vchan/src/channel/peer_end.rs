#![forbid(unsafe_code)]
//! The ways in which the peer's stream can end.

/// The way in which the peer ended its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerEnd {
    /// It has not.
    Open,
    /// It called `close`: the stream is complete.
    Closed,
    /// It went away without closing: its process or domain ended, or it dropped the channel. It may
    /// have had more to write.
    Gone,
    /// `Closed` or `Gone`: libxenvchan's format does not tell them apart.
    ClosedOrGone,
}
