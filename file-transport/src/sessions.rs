//! The sessions of a served directory, `DIR/sessions/`: finding new ones, sweeping old ones.
//!
//! The process that serves the two files also looks here, and reports new sessions to the broker;
//! each session itself is a process of its own. The work per look is bounded, whatever a guest
//! makes in its directory.
//!
//! A session's directory is removed by its guest. If the guest leaves it, because it was killed or
//! may not remove files, it is removed here once nothing has changed in it for a while: a live side
//! writes a beat every second. Sessions taken by an earlier mediator are marked with `m-gone` at
//! once, so that their guests need not wait for beats that will not come.

mod on_disk;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::directory::Directory;
use crate::listing::{self, open_directory};
use crate::name::{SESSIONS, SessionName};
use crate::session::directory::MOST_NAMES;
use crate::session::file_name::{self, CLAIM, GONE};
use crate::session::segment::{Kind, Role};
use on_disk::{Claim, clear, closed_session, mark, open_sessions, read_claim};

/// Names in `sessions/` that one look reads.
const MOST_ENTRIES: usize = 4096;

/// Most sessions that are tracked; others wait until there is room.
const MOST_SESSIONS: usize = 512;

/// Most sessions that one look opens.
const OPENED_AT_ONCE: usize = 16;

/// Interval at which a session that nobody has taken is reported again.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The time between two looks into the same session.
const SESSION_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The longest time between two attempts to remove a session with entries that cannot be removed.
const LONGEST_REMOVAL_PAUSE: Duration = Duration::from_secs(600);

/// The shortest time between two log lines about sessions to which this user has no access.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// Looks that must have found nothing new before a session is removed: time alone does not count,
/// since on a machine that was asleep neither side could write a beat.
const LOOKS: u32 = 10;

/// Time without changes after which a session that is over is removed.
pub const OVER_KEPT_TIME: Duration = Duration::from_secs(15);

/// Time without changes after which any other session is removed.
pub const STALE_KEPT_TIME: Duration = Duration::from_secs(60);

/// The sessions of one served directory.
#[derive(Debug)]
pub struct Sessions {
    /// Identifies this mediator; see [`crate::session::accept`].
    mediator: u64,
    seen: BTreeMap<SessionName, Seen>,
    complaint: Option<Errno>,
    /// When a session to which this user has no access was last logged.
    complained: Option<Instant>,
}

#[derive(Debug)]
struct Seen {
    looked: Option<Instant>,
    reported: Option<Instant>,
    /// Checksum of the names, and since when they have not changed.
    names: u32,
    changed: Instant,
    /// Looks since then.
    looks: u32,
    /// Time until the next look: longer where a removal has failed.
    pause: Duration,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its guest has written nothing yet, or nobody has taken it.
    New,
    /// A worker of this mediator has taken it.
    Taken,
    /// Neither side will go on with it.
    Over,
}

impl Sessions {
    /// None seen yet. `mediator` is the number of this mediator.
    pub fn new(mediator: u64) -> Self {
        Self {
            mediator,
            seen: BTreeMap::new(),
            complaint: None,
            complained: None,
        }
    }

    /// Notes that the worker of `session` has ended.
    pub fn over(&mut self, directory: &Directory, session: SessionName) {
        let Some(seen) = self.seen.get_mut(&session) else {
            return;
        };
        seen.state = State::Over;
        if let Ok(opened) = open_sessions(directory)
            .and_then(|sessions| open_directory(sessions.as_fd(), &session.to_string()))
        {
            mark(&opened);
        }
    }

