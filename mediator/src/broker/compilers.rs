//! Processes that compile guests' sources: one for each source, for a bounded time, a few at once.
//!
//! A worker asks for one and is given its socket; no byte of a source passes the broker. A guest has one at a time, so
//! that others have their turn.

use std::collections::VecDeque;
use std::io;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio, id};
use std::thread;
use std::time::{Duration, Instant};

use super::Broker;
use super::peer::AccountKey;
use crate::compile::process::{ARGUMENT, Spec};
use crate::worker::confinement::Settings;
use crate::worker::link::Ask;

/// Most compilers at once, on however many processors.
const MOST: usize = 8;

/// Compilers that a session may have at once one after the other, and how soon there is another then: a compiler that
/// ends at once is a process all the same.
pub(super) const STARTS: (u32, Duration) = (32, Duration::from_millis(500));

/// Variables that a compiler keeps: the way to NVRTC. Others could change what it does, or hold secrets.
const VARIABLES: [&str; 2] = ["VGPU_NVRTC", "LD_LIBRARY_PATH"];

/// The compilers that run, and who waits for one.
#[derive(Debug)]
pub(super) struct Compilers {
    running: Vec<Running>,
    /// Sessions, none of them twice, with the driver that their sources are for.
    waiting: VecDeque<(u64, u32)>,
    /// When the first of those may start who have had too many.
    due: Option<Instant>,
    most: usize,
}

#[derive(Debug)]
struct Running {
    session: u64,
    account: AccountKey,
    child: Child,
    kill_at: Instant,
    /// It has had its time.
    late: bool,
}

impl Compilers {
    pub(super) fn new() -> Self {
        // The others are for those whose kernels run.
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            running: Vec::new(),
            waiting: VecDeque::new(),
            due: None,
            most: (processors / 2).clamp(1, MOST),
        }
    }

    fn wait(&mut self, session: u64, driver: u32) {
        self.waiting.retain(|(waiting, _)| *waiting != session);
        self.waiting.push_back((session, driver));
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let kills = self.running.iter().map(|running| running.kill_at);
        kills.chain(self.due).min()
    }

    /// Ends those that have had their time.
    pub(super) fn expire(&mut self, now: Instant) {
        for running in self.running.iter_mut().filter(|it| it.kill_at <= now) {
            // It may have ended already; it is reaped when its signal comes.
            let _ = running.child.kill();
            running.late = true;
            running.kill_at = now + Duration::from_secs(1);
        }
    }

    /// Ends what runs, or waits, for a session.
    pub(super) fn gone(&mut self, session: u64) {
        self.waiting.retain(|(waiting, _)| *waiting != session);
        for running in self.running.iter_mut().filter(|it| it.session == session) {
            let _ = running.child.kill();
        }
    }

    /// Collects those that have ended: their sessions, and whether they have had their time.
    fn reap(&mut self, now: Instant) -> Vec<(u64, bool)> {
        // An error means that there is no such child.
        let has_ended = |running: &mut Running| !matches!(running.child.try_wait(), Ok(None));
        let ended = self.running.extract_if(.., has_ended);
        ended
            .map(|it| (it.session, it.late || it.kill_at <= now))
            .collect()
    }
}

impl Drop for Compilers {
    fn drop(&mut self) {
        for running in &mut self.running {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
}

impl Broker<'_> {
    /// A worker wants a compiler.
    pub(super) fn on_compile(&mut self, id: u64, driver: u32, now: Instant) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let worker = &self.config.worker;
        if !worker.compile {
            session.refuse_compiler("this mediator does not compile: worker.compile is false");
        } else if self.stopping.is_some() || !session.counts() {
            session.refuse_compiler("this session has no compiler");
        } else {
            self.compilers.wait(id, driver);
            self.start_compilers(now);
        }
    }

    /// Tells the workers of compilers that have ended, and starts others.
    pub(super) fn reap_compilers(&mut self, now: Instant) {
        for (id, late) in self.compilers.reap(now) {
            if let Some(session) = self.sessions.get_mut(&id) {
                session.ask(Ask::CompilerEnded { late });
            }
        }
        self.start_compilers(now);
    }

    /// Does what is due.
    pub(super) fn expire_compilers(&mut self, now: Instant) {
        self.compilers.expire(now);
        if self.compilers.due.is_some_and(|due| due <= now) {
            self.start_compilers(now);
        }
    }

    /// Starts compilers for those who wait, as many as may run.
    fn start_compilers(&mut self, now: Instant) {
        self.compilers.due = None;
        let mut at = 0;
        while self.compilers.running.len() < self.compilers.most {
            let Some((id, driver)) = self.compilers.waiting.get(at).copied() else {
                return;
            };
            let Some(session) = self.sessions.get_mut(&id) else {
                self.compilers.waiting.remove(at);
                continue;
            };
            let account = session.peer.account();
            if self
                .compilers
                .running
                .iter()
                .any(|it| it.account == account)
            {
                at += 1;
                continue;
            }
            if !session.compiles.take(now) {
                let next = session.compiles.next(now);
                let due = self.compilers.due.get_or_insert(next);
                *due = next.min(*due);
                at += 1;
                continue;
            }
            self.compilers.waiting.remove(at);
            let limit = self.config.worker.compile_timeout();
            let spec = Spec {
                broker_pid: id_of_this(),
                confinement: Settings {
                    confine: self.config.worker.confine,
                    user: session.process.user,
                },
                driver,
                // More than its time, in which one thread uses no more: else it would end before its deadline.
                seconds: u32::try_from(limit.as_secs() + 1).unwrap_or(u32::MAX),
            };
            match start(&spec) {
                Ok((child, socket)) => {
                    session.give_compiler(&socket, limit);
                    self.compilers.running.push(Running {
                        session: id,
                        account,
                        child,
                        kill_at: now + limit,
                        late: false,
                    });
                }
                Err(error) => {
                    log::warn!("{}: no compiler can be started: {error}", session.peer);
                    session.refuse_compiler("the mediator cannot start a compiler");
                }
            }
        }
    }
}

fn id_of_this() -> i32 {
    id().cast_signed()
}

/// Starts a compiler; the socket is for its worker.
fn start(spec: &Spec) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let kept = VARIABLES
        .into_iter()
        .filter_map(|name| Some((name, std::env::var_os(name)?)));
    let child = Command::new("/proc/self/exe")
        .arg0("vgpu-mediatord")
        .arg(ARGUMENT)
        .arg(serde_json::to_string(spec)?)
        .env_clear()
        .envs(kept)
        .stdin(OwnedFd::from(theirs))
        // What it has to say it says to the worker.
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    Ok((child, ours))
}
