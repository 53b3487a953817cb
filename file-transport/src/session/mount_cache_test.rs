//! The guest's test, while it connects, for stale data in the caches of its mount.
//!
//! Sessions work without fresh caches, only more slowly. Programs that wait for a file by its name
//! or read one repeatedly, like those of the two-file protocol, do not. So the findings are
//! reported, but end nothing.
//!
//! Ages are by the clock of the machine that stores the files: the difference between the times of
//! two files. Clocks of different machines are never compared.

use std::thread;
use std::time::{Duration, Instant};

use super::directory::{PROBE_CONTENT, SessionDirectory};
use super::file_name::{ASK, PROBE};
use super::mount::{Mount, Remark};
use super::shared_directory::{Content, SharedDirectory};

/// Time for which a thorough test looks a name up before it lists the directory.
const NAME_TEST_LIMIT: Duration = Duration::from_secs(2);

/// Time for which a thorough test waits for the mediator to change a file.
const CHANGE_TEST_LIMIT: Duration = Duration::from_secs(3);

/// sshfs reports times in whole seconds, so nothing less than this counts as late.
const LATE: Duration = Duration::from_millis(1500);

/// Pause between two lookups.
const PAUSE: Duration = Duration::from_millis(50);

/// The observations. Pure; see [`judge`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Age of a file when a listing first showed it.
    pub listed_at_age: Option<Duration>,
    /// Age of the file when a lookup last failed to find it.
    pub denied_at_age: Option<Duration>,
    /// A file that had grown was reported with its old size.
    pub old_size: bool,
    /// A file that had grown was opened anew and read with its old contents.
    pub old_contents: bool,
}

/// Interprets `seen` for a file system of this type (such as `nfs4`).
pub fn judge(seen: &Seen, kind: &str) -> Vec<Remark> {
    let nfs = kind.starts_with("nfs");
    let option = |for_nfs: &str, for_sshfs: &str| {
        let option = if nfs { for_nfs } else { for_sshfs };
        format!("mount with {option}")
    };
    let mut remarks = Vec::new();
    let mut remark = |what: String, advice: String| {
        remarks.push(Remark {
            what,
            advice,
            grave: false,
            seen: true,
        });
    };
    if let Some(age) = seen.listed_at_age.filter(|age| *age >= LATE) {
        remark(
            format!(
                "this {kind} mount showed a new file only after {:.1} s",
                age.as_secs_f32()
            ),
            option("actimeo=0, and without nocto", "-o dir_cache=no"),
        );
    }
    if let Some(age) = seen.denied_at_age.filter(|age| *age >= LATE / 3) {
        remark(
            format!(
                "this {kind} mount caches names that do not exist: asked for a file of {:.1} s, it \
                 said that there is none",
                age.as_secs_f32()
            ),
            option(
                "lookupcache=none, or actimeo=0",
                "-o dir_cache=no,entry_timeout=0,negative_timeout=0",
            ),
        );
    }
    if seen.old_size {
        remark(
            format!("this {kind} mount caches attributes: it gave an old size of a file"),
            option("actimeo=0", "-o dir_cache=no,attr_timeout=0"),
        );
    }
    if seen.old_contents {
        remark(
            format!("this {kind} mount gives old contents of a file that was opened anew"),
            option("actimeo=0, and without nocto", "-o direct_io,dir_cache=no"),
        );
    }
    remarks
}

/// The state of the test.
#[derive(Debug)]
pub struct CacheTest {
    mount: Option<Mount>,
    thorough: bool,
    /// The time at which a lookup last found no probe.
    denied: Option<Instant>,
    connected: bool,
    asked: Option<Instant>,
    seen: Seen,
}

impl CacheTest {
    /// A test of `mount`; a thorough one takes some seconds.
    pub(super) fn new(mount: Option<Mount>, thorough: bool) -> Self {
        Self {
            mount,
            thorough,
            denied: None,
            connected: false,
            asked: None,
            seen: Seen::default(),
        }
    }

