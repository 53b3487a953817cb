//! The served directory: looking at `command.txt`, replacing `response.txt`.
//!
//! The client may be a guest that wishes the host ill, and it may put anything under any name here.
//! So the directory is opened once, every name is opened relative to it and never through a
//! symbolic link, nothing but regular files is read, and reads are bounded.
//!
//! # Why `response.txt` is replaced by a rename
//! A file that is truncated and written in place is empty for a moment, and over NFS that moment
//! lasts a round trip: a client that looks just then reads nothing, or half a line. A rename shows
//! every opener either the whole old line or the whole new one. NFS clients notice it because they
//! ask the server again at each `open` (close-to-open consistency), and the clients of this protocol
//! open for every look. A client that had the old file open may get `ESTALE` for that one read; it
//! looks again anyway. The new file belongs to the mediator, so clients need no right to write it.
//!
//! `command.txt` is the other way round: it belongs to the client, which truncates and writes it,
//! and the mediator does not replace it, lest the client lose its right to write.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::guide::{COMMAND_FILE, MAX_COMMAND_BYTES, RESPONSE_FILE, Response};
use crate::listing::{is_unfit, open_directory};
use crate::name::GuestName;
use crate::watch::Stamp;

/// Where a response is written before it is renamed. The leading dot keeps it out of listings.
const RESPONSE_TEMPORARY: &str = ".response.txt.new";

/// What every open here has in common: no symbolic link, no waiting for a FIFO's other end, no
/// controlling terminal, nothing left open in a worker process.
pub(crate) const SAFE: OFlag = OFlag::O_NOFOLLOW
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_NOCTTY)
    .union(OFlag::O_CLOEXEC);

/// Why a directory cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// It cannot be opened.
    #[error("cannot open the directory {path}: {source}; create it, or name another with file:DIR")]
    Open {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Another process serves it.
    #[error("another mediator serves the directory {path}; stop it, or name another with file:DIR")]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// It was removed while it was served, or another lies in its place: a file system was mounted
    /// over it, or taken away from under it.
    #[error("the directory {path} was removed or replaced; create it, and it is served again")]
    Gone {
        /// The directory.
        path: PathBuf,
    },
    /// One of the two files cannot be written.
    #[error("cannot write {path}: {source}; check owner, free space and mount options")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// What a look at `command.txt` found, with the bytes owned; see [`crate::watch::Sight`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// No such file, or it changed while it was read.
    Absent,
    /// Not a file to take commands from; the text says why and what to do.
    Unusable(String),
    /// The file.
    File {
        /// Identity and times, the same before and after reading.
        stamp: Stamp,
        /// At most [`MAX_COMMAND_BYTES`] + 1 bytes.
        bytes: Vec<u8>,
    },
}

/// A directory that this process serves, and no other one on this machine.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    directory: Handle,
    /// Whether the path led here when it was opened; one that is relative to a place this process
    /// has left tells nothing later on.
    found_by_path: bool,
}

/// The open directory, with the lock where the file system has locks.
#[derive(Debug)]
enum Handle {
    Locked(Flock<File>),
    /// NFS refuses to lock directories; there, two mediators are the admin's to avoid.
    Unlocked(File),
}

impl Handle {
    fn file(&self) -> &File {
        match self {
            Handle::Locked(file) => file,
            Handle::Unlocked(file) => file,
        }
    }
}

