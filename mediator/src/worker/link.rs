//! The socket between a worker and the broker: lines of JSON from the worker, words from the broker.
//!
//! The broker asks (`report`, `drain`, `kick`) and decides (`admit`, `denied`, `busy`), the worker answers and says when it has connected
//! and how it ended. A thread of the worker listens, so a session that is busy still answers.
//! The broker trusts no worker: lines are bounded by [`MAX_LINE`] and none can make it wait.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufRead, BufReader, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::{Deserialize, Serialize};
use vchan::DomId;
use vchan::xen::DomainLife;
use vgpu_file_transport::SessionName;
use vgpu_socket_transport::{Expected, Secret, SecretError};
use zeroize::{Zeroize, Zeroizing};

use super::spec::{Assignment, Turned};
use super::turns::{Said, Turns};
use crate::compile::ask::{self, ByBroker};
use crate::executor::ExecutorChoice;
use crate::guest_memory::GuestMemory;
use crate::policy::Share;
use crate::session::{StopFlag, StopReason};
use crate::usage::{Activity, Observed, Standing, Usage};

/// Time for the broker to give a new session its guest's memory.
const MEMORY_LIMIT: Duration = Duration::from_secs(10);

/// Longest line in either direction, in bytes.
pub const MAX_LINE: usize = 16 << 10;

/// A message from a worker to the broker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Whether the guest's channel is up.
    #[serde(default)]
    pub connected: bool,
    /// The guest's program, by its own account; set once it was admitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The session's usage so far.
    #[serde(default)]
    pub usage: Usage,
    /// Its current holdings.
    #[serde(default)]
    pub standing: Standing,
    /// Which of its guest's devices it uses, from 0.
    #[serde(default)]
    pub device: u32,
    /// Its requests and answers by kind; not with a message about its turns, of which there are many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<Activity>,
    /// A finding of the worker's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<Found>,
    /// Its message about its turns on the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<Said>,
    /// How far it is with a session that it has waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// Set once its work is over. What the thread that listens says after it takes nothing back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
}

impl Report {
    /// This report, which came after `earlier`.
    #[must_use]
    pub fn after(mut self, earlier: &mut Self) -> Self {
        if earlier.ended.is_some() {
            self.ended = earlier.ended.take();
        }
        if self.activity.is_none() {
            self.activity = earlier.activity.take();
        }
        self
    }
}

/// Messages of a warm worker, which was started before its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Waiting {
    /// It is confined, its executor is open and has proved itself: it can take a session.
    Ready,
    /// It holds its guest's socket, and goes on when it hears [`Ask::Begin`].
    Taken,
}

/// Something that only the broker can decide about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Found {
    /// A guest's directory beside the two files.
    Guest {
        /// Its name.
        name: String,
        /// Its inode number.
        inode: u64,
    },
    /// A session that waits for a mediator.
    Session(String),
    /// Over TCP: the name that a client says. The broker answers with its [`Key`], once.
    Name(String),
    /// Over TCP: the name of the client, which has shown that it knows the secret.
    Client(String),
    /// A source of its guest's that is to be compiled. The broker answers with a compiler's socket, or says why not.
    Source {
        /// Version of the driver that is to load the result, as 1000 × major + 10 × minor.
        driver: u32,
    },
}

/// End of a worker's work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// In one line.
    pub text: String,
    /// Whether it ended abnormally.
    pub fault: bool,
}

impl Ended {
    /// It ended as it should.
    pub fn fine(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            fault: false,
        }
    }

    /// It did not.
    pub fn fault(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            fault: true,
        }
    }
}

