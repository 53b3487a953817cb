//! Logging to standard error, for terminals and for systemd alike, that nobody has to read.
//!
//! Lines go through a bounded queue to a thread, and it alone waits when the log's reader does
//! not: a mediator must serve, and end, all the same. Lines for which there is no room are counted,
//! and the log says how many are missing.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use env_logger::{Builder, Env, Target, TimestampPrecision, WriteStyle};
use log::{Level, LevelFilter};
use nix::sys::stat::fstat;
use vgpu_transport::output::write_all;

use crate::print::print_error;

/// Bytes of lines that wait at most, in each process.
const MOST_WAITING: usize = 256 << 10;

/// How long a process that ends waits for its last lines to be taken.
const LAST_LINES_LIMIT: Duration = Duration::from_secs(1);

/// The queue of this process, once [`init`] was called.
static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Starts the logger. `verbose` is how often `-v` was given; `RUST_LOG` has the last word.
///
/// Under systemd (`JOURNAL_STREAM`, in old versions only `NOTIFY_SOCKET`) lines carry the journal's
/// priorities and no time of their own. A panic becomes a line of the log too.
///
/// # Errors
/// The thread that writes cannot be started.
pub fn init(verbose: u8) -> io::Result<()> {
    start(verbose, false)
}

/// Starts the logger of a worker, whose standard error the broker reads: it says the time, and bounds
/// what comes. [`parse_worker_line`] is the other end.
///
/// # Errors
/// As [`init`].
pub(crate) fn init_worker(verbose: u8) -> io::Result<()> {
    start(verbose, true)
}

fn start(verbose: u8, for_broker: bool) -> io::Result<()> {
    let level = match verbose {
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let under_systemd = !for_broker && in_journal();
    let queue = QUEUE.get_or_init(|| Queue::new(if under_systemd { "<4>" } else { "" }));
    thread::Builder::new()
        .name("log".into())
        .spawn(|| queue.write_out(|line| write_all(&io::stderr(), line)))?;
    let mut builder = Builder::new();
    builder.filter_level(level);
    // It tells of its inner workings, and of things that a guest can cause.
    builder.filter_module("xenstore_rs", LevelFilter::Error);
    builder.target(Target::Pipe(Box::new(queue)));
    if in_colour() {
        builder.write_style(WriteStyle::Always);
    }
    builder.parse_env(Env::default());
    if for_broker {
        builder.format(|out, record| {
            let text = record.args().to_string().replace('\n', " ");
            writeln!(out, "<{}>{} {text}", record.level() as u8, record.target())
        });
    } else if under_systemd {
        builder.format(|out, record| {
            let priority = match record.level() {
                Level::Error => 3,
                Level::Warn => 4,
                Level::Info => 6,
                Level::Debug | Level::Trace => 7,
            };
            writeln!(out, "<{priority}>{}", record.args())
        });
    } else {
        builder.format_target(false);
        builder.format_timestamp(Some(TimestampPrecision::Millis));
    }
    // Only a second call in one process could fail, and it would change nothing.
    let _ = builder.try_init();
    // The default hook writes to standard error itself, and would wait there.
    std::panic::set_hook(Box::new(|panic| {
        log::error!("{}", panic.to_string().replace('\n', " "));
        flush();
    }));
    Ok(())
}

/// Level, target and text of a line that a worker has logged. Whatever else stands there, from a
/// library or a process that was taken over, is a warning.
pub(crate) fn parse_worker_line(line: &str) -> (Level, &str, &str) {
    let parse = || {
        let (level, rest) = line.strip_prefix('<')?.split_once('>')?;
        let level: usize = level.parse().ok()?;
        let level = Level::iter().find(|it| *it as usize == level)?;
        let (target, text) = rest.split_once(' ')?;
        Some((level, target, text))
    };
    parse().unwrap_or((Level::Warn, module_path!(), line))
}

/// Prints the lines of the error that a program ends with: in their turn where there is a log, at once
/// where there is none.
pub fn say(text: &str) {
    let text = match in_journal() {
        true => text.lines().map(|line| format!("<3>{line}\n")).collect(),
        false => text.to_owned(),
    };
    match QUEUE.get() {
        Some(queue) => queue.push(text.as_bytes()),
        None => print_error(&text),
    }
}

/// Whether standard error is systemd's journal, which takes priorities in front of lines. Versions
/// before 231 do not say; there it is so wherever systemd waits for this process to be ready.
fn in_journal() -> bool {
    match std::env::var("JOURNAL_STREAM") {
        // Programs inherit the variable, and may have been given another standard error.
        Ok(stream) => fstat(io::stderr())
            .is_ok_and(|file| stream == format!("{}:{}", file.st_dev, file.st_ino)),
        Err(_) => std::env::var_os("NOTIFY_SOCKET").is_some(),
    }
}

/// Waits until everything was written, for a second at most. Whatever then still waits is lost with
/// the process, whose end the thread that waits does not hold up.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(Instant::now() + LAST_LINES_LIMIT);
    }
}

