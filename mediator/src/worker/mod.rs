//! The worker: one process for one guest's session.
//!
//! The broker starts it as itself with the hidden first argument [`ARGUMENT`]. Its standard input
//! is the guest's socket (or nothing), the [`link`] to the broker a descriptor that it inherits, and
//! standard output and error are the log; with CUDA standard output is what its kernels print. It opens the guest's channel itself, so no byte of a guest passes the broker.
//! A warm worker (`warm.rs`) is started before its session: it hears of that over the link, and gets the socket with it.

pub mod confinement;
pub mod link;
mod session_finder;
pub mod spec;
pub mod turns;
mod two_files;
mod warm;

use std::io;
use std::mem::ManuallyDrop;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use vchan::xen::Server;
use vchan::xen::store::Store;
use vchan::{Channel, DomId, Setup};
use vgpu_file_transport::directory::Directory;
use vgpu_file_transport::name::NameError;
use vgpu_file_transport::{SessionName, Stop};
use vgpu_socket_transport::{SocketTransport, accept_tcp};

use crate::executor::{self, Executor, ExecutorChoice, probe};
use crate::logging;
use crate::policy::Share;
use crate::relay;
use crate::session::{self, OpenError, SessionEnd, StopFlag, Stream};
use crate::usage::Observed;
use confinement::{Enclosure, Needs};
use link::{Chosen, Ended, Found, Link};
use session_finder::SessionFinder;
use spec::{Carrier, Spec, Start};
use turns::Turns;
use warm::Opened;

/// How soon a worker without a guest notices that the broker wants it to end.
const STOP_CHECK: Duration = Duration::from_millis(250);

/// How long xenstore may take to remove the keys of an offer that was taken.
const WITHDRAW_LIMIT: Duration = Duration::from_secs(5);
/// Divisor of the usual longest look at the ring, which gives a worker's limit.
const LOOKING_SHARE: u32 = 8;

/// How long a thread that waits for xenstored may take to give up its connection.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

/// The first byte that the broker sends: it has let go of the guest's socket, which the worker holds
/// until then. So it is never the broker that closes the socket last.
pub const BEGIN: u8 = b'\n';

/// First argument of a worker process.
pub const ARGUMENT: &str = "worker";

/// Runs the worker: `arguments` are a label for `ps`, the descriptor of the link and what it is started for.
pub fn main(arguments: &[String]) -> ExitCode {
    let outcome = read_arguments(arguments).and_then(|(broker, mut start)| {
        // Before anything else is opened, as it closes what is not known.
        let (guest, broker) = confinement::take_inherited(broker, start.broker_pid())
            .map_err(|error| format!("cannot set itself up: {error}"))?;
        let (needs, verbose) = match &mut start {
            Start::Session(spec) => (spec.needs(), spec.verbose),
            Start::Warm(warm) => (warm.needs(), warm.verbose),
        };
        // Before there are other threads.
        let confined = confine(start.confinement().clone(), needs);
        logging::init_worker(verbose).map_err(|error| format!("cannot set itself up: {error}"))?;
        Ok(match start {
            Start::Session(spec) => run(*spec, guest, broker, confined),
            Start::Warm(waiting) => warm::run(*waiting, broker, confined.map(drop)),
        })
    });
    let status = outcome.unwrap_or_else(|error| {
        logging::say(&format!("vgpu-mediatord {ARGUMENT}: {error}\n"));
        ExitCode::FAILURE
    });
    logging::flush();
    status
}

fn read_arguments(arguments: &[String]) -> Result<(RawFd, Start), String> {
    let [_label, broker, start] = arguments else {
        return Err("a worker is started by vgpu-mediatord, not by hand".to_owned());
    };
    let broker = broker
        .parse()
        .map_err(|_| format!("`{broker}` is no descriptor"))?;
    let start = serde_json::from_str(start).map_err(|error| error.to_string())?;
    Ok((broker, start))
}

