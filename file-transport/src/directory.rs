//! The served directory: reading `command.txt`, replacing `response.txt`.
//!
//! The client may be a hostile guest, and it may put anything under any name here. So the directory
//! is opened once, every name is opened relative to it and never through a symbolic link, nothing
//! but regular files is read, and reads are bounded.
//!
//! # Why `response.txt` is replaced by a rename
//! A file that is truncated and written in place is empty for a moment, and over NFS that moment
//! lasts a round trip: a client that reads just then finds nothing, or half a line. A rename shows
//! every reader either the whole old line or the whole new one. NFS clients notice it because they
//! ask the server again at each `open` (close-to-open consistency), and the clients of this
//! protocol open the file for every look. A client that had the old file open may get `ESTALE` for
//! that one read; it looks again anyway. The new file belongs to the mediator, so clients need no
//! right to write it.
//!
//! `command.txt` belongs to the client, which truncates and writes it. The mediator replaces it
//! only at its start, in the same way, and keeps its owner. Writing into the existing file would
//! mean writing into whatever a guest links there between a check and the write. So this process
//! opens no file for writing but those it has just made.
//!
//! # A file that cannot be replaced is removed

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};

use crate::listing::{is_unfit, open_directory};
use crate::lock::{Lock, LockError};
use crate::name::{GuestName, SESSIONS, SessionName};
use crate::open_flags::SAFE;
use crate::session::directory::open_place;
use crate::session::mount::Mount;
use crate::two_file_grammar::{COMMAND_FILE, MAX_COMMAND_BYTES, RESPONSE_FILE, Response};
use crate::watch::Stamp;

/// The name under which a response is written before it is renamed. The leading dot keeps it out of
/// listings.
const RESPONSE_TEMPORARY: &str = ".response.txt.new";

/// The same for the command file.
const COMMAND_TEMPORARY: &str = ".command.txt.new";

/// The reasons why a directory cannot be served.
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
    /// The lock file belongs to another user, and this one may not remove it.
    #[error(
        "user {owner} has the lock file {path}; if no mediator of that user runs, remove it, else stop \
         that one"
    )]
    Foreign {
        /// The lock file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// It was removed while it was served, or another is in its place: a file system was mounted
    /// over it, or unmounted from under it.
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

/// The result of reading `command.txt`, with the bytes owned; see [`crate::watch::Sight`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// No such file, or it changed while it was read.
    Absent,
    /// Not a file to take commands from; the text gives the reason and the remedy.
    Unusable(String),
    /// The file.
    File {
        /// Identity and times, the same before and after reading.
        stamp: Stamp,
        /// At most [`MAX_COMMAND_BYTES`] + 1 bytes.
        bytes: Vec<u8>,
    },
}

/// Opens `DIR` or `DIR/<guest>/` without touching anything in it.
///
/// # Errors
/// The system's error.
pub fn place(directory: &Path, guest: Option<&GuestName>) -> io::Result<OwnedFd> {
    Ok(open_place(directory, guest)?)
}

/// The owner of `DIR`, `DIR/<guest>/` or a session in there, if it can be determined.
pub fn owner(
    directory: &Path,
    guest: Option<&GuestName>,
    session: Option<SessionName>,
) -> Option<(Uid, Gid)> {
    let mut place = open_place(directory, guest).ok()?;
    if let Some(session) = session {
        let sessions = open_directory(place.as_fd(), SESSIONS).ok()?;
        place = open_directory(sessions.as_fd(), &session.to_string()).ok()?;
    }
    let about = fstat(&place).ok()?;
    Some((Uid::from_raw(about.st_uid), Gid::from_raw(about.st_gid)))
}

/// A directory that this process serves, alone on this machine.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    directory: File,
    /// `None` where the file system has no locks or no space: there the administrator must avoid
    /// running two mediators.
    _lock: Option<Lock>,
    /// Whether the path led here when it was opened; a path relative to a directory that this
    /// process has left cannot be checked later.
    found_by_path: bool,
    /// Whether a write may fail as late as the sync.
    remote: bool,
}

impl Directory {
    /// Opens and locks the directory `path`, which the administrator names and which may be a link.
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

