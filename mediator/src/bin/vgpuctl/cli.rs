//! The command line of `vgpuctl`. Nothing but the parser.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  vgpuctl status                  what runs, who uses it
  vgpuctl --json status           the same for programs, one object on one line
  vgpuctl top                     rates of all guests and sessions, every second
  vgpuctl kick web-1              end the sessions of the guest named web-1
  vgpuctl kick session:12         end one session
  vgpuctl kick 'local uid 1000'   whatever status prints in its column GUEST
  vgpuctl reload                  read the configuration again; sessions go on
  vgpuctl metrics                 figures for Prometheus, as a file for node_exporter
  vgpuctl secret web-1            a new secret for the client web-1 over tcp:
  vgpuctl doctor                  what is missing on this machine, and what to do";

/// Shows and controls a running vgpu-mediatord.
#[derive(Debug, Parser)]
#[command(
    name = "vgpuctl",
    version,
    about = "Shows and controls a running vgpu-mediatord.",
    after_help = EXAMPLES,
    max_term_width = 96
)]
pub(crate) struct Cli {
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// The mediator's control socket [default: /run/vgpu/mediatord.sock, of other users
    /// $XDG_RUNTIME_DIR/vgpu/mediatord.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What runs, who uses it, and what they have used
    Status,
    /// Rates of all guests and sessions, again every second; on a terminal in place
    Top {
        /// Print them once, measured over half a second
        #[arg(long)]
        once: bool,
    },
    /// End a guest's sessions; it may connect again
    Kick {
        /// A guest as `status` prints it, a domid, a VM's name or uuid, the name of a secret, `local`
        /// (this machine's programs), or session:N
        guest: String,
    },
    /// Figures for Prometheus, in the OpenMetrics text format
    Metrics,
    /// Have the mediator read its configuration again: rules, limits, weights and secrets
    ///
    /// Sessions go on. If the file is wrong, nothing changes, and the exit status is 2.
    Reload,
    /// Make a secret for a client over tcp:, and print its line for both sides' files
    Secret {
        /// What to call the client: letters, digits, dots, dashes and underscores
        name: String,
    },
    /// Look for what is missing on this machine; exits with 1 if something is
    ///
    /// What is needed depends on the configuration: of the mediator that runs, else of
    /// /etc/vgpu/mediatord.toml.
    Doctor {
        /// Judge by this configuration, as if a mediator with it were to be started
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_parser_is_consistent_and_the_examples_parse() {
        Cli::command().debug_assert();
        for line in EXAMPLES.lines().skip(1) {
            let command = line.trim().split("  ").next().unwrap();
            // As a shell would: what stands in quotes is one word.
            let words = command
                .split('\'')
                .enumerate()
                .flat_map(|(part, text)| match part % 2 {
                    0 => text.split_whitespace().collect(),
                    _ => vec![text],
                });
            Cli::try_parse_from(words).unwrap();
        }
    }
}
