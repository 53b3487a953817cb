//! The extension page as loom sees it, under the names of `src/wire/extension_page.rs`.

use crate::error::RingName;
use crate::sync::Arc;
use crate::sync::atomic::AtomicU32;
use crate::wire::shm::SharedU32;

/// The words of one ring.
#[derive(Debug, Clone)]
pub(crate) struct RingWords {
    pub(crate) prod: SharedU32,
    pub(crate) cons: SharedU32,
    pub(crate) reader_wait: SharedU32,
    pub(crate) writer_wait: SharedU32,
    pub(crate) ended: SharedU32,
}

impl RingWords {
    fn new((cons, prod): (u32, u32)) -> Self {
        Self {
            prod: Arc::new(AtomicU32::new(prod)),
            cons: Arc::new(AtomicU32::new(cons)),
            reader_wait: Arc::new(AtomicU32::wait_word()),
            writer_wait: Arc::new(AtomicU32::wait_word()),
            ended: Arc::new(AtomicU32::new(0)),
        }
    }
}

/// The extension page of a connected channel.
#[derive(Debug, Clone)]
pub(crate) struct ExtensionPage {
    left: RingWords,
    right: RingWords,
}

impl ExtensionPage {
    /// No side waits; `left` and `right` are (cons, prod).
    pub(crate) fn connected(left: (u32, u32), right: (u32, u32)) -> Self {
        Self {
            left: RingWords::new(left),
            right: RingWords::new(right),
        }
    }

    pub(crate) fn words(&self, ring: RingName) -> RingWords {
        match ring {
            RingName::Left => self.left.clone(),
            RingName::Right => self.right.clone(),
        }
    }
}
