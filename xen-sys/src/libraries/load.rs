//! Loading the libraries, and the logger that keeps them quiet.

use std::os::fd::RawFd;
use std::sync::OnceLock;
use std::{ffi, io};

use crate::generated::ctrl::LibXenCtrl;
use crate::generated::evtchn::LibXenEvtchn;
use crate::generated::gnttab::LibXenGnttab;
use crate::generated::toollog::{__va_list_tag, xentoollog_level, xentoollog_logger};
use crate::{Error, ErrorKind, Result};

const GNTTAB: &str = "libxengnttab.so.1";
const EVTCHN: &str = "libxenevtchn.so.1";

/// Xen releases whose libxenctrl is tried. Its soname is the release, and it works with that
/// release's hypervisor only, so a machine has one of them.
const CTRL_RELEASES: &[&str] = &[
    "4.17", "4.13", "4.14", "4.15", "4.16", "4.18", "4.19", "4.20", "4.21",
];

/// libxengnttab: granting and mapping.
pub(super) fn gnttab() -> Result<&'static LibXenGnttab> {
    static LIBRARY: OnceLock<Result<LibXenGnttab>> = OnceLock::new();
    // SAFETY: loading runs the library's constructors, of which Xen's libraries have none.
    loaded(
        LIBRARY
            .get_or_init(|| unsafe { LibXenGnttab::new(GNTTAB) }.map_err(|e| missing(GNTTAB, &e))),
    )
}

/// libxenevtchn: event channels.
pub(super) fn evtchn() -> Result<&'static LibXenEvtchn> {
    static LIBRARY: OnceLock<Result<LibXenEvtchn>> = OnceLock::new();
    // SAFETY: as in `gnttab`.
    loaded(
        LIBRARY
            .get_or_init(|| unsafe { LibXenEvtchn::new(EVTCHN) }.map_err(|e| missing(EVTCHN, &e))),
    )
}

/// libxenctrl and its Xen release.
pub(super) fn ctrl() -> Result<&'static (LibXenCtrl, &'static str)> {
    static LIBRARY: OnceLock<Result<(LibXenCtrl, &'static str)>> = OnceLock::new();
    loaded(LIBRARY.get_or_init(|| {
        let mut first = None;
        for &release in CTRL_RELEASES {
            let soname = format!("libxenctrl.so.{release}");
            // SAFETY: as in `gnttab`.
            match unsafe { LibXenCtrl::new(&soname) } {
                Ok(library) => return Ok((library, release)),
                Err(error) => first = first.or(Some(error)),
            }
        }
        let what = format!("cannot load libxenctrl of Xen {}", CTRL_RELEASES.join(", "));
        let reason = first.map_or_else(String::new, |error| format!(" ({error})"));
        Err(Error::new(ErrorKind::LibraryMissing, what + &reason)
            .with_hint("it is optional; Debian has it in libxenmisc4.17, XCP-ng in xen-libs"))
    }))
}

fn loaded<T>(library: &Result<T>) -> Result<&T> {
    library.as_ref().map_err(Error::clone)
}

fn missing(soname: &str, error: &libloading::Error) -> Error {
    Error::new(
        ErrorKind::LibraryMissing,
        format!("cannot load {soname} ({error})"),
    )
    .with_hint(
        "install it (Debian: libxengnttab1 and libxenevtchn1; XCP-ng: xen-libs), or set \
         XEN_SYS_PROVIDER=ioctls",
    )
}

/// A logger that discards everything: the libraries would print to stderr what our errors report.
pub(super) fn quiet() -> *mut xentoollog_logger {
    unsafe extern "C" fn vmessage(
        _logger: *mut xentoollog_logger,
        _level: xentoollog_level,
        _errno: ffi::c_int,
        _context: *const ffi::c_char,
        _format: *const ffi::c_char,
        _arguments: *mut __va_list_tag,
    ) {
    }
    unsafe extern "C" fn destroy(_logger: *mut xentoollog_logger) {}

    static QUIET: xentoollog_logger = xentoollog_logger {
        vmessage: Some(vmessage),
        progress: None,
        destroy: Some(destroy),
    };
    // The libraries only call through the logger, and never write to it.
    (&raw const QUIET).cast_mut()
}

/// `fcntl`—adds descriptor flags (close-on-exec) and status flags (non-blocking), which not every
/// release of the libraries sets.
pub(super) fn add_flags(fd: RawFd, status: ffi::c_int) -> io::Result<()> {
    let fcntl = |command, argument: ffi::c_int| {
        // SAFETY: the commands below take and give integers only.
        match unsafe { libc::fcntl(fd, command, argument) } {
            -1 => Err(io::Error::last_os_error()),
            value => Ok(value),
        }
    };
    fcntl(libc::F_SETFD, fcntl(libc::F_GETFD, 0)? | libc::FD_CLOEXEC)?;
    fcntl(libc::F_SETFL, fcntl(libc::F_GETFL, 0)? | status)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_an_error() {
        // SAFETY: no such library exists, so no code runs.
        let error = unsafe { LibXenGnttab::new("libxengnttab.so.0") }
            .map(|_| ())
            .unwrap_err();
        let error = missing("libxengnttab.so.0", &error);
        assert_eq!(error.kind(), ErrorKind::LibraryMissing);
        assert!(error.hint().is_some_and(|hint| hint.contains("ioctls")));
    }

    #[test]
    fn a_library_without_the_symbols_is_an_error() {
        // SAFETY: libc is loaded already.
        let result = unsafe { LibXenEvtchn::new("libc.so.6") };
        assert!(result.is_err(), "libc has no event channels");
    }

    #[test]
    fn loading_never_panics() {
        for result in [
            gnttab().map(|_| ()),
            evtchn().map(|_| ()),
            ctrl().map(|_| ()),
        ] {
            if let Err(error) = result {
                assert_eq!(error.kind(), ErrorKind::LibraryMissing, "{error}");
            }
        }
    }
}
