//! The three device nodes, and explanations of their errors.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::generated::uapi::{UNMAP_NOTIFY_CLEAR_BYTE, UNMAP_NOTIFY_SEND_EVENT};
use crate::grant::Access;
use crate::{DomId, Error, ErrorKind, GrantRef, Port, UnmapNotify};

/// A device node and the kernel module that makes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Device {
    pub(crate) path: &'static str,
    module: &'static str,
}

pub(crate) const GNTALLOC: Device = Device {
    path: "/dev/xen/gntalloc",
    module: "xen-gntalloc",
};
pub(crate) const GNTDEV: Device = Device {
    path: "/dev/xen/gntdev",
    module: "xen-gntdev",
};
pub(crate) const EVTCHN: Device = Device {
    path: "/dev/xen/evtchn",
    module: "xen-evtchn",
};

impl Device {
    /// Opens the node for reading and writing, close-on-exec; `flags` are added.
    pub(crate) fn open(self, flags: libc::c_int) -> Result<OwnedFd, Error> {
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags | libc::O_CLOEXEC)
            .open(self.path)
            .map(OwnedFd::from)
            .map_err(|error| self.open_error(&error))
    }

    /// Explains why the node cannot be opened.
    pub(crate) fn open_error(self, error: &io::Error) -> Error {
        let what = format!("cannot open {}", self.path);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => {
                let hint = if runs_on_xen() {
                    format!("is {0} loaded? try: modprobe {0}", self.module)
                } else {
                    "this machine does not run on Xen; use the local transport instead".to_owned()
                };
                Error::os(ErrorKind::DeviceMissing, what, error).with_hint(hint)
            }
            Some(libc::EACCES | libc::EPERM) => Error::os(ErrorKind::PermissionDenied, what, error)
                .with_hint("run as root, or give this user access to the node with a udev rule"),
            _ => Error::os(ErrorKind::Os, what, error),
        }
    }
}

/// Whether the kernel reports that it runs on Xen.
fn runs_on_xen() -> bool {
    fs::read_to_string("/sys/hypervisor/type").is_ok_and(|kind| kind.trim() == "xen")
        || Path::new("/proc/xen").join("capabilities").exists()
}

/// Explains why pages cannot be granted.
pub(crate) fn share_error(peer: DomId, pages: usize, error: &io::Error) -> Error {
    let what = format!("cannot grant {pages} pages to domain {peer}");
    match error.raw_os_error() {
        Some(libc::ENOSPC) => Error::os(ErrorKind::GrantLimit, what, error).with_hint(limit_hint()),
        _ => Error::os(ErrorKind::Os, what, error),
    }
}

fn limit_hint() -> String {
    const FILE: &str = "/sys/module/xen_gntalloc/parameters/limit";
    match fs::read_to_string(FILE) {
        Ok(limit) => format!(
            "gntalloc limit reached (limit={} pages per kernel, see {FILE}), or the grant table \
             is full: ask for smaller rings, close channels, or raise the limit",
            limit.trim()
        ),
        Err(_) => format!(
            "the kernel's limit of granted pages is reached (see {FILE}): ask for smaller rings \
             or close channels"
        ),
    }
}

/// Explains why references cannot be mapped.
pub(crate) fn map_error(
    owner: DomId,
    refs: &[GrantRef],
    access: Access,
    error: &io::Error,
) -> Error {
    let first = refs.first().map_or(0, |gref| gref.0);
    let mode = match access {
        Access::ReadOnly => "read-only",
        Access::ReadWrite => "read-write",
    };
    let what = format!(
        "cannot map {} grants of domain {owner} {mode} (first reference {first})",
        refs.len()
    );
    match error.raw_os_error() {
        // Linux returns EINVAL for each refusal of Xen, whatever Xen's own code was.
        Some(libc::EINVAL | libc::EPERM | libc::EACCES) => {
            Error::os(ErrorKind::MapRefused, what, error).with_hint(
                "Xen refused: the references are stale, wrong, read-only or not granted to this \
                 domain; or this is a guest whose host has max_maptrack_frames=0 or the SILO \
                 policy (XCP-ng has both: there only dom0 can map, so let the guest grant)",
            )
        }
        Some(libc::EAGAIN) => Error::os(ErrorKind::TimedOut, what, error)
            .with_hint("the owner's page stayed paged out until the deadline"),
        _ => Error::os(ErrorKind::Os, what, error),
    }
}

/// Explains why an unmap notification cannot be set up.
pub(crate) fn notify_error(notify: UnmapNotify, error: &io::Error) -> Error {
    let what = match notify.send_event {
        Some(port) => format!("cannot set an unmap notification with port {port}"),
        None => "cannot set an unmap notification".to_owned(),
    };
    Error::os(ErrorKind::Os, what, error)
        .with_hint("the port must be bound by a process of this kernel that has it open")
}

/// Explains why a port cannot be bound.
pub(crate) fn bind_error(peer: DomId, remote: Option<Port>, error: &io::Error) -> Error {
    let what = match remote {
        Some(port) => format!("cannot bind to event channel {port} of domain {peer}"),
        None => format!("cannot allocate an event channel for domain {peer}"),
    };
    let hint = match error.raw_os_error() {
        Some(libc::ESRCH) => "no such domain: is it still running? (xl list)",
        Some(libc::EPERM) => {
            "Xen's security policy forbids it (with SILO, as on XCP-ng, guests reach dom0 only)"
        }
        Some(libc::EACCES) => "this descriptor is restricted to another domain",
        Some(libc::ENOSPC) => "no free event channel: close some (limit max_event_channels)",
        Some(libc::EINVAL) if remote.is_some() => {
            "that port does not wait for this domain: another client has it, or it is stale"
        }
        _ => return Error::os(ErrorKind::Os, what, error),
    };
    Error::os(ErrorKind::BindRefused, what, error).with_hint(hint)
}