/// How many lines were not written since the start, because nobody read the log or by a limit on lines.
pub(crate) fn dropped() -> u64 {
    QUEUE.get().map_or(0, |queue| queue.lock().dropped)
}

/// Counts lines that a limit has suppressed.
pub(crate) fn count_suppressed(lines: u64) {
    if let Some(queue) = QUEUE.get() {
        queue.lock().dropped += lines;
    }
}

/// Colours as env_logger would choose them, had it the terminal itself.
fn in_colour() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    io::stderr().is_terminal()
        && !set("NO_COLOR")
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Lines on their way to the thread that writes them.
#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    /// For the writer: there is something to write. For [`Queue::flush`]: something was written.
    changed: Condvar,
    /// In front of the line about lines that are missing.
    priority: &'static str,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    /// Of all of them.
    bytes: usize,
    /// Lines for which there was no room after the last of `lines`.
    lost: u64,
    /// The same of all that is over, and of lines that were suppressed.
    dropped: u64,
    /// The writer is at a line that it has taken.
    writing: bool,
}

impl Queue {
    fn new(priority: &'static str) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            priority,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues one line, or several that belong together. Never waits for a reader.
    fn push(&self, text: &[u8]) {
        let mut state = self.lock();
        if state.bytes + text.len() > MOST_WAITING {
            state.lost += 1;
            state.dropped += 1;
            return;
        }
        self.note_lost(&mut state);
        state.bytes += text.len();
        state.lines.push_back(text.to_vec());
        drop(state);
        self.changed.notify_all();
    }

    /// Queues the line about lines that are missing, if there are any.
    fn note_lost(&self, state: &mut State) {
        if state.lost == 0 {
            return;
        }
        let lost = std::mem::take(&mut state.lost);
        let line = format!(
            "{}{lost} lines are missing here: the log was not read\n",
            self.priority
        );
        state.bytes += line.len();
        state.lines.push_back(line.into_bytes());
    }

    /// The next line, once there is one.
    fn next(&self) -> Vec<u8> {
        let mut state = self.lock();
        loop {
            if state.lines.is_empty() {
                self.note_lost(&mut state);
            }
            if let Some(line) = state.lines.pop_front() {
                state.bytes -= line.len();
                state.writing = true;
                return line;
            }
            state.writing = false;
            self.changed.notify_all();
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes what comes, for as long as the process lives.
    fn write_out(&self, mut write: impl FnMut(&[u8]) -> io::Result<()>) {
        loop {
            let line = self.next();
            // Nobody could be told of a standard error that takes nothing.
            let _ = write(&line);
        }
    }

    fn flush(&self, deadline: Instant) {
        let mut state = self.lock();
        while state.writing || !state.lines.is_empty() || state.lost > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// env_logger writes every record by one call.
impl Write for &'static Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const WATCHDOG: Duration = Duration::from_secs(60);

    #[test]
    fn a_line_of_a_worker_has_a_level_and_anything_else_is_a_warning() {
        let debug = parse_worker_line("<4>vchan::local a b");
        assert_eq!(debug, (Level::Debug, "vchan::local", "a b"));
        for line in [
            "",
            "<",
            "<9>x y",
            "<4>",
            "libcuda: <3>x y",
            "<4294967297>x y",
        ] {
            let (level, _, text) = parse_worker_line(line);
            assert_eq!((level, text), (Level::Warn, line));
        }
    }

    #[test]
    fn lines_that_nobody_takes_are_counted_and_named_in_their_place() {
        let queue: &'static Queue = Box::leak(Box::new(Queue::new("<4>")));
        let line = vec![b'x'; MOST_WAITING / 4];
        for _ in 0..7 {
            queue.push(&line);
        }
        // A thread that has nobody to write for holds up neither a push nor, for long, a flush.
        queue.flush(Instant::now());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            queue.write_out(|line| sender.send(line.to_vec()).map_err(io::Error::other))
        });
        queue.flush(Instant::now() + WATCHDOG);
        queue.push(b"later\n");
        let took: Vec<_> = (0..6)
            .map(|_| lines.recv_timeout(WATCHDOG).unwrap())
            .collect();
        assert!(took[..4].iter().all(|took| *took == line));
        let missing = String::from_utf8(took[4].clone()).unwrap();
        assert!(missing.starts_with("<4>3 lines are missing"), "{missing}");
        assert_eq!(took[5], b"later\n");
    }
}
