//! `file:DIR`: clients that have nothing but two text files.
//!
//! `docs/file-protocol.md` describes the protocol. Its two files know no sessions, so one worker
//! process serves a directory for as long as the mediator runs: [`serve`] is what it does. Beside the
//! commands it looks for the sessions that guests make there ([`SessionFinder`]).

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vgpu_file_transport::Stop;
use vgpu_file_transport::directory::Directory;
use vgpu_file_transport::two_file_grammar::{
    Command, VECTOR_ADD_ELEMENTS, vector_add_failed, vector_add_passed,
};

use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::op::{FenceReply, Op, OpSet, Request};
use vgpu_protocol::session::server::{Counts, Failure};
use vgpu_protocol::session::tally::OpResult;
use vgpu_protocol::status::{ErrorCode, Status};

use super::session_finder::SessionFinder;
use crate::executor::{Executor, ExecutorInfo, trial};
use crate::print::bytes;
use crate::session::OpenExecutor;
use crate::session::backend::{Also, Backend, Event};
use crate::usage::{Counters, Load};

/// Bytes of a command: a digit and a newline.
const COMMAND_BYTES: usize = 2;

/// Bytes around the text of an answer: the digit and the colon before it, and the newline.
const AROUND_ANSWER: usize = 3;

/// How long the device may take for the few numbers of one command.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// Serves `directory` until `stop`, with an executor that is opened for the first command, while a
/// second thread does what `session_finder` says. Of its commands the vector add can be one that is not
/// `allowed`; all are counted, by this thread alone.
///
/// # Errors
/// A directory that cannot be served, in words. A command that fails is answered with the reason.
pub(super) fn serve(
    directory: &Directory,
    open: OpenExecutor<'_>,
    allowed: OpSet,
    mut finder: SessionFinder<'_>,
    counters: &Counters,
    stop: Stop<'_>,
) -> Result<(), String> {
    let device = RefCell::new(Device {
        open,
        allowed,
        executor: None,
        counters,
        counts: Counts::default(),
    });
    // Neither thread goes on without the other, also when one panics.
    let one_has_ended = AtomicBool::new(false);
    let stop = stop.or_when(&one_has_ended);
    thread::scope(|scope| {
        let _ended = SetWhenDropped(&one_has_ended);
        thread::Builder::new()
            .name("finder".into())
            .spawn_scoped(scope, || {
                let _ended = SetWhenDropped(&one_has_ended);
                finder.run(directory, stop);
            })
            .map_err(|error| format!("no thread that looks for sessions: {error}"))?;
        vgpu_file_transport::serve_directory(
            directory,
            &mut |command| device.borrow_mut().run(command),
            &mut |_| device.borrow_mut().executor = None,
            stop,
        )
        .map_err(|error| error.to_string())
    })
}

struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        // Relaxed: it carries no data, as Stop's other flags.
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The executor, until the answer to a command was written. With CUDA it keeps hundreds of megabytes
/// of the device, or in exclusive mode all of it, and there may be a directory for every guest.
struct Device<'a> {
    open: OpenExecutor<'a>,
    allowed: OpSet,
    executor: Option<Box<dyn Executor>>,
    counters: &'a Counters,
    counts: Counts,
}

impl Device<'_> {
    /// Runs a command, which counts as one request; what it has the device do counts by its operations.
    fn run(&mut self, command: Command) -> Result<String, String> {
        let arrived = Instant::now();
        self.counts.requests += 1;
        self.counters.received(COMMAND_BYTES);
        self.counters.asked(self.counts, 1, Load::default());
        let answer = self.answer(command);
        let (Ok(text) | Err(text)) = &answer;
        self.counts.failed += u64::from(answer.is_err());
        self.counts.durations.add(arrived.elapsed());
        self.counters.sent(text.len() + AROUND_ANSWER);
        self.counters.asked(self.counts, 0, Load::default());
        answer
    }

    fn answer(&mut self, command: Command) -> Result<String, String> {
        let mut needed = trial::OPERATIONS.into_iter();
        if command == Command::VectorAdd
            && let Some(op) = needed.find(|op| !self.allowed.contains(*op))
        {
            self.counters.tally().count(op, OpResult::Failed);
            return Err(format!("the mediator does not allow {op} to this guest"));
        }
        let mut executor = (self.open)().map_err(|error| {
            if let Some(op) = first_of(command) {
                self.counters.tally().count(op, OpResult::Failed);
            }
            format!("the executor failed: {error}")
        })?;
        let outcome = run(executor.as_mut(), command, self.counters);
        self.executor = Some(executor);
        outcome.map_err(|failed| match failed {
            Failed::Device(error) => advise(&error),
            Failed::Sums(text) => text,
        })
    }
}