    /// Opens and locks the directory of `guest` in `parent`; a link is refused.
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
        let lock = match Lock::take(file.as_fd()) {
            Ok(lock) => Some(lock),
            Err(LockError::Held) => return Err(DirectoryError::Busy { path }),
            Err(LockError::Foreign(owner)) => {
                let path = path.join(crate::lock::LOCK_FILE);
                return Err(DirectoryError::Foreign { path, owner });
            }
            Err(LockError::Unavailable(errno)) => {
                let shown = path.display();
                log::warn!(
                    "{shown}: no lock against a second mediator: {}",
                    errno.desc()
                );
                None
            }
        };
        let remote = Mount::of(&file).is_none_or(|mount| mount.is_remote());
        let mut directory = Directory {
            path,
            directory: File::from(file),
            _lock: lock,
            found_by_path: false,
            remote,
        };
        directory.found_by_path = directory.lies_at_its_path() == Some(true);
        Ok(directory)
    }

    /// The directory's path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the number 0 into `command.txt`, so that no command from before the mediator's start
    /// runs, and returns the stamp of that write. If that fails, the existing contents count as
    /// written before: their stamp is returned, and the log gives the reason.
    ///
    /// The new file has the owner and the rights of the old one, and may be written by whoever may
    /// write into the directory.
    pub fn reset_command(&self) -> Option<Stamp> {
        match self.replace_command(b"0\n") {
            Ok(stamp) => Some(stamp),
            Err(source) => {
                log::warn!("{}", self.write_error(COMMAND_FILE, source));
                let about = self.lstat(COMMAND_FILE).ok()?;
                Some(stamp(&about))
            }
        }
    }

    fn replace_command(&self, bytes: &[u8]) -> io::Result<Stamp> {
        let directory = fstat(&self.directory)?;
        // A file with a second link, or something other than a file, says nothing about the client.
        let old = self
            .lstat(COMMAND_FILE)
            .ok()
            .filter(|old| is_regular(old) && old.st_nlink == 1);
        let owner = old.as_ref().unwrap_or(&directory);
        let owner = (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid));
        let rights = directory.st_mode | old.map_or(0, |old| old.st_mode);
        let mode = Mode::from_bits_truncate(rights & 0o066 | 0o644);
        let mut file = self.make(COMMAND_TEMPORARY)?;
        let written = (|| {
            // Only root may give files away; any other user shares by group or mode.
            if let Err(errno) = fchown(&file, Some(owner.0), Some(owner.1)) {
                log::debug!("{COMMAND_FILE}: {}", errno.desc());
            }
            fchmod(&file, mode)?;
            file.write_all(bytes)?;
            self.sync(&file)?;
            self.rename(COMMAND_TEMPORARY, COMMAND_FILE)?;
            // After the rename, which changes the change time.
            Ok(stamp(&fstat(&file)?))
        })();
        if written.is_err() {
            let _ = self.remove(COMMAND_TEMPORARY);
        }
        written
    }

    /// Reads `command.txt` once.
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
        let before = match fstat(&file) {
            Ok(about) if is_regular(&about) => stamp(&about),
            Ok(_) => return Ok(Look::Unusable(not_a_file())),
            Err(errno) => return Ok(unreadable(errno.into())),
        };
        let mut bytes = Vec::new();
        let limit = MAX_COMMAND_BYTES as u64 + 1;
        let read = Read::by_ref(&mut file).take(limit).read_to_end(&mut bytes);
        // By name: somebody else's file that was linked here for a moment no longer has this name
        // now, or has a second link.
        let after = read.and_then(|_| Ok(self.lstat(COMMAND_FILE)?));
        Ok(match after {
            Ok(after) if is_regular(&after) && after.st_nlink > 1 => Look::Unusable(
                "command.txt has a second name (a hard link); remove it and write a number to it"
                    .into(),
            ),
            Ok(after) if stamp(&after) == before => Look::File {
                stamp: before,
                bytes,
            },
            Ok(_) => Look::Absent,
            Err(error) if is_absent(&error) => Look::Absent,
            Err(error) => unreadable(error),
        })
    }

    /// Replaces `response.txt` by one line. A reader sees the old line or the new one, whole.
    ///
    /// Not synchronised to the disk: its contents need not outlive the mediator.
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
        match self.write_response(line) {
            Ok(()) => Ok(()),
            // The old answer must not pass for this one, and takes up space that this one may need.
            Err(error) => match self.remove(RESPONSE_FILE) {
                Ok(()) if is_out_of_space(&error) => self.write_response(line),
                _ => Err(error),
            },
        }
    }

    fn write_response(&self, line: &[u8]) -> io::Result<()> {
        let mut file = self.make(RESPONSE_TEMPORARY)?;
        let written = (|| {
            // Whatever the umask: clients are other users.
            fchmod(&file, Mode::from_bits_truncate(0o644))?;
            file.write_all(line)?;
            self.sync(&file)?;
            nix::unistd::close(file)?;
            self.rename(RESPONSE_TEMPORARY, RESPONSE_FILE)
        })();
        if written.is_err() {
            // The first error is the one to report.
            let _ = self.remove(RESPONSE_TEMPORARY);
        }
        written
    }

    /// Makes the file `name`, which no other process uses until it is renamed.
    fn make(&self, name: &str) -> io::Result<File> {
        let flags = SAFE | OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let fd = match self.open_at(name, flags, mode) {
            Err(Errno::EEXIST) => {
                // Left by a mediator that was killed, or put there by a client.
                self.remove(name)?;
                self.open_at(name, flags, mode)?
            }
            other => other?,
        };
        Ok(File::from(fd))
    }

    /// On a mount the bytes go to the server now, so that a lack of space there is an error now.
    fn sync(&self, file: &File) -> io::Result<()> {
        if self.remote { file.sync_all() } else { Ok(()) }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        match renameat(&self.directory, from, &self.directory, to) {
            // A directory of that name, empty or not, which a client has put there.
            Err(Errno::EISDIR) => {
                self.remove(to)?;
                renameat(&self.directory, from, &self.directory, to)?;
            }
            other => other?,
        }
        Ok(())
    }

    fn lstat(&self, name: &str) -> nix::Result<FileStat> {
        fstatat(&self.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    fn open_at(&self, name: &str, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
        openat(self.directory.as_fd(), name, flags, mode)
    }

    /// Removes `name`: a file, a link, anything but a non-empty directory.
    fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => {
                unlinkat(&self.directory, name, UnlinkatFlags::RemoveDir)?;
            }
            Err(Errno::ENOENT) => {}
            other => other?,
        }
        Ok(())
    }

    /// [`DirectoryError::Gone`] when the directory has been removed.
    fn check_present(&self) -> Result<(), DirectoryError> {
        match self.directory.metadata() {
            Ok(about) if about.nlink() > 0 => Ok(()),
            _ => Err(self.gone()),
        }
    }

    /// Whether the path still leads here; `None` where that cannot be determined now.
    fn lies_at_its_path(&self) -> Option<bool> {
        let here = self.directory.metadata().ok()?;
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
        self.directory.as_fd()
    }
}

fn not_a_file() -> String {
    "command.txt is not a regular file; remove it and write a number to it".into()
}

fn unreadable(error: io::Error) -> Look {
    let Some(Errno::EACCES) = error.raw_os_error().map(Errno::from_raw) else {
        return Look::Unusable(format!(
            "command.txt cannot be read: {error}; check its owner and mode"
        ));
    };
    Look::Unusable(format!(
        "command.txt cannot be read by the mediator, which runs as user {}; chmod a+r command.txt, or \
         write it with a umask of 022",
        nix::unistd::geteuid()
    ))
}

fn is_regular(about: &FileStat) -> bool {
    about.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits()
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ENOENT | Errno::ESTALE)
    )
}

/// Whether there is no space, for this user or at all.
pub(crate) fn is_out_of_space(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ENOSPC | Errno::EDQUOT)
    )
}

fn stamp(about: &FileStat) -> Stamp {
    let nanoseconds =
        |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    Stamp {
        inode: about.st_ino,
        size: u64::try_from(about.st_size).unwrap_or(0),
        modified_ns: nanoseconds(about.st_mtime, about.st_mtime_nsec),
        changed_ns: nanoseconds(about.st_ctime, about.st_ctime_nsec),
    }
}