/// A message from the broker to a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// A report now.
    Report,
    /// End after the request that runs: the mediator stops.
    Drain,
    /// End after the request that runs: an administrator wants it.
    Kick,
    /// Of the worker of a directory: this session there has no worker any more.
    Over(SessionName),
    /// To a worker that waits: this is its session. Its guest's socket comes with this.
    Serve(Box<Assignment>),
    /// The same session may begin: the broker has let go of the guest's socket.
    Begin,
    /// Open this executor from now on, for this reason.
    Executor {
        /// Never `auto`.
        choice: ExecutorChoice,
        /// In one line.
        reason: String,
    },
    /// Serve the [`Found::Client`], which may have and do this.
    Admit(Box<Share>),
    /// Tell the [`Found::Client`] that it is not served.
    TurnAway(Turned),
    /// The guest's domain is gone.
    Gone,
    /// It has a turn on the device: without an end, or of so long.
    Turn(Option<Duration>),
    /// Its turn without an end ends after so long.
    Yield(Duration),
    /// The page of its guest's memory comes with this, and this word there is its own.
    Memory(u32),
    /// The socket that comes with this is a compiler's, which ends after so long.
    Compiler(Duration),
    /// There is no compiler for it, and why.
    NoCompiler(String),
    /// The last compiler has ended: at its deadline, or before.
    CompilerEnded {
        /// At its deadline.
        late: bool,
    },
}

impl Ask {
    fn from_line(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        Some(match word {
            "report" => Self::Report,
            "drain" => Self::Drain,
            "kick" => Self::Kick,
            "over" => Self::Over(rest.parse().ok()?),
            "serve" => Self::Serve(serde_json::from_str(rest).ok()?),
            "begin" => Self::Begin,
            "executor" => {
                let (choice, reason) = rest.split_once(' ')?;
                Self::Executor {
                    choice: choice.parse().ok()?,
                    reason: reason.to_owned(),
                }
            }
            "admit" => Self::Admit(serde_json::from_str(rest).ok()?),
            "gone" => Self::Gone,
            "denied" => Self::TurnAway(Turned::Denied(rest.to_owned())),
            "busy" => Self::TurnAway(Turned::Busy(rest.to_owned())),
            "turn" if rest.is_empty() => Self::Turn(None),
            "turn" => Self::Turn(Some(Duration::from_nanos(rest.parse().ok()?))),
            "memory" => Self::Memory(rest.parse().ok()?),
            "compiler" => Self::Compiler(Duration::from_secs(rest.parse().ok()?)),
            "no-compiler" => Self::NoCompiler(rest.to_owned()),
            "compiler-ended" => Self::CompilerEnded {
                late: rest.parse().ok()?,
            },
            "yield" => Self::Yield(Duration::from_nanos(rest.parse().ok()?)),
            _ => return None,
        })
    }
}

/// The line on the wire, without its end.
impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Report => f.write_str("report"),
            Self::Drain => f.write_str("drain"),
            Self::Kick => f.write_str("kick"),
            Self::Over(session) => write!(f, "over {session}"),
            Self::Serve(session) => {
                let session = serde_json::to_string(session).map_err(|_| fmt::Error)?;
                write!(f, "serve {session}")
            }
            Self::Begin => f.write_str("begin"),
            Self::Executor { choice, reason } => write!(f, "executor {choice} {}", flat(reason)),
            Self::Admit(share) => {
                let share = serde_json::to_string(share).map_err(|_| fmt::Error)?;
                write!(f, "admit {share}")
            }
            Self::Gone => f.write_str("gone"),
            Self::TurnAway(Turned::Denied(why)) => write!(f, "denied {}", flat(why)),
            Self::TurnAway(Turned::Busy(why)) => write!(f, "busy {}", flat(why)),
            Self::Turn(None) => f.write_str("turn"),
            Self::Turn(Some(most)) => write!(f, "turn {}", most.as_nanos()),
            Self::Memory(word) => write!(f, "memory {word}"),
            Self::Compiler(most) => write!(f, "compiler {}", most.as_secs()),
            Self::NoCompiler(why) => write!(f, "no-compiler {}", flat(why)),
            Self::CompilerEnded { late } => write!(f, "compiler-ended {late}"),
            Self::Yield(most) => write!(f, "yield {}", most.as_nanos()),
        }
    }
}

