#![forbid(unsafe_code)]
//! One wait: poll the ring for a while, ask to be woken, check again, sleep.

use std::time::{Duration, Instant};

use vgpu_transport::{Awaited, Waker};

use crate::channel::channel_state::Shared;
use crate::error::{Error, Result};
use crate::sync::atomic::Ordering;
use crate::waiting::comparison::Moved;
use crate::waiting::spin::{Looked, Spin};

/// The amount a waiting side would like to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// The amount that is worth the end of polling.
    Awake,
    /// The amount that is worth a wake-up.
    Plenty,
    /// The least amount that makes a step possible.
    Enough,
}

/// A side that waits for steps of the peer.
pub(crate) trait Waits {
    /// The state common to both halves.
    fn shared(&self) -> &Shared;
    /// The spin window of the half that waits.
    fn spin(&mut self) -> &mut Spin;
    /// Bytes that this half has moved so far.
    fn moved(&self) -> Moved;
    /// Whether the peer's index has changed since it was last seen. Must cost next to nothing.
    fn has_moved(&self) -> bool;
    /// For how long a sleeper holds out for [`Wish::Plenty`] in the wait that begins, if at all.
    /// `polling_pays`, or not.
    fn holds_out(&mut self, polling_pays: bool) -> Option<Duration>;
    /// Whether the wish is fulfilled, or an error or end is there to be reported.
    fn is_ready(&mut self, wish: Wish) -> Result<bool>;
    /// Asks the peer to ring when the wish is fulfilled.
    fn ask(&mut self, wish: Wish);
    /// Withdraws [`ask`](Self::ask).
    fn withdraw(&mut self);
}

/// Waits until [`Wish::Enough`] is there, and where it holds out for a moment for [`Wish::Plenty`].
///
/// # Errors
/// [`Error::TimedOut`] at `deadline`, [`Error::Os`], and what `is_ready` reports.
pub(crate) fn wait(side: &mut impl Waits, deadline: Instant, waiting: &'static str) -> Result<()> {
    wait_or(side, None, deadline, waiting)
}

/// [`wait`], ended also by what `awaited` stands for. Only for a side whose other half is on this thread: of
/// two threads that sleep, only one polls.
pub(crate) fn wait_or(
    side: &mut impl Waits,
    awaited: Option<&mut dyn Awaited>,
    deadline: Instant,
    waiting: &'static str,
) -> Result<()> {
    if side.is_ready(Wish::Awake)? || has_come(awaited.as_deref()) {
        return Ok(());
    }
    wait_with(side, awaited, deadline, waiting)
}

/// Whether it has come. A few loads; the waker's descriptor is for the sleep.
#[inline]
fn has_come(awaited: Option<&dyn Awaited>) -> bool {
    awaited.is_some_and(Awaited::has_come)
}

/// Whether the wait for `wish` is over; withdraws the request to be woken if so.
fn is_over(side: &mut impl Waits, wish: Wish, awaited: Option<&dyn Awaited>) -> Result<bool> {
    let over = side.is_ready(wish)? || has_come(awaited);
    if over {
        side.withdraw();
    }
    Ok(over)
}

fn wait_with(
    side: &mut impl Waits,
    mut awaited: Option<&mut dyn Awaited>,
    deadline: Instant,
    waiting: &'static str,
) -> Result<()> {
    let polling_pays = side.spin().pays();
    let mut holds_out = side.holds_out(polling_pays);
    loop {
        let moved = side.moved();
        let looked = match side.spin().begin(moved) {
            Ok(polling) => {
                let polled =
                    polling.run(deadline, |thorough| match thorough || side.has_moved() {
                        true => Ok(side.is_ready(Wish::Awake)? || has_come(awaited.as_deref())),
                        false => Ok(has_come(awaited.as_deref())),
                    })?;
                side.spin().end(polled, moved)
            }
            Err(looked) => looked,
        };
        let (start, now) = match looked {
            Looked::Ready => return Ok(()),
            Looked::Nothing { start, now } => (start, now),
        };
        if holds_out.is_some() && side.is_ready(Wish::Enough)? {
            side.spin().waited(start.elapsed());
            return Ok(());
        }
        let (wish, until) = match holds_out {
            Some(moment) => (Wish::Plenty, deadline.min(start + moment)),
            None => (Wish::Enough, deadline),
        };
        let shared = side.shared();
        shared.acknowledge_wake_up()?;
        let seen = shared.waiters.generation();
        side.ask(wish);
        if is_over(side, wish, awaited.as_deref())? {
            return Ok(());
        }
        let shared = side.shared();
        shared.sleeps.fetch_add(1, Ordering::Relaxed);
        let backend = shared.backend.as_ref();
        let sleep = |waker: Option<&Waker>, now, until| {
            let waiters = &shared.waiters;
            waiters.sleep(backend, waker, seen, now, until, waiting)
        };
        let slept = match awaited.as_deref_mut() {
            None => sleep(None, now, until),
            Some(awaited) => awaited.sleep(
                start,
                now,
                until,
                |error| matches!(error, Error::TimedOut(_)),
                |waker, now, until| sleep(Some(waker), now, until),
            ),
        };
        let spin = side.spin();
        let end = spin.now();
        // Also after a time-out: waits that time out are those of an idle channel.
        spin.waited(end.saturating_duration_since(start));
        match slept {
            Ok(()) => {}
            Err(Error::TimedOut(_)) if until < deadline => holds_out = None,
            Err(Error::TimedOut(_)) => {}
            Err(error) => return Err(error),
        }
        // The deadline counts only if a check made after it finds nothing: a peer may have moved
        // without ringing, or this thread may not have run for a while.
        if is_over(side, Wish::Enough, awaited.as_deref())? {
            return Ok(());
        }
        // What woke this side may be the peer's end, which only this shows.
        side.shared().acknowledge_wake_up()?;
        if is_over(side, Wish::Enough, awaited.as_deref())? {
            return Ok(());
        }
        // A peer that rings without end must not carry us beyond the deadline.
        if end >= deadline {
            return Err(Error::TimedOut(waiting));
        }
    }
}
