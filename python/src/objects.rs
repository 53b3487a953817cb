//! The objects of a session on its device.

use std::sync::{Arc, PoisonError, RwLock};

use pyo3::prelude::*;
use vgpu_guest::{Device as Guest, DeviceBuffer, DevicePtr, DeviceRows};

use crate::error::{argument, detached};

/// Something that can be given back before Python forgets it.
#[derive(Debug)]
pub(crate) struct Slot<T>(RwLock<Option<T>>);

impl<T: Clone> Slot<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(RwLock::new(Some(value)))
    }

    /// It, unless it was given back.
    pub(crate) fn get(&self, py: Python<'_>, what: &str) -> PyResult<T> {
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let held = held.clone();
        held.ok_or_else(|| argument(py, format!("the {what} was closed")))
    }

    /// Takes it, if it is still there.
    pub(crate) fn take(&self) -> Option<T> {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

/// Bytes on a device.
#[pyclass(frozen, module = "vgpu._native")]
#[derive(Debug)]
pub(crate) struct Memory(pub(crate) Slot<Arc<DeviceBuffer<u8>>>);

impl Memory {
    /// `len` elements at its front, of which the whole has `size` bytes each.
    pub(crate) fn part(&self, py: Python<'_>, len: usize, size: usize) -> PyResult<Part> {
        let buffer = self.0.get(py, "buffer")?;
        if len
            .checked_mul(size)
            .is_none_or(|bytes| bytes > buffer.len())
        {
            let room = buffer.len();
            return Err(argument(
                py,
                format!(
                    "{len} elements of {size} bytes, where there are {room} bytes on the device"
                ),
            ));
        }
        Ok(Part { buffer, len })
    }

    /// Rows of bytes within it.
    pub(crate) fn rows(&self, py: Python<'_>, place: Place, shape: Shape) -> PyResult<Rows> {
        let buffer = self.0.get(py, "buffer")?;
        if shape.end(py, place)? > buffer.len() {
            let text = format!(
                "{shape:?} from byte {} on, where there are {} bytes on the device",
                place.0,
                buffer.len()
            );
            return Err(argument(py, text));
        }
        Ok(Rows {
            buffer,
            place,
            shape,
        })
    }
}

/// The first byte of the first row, and bytes from there to the next row.
pub(crate) type Place = (usize, usize);

/// Of a rectangle.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Bytes of a row.
    pub(crate) width: usize,
    /// Rows.
    pub(crate) height: usize,
}

impl Shape {
    /// Where the last row ends.
    pub(crate) fn end(self, py: Python<'_>, (first, pitch): Place) -> PyResult<usize> {
        let span = match (self.width, self.height) {
            (0, _) | (_, 0) => Some(0),
            (width, height) => (height - 1)
                .checked_mul(pitch)
                .filter(|_| pitch >= width)
                .and_then(|before| before.checked_add(width)),
        };
        span.and_then(|span| span.checked_add(first))
            .ok_or_else(|| argument(py, format!("{self:?} every {pitch} bytes")))
    }
}

/// Rows of bytes on a device.
pub(crate) struct Rows {
    buffer: Arc<DeviceBuffer<u8>>,
    place: Place,
    shape: Shape,
}

impl DeviceRows<u8> for Rows {
    fn device(&self) -> &Guest {
        self.buffer.device()
    }

    fn address(&self) -> u64 {
        self.buffer.address() + self.place.0 as u64
    }

    fn pitch(&self) -> usize {
        self.place.1
    }

    fn width(&self) -> usize {
        self.shape.width
    }

    fn height(&self) -> usize {
        self.shape.height
    }
}

#[pymethods]
impl Memory {
    fn address(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.0.get(py, "buffer")?.address())
    }

    fn free(&self) {
        drop(self.0.take());
    }
}

/// Elements at the front of memory.
pub(crate) struct Part {
    buffer: Arc<DeviceBuffer<u8>>,
    len: usize,
}

macro_rules! parts {
    ($($element:ty),*) => {$(
        impl DevicePtr<$element> for Part {
            fn device(&self) -> &Guest {
                self.buffer.device()
            }

            fn address(&self) -> u64 {
                self.buffer.address()
            }

            fn len(&self) -> usize {
                self.len
            }
        }
    )*};
}

parts!(u8, u16, u32);

/// Code on a device.
#[pyclass(frozen, module = "vgpu._native")]
#[derive(Debug)]
pub(crate) struct Module(pub(crate) Slot<vgpu_guest::Module>);

#[pymethods]
impl Module {
    fn function(&self, py: Python<'_>, name: &str) -> PyResult<Function> {
        let module = self.0.get(py, "module")?;
        detached(py, || module.load_function(name)).map(Function)
    }

    fn unload(&self) {
        drop(self.0.take());
    }
}

/// A kernel.
#[pyclass(frozen, module = "vgpu._native")]
#[derive(Debug)]
pub(crate) struct Function(pub(crate) vgpu_guest::Function);

#[pymethods]
impl Function {
    #[getter]
    fn name(&self) -> &str {
        self.0.name()
    }

    /// Bytes of each parameter.
    #[getter]
    fn parameters(&self) -> Vec<u32> {
        let parameters = self.0.parameters().iter();
        parameters.map(|parameter| parameter.size).collect()
    }

    fn attribute(&self, number: u32) -> Option<i32> {
        self.0.attribute(number)
    }
}

/// An order of work of its own.
#[pyclass(frozen, module = "vgpu._native")]
#[derive(Debug)]
pub(crate) struct Stream(pub(crate) Slot<vgpu_guest::Stream>);

#[pymethods]
impl Stream {
    fn destroy(&self) {
        drop(self.0.take());
    }
}

/// A point in a stream.
#[pyclass(frozen, module = "vgpu._native")]
#[derive(Debug)]
pub(crate) struct Event(pub(crate) Slot<Arc<vgpu_guest::Event>>);

#[pymethods]
impl Event {
    fn synchronize(&self, py: Python<'_>) -> PyResult<()> {
        let event = self.0.get(py, "event")?;
        detached(py, || event.synchronize())
    }

    fn done(&self, py: Python<'_>) -> PyResult<bool> {
        let event = self.0.get(py, "event")?;
        detached(py, || event.is_done())
    }

    /// Seconds.
    fn elapsed_since(&self, py: Python<'_>, start: &Self) -> PyResult<f64> {
        let (event, start) = (self.0.get(py, "event")?, start.0.get(py, "event")?);
        let elapsed = detached(py, || event.elapsed_since(&start))?;
        Ok(elapsed.as_secs_f64())
    }

    fn destroy(&self) {
        drop(self.0.take());
    }
}
