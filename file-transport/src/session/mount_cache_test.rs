//! The guest's test of its mount, while it connects: what is remembered here that is no longer so
//! there.
//!
//! Sessions do without fresh caches; they are only slower. Programs that wait for a file by its name
//! or read one again and again, as those of the two files do, do not. So what is found is said, and
//! ends nothing.
//!
//! Ages are those of the machine that keeps the files: the difference of two times that it gave to
//! two files. No clocks are compared.

use std::thread;
use std::time::{Duration, Instant};

use super::directory::{PROBE_CONTENT, SessionDirectory};
use super::file_name::{ASK, PROBE};
use super::mount::{Mount, Remark};
use super::shared_directory::{Content, SharedDirectory};

/// How long a thorough test asks for a name before it looks at the directory.
const NAME_TEST_LIMIT: Duration = Duration::from_secs(2);

/// How long a thorough test waits for the mediator to change a file.
const CHANGE_TEST_LIMIT: Duration = Duration::from_secs(3);

/// Times of sshfs are whole seconds, so nothing less counts as late.
const LATE: Duration = Duration::from_millis(1500);

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);

/// What was seen. Pure; see [`judge`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// How old a file was when the directory's listing showed it first.
    pub listed_at_age: Option<Duration>,
    /// How old it was when a lookup of its name still said that there is none.
    pub denied_at_age: Option<Duration>,
    /// A file that had grown was given with its old size.
    pub old_size: bool,
    /// A file that had grown was read, opened anew, with its old contents.
    pub old_contents: bool,
}

/// What `seen` means on a file system of this kind (as in `nfs4`).
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

/// The test, as far as it has come.
#[derive(Debug)]
pub struct CacheTest {
    mount: Option<Mount>,
    thorough: bool,
    /// When a lookup said last that there is no probe.
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

    /// Asks for the probe by its name, which a look at the directory would help the mount to answer.
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

    /// After each look at the directory. Returns whether the test is over.
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
        // A thorough test has looked late of its own accord.
        if !self.thorough {
            self.seen.listed_at_age = Some(age);
            return;
        }
        self.seen.denied_at_age = self
            .denied
            .and_then(|denied| age.checked_sub(now.saturating_duration_since(denied)));
        // What is read and asked now is what a cache may keep.
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

    /// What the mount's options say and what was seen.
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