/// Takes from this process what it does not need. What is left to be sealed once its channel is open is
/// the answer.
fn confine(settings: confinement::Settings, needs: Needs) -> Result<Option<Enclosure>, String> {
    let keeps_rights = needs.xen;
    let cuda = needs.cuda;
    let enclosure = confinement::enclose(settings, needs)
        .map_err(|why| format!("it cannot be confined: {why}"))?;
    if cuda {
        // Where that fails, sessions do without what kernels print.
        let _ = executor::capture_printed();
        // Found while this may still read whatever it is that the library's directory is in. What it
        // opens later it finds in what is left.
        executor::load_driver();
    }
    match keeps_rights {
        true => Ok(Some(enclosure)),
        false => seal(enclosure).map(|()| None),
    }
}

fn seal(enclosure: Enclosure) -> Result<(), String> {
    let protections = enclosure
        .seal()
        .map_err(|why| format!("it cannot be confined: {why}"))?;
    for missing in protections.iter().filter(|protection| !protection.on) {
        log::debug!("without {}: {}", missing.name, missing.note);
    }
    Ok(())
}

/// Gives up what it took to open a channel of Xen's: the connection to xenstored, then every right.
fn leave_xen(enclosure: Option<Enclosure>) -> Result<(), String> {
    let Some(enclosure) = enclosure else {
        return Ok(());
    };
    let deadline = Instant::now() + LEAVE_LIMIT;
    if let Ok(store) = Store::open(deadline) {
        store
            .leave(deadline)
            .map_err(|error| format!("it cannot leave xenstore: {error}"))?;
    }
    seal(enclosure)
}

/// A worker's link to its broker, and the state that the link's thread shares with the session's.
struct Linked {
    link: Link,
    turns: Arc<Turns>,
    observed: Arc<Observed>,
    stop: Arc<StopFlag>,
    ended: Arc<AtomicBool>,
    chosen: Arc<Chosen>,
}

impl Linked {
    /// Starts to listen to the broker, whose choice of an executor this is so far, and why. What comes out beside it is
    /// for the worker of a directory.
    fn start(
        broker: UnixStream,
        choice: (ExecutorChoice, String),
    ) -> io::Result<(Self, mpsc::Receiver<SessionName>)> {
        let observed = Arc::new(Observed::default());
        let stop = Arc::new(StopFlag::default());
        let ended = Arc::new(AtomicBool::new(false));
        let (over, sessions_over) = mpsc::channel();
        let chosen = Arc::new(Chosen::new(choice));
        let (link, turns) = Link::start(broker, &observed, &stop, &ended, over, &chosen)?;
        let linked = Self {
            link,
            turns,
            observed,
            stop,
            ended,
            chosen,
        };
        Ok((linked, sessions_over))
    }

