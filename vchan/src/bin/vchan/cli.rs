//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use vchan::{DomId, Format, RingSizes, Setup, byte_count};

use crate::bench::Points;
use crate::cycles::Rounds;
use crate::many::{Asking, Count};

const EXAMPLES: &str = "\
Examples:
  A file from guest 7 to dom0:
    guest$ vchan serve --peer 0 --path data/copy --pipe < disk.img
    dom0#  vchan connect --peer 7 --path data/copy --pipe > disk.img < /dev/null
  Is the way there and back whole?
    guest$ vchan serve --peer 0 --path data/test --echo
    dom0#  echo hello | vchan connect --peer 7 --path data/test --pipe
  The same without Xen:
    $ vchan serve --backend local --path /tmp/test.sock --sink &
    $ vchan connect --backend local --path /tmp/test.sock --pipe < /bin/ls
  How fast is it?
    guest$ vchan bench-serve --peer 0 --path data/bench --ring 1M
    dom0#  vchan bench --peer 7 --path data/bench";

/// Byte channels between Xen domains, compatible with libxenvchan.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Provide a channel (vchan server: grants the memory) and wait for a client.
    #[command(after_help = EXAMPLES)]
    Serve {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        rings: Rings,
        #[command(flatten)]
        work: Work,
    },
    /// Connect to a channel (vchan client: maps the memory), waiting for it to appear.
    #[command(after_help = EXAMPLES)]
    Connect {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        work: Work,
    },
    /// Measure throughput and round trips against a `bench-serve`.
    Bench {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        options: BenchOptions,
    },
    /// Serve one `bench`, then exit.
    BenchServe {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        rings: Rings,
        /// Microseconds to look at the ring before sleeping; 0 always sleeps.
        #[arg(long, value_name = "MICROSECONDS")]
        spin: Option<u64>,
    },
    /// Run the server's side of the suite that every channel must pass.
    #[command(hide = true)]
    ConformanceServe {
        #[command(flatten)]
        place: Place,
        /// Run one case.
        #[arg(long)]
        only: Option<String>,
    },
    /// Run the client's side of the suite that every channel must pass.
    #[command(hide = true)]
    ConformanceConnect {
        #[command(flatten)]
        place: Place,
        /// Run one case.
        #[arg(long)]
        only: Option<String>,
    },
    /// Make a shared region for one `region-connect`, then exit.
    #[command(hide = true)]
    RegionServe {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        rings: Rings,
        /// Bytes of the region; K and M are allowed.
        #[arg(long, value_name = "BYTES", default_value = "2M", value_parser = byte_count::parse)]
        bytes: usize,
    },
    /// Map the shared region of a `region-serve` and use it.
    #[command(hide = true)]
    RegionConnect {
        #[command(flatten)]
        place: Place,
        /// What to do with it.
        #[arg(long = "to", value_enum)]
        work: RegionWork,
        /// Seconds to measure each way.
        #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = seconds)]
        time: Duration,
    },
    /// Open and close channels, and have peers killed, to see what stays behind: server's side.
    #[command(hide = true)]
    CycleServe {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        rounds: Rounds,
    },
    /// The client's side of that.
    #[command(hide = true)]
    CycleConnect {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        rounds: Rounds,
    },
    /// Echo on many channels in one thread, at PATH/0, PATH/1 and so on.
    #[command(hide = true)]
    ManyServe {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        rings: Rings,
        #[command(flatten)]
        count: Count,
    },
    /// Ask on many channels in one thread and check every answer.
    #[command(hide = true)]
    ManyConnect {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        asking: Asking,
    },
    /// Print how many more pages this kernel would grant.
    #[command(hide = true)]
    PagesLeft,
    /// A peer that breaks every rule it can, and its victim.
    #[command(hide = true, subcommand)]
    Hostile(crate::hostile::Command),
    /// Sides of tests in which something of Xen fails or is taken away.
    #[command(hide = true, subcommand)]
    Fault(crate::faults::Command),
}