impl Directory {
    /// Opens and locks the directory `path`, which the admin names and which may be a link.
    ///
    /// # Errors
    /// [`DirectoryError::Open`], [`DirectoryError::Busy`].
    pub fn open(path: &Path) -> Result<Directory, DirectoryError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let file =
            openat(AT_FDCWD, path, flags, Mode::empty()).map_err(|errno| DirectoryError::Open {
                path: path.into(),
                source: errno.into(),
            })?;
        Self::lock(path.into(), file)
    }

    /// Opens and locks the directory of `guest` in `parent`, which is never reached by a link.
    ///
    /// # Errors
    /// [`DirectoryError::Open`], [`DirectoryError::Busy`].
    pub fn open_guest(parent: &Path, guest: &GuestName) -> Result<Directory, DirectoryError> {
        let path = parent.join(guest.as_str());
        let open = |source: Errno| DirectoryError::Open {
            path: path.clone(),
            source: source.into(),
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let parent = openat(AT_FDCWD, parent, flags, Mode::empty()).map_err(open)?;
        let file = open_directory(parent.as_fd(), guest.as_str()).map_err(open)?;
        Self::lock(path, file)
    }

    fn lock(path: PathBuf, file: OwnedFd) -> Result<Directory, DirectoryError> {
        let directory = match Flock::lock(File::from(file), FlockArg::LockExclusiveNonblock) {
            Ok(locked) => Handle::Locked(locked),
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(DirectoryError::Busy { path });
            }
            Err((file, errno)) => {
                log::debug!("{}: no lock on this file system: {errno}", path.display());
                Handle::Unlocked(file)
            }
        };
        let mut directory = Directory {
            path,
            directory,
            found_by_path: false,
        };
        directory.found_by_path = directory.lies_at_its_path() == Some(true);
        Ok(directory)
    }

    /// Where the directory is, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the number 0 into `command.txt`, so that nothing written before the mediator was there
    /// runs, and gives the stamp of that writing.
    ///
    /// A file that exists is written in place: it stays its owner's.
    ///
    /// # Errors
    /// [`DirectoryError::Write`].
    pub fn reset_command(&self) -> Result<Option<Stamp>, DirectoryError> {
        self.write_command(b"0\n")
            .map_err(|source| self.write_error(COMMAND_FILE, source))
    }

    fn write_command(&self, bytes: &[u8]) -> io::Result<Option<Stamp>> {
        let flags = SAFE | OFlag::O_WRONLY;
        // 0666 before the umask: whether guests may write is for the umask and the export to say.
        // Who owns the directory may write in any case: an export that counts every user of a guest
        // as one of dom0's needs no more than that directory.
        let create = || {
            let mode = Mode::from_bits_truncate(0o666);
            let flags = flags | OFlag::O_CREAT | OFlag::O_EXCL;
            let fd = self.open_at(COMMAND_FILE, flags, mode)?;
            if let Ok(about) = self.directory.file().metadata() {
                let _ = fchown(&fd, Some(about.uid()), Some(about.gid()));
            }
            Ok::<_, Errno>(fd)
        };
        let mut file = match self.open_at(COMMAND_FILE, flags, Mode::empty()) {
            Ok(fd) => {
                let file = File::from(fd);
                let about = file.metadata()?;
                if about.is_file() && about.nlink() == 1 {
                    file.set_len(0)?;
                    file
                } else {
                    // A second name elsewhere must not be written through this one.
                    self.remove(COMMAND_FILE)?;
                    File::from(create()?)
                }
            }
            Err(Errno::ENOENT) => File::from(create()?),
            // A link, a FIFO nobody reads, a socket, a directory: not the client's command file.
            Err(Errno::ELOOP | Errno::ENXIO | Errno::EISDIR) => {
                self.remove(COMMAND_FILE)?;
                File::from(create()?)
            }
            Err(errno) => return Err(errno.into()),
        };
        file.write_all(bytes)?;
        Ok(Some(stamp(&file.metadata()?)))
    }

    /// Looks at `command.txt` once.
    ///
    /// # Errors
    /// [`DirectoryError::Gone`]; everything else is a [`Look`].
    pub fn look(&self) -> Result<Look, DirectoryError> {
        if self.found_by_path && self.lies_at_its_path() == Some(false) {
            return Err(self.gone());
        }
        if is_unfit(self, COMMAND_FILE) {
            return Ok(Look::Unusable(not_a_file()));
        }
        let fd = match self.open_at(COMMAND_FILE, SAFE | OFlag::O_RDONLY, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => {
                self.check_present()?;
                return Ok(Look::Absent);
            }
            // The server replaced the file under an NFS client's handle: look again.
            Err(Errno::ESTALE) => return Ok(Look::Absent),
            Err(Errno::ELOOP | Errno::ENXIO) => return Ok(Look::Unusable(not_a_file())),
            Err(errno) => return Ok(unreadable(errno.into())),
        };
        let mut file = File::from(fd);
        let before = match file.metadata() {
            Ok(about) if about.is_file() => stamp(&about),
            Ok(_) => return Ok(Look::Unusable(not_a_file())),
            Err(error) => return Ok(unreadable(error)),
        };
        let mut bytes = Vec::new();
        let limit = MAX_COMMAND_BYTES as u64 + 1;
        let after = match Read::by_ref(&mut file).take(limit).read_to_end(&mut bytes) {
            Ok(_) => file.metadata().map(|about| stamp(&about)),
            Err(error) => Err(error),
        };
        Ok(match after {
            Ok(after) if after == before => Look::File {
                stamp: before,
                bytes,
            },
            Ok(_) => Look::Absent,
            Err(error) if error.raw_os_error() == Some(Errno::ESTALE as i32) => Look::Absent,
            Err(error) => unreadable(error),
        })
    }

    /// Replaces `response.txt` by one line. Who opens it reads the old line or the new one whole.
    ///
    /// Not synchronised to the disk: nothing in it outlives the mediator.
    ///
    /// # Errors
    /// [`DirectoryError::Write`], [`DirectoryError::Gone`].
    pub fn respond(&self, response: &Response) -> Result<(), DirectoryError> {
        self.replace_response(&response.to_file())
            .or_else(|source| {
                self.check_present()?;
                Err(self.write_error(RESPONSE_FILE, source))
            })
    }

    fn replace_response(&self, line: &[u8]) -> io::Result<()> {
        let flags = SAFE | OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        let mode = Mode::from_bits_truncate(0o644);
        let fd = match self.open_at(RESPONSE_TEMPORARY, flags, mode) {
            Err(Errno::EEXIST) => {
                // Left by a mediator that was killed, or put there by a client.
                self.remove(RESPONSE_TEMPORARY)?;
                self.open_at(RESPONSE_TEMPORARY, flags, mode)?
            }
            other => other?,
        };
        let mut file = File::from(fd);
        let directory = self.directory.file();
        let written = file.write_all(line).and_then(|()| {
            // On an NFS mount this close sends the bytes, before the rename shows the name.
            drop(file);
            renameat(directory, RESPONSE_TEMPORARY, directory, RESPONSE_FILE)?;
            Ok(())
        });
        if written.is_err() {
            // The first error is the one to report.
            let _ = self.remove(RESPONSE_TEMPORARY);
        }
        written
    }

    fn open_at(&self, name: &str, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
        openat(self.directory.file().as_fd(), name, flags, mode)
    }

    /// Removes `name`: a file, a link, anything but a directory with something in it.
    fn remove(&self, name: &str) -> io::Result<()> {
        let directory = self.directory.file();
        match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => {
                unlinkat(directory, name, UnlinkatFlags::RemoveDir)?;
            }
            Err(Errno::ENOENT) => {}
            other => other?,
        }
        Ok(())
    }

    /// [`DirectoryError::Gone`] when the directory has been removed.
    fn check_present(&self) -> Result<(), DirectoryError> {
        match self.directory.file().metadata() {
            Ok(about) if about.nlink() > 0 => Ok(()),
            _ => Err(self.gone()),
        }
    }

    /// Whether the path still leads here; `None` where that cannot be told now.
    fn lies_at_its_path(&self) -> Option<bool> {
        let here = self.directory.file().metadata().ok()?;
        match std::fs::metadata(&self.path) {
            Ok(there) => Some((there.dev(), there.ino()) == (here.dev(), here.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(false),
            Err(_) => None,
        }
    }

    fn gone(&self) -> DirectoryError {
        DirectoryError::Gone {
            path: self.path.clone(),
        }
    }

    fn write_error(&self, name: &str, source: io::Error) -> DirectoryError {
        DirectoryError::Write {
            path: self.path.join(name),
            source,
        }
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.file().as_fd()
    }
}

fn not_a_file() -> String {
    "command.txt is not a regular file; remove it and write a number to it".into()
}

fn unreadable(error: io::Error) -> Look {
    Look::Unusable(format!(
        "command.txt cannot be read: {error}; check its owner and mode"
    ))
}

fn stamp(about: &std::fs::Metadata) -> Stamp {
    let nanoseconds =
        |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    Stamp {
        inode: about.ino(),
        size: about.size(),
        modified_ns: nanoseconds(about.mtime(), about.mtime_nsec()),
        changed_ns: nanoseconds(about.ctime(), about.ctime_nsec()),
    }
}
