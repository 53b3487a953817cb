//! `old-linux PROGRAM [ARGUMENTS…]`: runs a program, and all that it starts, with Linux 4.19's system calls.

#![forbid(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        eprintln!("error: no program to run\n  old-linux PROGRAM [ARGUMENTS…]");
        return ExitCode::from(2);
    };
    if let Err(error) = old_linux::restrict() {
        eprintln!("error: {error}\n  it needs a kernel with CONFIG_SECCOMP_FILTER");
        return ExitCode::FAILURE;
    }
    let error = Command::new(&program).args(arguments).exec();
    eprintln!(
        "error: cannot run {}: {error}\n  give a program in PATH or a path",
        program.display()
    );
    ExitCode::from(127)
}
