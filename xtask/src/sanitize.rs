//! `cargo xtask sanitize`: vchan's suite without Xen, under a sanitizer or Miri.
//!
//! Not a part of `cargo xtask test`: it needs nightly and a build of its own.

use crate::cargo;
use crate::nightly::{Nightly, TARGET};
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::str::FromStr;

mod flags {
    #![allow(unreachable_pub, reason = "written by the xflags macro")]

    use super::Which;

    xflags::xflags! {
        /// Runs vchan's tests that need no Xen under address, thread or miri; under each that is
        /// possible if none is named.
        cmd sanitize {
            /// address, thread or miri.
            optional which: Which
            /// Run only tests with this text in their name.
            optional --only TEXT: String
        }
    }
}

/// The tool that checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    /// Accesses outside of allocations, use after free, double free, leaks. Mapped memory has no
    /// red zones: there only the checks in `vchan/src/wire/shm.rs` apply.
    Address,
    /// Data races. Needs the standard library's source: its locks must be instrumented too, or
    /// each of their uses looks like a race.
    Thread,
    /// Undefined behaviour, in the code that makes no system calls.
    Miri,
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "address" => Ok(Self::Address),
            "thread" => Ok(Self::Thread),
            "miri" => Ok(Self::Miri),
            _ => Err(format!("{text} is none of address, thread, miri")),
        }
    }
}

/// Unit tests that Miri can run.
const PURE: &[&str] = &[
    "ring::",
    "layout::",
    "extension::",
    "spin::",
    "local::hello::",
    "xen::keys::",
    "xen::path::",
];

/// Runs `cargo xtask sanitize ARGS`; fails if a test does, or if the named tool cannot be run.
pub(crate) fn main(args: Vec<OsString>) -> Result<()> {
    let flags =
        flags::Sanitize::from_vec(args).unwrap_or_else(|error| crate::help_or_misuse(error));
    let nightly = Nightly::find()?;
    let only = flags.only.as_deref();
    if let Some(which) = flags.which {
        if let Some(missing) = missing(&nightly, which) {
            bail!("{missing}");
        }
        return run(&nightly, which, only);
    }
    let mut ran = 0;
    for which in [Which::Address, Which::Thread, Which::Miri] {
        match missing(&nightly, which) {
            Some(missing) => eprintln!("SKIPPED {which:?}: {missing}"),
            None => {
                run(&nightly, which, only)?;
                ran += 1;
            }
        }
    }
    if ran == 0 {
        bail!("nothing could be run\ninstall what is missing, named above");
    }
    Ok(())
}

/// The missing part and how to get it.
fn missing(nightly: &Nightly, which: Which) -> Option<String> {
    let add = |what: &str| format!("add it: rustup component add --toolchain nightly {what}");
    match which {
        Which::Address if !nightly.has_runtime("asan") => Some(format!(
            "this nightly has no AddressSanitizer\n{}",
            add("rust-std")
        )),
        Which::Thread if !nightly.has_std_source() => Some(format!(
            "this nightly lacks the standard library's source, without which every use of its \
             locks is reported as a race\n{}",
            add("rust-src")
        )),
        Which::Miri if !(nightly.has_miri() && nightly.has_std_source()) => Some(format!(
            "this nightly lacks miri or the standard library's source\n{}",
            add("miri rust-src")
        )),
        _ => None,
    }
}

fn run(nightly: &Nightly, which: Which, only: Option<&str>) -> Result<()> {
    eprintln!("\n=== {which:?} ===");
    let target_dir = cargo::target_dir().join("sanitize");
    let test = |rustflags: &str, extra: &[&str]| -> Result<()> {
        let mut cargo = nightly.cargo(rustflags);
        cargo
            .args(["test", "--locked", "--package", "vchan"])
            .args(["--package", "vchan-testing", "--target", TARGET])
            .args(extra)
            .arg("--target-dir")
            .arg(&target_dir)
            .args(["--no-fail-fast", "--lib", "--bins"]);
        for name in tests()? {
            cargo.args(["--test", &name]);
        }
        cargo.arg("--").args(only);
        cargo.env("ASAN_OPTIONS", "detect_stack_use_after_return=1");
        if std::env::var_os("VCHAN_HOSTILE_STATES").is_none() {
            // A tenth of the ordinary run, since it takes ten times as long.
            cargo.env("VCHAN_HOSTILE_STATES", "10000");
        }
        // Built rarely: a small and quick build is better than an incremental one.
        cargo.env("CARGO_INCREMENTAL", "0");
        cargo.env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only");
        cargo::run(&mut cargo)
    };
    match which {
        Which::Address => test("-Zsanitizer=address", &[]),
        Which::Thread => test("-Zsanitizer=thread", &["-Zbuild-std"]),
        Which::Miri => {
            let mut cargo = nightly.cargo("");
            cargo
                .args(["miri", "test", "--locked", "--package", "vchan", "--lib"])
                .arg("--target-dir")
                .arg(&target_dir)
                .arg("--");
            match only {
                Some(only) => cargo.arg(only),
                None => cargo.args(PURE),
            };
            cargo::run(&mut cargo)
        }
    }
}

/// vchan's test programs except loom's, which switch stacks themselves.
fn tests() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for folder in ["vchan/tests", "vchan-testing/tests"] {
        names.extend(tests_in(&crate::workspace_root().join(folder))?);
    }
    names.sort();
    Ok(names)
}

fn tests_in(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let is_test = path.extension().is_some_and(|e| e == "rs") || path.join("main.rs").exists();
        let Some(name) = path.file_stem().map(|name| name.to_string_lossy()) else {
            continue;
        };
        if is_test && !name.starts_with("loom") {
            names.push(name.into_owned());
        }
    }
    Ok(names)
}
