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

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use super::file_name;
use super::room::{Content, Room, Trouble};
use super::segment::{HEADER, Header, Kind, MAX_FILE, Role, SegmentError};
use crate::name::SessionName;

/// Bytes of the stream that lie in files and were not taken yet, at most, each way.
pub const WINDOW: usize = 8 << 20;

/// Data files that were not taken yet, at most, each way.
pub const MAX_IN_FLIGHT: usize = 64;

/// A side that has written nothing else for this long writes a beat.
pub const BEAT: Duration = Duration::from_secs(1);

/// A side of which nothing new was seen for this long, in at least [`LOOKS`] looks, is dead, unless
/// [`Exchange::bear_silence`] says otherwise.
pub const SILENCE: Duration = Duration::from_secs(20);

/// Looks that must have brought nothing before a side counts as dead: a machine that was asleep for
/// an hour has looked at nothing in that time.
pub const LOOKS: u32 = 10;

/// How long a full disk, or a file that cannot be read, is tried again before the session ends.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What was taken is acknowledged this much later, unless another file says it before.
const ACK_DELAY: Duration = Duration::from_millis(100);

/// On a file system that may hold old listings, a side that waits writes beats at growing distances
/// from this on: a change of its own makes its system ask the server.
const STIR: Duration = Duration::from_millis(10);

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
    /// The system has refused for [`PATIENCE`].
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
    /// [`HEADER`] bytes of room, then at most [`super::segment::MAX_PAYLOAD`] bytes.
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
    /// Whether listings may be old; see [`STIR`].
    remote: bool,
    silence: Duration,
    peer: Option<[u8; 16]>,

    data_written: u64,
    bytes_written: u64,
    /// Encoded, and perhaps in place already: never changed any more.
    frozen: Option<Frozen>,
    /// Bytes of each data file that the peer has not taken, the oldest first.
    in_flight: VecDeque<usize>,
    in_flight_bytes: usize,
    out_ended: bool,
    beats_written: u64,
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

    /// A file that cannot be read yet, and since when.
    suspect: Option<(String, Instant)>,
    /// Since when the system refuses to read, and to write.
    unreadable_since: Option<Instant>,
    unwritable_since: Option<Instant>,
}

