//! The address of a channel, and how the two sides meet there.

use std::fmt::Display;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use vchan::local::{self, Listener};
use vchan::{Address, Channel, DomId, Error, Format, RingSizes, Setup, xen};
use vgpu_cli::Failure;

/// The channel's address and options.
#[derive(Debug, Clone, Args)]
pub(crate) struct Place {
    /// `xen:DOMID/PATH` with the domain at the other end, or `local:PATH`.
    address: Address,
    /// Seconds to wait for the other side to appear.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub(crate) timeout: Duration,
    /// Use libxenvchan's format only, whatever the other side knows.
    #[arg(long)]
    classic: bool,
}

/// The carrier of the channel.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Carrier<'a> {
    /// Granted pages and an event channel: the other domain, and a path in xenstore.
    Xen(DomId, &'a str),
    /// A memfd and two bells: a Unix socket.
    Local(&'a Path),
}

impl Place {
    pub(crate) fn carrier(&self) -> Result<Carrier<'_>, Failure> {
        match &self.address {
            Address::Xen { peer, path } => Ok(Carrier::Xen(*peer, path.as_str())),
            Address::Local(path) => Ok(Carrier::Local(path)),
            other => Err(Failure::new(
                format!("this command cannot use {other}"),
                "give an address that begins with xen: or local:",
            )),
        }
    }

    /// The other domain and the path, for operations that only Xen has.
    pub(crate) fn xen(&self) -> Result<(DomId, &str), Failure> {
        match self.carrier()? {
            Carrier::Xen(peer, path) => Ok((peer, path)),
            Carrier::Local(_) => Err(Failure::new(
                "this is a test of Xen",
                "give an address that begins with xen:",
            )),
        }
    }

    /// A separate place for one of several channels.
    pub(crate) fn part(&self, name: impl Display) -> Result<Self, Failure> {
        let mut part = self.clone();
        match &mut part.address {
            Address::Xen { path, .. } => {
                *path = format!("{path}/{name}").parse().map_err(Error::from)?;
            }
            Address::Local(path) => {
                let mut beside = path.clone().into_os_string();
                beside.push(format!(".{name}"));
                *path = beside.into();
            }
            _ => {}
        }
        Ok(part)
    }

    fn format(&self) -> Format {
        match self.classic {
            true => Format::Classic,
            false => Format::Extended,
        }
    }

    fn setup(&self) -> Setup<'static> {
        Setup::new().format(self.format())
    }

    /// Takes the vchan server role and waits for the client. Rings of `None` are the default.
    pub(crate) fn serve(&self, rings: Option<RingSizes>) -> Result<Channel, Failure> {
        let deadline = Instant::now() + self.timeout;
        let setup = self.setup().deadline(deadline);
        let path = match self.carrier()? {
            Carrier::Xen(peer, path) => {
                let server = match rings {
                    Some(rings) => xen::Server::publish_with(&setup, peer, path, rings)?,
                    None => xen::Server::publish_default_with(&setup, peer, path)?,
                };
                return Ok(server.accept(deadline)?);
            }
            Carrier::Local(path) => path,
        };
        let rings = rings.unwrap_or_else(|| local::default_rings(self.format()));
        let listener = Listener::bind(path)?;
        loop {
            let stream = listener.accept(deadline)?;
            match local::serve_with(&setup, stream, rings, deadline) {
                // A process that was meant to die has died.
                Err(error @ (Error::Peer(_) | Error::PeerClosed { .. })) => {
                    log::warn!("a client did not connect: {error}");
                }
                outcome => return Ok(outcome?),
            }
        }
    }

    /// Takes the vchan client role, waiting for the server.
    pub(crate) fn connect(&self) -> Result<Channel, Failure> {
        let deadline = Instant::now() + self.timeout;
        let path = match self.carrier()? {
            Carrier::Xen(peer, path) => {
                return Ok(xen::connect_with(&self.setup(), peer, path, deadline)?);
            }
            Carrier::Local(path) => path,
        };
        Ok(local::connect_path_with(&self.setup(), path, deadline)?)
    }
}

/// Parses a number of seconds, possibly fractional.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        // Safe to add to any clock.
        .filter(|duration| *duration <= Duration::from_secs(365 * 24 * 3600))
        .ok_or_else(|| "a number of seconds, at most a year, is needed".to_owned())
}
