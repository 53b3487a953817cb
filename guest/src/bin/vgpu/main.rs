#![forbid(unsafe_code)]
//! `vgpu`: sends work to a mediator from the command line.

mod bench;
mod bench_gpu;
mod cli;
mod conformance;
mod doctor;
mod figures;
mod floats;
mod info;
mod output;
mod output_file;
mod ping;
mod run;
mod session;
mod vector_add;

use std::process::ExitCode;

use vgpu_cli::Failure;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli: Cli = vgpu_cli::parse();
    let default_level = match cli.verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(default_level))
        .format_timestamp(None)
        .init();
    match execute(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(cli.json),
    }
}

fn execute(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        Command::Info => info::run(cli),
        Command::Ping(arguments) => ping::run(cli, arguments),
        Command::Doctor => doctor::run(cli),
        Command::VectorAdd(arguments) => vector_add::run(cli, arguments),
        Command::Run(arguments) => run::run(cli, arguments),
        Command::Bench(arguments) => bench::run(cli, arguments),
        Command::Conformance(arguments) => conformance::run(cli, arguments),
    }
}
