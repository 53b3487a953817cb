//! Memory quotas and the charges against them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A limit in bytes, and the bytes in use.
#[derive(Debug)]
pub(crate) struct Quota {
    limit: u64,
    used: AtomicU64,
}

/// Bytes of a quota that are in use while this lives.
#[derive(Debug)]
pub(crate) struct Charge {
    of: Arc<Quota>,
    bytes: AtomicU64,
}

// Counters only: they guard no data, so all accesses are relaxed.
impl Quota {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicU64::new(0),
        })
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Charges `bytes`, if that many are left.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64) -> Option<Charge> {
        let charge = Charge {
            of: Arc::clone(self),
            bytes: AtomicU64::new(0),
        };
        charge.grow(bytes).then_some(charge)
    }
}

impl Charge {
    /// Charges `bytes` more, if that many are left.
    pub(crate) fn grow(&self, bytes: u64) -> bool {
        let more = |used: u64| used.checked_add(bytes).filter(|n| *n <= self.of.limit);
        let grown = self
            .of
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_ok();
        if grown {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        grown
    }

    /// Returns bytes that [`Self::grow`] took.
    pub(crate) fn shrink(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.of.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether no one else uses any of the quota.
    pub(crate) fn is_alone(&self) -> bool {
        self.of.used() <= self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.of
            .used
            .fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_is_given_back_and_never_more_than_there_is() {
        let q = Quota::new(100);
        let a = q.take(60).unwrap();
        assert!(q.take(41).is_none());
        assert!(!a.grow(u64::MAX));
        let b = q.take(40).unwrap();
        assert!(!a.is_alone());
        drop(b);
        assert!(a.grow(40) && a.is_alone());
        a.shrink(10);
        assert_eq!(q.used(), 90);
        drop(a);
        assert_eq!(q.used(), 0);
    }
}
