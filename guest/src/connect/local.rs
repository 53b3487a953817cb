//! `local:PATH`: a mediator on the same machine.
//!
//! As on Xen, the guest provides the memory: it connects to the mediator's socket, takes the vchan
//! server role, and sends the memfd over the socket.

use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use vchan::{Channel, RingSizes};
use vgpu_protocol::transport::Transport;

use super::unreachable;
use crate::error::Cause;
use crate::options::Options;

/// Bytes of each ring: more than over Xen, where pages are scarce. A memfd costs only its memory,
/// and the longer the ring the less often either side waits for the other.
const RING_BYTES: usize = 1 << 20;

/// How often a mediator whose queue of connections is full is asked again, and how often a wait
/// looks whether the program was told to stop.
const RETRY: Duration = Duration::from_millis(20);

pub(super) fn open(
    path: &Path,
    options: &Options,
    deadline: Instant,
) -> Result<Box<dyn Transport>, Cause> {
    let stream = connect_socket(path, options, deadline)?;
    let rings = RingSizes::from(options.ring_bytes.unwrap_or(RING_BYTES));
    let channel = serve_on(stream, rings, options, deadline)?;
    Ok(Box::new(channel))
}

/// Brings the ring up, and gives up as soon as the program is told to stop.
fn serve_on(
    stream: UnixStream,
    rings: RingSizes,
    options: &Options,
    deadline: Instant,
) -> Result<Channel, Cause> {
    let failed = |error: vchan::Error| unreachable(error.to_string(), error.advice());
    if options.interrupt.is_none() {
        return vchan::local::serve_on(stream, rings, deadline).map_err(failed);
    }
    let watched = stream
        .try_clone()
        .map_err(|error| failed(vchan::Error::os("dup", error)))?;
    thread::scope(|scope| {
        let (done, waiting) = mpsc::channel::<()>();
        // The rendezvous itself knows of no interrupt: the end of its stream ends it.
        scope.spawn(move || {
            while matches!(waiting.recv_timeout(RETRY), Err(RecvTimeoutError::Timeout)) {
                if options.interrupted() {
                    let _ = watched.shutdown(Shutdown::Both);
                }
            }
        });
        let channel = vchan::local::serve_on(stream, rings, deadline);
        drop(done);
        match channel {
            Err(_) if options.interrupted() => Err(Cause::Interrupted),
            channel => channel.map_err(failed),
        }
    })
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
