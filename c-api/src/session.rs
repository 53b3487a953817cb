//! Sessions: their settings, their beginning and their end.

use std::ffi::{c_char, c_int};
use std::time::Duration;

use vgpu_guest::protocol::op::NO_ATTRIBUTE;
use vgpu_guest::{Client, Device, DeviceInfoReply, parse_list};

use crate::device::{DEVICES, DeviceHandle};
use crate::failure::{Failure, call};
use crate::handles::{Held, new_number};
use crate::memory::BUFFERS;
use crate::module::{FUNCTIONS, MODULES};
use crate::pinned::PINNED;
use crate::pointers::{Out, elements_mut, optional_text, sized};
use crate::stream::{EVENTS, STREAMS};

/// Settings of a session. All bytes 0 but for `size` are the defaults.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Options {
    /// `sizeof(vgpu_options)`.
    pub size: usize,
    /// Milliseconds that one endpoint may take until its session is open; 0: 10,000.
    pub connect_timeout_ms: u32,
    /// Milliseconds for which nothing may move before a call gives up; 0: 30,000.
    pub stall_timeout_ms: u32,
    /// Name of this program in the mediator's log; NULL: the name of the executable, and its process id.
    pub client_name: *const c_char,
    /// The file with the secret that `tcp:` needs; NULL: the one that the environment's `VGPU_SECRET_FILE` names.
    pub secret_file: *const c_char,
    /// The device, of those that this guest may use, from 0 on: `vgpu_list_devices` lists them.
    pub device: u32,
}

/// The version of this library, as in "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// Opens a session with the first mediator that answers.
///
/// `endpoints` are tried in order, as in "xen:,local:/run/vgpu/vgpu.sock"; NULL: those in the environment's
/// `VGPU_ENDPOINT`, or "xen:". `options` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_open(
    endpoints: *const c_char,
    options: *const Options,
    device: *mut *mut DeviceHandle,
) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let (place, endpoints, (options, ordinal)) = unsafe {
            (
                Out::new(device, "device")?,
                optional_text(endpoints, "list of endpoints")?,
                self::options(options)?,
            )
        };
        let client = connect(endpoints, &options)?;
        let device = match ordinal {
            0 => Device::new(client)?,
            _ => Device::with_ordinal(client, ordinal)?,
        };
        place.set(DEVICES.insert(new_number(), device));
        Ok(())
    })
}

fn connect(endpoints: Option<&str>, options: &vgpu_guest::Options) -> Result<Client, Failure> {
    Ok(match endpoints {
        None => Client::from_env(options)?,
        Some(list) => {
            let list = parse_list(list).map_err(|error| Failure::argument(error.to_string()))?;
            Client::connect(&list, options)?
        }
    })
}

/// What does not change about a device.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct DeviceInfo {
    /// Bytes of device memory that a session may have.
    pub total_memory: u64,
    /// The newest version of CUDA that the driver supports, as 1000 * major + 10 * minor.
    pub driver_version: u32,
    /// The device's own bytes; all 0 where it has none.
    pub uuid: [u8; 16],
    /// Its name, with a NUL behind it.
    pub name: [c_char; 260],
    /// At index k the value of `CUdevice_attribute` k, as of VGPU_DEVICE_ATTRIBUTE_WARP_SIZE; INT32_MIN where there is none.
    pub attributes: [i32; 256],
}

impl From<&DeviceInfoReply> for DeviceInfo {
    fn from(reply: &DeviceInfoReply) -> Self {
        let mut info = Self {
            total_memory: reply.total_memory,
            driver_version: reply.driver_version,
            uuid: [0; 16],
            name: [0; 260],
            attributes: [NO_ATTRIBUTE; 256],
        };
        for (place, byte) in info.uuid.iter_mut().zip(reply.uuid.as_slice()) {
            *place = *byte;
        }
        // The protocol allows names of 256 bytes.
        for (place, byte) in info.name.iter_mut().zip(reply.name.bytes().take(256)) {
            *place = byte.cast_signed() as c_char;
        }
        let values = reply.attributes.as_slice().iter();
        for (place, value) in info.attributes.iter_mut().zip(values) {
            *place = *value;
        }
        info
    }
}

/// Lists the devices that this guest may use, in a session of its own, which ends before this returns: `count` is how many
/// there are, and the first ones are described in `devices`, as far as it has `room`. With a `room` of 0 it may be NULL. The
/// index of one there is what `device` of `vgpu_options` chooses; here that is not looked at. `endpoints` and `options` are
/// as for `vgpu_open`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vgpu_list_devices(
    endpoints: *const c_char,
    options: *const Options,
    devices: *mut DeviceInfo,
    room: usize,
    count: *mut usize,
) -> c_int {
    call(|| {
        // SAFETY: the header's rules for pointers.
        let (place, devices, endpoints, (options, _)) = unsafe {
            (
                Out::new(count, "number of devices")?,
                elements_mut(devices, room, "place for devices")?,
                optional_text(endpoints, "list of endpoints")?,
                self::options(options)?,
            )
        };
        let mut client = connect(endpoints, &options)?;
        let found = client.devices()?;
        client.goodbye()?;
        for (place, reply) in devices.iter_mut().zip(&found) {
            *place = reply.into();
        }
        place.set(found.len());
        Ok(())
    })
}

/// The options, and the number of the device.
///
/// # Safety
/// NULL, or options by the header's rules for pointers.
unsafe fn options(given: *const Options) -> Result<(vgpu_guest::Options, u32), Failure> {
    let mut options = vgpu_guest::Options::default();
    // SAFETY: the header's rules for pointers.
    let Some(given) = (unsafe { sized(given, "vgpu_options")? }) else {
        return Ok((options, 0));
    };
    let time = |ms: u32| Duration::from_millis(ms.into());
    if given.connect_timeout_ms > 0 {
        options.connect_timeout = time(given.connect_timeout_ms);
    }
    if given.stall_timeout_ms > 0 {
        options.stall_timeout = time(given.stall_timeout_ms);
    }
    // SAFETY: the header's rules for pointers.
    let (name, file) = unsafe {
        (
            optional_text(given.client_name, "client name")?,
            optional_text(given.secret_file, "path of the secret")?,
        )
    };
    if let Some(name) = name {
        options.client_name = name.to_owned();
    }
    if let Some(file) = file {
        options.secret_file = Some(file.into());
    }
    Ok((options, given.device))
}

/// Ends the session of `device` in good order, once everything that was sent in it is done. If something of it failed and no
/// call has said so, that is this call's failure. All handles of the session are gone with it, those of its lanes, memory,
/// modules, streams and events too, whatever this returns: the session is over in any case. NULL is VGPU_OK.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_close(device: *mut DeviceHandle) -> c_int {
    call(|| {
        if device.is_null() {
            return Ok(());
        }
        let Held { session, object } = DEVICES.get(device)?;
        // First of all, so that nobody begins anything new with them. What is dropped has nothing to give back in a
        // session that is over.
        let gone = (
            DEVICES.remove_session(session),
            BUFFERS.remove_session(session),
            PINNED.remove_session(session),
            MODULES.remove_session(session),
            FUNCTIONS.remove_session(session),
            STREAMS.remove_session(session),
            EVENTS.remove_session(session),
        );
        let ended = object.goodbye();
        drop(gone);
        Ok(ended?)
    })
}
