//! The command line.

use std::time::Duration;

use clap::{Parser, Subcommand};
use vgpu_cli::values::byte_count;

use crate::cycles::Rounds;
use crate::many::{Asking, Count};
use crate::place::{Place, seconds};
use crate::region_work::RegionWork;

/// One end of a channel, as tests of vchan need it. Not to be installed.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the server's side of the suite that every channel must pass.
    ConformanceServe {
        #[command(flatten)]
        place: Place,
        /// Run one case.
        #[arg(long)]
        only: Option<String>,
    },
    /// Run the client's side of the suite that every channel must pass.
    ConformanceConnect {
        #[command(flatten)]
        place: Place,
        /// Run one case.
        #[arg(long)]
        only: Option<String>,
    },
    /// Make a shared region for one `region-connect`, then exit.
    RegionServe {
        #[command(flatten)]
        place: Place,
        /// Bytes of each ring; K and M are allowed [default: the channel's].
        #[arg(long, value_name = "BYTES", value_parser = byte_count)]
        ring: Option<usize>,
        /// Bytes of the region; K and M are allowed.
        #[arg(long, value_name = "BYTES", default_value = "2M", value_parser = byte_count)]
        bytes: usize,
    },
    /// Map the shared region of a `region-serve` and use it.
    RegionConnect {
        #[command(flatten)]
        place: Place,
        /// Action on the channel.
        #[arg(long = "to", value_enum)]
        work: RegionWork,
        /// Seconds to measure each way.
        #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = seconds)]
        time: Duration,
    },
    /// Open and close channels, and have peers killed, to see what stays behind: server's side.
    CycleServe {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        rounds: Rounds,
    },
    /// The client's side of that.
    CycleConnect {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        rounds: Rounds,
    },
    /// Echo on many channels in one thread, at PATH/0, PATH/1 and so on.
    ManyServe {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        count: Count,
    },
    /// Ask on many channels in one thread and check every answer.
    ManyConnect {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        asking: Asking,
    },
    /// Make every request of xenstore, and watches, below the node FOLDER, which is removed.
    XenstoreSuite {
        #[arg(value_name = "FOLDER")]
        folder: String,
    },
    /// Print how many more pages this kernel would grant.
    PagesLeft,
    /// A peer that breaks every rule it can, and its victim.
    #[command(subcommand)]
    Hostile(crate::hostile::Command),
    /// Sides of tests in which something of Xen fails or is taken away.
    #[command(subcommand)]
    Fault(crate::faults::Command),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }
}
