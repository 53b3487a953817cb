//! The directories of single guests, `DIR/<guest>/`, each served like `DIR` itself.
//!
//! The administrator makes them, and exports each to its guest alone. The mediator looks for them
//! while it runs, so a new one needs no restart.
//!
//! A directory's name identifies the guest: rules and limits depend on it. So it counts only where
//! nobody but root and this process's user can have made or renamed it, which depends on the owner
//! and mode of `DIR`. The owner of `DIR/<guest>/` itself proves nothing: it is whoever the export
//! maps the guest to, and the directory may be a file system of its own.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::stat::{FileStat, Mode, fstat};
use nix::unistd::Uid;

use crate::directory::Directory;
use crate::listing;
use crate::name::GuestName;

/// The time between two looks for new directories.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Names in the served directory that one look reads. A user who puts more there can hide new
/// guests.
const MOST_NAMES: usize = 4096;

/// Guests that are reported at most; the mediator serves fewer.
const MOST_GUESTS: usize = 512;

/// A guest's directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Guest {
    /// Its name.
    pub name: GuestName,
    /// Its inode number: another one where another directory has taken the name.
    pub inode: u64,
}

/// Looks for guests' directories from time to time.
#[derive(Debug, Default)]
pub struct Guests {
    looked: Option<Instant>,
    complained: bool,
    /// The last warning about a directory that others can change.
    untrusted: Option<String>,
}

impl Guests {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The guests that have a directory now, sorted by name; empty while it is not yet time to look
    /// again. Includes the guests that the caller serves already.
    pub fn look(&mut self, directory: &Directory, now: Instant) -> Vec<Guest> {
        let early = |looked: Instant| now.saturating_duration_since(looked) < LOOK_INTERVAL;
        if self.looked.is_some_and(early) {
            return Vec::new();
        }
        self.looked = Some(now);
        let Ok(found) = listing::names(directory.as_fd(), MOST_NAMES) else {
            // The read of the command file reports what is wrong with the directory.
            return Vec::new();
        };
        if found.cut && !self.complained {
            self.complained = true;
            log::warn!(
                "{} holds more than {MOST_NAMES} names; directories of guests may be missed",
                directory.path().display()
            );
        }
        if !self.trusts(directory, &found.names) {
            return Vec::new();
        }
        let guest = |name: GuestName| {
            let opened = listing::open_directory(directory.as_fd(), name.as_str()).ok()?;
            let inode = fstat(&opened).ok()?.st_ino;
            Some(Guest { name, inode })
        };
        let mut guests: Vec<Guest> = found
            .names
            .iter()
            .filter_map(|name| name.parse().ok())
            .filter_map(guest)
            .take(MOST_GUESTS)
            .collect();
        guests.sort();
        guests
    }

    /// Whether only trusted users can put guests there. If not, and there are directories that
    /// could be meant as guests', logs it once.
    fn trusts(&mut self, directory: &Directory, names: &[String]) -> bool {
        let why = match fstat(directory.as_fd()) {
            Ok(about) => others_can_change(&about),
            Err(errno) => Some(errno.desc().to_owned()),
        };
        let Some(why) = why else {
            self.untrusted = None;
            return true;
        };
        let meant = |name: &&String| {
            name.parse::<GuestName>().is_ok()
                && listing::open_directory(directory.as_fd(), name).is_ok()
        };
        if self.untrusted.as_ref() != Some(&why)
            && let Some(name) = names.iter().take(MOST_GUESTS).find(meant)
        {
            let path = directory.path().display();
            log::warn!(
                "{path}: {name} and other directories in it are not served as guests': {why}, so \
                 anybody could have made them (chown root {path}; chmod 755 {path})"
            );
            self.untrusted = Some(why);
        }
        false
    }
}

/// The way in which users other than root and this process's own can make or rename entries of a
/// directory; `None` if they cannot.
fn others_can_change(about: &FileStat) -> Option<String> {
    if about.st_uid != 0 && about.st_uid != Uid::effective().as_raw() {
        return Some(format!("user {} owns it", about.st_uid));
    }
    // With an access control list the group bits are the most that any entry may grant.
    let others = Mode::S_IWGRP.union(Mode::S_IWOTH).bits();
    (about.st_mode & others != 0)
        .then(|| format!("its mode {:04o} lets others write", about.st_mode & 0o7777))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn directories_with_a_guests_name_are_found_and_nothing_else() {
        let path = tempfile::tempdir().unwrap();
        for name in ["web-1", "db", ".hidden", "sessions", "-x", "a b"] {
            fs::create_dir(path.path().join(name)).unwrap();
        }
        fs::write(path.path().join("file"), "").unwrap();
        symlink("db", path.path().join("link")).unwrap();
        let directory = Directory::open(path.path()).unwrap();
        let mut guests = Guests::new();
        let now = Instant::now();
        let names = |found: Vec<Guest>| {
            found
                .iter()
                .map(|at| at.name.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(guests.look(&directory, now)), ["db", "web-1"]);
        assert_eq!(
            names(guests.look(&directory, now + LOOK_INTERVAL / 2)),
            [""; 0]
        );
        fs::create_dir(path.path().join("new")).unwrap();
        assert_eq!(
            names(guests.look(&directory, now + LOOK_INTERVAL)),
            ["db", "new", "web-1"]
        );
        // Another directory of the same name.
        let mut inode = |after: u32| guests.look(&directory, now + LOOK_INTERVAL * after)[0].inode;
        let first = inode(2);
        assert_eq!(inode(3), first);
        fs::rename(path.path().join("db"), path.path().join("old")).unwrap();
        fs::create_dir(path.path().join("db")).unwrap();
        assert_ne!(inode(4), first);
    }

    #[test]
    fn where_others_can_make_directories_none_is_a_guests() {
        let path = tempfile::tempdir().unwrap();
        let path = path.path();
        fs::create_dir(path.join("web-1")).unwrap();
        fs::set_permissions(path.join("web-1"), fs::Permissions::from_mode(0o777)).unwrap();
        let directory = Directory::open(path).unwrap();
        let mut guests = Guests::new();
        let mut now = Instant::now();
        let mut found = || {
            now += LOOK_INTERVAL;
            guests.look(&directory, now).len()
        };
        for (mode, wanted) in [
            (0o755, 1),
            (0o700, 1),
            (0o775, 0),
            (0o757, 0),
            // A user who can make directories there can take any free name.
            (0o1777, 0),
            (0o2755, 1),
        ] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(found(), wanted, "{mode:o}");
        }
        if !Uid::effective().is_root() {
            test_skip::skipped("in part: only root can give directories away");
            return;
        }
        // A guest's directory as the administrator leaves it for the export; and `DIR` itself in a
        // client's hands.
        chown(path.join("web-1"), Some(65534), Some(65534)).unwrap();
        assert_eq!(found(), 1);
        chown(path, Some(65534), None).unwrap();
        assert_eq!(found(), 0);
        chown(path, Some(0), None).unwrap();
        assert_eq!(found(), 1);
    }
}
