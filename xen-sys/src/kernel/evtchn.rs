//! Event channels through `/dev/xen/evtchn`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use crate::device::{self, EVTCHN};
use crate::evtchn::{EventChannels, Port};
use crate::{DomId, Error, ErrorKind, Result, ioctl};

/// An open `/dev/xen/evtchn`.
#[derive(Debug)]
pub(crate) struct Evtchn {
    device: File,
}

impl Evtchn {
    pub(crate) fn open() -> Result<Self> {
        Ok(Self {
            device: File::from(EVTCHN.open(libc::O_NONBLOCK)?),
        })
    }
}

impl AsFd for Evtchn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl EventChannels for Evtchn {
    fn provider(&self) -> &str {
        EVTCHN.path
    }

    fn bind_unbound(&self, peer: DomId) -> Result<Port> {
        // SAFETY: the descriptor is evtchn.
        unsafe { ioctl::evtchn_bind_unbound(self.as_fd(), peer) }
            .map_err(|error| device::bind_error(peer, None, &error))
    }

    fn bind_interdomain(&self, peer: DomId, remote: Port) -> Result<Port> {
        // SAFETY: the descriptor is evtchn.
        unsafe { ioctl::evtchn_bind_interdomain(self.as_fd(), peer, remote) }
            .map_err(|error| device::bind_error(peer, Some(remote), &error))
    }

    fn notify(&self, port: Port) -> Result<()> {
        // SAFETY: the descriptor is evtchn.
        unsafe { ioctl::evtchn_notify(self.as_fd(), port) }
            .map_err(|error| device::port_error("notify", port, &error))
    }

    fn pending(&self) -> Result<Option<Port>> {
        // The device returns whole ports, as many as fit: room for one returns one.
        let mut port = [0; size_of::<u32>()];
        loop {
            return match (&self.device).read(&mut port) {
                Ok(length) if length == port.len() => Ok(Some(Port(u32::from_ne_bytes(port)))),
                Ok(_) => Ok(None),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(device::pending_error(&error)),
            };
        }
    }

    fn pending_many(&self, ports: &mut [Port]) -> Result<usize> {
        device::read_ports(self.as_fd(), ports).map_err(|error| device::pending_error(&error))
    }

    fn unmask_many(&self, ports: &[Port]) -> Result<()> {
        device::write_ports(self.as_fd(), ports)
            .map_err(|error| Error::os(ErrorKind::Os, "cannot unmask event channels", &error))
    }

    fn unmask(&self, port: Port) -> Result<()> {
        // Writing a port to the device unmasks it.
        (&self.device)
            .write_all(&port.0.to_ne_bytes())
            .map_err(|error| device::port_error("unmask", port, &error))
    }

    fn unbind(&self, port: Port) -> Result<()> {
        // SAFETY: the descriptor is evtchn.
        unsafe { ioctl::evtchn_unbind(self.as_fd(), port) }
            .map_err(|error| device::port_error("unbind", port, &error))
    }

    fn reset(&self) -> Result<()> {
        // SAFETY: the descriptor is evtchn.
        unsafe { ioctl::evtchn_reset(self.as_fd()) }
            .map_err(|error| Error::os(ErrorKind::Os, "cannot reset event channels", &error))
    }

    fn restrict(&self, peer: DomId) -> Result<()> {
        // SAFETY: the descriptor is evtchn.
        unsafe { ioctl::evtchn_restrict(self.as_fd(), peer) }
            .map_err(|error| device::restrict_error(peer, &error))
    }
}
