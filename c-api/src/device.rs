//! Devices and their lanes.

use std::ffi::{c_char, c_int};

use vgpu_guest::Device;

use crate::failure::{Failure, call};
use crate::handles::{Held, Table};
use crate::pointers::{Out, elements, elements_mut, overlap};

pub(crate) static DEVICES: Table<Device> = Table::new("device");

/// A session with a mediator, and its device.
#[derive(Debug)]
pub struct DeviceHandle {
    _opaque: [u8; 0],
}

/// Another handle of the same device, with a lane of its own in the session: calls with it do not wait for calls that
/// other threads make with `device`. Memory, modules, streams and events may be used with any handle of the session.
/// The mediator limits how many there may be.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_device_lane(
    device: *mut DeviceHandle,
    lane: *mut *mut DeviceHandle,
) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let place = unsafe { Out::new(lane, "lane")? };
        let Held { session, object } = DEVICES.get(device)?;
        place.set(DEVICES.insert(session, object.lane()?));
        Ok(())
    })
}

/// Gives a handle of a device back, as from `vgpu_device_lane`, and lets the session go on. NULL is VGPU_OK.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_device_release(device: *mut DeviceHandle) -> c_int {
    call(|| DEVICES.remove(device).map(drop))
}

/// Copies the device's name to `name`, which has room for `bytes`, and a NUL behind it; cut where it does not fit.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_device_name(
    device: *mut DeviceHandle,
    name: *mut c_char,
    bytes: usize,
) -> c_int {
    call(|| {
        let device = DEVICES.get(device)?.object;
        if bytes == 0 {
            return Err(Failure::argument("no room for the device's name"));
        }
        // SAFETY: the header's rules for pointers.
        let place: &mut [u8] = unsafe { elements_mut(name.cast(), bytes, "place for the name")? };
        let text = device.name();
        let mut len = text.len().min(bytes - 1);
        while !text.is_char_boundary(len) {
            len -= 1;
        }
        place[..len].copy_from_slice(&text.as_bytes()[..len]);
        place[len] = 0;
        Ok(())
    })
}

/// The value of a `CUdevice_attribute`, by its number, which `vgpu_device_attributes` names.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_device_attribute(
    device: *mut DeviceHandle,
    attribute: u32,
    value: *mut i32,
) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let place = unsafe { Out::new(value, "attribute")? };
        let found = DEVICES.get(device)?.object.attribute(attribute);
        place.set(found.ok_or_else(|| {
            Failure::argument(format!("the device has no attribute {attribute}"))
        })?);
        Ok(())
    })
}

/// How many devices this guest may use. A session uses one of them, which its options choose.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_device_count(device: *mut DeviceHandle, count: *mut u32) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let place = unsafe { Out::new(count, "number of devices")? };
        place.set(DEVICES.get(device)?.object.info().devices);
        Ok(())
    })
}

/// Bytes of device memory that are free, and that this session may have.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_memory_info(
    device: *mut DeviceHandle,
    free: *mut u64,
    total: *mut u64,
) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let (free, total) = unsafe { (Out::new(free, "free bytes")?, Out::new(total, "total")?) };
        let info = DEVICES.get(device)?.object.memory_info()?;
        free.set(info.0);
        total.set(info.1);
        Ok(())
    })
}

/// Waits until the device has done everything that was sent in this session before. If something of it failed, that is
/// this call's failure.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_synchronize(device: *mut DeviceHandle) -> c_int {
    call(|| {
        DEVICES.get(device)?.object.synchronize()?;
        Ok(())
    })
}

/// How many requests the last call with this handle of a device has sent that did not wait for the device: a launch, a copy,
/// a fill, the record of an event or a wait for one. One, but several for a large copy, which goes in pieces. Copies the ids
/// of those for which `ids` has room; with a `room` of 0 it may be NULL. A later failure names them, if it is theirs:
/// `vgpu_last_error_requests`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_last_requests(
    device: *mut DeviceHandle,
    ids: *mut u32,
    room: usize,
    count: *mut usize,
) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let (ids, place) = unsafe {
            (
                elements_mut(ids, room, "place for ids")?,
                Out::new(count, "number of requests")?,
            )
        };
        let requests = DEVICES.get(device)?.object.last_requests();
        for (id, request) in ids.iter_mut().zip(&requests) {
            *id = *request;
        }
        place.set(requests.len());
        Ok(())
    })
}

/// Adds `elements` floats of `a` and `b` into `sum` on the device, and waits until all are there. `sum` has no element
/// in common with `a` or `b`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_vector_add(
    device: *mut DeviceHandle,
    a: *const f32,
    b: *const f32,
    sum: *mut f32,
    elements: usize,
) -> c_int {
    call(|| {
        let device = DEVICES.get(device)?.object;
        // SAFETY: the header's rules for pointers.
        let (a, b) = unsafe {
            (
                self::elements(a, elements, "vector a")?,
                self::elements(b, elements, "vector b")?,
            )
        };
        if overlap(a, sum, elements) || overlap(b, sum, elements) {
            return Err(Failure::argument("the sum overlaps a or b"));
        }
        // SAFETY: the header's rules for pointers; it overlaps neither `a` nor `b`.
        let sum = unsafe { elements_mut(sum, elements, "sum")? };
        device.with_client(|client| client.vector_add(a, b, sum))?;
        Ok(())
    })
}
