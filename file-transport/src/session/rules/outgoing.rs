//! Writing: data as far as the window goes, beats when they are due; removing what the peer has
//! taken.

use std::time::Instant;

use super::space::full;
use super::{
    ACK_DELAY, BEAT_INTERVAL, BEATS_KEPT, Exchange, Fault, Frozen, MAX_IN_FLIGHT, Piece,
    STIR_INTERVAL, Unsent, bear, name,
};
use crate::session::file_name;
use crate::session::segment::{HEADER, Header, Kind};
use crate::session::shared_directory::{SharedDirectory, Trouble};

impl Exchange {
    /// Writes the pieces that `next` returns, as far as the window allows. Returns whether it
    /// wrote.
    ///
    /// `next` returns `None` when there is nothing to send.
    ///
    /// # Errors
    /// The session is over.
    pub fn send(
        &mut self,
        directory: &mut dyn SharedDirectory,
        next: &mut dyn FnMut() -> Option<Piece>,
        now: Instant,
    ) -> Result<bool, Fault> {
        let mut wrote = false;
        loop {
            if self.frozen.is_none() {
                if self.unsent.is_none() && self.has_room() {
                    self.unsent = next().map(|piece| Unsent { piece, at: HEADER });
                }
                if !self.has_room() || !self.cut(directory, now)? {
                    return Ok(wrote);
                }
            }
            let Some(frozen) = &self.frozen else {
                return Ok(wrote);
            };
            let number = self.data_written + 1;
            let name = file_name::segment(self.role, Kind::Data, number);
            if let Err(trouble) = directory.publish(&name, &frozen.file) {
                if matches!(trouble, Trouble::Full { .. }) {
                    self.thaw();
                }
                bear(&mut self.unwritable, trouble, now)?;
                return Ok(wrote);
            }
            let payload = frozen.file.len() - HEADER;
            let (last, taken) = (frozen.last, frozen.taken);
            self.frozen = None;
            self.space.wrote(payload);
            self.cramped = None;
            self.out_ended = last;
            self.tell(taken);
            self.data_written = number;
            self.bytes_written += payload as u64;
            self.in_flight.push_back(payload);
            self.in_flight_bytes += payload;
            self.written(now);
            self.stir_after = STIR_INTERVAL;
            wrote = true;
        }
    }

    /// Cuts as much of the current piece as there is space for. Returns whether there is a file
    /// now.
    fn cut(&mut self, directory: &mut dyn SharedDirectory, now: Instant) -> Result<bool, Fault> {
        let Some(Unsent { piece, at }) = &self.unsent else {
            return Ok(false);
        };
        let left = piece.file.len() - at;
        let in_flight = (self.in_flight_bytes, self.in_flight.len());
        let Some(most) = self.space.allowance(directory, left, in_flight, now) else {
            // Files in flight free space when they are taken; without any, others must free it.
            if self.in_flight.is_empty() {
                bear(&mut self.cramped, full(), now)?;
            }
            return Ok(false);
        };
        let Some(Unsent { piece, at }) = self.unsent.take() else {
            return Ok(false);
        };
        let n = left.min(most);
        let last = piece.last && n == left;
        let mut file = match at {
            HEADER if n == left => piece.file,
            _ => {
                let mut file = vec![0; HEADER];
                file.extend_from_slice(&piece.file[at..at + n]);
                if n < left {
                    self.unsent = Some(Unsent { piece, at: at + n });
                }
                file
            }
        };
        let header = Header {
            last,
            ..self.header(Kind::Data, self.data_written + 1)
        };
        header.complete(&mut file);
        self.frozen = Some(Frozen {
            file,
            last,
            taken: header.taken,
        });
        Ok(true)
    }

    /// No part of the frozen file exists, so its bytes may go into smaller files.
    fn thaw(&mut self) {
        let Some(Frozen { file, last, .. }) = self.frozen.take() else {
            return;
        };
        let payload = file.len() - HEADER;
        self.space.refused(payload);
        match &mut self.unsent {
            // It was cut from this piece, which still has its bytes.
            Some(unsent) => unsent.at -= payload,
            None => {
                let piece = Piece { file, last };
                self.unsent = Some(Unsent { piece, at: HEADER });
            }
        }
    }

