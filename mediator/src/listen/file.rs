//! `file:DIR`: clients that have nothing but two text files.
//!
//! `docs/file-protocol.md` describes the protocol. There are no sessions in it, so one worker
//! process serves the directory for as long as the mediator runs: [`serve`] is what it does.

use std::path::Path;
use std::time::{Duration, Instant};

use vgpu_file_transport::guide::{
    Command, VECTOR_ADD_ELEMENTS, vector_add_failed, vector_add_passed,
};
use vgpu_file_transport::{ServeError, Stop};

use crate::executor::{Executor, ExecutorError, ExecutorInfo};

/// How long the device may take for the few numbers of one command.
const DEADLINE: Duration = Duration::from_secs(30);

/// Serves `directory` with `executor` until `stop`.
///
/// # Errors
/// A directory that cannot be served. A command that fails is answered with the reason.
pub fn serve(
    directory: &Path,
    executor: &mut dyn Executor,
    stop: Stop<'_>,
) -> Result<(), ServeError> {
    vgpu_file_transport::serve(directory, &mut |command| run(executor, command), stop)
}

/// Runs one command: the text of the answer, or of the error.
fn run(executor: &mut dyn Executor, command: Command) -> Result<String, String> {
    match command {
        Command::Nothing => Ok("Nothing to do".into()),
        Command::GpuInfo => Ok(describe(executor.info())),
        Command::VectorAdd => {
            let errors = add(executor).map_err(|error| advise(&error))?;
            let executor = format!(
                "{} executor, {}",
                executor.info().kind,
                executor.info().device
            );
            match errors {
                0 => Ok(vector_add_passed(VECTOR_ADD_ELEMENTS, &executor)),
                errors => Err(vector_add_failed(VECTOR_ADD_ELEMENTS, errors, &executor)),
            }
        }
    }
}

/// What command 2 answers.
fn describe(info: &ExecutorInfo) -> String {
    let ExecutorInfo {
        kind,
        device,
        total_memory,
        driver,
        reason,
    } = info;
    let driver = if driver.is_empty() {
        String::new()
    } else {
        format!(", driver {driver}")
    };
    let memory = total_memory >> 20;
    format!("{device}, {memory} MiB{driver} ({kind} executor: {reason})")
}

/// Adds the fixed numbers and gives how many sums are wrong.
fn add(executor: &mut dyn Executor) -> Result<usize, ExecutorError> {
    let numbers = |i: usize| (i as f32, 2.0 * i as f32);
    let mut pipeline = executor.vector_add(VECTOR_ADD_ELEMENTS)?;
    let (a, b) = pipeline.input(0, VECTOR_ADD_ELEMENTS);
    for (i, (a, b)) in a.iter_mut().zip(b).enumerate() {
        (*a, *b) = numbers(i);
    }
    pipeline.submit(0, VECTOR_ADD_ELEMENTS)?;
    let sums = pipeline.result(0, Instant::now() + DEADLINE)?;
    let wrong = sums.iter().enumerate().filter(|(i, sum)| {
        let (a, b) = numbers(*i);
        **sum != a + b
    });
    Ok(wrong.count())
}

/// The error and, where the device does not come back by itself, what to do.
fn advise(error: &ExecutorError) -> String {
    if error.ends_session() {
        format!("{error}; restart vgpu-mediatord")
    } else {
        error.to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;
    use crate::executor::cpu::CpuExecutor;

    #[test]
    fn commands_reach_the_executor() {
        let mut executor = CpuExecutor::new("a test");
        let passed = run(&mut executor, Command::VectorAdd).unwrap();
        assert!(
            passed.starts_with("Vector add PASSED: 1024 elements, 0 errors (cpu executor, "),
            "{passed}"
        );
        let info = run(&mut executor, Command::GpuInfo).unwrap();
        assert!(info.ends_with("(cpu executor: a test)"), "{info}");
    }

    #[test]
    fn a_directory_is_served_by_an_executor() {
        let directory = tempfile::tempdir().unwrap();
        let stop = AtomicBool::new(false);
        let deadline = Instant::now() + Duration::from_secs(60);
        thread::scope(|scope| {
            let serving = scope.spawn(|| {
                let mut executor = CpuExecutor::new("a test");
                serve(
                    directory.path(),
                    &mut executor,
                    Stop::when(&stop).or_at(deadline),
                )
            });
            let read = || fs::read_to_string(directory.path().join("response.txt"));
            let wait_for = |start: &str| {
                while !read().is_ok_and(|line| line.starts_with(start)) {
                    assert!(Instant::now() < deadline, "{:?}", read());
                    thread::sleep(Duration::from_millis(10));
                }
            };
            wait_for("0:Ready");
            fs::write(directory.path().join("command.txt"), "1\n").unwrap();
            wait_for("1:Vector add PASSED: 1024 elements, 0 errors (cpu executor");
            stop.store(true, Ordering::Relaxed);
            serving.join().expect("no panic").expect("served");
        });
    }
}
