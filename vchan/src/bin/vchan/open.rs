//! Opening the channel that the command line names.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vchan::layout::{ORDER_MAX_EXTENDED, ORDER_MAX_LOCAL, Orders};
use vchan::local::{self, Listener};
use vchan::{Channel, DomId, Error, RingSizes, xen};
use vgpu_cli::{Failure, INTERRUPTED};

use crate::place::{Backend, Place, Rings};

/// Interval at which a waiting server checks for a stop signal.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Takes the vchan server role and waits for the client.
///
/// A stop signal meanwhile makes it remove what it has published.
pub(crate) fn serve(place: &Place, rings: &Rings) -> Result<Channel, Failure> {
    serve_sizes(place, rings.sizes())
}

/// [`serve`] with given sizes, or with the default.
pub(crate) fn serve_sizes(place: &Place, rings: Option<RingSizes>) -> Result<Channel, Failure> {
    // Checked before a client is made to wait.
    let most = match place.backend {
        Backend::Xen => ORDER_MAX_EXTENDED,
        Backend::Local => ORDER_MAX_LOCAL,
    };
    Orders::choose_for(place.format(), most, rings.unwrap_or_default()).map_err(|error| {
        let advice = format!("ask for rings of at most {} bytes", error.most);
        Failure::usage(error.to_string(), advice)
    })?;
    let deadline = Instant::now() + place.timeout;
    let setup = place.setup().deadline(deadline);
    let signals = Signals::catch()?;
    let channel = match place.backend {
        Backend::Xen => {
            let (peer, path) = xen_place(place)?;
            let mut server = match rings {
                Some(rings) => xen::Server::publish_with(&setup, peer, path, rings)?,
                None => xen::Server::publish_default_with(&setup, peer, path)?,
            };
            wait(&signals, deadline, |until| server.wait_for_client(until))?;
            server.accept(deadline)?
        }
        Backend::Local => {
            let listener = Listener::bind(&place.path)?;
            loop {
                let mut accepted = None;
                wait(&signals, deadline, |until| {
                    accepted = Some(listener.accept(until)?);
                    Ok(())
                })?;
                let Some(stream) = accepted else { continue };
                let rings = rings.unwrap_or_else(|| local::default_rings(place.format()));
                match local::serve_with(&setup, stream, rings, deadline) {
                    Err(error @ (Error::Peer(_) | Error::PeerClosed { .. })) => {
                        log::warn!("a client did not connect: {error}");
                    }
                    outcome => break outcome?,
                }
            }
        }
    };
    signals.let_go()?;
    Ok(channel)
}

/// Takes the vchan client role, waiting for the server.
pub(crate) fn connect(place: &Place) -> Result<Channel, Failure> {
    // It leaves nothing behind.
    Signals::catch()?.let_go()?;
    let deadline = Instant::now() + place.timeout;
    Ok(match place.backend {
        Backend::Xen => {
            let (peer, path) = xen_place(place)?;
            xen::connect_with(&place.setup(), peer, path, deadline)?
        }
        Backend::Local => local::connect_path_with(&place.setup(), &place.path, deadline)?,
    })
}

/// The peer and the path on Xen.
pub(crate) fn xen_place(place: &Place) -> Result<(DomId, &str), Failure> {
    let peer = place.peer.ok_or_else(|| {
        Failure::usage("--peer is missing", "give the domain id of the other side")
    })?;
    let path = place.path.to_str().ok_or_else(|| {
        Failure::usage(
            "--path is not UTF-8 text",
            "choose a xenstore path of letters and digits",
        )
    })?;
    Ok((peer, path))
}

/// Waits in short intervals, so that a signal is noticed.
fn wait(
    signals: &Signals,
    deadline: Instant,
    mut attempt: impl FnMut(Instant) -> vchan::Result<()>,
) -> Result<(), Failure> {
    loop {
        let until = deadline.min(Instant::now() + STOP_CHECK_INTERVAL);
        match attempt(until) {
            Ok(()) => return Ok(()),
            Err(Error::TimedOut(_)) if until < deadline => {}
            Err(error) => return Err(error.into()),
        }
        signals.check()?;
    }
}

/// Catches the signals that end a program, until [`let_go`](Self::let_go).
struct Signals {
    stop: Arc<AtomicBool>,
    let_go: Arc<AtomicBool>,
}

impl Signals {
    fn catch() -> Result<Self, Failure> {
        let signals = Self {
            stop: Arc::default(),
            let_go: Arc::default(),
        };
        let failed = |signal, error| {
            Failure::new(
                format!("cannot catch signal {signal}: {error}"),
                "look at the system's log for the reason",
            )
        };
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let let_go = Arc::clone(&signals.let_go);
            signal_hook::flag::register_conditional_shutdown(signal, INTERRUPTED.into(), let_go)
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&signals.stop)))
                .map_err(|error| failed(signal, error))?;
        }
        Ok(signals)
    }

    /// Fails once a signal has come.
    fn check(&self) -> Result<(), Failure> {
        if !self.stop.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(Failure::interrupted(
            "stopped by a signal before a client connected",
            "start it again when the other side is ready",
        ))
    }

    /// From here on signals end the program at once, with the same status; the kernel then tells the peer.
    ///
    /// # Errors
    /// One has come before.
    fn let_go(&self) -> Result<(), Failure> {
        // SeqCst, with the handler's read of `let_go` and its store to `stop` behind it: a signal finds the one or is
        // found in the other.
        self.let_go.store(true, Ordering::SeqCst);
        self.check()
    }
}