/// The first operation of a command.
fn first_of(command: Command) -> Option<Op> {
    match command {
        Command::Nothing => None,
        Command::GpuInfo => Some(Op::Info),
        Command::VectorAdd => trial::OPERATIONS.first().copied(),
    }
}

/// Why a command failed.
#[derive(Debug)]
enum Failed {
    Device(Failure),
    /// In words; some sums are wrong.
    Sums(String),
}

/// Runs one command: the text of the answer, or the error.
fn run(
    executor: &mut dyn Executor,
    command: Command,
    counters: &Counters,
) -> Result<String, Failed> {
    match command {
        Command::Nothing => Ok("Nothing to do".into()),
        Command::GpuInfo => {
            counters.tally().count(Op::Info, OpResult::Ok);
            Ok(describe(executor.info()))
        }
        Command::VectorAdd => {
            let deadline = Instant::now() + COMMAND_LIMIT;
            let mut counted = Counted {
                executor,
                counters,
                running: None,
            };
            let errors = trial::wrong_sums(&mut counted, VECTOR_ADD_ELEMENTS, deadline);
            let errors = errors.map_err(Failed::Device)?;
            let executor = format!(
                "{} executor, {}",
                executor.info().kind,
                executor.info().device
            );
            match errors {
                0 => Ok(vector_add_passed(VECTOR_ADD_ELEMENTS, &executor)),
                errors => {
                    counters.failed_later(Op::Launch);
                    let text = vector_add_failed(VECTOR_ADD_ELEMENTS, errors, &executor);
                    Err(Failed::Sums(text))
                }
            }
        }
    }
}

/// An executor whose requests and device's time are counted.
struct Counted<'e> {
    executor: &'e mut dyn Executor,
    counters: &'e Counters,
    /// The operation of the one request that is not over.
    running: Option<Op>,
}

impl Counted<'_> {
    fn over(&mut self, result: OpResult) {
        if let Some(op) = self.running.take() {
            self.counters.tally().count(op, result);
        }
    }
}

impl Executor for Counted<'_> {
    fn info(&self) -> &ExecutorInfo {
        self.executor.info()
    }

    fn take_failures(&mut self) -> FenceReply {
        self.executor.take_failures()
    }
}

impl Backend for Counted<'_> {
    fn start(&mut self, header: &FrameHeader, request: Request) {
        self.running = Some(header.op);
        self.executor.start(header, request);
    }

    fn input(&mut self, id: u32) -> &mut [u8] {
        self.executor.input(id)
    }

    fn filled(&mut self, id: u32, n: usize) {
        self.executor.filled(id, n);
    }

    fn output(&mut self, id: u32) -> &[u8] {
        self.executor.output(id)
    }

    fn sent(&mut self, id: u32, n: usize) {
        self.executor.sent(id, n);
    }

    fn cancel(&mut self, id: u32) {
        self.over(OpResult::Failed);
        self.executor.cancel(id);
    }

    fn next_event(&mut self) -> Option<Event> {
        let event = self.executor.next_event();
        match &event {
            Some(Event::Done(_, Ok(_))) => self.over(OpResult::Ok),
            Some(Event::Done(_, Err(_)) | Event::Lost(_)) => self.over(OpResult::Failed),
            Some(Event::FailedLater(op)) => self.counters.failed_later(*op),
            Some(Event::Worked(device_ns)) => self.counters.worked(*device_ns),
            _ => {}
        }
        event
    }

    fn also(&mut self) -> Also<'_> {
        self.executor.also()
    }
}

/// The answer to command 2.
fn describe(info: &ExecutorInfo) -> String {
    let ExecutorInfo {
        kind,
        device,
        total_memory,
        driver,
        reason,
        ..
    } = info;
    let driver = if driver.is_empty() {
        String::new()
    } else {
        format!(", driver {driver}")
    };
    let memory = bytes(*total_memory as f64);
    format!("{device}, {memory}{driver} ({kind} executor: {reason})")
}