/// The answer to [`Found::Name`].
#[derive(Debug)]
pub enum Key {
    /// The client's.
    Known(Secret),
    /// One that nobody has: no client has the name.
    Decoy(Secret),
    /// The secrets cannot be read.
    None(String),
}

impl Key {
    /// The line on the wire, without its end.
    pub fn to_line(&self) -> Zeroizing<String> {
        let mut line = Zeroizing::new(String::with_capacity(256));
        match self {
            Self::Known(_) => line.push_str("key "),
            Self::Decoy(_) => line.push_str("decoy "),
            Self::None(_) => line.push_str("no-key "),
        }
        match self {
            Self::Known(secret) | Self::Decoy(secret) => line.push_str(&secret.to_line()),
            Self::None(why) => line.push_str(&flat(why)),
        }
        line
    }

    fn from_line(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ')?;
        match word {
            "key" => Secret::parse(rest).ok().map(Self::Known),
            "decoy" => Secret::parse(rest).ok().map(Self::Decoy),
            "no-key" => Some(Self::None(rest.to_owned())),
            _ => None,
        }
    }
}

/// A line is one line whatever a text says.
fn flat(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// The broker's decision about a [`Found::Client`]: served, or not and why.
pub(super) type Decision = Result<Share, Turned>;

/// The executor a session opens, and why.
pub(super) type Chosen = Mutex<(ExecutorChoice, String)>;

/// The session that a warm worker receives.
#[derive(Debug)]
pub(super) enum Session {
    /// There is one, whose socket this is; none if it got lost on the way.
    Is(Box<Assignment>, Option<OwnedFd>),
    /// It begins.
    Begins,
}

/// The worker's end.
#[derive(Debug)]
pub(super) struct Link {
    stream: Arc<UnixStream>,
    sessions: Receiver<Session>,
    decisions: Receiver<Decision>,
    keys: Receiver<Key>,
    /// Of the guest's domain, once that is known.
    life: Arc<Life>,
    memory: Arc<Memory>,
    compiler: Arc<ByBroker>,
}

impl Link {
    /// Starts the thread that listens to the broker.
    pub(super) fn start(
        stream: UnixStream,
        observed: &Arc<Observed>,
        stop: &Arc<StopFlag>,
        ended: &Arc<AtomicBool>,
        over: Sender<SessionName>,
        chosen: &Arc<Chosen>,
    ) -> io::Result<(Self, Arc<Turns>)> {
        // A broker that does not read must not hold up the end of a session.
        stream.set_write_timeout(Some(Duration::from_secs(1)))?;
        let stream = Arc::new(stream);
        let (decided, decisions) = mpsc::channel();
        let (given, keys) = mpsc::channel();
        let (served, sessions) = mpsc::channel();
        let life = Arc::default();
        let turns = Arc::new(Turns::shared({
            let (stream, observed) = (Arc::clone(&stream), Arc::clone(observed));
            move |said| {
                let report = Report {
                    turn: Some(said),
                    ..Report::default()
                };
                send(&stream, &observed, report);
            }
        }));
        let (offered, compilers) = mpsc::channel();
        let memory = Arc::default();
        let ask = {
            let (stream, observed) = (Arc::clone(&stream), Arc::clone(observed));
            move |driver| send(&stream, &observed, finding(Found::Source { driver }))
        };
        let link = Self {
            stream: Arc::clone(&stream),
            sessions,
            decisions,
            keys,
            life: Arc::clone(&life),
            memory: Arc::clone(&memory),
            compiler: Arc::new(ByBroker::new(ask, compilers)),
        };
        let (observed, stop, ended) = (observed.clone(), stop.clone(), ended.clone());
        let (chosen, shared) = (chosen.clone(), turns.clone());
        thread::Builder::new().name("link".into()).spawn(move || {
            let told = Told {
                over,
                served,
                decided,
                given,
                chosen,
                life,
                memory,
                turns: shared,
                offered,
            };
            listen(&stream, &observed, &stop, &ended, &told);
        })?;
        Ok((link, turns))
    }

    /// Tells how far this worker is with the session that it waits for.
    pub(super) fn waits(&self, observed: &Observed, waiting: Waiting) {
        let report = Report {
            waiting: Some(waiting),
            ..Report::default()
        };
        send(&self.stream, observed, report);
    }

    /// The next message about the session that this worker waits for, however long that takes: where the broker ends, this
    /// process does.
    ///
    /// # Errors
    /// Nobody listens to the broker any more.
    pub(super) fn session(&self) -> Result<Session, mpsc::RecvError> {
        self.sessions.recv()
    }

    /// The same, in a session that has been announced; `None`: nothing in time.
    pub(super) fn session_by(&self, deadline: Instant) -> Option<Session> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.sessions.recv_timeout(left).ok()
    }

    /// Tells that the guest's channel is up.
    pub(super) fn connected(&self, observed: &Observed) {
        observed.set_connected();
        send(&self.stream, observed, Report::default());
    }

    /// The broker's decision about a [`Found::Client`]; `None`: nothing in time.
    pub(super) fn decision(&self, deadline: Instant) -> Option<Decision> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.decisions.recv_timeout(left).ok()
    }

    /// The key of the client that says it is `name`, from the broker.
    pub(super) fn key(
        &self,
        observed: &Observed,
        name: &str,
        deadline: Instant,
    ) -> Result<Expected, SecretError> {
        self.found(observed, Found::Name(name.to_owned()));
        let left = deadline.saturating_duration_since(Instant::now());
        match self.keys.recv_timeout(left) {
            Ok(Key::Known(secret)) => Ok(Expected::known(secret)),
            Ok(Key::Decoy(secret)) => Ok(Expected::decoy(secret)),
            Ok(Key::None(why)) => Err(SecretError::new(why, "look at the file of secrets")),
            Err(_) => Err(SecretError::new(
                "the broker did not give a key in time",
                "this is not expected; report it",
            )),
        }
    }

    /// The life of the guest's domain `domain`, as the broker tells it.
    pub(super) fn life(&self, domain: DomId) -> vchan::Result<DomainLife> {
        let life = DomainLife::told(domain)?;
        self.life.begin(life.clone());
        Ok(life)
    }

    /// Tells what this worker has found out.
    pub(super) fn found(&self, observed: &Observed, found: Found) {
        send(&self.stream, observed, finding(found));
    }

    /// A handle that does the same as [`found`](Self::found), for another thread.
    pub(super) fn finder<'a>(&'a self, observed: &'a Observed) -> impl FnMut(Found) + Send + 'a {
        let stream = &*self.stream;
        move |found| send(stream, observed, finding(found))
    }

    /// The memory of the guest's other sessions.
    ///
    /// # Errors
    /// The broker has not given it in time, or it could not be mapped.
    pub(super) fn guest_memory(&self) -> Result<Arc<GuestMemory>, String> {
        self.memory.wait(Instant::now() + MEMORY_LIMIT)
    }

    /// The way to compilers.
    pub(super) fn compiler(&self) -> Arc<ByBroker> {
        Arc::clone(&self.compiler)
    }

    /// Says the last word.
    pub(super) fn ended(&self, observed: &Observed, ended: Ended) {
        let text = ended.text.chars().take(1000).collect();
        let report = Report {
            ended: Some(Ended { text, ..ended }),
            ..Report::default()
        };
        send(&self.stream, observed, report);
    }
}

