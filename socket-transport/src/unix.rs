//! From a path to a connected socket.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::error::ConnectError;
use crate::transport::SocketTransport;

/// How often a listener whose queue is full is asked again.
const RETRY: Duration = Duration::from_millis(20);

/// Connects to the mediator's Unix socket at `path`, until `deadline` at the latest. `interrupted` is
/// asked now and then whether to give up.
///
/// # Errors
/// Nobody listens there, nobody takes the connection in time, or it may not be made.
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

/// As [`connect_unix`], the bare stream, whose reads and writes do not block. `scheme` is that of the
/// endpoint, for what to do when nobody listens: a mediator listens at a path for one kind of
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
    let refused = |errno| refused(scheme, path, errno);
    let address = UnixAddr::new(path).map_err(refused)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(refused)?;
    // A blocking connect to a listener whose queue is full would wait for ever.
    loop {
        match connect(fd.as_raw_fd(), &address) {
            Ok(()) => return Ok(UnixStream::from(fd)),
            Err(Errno::EAGAIN | Errno::EINTR) if Instant::now() < deadline => {
                if interrupted() {
                    return Err(ConnectError::interrupted());
                }
                thread::sleep(RETRY);
            }
            Err(errno) => return Err(refused(errno)),
        }
    }
}

fn refused(scheme: &str, path: &Path, errno: Errno) -> ConnectError {
    let path = path.display();
    let start = format!("start one: vgpu-mediatord --listen {scheme}:{path}");
    match errno {
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
