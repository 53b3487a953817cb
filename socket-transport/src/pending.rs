//! Bytes on their way to the kernel.

/// A buffer that is filled at one end and emptied at the other.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    bytes: Vec<u8>,
    gone: usize,
}

impl Pending {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.gone
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.gone..]
    }

    /// Notes that the first `n` bytes are gone.
    pub(crate) fn advance(&mut self, n: usize) {
        self.gone += n.min(self.len());
        if self.is_empty() {
            self.clear();
        }
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.gone = 0;
    }

    /// The buffer to append further bytes to. Bytes already gone are removed first.
    pub(crate) fn end(&mut self) -> &mut Vec<u8> {
        if self.gone > 0 {
            self.bytes.drain(..self.gone);
            self.gone = 0;
        }
        &mut self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_order() {
        let mut pending = Pending::default();
        pending.end().extend_from_slice(b"abcdef");
        pending.advance(2);
        assert_eq!((pending.bytes(), pending.len()), (&b"cdef"[..], 4));
        pending.end().extend_from_slice(b"gh");
        assert_eq!(pending.bytes(), b"cdefgh");
        pending.advance(100);
        assert!(pending.is_empty());
    }
}