/// State set by the broker's messages.
struct Told {
    over: Sender<SessionName>,
    served: Sender<Session>,
    decided: Sender<Decision>,
    given: Sender<Key>,
    chosen: Arc<Chosen>,
    life: Arc<Life>,
    memory: Arc<Memory>,
    turns: Arc<Turns>,
    offered: Sender<ask::Word>,
}

/// The memory of the guest, once the broker has given it.
#[derive(Debug, Default)]
struct Memory {
    given: Mutex<Option<Result<Arc<GuestMemory>, String>>>,
    changed: Condvar,
}

impl Memory {
    fn give(&self, mapped: io::Result<GuestMemory>) {
        let mapped = mapped.map(Arc::new);
        let mapped = mapped.map_err(|error| format!("its guest's memory: {error}"));
        *self.given.lock().unwrap_or_else(PoisonError::into_inner) = Some(mapped);
        self.changed.notify_all();
    }

    fn wait(&self, deadline: Instant) -> Result<Arc<GuestMemory>, String> {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self
            .changed
            .wait_timeout_while(given, left, |given| given.is_none());
        let (given, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let none = || Err("the broker did not give its guest's memory in time".to_owned());
        given.clone().unwrap_or_else(none)
    }
}

/// The life of the guest's domain, and whether it is over.
#[derive(Debug, Default)]
struct Life(Mutex<(Option<DomainLife>, bool)>);

impl Life {
    fn end(&self) {
        let mut life = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        life.1 = true;
        if let Some(life) = &life.0 {
            life.end();
        }
    }

