#![forbid(unsafe_code)]
//! Deadlines of system calls without a reading of the clock for each.
//!
//! `ppoll` with a time limit reads the clock three times. Where that is slow, each thread that waits
//! has a timer among the descriptors that it polls. It stays set from one call to the next: a later
//! deadline costs nothing until the earlier one has passed.

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::ppoll;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::waiting::poll::{Ready, Watched, array, look};

/// A timer that is set to zero is off.
const SHORTEST: Duration = Duration::from_nanos(1);

thread_local! {
    static ALARM: RefCell<Alarm> = const { RefCell::new(Alarm { timer: None, rings: None }) };
}

/// The timer of one thread.
struct Alarm {
    timer: Option<TimerFd>,
    /// When it rings, if it has been set and not been heard since.
    rings: Option<Instant>,
}

/// Waits until one of `fds` has an event; none once `deadline` has passed. `None` without having
/// waited if this thread can have no timer.
pub(crate) fn poll(fds: &[Watched<'_>], deadline: Instant) -> Option<nix::Result<Ready>> {
    ALARM.with_borrow_mut(|alarm| {
        if alarm.timer.is_none() {
            let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
            alarm.timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).ok();
        }
        let Alarm { timer, rings } = alarm;
        Some(poll_with(timer.as_ref()?, rings, fds, deadline))
    })
}

fn poll_with(
    timer: &TimerFd,
    rings: &mut Option<Instant>,
    fds: &[Watched<'_>],
    deadline: Instant,
) -> nix::Result<Ready> {
    loop {
        if rings.is_none_or(|rings| rings > deadline) {
            let left = deadline.saturating_duration_since(Instant::now());
            let once = Expiration::OneShot(TimeSpec::from_duration(left.max(SHORTEST)));
            timer.set(once, TimerSetTimeFlags::empty())?;
            *rings = Some(deadline);
        }
        let mut polled = array(fds, Some(timer.as_fd()));
        let polled = &mut polled[..=fds.len()];
        match ppoll(polled, None, None) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
        }
        let ready = Ready::of(&polled[..fds.len()]);
        if ready.any() {
            return Ok(ready);
        }
        // It may have rung for an earlier deadline.
        timer.wait()?;
        *rings = None;
        if Instant::now() >= deadline {
            // What came after the kernel had looked at it, and before the timer.
            return look(fds);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::Write;

    use nix::poll::PollFlags;
    use std::os::unix::net::UnixStream;

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    fn in_ms(ms: u64) -> Instant {
        Instant::now() + Duration::from_millis(ms)
    }

    fn ready(fds: &[Watched<'_>], deadline: Instant) -> bool {
        poll(fds, deadline).unwrap().unwrap().any()
    }

    fn rings() -> Option<Instant> {
        ALARM.with_borrow(|alarm| alarm.rings)
    }

    #[test]
    fn it_ends_at_the_deadline_and_not_before() {
        let (mut far, near) = pair();
        let fds = [(near.as_fd(), PollFlags::POLLIN)];
        for ms in [30, 3, 20, 0] {
            let deadline = in_ms(ms);
            assert!(!ready(&fds, deadline));
            assert!(Instant::now() >= deadline);
        }
        far.write_all(b"x").unwrap();
        assert!(ready(&fds, in_ms(60_000)));
        // Also at once, with a deadline that has passed.
        assert!(ready(&fds, Instant::now()));
    }

    #[test]
    fn a_later_deadline_leaves_the_timer_alone() {
        let (mut far, near) = pair();
        far.write_all(b"x").unwrap();
        let fds = [(near.as_fd(), PollFlags::POLLIN)];
        let (soon, later) = (in_ms(40), in_ms(80));
        assert!(ready(&fds, soon));
        assert!(ready(&fds, later));
        assert_eq!(rings(), Some(soon));
        // Nor does the earlier one end the wait for the later one.
        let fds = [(far.as_fd(), PollFlags::POLLIN)];
        assert!(!ready(&fds, later));
        assert!(Instant::now() >= later);
        assert_eq!(rings(), None);
    }

    #[test]
    fn an_earlier_deadline_sets_it_anew() {
        let (_far, near) = pair();
        let fds = [(near.as_fd(), PollFlags::POLLIN)];
        let (mut far, near) = pair();
        far.write_all(b"x").unwrap();
        let other = [(near.as_fd(), PollFlags::POLLIN)];
        assert!(ready(&other, in_ms(60_000)));
        assert!(!ready(&fds, in_ms(5)));
    }
}