    fn header(&self, kind: Kind, number: u64) -> Header {
        Header {
            number,
            taken: self.taken,
            offset: self.bytes_written,
            ..Header::first(self.role, kind, self.session, self.writer)
        }
    }

    /// Notes that the other side can read the acknowledgement `taken`.
    fn tell(&mut self, taken: u64) {
        self.told = self.told.max(taken);
        if self.told == self.taken {
            self.untold_bytes = 0;
            self.untold_since = None;
        }
    }

    fn written(&mut self, now: Instant) {
        self.written_at = now;
        self.beat_failed = false;
        // On a full disk there may be room for a beat and none for data.
        if !self.is_held_up() {
            self.unwritable = None;
        }
    }

    /// Writes a beat if one is due. Returns whether it wrote.
    ///
    /// # Errors
    /// The session is over.
    pub fn beat(
        &mut self,
        directory: &mut dyn SharedDirectory,
        now: Instant,
    ) -> Result<bool, Fault> {
        if !self.is_beat_due(directory, now) {
            return Ok(false);
        }
        self.write_beat(directory, false, now)
    }

    /// The latest time at which the next beat is due.
    pub fn beat_due_at(&self) -> Instant {
        let pause = if self.remote {
            self.stir_after.min(BEAT_INTERVAL)
        } else {
            BEAT_INTERVAL
        };
        let beat = self.written_at + pause;
        self.untold_since
            .map_or(beat, |since| beat.min(since + ACK_DELAY))
    }

    fn is_beat_due(&mut self, directory: &mut dyn SharedDirectory, now: Instant) -> bool {
        if self.beat_failed {
            return now >= self.beat_due_at();
        }
        let untold = self.taken - self.told;
        self.beats_written == 0
            || self.untold_bytes >= self.space.peers_window(directory, self.untold_bytes, now) / 4
            || untold >= MAX_IN_FLIGHT as u64 / 4
            || (untold > 0 && self.in_ended)
            || now >= self.beat_due_at()
    }

    /// Notifies the other side that this one ends without closing.
    ///
    /// # Errors
    /// The session is over anyway.
    pub fn give_up(
        &mut self,
        directory: &mut dyn SharedDirectory,
        now: Instant,
    ) -> Result<(), Fault> {
        self.write_beat(directory, true, now).map(|_| ())
    }

    fn write_beat(
        &mut self,
        directory: &mut dyn SharedDirectory,
        gives_up: bool,
        now: Instant,
    ) -> Result<bool, Fault> {
        // A beat whose write failed may exist, so its number is used up.
        self.beats_written += 1;
        let number = self.beats_written;
        let header = Header {
            gives_up,
            ..self.header(Kind::Beat, number)
        };
        let name = file_name::segment(self.role, Kind::Beat, number);
        let published = directory.publish(&name, &header.encode(&[]));
        if now >= self.written_at + self.stir_after {
            self.stir_after = (self.stir_after * 2).min(BEAT_INTERVAL);
        }
        if let Some(old) = number.checked_sub(BEATS_KEPT).filter(|old| *old > 0) {
            self.remove(directory, Kind::Beat, old)?;
        }
        match published {
            Ok(()) => {
                self.tell(header.taken);
                self.written(now);
                Ok(true)
            }
            Err(trouble) => {
                bear(&mut self.unwritable, trouble, now)?;
                // Not retried at every look.
                self.beat_failed = true;
                self.written_at = now;
                self.untold_since = self.untold_since.map(|_| now);
                Ok(false)
            }
        }
    }

    /// Notes what the peer has taken, and removes it.
    pub(super) fn note(
        &mut self,
        directory: &mut dyn SharedDirectory,
        header: &Header,
    ) -> Result<(), Fault> {
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
            self.remove(directory, Kind::Data, oldest)?;
        }
    }

    /// Removes a file of this side. One that cannot be removed only takes up space.
    fn remove(
        &mut self,
        directory: &mut dyn SharedDirectory,
        kind: Kind,
        number: u64,
    ) -> Result<(), Fault> {
        match directory.remove(&file_name::segment(self.role, kind, number)) {
            Err(Trouble::Gone) => Err(Fault::Vanished),
            Err(trouble) => {
                log::debug!("{trouble}");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}
