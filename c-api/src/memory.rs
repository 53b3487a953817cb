//! Device memory, copies and fills.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use vgpu_guest::{Device, DeviceBuffer, DevicePtr};

use crate::device::{DEVICES, DeviceHandle};
use crate::failure::{Failure, call};
use crate::handles::{Held, Table};
use crate::pointers::{Out, elements, elements_mut};
use crate::stream::{StreamHandle, queue};

pub(crate) static BUFFERS: Table<Arc<DeviceBuffer<u8>>> = Table::new("buffer");

/// Memory on a device.
#[derive(Debug)]
pub struct BufferHandle {
    _opaque: [u8; 0],
}

/// Elements within a buffer. Copies of other threads may write the same at the same time: that is for the device to
/// order, as with CUDA.
pub(crate) struct Part {
    buffer: Arc<DeviceBuffer<u8>>,
    offset: usize,
    len: usize,
}

impl Part {
    /// `len` elements of `size` bytes from byte `offset` on.
    pub(crate) fn new(
        buffer: *mut BufferHandle,
        offset: usize,
        len: usize,
        size: usize,
    ) -> Result<Self, Failure> {
        let buffer = BUFFERS.get(buffer)?.object;
        let end = len
            .checked_mul(size)
            .and_then(|bytes| bytes.checked_add(offset));
        if end.is_none_or(|end| end > buffer.len()) {
            return Err(Failure::argument(format!(
                "{len} elements of {size} bytes at offset {offset} of a buffer of {} bytes",
                buffer.len()
            )));
        }
        Ok(Self {
            buffer,
            offset,
            len,
        })
    }
}

macro_rules! parts {
    ($($element:ty),*) => {$(
        impl DevicePtr<$element> for Part {
            fn device(&self) -> &Device {
                self.buffer.device()
            }

            fn address(&self) -> u64 {
                self.buffer.address() + self.offset as u64
            }

            fn len(&self) -> usize {
                self.len
            }
        }
    )*};
}

parts!(u8, u16, u32);

/// Allocates `bytes` on the device. What they are is not said.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_buffer_allocate(
    device: *mut DeviceHandle,
    bytes: usize,
    buffer: *mut *mut BufferHandle,
) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let place = unsafe { Out::new(buffer, "buffer")? };
        let Held { session, object } = DEVICES.get(device)?;
        let buffer = object.alloc(bytes)?;
        place.set(BUFFERS.insert(session, Arc::new(buffer)));
        Ok(())
    })
}

/// Frees memory, once the work that was sent before is done. NULL is VGPU_OK.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_buffer_free(buffer: *mut BufferHandle) -> c_int {
    call(|| BUFFERS.remove(buffer).map(drop))
}

/// The device address of a buffer, as kernels take it; 0 for one without bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_buffer_address(
    buffer: *mut BufferHandle,
    address: *mut u64,
) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let place = unsafe { Out::new(address, "address")? };
        place.set(BUFFERS.get(buffer)?.object.address());
        Ok(())
    })
}

/// The bytes of a buffer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_buffer_size(buffer: *mut BufferHandle, bytes: *mut usize) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let place = unsafe { Out::new(bytes, "size")? };
        place.set(BUFFERS.get(buffer)?.object.len());
        Ok(())
    })
}

/// Copies `bytes` from `from` to byte `offset` of the buffer `to`. `from` has been read when this returns; the copy
/// itself may be under way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_copy_to_device(
    device: *mut DeviceHandle,
    to: *mut BufferHandle,
    offset: usize,
    from: *const c_void,
    bytes: usize,
    stream: *mut StreamHandle,
) -> c_int {
    call(|| {
        let queue = queue(device, stream)?;
        let mut to = Part::new(to, offset, bytes, 1)?;
        // SAFETY: the header's rules for pointers.
        let from: &[u8] = unsafe { elements(from.cast(), bytes, "source of the copy")? };
        Ok(queue.memcpy_htod(from, &mut to)?)
    })
}

/// Copies `bytes` from byte `offset` of the buffer `from` to `to`, once the work sent before is done, and waits until
/// they are there. If something that was sent before has failed, that is this call's failure, and `to` holds a part of
/// the copy, or none of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_copy_from_device(
    device: *mut DeviceHandle,
    to: *mut c_void,
    from: *mut BufferHandle,
    offset: usize,
    bytes: usize,
    stream: *mut StreamHandle,
) -> c_int {
    call(|| {
        let queue = queue(device, stream)?;
        let from = Part::new(from, offset, bytes, 1)?;
        // SAFETY: the header's rules for pointers.
        let to: &mut [u8] = unsafe { elements_mut(to.cast(), bytes, "destination of the copy")? };
        Ok(queue.memcpy_dtoh(&from, to)?)
    })
}

/// Copies `bytes` on the device, from byte `from_offset` of `from` to byte `to_offset` of `to`, without waiting. The two
/// ranges may overlap only where they are the same.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_copy_on_device(
    device: *mut DeviceHandle,
    to: *mut BufferHandle,
    to_offset: usize,
    from: *mut BufferHandle,
    from_offset: usize,
    bytes: usize,
    stream: *mut StreamHandle,
) -> c_int {
    call(|| {
        let queue = queue(device, stream)?;
        let from = Part::new(from, from_offset, bytes, 1)?;
        let mut to = Part::new(to, to_offset, bytes, 1)?;
        Ok(queue.memcpy_dtod::<u8>(&from, &mut to)?)
    })
}

/// Sets `elements` of `element_bytes` each (1, 2 or 4), from byte `offset` of the buffer on, which is a multiple of that,
/// to the low bits of `value`, without waiting.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_fill(
    device: *mut DeviceHandle,
    to: *mut BufferHandle,
    offset: usize,
    value: u32,
    element_bytes: usize,
    elements: usize,
    stream: *mut StreamHandle,
) -> c_int {
    call(|| {
        let queue = queue(device, stream)?;
        let mut to = Part::new(to, offset, elements, element_bytes)?;
        if element_bytes > 0 && !offset.is_multiple_of(element_bytes) {
            return Err(Failure::argument(format!(
                "offset {offset} is no multiple of the {element_bytes} bytes of an element"
            )));
        }
        let [low, next, ..] = value.to_le_bytes();
        match element_bytes {
            1 => queue.memset(&mut to, low)?,
            2 => queue.memset(&mut to, u16::from_le_bytes([low, next]))?,
            4 => queue.memset(&mut to, value)?,
            other => {
                return Err(Failure::argument(format!(
                    "elements of {other} bytes; there are those of 1, 2 and 4"
                )));
            }
        }
        Ok(())
    })
}
