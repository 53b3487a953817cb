//! Which Data frames a vector add's input consists of. No I/O and no memory for the data.

use vgpu_protocol::message::{Chunks, VectorAdd};
use vgpu_protocol::status::ErrorCode;

/// The Data frames still to come.
#[derive(Debug)]
pub struct Input {
    chunks: Chunks,
    element_bytes: usize,
    ended: bool,
}

impl Input {
    /// The input of `job`, which the session's limits allow.
    pub fn new(job: &VectorAdd) -> Self {
        Self {
            chunks: job.chunks(),
            element_bytes: job.data_type.size(),
            ended: false,
        }
    }

    /// Whether the last Data frame has begun, right or wrong.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Checks a Data frame of `len` bytes against the chunk that is due; returns its elements.
    ///
    /// # Errors
    /// It is not that chunk, or the guest ends the input early: the code and the text for the
    /// request's final reply.
    pub fn expect(&mut self, len: usize, more: bool) -> Result<usize, (ErrorCode, String)> {
        self.ended |= !more;
        let cancelled = || {
            let text = "the guest ended the input early".to_owned();
            (ErrorCode::Cancelled, text)
        };
        if len == 0 && !more && self.chunks.elements_left() > 0 {
            return Err(cancelled());
        }
        let Some(elements) = self.chunks.next() else {
            let text = format!("Data of {len} bytes after the last chunk");
            return Err((ErrorCode::Range, text));
        };
        let elements = elements as usize;
        let wanted = elements * 2 * self.element_bytes;
        if len != wanted {
            let text = format!("Data of {len} bytes where the chunk needs {wanted}");
            return Err((ErrorCode::Range, text));
        }
        match (self.chunks.elements_left() == 0, more) {
            (true, true) => Err((
                ErrorCode::Range,
                "the last chunk says that another follows".to_owned(),
            )),
            (false, false) => Err(cancelled()),
            _ => Ok(elements),
        }
    }
}
