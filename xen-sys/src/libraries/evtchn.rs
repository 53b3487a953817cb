//! Event channels through libxenevtchn.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use super::load;
use crate::device::{self, EVTCHN};
use crate::evtchn::{EventChannels, Port};
use crate::generated::evtchn::{LibXenEvtchn, xenevtchn_handle};
use crate::{DomId, Error, ErrorKind, Result, ioctl};

/// An open `xenevtchn_handle`.
pub(crate) struct LibraryEvtchn {
    library: &'static LibXenEvtchn,
    handle: NonNull<xenevtchn_handle>,
}

// SAFETY: a handle is a descriptor that never changes, and each of the calls below is one system
// call on it, so threads may share it. Opening and closing happen once, by the owner.
unsafe impl Send for LibraryEvtchn {}
// SAFETY: as above.
unsafe impl Sync for LibraryEvtchn {}

impl LibraryEvtchn {
    /// `xenevtchn_open`—opens the event channel driver.
    pub(crate) fn open() -> Result<Self> {
        let library = load::evtchn()?;
        // SAFETY: the logger is valid for ever; 0 is no flags.
        let handle = unsafe { library.xenevtchn_open(load::quiet(), 0) };
        let handle =
            NonNull::new(handle).ok_or_else(|| EVTCHN.open_error(&io::Error::last_os_error()))?;
        let this = Self { library, handle };
        load::add_flags(this.raw_fd(), libc::O_NONBLOCK)
            .map_err(|error| EVTCHN.open_error(&error))?;
        Ok(this)
    }

    /// `xenevtchn_fd`—the descriptor to poll.
    fn raw_fd(&self) -> c_int {
        // SAFETY: the handle is open until the drop.
        unsafe { self.library.xenevtchn_fd(self.handle.as_ptr()) }
    }
}

impl std::fmt::Debug for LibraryEvtchn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "xenevtchn_handle(fd {})", self.raw_fd())
    }
}

impl Drop for LibraryEvtchn {
    fn drop(&mut self) {
        // SAFETY: the handle is open and this is its last use.
        unsafe { self.library.xenevtchn_close(self.handle.as_ptr()) };
    }
}

impl AsFd for LibraryEvtchn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the handle, and the borrow ends before.
        unsafe { BorrowedFd::borrow_raw(self.raw_fd()) }
    }
}

/// A port, or the errno behind the library's -1.
fn port_or_error(result: c_int) -> io::Result<Port> {
    u32::try_from(result)
        .map(Port)
        .map_err(|_| io::Error::last_os_error())
}

fn done(result: c_int) -> io::Result<()> {
    port_or_error(result).map(|_| ())
}

impl EventChannels for LibraryEvtchn {
    fn provider(&self) -> &str {
        "libxenevtchn"
    }

    /// `xenevtchn_bind_unbound_port`—a port that waits for `peer`.
    fn bind_unbound(&self, peer: DomId) -> Result<Port> {
        // SAFETY: the handle is open.
        port_or_error(unsafe {
            self.library
                .xenevtchn_bind_unbound_port(self.handle.as_ptr(), peer.0.into())
        })
        .map_err(|error| device::bind_error(peer, None, &error))
    }

    /// `xenevtchn_bind_interdomain`—a port bound to one of `peer`.
    fn bind_interdomain(&self, peer: DomId, remote: Port) -> Result<Port> {
        // SAFETY: the handle is open.
        port_or_error(unsafe {
            self.library
                .xenevtchn_bind_interdomain(self.handle.as_ptr(), peer.0.into(), remote.0)
        })
        .map_err(|error| device::bind_error(peer, Some(remote), &error))
    }

    /// `xenevtchn_notify`—signals the other end.
    fn notify(&self, port: Port) -> Result<()> {
        // SAFETY: the handle is open.
        done(unsafe { self.library.xenevtchn_notify(self.handle.as_ptr(), port.0) })
            .map_err(|error| device::port_error("notify", port, &error))
    }

    /// `xenevtchn_pending`—the next pending port.
    fn pending(&self) -> Result<Option<Port>> {
        loop {
            // SAFETY: the handle is open.
            let result = unsafe { self.library.xenevtchn_pending(self.handle.as_ptr()) };
            return match port_or_error(result) {
                Ok(port) => Ok(Some(port)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(device::pending_error(&error)),
            };
        }
    }

    /// The library reads one port per call; its device returns many.
    fn pending_many(&self, ports: &mut [Port]) -> Result<usize> {
        device::read_ports(self.as_fd(), ports).map_err(|error| device::pending_error(&error))
    }

    /// As [`pending_many`](EventChannels::pending_many).
    fn unmask_many(&self, ports: &[Port]) -> Result<()> {
        device::write_ports(self.as_fd(), ports)
            .map_err(|error| Error::os(ErrorKind::Os, "cannot unmask event channels", &error))
    }

    /// `xenevtchn_unmask`—lets a port be delivered again.
    fn unmask(&self, port: Port) -> Result<()> {
        // SAFETY: the handle is open.
        done(unsafe { self.library.xenevtchn_unmask(self.handle.as_ptr(), port.0) })
            .map_err(|error| device::port_error("unmask", port, &error))
    }

    /// `xenevtchn_unbind`—closes a port.
    fn unbind(&self, port: Port) -> Result<()> {
        // SAFETY: the handle is open.
        done(unsafe { self.library.xenevtchn_unbind(self.handle.as_ptr(), port.0) })
            .map_err(|error| device::port_error("unbind", port, &error))
    }

    /// The library has no call for this; the device's ioctl does it.
    fn reset(&self) -> Result<()> {
        // SAFETY: the library's descriptor is `/dev/xen/evtchn`.
        unsafe { ioctl::evtchn_reset(self.as_fd()) }
            .map_err(|error| Error::os(ErrorKind::Os, "cannot reset event channels", &error))
    }

    /// `xenevtchn_restrict`—allows one domain only from now on.
    fn restrict(&self, peer: DomId) -> Result<()> {
        // SAFETY: the handle is open.
        done(unsafe {
            self.library
                .xenevtchn_restrict(self.handle.as_ptr(), peer.0)
        })
        .map_err(|error| device::restrict_error(peer, &error))
    }
}
