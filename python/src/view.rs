//! Arrays of Python by the buffer protocol.

use std::slice;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::prelude::*;

use crate::error::argument;

/// The bytes of an array, which its owner neither frees nor moves as long as this is there.
pub(crate) struct View(PyUntypedBuffer);

impl View {
    /// `array`, which is in one piece, in the order of C.
    pub(crate) fn new(array: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyUntypedBuffer::get(array)?;
        if !buffer.is_c_contiguous() {
            return Err(argument(array.py(), "the array is not C-contiguous"));
        }
        Ok(Self(buffer))
    }

    /// The same, which can be written.
    pub(crate) fn writable(array: &Bound<'_, PyAny>) -> PyResult<Self> {
        let view = Self::new(array)?;
        if view.0.readonly() {
            return Err(argument(array.py(), "the array is read-only"));
        }
        Ok(view)
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self.0.len_bytes() {
            0 => &[],
            // SAFETY: so many bytes are there, in one piece, while the buffer is held. That no other thread writes them
            // during a call is the caller's to see to, as with NumPy's own functions.
            len => unsafe { slice::from_raw_parts(self.0.buf_ptr().cast::<u8>(), len) },
        }
    }

    /// The bytes, to write.
    ///
    /// # Panics
    /// The array is read-only.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        assert!(!self.0.readonly(), "checked when it was made");
        match self.0.len_bytes() {
            0 => &mut [],
            // SAFETY: as for `bytes`, and not read-only. That no other thread uses them during a call is the caller's to
            // see to.
            len => unsafe { slice::from_raw_parts_mut(self.0.buf_ptr().cast::<u8>(), len) },
        }
    }

    /// The bytes as 32-bit floats; `None` where they are not aligned, or no multiple of 4.
    pub(crate) fn floats(&self) -> Option<&[f32]> {
        bytemuck::try_cast_slice(self.bytes()).ok()
    }

    /// The same, to write.
    pub(crate) fn floats_mut(&mut self) -> Option<&mut [f32]> {
        bytemuck::try_cast_slice_mut(self.bytes_mut()).ok()
    }

    /// Whether two arrays have bytes in common.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let range = |view: &Self| {
            let start = view.0.buf_ptr().addr();
            (start, start + view.0.len_bytes())
        };
        let ((start, end), (from, to)) = (range(self), range(other));
        start < to && from < end
    }
}
