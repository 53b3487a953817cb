//! The flags of `vchan bench`.

use std::time::Duration;

use clap::Args;
use vchan::Channel;
use vgpu_cli::values::byte_count;

use super::points::Points;
use crate::place::seconds;

/// Points to measure, duration of each and output format.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchOptions {
    /// Print one JSON object a line.
    #[arg(long)]
    pub(crate) json: bool,
    /// Seconds to measure each point.
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = seconds)]
    pub(crate) time: Duration,
    /// Microseconds to look at the ring before sleeping; 0 always sleeps.
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) spin: Option<u64>,
    /// Also measure a round trip over a Unix socket pair of this machine.
    #[arg(long)]
    pub(crate) baseline: bool,
    /// Measure these only: KIND or KIND:BYTES, separated by commas [kinds: sink, source, echo,
    /// produce, produce-in-place, consume, consume-in-place, memcpy, socket-pair,
    /// socket-pair-together].
    #[arg(long, value_name = "LIST", value_parser = clap::value_parser!(Points))]
    pub(crate) points: Option<Points>,
    /// Move this many bytes at each point, however long that takes.
    #[arg(long, value_name = "BYTES", value_parser = amount, conflicts_with = "time")]
    pub(crate) bytes: Option<u64>,
    /// Then stay connected for this many seconds without any traffic.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) idle: Option<Duration>,
    /// Before each point and before closing, say so and wait for a line on standard input.
    #[arg(long)]
    pub(crate) step: bool,
}

fn amount(text: &str) -> Result<u64, String> {
    Ok(byte_count(text)? as u64)
}

/// Sets how long this side polls the ring before it sleeps, in microseconds, if the flag was given.
pub(super) fn set_spin(channel: &mut Channel, spin: Option<u64>) {
    if let Some(spin) = spin {
        channel.set_spin(Duration::from_micros(spin));
    }
}
