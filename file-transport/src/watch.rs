//! When a command is new.
//!
//! A client may write the number that stands in `command.txt` already, and means it: the command
//! shall run again. So not the number but the *writing* is what counts, and a writing shows in the
//! file's [`Stamp`]. [`Watch`] takes what each look at the file found and the time of the look, and
//! says what to do; it touches no file and no clock.

use std::time::{Duration, Instant};

use crate::guide::{Command, CommandError, Response, Status, parse_command};

/// How long a stamp must stay as it is before its command is taken.
///
/// File systems stamp files with a clock of up to 10 ms per tick. A command taken earlier could be
/// written anew within the same tick, which would leave no trace. The same pause joins the several
/// steps of one writing (truncate, write, set times) into one command.
pub const SETTLE: Duration = Duration::from_millis(20);

/// How long a number without a newline must lie unchanged before it is refused: until then its
/// writer may be in the middle of it, and `1` may become `12`. It never runs.
pub const SETTLE_UNTERMINATED: Duration = Duration::from_millis(500);

/// How long a file must stay empty before that is refused. Every writing begins with an empty file,
/// and over NFS a round trip or more lies between the truncation and the number.
pub const SETTLE_EMPTY: Duration = Duration::from_secs(2);

/// The time between two looks while commands come.
pub const POLL: Duration = Duration::from_millis(50);

/// The longest time between two looks, after [`QUIET`] without a command.
pub const POLL_QUIET: Duration = Duration::from_millis(200);

/// After this long without any change the looks become rarer.
pub const QUIET: Duration = Duration::from_secs(30);

/// What of a file changes when it is written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Inode number: another one after a rename over the file, or removal and creation.
    pub inode: u64,
    /// Size in bytes.
    pub size: u64,
    /// Last modification, nanoseconds since 1970.
    pub modified_ns: i128,
    /// Last change of contents or attributes, nanoseconds since 1970; catches a writer that sets
    /// the modification time back.
    pub changed_ns: i128,
}

/// What one look at `command.txt` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight<'a> {
    /// There is no such file, or it was written to during the look.
    Absent,
    /// It cannot be taken as a command file: a symbolic link, a FIFO, no permission.
    Unusable(&'a str),
    /// The file, with a stamp that was the same before and after the bytes were read.
    File {
        /// Identity and times.
        stamp: Stamp,
        /// The contents, or the first [`crate::guide::MAX_COMMAND_BYTES`] + 1 bytes.
        bytes: &'a [u8],
    },
}

/// What to do after a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing; look again after [`Watch::pause`].
    None,
    /// Put this into `response.txt`.
    Answer(Response),
    /// Run this command (never [`Command::Nothing`]), then put its outcome into `response.txt`.
    Run(Command),
}

/// Decides which writings of `command.txt` are new and complete.
#[derive(Debug)]
pub struct Watch {
    /// The writing that was dealt with last; `None` once the file was seen empty or absent, since
    /// then whatever comes is new.
    taken: Option<Stamp>,
    /// A writing that is not dealt with, and since when it has been as it is.
    settling: Option<(Stamp, Instant)>,
    /// The empty file that was refused, so that it is refused once; what is written then is new.
    refused_empty: Option<Stamp>,
    /// The reason for which the file was reported as unusable, so that it is reported once.
    unusable: Option<String>,
    /// When anything happened last.
    last_change: Instant,
}

impl Watch {
    /// A watch for which the writing `taken`, the mediator's own at start, is not new.
    pub fn new(taken: Option<Stamp>, now: Instant) -> Watch {
        Watch {
            taken,
            settling: None,
            refused_empty: None,
            unusable: None,
            last_change: now,
        }
    }

    /// Takes what a look found at the time `now`.
    pub fn see(&mut self, sight: Sight<'_>, now: Instant) -> Action {
        if !matches!(sight, Sight::Unusable(_)) {
            self.unusable = None;
        }
        match sight {
            Sight::Absent => {
                self.taken = None;
                self.refused_empty = None;
                self.settling = None;
                Action::None
            }
            Sight::Unusable(reason) => {
                self.taken = None;
                self.settling = None;
                if self.unusable.as_deref() == Some(reason) {
                    return Action::None;
                }
                self.unusable = Some(reason.to_owned());
                self.last_change = now;
                Action::Answer(Response::new(Status::Failure, reason))
            }
            Sight::File { stamp, bytes } => self.see_file(stamp, bytes, now),
        }
    }

