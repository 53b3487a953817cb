//! The descriptors that a worker has, and the limits of any worker.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{close, dup2_stdin, getppid};

/// Descriptors that a session with a CUDA context needs at most, with room to spare.
const MAX_FILES: u64 = 1024;

/// Closes what this process should not have inherited, sets its limits and takes its two streams: the guest's, which is standard input, and the
/// broker's, which has the number `broker`. Nothing may be open yet but what was inherited.
///
/// Afterwards it dies with the broker, writes no core file that would hold a guest's data, gains no
/// privileges, and has no descriptor but its own.
pub(in crate::worker) fn take_inherited(
    broker: RawFd,
    broker_pid: i32,
) -> io::Result<(OwnedFd, UnixStream)> {
    close_inherited(broker)?;
    // SAFETY: it is open, as `close_inherited` has seen, and nothing here owns it yet: the broker
    // passes it to be taken once, and this is called once, before anything else is opened.
    let broker = unsafe { OwnedFd::from_raw_fd(broker) };
    // Later programs must not have it.
    fcntl(&broker, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    let broker = UnixStream::from(broker);
    // Started through /proc/self/exe, it would be shown as `exe`.
    prctl::set_name(c"vgpu-mediatord")?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // Nanoseconds by which a timer may be late. It is short naps that end a wait for a device.
    prctl::set_timerslack(1)?;
    // The broker may have died before the line above.
    if getppid().as_raw() != broker_pid {
        return Err(io::Error::other("the broker is gone"));
    }
    prctl::set_no_new_privs()?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let files = hard.min(MAX_FILES);
    setrlimit(Resource::RLIMIT_NOFILE, files, files)?;

    // A copy that later programs would not inherit; then nothing can mistake it for a terminal.
    let guest = io::stdin().as_fd().try_clone_to_owned()?;
    (&broker).read_exact(&mut [0])?;
    dup2_stdin(File::open("/dev/null")?)?;
    Ok((guest, broker))
}

/// Closes every descriptor but the standard ones and `kept`.
pub(crate) fn close_all_but(kept: &impl AsRawFd) -> io::Result<()> {
    close_inherited(kept.as_raw_fd())
}

/// Closes descriptors that the broker inherited and kept open. All of the broker's own descriptors are
/// closed at exec already, except for `link`, which is this worker's.
fn close_inherited(link: RawFd) -> io::Result<()> {
    let mut open = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        if let Some(fd) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        {
            open.push(fd);
        }
    }
    if link <= 2 || !open.contains(&link) {
        return Err(io::Error::other("the link to the broker is not open"));
    }
    for fd in open.into_iter().filter(|fd| *fd > 2 && *fd != link) {
        match close(fd) {
            // The listing's own descriptor is closed by now.
            Ok(()) | Err(Errno::EBADF) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
