//! The worker: one process for one guest's session.
//!
//! The broker starts it as itself with the hidden first argument [`ARGUMENT`]. Its standard input
//! is the guest's socket (or nothing), its standard output the [`link`] to the broker, its standard
//! error the log. It opens the guest's channel itself, so no byte of a guest passes the broker.

mod confine;
pub mod link;
pub mod spec;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use vchan::DomId;
use vgpu_file_transport::Stop;
use vgpu_file_transport::directory::Directory;
use vgpu_protocol::transport::Transport;

use crate::executor::{Executor, ExecutorChoice, probe};
use crate::listen;
use crate::logging;
use crate::relay;
use crate::session::{self, SessionEnd, StopFlag};
use crate::usage::Observed;
use link::{Ended, Link};
use spec::{Carrier, Spec};

/// First argument of a worker process.
pub const ARGUMENT: &str = "worker";

/// Runs the worker: `arguments` are a label for `ps` and the [`Spec`].
pub fn main(arguments: &[String]) -> ExitCode {
    let spec = match arguments {
        [_label, spec] => serde_json::from_str::<Spec>(spec).map_err(|error| error.to_string()),
        _ => Err("a worker is started by vgpu-mediatord, not by hand".to_owned()),
    };
    let spec = match spec {
        Ok(spec) => spec,
        Err(error) => {
            eprintln!("vgpu-mediatord {ARGUMENT}: {error}");
            return ExitCode::from(2);
        }
    };
    let (guest, broker) = match confine::confine(spec.broker_pid) {
        Ok(streams) => streams,
        Err(error) => {
            eprintln!("vgpu-mediatord {ARGUMENT}: cannot set itself up: {error}");
            return ExitCode::FAILURE;
        }
    };
    logging::init(spec.verbose);
    let observed = Arc::new(Observed::default());
    let stop = Arc::new(StopFlag::default());
    let ended = Arc::new(AtomicBool::new(false));
    let link = match Link::start(broker, &observed, &stop, &ended) {
        Ok(link) => link,
        Err(error) => {
            log::error!(
                "worker for {}: cannot reach the broker: {error}",
                spec.guest
            );
            return ExitCode::FAILURE;
        }
    };
    let end = match &spec.carrier {
        Carrier::File { directory, guest } => {
            serve_files(&spec, directory, guest.as_deref(), &observed, &ended, &link)
        }
        Carrier::Local | Carrier::Xen { .. } => serve_guest(&spec, guest, &observed, &stop, &link),
    };
    link.ended(&observed, end);
    ExitCode::SUCCESS
}

fn serve_guest(
    spec: &Spec,
    guest: UnixStream,
    observed: &Observed,
    stop: &StopFlag,
    link: &Link,
) -> Ended {
    let deadline = Instant::now() + spec.connect_timeout();
    let connected = match &spec.carrier {
        Carrier::Xen { domid, path } => vchan::xen::connect(DomId(*domid), path, deadline),
        _ => vchan::local::connect_on(guest, deadline),
    };
    let mut channel = match connected {
        Ok(channel) => channel,
        Err(error) => {
            return Ended::fault(format!("no channel: {error} ({})", error.advice()));
        }
    };
    link.connected(observed);
    let settings = spec.settings();
    let end = match spec.route() {
        Some(route) => relay::serve(&mut channel.into(), &route, &settings, observed, stop),
        None => {
            let mut open = || open_executor(&spec.executor);
            let transport: &mut dyn Transport = &mut channel;
            session::serve(transport, &mut open, &settings, observed, stop)
        }
    };
    match &end {
        SessionEnd::Goodbye | SessionEnd::GuestClosed(false) | SessionEnd::Stopped(_) => {
            Ended::fine(end.to_string())
        }
        _ => Ended::fault(end.to_string()),
    }
}

fn serve_files(
    spec: &Spec,
    directory: &Path,
    guest: Option<&str>,
    observed: &Observed,
    ended: &AtomicBool,
    link: &Link,
) -> Ended {
    let opened = match guest.map(str::parse) {
        None => Directory::open(directory),
        Some(Ok(guest)) => Directory::open_guest(directory, &guest),
        Some(Err(error)) => return Ended::fault(error.to_string()),
    };
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => return Ended::fault(error.to_string()),
    };
    link.connected(observed);
    let mut open = || open_executor(&spec.executor);
    let mut found = |found| link.found(observed, found);
    let look_for_guests = guest.is_none();
    let served = listen::file::serve(
        opened,
        look_for_guests,
        &mut open,
        &mut found,
        Stop::when(ended),
    );
    match served {
        Ok(()) => Ended::fine("stopped"),
        Err(error) => Ended::fault(error.to_string()),
    }
}

fn open_executor(choice: &ExecutorChoice) -> Result<Box<dyn Executor>, String> {
    probe(choice.clone()).map_err(|error| error.to_string())
}
