//! `cargo xtask fuzz`: coverage-guided fuzzing of the targets in `fuzz-targets/`.
//!
//! The flags are those that `cargo fuzz` sets, so the folder works with that program too; it is not
//! needed. New inputs are collected outside the repository; `--save` merges those that reach new
//! code into `fuzz/corpus/`, smallest first, which `cargo test` replays from then on.

use crate::cargo;
use crate::nightly::{Nightly, TARGET};
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

mod flags {
    #![allow(unreachable_pub, reason = "written by the xflags macro")]

    xflags::xflags! {
        /// Fuzzes one target or, one after the other, all.
        cmd fuzz {
            /// The target, as in fuzz/fuzz_targets; all if not given.
            optional target: String
            /// Seconds for each target; 60 if not given.
            optional --seconds N: u32
            /// Merge what was found into fuzz/corpus.
            optional --save
            /// Say which targets there are, and run none.
            optional --list
        }
    }
}

/// Edge coverage with counters in the code, traced comparisons, and AddressSanitizer.
const RUSTFLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    --cfg fuzzing -Zsanitizer=address -Ccodegen-units=1";

/// Longest input in bytes.
const MAX_LEN: &str = "-max_len=4096";

/// Runs `cargo xtask fuzz ARGS`; fails at the first target for which a failing input was found, and
/// prints the path of that input.
pub(crate) fn main(args: Vec<OsString>) -> Result<()> {
    let flags = flags::Fuzz::from_vec(args).unwrap_or_else(|error| crate::help_or_misuse(error));
    let all = targets()?;
    if flags.list {
        all.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    let chosen = match flags.target {
        None => all,
        Some(name) if all.contains(&name) => vec![name],
        Some(name) => bail!(
            "there is no fuzz target {name}\ntargets: {}",
            all.join(", ")
        ),
    };
    let nightly = Nightly::find()?;
    let target_dir = cargo::target_dir().join("fuzz");
    let work = target_dir.join("work");
    build(&nightly, &target_dir)?;
    write_seeds(&work)?;
    for name in &chosen {
        let program = target_dir.join(TARGET).join("release").join(name);
        fuzz(name, &program, &work, flags.seconds.unwrap_or(60))?;
        if flags.save {
            merge(name, &program, &work)?;
        }
    }
    println!("{} targets fuzzed, nothing found", chosen.len());
    Ok(())
}

fn targets() -> Result<Vec<String>> {
    let folder = crate::workspace_root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for file in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        if let Some(name) = file?.path().file_stem() {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn build(nightly: &Nightly, target_dir: &Path) -> Result<()> {
    cargo::run(
        nightly
            .cargo(RUSTFLAGS)
            // Not --locked: a dependency that the workspace gains is added to its lock file.
            .args(["build", "--release", "--target", TARGET])
            .args(["--manifest-path", "fuzz/Cargo.toml", "--target-dir"])
            .arg(target_dir),
    )
    .context("cannot build the fuzzers; a C++ compiler (g++) is needed for libFuzzer")
}

fn write_seeds(work: &Path) -> Result<()> {
    cargo::run(
        Command::new("cargo")
            .current_dir(crate::workspace_root())
            .args([
                "run",
                "--quiet",
                "--locked",
                "--package",
                "vgpu-fuzz-targets",
            ])
            .args(["--example", "write_seeds", "--"])
            .arg(work),
    )
}

/// The folder of a target's inputs in the repository.
fn corpus(name: &str) -> PathBuf {
    crate::workspace_root().join("fuzz/corpus").join(name)
}

fn fuzz(name: &str, program: &Path, work: &Path, seconds: u32) -> Result<()> {
    let found = work.join(format!("{name}-found-"));
    eprintln!("\n=== {name}: {seconds} s ===");
    cargo::run(
        Command::new(program)
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-artifact_prefix={}", found.display()))
            .args([
                MAX_LEN,
                "-timeout=20",
                "-print_final_stats=1",
                "-verbosity=0",
            ])
            .arg(work.join(name))
            .arg(corpus(name)),
    )
    .with_context(|| {
        format!(
            "fuzz target {name} was broken; the input lies at {}…\nsee what it does: {} INPUT",
            found.display(),
            program.display()
        )
    })
}

fn merge(name: &str, program: &Path, work: &Path) -> Result<()> {
    let kept = corpus(name);
    let fresh = work.join(format!("{name}-merged"));
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir_all(&fresh)?;
    cargo::run(
        Command::new(program)
            .args([
                "-set_cover_merge=1",
                "-use_counters=0",
                MAX_LEN,
                "-verbosity=0",
            ])
            .args([&fresh, &kept])
            .arg(work.join(name)),
    )?;
    fs::remove_dir_all(&kept)?;
    fs::create_dir_all(&kept)?;
    for file in fs::read_dir(&fresh)? {
        let file = file?;
        fs::copy(file.path(), kept.join(file.file_name()))?;
    }
    Ok(())
}
