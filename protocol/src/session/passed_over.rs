//! The requests that were read behind one that cannot start, and wait with it, by lane.

use std::collections::VecDeque;

/// For each lane, whether each of its requests overtakes those of other lanes, in the order of arrival.
#[derive(Debug, Default)]
pub(super) struct PassedOver {
    lanes: Vec<VecDeque<bool>>,
}

impl PassedOver {
    /// Whether no request of the lane waits.
    pub(super) fn is_empty(&self, lane: u16) -> bool {
        let waiting = self.lanes.get(usize::from(lane));
        waiting.is_none_or(VecDeque::is_empty)
    }

    /// Adds a request behind those of its lane. Takes a byte for each, and some for each lane up to its own.
    pub(super) fn push(&mut self, lane: u16, overtakes: bool) {
        let at = usize::from(lane);
        if at >= self.lanes.len() {
            self.lanes.resize_with(at + 1, VecDeque::new);
        }
        self.lanes[at].push_back(overtakes);
    }

    /// The first request of the lane waits no more.
    pub(super) fn pop(&mut self, lane: u16) {
        if let Some(waiting) = self.lanes.get_mut(usize::from(lane)) {
            waiting.pop_front();
        }
    }

    /// The lanes whose first request overtakes those of other lanes.
    pub(super) fn ready(&self) -> impl Iterator<Item = u16> {
        let ready = |(_, waiting): &(u16, &VecDeque<bool>)| waiting.front() == Some(&true);
        (0..).zip(&self.lanes).filter(ready).map(|(lane, _)| lane)
    }
}
