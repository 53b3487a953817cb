//! `local:PATH`: a mediator on the same machine.
//!
//! As on Xen, the guest provides the memory: it connects to the mediator's socket, takes the vchan
//! server role, and sends the memfd over the socket.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use vchan::RingSizes;
use vgpu_protocol::transport::Transport;

use super::unreachable;
use crate::error::Cause;
use crate::options::Options;

/// How often a mediator whose queue of connections is full is asked again.
const RETRY: Duration = Duration::from_millis(20);

pub(super) fn open(
    path: &Path,
    options: &Options,
    deadline: Instant,
) -> Result<Box<dyn Transport>, Cause> {
    let stream = connect_socket(path, options, deadline)?;
    let rings = options
        .ring_bytes
        .map_or(RingSizes::DEFAULT, RingSizes::from);
    let channel = vchan::local::serve_on(stream, rings, deadline)
        .map_err(|error| unreachable(error.to_string(), error.advice()))?;
    Ok(Box::new(channel))
}

/// Connects without blocking: a connect to a socket whose queue is full would wait for ever.
fn connect_socket(path: &Path, options: &Options, deadline: Instant) -> Result<UnixStream, Cause> {
    let address = UnixAddr::new(path).map_err(|errno| refused(path, errno))?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|errno| refused(path, errno))?;
    loop {
        match connect(fd.as_raw_fd(), &address) {
            Ok(()) => break,
            Err(Errno::EAGAIN | Errno::EINTR) if Instant::now() < deadline => {
                if options.interrupted() {
                    return Err(Cause::Interrupted);
                }
                thread::sleep(RETRY);
            }
            Err(errno) => return Err(refused(path, errno)),
        }
    }
    let stream = UnixStream::from(fd);
    stream
        .set_nonblocking(false)
        .map_err(|error| unreachable(error.to_string(), "look at the system's log"))?;
    Ok(stream)
}

fn refused(path: &Path, errno: Errno) -> Cause {
    let path = path.display();
    let start = format!("start one: vgpu-mediatord --listen local:{path}");
    match errno {
        Errno::ENOENT => unreachable(format!("no mediator listens at {path}"), start),
        Errno::ECONNREFUSED => unreachable(
            format!("the mediator that made {path} is not running any more"),
            start,
        ),
        Errno::EACCES | Errno::EPERM => unreachable(
            format!("no permission to connect to {path}"),
            "run as the mediator's user or as root, or start it with --allow-all",
        ),
        Errno::EAGAIN => unreachable(
            format!("the mediator at {path} takes no connections"),
            "look whether it is busy or stopped (vgpuctl status)",
        ),
        Errno::ENAMETOOLONG => unreachable(
            format!("{path} is too long for a socket"),
            "use a path of at most 107 bytes",
        ),
        Errno::EPROTOTYPE | Errno::ENOTSOCK => {
            unreachable(format!("{path} is not a mediator's socket"), start)
        }
        errno => unreachable(format!("cannot connect to {path}: {}", errno.desc()), start),
    }
}
