//! Both halves of a session as state machines: bytes and times come in, frames and decisions go out,
//! and nothing here does I/O.
//!
//! | module | what it holds |
//! |---|---|
//! | [`inbox`] | received bytes to frames, with read-ahead |
//! | [`outbox`] | frames to bytes, so that a header and its body leave in one write |
//! | [`server`] | the mediator's half: the meaning of a guest's frames, and the answers |
//! | [`client`] | the guest's half: ids, credit, and the checks of answers; a relay uses it too |
//! | [`tally`] | the mediator's counts of requests by operation and result |
//!
//! Requests for the device start in the order of arrival, whatever their lane. Each is over when its work is, so
//! answers may come in any order; only a Fence waits for the requests of its lane before it.
//!
//! A request that does not touch the device does not wait for those of other lanes that cannot start, and one that ends
//! what keeps them waits for none: it [overtakes](crate::op::Op::overtakes) them. The mediator finds it by reading on, up
//! to twice [`WINDOW`] bytes and granted data, and the guest sends no more than that without an answer.
//!
//! Data of a request is sent in [`Op::Data`] frames of any size, as many bytes
//! in all as its row of the table says. Data going up needs credit: the first
//! [`initial_credit`](crate::op::HelloReply::initial_credit) bytes of a request may be sent at
//! once, the rest when the mediator has granted room. So data that waits for the device never
//! blocks another lane's frames.

/// Bytes of requests and their first data that a guest sends without knowing that the mediator can start them, not counting
/// those that overtake. A mediator reads so much behind a request that cannot start, and so finds those.
pub const WINDOW: u64 = 1 << 20;

pub mod client;
mod in_flight;
pub mod inbox;
pub mod outbox;
mod passed_over;
pub mod server;
pub mod tally;

#[cfg(test)]
mod tests;

use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use crate::op::{Op, Overtakes};

pub use client::Client;
pub use server::Server;

/// Most requests under way at once of those that are quiet, or of those that are not. There is always room for those that
/// end others.
fn most_requests(agreed: NonZeroU16, op: Op) -> usize {
    let most = usize::from(agreed.get());
    match op.overtakes(false) {
        Overtakes::Everything => 2 * most,
        Overtakes::OtherLanes | Overtakes::Nothing => most,
    }
}

/// Adjusts `at`, the start of the other side's silence, for a time `rest` until `now` in which this
/// side did not run: that does not count as silence.
pub fn after_rest(at: Instant, rest: Duration, now: Instant) -> Instant {
    (at + rest).min(now)
}

/// The request whose data goes next, so that requests take turns: the first with data after `last`,
/// the sender of the last frame, or else the first of all. `at_hand` lists every request with the
/// bytes of its data that can go now.
pub fn next_in_turn(
    last: u32,
    at_hand: impl IntoIterator<Item = (u32, usize)>,
) -> Option<(u32, usize)> {
    let mut next = None;
    let mut seen_last = false;
    for (id, len) in at_hand {
        if len > 0 && (next.is_none() || seen_last) {
            next = Some((id, len));
            if seen_last {
                break;
            }
        }
        seen_last |= id == last;
    }
    next
}
