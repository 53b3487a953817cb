//! Copies of rectangles.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use vgpu_guest::{Device, DeviceBuffer, DevicePtr, DeviceRows};

use crate::device::DeviceHandle;
use crate::failure::{Failure, call};
use crate::memory::{BUFFERS, BufferHandle};
use crate::pinned::{PINNED, PinnedHandle};
use crate::pointers::{elements, elements_mut};
use crate::stream::{StreamHandle, queue};

/// Rows of bytes within a buffer.
struct Rows {
    buffer: Arc<DeviceBuffer<u8>>,
    offset: usize,
    pitch: usize,
    shape: Shape,
}

/// Bytes of a row, and rows.
#[derive(Clone, Copy)]
struct Shape {
    width: usize,
    height: usize,
}

impl Shape {
    /// Where the last row ends, if the first begins at 0.
    fn span(self, pitch: usize) -> Result<usize, Failure> {
        let Self { width, height } = self;
        let span = match (width, height) {
            (0, _) | (_, 0) => Some(0),
            _ if pitch < width => None,
            _ => (height - 1)
                .checked_mul(pitch)
                .and_then(|before| before.checked_add(width)),
        };
        span.ok_or_else(|| {
            Failure::argument(format!(
                "{height} rows of {width} bytes every {pitch} bytes"
            ))
        })
    }

    /// Where the last row ends, if the first begins at `offset`.
    fn end(self, offset: usize, pitch: usize) -> Result<usize, Failure> {
        let Self { width, height } = self;
        self.span(pitch)?.checked_add(offset).ok_or_else(|| {
            Failure::argument(format!("{height} rows of {width} bytes at offset {offset}"))
        })
    }
}

impl Rows {
    fn new(
        buffer: *mut BufferHandle,
        offset: usize,
        pitch: usize,
        shape: Shape,
    ) -> Result<Self, Failure> {
        let buffer = BUFFERS.get(buffer)?.object;
        if shape.end(offset, pitch)? > buffer.len() {
            let Shape { width, height } = shape;
            return Err(Failure::argument(format!(
                "{height} rows of {width} bytes every {pitch} bytes at offset {offset} of a buffer of {} bytes",
                buffer.len()
            )));
        }
        Ok(Self {
            buffer,
            offset,
            pitch,
            shape,
        })
    }
}

impl DeviceRows<u8> for Rows {
    fn device(&self) -> &Device {
        self.buffer.device()
    }

    fn address(&self) -> u64 {
        self.buffer.address() + self.offset as u64
    }

    fn pitch(&self) -> usize {
        self.pitch
    }

    fn width(&self) -> usize {
        self.shape.width
    }

    fn height(&self) -> usize {
        self.shape.height
    }
}

/// Copies `height` rows of `width` bytes (`cuMemcpy2DAsync`): the first from `from`, each of the others from `from_pitch`
/// bytes behind the one before it; the first to byte `to_offset` of the buffer `to`, the others every `to_pitch` bytes. No
/// pitch is below `width`. `from` has been read when this returns; the copy itself may be under way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_copy_rows_to_device(
    device: *mut DeviceHandle,
    to: *mut BufferHandle,
    to_offset: usize,
    to_pitch: usize,
    from: *const c_void,
    from_pitch: usize,
    width: usize,
    height: usize,
    stream: *mut StreamHandle,
) -> c_int {
    call(|| {
        let queue = queue(device, stream)?;
        let shape = Shape { width, height };
        let mut to = Rows::new(to, to_offset, to_pitch, shape)?;
        let bytes = shape.span(from_pitch)?;
        // SAFETY: the header's rules for pointers.
        let from: &[u8] = unsafe { elements(from.cast(), bytes, "source of the copy")? };
        Ok(queue.memcpy_2d_htod(from, from_pitch, &mut to)?)
    })
}

/// Copies rows as `vgpu_copy_rows_to_device` does, from the buffer `from` to `to`, once the work sent before is done, and
/// waits until they are there. What lies between the rows there stays as it is. If something that was sent before has failed,
/// that is this call's failure, and `to` holds a part of the copy, or none of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_copy_rows_from_device(
    device: *mut DeviceHandle,
    to: *mut c_void,
    to_pitch: usize,
    from: *mut BufferHandle,
    from_offset: usize,
    from_pitch: usize,
    width: usize,
    height: usize,
    stream: *mut StreamHandle,
) -> c_int {
    call(|| {
        let queue = queue(device, stream)?;
        let shape = Shape { width, height };
        let from = Rows::new(from, from_offset, from_pitch, shape)?;
        let bytes = shape.span(to_pitch)?;
        // SAFETY: the header's rules for pointers.
        let to: &mut [u8] = unsafe { elements_mut(to.cast(), bytes, "destination of the copy")? };
        Ok(queue.memcpy_2d_dtoh(&from, to, to_pitch)?)
    })
}

/// Copies rows as `vgpu_copy_rows_to_device` does, from byte `from_offset` of page-locked memory on, without waiting where it
/// is page-locked. Each row is a request of its own there, unless nothing lies between the rows on either side.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_copy_rows_pinned_to_device(
    device: *mut DeviceHandle,
    to: *mut BufferHandle,
    to_offset: usize,
    to_pitch: usize,
    from: *mut PinnedHandle,
    from_offset: usize,
    from_pitch: usize,
    width: usize,
    height: usize,
    stream: *mut StreamHandle,
) -> c_int {
    call(|| {
        let queue = queue(device, stream)?;
        let shape = Shape { width, height };
        let mut to = Rows::new(to, to_offset, to_pitch, shape)?;
        let from = PINNED.get(from)?.object;
        let range = from_offset..shape.end(from_offset, from_pitch)?;
        let from = from.lock();
        Ok(queue.memcpy_2d_htod_pinned(&from, range, from_pitch, &mut to)?)
    })
}

/// Copies rows from the buffer `from` to page-locked memory, from its byte `to_offset` on, once the work sent before is done,
/// without waiting where it is page-locked: `vgpu_pinned_wait` does. Requests are as for `vgpu_copy_rows_pinned_to_device`.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_copy_rows_device_to_pinned(
    device: *mut DeviceHandle,
    to: *mut PinnedHandle,
    to_offset: usize,
    to_pitch: usize,
    from: *mut BufferHandle,
    from_offset: usize,
    from_pitch: usize,
    width: usize,
    height: usize,
    stream: *mut StreamHandle,
) -> c_int {
    call(|| {
        let queue = queue(device, stream)?;
        let shape = Shape { width, height };
        let from = Rows::new(from, from_offset, from_pitch, shape)?;
        let to = PINNED.get(to)?.object;
        let range = to_offset..shape.end(to_offset, to_pitch)?;
        let mut to = to.lock();
        Ok(queue.memcpy_2d_dtoh_pinned(&from, &mut to, range, to_pitch)?)
    })
}
