//! `vgpu-mediatord`: serves GPU work to Xen guests. See `vgpu_mediator` for how it is built.
#![forbid(unsafe_code)]

use std::io;
use std::process::ExitCode;

use vchan::xen::store::provider::Provider;
use vgpu_cli::{Failure, MISUSE};
use vgpu_mediator::cli::Flags;
use vgpu_mediator::compile::process;
use vgpu_mediator::config::Config;
use vgpu_mediator::print::print;
use vgpu_mediator::worker::confinement::trial;
use vgpu_mediator::{broker, gpus, logging, worker};

fn main() -> ExitCode {
    Provider::XenstoreRs.prefer();
    // The mediator starts itself anew for what must be a process of its own.
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    match arguments.split_first() {
        Some((first, rest)) if first == worker::ARGUMENT => return worker::main(rest),
        Some((first, _)) if first == broker::closer::ARGUMENT => return broker::closer::main(),
        Some((first, rest)) if first == broker::probe_process::ARGUMENT => {
            return broker::probe_process::main(rest);
        }
        Some((first, _)) if first == gpus::ARGUMENT => return gpus::main(),
        Some((first, rest)) if first == trial::ARGUMENT => return trial::main(rest),
        Some((first, rest)) if first == process::ARGUMENT => return process::main(rest),
        _ => {}
    }
    let status = match run(&vgpu_cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            logging::say(&failure.lines());
            ExitCode::from(failure.code)
        }
    };
    logging::flush();
    status
}

fn run(flags: &Flags) -> Result<(), Failure> {
    // Starting again would not help: the unit tells it from what may pass.
    let config = configuration(flags).map_err(|failure| failure.with_code(MISUSE))?;
    serve(flags, config)
}

fn configuration(flags: &Flags) -> Result<Config, Failure> {
    let config = Config::load(flags)?;
    config.check_secrets()?;
    Ok(config)
}

fn serve(flags: &Flags, config: Config) -> Result<(), Failure> {
    if flags.check_config {
        return match print(&config.to_toml()) {
            // The reader of the output has closed it.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            printed => printed
                .map_err(|error| Failure::system("cannot print", error, "check standard output")),
        };
    }
    logging::init(flags.verbose).map_err(|error| {
        Failure::system(
            "no thread for the log",
            error,
            "look at the limits of processes and memory (ulimit -a)",
        )
    })?;
    broker::run(config, flags)
}
