//! The backend that runs a session's requests: an executor here, or a mediator elsewhere.

use std::time::{Duration, Instant};

use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::op::{Features, Op, Request};
use vgpu_protocol::session::server::{Outcome, Terms};
use vgpu_protocol::status::ErrorCode;
use vgpu_transport::{Awaited, Interest};

use super::SessionEnd;
use super::stream::Stream;
use crate::usage::Load;

/// Runs requests without ever waiting: the session's loop asks it what has happened, gives it data
/// as it comes, and takes data when there is some.
///
/// Requests are named by the guest's ids. A request is known from [`start`](Self::start) until its
/// [`Event::Done`] was taken and its data was sent, or until [`cancel`](Self::cancel); the other
/// methods are called for known requests only.
pub trait Backend {
    /// Starts a request, which the terms allow. Its outcome is reported by
    /// [`next_event`](Self::next_event).
    fn start(&mut self, header: &FrameHeader, request: Request);

    /// Room for the next bytes of a request's data; empty if there is none now.
    fn input(&mut self, id: u32) -> &mut [u8];

    /// Notes that `n` bytes were put into [`input`](Self::input).
    fn filled(&mut self, id: u32, n: usize);

    /// Data for the guest that is at hand. It stays until [`sent`](Self::sent); more may be added at
    /// its end.
    fn output(&mut self, id: u32) -> &[u8];

    /// Notes that the first `n` bytes of [`output`](Self::output) were sent.
    fn sent(&mut self, id: u32, n: usize);

    /// Gives a request up and forgets it: no event names it any more.
    fn cancel(&mut self, id: u32);

    /// Whether another request may be started. While it may not, nothing is taken from the guest but data and requests
    /// that [overtake](vgpu_protocol::op::Op::overtakes) those that wait.
    fn may_start(&self) -> bool {
        true
    }

    /// Load of its device; takes no time.
    fn load(&self) -> Load {
        Load::default()
    }

    /// Whether this mediator's figures are the answer to Statistics. If not, the backend has others, and answers it.
    fn has_no_figures(&self) -> bool {
        false
    }

    /// The next event; `None` for nothing more.
    fn next_event(&mut self) -> Option<Event>;

    /// The descriptors to wait for, beside the guest, until [`next_event`](Self::next_event),
    /// [`input`](Self::input) or [`output`](Self::output) may have something new.
    fn also(&mut self) -> Also<'_>;

    /// When [`next_event`](Self::next_event) is to be called at the latest, whatever has happened.
    fn due(&self) -> Option<Instant> {
        None
    }
}

/// A backend that is opened once a guest was admitted, and closed with its session.
pub trait SessionBackend: Backend {
    /// Gets ready, once. This alone may take seconds; the guest waits as long as `patience`.
    ///
    /// # Errors
    /// It cannot be opened.
    fn open(&mut self, patience: Duration) -> Result<Opened, NotOpened>;

    /// This process did not run for so long, until `now`: none of that is anybody's silence.
    fn rested(&mut self, _rest: Duration, _now: Instant) {}

    /// The session is over.
    fn close(&mut self) {}
}

/// Something a [`Backend`] has to tell.
#[derive(Debug)]
pub enum Event {
    /// A request is over. Its data, if it went well, was put out before.
    Done(u32, Outcome),
    /// There is room for this many more bytes of a request's data.
    Room(u32, u64),
    /// Work was done for a request, without a visible result yet.
    Moved(u32),
    /// Work goes on, while no other request can be started.
    Working,
    /// Whether quiet requests have failed, for its next answer to a Fence.
    Failures(bool),
    /// A request of this operation has failed after its [`Done`](Self::Done) said that it went well.
    FailedLater(Op),
    /// The session's work is done on the device with this number from here on.
    Uses(u32),
    /// Whether kernels have printed something that has not been taken.
    Printed(bool),
    /// Nanoseconds that the device worked.
    Worked(u64),
    /// Bytes that came from the guest and went to it beside its stream.
    Beside(usize, usize),
    /// Nothing can be run any more.
    Lost(Box<NotOpened>),
}

impl Event {
    /// The request that it is about, if it is about one.
    pub(crate) fn request(&self) -> Option<u32> {
        match self {
            Self::Done(id, _) | Self::Room(id, _) | Self::Moved(id) => Some(*id),
            Self::Working
            | Self::Failures(_)
            | Self::FailedLater(_)
            | Self::Uses(_)
            | Self::Printed(_)
            | Self::Worked(_)
            | Self::Beside(..)
            | Self::Lost(_) => None,
        }
    }
}

/// Descriptors to wait for beside the guest.
#[derive(Debug)]
pub enum Also<'a> {
    /// Nothing: whatever it has to tell was told.
    Nothing,
    /// A thread or a device.
    Awaited(&'a mut dyn Awaited),
    /// The stream to another mediator.
    Stream(&'a mut Stream, Option<Interest>),
}

/// A backend is ready.
#[derive(Debug)]
pub struct Opened {
    /// Its limits and features, if they may be less than this mediator's.
    pub terms: Option<Terms>,
    /// The optional parts of the protocol that it has.
    pub features: Features,
}

/// A backend cannot be opened, or can no longer be used.
#[derive(Debug)]
pub struct NotOpened {
    /// For the guest.
    pub code: ErrorCode,
    /// For the person in front of it.
    pub text: String,
    /// For the log.
    pub end: SessionEnd,
}
