//! The configuration, read again while sessions go on.
//!
//! A thread of its own reads and checks the files, since a file system may take its time. The broker then takes
//! the result as a whole, or nothing of it.

use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use vgpu_cli::{Failure, MISUSE};

use super::Broker;
use super::control_server::refused;
use super::open_files;
use super::peer::Peer;
use super::systemd::notify;
use super::xen::Command;
use crate::cli::Flags;
use crate::config::Config;
use crate::control::{Answer, Refused, Reloaded};
use crate::policy::Share;

/// How long a reading may take.
const READING_LIMIT: Duration = Duration::from_secs(10);

/// Least time between the beginnings of two readings, however many are asked for.
const INTERVAL: Duration = Duration::from_millis(250);

/// How long somebody who asks is kept waiting: for a reading under way, and for the one behind it.
const ASKING_LIMIT: Duration = Duration::from_secs(25);

/// The reading under way, and whether another is wanted.
#[derive(Debug)]
pub(super) struct Reload {
    /// Another one is to begin: what has changed since the last one began is not in that.
    wanted: bool,
    /// Control connections that wait for it.
    asked: Vec<u64>,
    reading: Option<Reading>,
    not_before: Instant,
    /// How many have worked, and how many have not.
    pub(super) results: [u64; 2],
}

#[derive(Debug)]
struct Reading {
    result: Receiver<Result<Config, Failure>>,
    /// Readable once there is a result, or the thread has ended without one.
    wake: UnixStream,
    /// Control connections that wait for it.
    asked: Vec<u64>,
    until: Instant,
    /// It took too long, and its result no longer counts.
    given_up: bool,
}

/// The part of the configuration that a worker receives and keeps.
#[derive(Debug, PartialEq, Eq)]
struct Terms {
    share: Share,
    connect_timeout_s: u32,
    hello_timeout_s: u32,
    file_silence_s: u32,
}

impl Reload {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            wanted: false,
            asked: Vec::new(),
            reading: None,
            not_before: now,
            results: [0; 2],
        }
    }

    /// The descriptor that becomes readable with a result.
    pub(super) fn result(&self) -> Option<BorrowedFd<'_>> {
        self.reading.as_ref().map(|reading| reading.wake.as_fd())
    }

    /// When [`Broker::expire_reload`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.reading {
            Some(reading) => (!reading.given_up).then_some(reading.until),
            None => self.wanted.then_some(self.not_before),
        }
    }

    /// Whether a reading hangs.
    fn hangs(&self) -> bool {
        self.reading.as_ref().is_some_and(|it| it.given_up)
    }
}

