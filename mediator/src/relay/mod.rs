//! Sessions whose requests run on another mediator: in a domain that has the GPU, or on another
//! machine.
//!
//! This mediator stays the one that decides: its policy, limits, accounts and time-outs hold as
//! with an executor of its own, and a guest's frames pass the same rules before anything of them
//! goes on. To the other mediator this worker is a guest with request ids and handles of its own,
//! and its answers are checked as a hostile guest's questions are.
//!
//! | file | job |
//! |---|---|
//! | `connect` | opens the way to the other mediator |
//! | `offers` | takes one of the channels that a GPU domain offers |
//! | `far` | the session there: Hello, requests, replies and their checks |
//! | `vector_add` | one vector add on its way through |
//! | `executor` | the other mediator as an executor, for the file protocol's commands |
//! | `body` | bytes from one stream to the other |
//! | `stream` | either stream, and one wait for both |
//!
//! One thread moves bytes both ways and waits for both sides at once. Memory is bounded by a frame
//! header, a control frame and, where a side is no ring, 64 KiB each way.

mod body;
mod connect;
mod executor;
mod far;
mod offers;
mod stream;
mod vector_add;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use vgpu_protocol::clock;
use vgpu_protocol::endpoint::Endpoint;
use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::message::{InfoReply, Op, VectorAdd};
use vgpu_protocol::status::ErrorCode;
use vgpu_protocol::transport::{Interest, TransportError};

use crate::session::front::Front;
use crate::session::outbox::Reply;
use crate::session::serve::{Backend, NotOpened, Opened, serve_with};
use crate::session::{SessionEnd, Settings, StopFlag};
use crate::usage::Observed;
use body::Body;
pub use executor::executor;
use far::{Far, Lost};
pub use offers::OFFERS;
pub use stream::Stream;
use stream::Waiting;
use vector_add::{Parts, Wants};

/// Time to open the session there: shorter than guests wait for the answer to their Hello.
const OPENING: Duration = Duration::from_secs(7);

/// How far the other mediator may be behind before it counts as hung, of the time that the guest
/// allows: the guest should hear why before it gives up itself.
const SHARE: (u32, u32) = (3, 4);

/// Where the other mediator is, and what it takes to get there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// As in `relay:E`.
    pub endpoint: Endpoint,
    /// The file with this mediator's secret, for `tcp:`.
    pub secret: Option<PathBuf>,
}

/// The guest of a relayed session.
type Guest<'a> = Front<'a, Stream>;

/// Runs a session over `near` on the mediator at the end of `route` until it ends, and closes both.
pub fn serve(
    near: &mut Stream,
    route: &Route,
    settings: &Settings,
    observed: &Observed,
    stop: &StopFlag,
) -> SessionEnd {
    let mut relay = Relay {
        route,
        far: None,
        waiting: Waiting::new(),
        forth: Body::default(),
        back: Body::default(),
    };
    let end = serve_with(near, &mut relay, settings, observed, stop);
    if let Some(far) = &mut relay.far {
        far.close();
    }
    end
}

/// Asks the other mediator what it is, in a session of its own.
///
/// # Errors
/// One line: it cannot be reached or refuses.
pub fn look(route: &Route) -> Result<InfoReply, String> {
    let mut far = open(route).map_err(|lost| lost.text)?;
    let info = describe(&far);
    far.close();
    Ok(info)
}

fn open(route: &Route) -> Result<Far, Lost> {
    let deadline = Instant::now() + OPENING;
    let stream = connect::connect(route, deadline)?;
    Far::open(stream, &route.endpoint.to_string(), deadline)
}

