//! Arrays of Python by the buffer protocol: those that come, and page-locked memory, which goes.

use std::ffi::c_int;
use std::num::NonZeroU64;
use std::slice;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use vgpu_guest::PinnedBuffer;

use crate::error::{argument, detached};
use crate::objects::Slot;

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

/// Page-locked memory of this program. Arrays over it keep it.
#[pyclass(frozen, module = "vgpu._native")]
#[derive(Debug)]
pub(crate) struct Pinned {
    memory: Slot<Arc<Mutex<PinnedBuffer<u8>>>>,
    /// Where it is; it does not move. Never changed, so all accesses are relaxed.
    start: AtomicPtr<u8>,
    bytes: usize,
    /// Arrays over it. Python's lock orders all accesses.
    views: AtomicUsize,
}

impl Pinned {
    pub(crate) fn new(buffer: PinnedBuffer<u8>) -> Self {
        Self {
            start: AtomicPtr::new(buffer.as_ptr().as_ptr()),
            bytes: buffer.len(),
            memory: Slot::new(Arc::new(Mutex::new(buffer))),
            views: AtomicUsize::new(0),
        }
    }

    pub(crate) fn get(&self, py: Python<'_>) -> PyResult<Arc<Mutex<PinnedBuffer<u8>>>> {
        self.memory.get(py, "page-locked memory")
    }
}

/// Waits for calls of other threads with the same memory: only while other threads of Python run, too.
pub(crate) fn locked(buffer: &Mutex<PinnedBuffer<u8>>) -> MutexGuard<'_, PinnedBuffer<u8>> {
    buffer.lock().unwrap_or_else(PoisonError::into_inner)
}

#[pymethods]
impl Pinned {
    /// Of the first byte, for kernels; 0 where they cannot reach it.
    fn address(&self, py: Python<'_>) -> PyResult<u64> {
        let buffer = self.get(py)?;
        let address = detached(py, || Ok(locked(&buffer).device_address()))?;
        Ok(address.map_or(0, NonZeroU64::get))
    }

    fn is_page_locked(&self, py: Python<'_>) -> PyResult<bool> {
        let buffer = self.get(py)?;
        detached(py, || Ok(locked(&buffer).is_page_locked()))
    }

    fn wait(&self, py: Python<'_>) -> PyResult<()> {
        let buffer = self.get(py)?;
        detached(py, || locked(&buffer).wait())
    }

    fn free(&self) -> PyResult<()> {
        if self.views.load(Ordering::Relaxed) > 0 {
            return Err(PyBufferError::new_err(
                "an array over this memory is in use",
            ));
        }
        drop(self.memory.take());
        Ok(())
    }

    /// # Safety
    /// Python calls it, with a place for a view.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let pinned = slf.get();
        pinned.get(slf.py())?;
        let start = pinned.start.load(Ordering::Relaxed);
        let len = isize::try_from(pinned.bytes).map_err(|_| PyBufferError::new_err("too long"))?;
        // SAFETY: `len` bytes begin there, and stay while the view has `slf`, whose memory is not freed while there are
        // views. The mediator may change them at any time, like memory that other threads of Python share.
        let filled =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start.cast(), len, 0, flags) };
        if filled != 0 {
            return Err(PyErr::fetch(slf.py()));
        }
        pinned.views.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// # Safety
    /// Python calls it, once for each view.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.views.fetch_sub(1, Ordering::Relaxed);
    }
}
