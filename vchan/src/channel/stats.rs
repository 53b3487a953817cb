#![forbid(unsafe_code)]
//! The counters of a channel.

/// What a channel has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes given to readers of this side.
    pub bytes_read: u64,
    /// Bytes taken from writers of this side.
    pub bytes_written: u64,
    /// Times this side rang the peer's doorbell.
    pub events_sent: u64,
    /// Times this side took note of its own doorbell.
    pub events_received: u64,
    /// Times a thread of this side went to sleep.
    pub sleeps: u64,
    /// Waits that were over while this side still looked at the ring.
    pub spin_hits: u64,
    /// Times looking found nothing and this side slept.
    pub spin_misses: u64,
}