    /// Looks the probe up by name, before a listing of the directory lets the mount answer from its
    /// cache.
    pub(super) fn before_listing(&mut self, directory: &SessionDirectory, stop: impl Fn() -> bool) {
        let began = Instant::now();
        while self.thorough && began.elapsed() < NAME_TEST_LIMIT && !stop() {
            if directory.lookup(PROBE) {
                return;
            }
            self.denied = Some(Instant::now());
            thread::sleep(PAUSE);
        }
    }

    /// Called after each listing of the directory. Returns whether the test is over.
    pub(super) fn look(
        &mut self,
        directory: &mut SessionDirectory,
        connected: bool,
        changed: bool,
    ) -> bool {
        if !connected {
            return false;
        }
        if !self.connected {
            self.connected = true;
            self.at_first_sight(directory);
        }
        match self.asked {
            None => true,
            Some(_) if changed => {
                self.after_change(directory);
                true
            }
            Some(asked) => asked.elapsed() >= CHANGE_TEST_LIMIT,
        }
    }

    fn at_first_sight(&mut self, directory: &mut SessionDirectory) {
        let remote = self.mount.as_ref().is_none_or(Mount::is_remote);
        if !remote && !self.thorough {
            return;
        }
        let now = Instant::now();
        let Some(age) = directory.age(PROBE) else {
            return;
        };
        // A thorough test lists late on purpose.
        if !self.thorough {
            self.seen.listed_at_age = Some(age);
            return;
        }
        self.seen.denied_at_age = self
            .denied
            .and_then(|denied| age.checked_sub(now.saturating_duration_since(denied)));
        // Fills the cache with what is read and looked up now.
        let read = directory.read(PROBE, 64);
        if matches!(read, Ok(Content::Bytes(bytes)) if bytes == PROBE_CONTENT)
            && directory.lookup(PROBE)
            && directory.publish(ASK, b"").is_ok()
        {
            self.asked = Some(now);
        }
    }

    fn after_change(&mut self, directory: &mut SessionDirectory) {
        let old = PROBE_CONTENT.len();
        self.seen.old_size = directory
            .size(PROBE)
            .is_some_and(|size| usize::try_from(size).is_ok_and(|size| size <= old));
        if let Ok(Content::Bytes(bytes)) = directory.read(PROBE, 64) {
            self.seen.old_contents = bytes.len() <= old;
        }
    }

    /// The findings from the mount's options and from the observations.
    pub(super) fn remarks(&self) -> Vec<Remark> {
        let kind = self.mount.as_ref().map_or("unknown", |mount| &mount.kind);
        let mut remarks = judge(&self.seen, kind);
        remarks.extend(self.mount.iter().flat_map(Mount::remarks));
        remarks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wrong_option_is_named() {
        let seconds = |s| Some(Duration::from_secs(s));
        let cases = [
            (
                Seen {
                    listed_at_age: seconds(20),
                    ..Seen::default()
                },
                "actimeo=0",
                "dir_cache=no",
            ),
            (
                Seen {
                    denied_at_age: seconds(1),
                    ..Seen::default()
                },
                "lookupcache=none",
                "negative_timeout=0",
            ),
            (
                Seen {
                    old_size: true,
                    ..Seen::default()
                },
                "actimeo=0",
                "attr_timeout=0",
            ),
            (
                Seen {
                    old_contents: true,
                    ..Seen::default()
                },
                "without nocto",
                "direct_io",
            ),
        ];
        for (seen, nfs, sshfs) in cases {
            for (kind, option) in [("nfs4", nfs), ("fuse.sshfs", sshfs)] {
                let remarks = judge(&seen, kind);
                assert_eq!(remarks.len(), 1, "{seen:?}");
                assert!(remarks[0].advice.contains(option), "{kind}: {remarks:?}");
                assert!(remarks[0].what.contains(kind) && !remarks[0].grave);
            }
        }
    }

    #[test]
    fn what_is_fresh_is_not_remarked() {
        let fresh = Seen {
            listed_at_age: Some(Duration::from_millis(1200)),
            denied_at_age: Some(Duration::from_millis(60)),
            ..Seen::default()
        };
        assert_eq!(judge(&fresh, "nfs4"), []);
    }
}
