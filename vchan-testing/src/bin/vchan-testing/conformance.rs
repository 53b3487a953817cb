//! The generic suite between two processes or two domains, one end each.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use signal_hook::consts::SIGABRT;
use vchan::layout::Role;
use vchan_testing::conformance::{Case, cases};
use vgpu_cli::{Failure, print_line};

use crate::place::Place;

/// Tells a process that it is the one that dies.
const CHILD: &str = "VCHAN_CONFORMANCE_CHILD";

pub(crate) fn serve(place: &Place, only: Option<&str>) -> Result<(), Failure> {
    run(place, only, Role::Server, |place, case| {
        let channel = place.serve(Some(case.rings))?;
        Ok((case.server)(channel))
    })
}

pub(crate) fn connect(place: &Place, only: Option<&str>) -> Result<(), Failure> {
    run(place, only, Role::Client, |place, case| {
        let channel = place.connect()?;
        Ok((case.client)(channel))
    })
}

/// Runs this end of every case, each at a path of its own, and prints a line for each.
fn run(
    place: &Place,
    only: Option<&str>,
    role: Role,
    side: impl Fn(&Place, &Case) -> Result<Result<(), String>, Failure>,
) -> Result<(), Failure> {
    let is_child = std::env::var_os(CHILD).is_some();
    let (mut passed, mut failed) = (0, 0);
    for case in cases()
        .into_iter()
        .filter(|case| only.is_none_or(|name| name == case.name))
    {
        let outcome = if case.dies == Some(role) && !is_child {
            die(&case, only.is_some())
        } else {
            match side(&place.part(case.name)?, &case) {
                Ok(outcome) => outcome,
                Err(failure) => Err(failure.what),
            }
        };
        match outcome {
            Ok(()) => {
                passed += 1;
                print_line(format_args!("ok {}", case.name))?;
            }
            Err(what) => {
                failed += 1;
                print_line(format_args!("FAILED {}: {what}", case.name))?;
            }
        }
    }
    print_line(format_args!(
        "conformance: {passed} passed, {failed} failed"
    ))?;
    if failed > 0 || passed == 0 {
        return Err(Failure::new(
            format!("{failed} of {} cases failed", passed + failed),
            "see the lines marked FAILED, also on the other side",
        ));
    }
    Ok(())
}

/// Runs a case whose end kills itself in a process of its own.
fn die(case: &Case, already_only: bool) -> Result<(), String> {
    let only: &[&str] = if already_only {
        &[]
    } else {
        &["--only", case.name]
    };
    let run = || {
        Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .args(only)
            .env(CHILD, "1")
            .status()
    };
    match run() {
        Ok(status) if status.signal() == Some(SIGABRT) => Ok(()),
        Ok(status) => Err(format!("the process that should die ended with {status}")),
        Err(error) => Err(format!("cannot start the process that should die: {error}")),
    }
}
