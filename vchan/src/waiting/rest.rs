#![forbid(unsafe_code)]
//! Making rare what does not pay.

/// Steps that are skipped: after each one that did not pay twice as many as after the one before.
#[derive(Debug)]
pub(crate) struct Rest {
    /// Steps skipped after one that did not pay: at first, and at most.
    bounds: (u32, u32),
    left: u32,
    next: u32,
}

impl Rest {
    pub(crate) fn new(bounds: (u32, u32)) -> Self {
        Self {
            bounds,
            left: 0,
            next: bounds.0,
        }
    }

    /// Whether the step that comes is to be skipped.
    #[inline]
    pub(crate) fn skips(&mut self) -> bool {
        let skips = self.left > 0;
        self.left -= u32::from(skips);
        skips
    }

    /// A step that was not skipped has paid, or not.
    pub(crate) fn learn(&mut self, paid: bool) {
        if paid {
            self.next = self.bounds.0;
        } else {
            self.left = self.next;
            self.next = (self.next * 2).min(self.bounds.1);
        }
    }
}
