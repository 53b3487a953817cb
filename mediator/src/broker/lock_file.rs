//! One mediator per control socket, and one per Xen host.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::{major, minor};
use nix::unistd::Uid;
use vgpu_cli::Failure;

/// Tries against others who make and remove the file.
const TRIES: u32 = 16;

/// Bytes of the longest lock file: a pid and its newline.
const LONGEST: u64 = 16;

/// A lock file that names its holder; gone when this is dropped.
///
/// Every process that may open a file may lock it. So only its owner may open it, it is no link, and belongs to this
/// user or root; whatever else lies there is taken away, or is an error.
#[derive(Debug)]
pub struct LockFile {
    path: PathBuf,
    lock: Flock<File>,
}

impl LockFile {
    /// Takes the lock file at `path`, whose directory is made if need be.
    ///
    /// # Errors
    /// Another process holds it: `what` it then does, and `advice` for a second mediator. Or something
    /// lies there that is no lock file.
    pub fn acquire(path: &Path, what: &str, advice: &str) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            Failure::system(
                format!("cannot lock {}", path.display()),
                error,
                "run as the user that owns the directory, or choose another --control PATH",
            )
        };
        make_directory(path).map_err(failed)?;
        for _ in 0..TRIES {
            let Some(file) = open(path)? else {
                continue;
            };
            let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((file, Errno::EWOULDBLOCK)) => {
                    if is_held_by_stranger(&file) {
                        // It was readable for others, as earlier versions made it.
                        remove(path, &file).map_err(failed)?;
                        continue;
                    }
                    return Err(held(&file, what, advice));
                }
                Err((_, errno)) => return Err(failed(errno.into())),
            };
            // The holder before may have removed the file between our open and our lock; then
            // this lock protects nothing.
            if !is_at(&lock, path).map_err(failed)? {
                continue;
            }
            let write = |file: &mut File| {
                file.set_permissions(Permissions::from_mode(0o600))?;
                file.set_len(0)?;
                file.rewind()?;
                writeln!(file, "{}", std::process::id())
            };
            write(&mut lock).map_err(failed)?;
            return Ok(Self {
                path: path.to_owned(),
                lock,
            });
        }
        Err(failed(io::Error::other(
            "other processes make and remove it all the time",
        )))
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // Another mediator's, if ours was removed. Nothing can be done about an error here.
        let _ = remove(&self.path, &self.lock);
    }
}

/// Opens the lock file, or makes it. `None`: it has changed meanwhile.
fn open(path: &Path) -> Result<Option<File>, Failure> {
    let shown = path.display();
    let failed = |error: io::Error| {
        Failure::system(
            format!("cannot lock {shown}"),
            error,
            "run as the user that owns the directory, or choose another --control PATH",
        )
    };
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits());
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            options.create_new(true);
        }
        Err(error) => return Err(failed(error)),
        Ok(there) if !is_trusted(&there) => {
            // Somebody else's, in a directory where everybody may write.
            return match fs::remove_file(path) {
                Ok(()) => Ok(None),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(_) => Err(Failure::new(
                    format!("{shown} belongs to user {}", there.uid()),
                    "choose a --control PATH in a directory where only this user may write",
                )),
            };
        }
        Ok(there) if !is_lock_file(&there) => {
            return Err(Failure::new(
                format!("{shown} exists and is no lock file"),
                "remove it, or choose another --control PATH",
            ));
        }
        Ok(_) => {}
    }
    let mut file = match options.open(path) {
        Ok(file) => file,
        Err(error)
            if matches!(
                error.raw_os_error().map(Errno::from_raw),
                Some(Errno::ENOENT | Errno::EEXIST | Errno::ELOOP | Errno::ENXIO | Errno::EISDIR)
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    let about = file.metadata().map_err(failed)?;
    if !is_trusted(&about) || !is_lock_file(&about) {
        return Ok(None);
    }
    // A file with anything but a pid is no lock file, whatever its name.
    let text = read_pid_text(&mut file).map_err(failed)?;
    if !text.trim().bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Failure::new(
            format!("{shown} exists and is no lock file"),
            "remove it, or choose another --control PATH",
        ));
    }
    Ok(Some(file))
}

fn is_trusted(about: &Metadata) -> bool {
    about.uid() == 0 || about.uid() == Uid::effective().as_raw()
}

fn is_lock_file(about: &Metadata) -> bool {
    about.is_file() && about.nlink() == 1 && about.len() <= LONGEST
}

