//! The real directory of a session.
//!
//! Everything is relative to an open directory, no link is followed, nothing but regular files is
//! read, and of those no more than the reader asked for. The directory itself is opened by its name
//! for each look, which makes an NFS client ask the server (close-to-open consistency), and must be
//! the same one every time.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fchmod, fstat, fstatat, mkdirat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::file_name;
use super::segment::Role;
use super::shared_directory::{Content, Free, SharedDirectory, Trouble};
use crate::directory::is_out_of_space;
use crate::listing::{self, open_directory};
use crate::name::{GuestName, SESSIONS, SessionName};
use crate::open_flags::SAFE;

/// The first contents of [`file_name::PROBE`].
pub(crate) const PROBE_CONTENT: &[u8] = b"1\n";
/// The bytes that the mediator appends when the guest asks.
const CHANGED_PROBE: &[u8] = b"2\n";

/// Most names in a session's directory. Two sides that keep to the rules make fewer than 200.
pub const MOST_NAMES: usize = 1024;

/// The directory of one session, opened by one side.
#[derive(Debug)]
pub struct SessionDirectory {
    /// `sessions/`, its parent.
    sessions: OwnedFd,
    name: String,
    path: PathBuf,
    role: Role,
    /// Device and inode, which must stay the same.
    identity: (u64, u64),
    /// As opened by the last look.
    directory: OwnedFd,
    /// Part of the names of unfinished files, so that two processes never share one.
    own: u64,
    made: u64,
    /// On the mediator's side: the file that a guest's test asks to be changed.
    probe: Option<File>,
}

/// Opens `DIR` or `DIR/<guest>/`, where only `DIR` itself may be a link.
pub(crate) fn open_place(directory: &Path, guest: Option<&GuestName>) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let place = openat(AT_FDCWD, directory, flags, Mode::empty())?;
    match guest {
        None => Ok(place),
        Some(guest) => open_directory(place.as_fd(), guest.as_str()),
    }
}

impl SessionDirectory {
    /// Makes the directory of a new session in `place`; the mediator has made `sessions/` there.
    pub(crate) fn create(
        place: &OwnedFd,
        path: &Path,
        session: SessionName,
        own: u64,
    ) -> nix::Result<Self> {
        let sessions = open_directory(place.as_fd(), SESSIONS)?;
        mkdirat(&sessions, session.to_string().as_str(), Mode::S_IRWXU)?;
        let session = Self::in_sessions(sessions, path, session, Role::Guest, own)?;
        // Only this user and root have access, and the group where the administrator shares by
        // group: where `sessions/` passes its group on and lets it write. Whatever the umask.
        let about = fstat(&session.sessions)?;
        let shared = Mode::S_ISGID | Mode::S_IRWXG;
        let mode = match Mode::from_bits_truncate(about.st_mode).contains(shared) {
            true => Mode::S_IRWXU | shared,
            false => Mode::S_IRWXU,
        };
        fchmod(&session.directory, mode)?;
        Ok(session)
    }

    /// Opens the directory of a session that a guest has made.
    pub(crate) fn open(
        place: &OwnedFd,
        path: &Path,
        session: SessionName,
        own: u64,
    ) -> nix::Result<Self> {
        let sessions = open_directory(place.as_fd(), SESSIONS)?;
        Self::in_sessions(sessions, path, session, Role::Mediator, own)
    }

    fn in_sessions(
        sessions: OwnedFd,
        path: &Path,
        session: SessionName,
        role: Role,
        own: u64,
    ) -> nix::Result<Self> {
        let name = session.to_string();
        let directory = open_directory(sessions.as_fd(), &name)?;
        let about = fstat(&directory)?;
        Ok(Self {
            path: path.join(SESSIONS).join(&name),
            sessions,
            name,
            role,
            identity: (about.st_dev, about.st_ino),
            directory,
            own,
            made: 0,
            probe: None,
        })
    }

    /// Whether users other than its owner have access.
    pub(crate) fn is_shared(&self) -> bool {
        fstat(&self.directory).is_ok_and(|about| about.st_mode & 0o077 != 0)
    }

    /// The directory's path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the new file `name` with `bytes`. `Ok(None)`: it exists already.
    pub(crate) fn claim(&self, name: &str, bytes: &[u8]) -> Result<Option<File>, Trouble> {
        let flags = SAFE | OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        match openat(
            &self.directory,
            name,
            flags,
            Mode::from_bits_truncate(0o644),
        ) {
            Ok(fd) => {
                let mut file = File::from(fd);
                match make_readable(&file).and_then(|()| file.write_all(bytes)) {
                    Ok(()) => Ok(Some(file)),
                    Err(error) => Err(self.trouble("write", name, error)),
                }
            }
            Err(Errno::EEXIST) => Ok(None),
            Err(errno) => Err(self.trouble("make", name, errno.into())),
        }
    }

