//! Page-locked memory of the program's, and copies from and to it.

use std::ffi::{c_int, c_void};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vgpu_guest::{Device, PinnedBuffer};

use crate::device::{DEVICES, DeviceHandle};
use crate::failure::{Failure, call};
use crate::handles::{Held, Table};
use crate::memory::{BufferHandle, Part};
use crate::pointers::Out;
use crate::stream::{StreamHandle, queue};

pub(crate) static PINNED: Table<Arc<Pinned>> = Table::new("page-locked memory");

/// Page-locked memory of this program.
#[derive(Debug)]
pub struct PinnedHandle {
    _opaque: [u8; 0],
}

#[derive(Debug)]
pub(crate) struct Pinned {
    device: Device,
    buffer: Mutex<PinnedBuffer<u8>>,
    /// Kernels may have its address. Set before it is told, and read by who frees it, who has heard of that in some way:
    /// relaxed.
    is_reached: AtomicBool,
}

impl Pinned {
    pub(crate) fn lock(&self) -> MutexGuard<'_, PinnedBuffer<u8>> {
        // No step leaves it half done.
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Allocates `bytes` of this program's memory, page-locked for the device (`cuMemHostAlloc`), which copies from it and to
/// it by itself, and whose kernels reach it. Over endpoints other than `local:` it is ordinary memory, from and to which
/// copies go like any others: `vgpu_pinned_is_page_locked` tells.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_pinned_allocate(
    device: *mut DeviceHandle,
    bytes: usize,
    pinned: *mut *mut PinnedHandle,
) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let place = unsafe { Out::new(pinned, "page-locked memory")? };
        let Held { session, object } = DEVICES.get(device)?;
        let buffer = object.alloc_pinned(bytes)?;
        let pinned = Pinned {
            device: object,
            buffer: Mutex::new(buffer),
            is_reached: AtomicBool::new(false),
        };
        place.set(PINNED.insert(session, Arc::new(pinned)));
        Ok(())
    })
}

/// Frees page-locked memory; its data is not to be used any more. Where a kernel may have its device address, this waits
/// first until the device has done everything that was sent before, as `cuMemFreeHost` does. It is freed whatever this
/// returns. NULL is VGPU_OK.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_pinned_free(pinned: *mut PinnedHandle) -> c_int {
    call(|| {
        let Some(pinned) = PINNED.remove(pinned)? else {
            return Ok(());
        };
        if pinned.is_reached.load(Ordering::Relaxed) {
            pinned.device.synchronize()?;
        }
        Ok(())
    })
}

/// The first byte, valid until the memory is freed or its session is closed. The program reads and writes it as it likes,
/// but not what a copy or a kernel uses: `vgpu_pinned_wait` waits for copies.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_pinned_data(
    pinned: *mut PinnedHandle,
    data: *mut *mut c_void,
) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let place = unsafe { Out::new(data, "address of the data")? };
        let pinned = PINNED.get(pinned)?.object;
        let start = pinned.lock().as_ptr();
        place.set(start.as_ptr().cast());
        Ok(())
    })
}

/// The address of the first byte for kernels, which is an argument like that of a buffer; 0 where no kernel reaches it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_pinned_address(
    pinned: *mut PinnedHandle,
    address: *mut u64,
) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let place = unsafe { Out::new(address, "address")? };
        let pinned = PINNED.get(pinned)?.object;
        let found = pinned.lock().device_address();
        pinned
            .is_reached
            .fetch_or(found.is_some(), Ordering::Relaxed);
        place.set(found.map_or(0, NonZeroU64::get));
        Ok(())
    })
}

/// Whether the device copies from it and to it by itself: 1, or 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_pinned_is_page_locked(
    pinned: *mut PinnedHandle,
    is_page_locked: *mut c_int,
) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let place = unsafe { Out::new(is_page_locked, "answer")? };
        let pinned = PINNED.get(pinned)?.object;
        let found = pinned.lock().is_page_locked();
        place.set(c_int::from(found));
        Ok(())
    })
}

/// Waits until no copy uses the memory. If something that was sent before failed, that is this call's failure.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_pinned_wait(pinned: *mut PinnedHandle) -> c_int {
    call(|| {
        let pinned = PINNED.get(pinned)?.object;
        let waited = pinned.lock().wait();
        Ok(waited?)
    })
}

/// Copies `bytes` from byte `from_offset` of page-locked memory to byte `to_offset` of the buffer `to`, without waiting
/// where it is page-locked.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_copy_pinned_to_device(
    device: *mut DeviceHandle,
    to: *mut BufferHandle,
    to_offset: usize,
    from: *mut PinnedHandle,
    from_offset: usize,
    bytes: usize,
    stream: *mut StreamHandle,
) -> c_int {
    call(|| {
        let queue = queue(device, stream)?;
        let mut to = Part::new(to, to_offset, bytes, 1)?;
        let from = PINNED.get(from)?.object;
        let range = from_offset..end(from_offset, bytes)?;
        let from = from.lock();
        Ok(queue.memcpy_htod_pinned(&from, range, &mut to)?)
    })
}

/// Copies `bytes` from byte `from_offset` of the buffer `from` to byte `to_offset` of page-locked memory, once the work
/// sent before is done, without waiting where it is page-locked: `vgpu_pinned_wait` does.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_copy_device_to_pinned(
    device: *mut DeviceHandle,
    to: *mut PinnedHandle,
    to_offset: usize,
    from: *mut BufferHandle,
    from_offset: usize,
    bytes: usize,
    stream: *mut StreamHandle,
) -> c_int {
    call(|| {
        let queue = queue(device, stream)?;
        let from = Part::new(from, from_offset, bytes, 1)?;
        let to = PINNED.get(to)?.object;
        let range = to_offset..end(to_offset, bytes)?;
        let mut to = to.lock();
        Ok(queue.memcpy_dtoh_pinned(&from, &mut to, range)?)
    })
}

fn end(offset: usize, bytes: usize) -> Result<usize, Failure> {
    let end = offset.checked_add(bytes);
    end.ok_or_else(|| {
        Failure::argument(format!(
            "{bytes} bytes at offset {offset} of page-locked memory"
        ))
    })
}