impl Broker<'_> {
    /// SIGHUP: a mediator with a configuration file reads it again. For one without, it means what it means for
    /// any program: its terminal is gone.
    pub(super) fn on_hang_up(&mut self, now: Instant) {
        if self.config.file.is_none() {
            return self.stop(now);
        }
        if self.stopping.is_none() && !self.reload.hangs() {
            self.reload.wanted = true;
        }
    }

    /// A control connection asks for a reload, and is answered when that is done.
    pub(super) fn ask_reload(&mut self, connection: u64, now: Instant) {
        if self.reload.hangs() {
            let answer = refused(
                "the configuration is still being read, for too long: nothing has changed",
                "look at the file system that it is on; restart the mediator if that does not help",
            );
            return self.control.answer(connection, answer);
        }
        self.control.allow_until(connection, now + ASKING_LIMIT);
        self.reload.wanted = true;
        self.reload.asked.push(connection);
    }

    /// Begins a reading that is due, and gives one up that takes too long.
    pub(super) fn expire_reload(&mut self, now: Instant) {
        if self.stopping.is_some() {
            self.reload.wanted = false;
            let waiting = mem::take(&mut self.reload.asked);
            return self.answer_all(
                &waiting,
                &refused("the mediator is stopping", "start it again"),
            );
        }
        match &mut self.reload.reading {
            Some(reading) if !reading.given_up && reading.until <= now => {
                reading.given_up = true;
                let mut asked = mem::take(&mut reading.asked);
                asked.append(&mut self.reload.asked);
                self.reload.wanted = false;
                let what = format!(
                    "the configuration was not read within {} s",
                    READING_LIMIT.as_secs()
                );
                let advice = "look at the file system that it is on, and reload again";
                self.not_reloaded(&Failure::new(what, advice), &asked);
            }
            None if self.reload.wanted && self.reload.not_before <= now => self.begin_reading(now),
            _ => {}
        }
    }

    fn begin_reading(&mut self, now: Instant) {
        self.reload.wanted = false;
        self.reload.not_before = now + INTERVAL;
        let asked = mem::take(&mut self.reload.asked);
        match start_reading(&self.config, self.flags) {
            Ok((wake, result)) => {
                self.reload.reading = Some(Reading {
                    result,
                    wake,
                    asked,
                    until: now + READING_LIMIT,
                    given_up: false,
                });
            }
            Err(error) => {
                let advice = "look at the limits of processes and memory, and reload again";
                let failure = Failure::system("no thread to read the configuration", error, advice);
                self.not_reloaded(&failure, &asked);
            }
        }
    }

    /// Takes the result of a reading, if there is one.
    pub(super) fn take_reading(&mut self, now: Instant) {
        let Some(reading) = &self.reload.reading else {
            return;
        };
        let result = match reading.result.try_recv() {
            Ok(result) => result,
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Disconnected) => Err(Failure::new(
                "the thread that reads the configuration has failed",
                "this is not expected; report it with the log",
            )),
        };
        let Some(Reading {
            asked, given_up, ..
        }) = self.reload.reading.take()
        else {
            return;
        };
        if given_up {
            return;
        }
        if self.stopping.is_some() {
            let answer = refused("the mediator is stopping", "start it again");
            return self.answer_all(&asked, &answer);
        }
        match result.and_then(|config| self.take_config(config, now)) {
            Ok(reloaded) => {
                self.reload.results[0] += 1;
                log_reloaded(&reloaded);
                self.answer_all(&asked, &Answer::Reloaded(reloaded));
                self.tell_reloaded();
            }
            Err(failure) => self.not_reloaded(&failure, &asked),
        }
    }

    fn not_reloaded(&mut self, failure: &Failure, asked: &[u64]) {
        self.reload.results[1] += 1;
        let Failure { what, advice, .. } = failure;
        log::error!("not reloaded, and nothing has changed: {what}; {advice}");
        let refused = Refused {
            what: format!("not reloaded, and nothing has changed: {what}"),
            advice: advice.clone(),
            code: MISUSE,
        };
        self.answer_all(asked, &Answer::Error(refused));
        self.tell_reloaded();
    }

    /// systemd waits for this after every reload, whatever came of it.
    fn tell_reloaded(&self) {
        notify("READY=1");
    }

    fn answer_all(&mut self, connections: &[u64], answer: &Answer) {
        for connection in connections {
            self.control.answer(*connection, answer.clone());
        }
    }

    /// Puts a configuration into force. What a worker was told at its start stays so for its session.
    ///
    /// # Errors
    /// It needs more than this process may have; nothing has changed then.
    fn take_config(&mut self, new: Config, now: Instant) -> Result<Reloaded, Failure> {
        open_files::allow(&new)?;
        let changed = self.config.differences(&new);
        let waiting = self.waiting_without_end();
        let before = self.terms_of(&waiting);
        let opened = self.config.policy.allow_all != new.policy.allow_all;
        self.config = new;
        if opened {
            self.open_local_doors();
        }
        self.tell_xen(Command::Judge(self.config.policy.clone()));
        self.reweigh(now);
        self.want_warm(now);
        self.warn_of_missing_devices();
        // These would serve by the old settings for as long as the mediator runs; they are replaced.
        let after = self.terms_of(&waiting);
        let both = waiting.into_iter().zip(before.into_iter().zip(after));
        let differ = both.filter(|(_, (old, new))| old != new);
        let mut replaced: Vec<u64> = differ.map(|(id, _)| id).collect();
        replaced.extend(self.forget_denied_directories());
        self.ask_to_end(&replaced);
        let denied = self.sessions.values().filter(|session| {
            session.counts() && session.kill_at.is_none() && self.is_denied_now(&session.peer)
        });
        Ok(Reloaded {
            file: match &self.config.file {
                Some(file) => file.display().to_string(),
                None => String::new(),
            },
            changed,
            denied_sessions: denied.count(),
        })
    }

    /// The configuration for each of these workers.
    fn terms_of(&self, ids: &[u64]) -> Vec<Option<Terms>> {
        let limits = &self.config.limits;
        let terms = |id: &u64| {
            let session = self.sessions.get(id)?;
            Some(Terms {
                share: self.share(&session.peer),
                connect_timeout_s: limits.connect_timeout_s,
                hello_timeout_s: limits.hello_timeout_s,
                file_silence_s: limits.file_silence_s,
            })
        };
        ids.iter().map(terms).collect()
    }

    /// The sockets of this machine's programs: everybody may connect, or this process's user alone. Who may have a
    /// session is decided for each connection as well, so that an error here admits nobody.
    fn open_local_doors(&self) {
        for door in &self.locals {
            if let Err(error) = door.open_to(self.config.policy.allow_all) {
                log::warn!(
                    "{}: its permissions stay as they were: {error}",
                    door.path().display()
                );
            }
        }
    }

    /// Weights count at once, also of sessions that run: this process owns the turns.
    fn reweigh(&mut self, now: Instant) {
        let weights: Vec<(u64, u32)> = self
            .sessions
            .values()
            .map(|session| (session.id, self.share(&session.peer).weight.unwrap_or(1)))
            .collect();
        for (id, weight) in weights {
            if let Some(session) = self.sessions.get_mut(&id)
                && session.weight != weight
            {
                session.weight = weight;
                self.turns.reweigh(id, &session.peer.account(), weight, now);
            }
        }
    }

    /// Whether the rules would turn `who` away if it came now.
    fn is_denied_now(&self, peer: &Peer) -> bool {
        let policy = &self.config.policy;
        match peer {
            Peer::Xen(guest, _) => !policy.judge(guest).allow,
            Peer::Tcp {
                name: Some(name), ..
            } => !policy.judge_name(name).allow,
            Peer::Local { .. } | Peer::Unix { .. } => !peer.is_trusted() && !policy.allow_all,
            Peer::File(place) | Peer::FileSession(place, _) => self.is_denied(place),
            Peer::Tcp { name: None, .. } | Peer::Dom0 => false,
        }
    }
}

