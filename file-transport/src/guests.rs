//! The directories of single guests, `DIR/<guest>/`, each served like `DIR` itself.
//!
//! The admin makes them, and exports each to its guest alone. They are looked for while the mediator
//! runs, so a new one needs no restart.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::directory::Directory;
use crate::listing;
use crate::name::GuestName;

/// The time between two looks for new directories.
const LOOK: Duration = Duration::from_secs(1);

/// Names in the served directory that one look reads. Whoever puts more there hides new guests.
const MOST_NAMES: usize = 4096;

/// Guests that are reported at most; the mediator serves fewer.
const MOST_GUESTS: usize = 512;

/// Looks for guests' directories from time to time.
#[derive(Debug, Default)]
pub struct Guests {
    looked: Option<Instant>,
    complained: bool,
}

impl Guests {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The guests that have a directory now, in order of their names, or nothing when it is not yet
    /// time to look again. All of them at each look: who is served already is the caller's to know.
    pub fn look(&mut self, directory: &Directory, now: Instant) -> Vec<GuestName> {
        let early = |looked: Instant| now.saturating_duration_since(looked) < LOOK;
        if self.looked.is_some_and(early) {
            return Vec::new();
        }
        self.looked = Some(now);
        let Ok(found) = listing::names(directory.as_fd(), MOST_NAMES) else {
            // The look at the command file says what is wrong with the directory.
            return Vec::new();
        };
        if found.cut && !self.complained {
            self.complained = true;
            log::warn!(
                "{} holds more than {MOST_NAMES} names; directories of guests may be missed",
                directory.path().display()
            );
        }
        let is_directory =
            |name: &GuestName| listing::open_directory(directory.as_fd(), name.as_str()).is_ok();
        let mut guests: Vec<GuestName> = found
            .names
            .iter()
            .filter_map(|name| name.parse().ok())
            .filter(is_directory)
            .take(MOST_GUESTS)
            .collect();
        guests.sort();
        guests
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

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
        let names =
            |found: Vec<GuestName>| found.iter().map(GuestName::to_string).collect::<Vec<_>>();
        assert_eq!(names(guests.look(&directory, now)), ["db", "web-1"]);
        assert_eq!(names(guests.look(&directory, now + LOOK / 2)), [""; 0]);
        fs::create_dir(path.path().join("new")).unwrap();
        assert_eq!(
            names(guests.look(&directory, now + LOOK)),
            ["db", "new", "web-1"]
        );
    }
}
