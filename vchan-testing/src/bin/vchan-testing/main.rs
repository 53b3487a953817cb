#![forbid(unsafe_code)]
//! `vchan-testing`: one side each of the tests of channels between two processes or domains.

mod cli;
mod conformance;
mod cycles;
mod faults;
mod held;
mod hostile;
mod many;
mod place;
mod quota;
mod region;
mod region_bench;
mod region_work;
mod xenstore_suite;

use std::process::ExitCode;

use clap::Parser;
use vgpu_cli::Failure;

use cli::Command;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn"))
        .format_timestamp(None)
        .init();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(false),
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::ConformanceServe { place, only } => conformance::serve(&place, only.as_deref()),
        Command::ConformanceConnect { place, only } => {
            conformance::connect(&place, only.as_deref())
        }
        Command::CycleServe { place, rounds } => cycles::serve(&place, rounds),
        Command::CycleConnect { place, rounds } => cycles::connect(&place, rounds),
        Command::ManyServe { place, count } => many::serve(&place, count),
        Command::ManyConnect { place, asking } => many::connect(&place, asking),
        Command::XenstoreSuite { folder } => xenstore_suite::run(&folder),
        Command::PagesLeft => held::pages_left(),
        Command::RegionServe { place, ring, bytes } => {
            region::serve(place.serve(ring.map(Into::into))?, bytes)
        }
        Command::RegionConnect { place, work, time } => {
            region::connect(place.connect()?, work, time)
        }
        Command::Hostile(command) => hostile::main(command),
        Command::Fault(command) => faults::main(command),
    }
}
