//! Putting a header together from portions.

use super::{FrameError, FrameHeader, HEADER_LEN};

/// Collects one header from a stream that delivers bytes in any portions.
#[derive(Debug, Clone)]
pub struct HeaderBuffer {
    bytes: [u8; HEADER_LEN],
    filled: usize,
}

impl Default for HeaderBuffer {
    fn default() -> Self {
        Self {
            bytes: [0; HEADER_LEN],
            filled: 0,
        }
    }
}

impl HeaderBuffer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where the next bytes of the header belong.
    pub fn unfilled(&mut self) -> &mut [u8] {
        &mut self.bytes[self.filled..]
    }

    /// Notes that `n` bytes were put into [`unfilled`](Self::unfilled) (more than it holds counts as
    /// all). Returns the header, and is empty again, once all 40 are there.
    ///
    /// # Errors
    /// As [`FrameHeader::decode`].
    pub fn advance(&mut self, n: usize) -> Result<Option<FrameHeader>, FrameError> {
        self.filled = self.filled.saturating_add(n).min(HEADER_LEN);
        if self.filled < HEADER_LEN {
            return Ok(None);
        }
        self.filled = 0;
        FrameHeader::decode(&self.bytes).map(Some)
    }

    /// Whether a header has begun and is not complete; an end of stream here cuts a frame.
    pub fn is_partial(&self) -> bool {
        self.filled != 0
    }
}