    /// Looks once, and returns the sessions that wait for a mediator.
    pub fn look(&mut self, directory: &Directory, now: Instant) -> Vec<SessionName> {
        let looked = open_sessions(directory).and_then(|sessions| {
            let found = listing::names(&sessions, MOST_ENTRIES)?;
            Ok((sessions, found))
        });
        let (sessions, found) = match looked {
            Ok(looked) => looked,
            Err(errno) => {
                if self.complaint.replace(errno) != Some(errno) {
                    let path = directory.path().join(SESSIONS);
                    log::warn!("no sessions in {}: {}", path.display(), errno.desc());
                }
                return Vec::new();
            }
        };
        if !found.cut {
            self.complaint = None;
        } else if self.complaint.replace(Errno::E2BIG) != Some(Errno::E2BIG) {
            let path = directory.path().join(SESSIONS);
            log::warn!(
                "{} holds more than {MOST_ENTRIES} names; sessions may be missed",
                path.display()
            );
        }
        let mut names: Vec<SessionName> = found
            .names
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        names.sort_unstable();
        self.seen
            .retain(|name, _| found.cut || names.binary_search(name).is_ok());
        for name in names {
            if self.seen.len() >= MOST_SESSIONS {
                break;
            }
            self.seen.entry(name).or_insert(Seen {
                looked: None,
                reported: None,
                names: 0,
                changed: now,
                looks: 0,
                pause: SESSION_LOOK_INTERVAL,
                state: State::New,
            });
        }
        self.look_into(&directory.path().join(SESSIONS), &sessions, now)
    }

    fn look_into(&mut self, path: &Path, sessions: &OwnedFd, now: Instant) -> Vec<SessionName> {
        let mut due: Vec<(Option<Instant>, SessionName)> = self
            .seen
            .iter()
            .filter(|(_, seen)| {
                // One that has never been reported may become ready at any time.
                let pause = if seen.state == State::New && seen.reported.is_none() {
                    Duration::ZERO
                } else {
                    seen.pause
                };
                seen.looked
                    .is_none_or(|looked| now.saturating_duration_since(looked) >= pause)
            })
            .map(|(name, seen)| (seen.looked, *name))
            .collect();
        // Those that have waited longest; new ones before all others.
        due.sort_unstable();
        let mut waiting = Vec::new();
        let mut closed = None;
        for (_, name) in due.into_iter().take(OPENED_AT_ONCE) {
            let Some(seen) = self.seen.get_mut(&name) else {
                continue;
            };
            if seen.look(self.mediator, sessions, name, &mut closed, now) {
                waiting.push(name);
            }
        }
        let early = |said: Instant| now.saturating_duration_since(said) < COMPLAINT_INTERVAL;
        if let Some(name) = closed
            && !self.complained.is_some_and(early)
        {
            self.complained = Some(now);
            log::warn!("{}: {}", path.display(), closed_session(sessions, name));
        }
        waiting
    }
}

