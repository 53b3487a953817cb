//! The crate xen-sys, with this crate's errors and names.

use std::io;

use xen_sys::{ErrorKind, EventChannels, GrantMap, GrantShare, Provider};

use crate::DomId;
use crate::error::{Error, Result};

pub(super) fn grant_share() -> Result<Box<dyn GrantShare>> {
    provider()?.open_grant_share().map_err(error)
}

pub(super) fn grant_map() -> Result<Box<dyn GrantMap>> {
    provider()?.open_grant_map().map_err(error)
}

pub(super) fn event_channels() -> Result<Box<dyn EventChannels>> {
    provider()?.open_event_channels().map_err(error)
}

fn provider() -> Result<Provider> {
    Provider::from_env().map_err(error)
}

pub(super) fn domain(domain: DomId) -> xen_sys::DomId {
    xen_sys::DomId(domain.0)
}

impl From<xen_sys::Error> for Error {
    fn from(error: xen_sys::Error) -> Self {
        self::error(error)
    }
}

/// Converts an error, with advice that fits a channel.
pub(super) fn error(error: xen_sys::Error) -> Error {
    let advice = match (error.kind(), error.errno()) {
        (ErrorKind::BindRefused, Some(libc::EPERM | libc::EACCES)) => {
            "Xen's policy forbids it: on XCP-ng (SILO) a guest may talk to dom0 only, so let the \
             guest serve and dom0 connect"
        }
        (ErrorKind::BindRefused, _) => {
            "the keys are stale, or another client is connected already: start the server again"
        }
        (ErrorKind::MapRefused, _) => {
            "the keys are stale, or this domain may map nothing (max_maptrack_frames=0, as on \
             XCP-ng: then let the guest serve and dom0 connect); `xl dmesg` has Xen's reason"
        }
        (ErrorKind::GrantLimit, _) => {
            "ask for smaller rings, close other channels, or raise \
             /sys/module/xen_gntalloc/parameters/limit (pages)"
        }
        (ErrorKind::DeviceMissing, _) => {
            "this needs Xen, and its kernel modules: modprobe -a xen-evtchn xen-gntalloc \
             xen-gntdev; without Xen use --backend local"
        }
        (ErrorKind::PermissionDenied, _) => "run as root, or give this user access to /dev/xen/*",
        _ => error
            .hint()
            .unwrap_or("look at the kernel's log (dmesg) for the reason"),
    };
    let source = match error.errno() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::from(error.clone()),
    };
    let advice = advice.to_owned();
    Error::Os {
        context: error.what().to_owned(),
        advice,
        source,
    }
}

/// Whether a channel with fewer pages could be set up instead.
pub(super) fn is_grant_limit(error: &Error) -> bool {
    matches!(error, Error::Os { source, .. } if source.raw_os_error() == Some(libc::ENOSPC))
}

/// Whether the error is one to which the keys of a dead server lead.
pub(super) fn names_a_missing_server(error: &xen_sys::Error) -> bool {
    match error.kind() {
        ErrorKind::BindRefused => !matches!(
            error.errno(),
            Some(libc::EPERM | libc::EACCES | libc::ENOSPC)
        ),
        ErrorKind::MapRefused => true,
        _ => false,
    }
}
