//! `hostile`: a peer that breaks every rule, and its victim (see [`vchan_testing::hostile`]).

use std::time::Instant;

use clap::{Args, Subcommand};
use vchan::layout::Role;
use vchan::local::{Listener, connect_stream};
use vchan::{Format, RingSizes};
use vchan_testing::hostile::{Options, Target, kinds, lie_to, run, run_victim};
use vgpu_cli::{Failure, print_line};

use crate::place::{Carrier, Place};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Both sides in this process, over memfds.
    Here {
        #[command(flatten)]
        lies: Lies,
    },
    /// One side, as the vchan server.
    Serve {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        side: Side,
    },
    /// One side, as the vchan client.
    Connect {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        side: Side,
    },
}

/// The liar's options; the victim receives them.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Lies {
    /// Seed of everything in lock-step [default: a random one, which is printed].
    #[arg(long)]
    seed: Option<u64>,
    /// Leave out the rounds before this one.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Corrupted states to reach; a fifth more follow in a storm.
    #[arg(long, default_value_t = 100_000)]
    states: u64,
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Side {
    /// Be the victim; the other side lies.
    #[arg(long)]
    victim: bool,
    #[command(flatten)]
    lies: Lies,
}

impl Lies {
    fn options(self) -> Result<Options, Failure> {
        let seed = match self.seed {
            Some(seed) => seed,
            None => getrandom::u64().map_err(|error| {
                Failure::new(
                    format!("cannot draw a seed: {error}"),
                    "give one with --seed",
                )
            })?,
        };
        Ok(Options {
            seed,
            from: self.from,
            states: self.states,
        })
    }
}

pub(crate) fn main(command: Command) -> Result<(), Failure> {
    match command {
        Command::Here { lies } => here(&lies.options()?),
        Command::Serve { place, side } => apart(&place, side, Role::Server),
        Command::Connect { place, side } => apart(&place, side, Role::Client),
    }
}

fn here(options: &Options) -> Result<(), Failure> {
    announce(options)?;
    let mut pairs = Vec::new();
    for victim in [Role::Server, Role::Client] {
        for (format, rings) in kinds() {
            pairs.push(Target::pair(victim, format, rings)?);
        }
    }
    let report = run(pairs, options).map_err(went_wrong)?;
    print_line(format_args!("{report}"))
}

/// One side: an honest channel at PATH/control, and the targets at PATH/0, PATH/1 and so on.
fn apart(place: &Place, side: Side, role: Role) -> Result<(), Failure> {
    let control = place.part("control")?;
    let control = match role {
        Role::Server => control.serve(Some(4096.into()))?,
        Role::Client => control.connect()?,
    };
    let mut targets = Vec::new();
    for (number, (format, rings)) in kinds().enumerate() {
        let place = place.part(number)?;
        targets.push(target(&place, role, format, rings)?);
    }
    if side.victim {
        let mut said = Ok(());
        let report = run_victim(control, targets, |options| said = announce(options));
        said?;
        return print_line(format_args!("{}", report.map_err(went_wrong)?));
    }
    let options = side.lies.options()?;
    announce(&options)?;
    lie_to(control, targets, &options).map_err(went_wrong)
}

fn target(place: &Place, role: Role, format: Format, rings: RingSizes) -> Result<Target, Failure> {
    let deadline = Instant::now() + place.timeout;
    Ok(match (place.carrier()?, role) {
        (Carrier::Xen(peer, path), Role::Server) => {
            Target::serve(peer, path, format, rings, deadline)?
        }
        (Carrier::Xen(peer, path), Role::Client) => Target::connect(peer, path, format, deadline)?,
        (Carrier::Local(path), Role::Server) => {
            let stream = Listener::bind(path)?.accept(deadline)?;
            Target::serve_on(stream, format, rings, deadline)?
        }
        (Carrier::Local(path), Role::Client) => {
            let stream = connect_stream(path, deadline)?;
            Target::connect_on(stream, format, deadline)?
        }
    })
}

fn announce(options: &Options) -> Result<(), Failure> {
    let Options { seed, from, states } = options;
    print_line(format_args!(
        "hostile: --seed {seed} --from {from} --states {states}"
    ))
}

fn went_wrong(what: String) -> Failure {
    Failure::new(what, "run it again with the seed and the round it names")
}
