//! Sessions: their settings, their beginning and their end.

use std::ffi::{c_char, c_int};
use std::time::Duration;

use vgpu_guest::{Client, Device, parse_list};

use crate::device::{DEVICES, DeviceHandle};
use crate::failure::{Failure, call};
use crate::handles::{Held, new_number};
use crate::memory::BUFFERS;
use crate::module::{FUNCTIONS, MODULES};
use crate::pinned::PINNED;
use crate::pointers::{Out, optional_text, sized};
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
    /// The device, of those that this guest may use, from 0 on: `vgpu_device_count` is how many they are.
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
        let client = match endpoints {
            None => Client::from_env(&options)?,
            Some(list) => {
                let list =
                    parse_list(list).map_err(|error| Failure::argument(error.to_string()))?;
                Client::connect(&list, &options)?
            }
        };
        let device = match ordinal {
            0 => Device::new(client)?,
            _ => Device::with_ordinal(client, ordinal)?,
        };
        place.set(DEVICES.insert(new_number(), device));
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