/// Reads the files of `config` again, in a thread.
fn start_reading(
    config: &Config,
    flags: &Flags,
) -> std::io::Result<(UnixStream, Receiver<Result<Config, Failure>>)> {
    let (wake, waker) = UnixStream::pair()?;
    let (sender, result) = channel();
    let (config, flags) = (config.clone(), flags.clone());
    thread::Builder::new()
        .name("reload".into())
        .spawn(move || {
            tell_reloading();
            // Nobody waits for it any more if that fails.
            let _ = sender.send(config.load_again(&flags));
            drop(waker);
        })?;
    Ok((wake, result))
}

/// With the time, by which systemd knows that the reload began after it was asked for.
fn tell_reloading() {
    match clock_gettime(ClockId::CLOCK_MONOTONIC) {
        Ok(now) => {
            let microseconds = Duration::from(now).as_micros();
            notify(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
        }
        Err(errno) => log::warn!("systemd is not told of the reload: no clock: {errno}"),
    }
}

fn log_reloaded(reloaded: &Reloaded) {
    let Reloaded {
        file,
        changed,
        denied_sessions,
    } = reloaded;
    match changed.is_empty() {
        true => log::info!("reloaded {file}: nothing has changed"),
        false => log::info!("reloaded {file}: changed: {}", changed.join(", ")),
    }
    if *denied_sessions > 0 {
        log::warn!(
            "sessions of guests that are denied now: {denied_sessions}; they go on until vgpuctl kick ends them"
        );
    }
}
