//! `cargo xtask test-programs`: the unit and integration tests, several programs at a time.
//!
//! `cargo test` runs one program after the other, and most of ours wait: for processes they have
//! started, and for deadlines. Run beside each other, they take half the time.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use super::nvrtc;
use crate::cargo::{Executable, executables};

mod flags {
    #![allow(unreachable_pub, reason = "written by the xflags macro")]

    xflags::xflags! {
        /// Builds and runs the unit and integration tests of all packages, several programs at a time.
        cmd test-programs {
            /// Run N programs at a time (default: one more than there are processors).
            optional --jobs N: usize
            /// Run only the programs with this text in their name or their package's.
            optional --only TEXT: String
        }
    }
}

/// Builds the tests, examples apart: those are tested as modules of test programs.
const BUILD: &[&str] = &["test", "--workspace", "--tests", "--locked", "--no-run"];

/// Runs `cargo xtask test-programs ARGS`; fails if a program fails or none ran.
pub(crate) fn main(args: Vec<OsString>) -> Result<()> {
    let flags =
        flags::TestPrograms::from_vec(args).unwrap_or_else(|error| crate::help_or_misuse(error));
    let jobs = match flags.jobs {
        Some(jobs) => jobs.max(1),
        None => thread::available_parallelism().map_or(2, usize::from) + 1,
    };
    let only = flags.only.unwrap_or_default();
    let mut programs = executables(BUILD)?;
    programs.retain(|program| program.is_test && title(program).contains(&only));
    ensure!(
        !programs.is_empty(),
        "no test program has `{only}` in its name"
    );
    // The tests that compile CUDA C++.
    let compiles = programs.iter().any(|program| program.name == "compile");
    let nvrtc = compiles.then(nvrtc::provide).flatten();
    let failed = run(&programs, jobs, nvrtc.as_deref())?;
    if !failed.is_empty() {
        eprintln!("\n{} of {} programs failed:", failed.len(), programs.len());
        for program in &failed {
            eprintln!("    {}", again(program));
        }
        bail!("tests failed");
    }
    Ok(())
}

/// The package and the program, for people.
fn title(program: &Executable) -> String {
    let package = program.package.file_name().unwrap_or_default().display();
    format!("{package}: {} ({})", program.name, program.kind)
}

/// The command that runs one program alone.
fn again(program: &Executable) -> String {
    let target = match program.kind.as_str() {
        "test" => format!("--test {}", program.name),
        "bin" => format!("--bin {}", program.name),
        _ => "--lib".to_owned(),
    };
    let manifest = program.package.join("Cargo.toml");
    let manifest = manifest
        .strip_prefix(crate::workspace_root())
        .unwrap_or(&manifest);
    format!("cargo test --manifest-path {} {target}", manifest.display())
}

/// Runs `programs`, `jobs` at a time, with the NVRTC in this folder if it is given, and returns those that failed. The
/// output of each is printed when it ends.
///
/// # Errors
/// One cannot be started, or its output not be kept.
fn run<'p>(
    programs: &'p [Executable],
    jobs: usize,
    nvrtc: Option<&Path>,
) -> Result<Vec<&'p Executable>> {
    let logs = crate::lab::target().join("test-run");
    fs::create_dir_all(&logs).with_context(|| format!("creating {}", logs.display()))?;
    let queue = Mutex::new(programs.iter().enumerate().collect::<VecDeque<_>>());
    let failed = Mutex::new(Vec::new());
    let next = || {
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.pop_front()
    };
    thread::scope(|scope| {
        let runner = || -> Result<()> {
            while let Some((number, program)) = next() {
                let log = logs.join(format!("{}-{number}.log", std::process::id()));
                if !run_one(program, &log, nvrtc)?.success() {
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    failed.push(program);
                }
            }
            Ok(())
        };
        let runners: Vec<_> = (0..jobs).map(|_| scope.spawn(runner)).collect();
        let join = |runner: thread::ScopedJoinHandle<'_, Result<()>>| match runner.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        // All of them, also after an error of one.
        let outcomes: Vec<_> = runners.into_iter().map(join).collect();
        outcomes.into_iter().collect::<Result<()>>()
    })?;
    Ok(failed.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Runs one program as `cargo test` does, and prints its output. That goes through a file: what a test has
/// started and left behind may hold its standard output open, which must not keep anybody waiting.
fn run_one(program: &Executable, path: &Path, nvrtc: Option<&Path>) -> Result<ExitStatus> {
    let log = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let started = Instant::now();
    let status = Command::new(&program.file)
        .current_dir(&program.package)
        .env("CARGO_MANIFEST_DIR", &program.package)
        .envs(nvrtc.map(|folder| (nvrtc::VARIABLE, folder)))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .with_context(|| format!("cannot start {}", program.file.display()))?;
    let output = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let _ = fs::remove_file(path);
    let seconds = started.elapsed().as_secs_f32();
    // In one piece: others print beside this one.
    eprintln!(
        "\n=== {} ({seconds:.1} s) ===\n{}{}",
        title(program),
        String::from_utf8_lossy(&output),
        match status.success() {
            true => String::new(),
            false => format!("{} ended with {status}", title(program)),
        }
    );
    Ok(status)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{Executable, again, run, title};

    fn program(package: &Path, name: &str, file: &str) -> Executable {
        Executable {
            name: name.to_owned(),
            file: PathBuf::from(file),
            package: package.to_owned(),
            kind: "test".to_owned(),
            is_test: true,
        }
    }

    #[test]
    fn all_programs_run_and_the_failed_are_returned() {
        let package = crate::workspace_root();
        let programs = [
            program(package, "first", "/bin/false"),
            program(package, "second", "/bin/true"),
            program(package, "third", "/bin/false"),
        ];
        let failed = run(&programs, 2, None).unwrap();
        let mut names: Vec<_> = failed.iter().map(|program| &program.name).collect();
        names.sort_unstable();
        assert_eq!(names, ["first", "third"]);
        let gone = [program(package, "gone", "/nonexistent")];
        let error = run(&gone, 2, None).unwrap_err().to_string();
        assert!(error.contains("/nonexistent"), "{error}");
    }

    #[test]
    fn a_program_that_failed_can_be_run_alone() {
        let package = crate::workspace_root().join("vchan");
        let program = program(&package, "cases", "/cases-1");
        assert_eq!(title(&program), "vchan: cases (test)");
        let command = "cargo test --manifest-path vchan/Cargo.toml --test cases";
        assert_eq!(again(&program), command);
    }
}