impl Seen {
    /// Looks into the session's directory. Returns whether to report it.
    ///
    /// `closed` becomes the session's name if this user has no access to it.
    fn look(
        &mut self,
        mediator: u64,
        sessions: &OwnedFd,
        name: SessionName,
        closed: &mut Option<SessionName>,
        now: Instant,
    ) -> bool {
        self.looked = Some(now);
        let opened = open_directory(sessions.as_fd(), &name.to_string()).and_then(|directory| {
            let found = listing::names_with_dots(&directory, MOST_NAMES)?;
            Ok((directory, found))
        });
        let (directory, mut found) = match opened {
            Ok(opened) => opened,
            Err(errno) => {
                // An entry that is not a directory is no session, and one that is gone is over.
                if matches!(errno, Errno::EACCES | Errno::EPERM) {
                    *closed = Some(name);
                }
                return false;
            }
        };
        found.names.sort_unstable();
        let names = crc32c::crc32c(found.names.join("/").as_bytes());
        self.looks = self.looks.saturating_add(1);
        if names != self.names {
            self.names = names;
            self.changed = now;
            self.looks = 0;
            self.pause = SESSION_LOOK_INTERVAL.max(self.pause / 2);
        }
        let has = |wanted: &str| found.names.iter().any(|name| name == wanted);
        let mut may_be_taken = false;
        if self.state != State::Over && has(CLAIM) {
            match read_claim(&directory) {
                Claim::Of(number) if number == mediator => self.state = State::Taken,
                Claim::Of(_) | Claim::Strange => self.state = State::Over,
                Claim::Unknown => may_be_taken = true,
            }
        }
        if self.state == State::Over && !has(GONE) {
            mark(&directory);
        }
        let unchanged = now.saturating_duration_since(self.changed);
        let limit = if self.state == State::Over {
            OVER_KEPT_TIME
        } else {
            STALE_KEPT_TIME
        };
        if unchanged >= limit && self.looks >= LOOKS {
            clear(&directory, sessions, name, &found.names);
            // Whatever a guest has put there, retrying costs less and less.
            self.pause = (self.pause * 2).min(LONGEST_REMOVAL_PAUSE);
            return false;
        }
        let begun = found
            .names
            .iter()
            .any(|name| matches!(file_name::parse(name), Some((Role::Guest, Kind::Beat, _))));
        let early = |reported: Instant| now.saturating_duration_since(reported) < REPORT_INTERVAL;
        if self.state != State::New || may_be_taken || !begun || self.reported.is_some_and(early) {
            return false;
        }
        self.reported = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    const NAME: &str = "00112233445566778899aabbccddeeff";

    struct Served {
        path: tempfile::TempDir,
        directory: Directory,
        sessions: Sessions,
        now: Instant,
    }

    impl Served {
        fn new() -> Self {
            let path = tempfile::tempdir().unwrap();
            let directory = Directory::open(path.path()).unwrap();
            let mut served = Self {
                path,
                directory,
                sessions: Sessions::new(7),
                now: Instant::now(),
            };
            assert_eq!(served.look(), [""; 0]);
            served
        }

        fn session(&self, name: &str, files: &[&str]) -> PathBuf {
            let path = self.path.path().join(SESSIONS).join(name);
            fs::create_dir(&path).unwrap();
            for file in files {
                fs::write(path.join(file), "").unwrap();
            }
            path
        }

        fn look(&mut self) -> Vec<String> {
            let found = self.sessions.look(&self.directory, self.now);
            found.iter().map(SessionName::to_string).collect()
        }

        fn look_after(&mut self, pause: Duration) -> Vec<String> {
            self.now += pause;
            self.look()
        }

        /// Looks now and then while nothing changes, for `time` in all.
        fn look_for(&mut self, time: Duration) {
            for _ in 0..=LOOKS {
                self.look_after(time / LOOKS);
            }
        }
    }

    #[test]
    fn a_new_session_is_reported_until_it_is_taken() {
        let mut served = Served::new();
        let path = served.session(NAME, &[]);
        assert_eq!(served.look(), [""; 0], "its guest has written nothing");
        fs::write(path.join("g-beat-0000000000000001"), "").unwrap();
        assert_eq!(served.look(), [NAME]);
        assert_eq!(served.look(), [""; 0], "not at once again");
        assert_eq!(served.look_after(REPORT_INTERVAL), [NAME]);
        fs::write(path.join(CLAIM), "0000000000000007\n").unwrap();
        assert_eq!(served.look_after(REPORT_INTERVAL), [""; 0]);
        assert!(!path.join(GONE).exists());
        // Its worker has ended.
        served
            .sessions
            .over(&served.directory, NAME.parse().unwrap());
        assert!(path.join(GONE).exists());
        assert_eq!(served.look_after(SESSION_LOOK_INTERVAL), [""; 0]);
        assert!(path.exists());
        served.look_for(OVER_KEPT_TIME);
        assert!(!path.exists());
    }

    /// The writer makes the file and then waits for the processor, for however long.
    #[test]
    fn a_claim_that_is_being_written_is_nobody_elses() {
        let mut served = Served::new();
        let path = served.session(NAME, &["g-beat-0000000000000001"]);
        assert_eq!(served.look(), [NAME]);
        for part in ["", "0000", "0000000000000007"] {
            fs::write(path.join(CLAIM), part).unwrap();
            for _ in 0..3 {
                assert_eq!(
                    served.look_after(REPORT_INTERVAL),
                    [""; 0],
                    "{part:?}: taken twice"
                );
            }
            assert!(
                !path.join(GONE).exists(),
                "{part:?}: its guest is told that it is over"
            );
        }
        fs::write(path.join(CLAIM), "0000000000000007\n").unwrap();
        served.look_after(REPORT_INTERVAL);
        assert!(!path.join(GONE).exists());
        // A claim that no mediator writes does not count as this one's.
        let path = served.session(&NAME.replace('0', "3"), &["g-beat-0000000000000001"]);
        fs::write(path.join(CLAIM), "mine\n").unwrap();
        served.look_after(REPORT_INTERVAL);
        assert!(path.join(GONE).exists());
    }

    /// After an hour in which nothing ran, a beat may still take as long as at any other time.
    #[test]
    fn a_session_outlives_a_time_in_which_nothing_ran() {
        let mut served = Served::new();
        let path = served.session(NAME, &["g-beat-0000000000000001"]);
        fs::write(path.join(CLAIM), "0000000000000007\n").unwrap();
        served.look_after(SESSION_LOOK_INTERVAL);
        served.look_after(Duration::from_secs(3600));
        served.look_after(SESSION_LOOK_INTERVAL);
        assert!(path.join("g-beat-0000000000000001").exists());
    }

    #[test]
    fn what_another_mediator_had_is_marked_at_once_and_never_taken() {
        let mut served = Served::new();
        let path = served.session(NAME, &["g-beat-0000000000000001"]);
        fs::write(path.join(CLAIM), "0000000000000008\n").unwrap();
        assert_eq!(served.look(), [""; 0]);
        assert!(path.join(GONE).exists());
        // While its guest still writes it stays.
        for beat in 2..40 {
            fs::write(path.join(format!("g-beat-{beat:016x}")), "").unwrap();
            assert_eq!(served.look_after(SESSION_LOOK_INTERVAL), [""; 0]);
        }
        assert!(path.exists());
        served.look_for(OVER_KEPT_TIME);
        assert!(!path.exists());
    }

    #[test]
    fn half_made_sessions_are_swept_and_strange_things_are_left_alone() {
        let mut served = Served::new();
        let empty = served.session(NAME, &[]);
        let nested = served.session(&NAME.replace('0', "1"), &["g-beat-0000000000000001"]);
        fs::create_dir_all(nested.join("a/b")).unwrap();
        fs::create_dir(served.path.path().join("sessions/other")).unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("g-beat-0000000000000001"), "").unwrap();
        let link = served
            .path
            .path()
            .join(SESSIONS)
            .join(NAME.replace('0', "2"));
        symlink(outside.path(), &link).unwrap();
        for _ in 0..3 {
            served.look_for(STALE_KEPT_TIME);
        }
        assert!(!empty.exists());
        assert!(nested.join("a/b").exists() && !nested.join("g-beat-0000000000000001").exists());
        assert!(served.path.path().join("sessions/other").exists());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn many_sessions_are_looked_into_a_few_at_a_time() {
        let mut served = Served::new();
        for number in 0..100 {
            served.session(&format!("{number:032x}"), &["g-beat-0000000000000001"]);
        }
        let mut reported = Vec::new();
        for look in 0..7 {
            let found = served.look();
            assert!(found.len() <= OPENED_AT_ONCE, "look {look}");
            reported.extend(found);
        }
        reported.sort();
        reported.dedup();
        assert_eq!(reported.len(), 100);
    }

    #[test]
    fn a_link_in_place_of_the_sessions_is_not_followed() {
        let mut served = Served::new();
        let outside = tempfile::tempdir().unwrap();
        let path = served.path.path().join(SESSIONS);
        fs::remove_dir(&path).unwrap();
        symlink(outside.path(), &path).unwrap();
        fs::create_dir(outside.path().join(NAME)).unwrap();
        assert_eq!(served.look_after(STALE_KEPT_TIME), [""; 0]);
        assert!(outside.path().join(NAME).exists());
        // Once it is gone, the removal succeeds.
        fs::remove_file(&path).unwrap();
        served.look();
        served.session(NAME, &["g-beat-0000000000000001"]);
        assert_eq!(served.look(), [NAME]);
    }
}