/// The error and, where the device does not come back by itself, what to do.
fn advise(failure: &Failure) -> String {
    match failure.status {
        Status::Mediator(ErrorCode::BackendLost | ErrorCode::Timeout) => {
            format!("{}; restart vgpu-mediatord", failure.text)
        }
        _ => failure.text.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::mpsc;

    use super::*;
    use crate::executor::cpu::CpuExecutor;
    use crate::session::OpenError;
    use crate::worker::link::Found;

    #[test]
    fn commands_reach_the_executor() {
        let mut executor = CpuExecutor::new("a test");
        let counters = Counters::default();
        let passed = run(&mut executor, Command::VectorAdd, &counters).unwrap();
        assert!(counters.usage().device_ns > 0);
        assert!(
            passed.starts_with("Vector add PASSED: 1024 elements, 0 errors (cpu executor, "),
            "{passed}"
        );
        let info = run(&mut executor, Command::GpuInfo, &counters).unwrap();
        assert!(info.ends_with("(cpu executor: a test)"), "{info}");
    }

    const WATCHDOG: Duration = Duration::from_secs(60);

    /// Serves `path` meanwhile, tells `found` what is found, and opens executors with `open`.
    fn while_served(
        path: &Path,
        found: &mut (dyn FnMut(Found) + Send),
        open: &mut (dyn FnMut() -> Result<Box<dyn Executor>, OpenError> + Send),
        work: impl FnOnce(),
    ) {
        let stop = AtomicBool::new(false);
        let (_sender, over) = mpsc::channel();
        let deadline = Instant::now() + WATCHDOG;
        thread::scope(|scope| {
            let serving = scope.spawn(|| {
                let directory = Directory::open(path).unwrap();
                let finder = SessionFinder {
                    look_for_guests: true,
                    mediator: 7,
                    found,
                    over,
                };
                let stop = Stop::when(&stop).or_at(deadline);
                serve(
                    &directory,
                    open,
                    OpSet::ALL,
                    finder,
                    &Counters::default(),
                    stop,
                )
            });
            work();
            stop.store(true, Ordering::Relaxed);
            serving.join().expect("no panic").expect("served");
        });
    }

    fn wait_for(path: &Path, start: &str) {
        let deadline = Instant::now() + WATCHDOG;
        let read = || fs::read_to_string(path.join("response.txt"));
        while !read().is_ok_and(|line| line.starts_with(start)) {
            assert!(Instant::now() < deadline, "{:?}", read());
            thread::sleep(Duration::from_millis(10));
        }
    }

    const PASSED: &str = "1:Vector add PASSED: 1024 elements, 0 errors (cpu executor";

    #[test]
    fn a_directory_is_served_by_an_executor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        while_served(
            path,
            &mut |found| panic!("there is no {found:?}"),
            &mut || Ok(Box::new(CpuExecutor::new("a test"))),
            || {
                wait_for(path, "0:Ready");
                fs::write(path.join("command.txt"), "1\n").unwrap();
                wait_for(path, PASSED);
            },
        );
    }

    /// An executor that tells when it is closed.
    struct Told(CpuExecutor, mpsc::Sender<()>);

    impl Executor for Told {
        fn info(&self) -> &ExecutorInfo {
            self.0.info()
        }
    }

    impl Backend for Told {
        fn start(&mut self, header: &FrameHeader, request: Request) {
            self.0.start(header, request);
        }

        fn input(&mut self, id: u32) -> &mut [u8] {
            self.0.input(id)
        }

        fn filled(&mut self, id: u32, n: usize) {
            self.0.filled(id, n);
        }

        fn output(&mut self, id: u32) -> &[u8] {
            self.0.output(id)
        }

        fn sent(&mut self, id: u32, n: usize) {
            self.0.sent(id, n);
        }

        fn cancel(&mut self, id: u32) {
            self.0.cancel(id);
        }

        fn next_event(&mut self) -> Option<Event> {
            self.0.next_event()
        }

        fn also(&mut self) -> Also<'_> {
            self.0.also()
        }
    }

    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.1.send(());
        }
    }

    #[test]
    fn the_executor_is_closed_once_the_command_is_answered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let (tell, closed) = mpsc::channel();
        while_served(
            path,
            &mut |found| panic!("there is no {found:?}"),
            &mut move || Ok(Box::new(Told(CpuExecutor::new("a test"), tell.clone()))),
            || {
                for _again in 0..2 {
                    wait_for(path, "0:Ready");
                    fs::write(path.join("command.txt"), "1\n").unwrap();
                    wait_for(path, PASSED);
                    let soon = WATCHDOG / 2;
                    closed
                        .recv_timeout(soon)
                        .expect("closed while it is served");
                    fs::write(path.join("command.txt"), "0\n").unwrap();
                }
            },
        );
    }

    #[test]
    fn a_session_is_seen_while_a_command_runs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let (tell, told) = mpsc::channel();
        let (begin, begun) = mpsc::channel();
        while_served(
            path,
            &mut |found| tell.send(found).unwrap(),
            // The command does not get on before the session was seen.
            &mut move || {
                begin.send(()).unwrap();
                match told.recv_timeout(WATCHDOG) {
                    Ok(Found::Session(_)) => Ok(Box::new(CpuExecutor::new("a test"))),
                    other => Err(format!("no session was seen: {other:?}").into()),
                }
            },
            || {
                wait_for(path, "0:Ready");
                fs::write(path.join("command.txt"), "1\n").unwrap();
                begun.recv_timeout(WATCHDOG).expect("the command runs");
                let session = path.join("sessions/00112233445566778899aabbccddeeff");
                fs::create_dir_all(&session).unwrap();
                fs::write(session.join("g-beat-0000000000000001"), "").unwrap();
                wait_for(path, PASSED);
            },
        );
    }
}
