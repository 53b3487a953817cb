//! The byte stream below everything else.
//!
//! A [`Transport`] carries an ordered stream of bytes each way. Its user knows nothing else
//! about it: rings of granted pages, memory shared through a memfd, sockets and files all look the same.
//! Every method either returns at once or takes a deadline; none may wait for ever.

use std::time::{Duration, Instant};

use crate::awaited::Awaited;
use crate::clock;
use crate::error::{TransportError, timed_out};
use crate::waker::Waker;

/// First and longest turn of a wait for a transport that does not support wakers.
const FIRST_TURN: Duration = Duration::from_millis(1);
const LONGEST_TURN: Duration = Duration::from_millis(20);

/// The next operation that a caller of [`Transport::wait`] intends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Wait until [`Transport::try_read`] may make progress.
    Read,
    /// Wait until [`Transport::try_write`] may make progress.
    Write,
    /// Wait until either may.
    ReadOrWrite,
}

/// An ordered stream of bytes in each direction.
///
/// Both ends obey one rule that keeps a full pipe from becoming a deadlock: **a side that waits to
/// write also keeps reading** where the session allows the other side to send, which
/// [`Interest::ReadOrWrite`] makes possible on one thread.
pub trait Transport: Send {
    /// Moves up to `buf.len()` received bytes into `buf`, without waiting.
    ///
    /// `Ok(None)`: nothing there now. `Ok(Some(0))` with a non-empty `buf`: end of stream; every
    /// byte that was sent before it has been returned already.
    fn try_read(&mut self, buf: &mut [u8]) -> Result<Option<usize>, TransportError>;

    /// Takes up to `buf.len()` bytes for sending, without waiting; 0 means there is no room now.
    fn try_write(&mut self, buf: &[u8]) -> Result<usize, TransportError>;

    /// Takes up to all bytes of `parts`, one part after the other, for sending, without waiting.
    /// Where the transport can, the other side sees all bytes taken at once.
    fn try_write_parts(&mut self, parts: &[&[u8]]) -> Result<usize, TransportError> {
        let mut taken = 0;
        for part in parts.iter().filter(|part| !part.is_empty()) {
            match self.try_write(part) {
                Ok(n) => {
                    taken += n;
                    if n < part.len() {
                        break;
                    }
                }
                // It comes up again when the rest is written.
                Err(_) if taken > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }

    /// Waits until progress may be possible or `waker` is raised, at the latest until `deadline`.
    /// Without an `interest`, for the waker alone.
    ///
    /// May return early for no reason. The waker stays raised.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    fn wait_or(
        &mut self,
        interest: Option<Interest>,
        waker: &Waker,
        deadline: Instant,
    ) -> Result<(), TransportError> {
        let Some(interest) = interest else {
            return waker.wait(deadline);
        };
        // The waker is checked after every short wait for the transport.
        let mut turn = FIRST_TURN;
        loop {
            if waker.is_raised() {
                return Ok(());
            }
            let until = deadline.min(Instant::now() + turn);
            match self.wait(interest, until) {
                Err(TransportError::TimedOut(_)) if until < deadline => {}
                // The last check is for the waker too.
                Err(TransportError::TimedOut(_)) if waker.is_raised() => return Ok(()),
                outcome => return outcome,
            }
            turn = (turn * 2).min(LONGEST_TURN);
        }
    }

    /// [`wait_or`](Self::wait_or) for something that need not be woken for: a transport that polls before it
    /// sleeps looks at it too.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    fn wait_with(
        &mut self,
        interest: Option<Interest>,
        awaited: &mut dyn Awaited,
        deadline: Instant,
    ) -> Result<(), TransportError> {
        if awaited.has_come() {
            return Ok(());
        }
        let now = clock::now();
        awaited.sleep(now, now, deadline, timed_out, |waker, _, until| {
            self.wait_or(interest, waker, until)
        })
    }

    /// Waits until progress may be possible, at the latest until `deadline`. Does not wait at all
    /// while a read would return bytes, or a write take some, including bytes or room in the
    /// transport's own buffers.
    ///
    /// May return early for no reason, so callers retry and call again.
    ///
    /// # Errors
    /// [`TransportError::TimedOut`] when `deadline` passed.
    fn wait(&mut self, interest: Interest, deadline: Instant) -> Result<(), TransportError>;

    /// Makes every byte written so far visible to the other side.
    fn flush(&mut self, deadline: Instant) -> Result<(), TransportError>;

    /// Flushes, then ends the stream: the other side reads all that was written, then its end.
    /// After this, reads and writes return [`TransportError::Closed`].
    fn close(&mut self, deadline: Instant) -> Result<(), TransportError>;

    /// So many bytes go to the other side or come from it beside this transport, in memory that both have: for a
    /// transport that weighs what its waits cost against what it moves.
    fn count_beside(&mut self, bytes: u64) {
        let _ = bytes;
    }

    /// The other side's address, such as `local:/run/vgpu/demo.sock`, for messages.
    fn describe(&self) -> String;

    /// Fills `buf`, waiting as needed.
    ///
    /// # Errors
    /// [`TransportError::Closed`] when the stream ends before `buf` is full.
    fn read_exact(&mut self, buf: &mut [u8], deadline: Instant) -> Result<(), TransportError> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.try_read(&mut buf[filled..])? {
                Some(0) => return Err(TransportError::Closed),
                Some(n) => filled += n,
                None => self.wait(Interest::Read, deadline)?,
            }
        }
        Ok(())
    }

    /// Writes all of `buf`, waiting as needed. Does not flush.
    fn write_all(&mut self, mut buf: &[u8], deadline: Instant) -> Result<(), TransportError> {
        while !buf.is_empty() {
            match self.try_write(buf)? {
                0 => self.wait(Interest::Write, deadline)?,
                n => buf = &buf[n..],
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It carries nothing, and raises the waker of its user in the last turn.
    struct Silent<'w> {
        waker: &'w Waker,
        deadline: Instant,
    }

    impl Transport for Silent<'_> {
        fn try_read(&mut self, _: &mut [u8]) -> Result<Option<usize>, TransportError> {
            Ok(None)
        }

        fn try_write(&mut self, _: &[u8]) -> Result<usize, TransportError> {
            Ok(0)
        }

        fn wait(&mut self, _: Interest, deadline: Instant) -> Result<(), TransportError> {
            std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
            if deadline >= self.deadline {
                self.waker.raise();
            }
            Err(TransportError::TimedOut("read"))
        }

        fn flush(&mut self, _: Instant) -> Result<(), TransportError> {
            Ok(())
        }

        fn close(&mut self, _: Instant) -> Result<(), TransportError> {
            Ok(())
        }

        fn describe(&self) -> String {
            "nowhere".to_owned()
        }
    }

    #[test]
    fn a_waker_that_is_raised_in_the_last_turn_counts() {
        let waker = Waker::new().unwrap();
        let deadline = Instant::now() + Duration::from_millis(30);
        let mut silent = Silent {
            waker: &waker,
            deadline,
        };
        let waited = silent.wait_or(Some(Interest::Read), &waker, deadline);
        assert!(waited.is_ok(), "{waited:?}");
        waker.lower();
    }
}
