//! What a worker gives up before it meets its guest.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{close, dup2_stdin, dup2_stdout, getppid};

/// Descriptors that a session with a CUDA context needs at most, with room to spare.
const MAX_FILES: u64 = 1024;

/// Confines this process and takes its two streams: the guest's and the broker's.
///
/// Afterwards it dies with the broker, writes no core file that would hold a guest's data, gains no
/// privileges, and has no descriptor but its own.
pub(super) fn confine(broker_pid: i32) -> io::Result<(OwnedFd, UnixStream)> {
    close_inherited()?;
    // Started through /proc/self/exe, it would be shown as `exe`.
    prctl::set_name(c"vgpu-mediatord")?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The broker may have died before the line above.
    if getppid().as_raw() != broker_pid {
        return Err(io::Error::other("the broker is gone"));
    }
    prctl::set_no_new_privs()?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let files = hard.min(MAX_FILES);
    setrlimit(Resource::RLIMIT_NOFILE, files, files)?;

    // Copies that later programs would not inherit; then nothing can mistake them for a terminal.
    let guest = io::stdin().as_fd().try_clone_to_owned()?;
    let broker = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    dup2_stdin(File::open("/dev/null")?)?;
    dup2_stdout(io::stderr())?;
    Ok((guest, broker))
}

/// Closes what whoever started the broker forgot to close. All of the broker's own descriptors are
/// closed at exec already.
fn close_inherited() -> io::Result<()> {
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
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        match close(fd) {
            // The listing's own descriptor is closed by now.
            Ok(()) | Err(Errno::EBADF) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
