//! The requests of a session that are not over, in the order in which they came.

use std::time::{Duration, Instant};

use crate::frame::FrameHeader;
use crate::op::Op;
use crate::status::Status;

/// The reason why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For programs.
    pub status: Status,
    /// For people.
    pub text: String,
}

/// The result of a request: the body of its reply, or the reason of its failure.
pub type Outcome = Result<Vec<u8>, Failure>;

/// A request that is not over.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) header: FrameHeader,
    /// Bytes of its data whose frames have not begun to arrive.
    pub(super) up_left: u64,
    /// The last frame of its data has arrived, or none was due.
    pub(super) up_ended: bool,
    /// Bytes that may still arrive with the credit granted.
    pub(super) credit: u64,
    /// The part of that credit that the guest has not received yet.
    pub(super) untold: u64,
    /// Bytes of data that have not been sent.
    pub(super) down_left: u64,
    /// Its outcome, while the answer has to wait.
    pub(super) outcome: Option<Outcome>,
    /// It was answered; further data is dropped.
    pub(super) answered: bool,
    /// A Fence: requests of its lane before it that are not answered.
    pub(super) behind: usize,
    /// Time of its arrival.
    pub(super) began: Instant,
    /// Time of the last progress.
    pub(super) moved: Instant,
    /// Time at which the guest was last shown progress.
    pub(super) shown: Instant,
    /// Longest time without progress.
    pub(super) patience: Duration,
}

impl InFlight {
    /// Whether its answer waits only for the requests before it.
    pub(super) fn is_behind_others(&self) -> bool {
        self.behind > 0 && matches!(self.outcome, Some(Ok(_)))
    }

    /// Whether its answer may be sent.
    pub(super) fn is_ready(&self) -> bool {
        match self.outcome {
            None => false,
            Some(Err(_)) => true,
            Some(Ok(_)) => self.down_left == 0 && self.behind == 0,
        }
    }
}

/// All requests under way. Every method takes at most time proportional to their number.
#[derive(Debug, Default)]
pub(super) struct Requests {
    requests: Vec<InFlight>,
}

impl Requests {
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Number of requests that are quiet, or that are not.
    pub(super) fn count(&self, quiet: bool) -> usize {
        let requests = self.requests.iter();
        requests
            .filter(|request| request.header.is_quiet() == quiet)
            .count()
    }

    /// Number of requests that were answered while their data still arrives.
    pub(super) fn unwanted(&self) -> usize {
        self.requests
            .iter()
            .filter(|request| request.answered)
            .count()
    }

    pub(super) fn push(&mut self, mut request: InFlight) {
        if request.header.op == Op::Fence {
            let lane = request.header.lane;
            let before = self.requests.iter();
            request.behind = before
                .filter(|other| other.header.lane == lane && !other.answered)
                .count();
        }
        self.requests.push(request);
    }

    /// Notes that a request was answered, and removes it unless its data still arrives.
    pub(super) fn answered(&mut self, id: u32) {
        let Some(at) = self.requests.iter().position(|r| r.header.request_id == id) else {
            return;
        };
        self.requests[at].answered = true;
        let lane = self.requests[at].header.lane;
        for fence in &mut self.requests[at + 1..] {
            // Later fences have counted it.
            if fence.header.op == Op::Fence && fence.header.lane == lane {
                fence.behind -= 1;
            }
        }
        if self.requests[at].up_ended {
            // Not `remove`, which would copy it out to be dropped.
            self.requests.drain(at..=at);
        }
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
}
