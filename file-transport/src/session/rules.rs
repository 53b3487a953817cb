//! The rules of a session: which file to take, which to write, when to give up. The directory and
//! the time are arguments.
//!
//! # What it does not rely on
//! * **Fresh listings.** A name that is not seen yet is looked for again. A name that is seen but
//!   gone is one the other side has removed. Nothing is concluded from a name that is missing, but
//!   that the other side is silent, after [`SILENCE`].
//! * **Looking up names that may not exist.** Only listed names are opened, so no file system can
//!   remember their absence.
//! * **Overwriting, locks, link counts, times.** Each name is written once and removed by its writer.
//! * **The reader's right to remove.** It says what it has taken, in whatever file it writes next.
//!
//! # What makes a request run at most once
//! A data segment is taken when its number is the next one, and numbers only grow, so no file counts
//! twice, however often it is seen. A segment whose writing failed is written again with the same
//! bytes under the same name (an NFS server may have done what it seemed to refuse). Every file
//! names the process that wrote it, by 128 random bits; the first one seen stays the only one, so
//! neither a new mediator nor a new guest can go on with what another began.
//!
//! # What keeps a small file system from filling up
//! Both directions, and other sessions, write into one pool. A side that filled it would stop the
//! other, whose result has to go somewhere before it takes more. So a side has at most half of what
//! is left to it in flight, and cuts its pieces to that: see `space.rs`.

mod incoming;
mod outgoing;
mod space;

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use super::segment::Role;
use super::shared_directory::Trouble;
use crate::name::SessionName;
use space::Space;

/// Bytes of the stream that lie in files and were not taken yet, at most, each way.
pub const WINDOW: usize = 8 << 20;

/// Data files that were not taken yet, at most, each way.
pub const MAX_IN_FLIGHT: usize = 64;

/// A side that has written nothing else for this long writes a beat.
pub const BEAT_INTERVAL: Duration = Duration::from_secs(1);

/// A side of which nothing new was seen for this long, in at least [`LOOKS`] looks, is dead, unless
/// [`Exchange::bear_silence`] says otherwise.
pub const SILENCE: Duration = Duration::from_secs(20);

/// Looks that must have brought nothing before a side counts as dead: a machine that was asleep for
/// an hour has looked at nothing in that time. The same number of tries must have failed before
/// [`RETRY_LIMIT`] ends.
pub const LOOKS: u32 = 10;

/// How long a full disk, or a file that cannot be read, is tried again before the session ends, and
/// at least [`LOOKS`] times.
pub const RETRY_LIMIT: Duration = Duration::from_secs(5);

/// What was taken is acknowledged this much later, unless another file says it before.
const ACK_DELAY: Duration = Duration::from_millis(100);

/// On a file system that may hold old listings, a side that waits writes beats at growing distances
/// from this on: a change of its own makes its system ask the server.
const STIR_INTERVAL: Duration = Duration::from_millis(10);

/// Beats of its own that a side leaves in place, so that a reader with an old listing finds one.
const BEATS_KEPT: u64 = 4;

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The directory is there no more.
    #[error("the session's directory is gone: it was removed, or the file system under it")]
    Vanished,
    /// Nothing new was seen for this long.
    #[error("the {} has given no sign of life for {} s", name(*.0), .1.as_secs())]
    Silent(Role, Duration),
    /// A later mediator, or the same one after the session's process died, has left word.
    #[error("the mediator that served this session is gone")]
    MediatorGone,
    /// The other side ended without closing.
    #[error("the {} ended without closing", name(*.0))]
    GaveUp(Role),
    /// The other side broke the rules.
    #[error("{0}")]
    Violation(String),
    /// The system has refused for [`RETRY_LIMIT`].
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The system's answer.
        source: io::Error,
    },
}

fn name(role: Role) -> &'static str {
    match role {
        Role::Guest => "guest",
        Role::Mediator => "mediator",
    }
}

/// A piece of the stream to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// [`super::segment::HEADER`] bytes of room, then at most [`super::segment::MAX_PAYLOAD`] bytes.
    pub file: Vec<u8>,
    /// Nothing comes after it.
    pub last: bool,
}

/// A piece of the stream that was received: the bytes as they were read, copied once.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    file: Vec<u8>,
    at: usize,
}

impl Taken {
    /// What is left of it.
    pub fn bytes(&self) -> &[u8] {
        &self.file[self.at..]
    }

    /// `n` bytes of it are used.
    pub fn advance(&mut self, n: usize) {
        self.at = (self.at + n).min(self.file.len());
    }
}

/// What a look has brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// The next pieces of the stream, in order.
    pub pieces: Vec<Taken>,
    /// Whether the other side has written anything new.
    pub news: bool,
    /// Whether there is more to take once there is space.
    pub more: bool,
    /// Whether the other side's part of the guest's test of its mount is there.
    pub probed: bool,
}

/// One side of one session.
#[derive(Debug)]
pub struct Exchange {
    role: Role,
    session: SessionName,
    writer: [u8; 16],
    /// Whether listings may be old; see [`STIR_INTERVAL`].
    remote: bool,
    silence: Duration,
    peer: Option<[u8; 16]>,

