//! `vgpuctl`: what the mediator does, and for whom.
#![forbid(unsafe_code)]

mod cli;
mod doctor;
mod figures;
mod gpus;
mod secret;
mod status;
mod top;

use std::io;
use std::path::Path;
use std::process::ExitCode;

use vchan::xen::store::provider::Provider;
use vgpu_cli::Failure;
use vgpu_mediator::broker::probe_process;
use vgpu_mediator::config::default_control_path;
use vgpu_mediator::control::client::ask;
use vgpu_mediator::control::{Answer, Ask, Refused, Status};
use vgpu_mediator::logging;
use vgpu_mediator::print::print;
use vgpu_mediator::worker::confinement::trial;

use cli::{Cli, Command};

fn main() -> ExitCode {
    Provider::XenstoreRs.prefer();
    // `doctor` starts itself anew to try CUDA, and how workers are confined, in processes of their own.
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    match arguments.split_first() {
        Some((first, rest)) if first == probe_process::ARGUMENT => {
            return probe_process::main(rest);
        }
        Some((first, rest)) if first == trial::ARGUMENT => return trial::main(rest),
        _ => {}
    }
    let cli: Cli = vgpu_cli::parse();
    match run(&cli) {
        Ok(status) => status,
        Err(Exit::Failure(failure)) => {
            failure.print_object(cli.json);
            logging::say(&failure.lines());
            ExitCode::from(failure.code)
        }
        // The reader of the output has closed it.
        Err(Exit::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Exit::Output(error)) => Failure::standard("output", &error).report(false),
    }
}

/// Why the program ends early.
enum Exit {
    Failure(Failure),
    Output(io::Error),
}

impl From<Failure> for Exit {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<io::Error> for Exit {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

fn run(cli: &Cli) -> Result<ExitCode, Exit> {
    let control = cli.control.clone().unwrap_or_else(default_control_path);
    // On a terminal that has to be put back first.
    if !matches!(cli.command, Command::Top { .. }) {
        vgpu_cli::end_on_signals()?;
    }
    match &cli.command {
        Command::Status => {
            let status = fetch(&control)?;
            if cli.json {
                print_json(&status)?;
            } else {
                print(&status::render(&status))?;
            }
        }
        Command::Top { once } => return top::run(&control, cli.json, *once),
        Command::Kick { guest } => {
            let guest = guest.clone();
            match ask(&control, Ask::Kick { guest })? {
                Answer::Kicked(sessions) if cli.json => {
                    print_json(&serde_json::json!({ "kicked": sessions }))?;
                }
                Answer::Kicked(1) => print("1 session is being ended\n")?,
                Answer::Kicked(sessions) => {
                    print(&format!("{sessions} sessions are being ended\n"))?;
                }
                other => return Err(unexpected(other)),
            }
        }
        Command::Reload => match ask(&control, Ask::Reload)? {
            Answer::Reloaded(reloaded) if cli.json => print_json(&reloaded)?,
            Answer::Reloaded(reloaded) => print(&status::reloaded(&reloaded))?,
            other => return Err(unexpected(other)),
        },
        Command::Metrics => match ask(&control, Ask::Metrics)? {
            Answer::Metrics(text) if cli.json => {
                print_json(&serde_json::json!({ "metrics": text }))?;
            }
            Answer::Metrics(text) => print(&text)?,
            other => return Err(unexpected(other)),
        },
        Command::Secret { name } => secret::run(name, cli.json)?,
        Command::Doctor { config } => {
            return doctor::run(&control, config.as_deref(), cli.json);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn fetch(control: &Path) -> Result<Status, Failure> {
    match ask(control, Ask::Status)? {
        Answer::Status(status) => Ok(*status),
        Answer::Error(refused) => Err(failure_of(refused)),
        _ => Err(of_another_question()),
    }
}

fn unexpected(answer: Answer) -> Exit {
    match answer {
        Answer::Error(refused) => Exit::Failure(failure_of(refused)),
        _ => Exit::Failure(of_another_question()),
    }
}

/// The mediator's own answer.
fn failure_of(refused: Refused) -> Failure {
    let Refused { what, advice, code } = refused;
    Failure::new(what, advice).with_code(code)
}

fn of_another_question() -> Failure {
    Failure::new(
        "the mediator answered another question",
        "use the vgpuctl that came with it",
    )
}

fn print_json(object: &impl serde::Serialize) -> io::Result<()> {
    print(&format!("{}\n", vgpu_cli::json_line(object)?))
}
