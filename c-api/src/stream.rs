//! Streams and events.

use std::ffi::c_int;
use std::ops::Deref;
use std::sync::Arc;

use vgpu_guest::{Device, Event, Stream, StreamOptions};

use crate::device::{DEVICES, DeviceHandle};
use crate::failure::{Failure, call};
use crate::handles::{Held, Table};
use crate::pointers::Out;

pub(crate) static STREAMS: Table<Stream> = Table::new("stream");
pub(crate) static EVENTS: Table<Arc<Event>> = Table::new("event");

/// An order of work of its own, beside that of other streams.
#[derive(Debug)]
pub struct StreamHandle {
    _opaque: [u8; 0],
}

/// A point in a stream, which others can wait for.
#[derive(Debug)]
pub struct EventHandle {
    _opaque: [u8; 0],
}

/// The queue that takes work: a stream, or the device's default stream.
pub(crate) enum Queue {
    Default(Device),
    Stream(Stream),
}

impl Deref for Queue {
    type Target = Device;

    fn deref(&self) -> &Device {
        match self {
            Self::Default(device) => device,
            Self::Stream(stream) => stream,
        }
    }
}

/// The queue of `stream`, or the default stream where that is NULL, on the lane of `device`.
pub(crate) fn queue(
    device: *mut DeviceHandle,
    stream: *mut StreamHandle,
) -> Result<Queue, Failure> {
    let device = DEVICES.get(device)?.object;
    if stream.is_null() {
        return Ok(Queue::Default(device));
    }
    let stream = STREAMS.get(stream)?.object;
    Ok(Queue::Stream(device.on_stream(&stream)?))
}

/// A new stream. Wherever a call takes a stream, NULL is the device's default stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_stream_create(
    device: *mut DeviceHandle,
    stream: *mut *mut StreamHandle,
) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let place = unsafe { Out::new(stream, "stream")? };
        let Held { session, object } = DEVICES.get(device)?;
        place.set(STREAMS.insert(session, object.new_stream()?));
        Ok(())
    })
}

/// Flag of a stream: it and the default stream wait for each other, as CUDA's do without `CU_STREAM_NON_BLOCKING`.
pub const VGPU_STREAM_BLOCKING: u32 = 1;

/// The same with `flags` (0 or VGPU_STREAM_BLOCKING) and a priority: lower numbers first, 0 without a wish; the nearest that
/// the device has is taken.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_stream_create_with(
    device: *mut DeviceHandle,
    flags: u32,
    priority: i32,
    stream: *mut *mut StreamHandle,
) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let place = unsafe { Out::new(stream, "stream")? };
        let options = StreamOptions {
            priority,
            non_blocking: match flags {
                0 => true,
                VGPU_STREAM_BLOCKING => false,
                other => return Err(Failure::argument(format!("flags {other} of a stream"))),
            },
        };
        let Held { session, object } = DEVICES.get(device)?;
        place.set(STREAMS.insert(session, object.new_stream_with(options)?));
        Ok(())
    })
}

/// Destroys a stream, once its work is done. NULL is VGPU_OK.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_stream_destroy(stream: *mut StreamHandle) -> c_int {
    call(|| STREAMS.remove(stream).map(drop))
}

/// Waits until everything that was sent to the stream before is done. If something that was sent before failed, that is
/// this call's failure. With NULL it waits for the whole session's work, as `vgpu_synchronize` does.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_stream_synchronize(
    device: *mut DeviceHandle,
    stream: *mut StreamHandle,
) -> c_int {
    call(|| {
        match queue(device, stream)? {
            Queue::Default(device) => device.synchronize()?,
            Queue::Stream(stream) => stream.synchronize()?,
        };
        Ok(())
    })
}

/// Whether everything that was sent to the stream before is done: 1 or 0. The stream is not NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_stream_query(
    device: *mut DeviceHandle,
    stream: *mut StreamHandle,
    done: *mut c_int,
) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let place = unsafe { Out::new(done, "answer")? };
        let stream = DEVICES
            .get(device)?
            .object
            .on_stream(&STREAMS.get(stream)?.object)?;
        place.set(stream.is_done()?.into());
        Ok(())
    })
}

/// Has what is sent to the stream from now on wait for the event, as it was recorded last.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_stream_wait_event(
    device: *mut DeviceHandle,
    stream: *mut StreamHandle,
    event: *mut EventHandle,
) -> c_int {
    call(|| {
        let queue = queue(device, stream)?;
        Ok(queue.wait(&EVENTS.get(event)?.object)?)
    })
}

/// A new event, which was not recorded yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_event_create(
    device: *mut DeviceHandle,
    event: *mut *mut EventHandle,
) -> c_int {
    // SAFETY: the header's rules for pointers.
    unsafe { create_event(device, event, Device::new_event) }
}

/// The same without a time, which costs the device less to record: `vgpu_event_elapsed` refuses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_event_create_without_timing(
    device: *mut DeviceHandle,
    event: *mut *mut EventHandle,
) -> c_int {
    // SAFETY: the header's rules for pointers.
    unsafe { create_event(device, event, Device::new_event_without_timing) }
}

/// # Safety
/// `event` by the header's rules for pointers.
unsafe fn create_event(
    device: *mut DeviceHandle,
    event: *mut *mut EventHandle,
    create: impl Fn(&Device) -> vgpu_guest::Result<Event>,
) -> c_int {
    call(|| {
        // SAFETY: the caller's promise.
        let place = unsafe { Out::new(event, "event")? };
        let Held { session, object } = DEVICES.get(device)?;
        place.set(EVENTS.insert(session, Arc::new(create(&object)?)));
        Ok(())
    })
}

/// Destroys an event. NULL is VGPU_OK.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_event_destroy(event: *mut EventHandle) -> c_int {
    call(|| EVENTS.remove(event).map(drop))
}

/// Has the event come when the stream has done what was sent to it before.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_event_record(
    device: *mut DeviceHandle,
    event: *mut EventHandle,
    stream: *mut StreamHandle,
) -> c_int {
    call(|| {
        let queue = queue(device, stream)?;
        Ok(queue.record(&EVENTS.get(event)?.object)?)
    })
}

/// Waits until the event has come, as it was recorded last, in the lane of the device that made it.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_event_synchronize(event: *mut EventHandle) -> c_int {
    call(|| Ok(EVENTS.get(event)?.object.synchronize()?))
}

/// Whether the event has come, as it was recorded last, or was never recorded: 1 or 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_event_query(event: *mut EventHandle, done: *mut c_int) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let place = unsafe { Out::new(done, "answer")? };
        place.set(EVENTS.get(event)?.object.is_done()?.into());
        Ok(())
    })
}

/// The time on the device from one event to another that came later, in nanoseconds; 0 where it came earlier.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_event_elapsed(
    start: *mut EventHandle,
    end: *mut EventHandle,
    nanoseconds: *mut u64,
) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let place = unsafe { Out::new(nanoseconds, "time")? };
        let (start, end) = (EVENTS.get(start)?.object, EVENTS.get(end)?.object);
        let elapsed = end.elapsed_since(&start)?;
        place.set(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX));
        Ok(())
    })
}
