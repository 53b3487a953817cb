#![forbid(unsafe_code)]
//! Waiting for two channels, or for a channel and a socket, at once.
//!
//! For one thread that passes data from one to the other. As with one channel, a wait first polls
//! for a while, for as long as that has paid so far, and then sleeps; two idle sides cost nothing.
//!
//! ```
//! use std::os::unix::net::UnixStream;
//! use std::time::{Duration, Instant};
//! use vchan::two_channels::{Side, TwoChannels};
//! use vchan::{Interest, Result, local};
//!
//! # fn main() -> Result<()> {
//! # let soon = || Instant::now() + Duration::from_secs(10);
//! # let pair = || -> Result<_> {
//! #     let (one, other) = UnixStream::pair().unwrap();
//! #     let server = std::thread::spawn(move || local::serve_on(one, 4096, soon()));
//! #     let client = local::connect_on(other, soon())?;
//! #     Ok((server.join().unwrap()?, client))
//! # };
//! # let ((mut left, mut far_left), (mut right, _far_right)) = (pair()?, pair()?);
//! let mut both = TwoChannels::new();
//! # far_left.write_all(b"hello", soon())?;
//! // Only what would block needs a wait.
//! while left.available()? == 0 && right.available()? == 0 {
//!     let sides = [
//!         Side::Channel(&mut left, Interest::Read),
//!         Side::Channel(&mut right, Interest::Read),
//!     ];
//!     both.wait(sides, soon())?;
//! }
//! # assert_eq!(left.available()?, 5);
//! # Ok(())
//! # }
//! ```

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use crate::channel::Channel;
use crate::error::{Error, Result};
use crate::sync::atomic::Ordering;
use crate::waiting::comparison::Moved;
use crate::waiting::poll::{Watched, poll_from, poll_now};
use crate::waiting::spin::{Looked, Spin};
use vgpu_transport::Interest;

const WAITING: &str = "move bytes on either side";