    /// Whether the name leads to a file, by a lookup, without listing the directory.
    pub(crate) fn lookup(&self, name: &str) -> bool {
        self.size(name).is_some()
    }

    /// The file's size in bytes, by a lookup.
    pub(crate) fn size(&self, name: &str) -> Option<i64> {
        let about = fstatat(&self.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        about.ok().map(|about| about.st_size)
    }

    /// Keeps the probe open, so that the later change goes to this file and no other.
    pub(crate) fn keep_probe(&mut self, probe: File) {
        self.probe = Some(probe);
    }

    /// Changes the probe, once, and announces it.
    pub(crate) fn change_probe(&mut self) {
        let Some(mut probe) = self.probe.take() else {
            return;
        };
        let changed = probe
            .write_all(CHANGED_PROBE)
            .and_then(|()| probe.sync_all());
        drop(probe);
        if changed.is_ok()
            && let Err(trouble) = self.publish(file_name::CHANGED, b"")
        {
            log::debug!("{trouble}");
        }
    }

    /// Age of the file `name`, by the clock of the machine that stores it.
    pub(crate) fn age(&mut self, name: &str) -> Option<std::time::Duration> {
        let now = self.temporary();
        let flags = SAFE | OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        let mut file = File::from(
            openat(
                &self.directory,
                now.as_str(),
                flags,
                Mode::from_bits_truncate(0o600),
            )
            .ok()?,
        );
        let written = file.write_all(b"now\n").and_then(|()| file.sync_all());
        drop(file);
        let time = |name: &str| -> Option<SystemTime> {
            let flags = SAFE | OFlag::O_RDONLY;
            let fd = openat(&self.directory, name, flags, Mode::empty()).ok()?;
            File::from(fd).metadata().ok()?.modified().ok()
        };
        let age = written
            .ok()
            .and_then(|()| time(&now)?.duration_since(time(name)?).ok());
        let _ = unlinkat(&self.directory, now.as_str(), UnlinkatFlags::NoRemoveDir);
        age
    }

    /// Removes what it can of the directory, and the directory itself if it is then empty: a
    /// bounded effort, for a session that is over.
    ///
    /// Returns whether it is gone.
    pub(crate) fn clear(&mut self) -> bool {
        // Twice, since removing entries while a directory is read may hide other names.
        for _ in 0..2 {
            let found = match self.all_names() {
                Ok(found) => found,
                Err(trouble) => return matches!(trouble, Trouble::Gone),
            };
            for name in found {
                let _ = unlinkat(&self.directory, name.as_str(), UnlinkatFlags::NoRemoveDir);
            }
            if unlinkat(&self.sessions, self.name.as_str(), UnlinkatFlags::RemoveDir).is_ok() {
                return true;
            }
        }
        false
    }

    fn all_names(&mut self) -> Result<Vec<String>, Trouble> {
        self.renew()?;
        listing::names_with_dots(&self.directory, MOST_NAMES)
            .map(|found| found.names)
            .map_err(|errno| self.trouble("list", "", errno.into()))
    }

    /// Opens the directory anew by its name.
    fn renew(&mut self) -> Result<(), Trouble> {
        let directory = open_directory(self.sessions.as_fd(), &self.name)
            .map_err(|errno| self.trouble("open", "", errno.into()))?;
        let about = fstat(&directory).map_err(|errno| self.trouble("open", "", errno.into()))?;
        if (about.st_dev, about.st_ino) != self.identity {
            return Err(Trouble::Gone);
        }
        self.directory = directory;
        Ok(())
    }

    fn temporary(&mut self) -> String {
        self.made += 1;
        let side = match self.role {
            Role::Guest => 'g',
            Role::Mediator => 'm',
        };
        format!(".{side}-{:016x}-{:x}", self.own, self.made)
    }

    fn trouble(&self, doing: &str, name: &str, source: io::Error) -> Trouble {
        let gone = match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ESTALE) => true,
            // For a file, only that one is missing; for the directory, all of it.
            Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {
                name.is_empty() || self.is_gone()
            }
            _ => false,
        };
        if gone {
            return Trouble::Gone;
        }
        Trouble::Io {
            context: format!("cannot {doing} {}", self.path.join(name).display()),
            source,
        }
    }

    fn is_gone(&self) -> bool {
        fstat(&self.directory).map_or(true, |about| about.st_nlink == 0)
    }

    fn write_temporary(&self, temporary: &str, bytes: &[u8]) -> io::Result<()> {
        let flags = SAFE | OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        let mode = Mode::from_bits_truncate(0o644);
        let mut file = File::from(openat(&self.directory, temporary, flags, mode)?);
        make_readable(&file)?;
        file.write_all(bytes)?;
        // The bytes must be at the server before the name is.
        file.sync_all()?;
        nix::unistd::close(file).map_err(io::Error::from)
    }
}