/// What a guest is told about the device.
fn describe(far: &Far) -> InfoReply {
    let InfoReply {
        executor,
        device,
        total_memory,
        driver,
        reason,
        ..
    } = far.info.clone();
    InfoReply {
        executor: "relay".to_owned(),
        device,
        total_memory,
        driver,
        reason: format!("{executor} at {}: {reason}", far.place()),
        mediator: concat!("vgpu-mediatord ", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

/// A session's way to the other mediator.
struct Relay<'a> {
    route: &'a Route,
    /// Present once a guest was admitted.
    far: Option<Far>,
    waiting: Waiting,
    /// From the guest.
    forth: Body,
    /// To the guest.
    back: Body,
}

impl Backend<Stream> for Relay<'_> {
    fn open(&mut self) -> Result<Opened, NotOpened> {
        let far = open(self.route).map_err(|lost| NotOpened {
            code: lost.code,
            end: SessionEnd::ExecutorLost(lost.text.clone()),
            text: lost.text,
        })?;
        let opened = Opened {
            info: describe(&far),
            terms: Some((far.hello.limits, far.hello.features)),
        };
        // Fences are answered here, so quiet requests need nothing of the other side.
        self.far = Some(far);
        Ok(opened)
    }

    fn wait(
        &mut self,
        guest: &mut Guest<'_>,
        reading: bool,
        writing: bool,
        until: Instant,
    ) -> Result<bool, SessionEnd> {
        let Some(far) = &mut self.far else {
            return guest.wire.wait(reading, writing, until);
        };
        let wants = Wants {
            near_read: reading,
            near_write: writing,
            far_read: true,
            far_write: !far.is_sent(),
        };
        let woken = wait_for_both(guest, far, &mut self.waiting, wants, until)?;
        // It has nothing to say between requests, but to end the session.
        let said = far
            .send()
            .and_then(|_| far.read_event())
            .map(|event| event.and_then(|event| far.unasked(&event)));
        match said {
            Ok(None) => Ok(woken),
            Ok(Some(lost)) | Err(lost) => Err(give_up(guest, &lost)),
        }
    }

    fn ping(
        &mut self,
        guest: &mut Guest<'_>,
        request: &FrameHeader,
        body: &[u8],
        reply: &Reply,
    ) -> Result<(), SessionEnd> {
        let Some(far) = &mut self.far else {
            guest.wire.answer(reply);
            return Ok(());
        };
        let deadline = clock::now() + guest.patience(request) * SHARE.0 / SHARE.1;
        let lost = match far.call(Op::Ping, body, deadline) {
            Ok(echo) if echo == body => {
                guest.wire.answer(reply);
                guest.wire.progress();
                return Ok(());
            }
            Ok(_) => far.violates("answers a ping with other bytes"),
            Err(lost) => lost,
        };
        let answer = Reply::error(request, lost.code.into(), &lost.text);
        guest.wire.answer(&answer);
        Err(give_up(guest, &lost))
    }

    fn vector_add(
        &mut self,
        guest: &mut Guest<'_>,
        request: FrameHeader,
        job: VectorAdd,
    ) -> Result<(), SessionEnd> {
        let Some(far) = &mut self.far else {
            return Err(SessionEnd::GuestFault("a request before Hello".into()));
        };
        let parts = Parts {
            far,
            waiting: &mut self.waiting,
            forth: &mut self.forth,
            back: &mut self.back,
        };
        vector_add::run(guest, parts, request, job)
    }
}

/// Ends a guest's session with the other mediator's.
fn give_up(guest: &mut Guest<'_>, lost: &Lost) -> SessionEnd {
    guest.wire.say_last(ErrorCode::BackendLost, &lost.text);
    SessionEnd::ExecutorLost(lost.text.clone())
}

/// Waits until one side may do what is wanted of it; false once `deadline` has passed.
fn wait_for_both(
    guest: &mut Guest<'_>,
    far: &mut Far,
    waiting: &mut Waiting,
    wants: Wants,
    deadline: Instant,
) -> Result<bool, SessionEnd> {
    let far_wants = match (wants.far_read, wants.far_write) {
        (true, true) => Some(Interest::ReadOrWrite),
        (true, false) => Some(Interest::Read),
        (false, true) => Some(Interest::Write),
        (false, false) => None,
    };
    let stream = &mut far.stream;
    guest.wire.wait_by(
        wants.near_read,
        wants.near_write,
        deadline,
        |near, wanted| {
            match waiting.wait((near, wanted), (stream, far_wants), deadline) {
                // What is wrong is said by the next call on the stream that it is wrong with.
                Err(TransportError::Closed | TransportError::PeerViolation(_)) => Ok(()),
                other => other,
            }
        },
    )
}
