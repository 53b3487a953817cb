//! Sessions whose requests run on another mediator: in a domain that has the GPU, or on another
//! machine.
//!
//! This mediator stays the one that decides: its policy, limits, accounts and time-outs hold as
//! with an executor of its own, and a guest's frames pass the same rules before anything of them
//! goes on. To the other mediator this worker is a guest, and its answers are checked as a hostile
//! guest's questions are.
//!
//! | file | job |
//! |---|---|
//! | `connect` | opens the way to the other mediator |
//! | `take_offer` | takes one of the channels that a GPU domain offers |
//! | `far_session` | the session there: Hello, frames, and the end |
//! | `backend` | passes requests, data and answers on, whatever they are |
//! | `buffer` | data on its way |
//! | `lost` | why there is no other mediator any more, in words |
//!
//! Nothing here knows an operation: the table says how much data a request has, and the rest is the
//! guest's and the other mediator's. Memory is bounded by 64 KiB each way for a request that has data
//! under way, and the other mediator grants what a guest may send.

mod backend;
mod buffer;
mod connect;
mod far_session;
mod lost;
mod take_offer;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use vgpu_protocol::op::InfoReply;
use vgpu_transport::endpoint::Endpoint;

use crate::executor::Executor;
use crate::session::{OpenError, SessionEnd, Settings, StopFlag, Stream, run};
use crate::usage::Observed;
use backend::Relay;
use far_session::FarSession;
use lost::Lost;
pub use take_offer::OFFERS;

/// Time to open a session there that no guest waits for.
const OPENING: Duration = Duration::from_secs(7);

/// How long one command of the file protocol's two files may get nowhere.
const COMMAND_PATIENCE: Duration = Duration::from_secs(20);

/// Endpoint of the other mediator, with everything needed to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// As in `relay:E`.
    pub endpoint: Endpoint,
    /// The file with this mediator's secret, for `tcp:`.
    pub secret: Option<PathBuf>,
}

/// Runs a session over `near` on the mediator at the end of `route` until it ends, and closes both.
pub fn serve(
    near: &mut Stream,
    route: &Route,
    settings: &Settings,
    observed: &Observed,
    stop: &StopFlag,
) -> SessionEnd {
    // In time to tell the guest why it fails.
    let mut open = |patience: Duration| open(route, patience * 7 / 10);
    let mut relay = Relay::new(&mut open, settings.terms, settings.timeouts.stall);
    run(near, &mut relay, settings, observed, stop)
}

/// Opens a session with the mediator at the end of `route`, as an executor: for commands that are no
/// sessions.
///
/// # Errors
/// It cannot be reached or refuses.
pub fn executor(route: &Route) -> Result<Box<dyn Executor>, OpenError> {
    let far = open(route, OPENING).map_err(|lost| OpenError {
        code: lost.code,
        text: lost.text,
    })?;
    Ok(Box::new(Relay::opened(far, COMMAND_PATIENCE)))
}

/// Asks the other mediator what it is, in a session of its own.
///
/// # Errors
/// One line: it cannot be reached or refuses.
pub fn look(route: &Route) -> Result<InfoReply, String> {
    let far = open(route, OPENING).map_err(|lost| lost.text)?;
    Ok(far.describe(far.info().clone()))
}

fn open(route: &Route, time: Duration) -> Result<FarSession, Lost> {
    let deadline = Instant::now() + time;
    let stream = connect::connect(route, deadline)?;
    FarSession::open(stream, &route.endpoint.to_string(), deadline)
}
