//! Printed output that waits to be taken: bounded, the oldest is dropped and counted.

use std::collections::VecDeque;

/// Most bytes kept where nothing else is said, as on a GPU.
pub(crate) const MOST: usize = 1 << 20;

/// Text taken from an [`Output`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Printed {
    /// Bytes lost before [`Self::text`]: nobody took them, and only so much is kept.
    pub lost: u64,
    /// The bytes after those.
    pub text: Vec<u8>,
}

/// The output of kernels that nobody has taken yet, at most 1 MiB of it unless it is told otherwise.
#[derive(Debug)]
pub struct Output {
    bytes: VecDeque<u8>,
    lost: u64,
    most: usize,
}

impl Default for Output {
    fn default() -> Self {
        Self {
            bytes: VecDeque::new(),
            lost: 0,
            most: MOST,
        }
    }
}

impl Output {
    /// Keeps at most `most` bytes from now on.
    pub fn set_most(&mut self, most: usize) {
        self.most = most;
        self.push(&[]);
        self.bytes.shrink_to(most);
    }

    /// Appends a text, dropping the oldest output beyond the limit. A text alone is never cut.
    pub fn push(&mut self, text: &[u8]) {
        let beyond = (self.bytes.len() + text.len()).saturating_sub(self.most);
        let gone = beyond.min(self.bytes.len());
        self.bytes.drain(..gone);
        self.lost += gone as u64;
        self.bytes.extend(text);
    }

    /// Takes at most `most` bytes, the oldest first.
    pub fn take(&mut self, most: usize) -> Printed {
        let n = self.bytes.len().min(most);
        Printed {
            lost: std::mem::take(&mut self.lost),
            text: self.bytes.drain(..n).collect(),
        }
    }

    /// Whether there is nothing to take.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lost == 0 && self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_takes_is_dropped_and_counted() {
        let mut output = Output::default();
        output.push(b"old");
        for _ in 0..MOST / 16 {
            output.push(b"sixteen letters\n");
        }
        assert!(!output.is_empty());
        let first = output.take(20);
        assert_eq!(first.lost, 3);
        assert_eq!(first.text, b"sixteen letters\nsixt");
        let rest = output.take(usize::MAX);
        assert_eq!((rest.lost, rest.text.len()), (0, MOST - 20));
        assert!(output.is_empty());
        output.push(b"nine byte");
        output.set_most(4);
        let last = output.take(20);
        assert_eq!((last.lost, &last.text[..]), (5, &b"byte"[..]));
    }
}
