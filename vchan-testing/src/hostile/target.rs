#![forbid(unsafe_code)]
//! The creation of a target's pages: by an honest rendezvous, of any kind.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::pages::SharedPages;
use vchan::DomId;
use vchan::Setup;
use vchan::error::{Error, Result};
use vchan::layout::{Format, RingSizes, Role};
use vchan::{testing, xen};

/// Time limit for a rendezvous inside one process.
const RENDEZVOUS_LIMIT: Duration = Duration::from_secs(60);

/// One end of the pages of a channel.
#[derive(Debug)]
pub struct Target(pub(super) SharedPages);

/// The rings of the targets: in the control page, mixed, in pages of their own.
const RINGS: [RingSizes; 6] = [
    sizes(1 << 10, 2 << 10),
    sizes(4 << 10, 4 << 10),
    sizes(2 << 10, 1 << 10),
    sizes(2 << 10, 8 << 10),
    sizes(8 << 10, 2 << 10),
    sizes(4 << 10, 8 << 10),
];

/// Bytes of the largest of them.
pub(super) const LARGEST: usize = 8 << 10;

/// Every pair of rings in both formats: the targets of a run.
pub fn kinds() -> impl Iterator<Item = (Format, RingSizes)> {
    let all = |format| RINGS.map(|rings| (format, rings));
    all(Format::Classic)
        .into_iter()
        .chain(all(Format::Extended))
}

const fn sizes(client_to_server: usize, server_to_client: usize) -> RingSizes {
    RingSizes {
        server_to_client,
        client_to_server,
    }
}

impl Target {
    /// Both ends in this process: the liar's, and the victim's, which has the role `victim`.
    ///
    /// # Errors
    /// Those of a connection over a socket pair.
    pub fn pair(victim: Role, format: Format, rings: RingSizes) -> Result<(Self, Self)> {
        let (one, other) =
            UnixStream::pair().map_err(|error| Error::os("cannot make a socket pair", error))?;
        let deadline = Instant::now() + RENDEZVOUS_LIMIT;
        let server = std::thread::spawn(move || Self::serve_on(one, format, rings, deadline));
        let client = Self::connect_on(other, format, deadline)?;
        let server = server
            .join()
            .map_err(|_| Error::setup("the server's thread panicked", "report it"))??;
        Ok(match victim {
            Role::Server => (client, server),
            Role::Client => (server, client),
        })
    }

    /// The server's end over a connected stream.
    ///
    /// # Errors
    /// As [`vchan::local::serve_with`].
    pub fn serve_on(
        stream: UnixStream,
        format: Format,
        rings: RingSizes,
        deadline: Instant,
    ) -> Result<Self> {
        let setup = Setup::new().format(format);
        let parts = testing::serve_on(&setup, stream, rings, deadline)?;
        Ok(Self(SharedPages::new(parts)?))
    }

    /// The client's end over a connected stream.
    ///
    /// # Errors
    /// As [`vchan::local::connect_with`].
    pub fn connect_on(stream: UnixStream, format: Format, deadline: Instant) -> Result<Self> {
        let setup = Setup::new().format(format);
        let parts = testing::connect_on(&setup, stream, deadline)?;
        Ok(Self(SharedPages::new(parts)?))
    }

    /// The server's end over granted pages.
    ///
    /// # Errors
    /// Those of [`xen::Server`].
    pub fn serve(
        peer: DomId,
        path: &str,
        format: Format,
        rings: RingSizes,
        deadline: Instant,
    ) -> Result<Self> {
        let setup = Setup::new().format(format);
        let server = xen::Server::publish_with(&setup, peer, path, rings)?;
        Ok(Self(SharedPages::new(testing::accept(server, deadline)?)?))
    }

    /// The client's end over granted pages.
    ///
    /// # Errors
    /// As [`xen::connect_with`].
    pub fn connect(peer: DomId, path: &str, format: Format, deadline: Instant) -> Result<Self> {
        let setup = Setup::new().format(format);
        let parts = testing::connect(&setup, peer, path, deadline)?;
        Ok(Self(SharedPages::new(parts)?))
    }
}
