//! The way to xenstored: its socket, or the kernel's device `/dev/xen/xenbus`.
//!
//! xenstore-rs tries the socket and, whatever went wrong there, takes the device. Where xenstored
//! has a socket (dom0) that is a trap: the kernel asks the same xenstored, and when that is dead, a
//! watch asked for through the device waits in the kernel for ever, and neither an end of `main`
//! nor SIGKILL ends a process with a thread that waits so. Therefore this file decides, for both
//! of xenstore-rs' clients: a socket that is there, or was there earlier in this process, is the
//! only way, and an error on it is an error. Without a socket (a guest; a xenstored in a domain of
//! its own) the device is the only way.
//!
//! xenstore-rs cannot be told which to take, nor says which it took. So the socket is connected to
//! here first, and afterwards the kernel is asked whether xenstore-rs opened the device, which it
//! does when xenstored dies, or has no room for one more to connect, between the two.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tokio::net::UnixStream;
use xenstore_rs::AsyncXs;
use xenstore_rs::tokio::XsTokio;
use xenstore_rs::unix::XsUnix;

/// Where xenstored's socket is, unless `XENSTORED_PATH` says otherwise. As in xenstore-rs.
const SOCKET: &str = "/run/xenstored/socket";

/// What xenstore-rs opens where it finds no socket.
const DEVICE: &str = "/dev/xen/xenbus";

/// How often a connection is tried while xenstored has no room for one more.
const TRIES: u32 = 100;

/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// How long xenstored may take to answer through the device before a watch is asked for there.
const DEVICE_ANSWER: Duration = Duration::from_secs(5);

/// Whether this process was ever connected to the socket.
static SOCKET_SEEN: AtomicBool = AtomicBool::new(false);

/// Connects for requests that are made one after the other.
///
/// # Errors
/// There is neither a socket nor a device, or there is a socket and nobody answers.
pub(super) fn for_requests() -> io::Result<XsUnix> {
    for _ in 0..TRIES {
        let socket = std::os::unix::net::UnixStream::connect(socket_path());
        let Some(_held) = decide(socket)? else {
            return XsUnix::new();
        };
        let before = devices_open();
        // An error is the device's, which the next look at the socket explains.
        if let Ok(xenstore) = XsUnix::new()
            && devices_open() <= before
        {
            return Ok(xenstore);
        }
        thread::sleep(PAUSE);
    }
    Err(no_room())
}

/// Connects for watches. The other value tells when xenstored has gone away, which xenstore-rs does
/// not tell those who wait for events.
///
/// # Errors
/// There is neither a socket nor a device, or there is one and nobody answers.
pub async fn for_watches() -> io::Result<(XsTokio, Presence)> {
    for _ in 0..TRIES {
        match UnixStream::connect(socket_path()).await {
            // The queue of those who wait to be accepted is short, and a task does not wait there.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            socket => {
                let Some(held) = decide(socket)? else {
                    return Ok((through_device().await?, Presence(None)));
                };
                let before = devices_open();
                if let Ok(xenstore) = XsTokio::new().await
                    && devices_open() <= before
                {
                    return Ok((xenstore, Presence(Some(held))));
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(no_room())
}

/// The device, once xenstored has answered a request there: one for a node can be given up, one for
/// a watch cannot.
async fn through_device() -> io::Result<XsTokio> {
    let xenstore = XsTokio::new().await?;
    match tokio::time::timeout(DEVICE_ANSWER, xenstore.read("domid")).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Err(error),
        // Whether there is such a node does not matter.
        Ok(_) => Ok(xenstore),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no xenstored answers through {DEVICE}"),
        )),
    }
}

/// xenstored, as far as it can be seen to be there.
#[derive(Debug)]
pub struct Presence(Option<UnixStream>);

impl Presence {
    /// Waits until xenstored hangs up. Through the device nothing of that can be seen, and this
    /// waits for ever.
    pub async fn ended(&self) {
        let Some(socket) = &self.0 else {
            return std::future::pending().await;
        };
        // Nothing is ever asked on this connection.
        while socket.readable().await.is_ok() {
            match socket.try_read(&mut [0; 16]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(1..) => {}
                Ok(0) | Err(_) => return,
            }
        }
    }
}

fn socket_path() -> PathBuf {
    // xenstore-rs looks at text only.
    env::var("XENSTORED_PATH").map_or_else(|_| SOCKET.into(), PathBuf::from)
}

/// Takes the outcome of a connect to the socket: the connection, or `None` for the device.
fn decide<S>(socket: io::Result<S>) -> io::Result<Option<S>> {
    // Relaxed: it only ever becomes true, and a thread knows of its own connections.
    let way = choose(socket, SOCKET_SEEN.load(Ordering::Relaxed), &socket_path())?;
    if way.is_some() {
        SOCKET_SEEN.store(true, Ordering::Relaxed);
    }
    Ok(way)
}

/// The rule. `seen` is whether there was a socket before.
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
            // Not "not found" when it was there before: something has ended, nothing is missing.
            let kind = match error.kind() {
                NotFound | NotADirectory => io::ErrorKind::ConnectionRefused,
                kind => kind,
            };
            Err(io::Error::new(kind, text))
        }
    }
}

/// How many descriptors of this process lead to the device; 0 where that cannot be seen.
fn devices_open() -> usize {
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else {
        return 0;
    };
    descriptors
        .flatten()
        .filter(|entry| fs::read_link(entry.path()).is_ok_and(|path| path == Path::new(DEVICE)))
        .count()
}

fn no_room() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionRefused,
        format!("xenstored accepts nobody at {}", socket_path().display()),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    /// vchan.md (c) 42: the socket of a dead xenstored stays, and refuses.
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
        // Taken away by whoever ended xenstored.
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
