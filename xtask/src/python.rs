//! `cargo xtask python`: the Python package, built and installed by pip, against a mediator on this machine.
//!
//! A machine without a Python that suits, or that reaches no package index, cannot run it: then everything is skipped,
//! loudly, and the exit status is [`SKIPPED`].

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo::{run, target_dir};
use crate::mediator::{self, Mediator};
use crate::sshfs::SKIPPED;
use crate::workspace_root;

/// Fails where the interpreter is too old for the package, or lacks what an environment of its own needs.
const SUITS: &str = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))";

mod flags {
    #![allow(unreachable_pub, reason = "written by the xflags macro")]

    xflags::xflags! {
        /// Installs the Python package into an environment of its own and tests it against a mediator here.
        cmd python {}
    }
}

/// Runs `cargo xtask python`.
pub(crate) fn main(args: Vec<OsString>) -> Result<()> {
    flags::Python::from_vec(args).unwrap_or_else(|error| crate::help_or_misuse(error));
    run(Command::new("cargo")
        .args(["fmt", "--check"])
        .current_dir(workspace_root().join("python")))?;
    let suits = Command::new("python3").args(["-c", SUITS]).output();
    if !suits.is_ok_and(|output| output.status.success()) {
        skip("no python3 from 3.11 on with venv; install python3 and python3-venv");
    }
    let environment = target_dir().join("python-venv");
    let python = environment.join("bin/python");
    run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(&environment))?;
    // Before the build, whose failure is one: pip has these from the package index alone.
    let reached = pip(&python, &["download", "--quiet", "--no-deps", "numpy"])
        .arg("--dest")
        .arg(environment.join("download"))
        .status()
        .context("cannot start pip")?;
    if !reached.success() {
        skip("pip cannot download numpy; see that a package index can be reached");
    }
    run(pip(&python, &["install", "--quiet", "./python"])
        // Apart from the workspace, whose programs other steps build at the same time.
        .env("CARGO_TARGET_DIR", target_dir().join("python")))?;
    let programs = mediator::build()?;
    let dir = std::env::temp_dir().join(format!("vgpu-python-{}", std::process::id()));
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let outcome = show(&python, &programs, &dir);
    fs::remove_dir_all(&dir).ok();
    outcome
}

fn skip(why: &str) -> ! {
    println!("SKIPPED: python: {why}");
    std::process::exit(SKIPPED)
}

fn pip(python: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(python);
    command
        .args(["-m", "pip", "--disable-pip-version-check"])
        .args(arguments)
        .current_dir(workspace_root());
    command
}

fn show(python: &Path, programs: &Path, dir: &Path) -> Result<()> {
    let endpoint = format!("local:{}", dir.join("vgpu.sock").display());
    let more = ["--executor", "cpu"];
    let mut mediator = Mediator::start(programs, dir, &endpoint, &more)?;
    mediator.wait_until_ready(programs, &endpoint)?;
    // What was installed is tested, and not the sources beside the tests (-P).
    let tests = Command::new(python)
        .arg("-P")
        .arg(workspace_root().join("python/tests/test_vgpu.py"))
        .env("VGPU_ENDPOINT", &endpoint)
        .current_dir(dir)
        .status()
        .context("cannot start python")?;
    if !tests.success() {
        bail!(
            "the tests ended with {tests}; the mediator:\n{}",
            mediator.log()
        );
    }
    mediator.stop()
}
