#![forbid(unsafe_code)]
//! The counters of a channel.

/// Counters of a channel since it was connected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes delivered to readers of this side.
    pub bytes_read: u64,
    /// Bytes accepted from writers of this side.
    pub bytes_written: u64,
    /// Times this side rang the peer's doorbell.
    pub events_sent: u64,
    /// Times this side acknowledged its own doorbell.
    pub events_received: u64,
    /// Times a thread of this side went to sleep.
    pub sleeps: u64,
    /// Waits that ended while this side still polled the ring.
    pub spin_hits: u64,
    /// Times polling found nothing and this side slept.
    pub spin_misses: u64,
}
