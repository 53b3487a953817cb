//! The figures of the GPUs themselves, which a child process reads ([`crate::gpus`]) while somebody asks for them.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::gpus::{ARGUMENT, Figures, Reading};
use crate::lines::LineBuffer;

/// They are read no more often than this.
const READ_INTERVAL: Duration = Duration::from_secs(1);

/// Time for one answer. A library that starts up several GPUs takes its time.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How long figures are given on after they were read.
const FIGURES_KEPT_TIME: Duration = Duration::from_secs(10);

/// Time until the next process, after one that failed.
const PROCESS_PAUSE: Duration = Duration::from_secs(60);

/// How often a process that was killed is looked at.
const KILLED_CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Longest answer in bytes: 64 GPUs and 1024 processes.
const MAX_ANSWER: usize = 256 << 10;

/// The last figures, and the process that reads them.
#[derive(Debug)]
pub(super) struct Gpus {
    reader: Option<Reader>,
    /// It was killed or has ended, and is still there: no other is started beside it.
    ending: Option<Child>,
    /// No process is started before.
    not_before: Instant,
    /// The last answer, and when it came.
    reading: Option<(Instant, Reading)>,
}

#[derive(Debug)]
struct Reader {
    child: Child,
    socket: UnixStream,
    lines: LineBuffer,
    /// An answer is due by then.
    asked_until: Option<Instant>,
}

impl Reader {
    fn start() -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        let child = Command::new("/proc/self/exe")
            .arg0("vgpu-mediatord")
            .arg(ARGUMENT)
            .env_remove("NOTIFY_SOCKET")
            .stdin(OwnedFd::from(theirs))
            .stdout(io::stderr().as_fd().try_clone_to_owned()?)
            .process_group(0)
            .spawn()?;
        Ok(Self {
            child,
            socket,
            lines: LineBuffer::new(MAX_ANSWER),
            asked_until: None,
        })
    }
}

impl Gpus {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            reader: None,
            ending: None,
            not_before: now,
            reading: None,
        }
    }

    /// Somebody wants figures of now, or of a moment ago.
    pub(super) fn ask(&mut self, now: Instant) {
        let fresh = |at: &Instant| now.saturating_duration_since(*at) < READ_INTERVAL;
        if self.is_asked() || self.reading.as_ref().is_some_and(|(at, _)| fresh(at)) {
            return;
        }
        if self.reader.is_none() {
            if self.ending.is_some() || now < self.not_before {
                return;
            }
            match Reader::start() {
                Ok(reader) => self.reader = Some(reader),
                Err(error) => {
                    self.not_before = now + PROCESS_PAUSE;
                    let why = format!("the process that reads GPUs cannot be started: {error}");
                    self.reading = Some((now, Reading::Error(why)));
                    return;
                }
            }
        }
        if let Some(reader) = &mut self.reader {
            // One byte in an empty socket never waits; if the process is gone, that shows in its socket.
            let _ = reader.socket.write(b"\n");
            reader.asked_until = Some(now + ANSWER_LIMIT);
        }
    }

    /// Whether an answer is on its way.
    pub(super) fn is_asked(&self) -> bool {
        let reader = self.reader.as_ref();
        reader.is_some_and(|reader| reader.asked_until.is_some())
    }

    /// The descriptor that becomes readable with an answer.
    pub(super) fn answer(&self) -> Option<BorrowedFd<'_>> {
        self.reader.as_ref().map(|reader| reader.socket.as_fd())
    }

    /// When something is to be done.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let late = self.reader.as_ref().and_then(|reader| reader.asked_until);
        late.into_iter()
            .chain(self.ending.as_ref().map(|_| now + KILLED_CHECK_INTERVAL))
            .min()
    }

    /// Takes an answer that has come.
    pub(super) fn on_ready(&mut self, now: Instant) {
        let Some(reader) = &mut self.reader else {
            return;
        };
        let received = match reader.lines.read(&reader.socket) {
            Ok(received) => received,
            Err(error) => return self.give_up(&error.to_string(), now),
        };
        match received.lines.last().map(|line| serde_json::from_str(line)) {
            Some(Ok(reading)) => {
                reader.asked_until = None;
                let is_last = received.closed || matches!(reading, Reading::Error(_));
                self.reading = Some((now, reading));
                if is_last {
                    self.end(now);
                }
            }
            Some(Err(error)) => self.give_up(&error.to_string(), now),
            None if !received.closed => {}
            None if reader.asked_until.is_some() => self.give_up("it ended without an answer", now),
            None => self.end(now),
        }
    }

    /// Ends a process that has not answered in time, and collects one that has ended.
    pub(super) fn expire(&mut self, now: Instant) {
        if let Some(child) = &mut self.ending {
            // An error means that there is no such child.
            if !matches!(child.try_wait(), Ok(None)) {
                self.ending = None;
            }
        }
        let until = self.reader.as_ref().and_then(|reader| reader.asked_until);
        if until.is_some_and(|until| until <= now) {
            let seconds = ANSWER_LIMIT.as_secs();
            self.give_up(&format!("it did not answer within {seconds} s"), now);
        }
    }

    fn give_up(&mut self, why: &str, now: Instant) {
        let why = format!("NVIDIA's management library: {why}");
        self.reading = Some((now, Reading::Error(why)));
        self.end(now);
    }

    fn end(&mut self, now: Instant) {
        if let Some(mut reader) = self.reader.take() {
            // It may have ended already.
            let _ = reader.child.kill();
            self.ending = Some(reader.child);
        }
        // One that has ended because nobody asked is not held against it.
        if !matches!(self.reading, Some((_, Reading::Figures(_)))) {
            self.not_before = now + PROCESS_PAUSE;
        }
    }

    /// The figures, with their age, or why there are none.
    pub(super) fn figures(&self, now: Instant) -> Result<Figures, String> {
        let Some((at, reading)) = &self.reading else {
            return Err("NVIDIA's management library has not answered yet".to_owned());
        };
        let age = now.saturating_duration_since(*at);
        match reading {
            Reading::Error(why) => Err(why.clone()),
            Reading::Figures(_) if age > FIGURES_KEPT_TIME => {
                let seconds = age.as_secs();
                Err(format!(
                    "NVIDIA's management library has not answered for {seconds} s"
                ))
            }
            Reading::Figures(figures) => {
                let mut figures = figures.clone();
                let gpus = figures.gpus.iter_mut();
                gpus.for_each(|gpu| gpu.age_s = age.as_secs());
                Ok(figures)
            }
        }
    }
}

impl Drop for Gpus {
    fn drop(&mut self) {
        if let Some(reader) = &mut self.reader {
            let _ = reader.child.kill();
        }
    }
}