    data_written: u64,
    bytes_written: u64,
    /// What is in no file yet of the piece that was begun.
    unsent: Option<Unsent>,
    /// Encoded, and perhaps in place already: never changed any more, unless the disk was full.
    frozen: Option<Frozen>,
    space: Space,
    /// Bytes of each data file that the peer has not taken, the oldest first.
    in_flight: VecDeque<usize>,
    in_flight_bytes: usize,
    out_ended: bool,
    beats_written: u64,
    /// The last beat could not be written.
    beat_failed: bool,
    written_at: Instant,
    stir_after: Duration,

    taken: u64,
    bytes_taken: u64,
    in_ended: bool,
    gave_up: bool,
    beat_seen: u64,
    data_seen: u64,
    news_at: Instant,
    looks_since: u32,
    /// What the peer was told it may remove, and what it was not told yet.
    told: u64,
    untold_bytes: usize,
    untold_since: Option<Instant>,

    /// A file that cannot be read yet.
    suspect: Option<(String, Trying)>,
    /// Since when the system refuses to read, to write, and to give space for data.
    unreadable: Option<Trying>,
    unwritable: Option<Trying>,
    cramped: Option<Trying>,
}

/// A piece of which the part from `at` on is in no file yet.
#[derive(Debug)]
struct Unsent {
    piece: Piece,
    at: usize,
}

#[derive(Debug)]
struct Frozen {
    file: Vec<u8>,
    last: bool,
    /// What the file says was taken.
    taken: u64,
}

/// Since when something has been failing, and how many times.
#[derive(Debug, Clone, Copy)]
struct Trying {
    since: Instant,
    tries: u32,
}

impl Trying {
    /// Notes another failure at `now`; whether it was the last one to be borne. The time alone does
    /// not count: a process that did not run meanwhile has not tried.
    fn is_over(trying: &mut Option<Self>, now: Instant) -> bool {
        let trying = trying.get_or_insert(Self {
            since: now,
            tries: 0,
        });
        trying.tries = trying.tries.saturating_add(1);
        now.saturating_duration_since(trying.since) >= RETRY_LIMIT && trying.tries >= LOOKS
    }
}

impl Exchange {
    /// One side of `session`, before it has written or seen anything. `writer` is drawn at random,
    /// anew each time. `remote`: the file system may show old listings.
    pub fn new(
        role: Role,
        session: SessionName,
        writer: [u8; 16],
        remote: bool,
        now: Instant,
    ) -> Self {
        Self {
            role,
            session,
            writer,
            remote,
            silence: SILENCE,
            peer: None,
            data_written: 0,
            bytes_written: 0,
            unsent: None,
            frozen: None,
            space: Space::default(),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            out_ended: false,
            beats_written: 0,
            beat_failed: false,
            written_at: now,
            stir_after: STIR_INTERVAL,
            taken: 0,
            bytes_taken: 0,
            in_ended: false,
            gave_up: false,
            beat_seen: 0,
            data_seen: 0,
            news_at: now,
            looks_since: 0,
            told: 0,
            untold_bytes: 0,
            untold_since: None,
            suspect: None,
            unreadable: None,
            unwritable: None,
            cramped: None,
        }
    }

    /// Gives the other side up after this much silence, instead of [`SILENCE`]; at least three beats.
    pub fn bear_silence(&mut self, silence: Duration) {
        self.silence = silence.max(BEAT_INTERVAL * 3);
    }

    /// Which side this is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether the other side has written anything.
    pub fn is_connected(&self) -> bool {
        self.peer.is_some()
    }

    /// Whether the other side's stream has ended, and all of it was taken.
    pub fn has_read_all(&self) -> bool {
        self.in_ended
    }

    /// Whether this side's stream has ended, and the other has taken all of it.
    pub fn was_read_whole(&self) -> bool {
        self.out_ended && self.in_flight.is_empty()
    }

    /// Whether both streams have ended, as far as this side can see. What the other does not need any
    /// more it may have removed.
    pub fn has_ended(&self) -> bool {
        self.out_ended && self.in_ended
    }

    /// Whether both streams have ended, were taken whole, and each side has been told so.
    pub fn is_finished(&self) -> bool {
        self.was_read_whole() && self.in_ended && self.told == self.taken
    }

    /// Whether another piece may be sent now.
    pub fn has_room(&self) -> bool {
        !self.out_ended && self.in_flight_bytes < WINDOW && self.in_flight.len() < MAX_IN_FLIGHT
    }

    /// Whether there is a piece that has yet to be written: try again soon.
    pub fn is_held_up(&self) -> bool {
        self.frozen.is_some() || self.unsent.is_some()
    }
}

/// The system refused: borne for a while, unless the directory is gone.
fn bear(trying: &mut Option<Trying>, trouble: Trouble, now: Instant) -> Result<(), Fault> {
    match trouble {
        Trouble::Gone => Err(Fault::Vanished),
        crowded @ Trouble::Crowded(_) => Err(Fault::Violation(crowded.to_string())),
        Trouble::Io { context, source } | Trouble::Full { context, source } => {
            if Trying::is_over(trying, now) {
                return Err(Fault::Io { context, source });
            }
            Ok(())
        }
    }
}
