//! The rules of a session: the next file to take, the next to write, and when to give up. The
//! directory and the time are arguments.
//!
//! # Not relied on
//! * **Fresh listings.** A name that is not seen yet is looked for again. A name that is seen but
//!   gone is one the other side has removed. Nothing is concluded from a name that is missing, but
//!   that the other side is silent, after [`SILENCE`].
//! * **Looking up names that may not exist.** Only listed names are opened, so no file system can
//!   remember their absence.
//! * **Overwriting, locks, link counts, times.** Each name is written once and removed by its writer.
//! * **The reader's right to remove.** It says what it has taken, in whatever file it writes next.
//!
//! # Why a request runs at most once
//!
//! # Why a small file system does not fill up

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

/// Most bytes of the stream in files not taken yet, each way.
pub const WINDOW: usize = 8 << 20;

/// Most data files not taken yet, each way.
pub const MAX_IN_FLIGHT: usize = 64;

/// A side that has written nothing else for this long writes a beat.
pub const BEAT_INTERVAL: Duration = Duration::from_secs(1);

/// A side that has shown nothing new for this long, in at least [`LOOKS`] looks, is dead, unless
/// [`Exchange::bear_silence`] sets another time.
pub const SILENCE: Duration = Duration::from_secs(20);

/// Looks that must have found nothing before a side counts as dead: a machine that was asleep for
/// an hour has not looked in that time. The same number of tries must have failed before
/// [`RETRY_LIMIT`] applies.
pub const LOOKS: u32 = 10;

/// Time for which a full disk, or a file that cannot be read, is tried again before the session
/// ends, and at least [`LOOKS`] times.
pub const RETRY_LIMIT: Duration = Duration::from_secs(5);

/// Delay after which taken segments are acknowledged, unless another file does so before.
const ACK_DELAY: Duration = Duration::from_millis(100);

/// On a file system that may return old listings, a side that waits writes beats at growing
/// intervals, starting with this one: a change of its own makes its system ask the server.
const STIR_INTERVAL: Duration = Duration::from_millis(10);

/// Number of its own beats that a side leaves in place, so that a reader with an old listing finds
/// one.
const BEATS_KEPT: u64 = 4;

/// The reasons why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The directory is gone.
    #[error("the session's directory is gone: it was removed, or the file system under it")]
    Vanished,
    /// Nothing new was seen for this long.
    #[error("the {} has given no sign of life for {} s", name(*.0), .1.as_secs())]
    Silent(Role, Duration),
    /// A later mediator, or the same one after the session's process died, has marked the session.
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
        /// The operation that failed.
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
    /// It is the last one.
    pub last: bool,
}

/// A piece of the stream that was received: the bytes as they were read, copied once.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    file: Vec<u8>,
    at: usize,
}

impl Taken {
    /// The bytes not used yet.
    pub fn bytes(&self) -> &[u8] {
        &self.file[self.at..]
    }

    /// Marks `n` bytes as used.
    pub fn advance(&mut self, n: usize) {
        self.at = (self.at + n).min(self.file.len());
    }
}

/// The result of a look.
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
    /// The part of the current piece that is in no file yet.
    unsent: Option<Unsent>,
    /// Encoded, and perhaps in place already: never changed again, unless the disk was full.
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
    /// The peer has ended its stream and then left, perhaps before it could read that this one's ended.
    peer_left: bool,
    beat_seen: u64,
    data_seen: u64,
    news_at: Instant,
    looks_since: u32,
    /// Segments acknowledged to the peer.
    told: u64,
    /// Bytes taken and not acknowledged yet.
    untold_bytes: usize,
    /// Since when there have been such bytes.
    untold_since: Option<Instant>,

    /// A file that cannot be read yet.
    suspect: Option<(String, Trying)>,
    /// Since when the system has refused to read, to write, and to give space for data.
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
    /// The acknowledgement that the file carries.
    taken: u64,
}

/// Start and number of consecutive failures.
#[derive(Debug, Clone, Copy)]
struct Trying {
    since: Instant,
    tries: u32,
}

impl Trying {
    /// Notes another failure at `now`. Returns whether it was the last one tolerated. Time alone
    /// does not count: a process that did not run meanwhile has not tried.
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
            peer_left: false,
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

    /// This side's role.
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

    /// Whether this side's stream has ended, and the other has taken all of it. A peer that has left after
    /// the end of its own stream acknowledges nothing more: then every byte taken is enough, and the mark of
    /// the end may lie there unread.
    pub fn was_read_whole(&self) -> bool {
        let unread = match self.peer_left {
            true => self.in_flight_bytes > 0,
            false => !self.in_flight.is_empty(),
        };
        self.out_ended && !unread
    }

    /// Whether both streams have ended, as far as this side can see. The other side may have
    /// removed whatever it no longer needs.
    pub fn has_ended(&self) -> bool {
        self.out_ended && self.in_ended
    }

    /// Whether both streams have ended and were taken whole, and both sides know.
    pub fn is_finished(&self) -> bool {
        self.was_read_whole() && self.in_ended && self.told == self.taken
    }

    /// Whether another piece may be sent now.
    pub fn has_room(&self) -> bool {
        !self.out_ended && self.in_flight_bytes < WINDOW && self.in_flight.len() < MAX_IN_FLIGHT
    }

    /// Whether a piece still has to be written: try again soon.
    pub fn is_held_up(&self) -> bool {
        self.frozen.is_some() || self.unsent.is_some()
    }
}

/// Handles a refusal of the system: tolerated for a while, unless the directory is gone.
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