/// What the two ends of a shared region do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RegionWork {
    /// Move bytes both ways and verify them, revoke, ask for too much.
    Check,
    /// Stay mapped until the other side is gone.
    Hold,
    /// Compare with the ring alone.
    Bench,
}

impl RegionWork {
    /// By which the client asks for it.
    pub(crate) fn byte(self) -> u8 {
        match self {
            Self::Check => b'c',
            Self::Hold => b'h',
            Self::Bench => b'b',
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Check, Self::Hold, Self::Bench]
            .into_iter()
            .find(|work| work.byte() == byte)
    }
}

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
    /// What carries the channel.
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
    /// The format to be ready for.
    pub(crate) fn format(&self) -> Format {
        match self.classic {
            true => Format::Classic,
            false => Format::Extended,
        }
    }

    /// How to set up the channel.
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
    #[arg(long, value_name = "BYTES", value_parser = byte_count::parse)]
    ring: Option<usize>,
    /// Bytes of the ring that this side writes, where it shall differ from --ring.
    #[arg(long, value_name = "BYTES", value_parser = byte_count::parse, requires = "ring")]
    write_ring: Option<usize>,
}

impl Rings {
    /// What was asked for, if anything was.
    pub(crate) fn sizes(&self) -> Option<RingSizes> {
        let ring = self.ring?;
        let server_to_client = self.write_ring.unwrap_or(ring);
        Some(RingSizes {
            server_to_client,
            client_to_server: ring,
        })
    }
}

/// What to do with the channel.
#[derive(Debug, Clone, Args)]
pub(crate) struct Work {
    #[command(flatten)]
    which: Which,
    /// With --pipe: seconds to keep receiving after all of standard input was sent and the other
    /// side has gone silent. If standard input is empty and no regular file, only the other side
    /// ends the transfer.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(crate) linger: Duration,
    /// Show no progress on stderr. Without this it is shown if that is a terminal.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// Send every byte back.
    #[arg(long)]
    echo: bool,
    /// Discard what comes; at the end print its length and crc32c.
    #[arg(long)]
    sink: bool,
    /// Join standard input and output to the channel.
    #[arg(long)]
    pipe: bool,
}

pub(crate) enum Action {
    Echo,
    Sink,
    Pipe,
}

impl Work {
    pub(crate) fn action(&self) -> Action {
        match self.which {
            Which { echo: true, .. } => Action::Echo,
            Which { sink: true, .. } => Action::Sink,
            Which { .. } => Action::Pipe,
        }
    }
}

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
    /// Then stay connected for so many seconds without any traffic.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) idle: Option<Duration>,
    /// Before each point and before closing, say so and wait for a line on standard input.
    #[arg(long)]
    pub(crate) step: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        // Far more than anybody waits, and safe to add to any clock.
        .filter(|duration| *duration <= Duration::from_secs(365 * 24 * 3600))
        .ok_or_else(|| "a number of seconds, at most a year, is needed".to_owned())
}

fn amount(text: &str) -> Result<u64, String> {
    Ok(byte_count::parse(text)? as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn times() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "-1", "nan", "inf", "1e99"] {
            assert!(seconds(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn exactly_one_action_is_needed() {
        let parse = |line: &str| Arguments::try_parse_from(line.split(' '));
        assert!(parse("vchan serve --peer 0 --path data/x --echo").is_ok());
        assert!(parse("vchan serve --backend local --path /tmp/x --echo").is_ok());
        assert!(parse("vchan serve --peer 0 --path data/x").is_err());
        assert!(parse("vchan serve --peer 0 --path data/x --echo --sink").is_err());
        assert!(parse("vchan connect --peer 0 --path data/x --sink --ring 64K").is_err());
        assert!(parse("vchan serve --peer 40000 --path data/x --echo").is_err());
    }
}
