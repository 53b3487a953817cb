//! Decides when a command is new.
//!
//! A client may write the number that `command.txt` already holds, and means it: the command shall
//! run again. So each *write* counts rather than the number, and a write shows in the file's
//! [`Stamp`]. [`Watch`] takes the result and the time of each look at the file, and returns the
//! action to take; it touches no file and no clock.

use std::time::{Duration, Instant};

use crate::two_file_grammar::{Command, CommandError, Response, Status, parse_command};

/// Time for which a stamp must not change before its command is taken.
///
/// File systems stamp files with a clock of up to 10 ms per tick. A command taken earlier could be
/// overwritten within the same tick, which would leave no trace. The same pause joins the steps of
/// one write (truncate, write, set times) into one command.
pub const SETTLE: Duration = Duration::from_millis(20);

/// Time for which a number without a newline must not change before it is refused: until then its
/// writer may not be done, and `1` may become `12`. It never runs.
pub const SETTLE_UNTERMINATED: Duration = Duration::from_millis(500);

/// Time for which a file must stay empty before it is refused. Every write begins with an empty
/// file, and over NFS a round trip or more lies between the truncation and the number.
pub const SETTLE_EMPTY: Duration = Duration::from_secs(2);

/// The time between two looks while commands come.
pub const POLL: Duration = Duration::from_millis(50);

/// The longest time between two looks, after [`QUIET`] without a command.
pub const POLL_QUIET: Duration = Duration::from_millis(200);

/// Time without any change after which looks become rarer.
pub const QUIET: Duration = Duration::from_secs(30);

/// The attributes of a file that change when it is written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Inode number: changes with a rename over the file, or with removal and creation.
    pub inode: u64,
    /// Size in bytes.
    pub size: u64,
    /// Last modification, nanoseconds since 1970.
    pub modified_ns: i128,
    /// Last change of contents or attributes, nanoseconds since 1970; catches a writer that sets
    /// the modification time back.
    pub changed_ns: i128,
}

/// The result of one look at `command.txt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight<'a> {
    /// There is no such file, or it was written to during the look.
    Absent,
    /// It cannot be used as a command file: a symbolic link, a FIFO, no permission.
    Unusable(&'a str),
    /// The file, with a stamp that was the same before and after the bytes were read.
    File {
        /// Identity and times.
        stamp: Stamp,
        /// The contents, or the first [`crate::two_file_grammar::MAX_COMMAND_BYTES`] + 1 bytes.
        bytes: &'a [u8],
    },
}

/// The action to take after a look.
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
    /// The write that was handled last; `None` once the file was seen empty or absent, since
    /// anything after that is new.
    taken: Option<Stamp>,
    /// A write that has not been handled, and since when it has not changed.
    settling: Option<(Stamp, Instant)>,
    /// The empty file that was refused, so that it is refused once; the next write is new.
    refused_empty: Option<Stamp>,
    /// The reason for which the file was reported as unusable, so that it is reported once.
    unusable: Option<String>,
    /// Time of the last change.
    last_change: Instant,
}

impl Watch {
    /// A watch for which the write `taken`, the mediator's own at start, is not new.
    pub fn new(taken: Option<Stamp>, now: Instant) -> Watch {
        Watch {
            taken,
            settling: None,
            refused_empty: None,
            unusable: None,
            last_change: now,
        }
    }

    /// Takes the result of a look made at the time `now`.
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
            // Truncated, so being written: the next contents are new even if they look the same.
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

    /// The pause before the next look: shorter while a write settles, longer when nothing has
    /// happened for a while, never more than [`POLL_QUIET`].
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
mod tests;