/// Lets the other side read `file`, whichever user that is and whatever the umask is here; the
/// directory keeps others out.
fn make_readable(file: &File) -> io::Result<()> {
    let mode = Mode::from_bits_truncate(0o644);
    // Checked first: over NFS the change would be a round trip.
    if Mode::from_bits_truncate(fstat(file)?.st_mode).contains(mode) {
        return Ok(());
    }
    fchmod(file, mode).map_err(io::Error::from)
}

impl SharedDirectory for SessionDirectory {
    fn list(&mut self) -> Result<Vec<String>, Trouble> {
        self.renew()?;
        let found = listing::names(&self.directory, MOST_NAMES)
            .map_err(|errno| self.trouble("list", "", errno.into()))?;
        if found.cut {
            return Err(Trouble::Crowded(MOST_NAMES));
        }
        Ok(found.names)
    }

    fn read(&mut self, name: &str, most: usize) -> Result<Content, Trouble> {
        // The guest trusts its mediator; the mediator does not trust the guest.
        if self.role == Role::Mediator && listing::is_unfit(&self.directory, name) {
            return Ok(Content::Unfit("no regular file"));
        }
        let fd = match openat(&self.directory, name, SAFE | OFlag::O_RDONLY, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ESTALE) => return Ok(Content::Absent),
            Err(Errno::ELOOP) => return Ok(Content::Unfit("a symbolic link")),
            Err(Errno::ENXIO) => return Ok(Content::Unfit("a socket or a FIFO")),
            Err(errno) => return Err(self.trouble("open", name, errno.into())),
        };
        let file = File::from(fd);
        let read = || -> io::Result<Content> {
            let about = file.metadata()?;
            if !about.is_file() {
                return Ok(Content::Unfit("no regular file"));
            }
            if about.size() > most as u64 {
                return Ok(Content::Unfit("too long"));
            }
            let mut bytes = Vec::with_capacity(usize::try_from(about.size()).unwrap_or(most) + 1);
            // Bounded again: it may grow while it is read.
            (&file).take(most as u64 + 1).read_to_end(&mut bytes)?;
            Ok(if bytes.len() > most {
                Content::Unfit("too long")
            } else {
                Content::Bytes(bytes)
            })
        };
        match read() {
            Err(error) if error.raw_os_error() == Some(Errno::ESTALE as i32) => Ok(Content::Absent),
            other => other.map_err(|error| self.trouble("read", name, error)),
        }
    }

    fn publish(&mut self, name: &str, bytes: &[u8]) -> Result<(), Trouble> {
        let temporary = self.temporary();
        let written = self.write_temporary(&temporary, bytes);
        // Before the rename nothing can exist under the name.
        let full = written.as_ref().is_err_and(is_out_of_space);
        let written = written.and_then(|()| {
            renameat(&self.directory, temporary.as_str(), &self.directory, name)?;
            Ok(())
        });
        written.map_err(|error| {
            let trouble = match self.trouble("write", name, error) {
                Trouble::Io { context, source } if full => Trouble::Full { context, source },
                other => other,
            };
            // Leaves nothing half-done, if the system permits the removal.
            let _ = unlinkat(
                &self.directory,
                temporary.as_str(),
                UnlinkatFlags::NoRemoveDir,
            );
            trouble
        })
    }

    fn free(&mut self) -> Option<Free> {
        let about = fstatvfs(&self.directory).ok()?;
        // Some FUSE file systems do not know and report 0.
        if about.blocks() == 0 {
            return None;
        }
        let bytes = |blocks: u64| blocks.saturating_mul(about.fragment_size());
        Some(Free {
            size: bytes(about.blocks()),
            bytes: bytes(about.blocks_available()),
            files: match about.files() {
                // Inodes are made as needed.
                0 => u64::MAX,
                _ => about.files_available(),
            },
        })
    }

    fn remove(&mut self, name: &str) -> Result<(), Trouble> {
        match unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(self.trouble("remove", name, errno.into())),
        }
    }
}
