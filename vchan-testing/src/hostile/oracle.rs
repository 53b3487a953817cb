#![forbid(unsafe_code)]
//! The right outcome: the answers that the pages allow, and the bytes that may change.

use super::pages::Picture;
use super::victim::{Victim, size};
use super::{PAYLOADS, Said};
use vchan::error::{Error, PeerError, Result};
use vchan::layout::PAGE;

/// The expected private state of the victim.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// Our index in the ring that we read.
    pub(super) cons: u32,
    /// Bytes known to be there.
    pub(super) known: u32,
    /// Our index in the ring that we write.
    pub(super) prod: u32,
    /// Unread bytes according to the peer's last checked index.
    pub(super) unread: u32,
    /// The peer's first fault.
    pub(super) dead: Option<PeerError>,
    /// The peer was found gone, or we have closed.
    pub(super) over: bool,
}

/// The liar's indexes as seen from our private ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct Legal {
    pub(super) incoming: bool,
    pub(super) outgoing: bool,
    pub(super) ahead: u32,
}

impl Victim {
    /// Whether these bytes were ever at that place: payload, or the bytes that a reset leaves.
    pub(super) fn check_payload(&self, position: u32, bytes: &[u8]) -> Said<()> {
        let ring = self.pages.incoming().len();
        for (i, byte) in bytes.iter().enumerate() {
            let at = (position as usize + i) % ring;
            if ![0, PAYLOADS[0][at], PAYLOADS[1][at]].contains(byte) {
                return Err(format!("byte {at} of the ring was read as {byte:#x}"));
            }
        }
        Ok(())
    }

    pub(super) fn legal(&self, before: &Picture) -> Legal {
        let (reads, writes) = self.pages.words();
        let ahead = before.word(reads.prod).wrapping_sub(self.model.cons);
        let pending = self.model.prod.wrapping_sub(before.word(writes.cons));
        Legal {
            incoming: (self.model.known..=size(&before.incoming)).contains(&ahead),
            outgoing: pending <= self.model.unread,
            ahead,
        }
    }

    /// Checks that these pages allow this answer.
    pub(super) fn judge(
        &mut self,
        outcome: Result<&'static str>,
        legal: Legal,
        before: &Picture,
    ) -> Said<&'static str> {
        let (reads, writes) = self.pages.words();
        let (_, live) = self.pages.lives();
        if let (Some(first), Err(Error::Peer(now))) = (&self.model.dead, &outcome)
            && first != now
        {
            return Err(format!("first {first:?}, then {now:?}"));
        }
        match outcome {
            Ok("gone" | "end of stream") => {
                self.model.over = true;
                Ok("end of stream")
            }
            Ok("ready") => Ok("ready"), // to say so, if it is broken
            Ok("closed") if self.model.dead.is_none() => Ok("closed"),
            Ok(name) if self.model.dead.is_none() => Ok(name),
            Ok(name) => Err(format!("`{name}` after {:?}", self.model.dead)),
            Err(Error::TimedOut(_)) if self.model.dead.is_none() => Ok("timed out"),
            Err(Error::PeerClosed { .. }) if self.model.dead.is_none() => {
                self.model.over = true;
                Ok("peer closed")
            }
            Err(Error::Closed) => Ok("closed"),
            Err(Error::Peer(error)) => {
                let (true_to_page, name) = match &error {
                    PeerError::Producer { found, .. } => (
                        !legal.incoming && *found == before.word(reads.prod),
                        "write index refused",
                    ),
                    PeerError::Consumer { found, .. } => (
                        !legal.outgoing && *found == before.word(writes.cons),
                        "read index refused",
                    ),
                    PeerError::Live { found, .. } => (
                        *found > 1 && *found == before.pages[live],
                        "live byte refused",
                    ),
                    _ => (false, ""),
                };
                if self.model.dead.is_none() && !true_to_page {
                    return Err(format!("{error:?}, but {legal:?}"));
                }
                self.model.dead.get_or_insert(error);
                Ok(name)
            }
            Err(error) => Err(format!("{error:?}")),
        }
    }

    /// Checks that only our own fields have changed, to the values they must have.
    pub(super) fn check_untouched(
        &self,
        before: &Picture,
        after: &Picture,
        expected: &[u8],
        closed: bool,
    ) -> Said<()> {
        if after.incoming != before.incoming {
            return Err("the ring that is only read has changed".to_owned());
        }
        if after.outgoing != expected {
            return Err("the ring that is written holds something else".to_owned());
        }
        // The control page from the start of the rings to its end was checked above.
        let rings = self.pages.rings_from()..PAGE;
        if before.pages[..rings.start] == after.pages[..rings.start]
            && before.pages[rings.end..] == after.pages[rings.end..]
        {
            return Ok(());
        }
        let (reads, writes) = self.pages.words();
        let (own_live, _) = self.pages.lives();
        let own = [
            (reads.cons, self.model.cons),
            (writes.prod, self.model.prod),
        ];
        for at in (0..before.pages.len()).filter(|at| !rings.contains(at)) {
            if before.pages[at] == after.pages[at] {
                continue;
            }
            let word = at & !3;
            let right = match own.iter().find(|(place, _)| *place == word) {
                // A close drops the bytes still in the ring.
                Some((_, index)) => after.word(word) == *index || closed,
                None => {
                    let requests = self.pages.requests();
                    requests.contains(&at)
                        || (self.pages.is_extended() && requests.contains(&word))
                        || (at == own_live && closed)
                        || (self.pages.ended() == Some(word) && closed && after.word(word) == 1)
                }
            };
            if !right {
                return Err(format!(
                    "byte {at} of the pages has changed: the word there is {:#x}, was {:#x}",
                    after.word(word),
                    before.word(word)
                ));
            }
        }
        Ok(())
    }
}
