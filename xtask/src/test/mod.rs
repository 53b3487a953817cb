//! `cargo xtask test`: all checks, from formatting to the real Xen.
//!
//! The steps run in two lanes beside each other: those on this machine, one at a time, and those in the
//! lab, two at a time, whose emulated machines leave processor time to the former. The lane that finishes
//! first helps the other. No test asserts a time, so none disturbs another.

use std::ffi::OsString;

use anyhow::{Result, bail};

use crate::busy::Busy;
use crate::{apt, lab};

mod lanes;
mod nvrtc;
pub(crate) mod programs;
mod report;

pub(crate) use lanes::Stopped;
use report::{Outcome, Report};

mod flags {
    #![allow(unreachable_pub, reason = "written by the xflags macro")]

    xflags::xflags! {
        /// Runs everything that must hold: formatting, lints, bindings, tests, the demo and the lab.
        cmd test {
            /// Run only the steps with this text in their name.
            optional --only TEXT: String
            /// Say which steps there are, and run none.
            optional --list
            /// Run what shows the packages to be good instead: make, install and use them, here and in the lab.
            optional --packages
            /// One step after the other, with its output as it comes.
            optional --serial
            /// Run all of it N times; each run must pass.
            optional --repeat N: usize
            /// Run beside N busy loops, as on a machine that is short of processors.
            optional --busy N: usize
        }
    }
}

/// The lane of a step; `lanes.rs` says how many steps of each run at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Here,
    Lab,
}

/// One check, and its command.
struct Step {
    name: &'static str,
    lane: Lane,
    /// Program and arguments; `xtask` is this program.
    command: &'static [&'static str],
    /// Extra environment for it.
    env: &'static [(&'static str, &'static str)],
}

