#![forbid(unsafe_code)]
//! A Unix socket at a path: replaced if stale, refused if live, removed when dropped.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};

use super::stranger::Stranger;
use crate::error::{Error, Result};
use crate::waiting::poll::poll_readable;

/// Interval at which a client looks for a socket that is not there yet.
const SOCKET_LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Longest wait for another process that holds the directory's lock; a holder needs it for a few
/// system calls.
const LOCK_WAIT_LIMIT: Duration = Duration::from_secs(3);

/// A listening Unix socket.
#[derive(Debug)]
pub struct Listener {
    /// May be filled by a client that waits in its queue.
    socket: Stranger<UnixListener>,
    path: PathBuf,
    /// Device and inode of the socket file, to remove only our own.
    identity: (u64, u64),
}

impl Listener {
    /// Listens at `path`. A socket file without a listener is replaced.
    ///
    /// # Errors
    /// [`Error::Setup`] if somebody listens there or the path names something else;
    /// [`Error::Os`].
    pub fn bind(path: &Path) -> Result<Self> {
        Self::bind_by(path, |path| UnixListener::bind(path))
    }

    /// [`bind`](Self::bind) for clients of this user and root alone: nobody else can connect at any time.
    ///
    /// # Errors
    /// As `bind`.
    pub fn bind_private(path: &Path) -> Result<Self> {
        Self::bind_by(path, listen_private)
    }

    fn bind_by(path: &Path, listen: fn(&Path) -> io::Result<UnixListener>) -> Result<Self> {
        let shown = path.display();
        let failed = |source: io::Error| {
            Error::os_with_advice(
                format!("cannot listen on {shown}"),
                source,
                "choose a path of at most 107 bytes in a directory that exists and is yours",
            )
        };
        // Two processes that start at the same time must not both find the socket stale. Any user
        // who may read the directory may lock it, so a lock that is never released is not held by
        // such a process: go on without it.
        let _lock = lock_directory(path)?;
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(Error::setup(
                    format!("{shown} exists and is not a socket"),
                    "choose another path, or remove it",
                ));
            }
            Ok(_) => match try_connect(path) {
                Err(Errno::ECONNREFUSED) => fs::remove_file(path).map_err(failed)?,
                // Full queues and missing rights mean that there is a listener.
                Ok(_) | Err(Errno::EAGAIN | Errno::EACCES) => {
                    return Err(Error::setup(
                        format!("another process listens on {shown}"),
                        "stop it, or choose another path",
                    ));
                }
                Err(errno) => return Err(failed(errno.into())),
            },
        }
        let socket = listen(path).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        let identity = (metadata.dev(), metadata.ino());
        Ok(Self {
            socket: socket.into(),
            path: path.to_owned(),
            identity,
        })
    }

    /// Accepts the next connection.
    ///
    /// # Errors
    /// [`Error::TimedOut`] at `deadline`, [`Error::Os`].
    pub fn accept(&self, deadline: Instant) -> Result<UnixStream> {
        loop {
            if let Some(stream) = self.try_accept()? {
                return Ok(stream);
            }
            if !poll_readable(&[self.as_fd()], deadline)? {
                return Err(Error::TimedOut("see a client connect"));
            }
        }
    }

    /// Accepts a connection if one waits.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn try_accept(&self) -> Result<Option<UnixStream>> {
        match self.socket.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            // The client has given up, or a signal came.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(Error::os(
                format!("cannot accept on {}", self.path.display()),
                error,
            )),
        }
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Another process may have replaced it. An error here can only be ignored.
        if let Ok(metadata) = fs::symlink_metadata(&self.path)
            && (metadata.dev(), metadata.ino()) == self.identity
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at `path`, whose file is this user's alone from the start: it gets the mode that the socket has.
fn listen_private(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::MAXCONN)?;
    Ok(fd.into())
}

