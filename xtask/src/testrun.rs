//! `cargo xtask test`: everything that must hold, from formatting to the real Xen.

use crate::apt;
use crate::sshfs::SKIPPED;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::process::Command;
use std::time::Instant;

mod flags {
    #![allow(unreachable_pub, reason = "written by the xflags macro")]

    xflags::xflags! {
        /// Runs everything that must hold: formatting, lints, bindings, tests, the demo and the lab.
        cmd test {
            /// Run only the steps with this text in their name.
            optional --only TEXT: String
            /// Say which steps there are, and run none.
            optional --list
        }
    }
}

/// One thing that must hold, and the commands that show it.
struct Step {
    name: &'static str,
    /// Program and arguments, one command after the other.
    commands: &'static [&'static [&'static str]],
    /// Extra environment for these commands.
    env: &'static [(&'static str, &'static str)],
}

const fn step(name: &'static str, commands: &'static [&'static [&'static str]]) -> Step {
    Step {
        name,
        commands,
        env: &[],
    }
}

const STEPS: &[Step] = &[
    step("formatting", &[&["cargo", "fmt", "--all", "--check"]]),
    step(
        "lints",
        &[&[
            "cargo",
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ]],
    ),
    step(
        "committed bindings match the headers",
        &[&["cargo", "xtask", "bindgen", "--check"]],
    ),
    step(
        "unit and integration tests",
        &[&["cargo", "test", "--workspace", "--locked"]],
    ),
    Step {
        name: "documentation",
        commands: &[&["cargo", "doc", "--workspace", "--no-deps", "--locked"]],
        env: &[("RUSTDOCFLAGS", "-D warnings")],
    },
    step(
        "the lab's suite over ssh, as far as a host without Xen goes",
        &[&[
            "cargo",
            "test",
            "--package",
            "xtask",
            "--locked",
            "--",
            "--ignored",
        ]],
    ),
    step("the demo without Xen", &[&["cargo", "xtask", "demo"]]),
    step(
        "the file protocol over sshfs",
        &[&["cargo", "xtask", "sshfs"]],
    ),
    // The longest cases are left to `cargo xtask lab test`, which runs everything with both
    // xenstoreds; what they show of the formats, others here show with fewer bytes or rounds.
    step(
        "the lab: a real Xen, without the longest cases",
        &[&[
            "cargo",
            "xtask",
            "lab",
            "--xenstored",
            "c",
            "test",
            "--filter",
            "!interop/pv-in-page,!interop/pv-65536,!interop/pv-1024,!interop/pv-1048576-2048,\
             !interop/dom0-serves,!interop/pvh-in-page,!interop/pvh-1048576,\
             !vchan/no-leaks,\
             !session/conformance-tcp,!nfs/mediator,!nfs/export,!nfs/file-system,\
             !relay/gpu-domain-pv,!relay/garbage",
        ]],
    ),
    // The rest does not depend on which xenstored it is.
    step(
        "the lab: sessions with oxenstored",
        &[&[
            "cargo",
            "xtask",
            "lab",
            "--xenstored",
            "oxen",
            "test",
            "--filter",
            "vector-add/pv-1048576,vector-add/pvh-1048576,vector-add/pvh-16777216,\
             vector-add/two-guests,mediators/killed,domains/",
        ]],
    ),
];

/// Runs `cargo xtask test ARGS`; fails if a step fails or none ran.
pub(crate) fn main(args: Vec<OsString>) -> Result<()> {
    let flags = flags::Test::from_vec(args).unwrap_or_else(|error| crate::help_or_misuse(error));
    if flags.list {
        STEPS.iter().for_each(|step| println!("{}", step.name));
        return Ok(());
    }
    run(flags.only.as_deref())
}

fn run(filter: Option<&str>) -> Result<()> {
    apt::ensure(&[
        "gcc",
        "libc6-dev",
        "libclang-14-dev",
        "libxen-dev",
        "openssh-server",
    ])?;
    let mut outcomes: Vec<(&str, Outcome, u64)> = Vec::new();
    for step in STEPS
        .iter()
        .filter(|s| filter.is_none_or(|f| s.name.contains(f)))
    {
        eprintln!("\n=== {} ===", step.name);
        let start = Instant::now();
        let outcome = run_step(step).unwrap_or_else(|error| {
            eprintln!("{error:#}");
            Outcome::Failed
        });
        outcomes.push((step.name, outcome, start.elapsed().as_secs()));
    }
    if outcomes.is_empty() {
        bail!(
            "no step has `{}` in its name\nsteps: {}",
            filter.unwrap_or(""),
            names()
        );
    }
    eprintln!("\n=== summary ===");
    for (name, outcome, seconds) in &outcomes {
        let word = match outcome {
            Outcome::Passed => "PASS",
            Outcome::Failed => "FAIL",
            Outcome::Skipped => "SKIP",
        };
        eprintln!("{word} {name} ({seconds} s)");
    }
    let count = |wanted| outcomes.iter().filter(|(_, o, _)| *o == wanted).count();
    let (passed, failed) = (count(Outcome::Passed), count(Outcome::Failed));
    match count(Outcome::Skipped) {
        0 => println!("{passed} passed, {failed} failed"),
        skipped => println!("{passed} passed, {failed} failed, {skipped} skipped"),
    }
    if failed > 0 {
        bail!(
            "{failed} of {} steps failed\nrun one again: cargo xtask test --only NAME",
            outcomes.len()
        );
    }
    Ok(())
}

fn names() -> String {
    STEPS.iter().map(|s| s.name).collect::<Vec<_>>().join("; ")
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    /// This machine cannot show it; why has been said.
    Skipped,
}

fn run_step(step: &Step) -> Result<Outcome> {
    for argv in step.commands {
        eprintln!("$ {}", argv.join(" "));
        let status = Command::new(argv[0])
            .args(&argv[1..])
            .envs(step.env.iter().copied())
            .current_dir(crate::workspace_root())
            .status()
            .with_context(|| format!("cannot start {}", argv[0]))?;
        if status.code() == Some(SKIPPED) {
            return Ok(Outcome::Skipped);
        }
        if !status.success() {
            bail!("`{}` ended with {status}", argv.join(" "));
        }
    }
    Ok(Outcome::Passed)
}
