//! The state shared by caller and thread: two queues of bounded size, and the end of the session.

use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, WaitTimeoutResult};
use std::time::{Duration, Instant};

use vgpu_transport::{TransportError, Waker};

use crate::session::mount::Remark;
use crate::session::rules::{Fault, Taken};
use crate::session::segment::{HEADER, MAX_FILE, MAX_PAYLOAD};

/// Time for which a wait whose deadline has passed waits for one more look.
const LAST_LOOK_LIMIT: Duration = Duration::from_millis(200);

/// State shared by caller and thread. No I/O is done while the lock is held.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    /// Something for the caller: bytes, room, an end.
    pub(super) for_caller: Condvar,
    /// Raised together with `for_caller`, for a caller that waits for other things too.
    pub(super) news: Waker,
    /// Something for the thread: bytes to send, room for what comes, an end.
    pub(super) for_thread: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Files without their headers, all but the last full.
    pub(super) outbox: VecDeque<Vec<u8>>,
    pub(super) outbox_bytes: usize,
    /// The whole outbox is to be written, however little, until it is empty.
    pub(super) flushed: bool,
    /// Nothing more is put into the outbox.
    pub(super) closing: bool,
    pub(super) inbox: VecDeque<Taken>,
    pub(super) inbox_bytes: usize,
    /// The thread has stopped reading, for lack of room.
    pub(super) inbox_full: bool,
    pub(super) connected: bool,
    /// The findings of the guest's test of its mount.
    pub(super) remarks: Vec<Remark>,
    /// The other side's stream has ended.
    pub(super) ended: bool,
    /// The other side has taken all, the end included.
    pub(super) was_read_whole: bool,
    pub(super) fault: Option<Broken>,
    /// The transport was dropped.
    pub(super) dropped: bool,
    /// Looks at the directory that have begun, and how many of them have ended.
    pub(super) looks_begun: u64,
    pub(super) looks_ended: u64,
    /// A caller's deadline has passed: look at once.
    pub(super) look_now: bool,
    /// The thread has ended.
    pub(super) over: bool,
}

impl State {
    /// Appends to the last file of the outbox, and begins another when it is full.
    pub(super) fn put(&mut self, mut bytes: &[u8]) {
        self.outbox_bytes += bytes.len();
        while !bytes.is_empty() {
            let room = self.outbox.back().map_or(0, |file| MAX_FILE - file.len());
            if room == 0 {
                let mut file = Vec::with_capacity(HEADER + bytes.len().min(MAX_PAYLOAD));
                file.resize(HEADER, 0);
                self.outbox.push_back(file);
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(room));
            if let Some(file) = self.outbox.back_mut() {
                file.extend_from_slice(now);
            }
            bytes = later;
        }
    }

    pub(super) fn has_full(&self) -> bool {
        self.outbox
            .front()
            .is_some_and(|file| file.len() == MAX_FILE)
    }

    pub(super) fn has_to_send(&self) -> bool {
        self.has_full() || self.closing || self.flushed && !self.outbox.is_empty()
    }
}

/// The error that ended the session, returned by every later call.
#[derive(Debug, Clone)]
pub(super) enum Broken {
    Closed,
    Violation(String),
    Io {
        context: String,
        kind: io::ErrorKind,
        errno: Option<i32>,
    },
}

impl From<Fault> for Broken {
    fn from(fault: Fault) -> Self {
        let context = fault.to_string();
        let io = |kind| Self::Io {
            context,
            kind,
            errno: None,
        };
        match fault {
            Fault::GaveUp(_) => Self::Closed,
            Fault::Violation(what) => Self::Violation(what),
            Fault::Vanished => io(io::ErrorKind::NotFound),
            Fault::Silent(..) => io(io::ErrorKind::TimedOut),
            Fault::MediatorGone => io(io::ErrorKind::ConnectionAborted),
            Fault::Io { context, source } => Self::Io {
                context,
                kind: source.kind(),
                errno: source.raw_os_error(),
            },
        }
    }
}

impl From<Broken> for TransportError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Closed => Self::Closed,
            Broken::Violation(what) => Self::PeerViolation(what),
            Broken::Io {
                context,
                kind,
                errno,
            } => Self::Io {
                context,
                source: errno.map_or_else(|| kind.into(), io::Error::from_raw_os_error),
            },
        }
    }
}

impl Shared {
    /// Waits while `waiting` returns true, until `deadline`. After a wait without result the thread
    /// looks at the directory once more: files that came while it rested have come in time. A file
    /// system that hangs delays that by at most [`LAST_LOOK_LIMIT`].
    pub(super) fn wait_until<'a>(
        &self,
        state: MutexGuard<'a, State>,
        deadline: Instant,
        mut waiting: impl FnMut(&mut State) -> bool,
    ) -> (MutexGuard<'a, State>, WaitTimeoutResult) {
        let left = deadline.saturating_duration_since(Instant::now());
        let (state, waited) = self
            .for_caller
            .wait_timeout_while(state, left, &mut waiting)
            .unwrap_or_else(PoisonError::into_inner);
        if !waited.timed_out() || left.is_zero() {
            return (state, waited);
        }
        self.last_look(state, waiting)
    }

    /// [`wait_until`](Self::wait_until), ended also by a raised `waker`.
    pub(super) fn wait_until_or(
        &self,
        waker: &Waker,
        deadline: Instant,
        mut waiting: impl FnMut(&mut State) -> bool,
    ) -> Result<(), TransportError> {
        let waits = Instant::now() < deadline;
        loop {
            // Before the look: anything later raises the news again.
            self.news.lower();
            if waker.is_raised() || !waiting(&mut self.lock()) {
                return Ok(());
            }
            match Waker::wait_for_either(&self.news, waker, deadline) {
                Err(TransportError::TimedOut(_)) if waits => break,
                outcome => outcome?,
            }
        }
        match self.last_look(self.lock(), waiting) {
            (_, waited) if waited.timed_out() && !waker.is_raised() => {
                Err(TransportError::TimedOut("be woken"))
            }
            _ => Ok(()),
        }
    }

    /// A deadline has passed: has the thread look once more, and returns whether the wait goes on.
    fn last_look<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        mut waiting: impl FnMut(&mut State) -> bool,
    ) -> (MutexGuard<'a, State>, WaitTimeoutResult) {
        if !state.over && state.fault.is_none() {
            // A look under way may have begun before the deadline.
            let wanted = state.looks_begun + 1;
            state.look_now = true;
            self.for_thread.notify_one();
            (state, _) = self
                .for_caller
                .wait_timeout_while(state, LAST_LOOK_LIMIT, |state| {
                    waiting(state) && !state.over && state.looks_ended < wanted
                })
                .unwrap_or_else(PoisonError::into_inner);
            state.look_now = false;
        }
        self.for_caller
            .wait_timeout_while(state, Duration::ZERO, waiting)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the caller.
    pub(super) fn tell_caller(&self) {
        self.for_caller.notify_all();
        self.news.raise();
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked left only whole bytes behind; its silence ends the session on the
        // other side.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