#[derive(Debug)]
struct Frozen {
    file: Vec<u8>,
    last: bool,
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
            frozen: None,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            out_ended: false,
            beats_written: 0,
            written_at: now,
            stir_after: STIR,
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
            unreadable_since: None,
            unwritable_since: None,
        }
    }

    /// Gives the other side up after this much silence, instead of [`SILENCE`]; at least three beats.
    pub fn bear_silence(&mut self, silence: Duration) {
        self.silence = silence.max(BEAT * 3);
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

    /// Whether there is a file that has yet to be written: try again soon.
    pub fn is_held_up(&self) -> bool {
        self.frozen.is_some()
    }

    /// Looks once: takes what comes next while `space` bytes are not used up, notes what the peer
    /// has taken, and removes that.
    ///
    /// # Errors
    /// The session is over.
    pub fn look(
        &mut self,
        room: &mut dyn Room,
        space: usize,
        now: Instant,
    ) -> Result<Looked, Fault> {
        self.looks_since = self.looks_since.saturating_add(1);
        let names = match room.list() {
            Ok(names) => names,
            Err(trouble) => {
                bear(&mut self.unreadable_since, trouble, now)?;
                return Ok(Looked::default());
            }
        };
        let mut looked = Looked::default();
        let mut newest_beat = 0;
        let mut gone = false;
        let mut data = Vec::new();
        for name in &names {
            match file_name::parse(name) {
                Some((role, Kind::Beat, number)) if role == self.role.peer() => {
                    newest_beat = newest_beat.max(number);
                }
                Some((role, Kind::Data, number)) if role == self.role.peer() => data.push(number),
                None if name == file_name::GONE => gone = self.role == Role::Guest,
                None if name == file_name::ASK => looked.probed |= self.role == Role::Mediator,
                None if name == file_name::CHANGED => looked.probed |= self.role == Role::Guest,
                _ => {}
            }
        }
        if newest_beat > self.beat_seen {
            looked.news |= self.take_beat(room, newest_beat, now)?;
        }
        data.sort_unstable();
        let newest = data.last().copied().unwrap_or(0);
        looked.news |= newest > self.data_seen;
        self.data_seen = self.data_seen.max(newest);
        let mut complete = true;
        let mut space_left = space;
        for number in data {
            if number != self.taken + 1 || self.in_ended {
                continue;
            }
            if space_left == 0 {
                looked.more = true;
                break;
            }
            let Some(piece) = self.take_data(room, number, now)? else {
                complete = false;
                break;
            };
            space_left = space_left.saturating_sub(piece.bytes().len());
            looked.news = true;
            if !piece.bytes().is_empty() {
                looked.pieces.push(piece);
            }
        }
        if looked.news {
            self.news_at = now;
            self.looks_since = 0;
            self.stir_after = STIR;
        }
        // What the other side wrote before its end is still to be read.
        if complete && !looked.more && !self.in_ended && looked.pieces.is_empty() {
            if gone {
                return Err(Fault::MediatorGone);
            }
            if self.gave_up {
                return Err(Fault::GaveUp(self.role.peer()));
            }
        }
        self.check_silence(now)?;
        Ok(looked)
    }

    fn check_silence(&self, now: Instant) -> Result<(), Fault> {
        let silent = now.saturating_duration_since(self.news_at) >= self.silence;
        // Before there is a peer, whoever connects has a deadline; after its end there is nothing to
        // hear any more.
        let expected = self.peer.is_some() && !self.in_ended;
        if silent && expected && self.looks_since >= LOOKS {
            return Err(Fault::Silent(self.role.peer(), self.silence));
        }
        Ok(())
    }

    /// Reads a beat. Returns whether it was one.
    fn take_beat(&mut self, room: &mut dyn Room, number: u64, now: Instant) -> Result<bool, Fault> {
        let Some((header, _)) = self.open(room, Kind::Beat, number, now)? else {
            return Ok(false);
        };
        self.beat_seen = number;
        self.note(room, &header)?;
        self.gave_up |= header.gives_up;
        Ok(true)
    }

    /// Takes the next data segment, unless it cannot be read yet.
    fn take_data(
        &mut self,
        room: &mut dyn Room,
        number: u64,
        now: Instant,
    ) -> Result<Option<Taken>, Fault> {
        let Some((header, file)) = self.open(room, Kind::Data, number, now)? else {
            return Ok(None);
        };
        if header.offset != self.bytes_taken {
            return Err(Fault::Violation(format!(
                "{} begins at byte {} of the stream, not at {}",
                file_name::segment(header.role, Kind::Data, number),
                header.offset,
                self.bytes_taken
            )));
        }
        self.note(room, &header)?;
        let payload = file.len() - HEADER;
        self.taken = number;
        self.bytes_taken += payload as u64;
        self.in_ended = header.last;
        self.untold_bytes += payload;
        self.untold_since.get_or_insert(now);
        Ok(Some(Taken { file, at: HEADER }))
    }

    /// Reads a file that was listed and checks that it is what its name says.
    fn open(
        &mut self,
        room: &mut dyn Room,
        kind: Kind,
        number: u64,
        now: Instant,
    ) -> Result<Option<(Header, Vec<u8>)>, Fault> {
        let role = self.role.peer();
        let name = file_name::segment(role, kind, number);
        let most = match kind {
            Kind::Data => MAX_FILE,
            Kind::Beat => HEADER,
        };
        let file = match room.read(&name, most) {
            Ok(Content::Bytes(file)) => file,
            // A beat that was replaced meanwhile; data whose name outlives it in a listing.
            Ok(Content::Absent) => return Ok(None),
            Ok(Content::Unfit(what)) => {
                return Err(Fault::Violation(format!("{name} is {what}")));
            }
            Err(trouble) => {
                bear(&mut self.unreadable_since, trouble, now)?;
                return Ok(None);
            }
        };
        let checked = Header::decode(&file).and_then(|header| {
            header.check(role, kind, number, self.session, self.peer)?;
            Ok(header)
        });
        match checked {
            Ok(header) => {
                self.peer = Some(header.writer);
                if self
                    .suspect
                    .as_ref()
                    .is_some_and(|(suspect, _)| *suspect == name)
                {
                    self.suspect = None;
                }
                self.unreadable_since = None;
                Ok(Some((header, file)))
            }
            Err(error) => self.suspect(name, error, now).map(|()| None),
        }
    }

    /// A file that is not whole may be so at the next look, but not for ever.
    fn suspect(&mut self, name: String, error: SegmentError, now: Instant) -> Result<(), Fault> {
        let since = match &self.suspect {
            Some((suspect, since)) if *suspect == name => *since,
            _ => now,
        };
        if !error.may_pass() || now.saturating_duration_since(since) >= PATIENCE {
            return Err(Fault::Violation(format!("{name}: {error}")));
        }
        self.suspect = Some((name, since));
        Ok(())
    }

    /// Notes what the peer has taken, and removes it.
    fn note(&mut self, room: &mut dyn Room, header: &Header) -> Result<(), Fault> {
        if header.taken > self.data_written {
            return Err(Fault::Violation(format!(
                "the {} says it has taken segment {}, and there are {}",
                name(header.role),
                header.taken,
                self.data_written
            )));
        }
        // An older file may be read after a newer one.
        loop {
            let oldest = self.data_written - self.in_flight.len() as u64 + 1;
            if oldest > header.taken {
                return Ok(());
            }
            if let Some(bytes) = self.in_flight.pop_front() {
                self.in_flight_bytes -= bytes;
            }
            self.remove(room, Kind::Data, oldest)?;
        }
    }

    /// Removes a file of its own. One that stays is in nobody's way but the disk's.
    fn remove(&mut self, room: &mut dyn Room, kind: Kind, number: u64) -> Result<(), Fault> {
        match room.remove(&file_name::segment(self.role, kind, number)) {
            Err(Trouble::Gone) => Err(Fault::Vanished),
            Err(trouble) => {
                log::debug!("{trouble}");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Writes the pieces that `next` gives, as far as the window allows. Returns whether it wrote.
    ///
    /// `next` gives nothing when there is nothing to send.
    ///
    /// # Errors
    /// The session is over.
    pub fn send(
        &mut self,
        room: &mut dyn Room,
        next: &mut dyn FnMut() -> Option<Piece>,
        now: Instant,
    ) -> Result<bool, Fault> {
        let mut wrote = false;
        loop {
            if self.frozen.is_none() && self.has_room() {
                self.frozen = next().map(|piece| self.freeze(piece));
            }
            let Some(frozen) = &self.frozen else {
                return Ok(wrote);
            };
            let number = self.data_written + 1;
            let name = file_name::segment(self.role, Kind::Data, number);
            if let Err(trouble) = room.publish(&name, &frozen.file) {
                bear(&mut self.unwritable_since, trouble, now)?;
                return Ok(wrote);
            }
            let payload = frozen.file.len() - HEADER;
            self.out_ended = frozen.last;
            self.frozen = None;
            self.data_written = number;
            self.bytes_written += payload as u64;
            self.in_flight.push_back(payload);
            self.in_flight_bytes += payload;
            self.written(now);
            self.stir_after = STIR;
            wrote = true;
        }
    }

    fn freeze(&mut self, piece: Piece) -> Frozen {
        let Piece { mut file, last } = piece;
        let header = Header {
            last,
            ..self.header(Kind::Data, self.data_written + 1)
        };
        self.tell();
        header.complete(&mut file);
        Frozen { file, last }
    }

    fn header(&self, kind: Kind, number: u64) -> Header {
        Header {
            role: self.role,
            kind,
            last: false,
            gives_up: false,
            session: self.session,
            writer: self.writer,
            number,
            taken: self.taken,
            offset: self.bytes_written,
        }
    }

    fn tell(&mut self) {
        self.told = self.taken;
        self.untold_bytes = 0;
        self.untold_since = None;
    }

    fn written(&mut self, now: Instant) {
        self.written_at = now;
        // On a full disk there may be room for a beat and none for data.
        if self.frozen.is_none() {
            self.unwritable_since = None;
        }
    }

    /// Writes a beat if one is due. Returns whether it wrote.
    ///
    /// # Errors
    /// The session is over.
    pub fn beat(&mut self, room: &mut dyn Room, now: Instant) -> Result<bool, Fault> {
        if !self.is_beat_due(now) {
            return Ok(false);
        }
        self.write_beat(room, false, now)
    }

    /// When a beat is due at the latest.
    pub fn beat_due_at(&self) -> Instant {
        let pause = if self.remote {
            self.stir_after.min(BEAT)
        } else {
            BEAT
        };
        let beat = self.written_at + pause;
        self.untold_since
            .map_or(beat, |since| beat.min(since + ACK_DELAY))
    }

    fn is_beat_due(&self, now: Instant) -> bool {
        let untold = self.taken - self.told;
        self.beats_written == 0
            || self.untold_bytes >= WINDOW / 4
            || untold >= MAX_IN_FLIGHT as u64 / 4
            || (untold > 0 && self.in_ended)
            || now >= self.beat_due_at()
    }

    /// Tells the other side that this one ends without closing.
    ///
    /// # Errors
    /// The session is over anyway.
    pub fn give_up(&mut self, room: &mut dyn Room, now: Instant) -> Result<(), Fault> {
        self.write_beat(room, true, now).map(|_| ())
    }

    fn write_beat(
        &mut self,
        room: &mut dyn Room,
        gives_up: bool,
        now: Instant,
    ) -> Result<bool, Fault> {
        // A beat that failed may be in place, so its number is used up.
        self.beats_written += 1;
        let number = self.beats_written;
        let header = Header {
            gives_up,
            ..self.header(Kind::Beat, number)
        };
        let name = file_name::segment(self.role, Kind::Beat, number);
        let published = room.publish(&name, &header.encode(&[]));
        if now >= self.written_at + self.stir_after {
            self.stir_after = (self.stir_after * 2).min(BEAT);
        }
        if let Some(old) = number.checked_sub(BEATS_KEPT).filter(|old| *old > 0) {
            self.remove(room, Kind::Beat, old)?;
        }
        match published {
            Ok(()) => {
                self.tell();
                self.written(now);
                Ok(true)
            }
            Err(trouble) => {
                bear(&mut self.unwritable_since, trouble, now)?;
                // Not at every look.
                self.written_at = now;
                self.untold_since = self.untold_since.map(|_| now);
                Ok(false)
            }
        }
    }
}

/// The system refused: borne for a while, unless the directory is gone.
fn bear(since: &mut Option<Instant>, trouble: Trouble, now: Instant) -> Result<(), Fault> {
    match trouble {
        Trouble::Gone => Err(Fault::Vanished),
        crowded @ Trouble::Crowded(_) => Err(Fault::Violation(crowded.to_string())),
        Trouble::Io { context, source } => {
            let since = *since.get_or_insert(now);
            if now.saturating_duration_since(since) >= PATIENCE {
                return Err(Fault::Io { context, source });
            }
            Ok(())
        }
    }
}
