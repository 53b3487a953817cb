//! The requests of a session that are not over, in the order in which they came.

use std::time::{Duration, Instant};

use crate::frame::FrameHeader;
use crate::op::Op;
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
    /// Bytes of its data whose frames have not begun to come.
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
    /// A Fence: requests of its lane before it that are not answered.
    pub(super) behind: usize,
    /// When anything last moved for it.
    pub(super) moved: Instant,
    /// When the guest was last shown that something moves.
    pub(super) shown: Instant,
    /// How long nothing may.
    pub(super) patience: Duration,
}

impl InFlight {
    /// Whether its answer waits for nothing but the requests before it.
    pub(super) fn is_behind_others(&self) -> bool {
        self.behind > 0 && matches!(self.outcome, Some(Ok(_)))
    }

    /// Whether its answer may leave.
    pub(super) fn is_ready(&self) -> bool {
        match self.outcome {
            None => false,
            Some(Err(_)) => true,
            Some(Ok(_)) => self.down_left == 0 && self.behind == 0,
        }
    }
}

/// All of them. Every method takes time in proportion to their number at most.
#[derive(Debug, Default)]
pub(super) struct Requests {
    requests: Vec<InFlight>,
}

impl Requests {
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    /// How many are quiet, or are not.
    pub(super) fn count(&self, quiet: bool) -> usize {
        let requests = self.requests.iter();
        requests
            .filter(|request| request.header.is_quiet() == quiet)
            .count()
    }

    /// How many were answered while their data still comes.
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

    /// Notes that a request was answered, and lets go of it unless data of it still comes.
    pub(super) fn answered(&mut self, id: u32) {
        let Some(at) = self.requests.iter().position(|r| r.header.request_id == id) else {
            return;
        };
        self.requests[at].answered = true;
        let lane = self.requests[at].header.lane;
        for fence in &mut self.requests[at + 1..] {
            // Those that came after it counted it.
            if fence.header.op == Op::Fence && fence.header.lane == lane {
                fence.behind -= 1;
            }
        }
        if self.requests[at].up_ended {
            self.requests.remove(at);
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
