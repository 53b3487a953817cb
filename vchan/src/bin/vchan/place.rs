//! The flags for the peer's address and the ring sizes.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use vchan::{DomId, Format, RingSizes, Setup};
use vgpu_cli::values::byte_count;

/// Where the peer is.
#[derive(Debug, Clone, Args)]
pub(crate) struct Place {
    /// The domain id of the other side (0 is dom0); not needed with --backend local.
    #[arg(long, value_name = "DOMID")]
    pub(crate) peer: Option<DomId>,
    /// xenstore path of the channel, absolute or relative to the server's home
    /// (/local/domain/<id>); with --backend local the path of a Unix socket.
    #[arg(long, value_name = "P")]
    pub(crate) path: PathBuf,
    /// The medium of the channel.
    #[arg(long, value_enum, default_value_t = Backend::Xen)]
    pub(crate) backend: Backend,
    /// Seconds to wait for the other side to appear.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub(crate) timeout: Duration,
    /// Use libxenvchan's format only, whatever the other side knows.
    #[arg(long)]
    pub(crate) classic: bool,
}

impl Place {
    /// The wire format to offer.
    pub(crate) fn format(&self) -> Format {
        match self.classic {
            true => Format::Classic,
            false => Format::Extended,
        }
    }

    /// The options for setting up the channel.
    pub(crate) fn setup(&self) -> Setup<'static> {
        Setup::new().format(self.format())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// Granted pages and an event channel, between two domains.
    Xen,
    /// A memfd and eventfds, between two processes of this machine.
    Local,
}

/// How large the server makes its rings.
#[derive(Debug, Clone, Args)]
pub(crate) struct Rings {
    /// Bytes of each ring, at most 2M, or 8M with --backend local, 1M with --classic; K and M are allowed [default: 256K, less where the kernel
    /// grants fewer pages; with --backend local the most there is].
    #[arg(long, value_name = "BYTES", value_parser = byte_count)]
    ring: Option<usize>,
    /// Bytes of the ring that this side writes, where it shall differ from --ring.
    #[arg(long, value_name = "BYTES", value_parser = byte_count, requires = "ring")]
    write_ring: Option<usize>,
}

impl Rings {
    /// The sizes asked for, if any.
    pub(crate) fn sizes(&self) -> Option<RingSizes> {
        let ring = self.ring?;
        let server_to_client = self.write_ring.unwrap_or(ring);
        Some(RingSizes {
            server_to_client,
            client_to_server: ring,
        })
    }
}

/// Parses a number of seconds, possibly fractional.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        // Far longer than any wait, and safe to add to any clock.
        .filter(|duration| *duration <= Duration::from_secs(365 * 24 * 3600))
        .ok_or_else(|| "a number of seconds, at most a year, is needed".to_owned())
}
