//! A worker that is there before its session: it is confined and its executor open, and it waits.
//!
//! It knows nothing of any guest. Its session comes in one message of the broker's, with the guest's socket. It says
//! that it has both, and touches the socket only when the broker answers that it has let go of it: until then the
//! broker can still have another worker serve that guest. It serves one session and ends, as every worker does.

use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::link::{Ended, Session, Waiting};
use super::spec::{Spec, Warm};
use super::{Linked, serve_guest};
use crate::devices::Devices;
use crate::executor::{Executor, ExecutorChoice, probe};

/// Time for the broker to answer that it has let go of the guest's socket.
const BEGIN_LIMIT: Duration = Duration::from_secs(10);

/// An executor that was opened for nobody yet.
pub(super) struct Opened {
    executor: Box<dyn Executor>,
    choice: ExecutorChoice,
    devices: Option<Devices>,
}

impl Opened {
    /// Opens it; that is also the proof that it works.
    fn open(choice: &ExecutorChoice, devices: Option<Devices>) -> Result<Self, String> {
        let executor =
            probe(choice.clone(), devices.as_ref()).map_err(|error| error.to_string())?;
        Ok(Self {
            executor,
            choice: choice.clone(),
            devices,
        })
    }

    /// The executor, if it is what a session is to have. Whose session it is may be known only by now, over TCP.
    pub(super) fn suiting(
        self,
        choice: &ExecutorChoice,
        devices: Option<&Devices>,
    ) -> Option<Box<dyn Executor>> {
        (self.choice == *choice && self.devices.as_ref() == devices).then_some(self.executor)
    }
}

/// Runs such a worker.
pub(super) fn run(waiting: Warm, broker: UnixStream, confined: Result<(), String>) -> ExitCode {
    // Why the broker has chosen it comes with the session.
    let choice = (waiting.executor.clone(), String::new());
    let (linked, _) = match Linked::start(broker, choice) {
        Ok(started) => started,
        Err(error) => {
            log::error!("a warm worker cannot reach the broker: {error}");
            return ExitCode::FAILURE;
        }
    };
    let end = match confined.and_then(|()| get_ready(waiting, &linked)) {
        Ok((spec, guest, opened)) => serve_guest(spec, guest, None, Some(opened), &linked),
        Err(why) => Ended::fault(why),
    };
    linked.ended(end);
    ExitCode::SUCCESS
}

/// Opens the executor, and waits for a session.
fn get_ready(waiting: Warm, linked: &Linked) -> Result<(Spec, OwnedFd, Opened), String> {
    let mut opened = Opened::open(&waiting.executor, waiting.devices)?;
    linked.link.waits(&linked.observed, Waiting::Ready);
    let next = linked.link.session();
    let (session, socket) = match next.map_err(|_| "nobody listens to the broker")? {
        Session::Is(session, socket) => (session, socket),
        Session::Begins => return Err("there is no session to begin".to_owned()),
    };
    let guest = socket.ok_or("no socket came with its session")?;
    // Where this fails it is closed by the end of this process: its client may have filled it with what is slow to close.
    let guest = ManuallyDrop::new(guest);
    // It may have waited for days.
    opened
        .executor
        .check()
        .map_err(|error| format!("its executor does not work any more: {error}"))?;
    let spec = waiting.with(*session)?;
    linked.link.waits(&linked.observed, Waiting::Taken);
    match linked.link.session_by(Instant::now() + BEGIN_LIMIT) {
        Some(Session::Begins) => Ok((spec, ManuallyDrop::into_inner(guest), opened)),
        _ => Err("the broker did not let its session begin".to_owned()),
    }
}