/// Explains why an operation on a bound port failed.
pub(crate) fn port_error(operation: &str, port: Port, error: &io::Error) -> Error {
    Error::os(
        ErrorKind::Os,
        format!("cannot {operation} event channel {port}"),
        error,
    )
}

/// Most ports that one system call transfers.
const PORTS: usize = 64;

/// Reads pending ports of `/dev/xen/evtchn`, which masks them, into the start of `ports`.
pub(crate) fn read_ports(fd: BorrowedFd<'_>, ports: &mut [Port]) -> io::Result<usize> {
    let mut numbers = [0u32; PORTS];
    let room = ports.len().min(PORTS);
    loop {
        // SAFETY: `numbers` has room for `room` whole ports, which is all the device writes.
        let length = unsafe {
            libc::read(
                fd.as_raw_fd(),
                numbers.as_mut_ptr().cast(),
                room * size_of::<u32>(),
            )
        };
        if let Ok(length) = usize::try_from(length) {
            let count = length / size_of::<u32>();
            for (place, &number) in ports.iter_mut().zip(&numbers[..count]) {
                *place = Port(number);
            }
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => return Ok(0),
            _ => return Err(error),
        }
    }
}

/// Writes `ports` to `/dev/xen/evtchn`, which unmasks them.
pub(crate) fn write_ports(fd: BorrowedFd<'_>, mut ports: &[Port]) -> io::Result<()> {
    let mut numbers = [0u32; PORTS];
    while !ports.is_empty() {
        let count = ports.len().min(PORTS);
        for (number, port) in numbers.iter_mut().zip(ports) {
            *number = port.0;
        }
        // SAFETY: `numbers` holds `count` ports.
        let length = unsafe {
            libc::write(
                fd.as_raw_fd(),
                numbers.as_ptr().cast(),
                count * size_of::<u32>(),
            )
        };
        match usize::try_from(length) {
            // Unmasking twice is harmless: whole ports were taken, at least one.
            Ok(length) => ports = &ports[(length / size_of::<u32>()).clamp(1, count)..],
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Explains why the next pending port cannot be read.
pub(crate) fn pending_error(error: &io::Error) -> Error {
    let what = "cannot read pending event channels";
    match error.raw_os_error() {
        Some(libc::EFBIG) => Error::os(ErrorKind::EventsLost, what, error)
            .with_hint("events came faster than they were read; reset, then look at every port"),
        _ => Error::os(ErrorKind::Os, what, error),
    }
}

/// Explains why a descriptor cannot be restricted to a domain.
pub(crate) fn restrict_error(peer: DomId, error: &io::Error) -> Error {
    let what = format!("cannot restrict event channels to domain {peer}");
    let error = Error::os(ErrorKind::Os, what, error);
    match error.errno() {
        Some(libc::EINVAL) if peer.0 == 0 => error.with_hint("Linux does not restrict to domain 0"),
        _ => error,
    }
}

/// The kernel's action bits of a notification.
pub(crate) fn notify_action(notify: UnmapNotify) -> u32 {
    let clear = if notify.clear_byte.is_some() {
        UNMAP_NOTIFY_CLEAR_BYTE
    } else {
        0
    };
    let send = if notify.send_event.is_some() {
        UNMAP_NOTIFY_SEND_EVENT
    } else {
        0
    };
    clear | send
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enospc_names_the_limit() {
        let error = share_error(DomId(0), 513, &io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(error.kind(), ErrorKind::GrantLimit);
        assert!(
            error
                .hint()
                .is_some_and(|hint| hint.contains("parameters/limit"))
        );
    }

    #[test]
    fn einval_on_map_names_all_causes() {
        let refs = [GrantRef(8)];
        let error = io::Error::from_raw_os_error(libc::EINVAL);
        let error = map_error(DomId(3), &refs, Access::ReadOnly, &error);
        assert_eq!(error.kind(), ErrorKind::MapRefused);
        let hint = error.hint().unwrap_or_default();
        assert!(hint.contains("max_maptrack_frames=0") && hint.contains("SILO"));
        assert!(error.to_string().contains("first reference 8"));
    }

    /// docs/threat-model.md, case 22.
    #[test]
    fn case_22_an_overflow_is_told_from_other_errors() {
        let read = |code| pending_error(&io::Error::from_raw_os_error(code)).kind();
        assert_eq!(read(libc::EFBIG), ErrorKind::EventsLost);
        assert_eq!(read(libc::EIO), ErrorKind::Os);
    }

    #[test]
    fn action_bits() {
        let both = UnmapNotify {
            clear_byte: Some(21),
            send_event: Some(Port(3)),
        };
        assert_eq!(notify_action(both), 3);
        assert_eq!(
            notify_action(UnmapNotify {
                clear_byte: Some(0),
                send_event: None
            }),
            1
        );
        assert_eq!(notify_action(UnmapNotify::default()), 0);
    }
}
