//! The same ring without Xen: a memfd, two doorbells and a Unix socket.
//!
//! The socket brings the two processes together and stays open as each one's death notice and for
//! the descriptors of [regions](crate::region). The listener on it may have either vchan role:
//! [`serve_on`] and [`connect_on`] take a connected stream. [`serve`] and [`connect`] are the usual
//! pairing, for a socket path.
//!
//! The peer is not trusted here either: descriptors it sends are checked before they are mapped
//! (seals, size, kind of descriptor), and from then on the ring's own rules apply.

pub(crate) mod bell;
mod descriptor_socket;
pub(crate) mod descriptors;
mod doorbell;
pub(crate) mod hello;
mod listener;
pub(crate) mod memory;
pub(crate) mod memory_layout;
mod rendezvous;
pub(crate) mod stranger;

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

pub use listener::{Listener, connect_stream};
pub use rendezvous::{
    connect_on, connect_on_reactor, connect_with, serve_from_index, serve_on, serve_on_reactor,
    serve_with,
};
#[cfg(feature = "testing")]
pub(crate) use rendezvous::{connect_parts, serve_parts};
pub use stranger::{Stranger, keep_unclosed, take_unclosed, unclosed};

use crate::channel::Channel;
use crate::connect_options::Setup;
use crate::error::{Error, Result};
use crate::wire::layout::{Format, ORDER_MAX, ORDER_MAX_LOCAL, RingSizes};
use memory_layout::Shape;

/// Pause before a client that its server turned away for another looks for the next.
const NEXT_SERVER_PAUSE: Duration = Duration::from_millis(50);

/// The default ring sizes: the largest possible, 16 MiB in all, of which the system allocates only
/// the pages used.
///
/// Here memory has no budget as on Xen, and a ring larger than a processor's own cache lets the
/// writer run ahead of the reader by more than that cache: the reader then fetches the bytes from
/// the cache that both processors share, up to four times as fast as from the other's own
/// (`docs/benchmarks.md`).
pub fn default_rings(format: Format) -> RingSizes {
    let order = match format {
        Format::Extended => ORDER_MAX_LOCAL,
        Format::Classic => ORDER_MAX,
    };
    RingSizes::from(1 << order)
}

/// Listens on `path` for one client and takes the vchan server role.
///
/// Clients that do not complete the rendezvous are dropped with a warning in the log, and the wait
/// goes on. The socket file is gone when this returns.
///
/// # Errors
/// [`Error::TimedOut`] at `deadline`; [`Error::Setup`] if the path is in use or unsuitable, or the
/// ring sizes are; [`Error::Os`].
pub fn serve(path: &Path, rings: RingSizes, deadline: Instant) -> Result<Channel> {
    // Checked before any client is made to wait.
    Shape::choose(Format::Extended, rings)?;
    let listener = Listener::bind(path)?;
    loop {
        let stream = listener.accept(deadline)?;
        match serve_on(stream, rings, deadline) {
            Err(error @ (Error::Peer(_) | Error::PeerClosed { .. })) => {
                log::warn!("a client on {} did not connect: {error}", path.display());
            }
            outcome => return outcome,
        }
    }
}

/// Connects to the server on `path`, waiting for it to appear, and takes the vchan client role. If
/// the server takes another client, this waits for the next server.
///
/// # Errors
/// [`Error::TimedOut`] at `deadline`, [`Error::Peer`], [`Error::PeerClosed`], [`Error::Setup`],
/// [`Error::Os`].
pub fn connect(path: &Path, deadline: Instant) -> Result<Channel> {
    connect_path_with(&Setup::new(), path, deadline)
}

/// [`connect`] with a choice of format and the rest of [`Setup`].
///
/// # Errors
/// As [`connect`].
pub fn connect_path_with(setup: &Setup<'_>, path: &Path, deadline: Instant) -> Result<Channel> {
    loop {
        let stream = connect_stream(path, deadline)?;
        match connect_with(setup, stream, deadline) {
            // The server took another client; the next one may take this.
            Err(Error::PeerClosed { .. }) if Instant::now() < deadline => {
                thread::sleep(NEXT_SERVER_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Address;

    /// A server that takes another client, or ends, closes its queue.
    #[test]
    fn a_client_whose_server_took_another_waits_for_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c");
        let watchdog = Instant::now() + Duration::from_secs(300);
        let first = Listener::bind(&path).unwrap();
        let address = Address::Local(path.clone());
        let client = thread::spawn(move || {
            let mut channel = address.connect(watchdog)?;
            channel.write_all(b"to the next", watchdog)?;
            channel.close(watchdog)
        });
        drop(first.accept(watchdog).unwrap());
        drop(first);
        let mut channel = serve(&path, RingSizes::from(4096), watchdog).unwrap();
        let mut word = [0; 11];
        channel.read_exact(&mut word, watchdog).unwrap();
        assert_eq!(&word, b"to the next");
        client.join().unwrap().unwrap();
    }
}