    fn see_file(&mut self, stamp: Stamp, bytes: &[u8], now: Instant) -> Action {
        if bytes.is_empty() && self.refused_empty != Some(stamp) {
            // Truncated, so being written: what comes next is new even if it looks the same.
            self.taken = None;
        }
        if !bytes.is_empty() && self.refused_empty.take().is_some() {
            self.taken = None;
        }
        if self.taken == Some(stamp) {
            self.settling = None;
            return Action::None;
        }
        let age = match self.settling {
            Some((settling, since)) if settling == stamp => now.saturating_duration_since(since),
            _ => {
                self.settling = Some((stamp, now));
                self.last_change = now;
                return Action::None;
            }
        };
        if age < SETTLE {
            return Action::None;
        }
        let parsed = match parse_command(bytes) {
            Err(CommandError::Empty) if age < SETTLE_EMPTY => return Action::None,
            Err(CommandError::HalfWritten) if age < SETTLE_UNTERMINATED => return Action::None,
            other => other,
        };
        if bytes.is_empty() {
            self.refused_empty = Some(stamp);
        }
        self.taken = Some(stamp);
        self.settling = None;
        self.last_change = now;
        match parsed {
            Ok(Command::Nothing) => Action::Answer(Response::ready()),
            Ok(command) => Action::Run(command),
            Err(error) => Action::Answer(Response::new(Status::Failure, &error.to_string())),
        }
    }

