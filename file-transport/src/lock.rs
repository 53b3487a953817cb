//! One mediator for a served directory: a lock that no guest can take.
//!
//! A user who may open a file may lock it, and likewise a directory. So the lock is on a file that
//! only its maker can open. Guests that may write into the directory can remove that file or put
//! another in its place; then a second mediator may get in, which harms only them.

use std::fs::File;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use crate::open_flags::SAFE;

/// The leading dot keeps it out of listings.
pub(crate) const LOCK_FILE: &str = ".vgpu-mediatord.lock";

/// Attempts against a process that keeps putting other things there.
const TRIES: u32 = 16;

/// A directory's lock. The file stays when this is dropped, so that nobody locks a removed one.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: Flock<File>,
}

/// The reasons why the lock cannot be taken.
#[derive(Debug)]
pub(crate) enum LockError {
    /// A mediator has it.
    Held,
    /// The file belongs to this other user and cannot be removed.
    Foreign(u32),
    /// The file system has no locks or no space for the file, or others keep changing it.
    Unavailable(Errno),
}

impl Lock {
    /// Takes the lock of `directory`.
    pub(crate) fn take(directory: BorrowedFd<'_>) -> Result<Self, LockError> {
        for _ in 0..TRIES {
            match try_take(directory) {
                Ok(Some(file)) => return Ok(Self { _file: file }),
                Ok(None) => {}
                Err(error) => return Err(error),
            }
        }
        Err(LockError::Unavailable(Errno::EBUSY))
    }
}

/// `Ok(None)`: the file there was removed, or has changed meanwhile.
fn try_take(directory: BorrowedFd<'_>) -> Result<Option<Flock<File>>, LockError> {
    let unavailable = LockError::Unavailable;
    let lstat = || fstatat(directory, LOCK_FILE, AtFlags::AT_SYMLINK_NOFOLLOW);
    let made = match lstat() {
        Ok(about) if is_ours(&about) => OFlag::empty(),
        // A mediator of root's, whose lock no other user can test.
        Ok(about) if about.st_uid == 0 && !geteuid().is_root() && is_lock(&about) => {
            return Err(LockError::Foreign(0));
        }
        // The owner of the directory decides who serves it; other users' files are only obstacles.
        Ok(about) if is_lock(&about) && !geteuid().is_root() && is_owners(directory, &about) => {
            return Err(LockError::Foreign(about.st_uid));
        }
        Ok(about) => {
            let flags = match about.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits() {
                true => UnlinkatFlags::RemoveDir,
                false => UnlinkatFlags::NoRemoveDir,
            };
            return match unlinkat(directory, LOCK_FILE, flags) {
                Ok(()) | Err(Errno::ENOENT) => Ok(None),
                Err(_) => Err(LockError::Foreign(about.st_uid)),
            };
        }
        Err(Errno::ENOENT) => OFlag::O_CREAT | OFlag::O_EXCL,
        Err(errno) => return Err(unavailable(errno)),
    };
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let file = match openat(directory, LOCK_FILE, SAFE | OFlag::O_RDWR | made, mode) {
        Ok(fd) => File::from(fd),
        Err(Errno::ENOENT | Errno::EEXIST | Errno::ELOOP | Errno::ENXIO | Errno::EISDIR) => {
            return Ok(None);
        }
        Err(errno) => return Err(unavailable(errno)),
    };
    let about = fstat(&file).map_err(unavailable)?;
    if made.is_empty() && !is_ours(&about) {
        return Ok(None);
    }
    let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((_, Errno::EWOULDBLOCK)) => return Err(LockError::Held),
        Err((_, errno)) => return Err(unavailable(errno)),
    };
    // If it was removed or replaced between open and lock, it protects nothing.
    match lstat() {
        Ok(there) if (there.st_dev, there.st_ino) == (about.st_dev, about.st_ino) => Ok(Some(lock)),
        _ => Ok(None),
    }
}

/// Whether this user made the file for locking: nobody else can open it, and it is not the lock of
/// another directory as well.
fn is_ours(about: &FileStat) -> bool {
    is_lock(about) && about.st_uid == geteuid().as_raw()
}

fn is_owners(directory: BorrowedFd<'_>, about: &FileStat) -> bool {
    fstat(directory).is_ok_and(|directory| directory.st_uid == about.st_uid)
}

fn is_lock(about: &FileStat) -> bool {
    about.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits()
        && about.st_nlink == 1
        && about.st_mode & 0o077 == 0
        && about.st_size == 0
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::fd::AsFd;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn nothing_that_a_guest_puts_there_keeps_the_mediator_out() {
        let path = tempfile::tempdir().unwrap();
        let directory = File::open(path.path()).unwrap();
        let lock = path.path().join(LOCK_FILE);
        let elsewhere = path.path().join("elsewhere");
        fs::write(&elsewhere, "keep").unwrap();
        let others: [&dyn Fn() -> Option<Flock<File>>; 4] = [
            // Readable by all, and locked by one of them.
            &|| {
                fs::write(&lock, "").unwrap();
                fs::set_permissions(&lock, Permissions::from_mode(0o644)).unwrap();
                let file = File::open(&lock).unwrap();
                Some(Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap())
            },
            &|| {
                symlink(&elsewhere, &lock).unwrap();
                None
            },
            &|| {
                fs::hard_link(&elsewhere, &lock).unwrap();
                None
            },
            &|| {
                fs::create_dir(&lock).unwrap();
                None
            },
        ];
        for (which, put) in others.iter().enumerate() {
            let _held = put();
            let ours =
                Lock::take(directory.as_fd()).unwrap_or_else(|why| panic!("{which}: {why:?}"));
            assert_eq!(
                fs::metadata(&lock).unwrap().permissions().mode() & 0o777,
                0o600
            );
            assert!(matches!(
                Lock::take(directory.as_fd()),
                Err(LockError::Held)
            ));
            drop(ours);
            drop(Lock::take(directory.as_fd()).unwrap());
            fs::remove_file(&lock).unwrap();
        }
        assert_eq!(fs::read(&elsewhere).unwrap(), b"keep");
    }

    #[test]
    fn a_lock_on_the_directory_itself_is_nobodys() {
        let path = tempfile::tempdir().unwrap();
        let guests = Flock::lock(
            File::open(path.path()).unwrap(),
            FlockArg::LockExclusiveNonblock,
        );
        let directory = File::open(path.path()).unwrap();
        Lock::take(directory.as_fd()).unwrap();
        drop(guests);
    }
}
