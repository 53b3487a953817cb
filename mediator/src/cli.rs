//! The command line of `vgpu-mediatord`. Nothing but the parser.

use std::path::PathBuf;

use clap::Parser;
use vgpu_transport::endpoint::Endpoint;

use crate::executor::ExecutorChoice;

const EXAMPLES: &str = "\
Examples:
  vgpu-mediatord --listen xen: --config /etc/vgpu/mediatord.toml
      In dom0: serve the guests that the file's [guests] table allows.
  vgpu-mediatord --listen local:/tmp/vgpu.sock --executor cpu
      On any machine, without Xen and without a GPU.
  vgpu-mediatord --listen xen:,file:/dev/shm/vgpu --allow-all
      All guests over Xen, and the file protocol in a directory.
  vgpu-mediatord --listen xen: --executor relay:xen:gpu --config /etc/vgpu/mediatord.toml
      In dom0: pass the guests' sessions on to the mediator in the domain `gpu`.
  vgpu-mediatord --listen tcp:127.0.0.1:7070 --secrets /etc/vgpu/secrets
      Clients that know a secret of the file, encrypted; vgpuctl secret NAME makes one.
  vgpu-mediatord --config /etc/vgpu/mediatord.toml --check-config
      Check a file and print what would be in effect.

Endpoints:
  xen:          guests of this Xen host (needs root in dom0)
  local:PATH    programs on this machine, by a Unix socket at PATH
  unix:PATH     the same without shared memory: the bytes go through the socket
  tcp:HOST:PORT over a network, for clients with a secret (--secrets)
  file:DIR      DIR and each DIR/<guest>/ in it, for clients on NFS or sshfs: sessions
                (vgpu --endpoint file:DIR), and command.txt with response.txt for a shell

Who is allowed: guests only by [guests] or --allow-all; over local: and unix: always
root and the user that runs the mediator, others only with --allow-all; over tcp: whoever
has a secret; over file: whoever can write in DIR.";

/// Serves GPU work to Xen guests.
#[derive(Debug, Clone, Default, Parser)]
#[command(
    name = "vgpu-mediatord",
    version,
    about = "Serves GPU work to Xen guests over shared memory.",
    after_help = EXAMPLES,
    max_term_width = 96
)]
pub struct Flags {
    /// Where to serve guests: xen:, local:PATH, unix:PATH, tcp:HOST:PORT, file:DIR, or several with
    /// commas
    #[arg(long, value_name = "E[,E…]", value_delimiter = ',')]
    pub listen: Vec<Endpoint>,

    /// The secrets of those who connect over tcp:, one NAME KEY a line; nobody else may read it
    #[arg(long, value_name = "FILE")]
    pub secrets: Option<PathBuf>,

    /// Executor of the work: auto takes CUDA where it works, else the CPU [default: auto]
    ///
    /// relay:E passes sessions on to another mediator: relay:xen:DOMAIN to one in a guest that has
    /// the GPU, relay:tcp:HOST:PORT to one on another machine, relay:unix:PATH or relay:local:PATH
    #[arg(long, value_name = "auto|cuda|cpu|relay:E")]
    pub executor: Option<ExecutorChoice>,

    /// The file with the secret that the mediator behind relay:tcp: knows this one by
    #[arg(long, value_name = "FILE")]
    pub relay_secret: Option<PathBuf>,

    /// Admit every guest that no rule denies
    #[arg(long)]
    pub allow_all: bool,

    /// Read settings from this TOML file; flags override it [default, where --listen is not given either:
    /// /etc/vgpu/mediatord.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Print the effective configuration and exit: 0 if it is sound
    #[arg(long)]
    pub check_config: bool,

    /// Socket for vgpuctl [default: /run/vgpu/mediatord.sock, of other users
    /// $XDG_RUNTIME_DIR/vgpu/mediatord.sock]
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,

    /// Log more: -v debug, -vv trace. RUST_LOG has the last word
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

impl Flags {
    /// Reads flags that come without a program name in front.
    ///
    /// # Errors
    /// As clap says it, several lines with the usage.
    pub fn try_parse(flags: &[&str]) -> Result<Self, clap::Error> {
        Self::try_parse_from(std::iter::once("vgpu-mediatord").chain(flags.iter().copied()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_parser_is_consistent() {
        Flags::command().debug_assert();
    }

    #[test]
    fn every_example_of_the_help_parses() {
        let mut examples = 0;
        for line in EXAMPLES.lines() {
            if let Some(command) = line.strip_prefix("  vgpu-mediatord ") {
                let flags: Vec<&str> = command.split_whitespace().collect();
                Flags::try_parse(&flags).unwrap_or_else(|error| panic!("{command}: {error}"));
                examples += 1;
            }
        }
        assert_eq!(examples, 6);
    }

    #[test]
    fn mistakes_are_named() {
        for (flags, word) in [
            (&["--listen", "carrier-pigeon:x"][..], "carrier-pigeon"),
            (&["--listen", "tcp:host"], "tcp:HOST:PORT"),
            (&["--listen", "local:"], "path"),
            (&["--executor", "vulkan"], "vulkan"),
            (&["--executor", "relay:xen:"], "relay"),
            (&["--frobnicate"], "--frobnicate"),
            (&["serve"], "serve"),
        ] {
            let error = Flags::try_parse(flags).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
