//! The way to xenstored: its socket, or the kernel's device `/dev/xen/xenbus`.
//!
//! Where xenstored has a socket (dom0) the device is a trap: the kernel asks the same xenstored,
//! and when that is dead, a watch requested through the device waits in the kernel for ever.
//! Neither the end of `main` nor SIGKILL ends a process with a thread in such a wait. So a socket
//! that is there, or was there earlier in this process, is the only way, and an error on it is an
//! error. Without a socket (a guest; a xenstored in a domain of its own) the device is the only
//! way.

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Default path of xenstored's socket; `XENSTORED_PATH` overrides it, as for Xen's own tools.
const SOCKET: &str = "/run/xenstored/socket";

/// The kernel's way to xenstored.
pub(super) const DEVICE: &str = "/dev/xen/xenbus";

/// Pause between two tries to connect while xenstored has no room for one more.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Time for xenstored to answer through the device before a watch is requested there.
pub(super) const DEVICE_ANSWER: Duration = Duration::from_secs(5);

/// Whether this process was ever connected to the socket.
static SOCKET_SEEN: AtomicBool = AtomicBool::new(false);

pub(super) fn socket_path() -> PathBuf {
    env::var("XENSTORED_PATH").map_or_else(|_| SOCKET.into(), PathBuf::from)
}

/// Takes the outcome of a connect to the socket: the connection, or `None` for the device.
///
/// # Errors
/// There is a socket, or was one, and it does not answer.
pub(super) fn decide<S>(socket: io::Result<S>) -> io::Result<Option<S>> {
    // Relaxed: it only ever becomes true, and a thread knows of its own connections.
    let way = choose(socket, SOCKET_SEEN.load(Ordering::Relaxed), &socket_path())?;
    if way.is_some() {
        SOCKET_SEEN.store(true, Ordering::Relaxed);
    }
    Ok(way)
}

/// The rule for the route. `seen`: there was a socket before.
fn choose<S>(socket: io::Result<S>, seen: bool, path: &Path) -> io::Result<Option<S>> {
    use io::ErrorKind::{NotADirectory, NotFound};
    match socket {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if !seen && matches!(error.kind(), NotFound | NotADirectory) => Ok(None),
        Err(error) => {
            let why = match error.kind() {
                io::ErrorKind::PermissionDenied => "this user may not open",
                _ => "nobody answers at",
            };
            let text = format!("{why} xenstored's socket {}: {error}", path.display());
            // Not "not found" if it was there before: something has ended, nothing is missing.
            let kind = match error.kind() {
                NotFound | NotADirectory => io::ErrorKind::ConnectionRefused,
                kind => kind,
            };
            Err(io::Error::new(kind, text))
        }
    }
}

/// The error for a xenstored that accepts no further connection.
pub(super) fn no_room() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionRefused,
        format!("xenstored accepts nobody at {}", socket_path().display()),
    )
}

/// The error for a device through which nothing has answered.
pub(super) fn no_answer() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("no xenstored answers through {DEVICE}"),
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    /// Threat model case 42: the socket of a dead xenstored stays, and refuses.
    #[test]
    fn case_42_a_socket_that_refuses_is_no_reason_for_the_device() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let connect = || UnixStream::connect(&path);
        // Never there: a guest.
        assert!(matches!(choose(connect(), false, &path), Ok(None)));
        let listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(choose(connect(), false, &path), Ok(Some(_))));
        drop(listener);
        for seen in [false, true] {
            let error = choose(connect(), seen, &path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            assert!(
                error.to_string().contains(path.to_str().unwrap()),
                "{error}"
            );
        }
        // Removed by whoever ended xenstored.
        fs::remove_file(&path).unwrap();
        let error = choose(connect(), true, &path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_socket_that_may_not_be_used_is_there() {
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let error = choose::<()>(Err(denied()), false, Path::new("/s")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("may not open"), "{error}");
        let below_a_file = UnixStream::connect("/dev/null/socket");
        assert!(matches!(
            choose(below_a_file, false, Path::new("/s")),
            Ok(None)
        ));
    }
}