/// One of the two sides of a wait.
#[derive(Debug)]
pub enum Side<'a> {
    /// A channel, and the interest to wait for.
    Channel(&'a mut Channel, Interest),
    /// A descriptor of another kind, such as a socket, and the interest to wait for.
    Descriptor(BorrowedFd<'a>, Interest),
    /// Nothing is awaited on this side now, not even its end.
    Nothing,
}

/// Waits for two sides, and learns how long polling pays.
#[derive(Debug)]
pub struct TwoChannels {
    spin: Spin,
    /// Bytes that each side had moved when it was last a channel, and all that were seen to move.
    seen: [u64; 2],
    moved: u64,
}

impl Default for TwoChannels {
    fn default() -> Self {
        Self::new()
    }
}

impl TwoChannels {
    /// A waiter without history. Keep it as long as the two sides.
    pub fn new() -> Self {
        Self {
            spin: Spin::new(Duration::ZERO),
            seen: [0; 2],
            moved: 0,
        }
    }

    /// Waits until one of the sides may make progress. May return early for no reason.
    ///
    /// It polls at most for the shorter of the two channels' limits: see [`Channel::set_spin`].
    ///
    /// # Errors
    /// [`Error::TimedOut`] at `deadline`, [`Error::Os`]. An error of a channel ends the wait at
    /// once and is reported by the channel's own calls.
    pub fn wait(&mut self, mut sides: [Side<'_>; 2], deadline: Instant) -> Result<()> {
        let longest = sides.iter().filter_map(Side::longest_look).min();
        let longest = longest.unwrap_or(Duration::ZERO);
        if self.spin.max() != longest {
            self.spin.set_max(longest);
        }
        // A side that is no channel for a while does not count as having moved back.
        for (seen, side) in self.seen.iter_mut().zip(&sides) {
            if let Side::Channel(channel, _) = side {
                let now = channel.moved();
                let more = now.wrapping_sub(std::mem::replace(seen, now));
                self.moved = self.moved.wrapping_add(more);
            }
        }
        loop {
            let looked = self
                .spin
                .run(Moved::usual(self.moved), deadline, |thorough| {
                    any(&mut sides, |side| match thorough || side.has_moved() {
                        true => side.is_ready(),
                        false => Ok(false),
                    })
                })?;
            let (start, now) = match looked {
                Looked::Ready => return Ok(()),
                Looked::Nothing { start, now } => (start, now),
            };
            sides.iter().for_each(Side::ask);
            if any(&mut sides, Side::is_ready)? {
                sides.iter().for_each(Side::withdraw);
                return Ok(());
            }
            let woken = sleep(&sides, now, deadline);
            let end = self.spin.now();
            self.spin.waited(end.saturating_duration_since(start));
            match woken {
                Ok(()) | Err(Error::TimedOut(_)) => {}
                Err(error) => return Err(error),
            }
            // Also after the deadline: see `look_then_sleep`.
            if any(&mut sides, Side::is_ready)? {
                sides.iter().for_each(Side::withdraw);
                return Ok(());
            }
            // A peer that rings without end must not carry us beyond the deadline.
            if end >= deadline {
                return Err(Error::TimedOut(WAITING));
            }
        }
    }
}

fn any<'a>(
    sides: &mut [Side<'a>; 2],
    mut test: impl FnMut(&mut Side<'a>) -> Result<bool>,
) -> Result<bool> {
    let [one, other] = sides;
    Ok(test(one)? || test(other)?)
}

/// Sleeps until one of them rings, and acknowledges whichever did.
fn sleep(sides: &[Side<'_>; 2], now: Instant, deadline: Instant) -> Result<()> {
    for side in sides {
        if let Side::Channel(channel, _) = side {
            channel.shared().sleeps.fetch_add(1, Ordering::Relaxed);
        }
    }
    let fds: Vec<_> = sides.iter().filter_map(Side::watched).collect();
    let ready = poll_from(&fds, now, deadline)?;
    if !ready.any() {
        return Err(Error::TimedOut(WAITING));
    }
    let waiting = sides.iter().filter(|side| !matches!(side, Side::Nothing));
    for (i, side) in waiting.enumerate() {
        if let (Side::Channel(channel, _), true) = (side, ready.has(i)) {
            channel.shared().acknowledge()?;
        }
    }
    Ok(())
}

impl Side<'_> {
    /// The longest time for which this side lets a wait poll; `None` if it has no limit.
    fn longest_look(&self) -> Option<Duration> {
        match self {
            Self::Channel(channel, _) => Some(channel.spin()),
            Self::Descriptor(..) | Self::Nothing => None,
        }
    }

    #[inline]
    fn has_moved(&self) -> bool {
        match self {
            Self::Channel(channel, interest) => channel.has_moved(*interest),
            Self::Descriptor(..) | Self::Nothing => false,
        }
    }

    fn is_ready(&mut self) -> Result<bool> {
        match self {
            Self::Channel(channel, interest) => channel.is_ready(*interest),
            Self::Descriptor(fd, interest) => poll_now(&[(*fd, events(*interest))]),
            Self::Nothing => Ok(false),
        }
    }

    fn ask(&self) {
        if let Self::Channel(channel, interest) = self {
            channel.ask(*interest);
        }
    }

    fn withdraw(&self) {
        if let Self::Channel(channel, interest) = self {
            channel.no_longer_ask(*interest);
        }
    }

    fn watched(&self) -> Option<Watched<'_>> {
        match self {
            Self::Channel(channel, _) => Some((channel.as_fd(), PollFlags::POLLIN)),
            Self::Descriptor(fd, interest) => Some((*fd, events(*interest))),
            Self::Nothing => None,
        }
    }
}

fn events(interest: Interest) -> PollFlags {
    match interest {
        Interest::Read => PollFlags::POLLIN,
        Interest::Write => PollFlags::POLLOUT,
        Interest::ReadOrWrite => PollFlags::POLLIN | PollFlags::POLLOUT,
    }
}
