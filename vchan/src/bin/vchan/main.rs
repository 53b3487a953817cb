#![forbid(unsafe_code)]
//! `vchan`: byte channels between Xen domains from the command line.

mod bench;
mod cli;
mod open;
mod pipe;
mod place;
mod progress;
mod stream;

use std::process::ExitCode;

use vgpu_cli::Failure;

use cli::{Action, Command};
use progress::Progress;

fn main() -> ExitCode {
    let arguments: cli::Arguments = vgpu_cli::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn"))
        .format_timestamp(None)
        .init();
    let json = arguments.command.prints_objects();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(json),
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve { place, rings, work } => act(open::serve(&place, &rings)?, &work),
        Command::Connect { place, work } => act(open::connect(&place)?, &work),
        Command::BenchServe { place, rings, spin } => {
            bench::serve(open::serve(&place, &rings)?, spin)
        }
        Command::Bench { place, options } => bench::run(open::connect(&place)?, &options),
    }
}

fn act(channel: vchan::Channel, work: &cli::Work) -> Result<(), Failure> {
    let progress = Progress::new(work.quiet);
    match work.action() {
        Action::Echo => stream::echo(channel),
        Action::Sink => stream::sink(channel, &progress),
        Action::Pipe => pipe::run(channel, work.linger, &progress),
    }
}
