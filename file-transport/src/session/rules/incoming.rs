//! Looking: takes what comes next, refuses violations, detects silence.

use std::io;
use std::time::Instant;

use nix::errno::Errno;

use super::space::Space;
use super::{Exchange, Fault, LOOKS, Looked, STIR_INTERVAL, Taken, Trying, bear, name};
use crate::session::file_name;
use crate::session::segment::{HEADER, Header, Kind, MAX_FILE, Role, SegmentError};
use crate::session::shared_directory::{Content, SharedDirectory};

impl Exchange {
    /// Looks once: takes the next segments, as long as they fit in `space` bytes, notes what the
    /// peer has taken, and removes that.
    ///
    /// # Errors
    /// The session is over.
    pub fn look(
        &mut self,
        directory: &mut dyn SharedDirectory,
        space: usize,
        now: Instant,
    ) -> Result<Looked, Fault> {
        self.looks_since = self.looks_since.saturating_add(1);
        let names = match directory.list() {
            Ok(names) => names,
            Err(trouble) => {
                bear(&mut self.unreadable, trouble, now)?;
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
            looked.news |= self.take_beat(directory, newest_beat, now)?;
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
            let Some(piece) = self.take_data(directory, number, now)? else {
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
            self.stir_after = STIR_INTERVAL;
        }
        // Segments that the other side wrote before its end must still be read.
        if complete && !looked.more && self.expects_peer() && looked.pieces.is_empty() {
            if (gone || self.gave_up) && Space::is_full(directory) {
                return Err(Fault::Io {
                    context: format!("the {} ended on a full file system", name(self.role.peer())),
                    source: io::Error::from_raw_os_error(Errno::ENOSPC as i32),
                });
            }
            if gone {
                return Err(Fault::MediatorGone);
            }
            if self.gave_up {
                return Err(Fault::GaveUp(self.role.peer()));
            }
        }
        let silent = self.looks_since >= LOOKS
            && now.saturating_duration_since(self.news_at) >= self.silence;
        // Before there is a peer, the connecting caller has a deadline.
        if silent && self.peer.is_some() && self.expects_peer() {
            return Err(Fault::Silent(self.role.peer(), self.silence));
        }
        self.peer_left |= self.in_ended && (gone || self.gave_up || silent);
        Ok(looked)
    }

    /// Whether the other side still has to write something: the rest of its stream, or that it has taken
    /// all bytes of this side's.
    fn expects_peer(&self) -> bool {
        !self.in_ended || self.in_flight_bytes > 0
    }

    /// Reads a beat. Returns whether it was one.
    fn take_beat(
        &mut self,
        directory: &mut dyn SharedDirectory,
        number: u64,
        now: Instant,
    ) -> Result<bool, Fault> {
        let Some((header, _)) = self.open(directory, Kind::Beat, number, now)? else {
            return Ok(false);
        };
        self.beat_seen = number;
        self.note(directory, &header)?;
        self.gave_up |= header.gives_up;
        Ok(true)
    }

    /// Takes the next data segment, unless it cannot be read yet.
    fn take_data(
        &mut self,
        directory: &mut dyn SharedDirectory,
        number: u64,
        now: Instant,
    ) -> Result<Option<Taken>, Fault> {
        let Some((header, file)) = self.open(directory, Kind::Data, number, now)? else {
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
        self.note(directory, &header)?;
        let payload = file.len() - HEADER;
        self.taken = number;
        self.bytes_taken += payload as u64;
        self.in_ended = header.last;
        self.untold_bytes += payload;
        self.untold_since.get_or_insert(now);
        Ok(Some(Taken { file, at: HEADER }))
    }

    /// Reads a listed file and checks that it matches its name.
    fn open(
        &mut self,
        directory: &mut dyn SharedDirectory,
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
        let file = match directory.read(&name, most) {
            Ok(Content::Bytes(file)) => file,
            // A beat that was replaced meanwhile, or data whose name outlives it in a listing.
            Ok(Content::Absent) => return Ok(None),
            Ok(Content::Unfit(what)) => {
                return Err(Fault::Violation(format!("{name} is {what}")));
            }
            Err(trouble) => {
                bear(&mut self.unreadable, trouble, now)?;
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
                self.unreadable = None;
                Ok(Some((header, file)))
            }
            Err(error) => self.suspect(name, error, now).map(|()| None),
        }
    }

    /// A file that is incomplete may be complete at the next look, but may not stay so for ever.
    fn suspect(&mut self, name: String, error: SegmentError, now: Instant) -> Result<(), Fault> {
        let mut trying = match self.suspect.take() {
            Some((suspect, trying)) if suspect == name => Some(trying),
            _ => None,
        };
        if !error.may_pass() || Trying::is_over(&mut trying, now) {
            return Err(Fault::Violation(format!("{name}: {error}")));
        }
        self.suspect = trying.map(|trying| (name, trying));
        Ok(())
    }
}