    /// How long to wait before the next look: shorter while a writing settles, longer when nothing
    /// has happened for a while, never more than [`POLL_QUIET`].
    pub fn pause(&self, now: Instant) -> Duration {
        let quiet_for = now.saturating_duration_since(self.last_change);
        match self.settling {
            Some((_, since)) if now.saturating_duration_since(since) < POLL => SETTLE,
            _ if quiet_for < QUIET => POLL,
            _ => POLL_QUIET,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stamp(tick: i128) -> Stamp {
        Stamp {
            inode: 7,
            size: 2,
            modified_ns: tick,
            changed_ns: tick,
        }
    }

    /// Looks twice, far enough apart for the writing to settle, and gives the second action.
    fn look(watch: &mut Watch, now: &mut Instant, stamp: Stamp, bytes: &[u8]) -> Action {
        let first = watch.see(Sight::File { stamp, bytes }, *now);
        *now += SETTLE;
        let second = watch.see(Sight::File { stamp, bytes }, *now);
        *now += POLL;
        if first == Action::None { second } else { first }
    }

    #[test]
    fn a_writing_runs_once_and_a_rewriting_again() {
        let mut now = Instant::now();
        let mut watch = Watch::new(Some(stamp(1)), now);
        assert_eq!(look(&mut watch, &mut now, stamp(1), b"0\n"), Action::None);
        assert_eq!(
            look(&mut watch, &mut now, stamp(2), b"1\n"),
            Action::Run(Command::VectorAdd)
        );
        assert_eq!(look(&mut watch, &mut now, stamp(2), b"1\n"), Action::None);
        assert_eq!(
            look(&mut watch, &mut now, stamp(3), b"1\n"),
            Action::Run(Command::VectorAdd)
        );
        assert_eq!(
            look(&mut watch, &mut now, stamp(4), b"0\n"),
            Action::Answer(Response::ready())
        );
    }

    #[test]
    fn each_part_of_the_stamp_tells_a_rewriting() {
        let base = stamp(1);
        for other in [
            Stamp { inode: 8, ..base },
            Stamp { size: 3, ..base },
            Stamp {
                modified_ns: 2,
                ..base
            },
            Stamp {
                changed_ns: 2,
                ..base
            },
        ] {
            let mut now = Instant::now();
            let mut watch = Watch::new(Some(base), now);
            assert_eq!(
                look(&mut watch, &mut now, other, b"2\n"),
                Action::Run(Command::GpuInfo)
            );
        }
    }

    #[test]
    fn a_truncation_makes_the_same_stamp_new() {
        let mut now = Instant::now();
        let mut watch = Watch::new(None, now);
        assert_eq!(
            look(&mut watch, &mut now, stamp(1), b"1\n"),
            Action::Run(Command::VectorAdd)
        );
        let empty = Stamp {
            size: 0,
            ..stamp(1)
        };
        assert_eq!(look(&mut watch, &mut now, empty, b""), Action::None);
        assert_eq!(
            look(&mut watch, &mut now, stamp(1), b"1\n"),
            Action::Run(Command::VectorAdd)
        );
        assert_eq!(watch.see(Sight::Absent, now), Action::None);
        assert_eq!(
            look(&mut watch, &mut now, stamp(1), b"1\n"),
            Action::Run(Command::VectorAdd)
        );
    }

    #[test]
    fn a_command_waits_until_it_is_whole() {
        let start = Instant::now();
        let mut watch = Watch::new(None, start);
        let half = Sight::File {
            stamp: stamp(1),
            bytes: b"1",
        };
        assert_eq!(watch.see(half, start), Action::None);
        assert_eq!(watch.see(half, start + SETTLE), Action::None);
        // `12` and its newline arrive.
        let whole = Sight::File {
            stamp: stamp(2),
            bytes: b"12\n",
        };
        assert_eq!(watch.see(whole, start + SETTLE * 2), Action::None);
        assert!(matches!(
            watch.see(whole, start + SETTLE * 3),
            Action::Answer(_)
        ));
    }

    #[test]
    fn a_number_without_newline_is_refused_after_a_while_and_never_runs() {
        let start = Instant::now();
        let mut watch = Watch::new(None, start);
        let half = Sight::File {
            stamp: stamp(1),
            bytes: b"2",
        };
        assert_eq!(watch.see(half, start), Action::None);
        assert_eq!(
            watch.see(half, start + SETTLE_UNTERMINATED - SETTLE),
            Action::None
        );
        let refused = Response::new(Status::Failure, &CommandError::HalfWritten.to_string());
        assert_eq!(
            watch.see(half, start + SETTLE_UNTERMINATED),
            Action::Answer(refused)
        );
        assert_eq!(
            watch.see(half, start + SETTLE_UNTERMINATED * 2),
            Action::None
        );
        // The newline comes after all.
        let mut now = start + SETTLE_UNTERMINATED * 3;
        assert_eq!(
            look(&mut watch, &mut now, stamp(2), b"2\n"),
            Action::Run(Command::GpuInfo)
        );
    }

    #[test]
    fn a_file_that_stays_empty_is_refused_once() {
        for (nothing, then) in [(&b""[..], stamp(1)), (b"\n", stamp(2))] {
            let start = Instant::now();
            let mut watch = Watch::new(None, start);
            let empty = Sight::File {
                stamp: stamp(1),
                bytes: nothing,
            };
            let refused = Response::new(Status::Failure, &CommandError::Empty.to_string());
            assert_eq!(watch.see(empty, start), Action::None);
            assert_eq!(watch.see(empty, start + SETTLE_EMPTY / 2), Action::None);
            assert_eq!(
                watch.see(empty, start + SETTLE_EMPTY),
                Action::Answer(refused)
            );
            assert_eq!(watch.see(empty, start + SETTLE_EMPTY * 2), Action::None);
            assert_eq!(watch.see(empty, start + SETTLE_EMPTY * 9), Action::None);
            let mut now = start + SETTLE_EMPTY * 10;
            assert_eq!(
                look(&mut watch, &mut now, then, b"1\n"),
                Action::Run(Command::VectorAdd)
            );
        }
    }

    #[test]
    fn an_unusable_file_is_reported_once() {
        let now = Instant::now();
        let mut watch = Watch::new(None, now);
        assert!(matches!(
            watch.see(Sight::Unusable("a link"), now),
            Action::Answer(_)
        ));
        assert_eq!(watch.see(Sight::Unusable("a link"), now), Action::None);
        assert!(matches!(
            watch.see(Sight::Unusable("a pipe"), now),
            Action::Answer(_)
        ));
    }

    #[test]
    fn looks_become_rarer_but_never_rare() {
        let start = Instant::now();
        let mut watch = Watch::new(None, start);
        assert_eq!(watch.pause(start), POLL);
        assert_eq!(watch.pause(start + QUIET * 100), POLL_QUIET);
        let later = start + QUIET * 100;
        watch.see(
            Sight::File {
                stamp: stamp(1),
                bytes: b"",
            },
            later,
        );
        assert_eq!(watch.pause(later), SETTLE);
        assert_eq!(watch.pause(later + POLL), POLL);
    }

    proptest! {
        /// Whatever is written and whenever it is looked at, no writing runs twice.
        #[test]
        fn no_writing_runs_twice(
            looks in proptest::collection::vec((0i128..4, 0u64..120, prop::sample::select(vec![&b"1\n"[..], b"2\n", b"1", b"x\n", b"\n"])), 1..60)
        ) {
            let mut now = Instant::now();
            let mut watch = Watch::new(None, now);
            let mut ran = Vec::new();
            let mut tick = 0;
            for (step, wait_ms, bytes) in looks {
                now += Duration::from_millis(wait_ms);
                tick += step;
                // The bytes belong to the stamp: within one tick they stay.
                let bytes = if step == 0 { b"1\n" } else { bytes };
                let action = watch.see(Sight::File { stamp: stamp(tick), bytes }, now);
                if matches!(action, Action::Run(_)) {
                    prop_assert!(!ran.contains(&tick));
                    ran.push(tick);
                }
            }
        }

        #[test]
        fn any_bytes_give_an_action(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let now = Instant::now();
            let mut watch = Watch::new(None, now);
            watch.see(Sight::File { stamp: stamp(1), bytes: &bytes }, now);
            let action = watch.see(Sight::File { stamp: stamp(1), bytes: &bytes }, now + SETTLE_UNTERMINATED);
            let blank = bytes.iter().all(u8::is_ascii_whitespace) && bytes.len() <= crate::guide::MAX_COMMAND_BYTES;
            prop_assert_eq!(action == Action::None, blank);
        }
    }
}
