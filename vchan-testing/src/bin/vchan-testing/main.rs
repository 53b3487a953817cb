#![forbid(unsafe_code)]
//! `vchan-testing`: one side each of the tests of channels between two processes or domains.

mod cli;
mod conformance;
mod cycles;
mod failure;
mod faults;
mod held;
mod hostile;
mod many;
mod place;
mod quota;
mod region;
mod region_bench;
mod region_work;
mod say;
mod xenstore_suite;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use cli::Command;
use failure::Failure;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn"))
        .format_timestamp(None)
        .init();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // If writing to stderr fails there is nowhere left to report it.
            let text = format!("error: {}\n help: {}\n", failure.what, failure.advice);
            let _ = std::io::stderr().write_all(text.as_bytes());
            ExitCode::FAILURE
        }
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