fn read_pid_text(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Removes `path` if it still leads to `file`.
fn remove(path: &Path, file: &File) -> io::Result<()> {
    if is_at(file, path)? {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// Makes the directory of `path` unless it exists. One that belongs to another user is refused:
/// its owner could replace its contents.
fn make_directory(path: &Path) -> io::Result<()> {
    let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    else {
        return Ok(());
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(parent)?;
    let owner = fs::metadata(parent)?.uid();
    if owner != 0 && owner != Uid::effective().as_raw() {
        let text = format!("{} belongs to another user", parent.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(())
}

/// Whether `path`, which is no link, leads to `file`.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Process id of the lock's holder, from the kernel's list; `None` if the list lacks it.
fn holder(file: &File) -> Option<u32> {
    let about = file.metadata().ok()?;
    let wanted = format!(
        "{:02x}:{:02x}:{}",
        major(about.dev()),
        minor(about.dev()),
        about.ino()
    );
    // NUMBER: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END
    fs::read_to_string("/proc/locks")
        .ok()?
        .lines()
        .find_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let kind = fields.next()?;
            let (pid, place) = (fields.nth(2)?, fields.next()?);
            (kind == "FLOCK" && place == wanted).then(|| pid.parse().ok().filter(|pid| *pid > 0))?
        })
}

/// Whether a process of an ordinary user holds the lock, who can do so only where the file was readable
/// for others.
fn is_held_by_stranger(file: &File) -> bool {
    let Some(pid) = holder(file) else {
        return false;
    };
    fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| !is_trusted(&process))
}

fn held(file: &File, what: &str, advice: &str) -> Failure {
    // The file may name one that is dead and left it behind.
    let holder = match holder(file) {
        Some(pid) => format!("another vgpu-mediatord (pid {pid})"),
        None => "another vgpu-mediatord".to_owned(),
    };
    Failure::new(format!("{holder} {what}"), advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_the_first_is_and_the_last_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/lock");
        let acquire = || LockFile::acquire(&path, "runs", "stop it");
        let first = acquire().unwrap();
        let refused = acquire().unwrap_err();
        let pid = std::process::id();
        assert_eq!(
            refused.what,
            format!("another vgpu-mediatord (pid {pid}) runs")
        );
        assert_eq!(refused.advice, "stop it");
        drop(first);
        assert!(!path.exists());
        drop(acquire().unwrap());
        // Leftovers of a killed holder are no obstacle.
        fs::write(&path, "99999\n").unwrap();
        drop(acquire().unwrap());
        assert!(!path.exists());
    }

    fn acquire(path: &Path) -> Result<LockFile, Failure> {
        LockFile::acquire(path, "runs", "stop it")
    }

    #[test]
    fn only_its_owner_may_open_a_lock_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let first = acquire(&path).unwrap();
        assert_eq!(mode(), 0o600);
        drop(first);
        // As an earlier version left it behind.
        fs::write(&path, "99999\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let _second = acquire(&path).unwrap();
        assert_eq!(mode(), 0o600);
    }

    #[test]
    fn the_holder_is_named_and_not_who_left_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        fs::write(&path, "99999\n").unwrap();
        let file = File::open(&path).unwrap();
        let _held = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
        let refused = acquire(&path).unwrap_err().what;
        assert!(!refused.contains("99999"), "{refused}");
        let pid = std::process::id();
        assert_eq!(refused, format!("another vgpu-mediatord (pid {pid}) runs"));
    }

    #[test]
    fn a_user_who_locks_a_readable_lock_file_keeps_nobody_out() {
        use std::os::unix::process::CommandExt;
        if !Uid::effective().is_root() {
            test_skip::skipped("only root can start a program as another user");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let path = directory.path().join("lock");
        // As an earlier version made it.
        fs::write(&path, "99999\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let stranger = std::process::Command::new("flock")
            .arg(&path)
            .arg("cat")
            .stdin(std::process::Stdio::piped())
            .uid(61_234)
            .gid(61_234)
            .spawn();
        let Ok(mut stranger) = stranger else {
            test_skip::skipped("there is no flock(1) here");
            return;
        };
        let file = File::open(&path).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while holder(&file).is_none() {
            assert!(std::time::Instant::now() < deadline, "it locks nothing");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let got = acquire(&path);
        // Its program ends with its input.
        drop(stranger.stdin.take());
        let _ = stranger.wait();
        let _ours = got.unwrap();
        assert!(acquire(&path).is_err());
    }

    #[test]
    fn no_link_is_followed_and_no_other_file_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let other = directory.path().join("other");
        fs::write(&other, "7\n").unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert!(acquire(&path).unwrap_err().what.contains("no lock file"));
        fs::remove_file(&path).unwrap();
        fs::hard_link(&other, &path).unwrap();
        assert!(acquire(&path).unwrap_err().what.contains("no lock file"));
        fs::remove_file(&path).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"7\n");
        for text in ["precious", "a = 1\n"] {
            fs::write(&path, text).unwrap();
            assert!(acquire(&path).unwrap_err().what.contains("no lock file"));
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn the_end_of_one_leaves_the_file_of_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = acquire(&path).unwrap();
        // As a cleaner of temporary files does.
        fs::remove_file(&path).unwrap();
        let _second = acquire(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }
}
