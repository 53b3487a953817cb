//! The command line.

use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::bench::BenchOptions;
use crate::place::{Place, Rings, seconds};

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
}

impl Command {
    /// Whether the results are for programs.
    pub(crate) fn prints_objects(&self) -> bool {
        matches!(self, Self::Bench { options, .. } if options.json)
    }
}

/// Action on the channel.
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
