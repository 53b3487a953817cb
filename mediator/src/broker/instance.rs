//! One mediator per control socket, and one per Xen host.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;

use crate::failure::Failure;

/// A lock file that names its holder; gone when this is dropped.
#[derive(Debug)]
pub struct Instance {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Instance {
    /// Takes the lock file at `path`, whose directory is made if need be.
    ///
    /// # Errors
    /// Another process holds it: `what` it then does, and `advice` for a second mediator.
    pub fn acquire(path: &Path, what: &str, advice: &str) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            Failure::system(
                format!("cannot lock {}", path.display()),
                error,
                "run as the user that owns the directory, or choose another --control PATH",
            )
        };
        make_directory(path).map_err(failed)?;
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .open(path)
                .map_err(failed)?;
            let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((file, Errno::EWOULDBLOCK)) => return Err(held(&file, what, advice)),
                Err((_, errno)) => return Err(failed(errno.into())),
            };
            // The holder before may have removed the file between our open and our lock; then
            // this lock protects nothing.
            if !is_at(&lock, path).map_err(failed)? {
                continue;
            }
            let write = |file: &mut File| {
                file.set_len(0)?;
                file.rewind()?;
                writeln!(file, "{}", std::process::id())
            };
            write(&mut lock).map_err(failed)?;
            return Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            });
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Still locked, so it is ours. Nothing can be done about an error here.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes the directory of `path` unless it exists. One that belongs to another user is refused:
/// whoever owns it could replace what is in it.
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

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn held(mut file: &File, what: &str, advice: &str) -> Failure {
    let mut pid = String::new();
    let holder = match file.read_to_string(&mut pid).map(|_| pid.trim().parse()) {
        Ok(Ok(pid)) => format!("another vgpu-mediatord (pid {})", u32::max(pid, 1)),
        // It has taken the lock and not yet written its pid.
        _ => "another vgpu-mediatord".to_owned(),
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
        let acquire = || Instance::acquire(&path, "runs", "stop it");
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
        // What a killed holder left behind is no obstacle.
        fs::write(&path, "99999\n").unwrap();
        drop(acquire().unwrap());
        assert!(!path.exists());
    }
}