    fn begin(&self, of: DomainLife) {
        let mut life = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if life.1 {
            of.end();
        }
        life.0 = Some(of);
    }
}

/// The broker's bytes, and the descriptors that come with some of them.
struct Incoming<'s> {
    stream: &'s UnixStream,
    descriptors: VecDeque<OwnedFd>,
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut with = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            self.stream,
            &mut [IoSliceMut::new(buffer)],
            &mut with,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in with.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        Ok(received.bytes)
    }
}

fn listen(
    stream: &UnixStream,
    observed: &Observed,
    stop: &StopFlag,
    ended: &AtomicBool,
    told: &Told,
) {
    let Told {
        over,
        served,
        decided,
        given,
        chosen,
        life,
        memory,
        turns,
        offered,
    } = told;
    let incoming = Incoming {
        stream,
        descriptors: VecDeque::new(),
    };
    let mut reader = BufReader::new(incoming.take(u64::MAX));
    // It may hold a key.
    let mut line = Zeroizing::new(String::new());
    loop {
        line.zeroize();
        reader.get_mut().set_limit(MAX_LINE as u64);
        let reason = match reader.read_line(&mut line) {
            // The broker is gone, and the kernel is about to end this process for it. Until then the
            // session could still tell its guest that the mediator stops in good order.
            Ok(0) | Err(_) => {
                let _ = signal::raise(Signal::SIGKILL);
                return;
            }
            Ok(_) => match Ask::from_line(line.trim_end()) {
                Some(Ask::Gone) => {
                    life.end();
                    continue;
                }
                Some(Ask::Report) => {
                    send(stream, observed, Report::default());
                    continue;
                }
                Some(Ask::Over(session)) => {
                    // Only the worker of a directory listens.
                    let _ = over.send(session);
                    continue;
                }
                Some(Ask::Serve(session)) => {
                    let mut chosen = chosen.lock().unwrap_or_else(PoisonError::into_inner);
                    chosen.1.clone_from(&session.reason);
                    drop(chosen);
                    // It came with the first byte of the line.
                    let socket = reader.get_mut().get_mut().descriptors.pop_front();
                    // Only a worker that waits listens.
                    let _ = served.send(Session::Is(session, socket));
                    continue;
                }
                Some(Ask::Begin) => {
                    let _ = served.send(Session::Begins);
                    continue;
                }
                Some(Ask::Executor { choice, reason }) => {
                    *chosen.lock().unwrap_or_else(PoisonError::into_inner) = (choice, reason);
                    continue;
                }
                Some(Ask::Admit(share)) => {
                    // Nobody may wait for it any more.
                    let _ = decided.send(Ok(*share));
                    continue;
                }
                Some(Ask::TurnAway(turned)) => {
                    let _ = decided.send(Err(turned));
                    continue;
                }
                Some(Ask::Turn(most)) => {
                    turns.give(most);
                    continue;
                }
                Some(Ask::Yield(most)) => {
                    turns.end_after(most);
                    continue;
                }
                Some(Ask::Memory(word)) => {
                    // It came with the first byte of the line.
                    if let Some(page) = reader.get_mut().get_mut().descriptors.pop_front() {
                        memory.give(GuestMemory::new(&page, word));
                    }
                    continue;
                }
                Some(Ask::Compiler(limit)) => {
                    // It came with the first byte of the line.
                    if let Some(socket) = reader.get_mut().get_mut().descriptors.pop_front() {
                        // Nobody may wait for it any more.
                        let _ = offered.send(ask::Word::Given(socket.into(), limit));
                    }
                    continue;
                }
                Some(Ask::NoCompiler(why)) => {
                    let _ = offered.send(ask::Word::None(why));
                    continue;
                }
                Some(Ask::CompilerEnded { late }) => {
                    let _ = offered.send(ask::Word::Ended { late });
                    continue;
                }
                Some(Ask::Drain) => StopReason::Draining,
                Some(Ask::Kick) => StopReason::Kicked,
                None => {
                    // Only who deals with a stranger waits for a key.
                    if let Some(key) = Key::from_line(line.trim_end()) {
                        let _ = given.send(key);
                    }
                    continue;
                }
            },
        };
        ended.store(true, Ordering::Relaxed);
        stop.set(reason);
    }
}

