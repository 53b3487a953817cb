//! `file:DIR`: clients that have nothing but two text files.
//!
//! `docs/file-protocol.md` describes the protocol. There are no sessions in it, so one worker
//! process serves a directory for as long as the mediator runs: [`serve`] is what it does.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use vgpu_file_transport::directory::Directory;
use vgpu_file_transport::guests::Guests;
use vgpu_file_transport::guide::{
    Command, VECTOR_ADD_ELEMENTS, vector_add_failed, vector_add_passed,
};
use vgpu_file_transport::{ServeError, Stop};

use crate::executor::{Executor, ExecutorError, ExecutorInfo};
use crate::session::OpenExecutor;
use crate::worker::link::Found;

/// How long the device may take for the few numbers of one command.
const DEADLINE: Duration = Duration::from_secs(30);

/// An executor without a command for this long is closed: with CUDA it keeps hundreds of megabytes
/// of the device, and there may be a directory for every guest.
const IDLE: Duration = Duration::from_secs(60);

/// Serves `directory` until `stop`, with an executor that is opened for the first command.
///
/// `found` is told the guests' directories in it, if they are wanted, at every look.
///
/// # Errors
/// A directory that cannot be served. A command that fails is answered with the reason.
pub fn serve(
    directory: Directory,
    look_for_guests: bool,
    open: OpenExecutor<'_>,
    found: &mut dyn FnMut(Found),
    stop: Stop<'_>,
) -> Result<(), ServeError> {
    let service = RefCell::new(Service {
        open,
        executor: None,
        used: Instant::now(),
    });
    let mut guests = Guests::new();
    vgpu_file_transport::serve_directory(
        directory,
        &mut |command| service.borrow_mut().run(command),
        &mut |directory| {
            let now = Instant::now();
            service.borrow_mut().rest(now);
            if look_for_guests {
                let seen = guests.look(directory, now);
                seen.iter()
                    .for_each(|guest| found(Found::Guest(guest.to_string())));
            }
        },
        stop,
    )
}

/// The executor, while there is something to do.
struct Service<'a> {
    open: OpenExecutor<'a>,
    executor: Option<Box<dyn Executor>>,
    used: Instant,
}

impl Service<'_> {
    fn run(&mut self, command: Command) -> Result<String, String> {
        let mut executor = match self.executor.take() {
            Some(executor) => executor,
            None => (self.open)().map_err(|error| format!("the executor failed: {error}"))?,
        };
        let outcome = run(executor.as_mut(), command);
        self.used = Instant::now();
        // One that is lost is opened anew by the next command.
        if !matches!(outcome, Err(Failed::Device(ref error)) if error.ends_session()) {
            self.executor = Some(executor);
        }
        outcome.map_err(|failed| match failed {
            Failed::Device(error) => advise(&error),
            Failed::Sums(text) => text,
        })
    }

    /// Closes an executor that nobody has used for a while.
    fn rest(&mut self, now: Instant) {
        if now.saturating_duration_since(self.used) >= IDLE {
            self.executor = None;
        }
    }
}

/// Why a command failed.
#[derive(Debug)]
enum Failed {
    Device(ExecutorError),
    /// In words; some sums are wrong.
    Sums(String),
}

/// Runs one command: the text of the answer, or the error.
fn run(executor: &mut dyn Executor, command: Command) -> Result<String, Failed> {
    match command {
        Command::Nothing => Ok("Nothing to do".into()),
        Command::GpuInfo => Ok(describe(executor.info())),
        Command::VectorAdd => {
            let errors = add(executor).map_err(Failed::Device)?;
            let executor = format!(
                "{} executor, {}",
                executor.info().kind,
                executor.info().device
            );
            match errors {
                0 => Ok(vector_add_passed(VECTOR_ADD_ELEMENTS, &executor)),
                errors => Err(Failed::Sums(vector_add_failed(
                    VECTOR_ADD_ELEMENTS,
                    errors,
                    &executor,
                ))),
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
                serve(
                    Directory::open(directory.path()).unwrap(),
                    false,
                    &mut || Ok(Box::new(CpuExecutor::new("a test"))),
                    &mut |found| panic!("nobody asked for {found:?}"),
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