const fn step(name: &'static str, lane: Lane, command: &'static [&'static str]) -> Step {
    Step {
        name,
        lane,
        command,
        env: &[],
    }
}

const STEPS: &[Step] = &[
    step(
        "formatting",
        Lane::Here,
        &["cargo", "fmt", "--all", "--check"],
    ),
    step(
        "unit and integration tests",
        Lane::Here,
        &["xtask", "test-programs"],
    ),
    step(
        "lints",
        Lane::Here,
        &[
            "cargo",
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ],
    ),
    Step {
        env: &[("RUSTDOCFLAGS", "-D warnings")],
        ..step(
            "documentation",
            Lane::Here,
            &["cargo", "doc", "--workspace", "--no-deps", "--locked"],
        )
    },
    step(
        "examples in the documentation",
        Lane::Here,
        &["cargo", "test", "--workspace", "--doc", "--locked"],
    ),
    step(
        "committed bindings match the headers",
        Lane::Here,
        &["xtask", "bindgen", "--check"],
    ),
    step(
        "the lab's suite over ssh, as far as a host without Xen goes",
        Lane::Here,
        &[
            "cargo",
            // With all packages it is the program that the tests have built.
            "test",
            "--workspace",
            "--bin",
            "xtask",
            "--locked",
            "--",
            "--ignored",
        ],
    ),
    step("the demo without Xen", Lane::Here, &["xtask", "demo"]),
    step(
        "the file protocol over sshfs",
        Lane::Here,
        &["xtask", "sshfs"],
    ),
    step(
        "programs in C and C++ with libvgpu",
        Lane::Here,
        &["xtask", "c-library"],
    ),
    // What else packages have to show takes longer: `cargo xtask dist --check`.
    step(
        "pages, paths in documents and the unit, as packages have them",
        Lane::Here,
        &["xtask", "dist", "--plain"],
    ),
    // The suite in parts that run beside each other, the two long ones first: the first takes as long as the second and the
    // third. The longest cases are left to `--packages` and to `cargo xtask lab test`, which runs everything with both
    // xenstoreds; their properties of the formats are covered here by others with fewer bytes or rounds.
    step(
        "the lab: a real Xen, channels, mediators, relay and guests",
        Lane::Lab,
        &[
            "xtask",
            "lab",
            "--xenstored",
            "c",
            "test",
            "--filter",
            "!session/,!nfs/,!relay/gpu-domain-pv,!relay/garbage,!faults/,\
             !interop/pv-in-page,!interop/pv-65536,!interop/pv-1024,!interop/pv-1048576,\
             !interop/dom0-serves,!interop/pvh-in-page,!interop/pvh-1048576,\
             !vchan/no-leaks,!vector-add/pv-16777216,!vector-add/pvh-16777216,!gpu/one-guest,!silo/",
        ],
    ),
    step(
        "the lab: a real Xen, sessions, faults and files over NFS",
        Lane::Lab,
        &[
            "xtask",
            "lab",
            "--xenstored",
            "c",
            "test",
            "--filter",
            "session/,nfs/both,faults/,!session/conformance-tcp,!faults/case-41,!faults/hostile-guest",
        ],
    ),
    // The rest does not depend on the xenstored, nor does the kind of a guest.
    step(
        "the lab: xenstore and sessions with oxenstored",
        Lane::Lab,
        &[
            "xtask",
            "lab",
            "--xenstored",
            "oxen",
            "test",
            "--filter",
            "xenstore/,vector-add/pv-1048576,mediators/killed,domains/",
        ],
    ),
];

/// The steps of `--packages`, in this order: the second has the packages of the first.
const PACKAGED: &[Step] = &[
    step(
        "packages made, installed and used",
        Lane::Here,
        &["xtask", "dist", "--out", "target/packages", "--check"],
    ),
    step(
        "the lab with the packaged programs",
        Lane::Here,
        &[
            "xtask",
            "lab",
            "--packages",
            "target/packages",
            "--xenstored",
            "c",
            "test",
            "--filter",
            "vector-add/pv-1,vector-add/pvh-1,vector-add/info-and-ping,vector-add/two,!vector-add/pvh-16777216,\
             session/conformance,mediators/,domains/,gpu/through-the-relay,relay/tcp-outside,\
             interop/pv-1048576-64-mib,interop/echo,faults/case-41,vchan/every-pair,\
             vchan/client-killed,vchan/server-killed,nfs/both-protocols,!session/conformance-tcp",
        ],
    ),
    step(
        "the Python package, built by pip and used",
        Lane::Here,
        &["xtask", "python"],
    ),
];

/// Debian packages that the steps need on this machine.
const INSTALLED: &[&str] = &[
    "gcc",
    "g++",
    "groff-base",
    "libc6-dev",
    "libclang-14-dev",
    "libxen-dev",
    "openssh-server",
    "pkgconf",
    // For what it scrapes, and its promtool for what that looks like.
    "prometheus",
    "python3-pytest",
    "systemd",
];

/// Runs `cargo xtask test ARGS`; fails if a step fails or none ran.
pub(crate) fn main(args: Vec<OsString>) -> Result<()> {
    let flags = flags::Test::from_vec(args).unwrap_or_else(|error| crate::help_or_misuse(error));
    let only = flags.only.as_deref().unwrap_or_default();
    let all = if flags.packages { PACKAGED } else { STEPS };
    let steps: Vec<&Step> = all.iter().filter(|s| s.name.contains(only)).collect();
    if flags.list {
        steps.iter().for_each(|step| println!("{}", step.name));
        return Ok(());
    }
    if steps.is_empty() {
        let names: Vec<&str> = all.iter().map(|s| s.name).collect();
        bail!(
            "no step has `{only}` in its name\nsteps: {}",
            names.join("; ")
        );
    }
    apt::ensure(INSTALLED)?;
    if steps.iter().any(|step| step.lane == Lane::Lab) {
        // By one for all: two labs begin at once.
        apt::ensure(lab::INSTALLED)?;
    }
    let interrupted = lanes::Interrupted::watch()?;
    let loops = flags.busy.unwrap_or(0);
    let _busy = Busy::start(loops);
    let runs = flags.repeat.unwrap_or(1).max(1);
    let mut figures = Vec::new();
    let mut failed = 0;
    for run in 1..=runs {
        if runs > 1 {
            eprintln!("\n=== run {run} of {runs}, beside {loops} busy loops ===");
        }
        let serial = flags.serial || flags.packages;
        let reports = lanes::run(&steps, serial, &interrupted)?;
        failed += report::summary(&reports);
        figures.push(report::figures(&reports));
    }
    if runs > 1 {
        eprintln!("\n=== {runs} runs, beside {loops} busy loops ===");
        for (run, figures) in (1..).zip(&figures) {
            println!("run {run}: {figures}");
        }
    }
    if failed > 0 {
        bail!(
            "{failed} of {} steps failed\nrun one again: cargo xtask test --only NAME",
            steps.len() * runs
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{PACKAGED, STEPS};
    use crate::lab::cases;

    /// Cases that no step runs: `cargo xtask lab test` does.
    const LONGEST: &str = "interop/pv-in-page,interop/pv-65536,interop/pv-1024,\
        interop/pv-1048576,interop/dom0-serves,interop/pvh-in-page,interop/pvh-1048576,\
        vchan/no-leaks,session/conformance-tcp,nfs/guide,nfs/sessions,nfs/mediator,nfs/export,\
        nfs/file-system,\
        relay/gpu-domain-pv,relay/garbage,vector-add/pv-16777216,vector-add/pvh-16777216,gpu/one-guest,\
        faults/case-41,faults/hostile-guest,silo/";

    #[test]
    fn the_packaged_programs_run_cases_of_channels_sessions_and_mediators() {
        let filter = PACKAGED[1].command.last().unwrap();
        let topics: Vec<&str> = cases(filter)
            .iter()
            .filter_map(|case| Some(case.split_once('/')?.0))
            .collect();
        for topic in [
            "vector-add",
            "session",
            "mediators",
            "domains",
            "gpu",
            "relay",
            "vchan",
            "interop",
            "nfs",
        ] {
            assert!(topics.contains(&topic), "{topics:?}");
        }
    }

    #[test]
    fn every_case_but_the_longest_is_in_one_step_with_c_xenstored() {
        let mut run: Vec<&str> = cases(LONGEST);
        for step in STEPS.iter().filter(|step| step.command.contains(&"c")) {
            run.extend(cases(step.command.last().unwrap()));
        }
        run.sort_unstable();
        let mut all = cases("");
        all.sort_unstable();
        assert_eq!(run, all);
    }
}