    /// The executor that the broker wants opened now.
    fn choice(&self) -> (ExecutorChoice, String) {
        let chosen = self.chosen.lock();
        chosen.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn ended(&self, end: Ended) {
        self.link.ended(&self.observed, end);
    }
}

fn run(
    spec: Spec,
    guest: OwnedFd,
    broker: UnixStream,
    confined: Result<Option<Enclosure>, String>,
) -> ExitCode {
    let choice = (spec.executor.clone(), spec.reason.clone());
    let (linked, over) = match Linked::start(broker, choice) {
        Ok(started) => started,
        Err(error) => {
            log::error!(
                "worker for {}: cannot reach the broker: {error}",
                spec.guest
            );
            return ExitCode::FAILURE;
        }
    };
    let end = match (confined, &spec.carrier) {
        (Err(why), _) => Ended::fault(why),
        (Ok(_), Carrier::File { directory, guest }) => {
            serve_directory(&spec, directory, guest.as_deref(), over, &linked)
        }
        (Ok(enclosure), _) => serve_guest(spec, guest, enclosure, None, &linked),
    };
    linked.ended(end);
    ExitCode::SUCCESS
}

fn serve_directory(
    spec: &Spec,
    directory: &Path,
    guest: Option<&str>,
    over: mpsc::Receiver<SessionName>,
    linked: &Linked,
) -> Ended {
    let Linked { link, observed, .. } = linked;
    let directory = match open_directory(directory, guest) {
        Ok(directory) => directory,
        Err(error) => return Ended::fault(error),
    };
    link.connected(observed);
    let finder = SessionFinder {
        look_for_guests: guest.is_none(),
        mediator: spec.mediator(),
        found: &mut link.finder(observed),
        over,
    };
    let mut open = || match spec.route() {
        Some(route) => relay::executor(&route),
        None => open_executor(&linked.choice().0, spec.share, None, linked),
    };
    let allowed = spec.operations();
    let stop = Stop::when(&linked.ended);
    let counters = &observed.counters;
    let served = two_files::serve(&directory, &mut open, allowed, finder, counters, stop);
    match served {
        Ok(()) => Ended::fine("stopped"),
        Err(error) => Ended::fault(error),
    }
}

/// Serves one guest, with an executor that may be open already.
fn serve_guest(
    mut spec: Spec,
    guest: OwnedFd,
    enclosure: Option<Enclosure>,
    mut opened: Option<Opened>,
    linked: &Linked,
) -> Ended {
    let Linked {
        link,
        observed,
        stop,
        ..
    } = linked;
    let offered = match &spec.carrier {
        Carrier::Offer { path } => match offer(path, stop) {
            Ok(Some(channel)) => Some(channel),
            Ok(None) => return Ended::fine("stopped"),
            Err(error) => return Ended::fault(format!("{error} ({})", error.advice())),
        },
        _ => None,
    };
    // Before the transport, so that it goes after it.
    let _held = match spec.carrier {
        Carrier::Unix => match guest.try_clone() {
            Ok(copy) => Some(ClosedAtExit(ManuallyDrop::new(copy.into()))),
            Err(error) => return Ended::fault(format!("no channel: {error}")),
        },
        _ => None,
    };
    let mut transport = match offered {
        Some(channel) => channel.into(),
        None => match connect(&mut spec, guest, observed, link) {
            Ok(transport) => transport,
            Err(error) => return Ended::fault(error),
        },
    };
    if let Err(why) = leave_xen(enclosure) {
        return Ended::fault(why);
    }
    link.connected(observed);
    // The guest may have come long after the process, and the driver in between.
    (spec.executor, spec.reason) = linked.choice();
    let settings = spec.settings();
    let end = match spec.route() {
        Some(route) => relay::serve(&mut transport, &route, &settings, observed, stop),
        None => {
            // Only this carrier's memory is this machine's own, and as much of it as there is.
            let regions = match (&spec.carrier, &transport) {
                (Carrier::Local, Stream::Channel(channel)) => Some(channel.regions()),
                _ => None,
            };
            let mut open = || {
                let opened = opened.take();
                let mut executor = open_executor(&spec.executor, spec.share, opened, linked)?;
                if let Some(regions) = &regions {
                    executor.set_regions(regions.clone());
                }
                Ok(executor)
            };
            session::serve(&mut transport, &mut open, &settings, observed, stop)
        }
    };
    match &end {
        SessionEnd::Goodbye | SessionEnd::GuestClosed(false) | SessionEnd::Stopped(_) => {
            Ended::fine(end.to_string())
        }
        _ => Ended::fault(end.to_string()),
    }
}

/// The socket of a client that may have filled it: ended where this is dropped, and closed by the end
/// of the process only. A client can leave sockets in it whose close sleeps, except where a process
/// exits.
struct ClosedAtExit(ManuallyDrop<UnixStream>);

impl Drop for ClosedAtExit {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// A channel whose waits look for a short while only: when a guest writes is its own choice, and the
/// processor that looks for it meanwhile is not.
fn looking_briefly(mut channel: Channel) -> Channel {
    channel.set_spin(channel.spin() / LOOKING_SHARE);
    channel
}

/// Offers a channel to dom0 until it is taken; `None` when the broker wants this to end.
fn offer(path: &str, stop: &StopFlag) -> Result<Option<Channel>, vchan::Error> {
    let mut server = Server::publish_default(DomId(0), path)?;
    loop {
        match server.wait_for_client(Instant::now() + STOP_CHECK) {
            Ok(()) => {
                let channel = server.accept(Instant::now() + WITHDRAW_LIMIT)?;
                return Ok(Some(looking_briefly(channel)));
            }
            Err(vchan::Error::TimedOut(_)) => {}
            Err(error) => return Err(error),
        }
        if stop.get().is_some() {
            return Ok(None);
        }
    }
}

/// Brings the guest's channel up. Over TCP that includes finding out whose it is.
fn connect(
    spec: &mut Spec,
    guest: OwnedFd,
    observed: &Observed,
    link: &Link,
) -> Result<Stream, String> {
    let deadline = Instant::now() + spec.connect_timeout();
    let channel = |connected: Result<Channel, vchan::Error>| match connected {
        Ok(channel) => Ok(Stream::from(looking_briefly(channel))),
        Err(error) => Err(format!("no channel: {error} ({})", error.advice())),
    };
    match &spec.carrier {
        Carrier::Xen { domid, path } => {
            // It may look at no domain: the broker tells.
            let life = link
                .life(DomId(*domid))
                .map_err(|error| error.to_string())?;
            let setup = Setup::new().life(&life);
            let domain = DomId(*domid);
            channel(vchan::xen::connect_with(&setup, domain, path, deadline))
        }
        Carrier::Unix => SocketTransport::from_unix(guest.into())
            .map(Stream::from)
            .map_err(|error| format!("no channel: {error}")),
        Carrier::Tcp => {
            let (transport, name) = authenticate(guest.into(), observed, link, deadline)?;
            link.found(observed, Found::Client(name));
            let decision = link.decision(deadline);
            match decision.ok_or("the broker did not decide in time")? {
                Ok(share) => spec.share = share,
                Err(turned) => spec.refusal = Some(turned),
            }
            Ok(transport.into())
        }
        Carrier::FileSession {
            directory,
            guest,
            session,
        } => accept_files(spec, directory, guest.as_deref(), session, deadline),
        Carrier::Local | Carrier::File { .. } | Carrier::Offer { .. } => {
            channel(vchan::local::connect_on(guest.into(), deadline))
        }
    }
}

/// The broker has the file and gives one key to a worker, for the name that its client says: this has no
/// other at any time.
fn authenticate(
    stream: TcpStream,
    observed: &Observed,
    link: &Link,
    deadline: Instant,
) -> Result<(SocketTransport, String), String> {
    let expected = |name: &str| link.key(observed, name, deadline);
    accept_tcp(stream, expected, deadline).map_err(|error| error.to_string())
}

fn accept_files(
    spec: &Spec,
    directory: &Path,
    guest: Option<&str>,
    session: &str,
    deadline: Instant,
) -> Result<Stream, String> {
    let named = |error: NameError| error.to_string();
    let guest = guest.map(str::parse).transpose().map_err(named)?;
    let session = session.parse().map_err(named)?;
    vgpu_file_transport::session::accept(
        directory,
        guest.as_ref(),
        session,
        spec.mediator(),
        spec.file_silence(),
        deadline,
    )
    .map(|transport| Stream::Other(Box::new(transport)))
    .map_err(|error| error.to_string())
}

/// Opens `DIR` or `DIR/<guest>/` to be served.
fn open_directory(directory: &Path, guest: Option<&str>) -> Result<Directory, String> {
    let opened = match guest {
        None => Directory::open(directory),
        Some(guest) => {
            let guest = guest
                .parse()
                .map_err(|error: NameError| error.to_string())?;
            Directory::open_guest(directory, &guest)
        }
    };
    opened.map_err(|error| error.to_string())
}

/// Opens what a session with this share has asked for, unless that is open already.
fn open_executor(
    choice: &ExecutorChoice,
    share: Share,
    opened: Option<Opened>,
    linked: &Linked,
) -> Result<Box<dyn Executor>, OpenError> {
    // What does not suit is closed before anything else is opened.
    let suits = opened.and_then(|opened| opened.suiting(choice, share.devices.as_ref()));
    let mut executor = match suits {
        Some(executor) => executor,
        None => probe(choice.clone(), share.devices.as_ref())?,
    };
    executor.set_share(share);
    executor.set_guest_memory(linked.link.guest_memory()?);
    executor.set_turns(&linked.turns);
    executor.set_compiler(linked.link.compiler());
    Ok(executor)
}
