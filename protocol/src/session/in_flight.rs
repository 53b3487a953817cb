//! The requests of a session that are not over, in the order in which they came.

use std::time::{Duration, Instant};

use crate::frame::FrameHeader;
use crate::status::Status;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For programs.
    pub status: Status,
    /// For people.
    pub text: String,
}

/// How a request ended: the body of its reply, or why it failed.
pub type Outcome = Result<Vec<u8>, Failure>;

/// A request that is not over.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) header: FrameHeader,
    /// Bytes of its data that have not come.
    pub(super) up_left: u64,
    /// Whether the last frame of its data has come, or none was due.
    pub(super) up_ended: bool,
    /// Bytes that may still come by the credit that was granted.
    pub(super) credit: u64,
    /// Of these, what the guest has not been told of.
    pub(super) untold: u64,
    /// Bytes of data that have not been sent.
    pub(super) down_left: u64,
    /// Its outcome, while the answer still has to wait.
    pub(super) outcome: Option<Outcome>,
    /// It was answered; the data that still comes is dropped.
    pub(super) answered: bool,
    /// When anything last moved for it.
    pub(super) moved: Instant,
    /// How long nothing may.
    pub(super) patience: Duration,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Requests {
    requests: Vec<InFlight>,
}

impl Requests {
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    pub(super) fn push(&mut self, request: InFlight) {
        self.requests.push(request);
    }

    pub(super) fn get(&self, id: u32) -> Option<&InFlight> {
        self.requests
            .iter()
            .find(|request| request.header.request_id == id)
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut InFlight> {
        self.requests
            .iter_mut()
            .find(|request| request.header.request_id == id)
    }

    pub(super) fn remove(&mut self, id: u32) {
        self.requests
            .retain(|request| request.header.request_id != id);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &InFlight> {
        self.requests.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut InFlight> {
        self.requests.iter_mut()
    }

    /// Whether a request of the same lane that came before `id` is not answered.
    pub(super) fn is_behind_others(&self, id: u32) -> bool {
        let Some(lane) = self.get(id).map(|request| request.header.lane) else {
            return false;
        };
        let earlier = self
            .requests
            .iter()
            .take_while(|other| other.header.request_id != id);
        earlier
            .filter(|other| other.header.lane == lane)
            .any(|other| !other.answered)
    }
}
