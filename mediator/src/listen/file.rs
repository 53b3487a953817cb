//! `file:DIR`: clients that have nothing but two text files.
//!
//! `docs/file-protocol.md` describes the protocol. Its two files know no sessions, so one worker
//! process serves a directory for as long as the mediator runs: [`Service`] is what it does. It also
//! sees the sessions that guests make there and reports them, since the broker looks into no guest's
//! directory; each gets a worker of its own.

use std::cell::RefCell;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use vgpu_file_transport::directory::Directory;
use vgpu_file_transport::guests::Guests;
use vgpu_file_transport::guide::{
    Command, VECTOR_ADD_ELEMENTS, vector_add_failed, vector_add_passed,
};
use vgpu_file_transport::sessions::Sessions;
use vgpu_file_transport::{ServeError, SessionName, Stop};

use crate::executor::{Executor, ExecutorError, ExecutorInfo};
use crate::session::OpenExecutor;
use crate::worker::link::Found;

/// How long the device may take for the few numbers of one command.
const DEADLINE: Duration = Duration::from_secs(30);

/// An executor without a command for this long is closed: with CUDA it keeps hundreds of megabytes
/// of the device, and there may be a directory for every guest.
const IDLE: Duration = Duration::from_secs(60);

/// What is done in a directory besides the two files.
#[allow(missing_debug_implementations, reason = "it holds a function")]
pub struct Service<'a> {
    /// Whether guests may have directories in this one.
    pub look_for_guests: bool,
    /// Tells mediators apart; see [`vgpu_file_transport::session::accept`].
    pub mediator: u64,
    /// Is told what only the broker can decide about.
    pub found: &'a mut dyn FnMut(Found),
    /// Sessions whose workers have ended.
    pub over: &'a Receiver<SessionName>,
}

impl Service<'_> {
    /// Serves `directory` until `stop`, with an executor that is opened for the first command.
    ///
    /// # Errors
    /// A directory that cannot be served. A command that fails is answered with the reason.
    pub fn serve(
        &mut self,
        directory: Directory,
        open: OpenExecutor<'_>,
        stop: Stop<'_>,
    ) -> Result<(), ServeError> {
        let device = RefCell::new(Device {
            open,
            executor: None,
            used: Instant::now(),
        });
        let mut guests = Guests::new();
        let mut sessions = Sessions::new(self.mediator);
        vgpu_file_transport::serve_directory(
            directory,
            &mut |command| device.borrow_mut().run(command),
            &mut |directory| {
                let now = Instant::now();
                device.borrow_mut().rest(now);
                self.look(directory, &mut guests, &mut sessions, now);
            },
            stop,
        )
    }

    fn look(
        &mut self,
        directory: &Directory,
        guests: &mut Guests,
        sessions: &mut Sessions,
        now: Instant,
    ) {
        for session in self.over.try_iter() {
            sessions.over(directory, session);
        }
        for session in sessions.look(directory, now) {
            (self.found)(Found::Session(session.to_string()));
        }
        if self.look_for_guests {
            for guest in guests.look(directory, now) {
                (self.found)(Found::Guest(guest.to_string()));
            }
        }
    }
}

/// The executor, while there is something to do.
struct Device<'a> {
    open: OpenExecutor<'a>,
    executor: Option<Box<dyn Executor>>,
    used: Instant,
}

impl Device<'_> {
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
    use std::sync::mpsc;
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
                Service {
                    look_for_guests: true,
                    mediator: 7,
                    found: &mut |found| panic!("there is no {found:?}"),
                    over: &mpsc::channel().1,
                }
                .serve(
                    Directory::open(directory.path()).unwrap(),
                    &mut || Ok(Box::new(CpuExecutor::new("a test"))),
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
