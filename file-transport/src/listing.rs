//! Reading the names in a directory, up to a limit, from the server rather than a cache.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstatat};

/// Flags for every open of a directory below the served one: no symbolic link, nothing but a
/// directory, no descriptor inherited by a worker process.
const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// The names in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    /// In the order in which the file system returns them.
    pub(crate) names: Vec<String>,
    /// Whether there are more than the limit.
    pub(crate) cut: bool,
}

/// Opens the directory `name` in `parent`, following no link.
///
/// It is opened by its name each time: at that point an NFS client asks the server whether its
/// cached directory is still valid (close-to-open consistency).
pub(crate) fn open_directory(parent: BorrowedFd<'_>, name: &str) -> nix::Result<OwnedFd> {
    openat(parent, name, DIRECTORY, Mode::empty())
}

/// Whether `name` is something other than a regular file. Asked before a file is opened that a
/// guest may have replaced by a device, since opening one may already have an effect. The mount
/// option nodev stops a guest that replaces it between the check and the open.
pub(crate) fn is_unfit(directory: impl AsFd, name: &str) -> bool {
    let about = fstatat(directory.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW);
    about.is_ok_and(|about| about.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits())
}

/// Reads the names in `directory`, at most `most` of them.
///
/// Names with a leading dot are left out but count: they are half-written files, and open files
/// that NFS clients have removed (`.nfs…`). Names that are not UTF-8 are left out too.
pub(crate) fn names(directory: impl AsFd, most: usize) -> nix::Result<Names> {
    let mut found = names_with_dots(directory, most)?;
    found.names.retain(|name| !name.starts_with('.'));
    Ok(found)
}

/// [`names`] with those that begin with a dot.
pub(crate) fn names_with_dots(directory: impl AsFd, most: usize) -> nix::Result<Names> {
    // A separate descriptor, so that its position is not shared.
    let own = openat(directory.as_fd(), ".", DIRECTORY, Mode::empty())?;
    let mut found = Names {
        names: Vec::new(),
        cut: false,
    };
    let mut read = 0;
    for entry in Dir::from_fd(own)?.iter() {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if read == most {
            found.cut = true;
            break;
        }
        read += 1;
        found.names.extend(name.to_str().map(str::to_owned));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    use nix::errno::Errno;

    use super::*;

    #[test]
    fn names_are_bounded_and_dots_left_out() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a", "b", ".nfs0001", ".new"] {
            File::create(directory.path().join(name)).unwrap();
        }
        let open = File::open(directory.path()).unwrap();
        let mut all = names(&open, 4).unwrap();
        all.names.sort();
        assert_eq!((all.names, all.cut), (vec!["a".into(), "b".into()], false));
        assert!(names(&open, 3).unwrap().cut);
        // Again from the start, including names added since.
        File::create(directory.path().join("c")).unwrap();
        assert_eq!(names(&open, 100).unwrap().names.len(), 3);
    }

    #[test]
    fn only_directories_are_opened_and_never_links() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("real")).unwrap();
        symlink("real", directory.path().join("link")).unwrap();
        File::create(directory.path().join("file")).unwrap();
        let parent = File::open(directory.path()).unwrap();
        assert!(open_directory(parent.as_fd(), "real").is_ok());
        for name in ["link", "file"] {
            let errno = open_directory(parent.as_fd(), name).unwrap_err();
            assert!(
                matches!(errno, Errno::ELOOP | Errno::ENOTDIR),
                "{name}: {errno}"
            );
        }
    }
}