fn finding(found: Found) -> Report {
    Report {
        found: Some(found),
        ..Report::default()
    }
}

/// Sends `report`, once it has what is observed.
fn send(stream: &UnixStream, observed: &Observed, report: Report) {
    let report = Report {
        connected: observed.is_connected(),
        client: observed.client.get().cloned(),
        usage: observed.counters.usage(),
        standing: observed.counters.standing(),
        device: observed.counters.device(),
        activity: report.turn.is_none().then(|| observed.counters.activity()),
        ..report
    };
    match serde_json::to_vec(&report) {
        // Several threads may send; a line this short goes out in one piece or not at all.
        Ok(mut line) => {
            line.push(b'\n');
            let mut stream = stream;
            if let Err(error) = stream.write_all(&line) {
                log::debug!("the broker does not hear: {error}");
            }
        }
        Err(error) => log::error!("a report cannot be written: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use vgpu_protocol::op::{Op, OpSet};
    use vgpu_protocol::session::server::Durations;

    use super::*;
    use crate::devices::{DeviceKey, MOST_DEVICES};
    use crate::policy::Operations;
    use crate::usage::Requests;
    use crate::worker::spec::Carrier;

    #[test]
    fn nothing_takes_back_that_it_has_ended() {
        let mut report = Report {
            ended: Some(Ended::fine("goodbye")),
            ..Report::default()
        };
        // As the thread that listens may say when the broker asks at this moment.
        let answer = Report {
            turn: Some(Said::default()),
            ..Report::default()
        };
        report = answer.clone().after(&mut report);
        assert_eq!(report.ended, Some(Ended::fine("goodbye")));
        assert_eq!(report.turn, answer.turn);
        let again = Report {
            ended: Some(Ended::fault("something else")),
            ..Report::default()
        };
        assert_eq!(again.after(&mut report).ended, Some(Ended::fine("goodbye")));
    }

    #[test]
    fn reports_are_read_as_they_are_written_and_stay_short() {
        let report = Report {
            connected: true,
            client: Some("x".repeat(64)),
            usage: Usage {
                bytes_in: u64::MAX,
                bytes_out: u64::MAX,
                requests: u64::MAX,
                failed_requests: u64::MAX,
                kernels_killed: u64::MAX,
                device_ns: u64::MAX,
            },
            standing: Standing {
                memory: u64::MAX,
                memory_limit: u64::MAX,
                queue: u64::MAX,
            },
            device: u32::MAX,
            activity: Some(Activity {
                requests: Requests(
                    Op::REQUESTS
                        .iter()
                        .map(|op| (op.code(), [u64::MAX; 3]))
                        .collect(),
                ),
                durations: Durations {
                    within: [u64::MAX; 6],
                    sum_us: u64::MAX,
                },
            }),
            found: Some(Found::Guest {
                name: "z".repeat(64),
                inode: u64::MAX,
            }),
            turn: Some(Said {
                over: true,
                want: true,
                device: u32::MAX,
            }),
            waiting: Some(Waiting::Taken),
            ended: Some(Ended::fault("\u{10ffff}".repeat(1000))),
        };
        let line = serde_json::to_string(&report).unwrap();
        assert!(line.len() < MAX_LINE);
        assert_eq!(serde_json::from_str::<Report>(&line).unwrap(), report);
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        let reason = "the rule for name:web denies it".to_owned();
        let share = Share {
            memory_mib: Some(7),
            operations: Some(vec!["memory".to_owned()].try_into().unwrap()),
            ..Share::default()
        };
        let session = Assignment {
            guest: "local uid 0".to_owned(),
            carrier: Carrier::Unix,
            reason: "two\nlines".to_owned(),
            epoch: u64::MAX,
            connect_timeout_s: 1,
            hello_timeout_s: 2,
            share,
        };
        for ask in [
            Ask::Serve(Box::new(session)),
            Ask::Begin,
            Ask::Report,
            Ask::Drain,
            Ask::Kick,
            Ask::Over(SessionName::new([7; 16])),
            Ask::Executor {
                choice: ExecutorChoice::Cuda,
                reason: reason.clone(),
            },
            Ask::Admit(Box::new(share)),
            Ask::Gone,
            Ask::TurnAway(Turned::Denied(reason.clone())),
            Ask::TurnAway(Turned::Busy(reason)),
            Ask::Turn(None),
            Ask::Turn(Some(Duration::from_millis(5))),
            Ask::Yield(Duration::from_nanos(1)),
            Ask::Memory(7),
            Ask::Compiler(Duration::from_secs(30)),
            Ask::NoCompiler("it is off".into()),
            Ask::CompilerEnded { late: true },
        ] {
            assert_eq!(Ask::from_line(&ask.to_string()), Some(ask));
        }
        // However the operations are chosen, it is a line that can be read.
        let scattered = Op::REQUESTS.iter().filter(|op| op.code() % 3 != 0);
        let scattered = scattered.fold(OpSet::NONE, |set, op| set.with(*op));
        let uuids = (0..MOST_DEVICES).map(|n| DeviceKey::Uuid([n.try_into().unwrap(); 16]));
        let most_devices = uuids.collect::<Vec<_>>().try_into().unwrap();
        let most = Share {
            memory_mib: Some(u32::MAX),
            pinned_mib: Some(u32::MAX),
            kernel_timeout_s: Some(u32::MAX),
            max_objects: Some(u32::MAX),
            idle_timeout_s: Some(u32::MAX),
            stall_timeout_s: Some(u32::MAX),
            request_timeout_s: Some(u32::MAX),
            operations: Some(Operations(scattered)),
            weight: Some(u32::MAX),
            devices: Some(most_devices),
        };
        let line = Ask::Admit(Box::new(most)).to_string();
        assert!(line.len() < MAX_LINE / 2, "{line}");
        assert_eq!(Ask::from_line(&line), Some(Ask::Admit(Box::new(most))));
        assert_eq!(Ask::from_line("over ../x"), None);
        assert_eq!(Ask::from_line("dance"), None);
        let sly = Ask::TurnAway(Turned::Busy("full\nadmit".into()));
        assert_eq!(sly.to_string(), "busy full admit");
    }
}
