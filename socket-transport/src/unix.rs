//! From a path to a connected socket.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::error::ConnectError;
use crate::transport::SocketTransport;

/// Interval at which a listener with a full queue is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// Connects to the mediator's Unix socket at `path`, until `deadline` at the latest. `interrupted`
/// is called now and then; the attempt ends once it returns true.
///
/// # Errors
/// Nobody listens there, nobody accepts the connection in time, or this user may not connect.
pub fn connect_unix(
    path: &Path,
    deadline: Instant,
    interrupted: &dyn Fn() -> bool,
) -> Result<SocketTransport, ConnectError> {
    let scheme = "unix";
    let stream = connect_unix_stream(scheme, path, deadline, interrupted)?;
    SocketTransport::connected_unix(stream, format!("{scheme}:{}", path.display()))
        .map_err(|error| ConnectError::new(error.to_string(), "look at the system's log"))
}

/// As [`connect_unix`], but returns the bare, non-blocking stream. `scheme` is that of the
/// endpoint, for the advice when nobody listens: a mediator listens at a path for one kind of
/// session.
///
/// # Errors
/// As [`connect_unix`].
pub fn connect_unix_stream(
    scheme: &str,
    path: &Path,
    deadline: Instant,
    interrupted: &dyn Fn() -> bool,
) -> Result<UnixStream, ConnectError> {
    match open(path, deadline, interrupted) {
        Ok(stream) => Ok(stream),
        Err(Errno::EINTR) => Err(ConnectError::interrupted()),
        Err(errno) => Err(refused(scheme, path, errno)),
    }
}

/// As [`connect_unix_stream`], for sockets that are not a mediator's endpoint and need other error
/// messages.
///
/// # Errors
/// The system's error; of kind [`io::ErrorKind::WouldBlock`] when the listener's queue was full
/// until `deadline`.
pub fn dial_unix(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    Ok(open(path, deadline, &|| false)?)
}

/// Connects without blocking: a blocking `connect` to a listener whose queue is full would wait for
/// ever. `EINTR` means that `interrupted` returned true.
fn open(
    path: &Path,
    deadline: Instant,
    interrupted: &dyn Fn() -> bool,
) -> Result<UnixStream, Errno> {
    let address = UnixAddr::new(path)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    loop {
        let now = Instant::now();
        match connect(fd.as_raw_fd(), &address) {
            Ok(()) => return Ok(UnixStream::from(fd)),
            Err(Errno::EAGAIN | Errno::EINTR) if now < deadline => {
                if interrupted() {
                    return Err(Errno::EINTR);
                }
                thread::sleep(RETRY.min(deadline - now));
            }
            Err(errno) => return Err(errno),
        }
    }
}

fn refused(scheme: &str, full_path: &Path, errno: Errno) -> ConnectError {
    let path = full_path.display();
    let start = format!("start one: vgpu-mediatord --listen {scheme}:{path}");
    // For anything other than a socket the kernel's error is the same as when nobody listens.
    let found = || fs::metadata(full_path).ok().map(|found| found.file_type());
    match errno {
        Errno::ECONNREFUSED if found().is_some_and(|kind| kind.is_dir()) => ConnectError::new(
            format!("{path} is a directory"),
            format!(
                "{scheme}: takes the path of the mediator's socket; a directory that the mediator \
                 serves is file:{path}"
            ),
        ),
        Errno::ECONNREFUSED if found().is_some_and(|kind| !kind.is_socket()) => {
            ConnectError::new(format!("{path} is not a mediator's socket"), start)
        }
        Errno::ENOENT => ConnectError::new(format!("no mediator listens at {path}"), start),
        Errno::ECONNREFUSED => ConnectError::new(
            format!("the mediator that made {path} is not running any more"),
            start,
        ),
        Errno::EACCES | Errno::EPERM => ConnectError::new(
            format!("no permission to connect to {path}"),
            "run as the mediator's user or as root, or start it with --allow-all",
        ),
        Errno::EAGAIN => ConnectError::new(
            format!("the mediator at {path} takes no connections"),
            "look whether it is busy or stopped (vgpuctl status)",
        ),
        Errno::ENAMETOOLONG => ConnectError::new(
            format!("{path} is too long for a socket"),
            "use a path of at most 107 bytes",
        ),
        Errno::EPROTOTYPE | Errno::ENOTSOCK => {
            ConnectError::new(format!("{path} is not a mediator's socket"), start)
        }
        errno => ConnectError::new(format!("cannot connect to {path}: {}", errno.desc()), start),
    }
}