/// Connects to `path`, waiting until somebody listens there.
///
/// # Errors
/// [`Error::Setup`] at `deadline`, with the obstacle found last; [`Error::Os`].
pub fn connect_stream(path: &Path, deadline: Instant) -> Result<UnixStream> {
    loop {
        // Read before checking, so that one check follows the deadline.
        let left = deadline.saturating_duration_since(Instant::now());
        let errno = match try_connect(path) {
            Ok(stream) => return Ok(stream.trust()),
            Err(errno) => errno,
        };
        let state = match errno {
            Errno::ENOENT => "there is no such socket",
            Errno::ECONNREFUSED => "nobody listens there",
            Errno::EAGAIN => "its queue of clients stays full",
            Errno::EINTR => continue,
            errno => {
                return Err(Error::os_with_advice(
                    format!("cannot connect to {}", path.display()),
                    errno,
                    "check the path and the rights on it",
                ));
            }
        };
        if left.is_zero() {
            return Err(Error::setup(
                format!("cannot connect to {}: {state}", path.display()),
                "start the other side first, or allow more time",
            ));
        }
        std::thread::sleep(left.min(SOCKET_LOOK_INTERVAL));
    }
}

/// Connects without waiting for room in the listener's queue.
fn try_connect(path: &Path) -> nix::Result<Stranger<UnixStream>> {
    let address = UnixAddr::new(path)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &address)?;
    Ok(UnixStream::from(fd).into())
}

/// `None`: the lock has been held for longer than any process needs it.
fn lock_directory(path: &Path) -> Result<Option<Flock<fs::File>>> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let failed = |source: io::Error| {
        Error::os_with_advice(
            format!("cannot open the directory {}", directory.display()),
            source,
            "create it, or choose another path",
        )
    };
    let mut file = fs::File::open(directory).map_err(failed)?;
    let deadline = Instant::now() + LOCK_WAIT_LIMIT;
    loop {
        let late = Instant::now() >= deadline;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((back, Errno::EAGAIN | Errno::EINTR)) => {
                if late {
                    return Ok(None);
                }
                file = back;
                std::thread::sleep(SOCKET_LOOK_INTERVAL);
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_socket_is_replaced_live_one_refused_and_own_one_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        // Dropping std's listener leaves the file behind, as a killed process does.
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&path).expect("stale socket");
        let error = Listener::bind(&path).unwrap_err();
        assert!(
            error.to_string().contains("another process listens"),
            "{error}"
        );
        assert!(path.exists());
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_private_socket_has_never_had_another_mode() {
        use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let changes = init(CreateFlags::NONBLOCK).unwrap();
        add_watch(&changes, dir.path(), WatchFlags::ATTRIB).unwrap();
        let listener = Listener::bind_private(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let changed = nix::unistd::read(&changes, &mut [0; 512]);
        assert_eq!(changed, Err(Errno::EAGAIN), "the mode was changed");
        assert!(try_connect(&path).is_ok());
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn who_locks_the_directory_keeps_no_listener_out() {
        let dir = tempfile::tempdir().unwrap();
        let open = fs::File::open(dir.path()).unwrap();
        let _theirs = Flock::lock(open, FlockArg::LockExclusiveNonblock).unwrap();
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        Listener::bind(&path).expect("a stale socket is replaced");
    }

    #[test]
    fn other_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path), Err(Error::Setup { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert!(Listener::bind(&dir.path().join("missing/socket")).is_err());
        assert!(Listener::bind(&dir.path().join("x".repeat(120))).is_err());
    }

    #[test]
    fn a_replaced_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn waits_end_at_their_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let soon = || Instant::now() + Duration::from_millis(30);
        let error = connect_stream(&path, soon()).unwrap_err();
        assert!(error.to_string().contains("no such socket"), "{error}");
        let listener = Listener::bind(&path).unwrap();
        assert!(matches!(listener.accept(soon()), Err(Error::TimedOut(_))));
    }
}
