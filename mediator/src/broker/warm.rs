//! Workers that are there before their sessions: confined, with their executor open, and waiting (`worker.warm_workers`).
//!
//! There is a pool for each set of devices that the process of a session over a socket may be given; what a worker
//! depends on besides comes with its session. One is started at a time, with a rest as long as the start took, so that a
//! storm of connections has at most half a processor of this. One that ends before its session is replaced after a pause
//! that doubles. A session that finds none is served by a worker that is started for it, as without this.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use vchan::local::Stranger;
use vgpu_transport::endpoint::Endpoint;

use super::Broker;
use super::accounts::Force;
use super::process::Process;
use super::session::{Handed, Session};
use super::who::Who;
use crate::config::MOST_WARM;
use crate::control;
use crate::devices::{Device, Devices};
use crate::executor::ExecutorChoice;
use crate::logging;
use crate::rate::{LogLimit, TokenBucket};
use crate::worker::link::{Ended, Report, Waiting};
use crate::worker::spec::{Carrier, Spec, Start, Warm};

/// Pools at most: of this machine's programs, and of clients over TCP, of whom it is not known yet who they are.
pub(super) const POOLS: usize = 2;

/// Workers that were ended and are still there, at most, where descriptors are counted.
pub(super) const MOST_ENDING: usize = POOLS * MOST_WARM as usize;

/// How long a worker may take to get ready: as long as a probe.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Shortest and longest rest after a start.
const REST: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));

/// First and longest pause after a worker that ended before its session.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// A pool without a failure for this long after the last pause is as good as new. Longer than [`START_LIMIT`].
const LASTED: Duration = Duration::from_secs(120);

/// Workers that clients over TCP may have before they have shown their secret: so many at once, and how soon there is
/// another then. Each has a context on a GPU, which a stranger shall not cost.
const FOR_STRANGERS: (u32, Duration) = (4, Duration::from_secs(10));

/// What a worker has to be started with to serve a session.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Set {
    executor: ExecutorChoice,
    /// As in [`Spec::gpus`].
    gpus: Option<Vec<Device>>,
    /// As in `Share::devices`.
    devices: Option<Devices>,
}

impl Set {
    fn of(spec: &Spec) -> Self {
        Self {
            executor: spec.executor.clone(),
            gpus: spec.gpus.clone(),
            devices: spec.share.devices,
        }
    }
}

/// The workers that wait, or get ready for it.
#[derive(Debug)]
pub(super) struct WarmWorkers {
    /// How many each pool is to have.
    wanted: u32,
    pools: Vec<Pool>,
    /// They were ended, or have ended, and are not collected yet.
    ending: Vec<Process>,
    /// Numbers them all, for `ps` and the poll set.
    next: u64,
    /// No worker is started before: the last one was started just now.
    not_before: Instant,
    log: LogLimit,
    strangers: TokenBucket,
    /// Sessions that were given one since the start, and those for which none was there.
    pub(super) served: [u64; 2],
}

#[derive(Debug)]
struct Pool {
    set: Set,
    workers: Vec<Worker>,
    /// The next one is not started before: the last one has failed.
    not_before: Instant,
    pause: Duration,
}

#[derive(Debug)]
struct Worker {
    id: u64,
    process: Process,
    state: State,
    /// What it says of its end.
    ended: Option<String>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Starting {
        since: Instant,
    },
    Ready,
    /// It is of no use, and its end is awaited: until then it has its place, so that no more than these hang.
    Failed,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Starting { .. } => "starting",
            Self::Ready => "ready",
            Self::Failed => "ending",
        }
    }
}

impl Worker {
    fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready)
    }

    fn started(&self) -> Option<Instant> {
        match self.state {
            State::Starting { since } => Some(since),
            State::Ready | State::Failed => None,
        }
    }

    /// Takes what it says. Nothing of a guest has reached it; what it says is held to the same rules nevertheless.
    fn listen(&mut self) {
        let received = match self.process.read() {
            Ok(received) => received,
            Err(error) => return self.distrust(&error.to_string()),
        };
        for line in received.lines {
            match serde_json::from_str::<Report>(&line) {
                Ok(Report {
                    waiting: Some(Waiting::Ready),
                    ..
                }) => self.state = State::Ready,
                Ok(Report {
                    ended: Some(Ended { text, .. }),
                    ..
                }) => return self.fail(text.replace(char::is_control, " ")),
                Ok(_) => {}
                Err(error) => return self.distrust(&error.to_string()),
            }
        }
        if received.closed {
            self.fail("it was killed".to_owned());
        }
    }

    fn distrust(&mut self, why: &str) {
        self.fail(format!("it misbehaves: {why}"));
    }

    /// Ends it. It is collected when its signal comes.
    fn fail(&mut self, why: String) {
        self.ended.get_or_insert(why);
        self.state = State::Failed;
        self.process.silent = true;
        self.process.end();
    }
}

impl WarmWorkers {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            wanted: 0,
            pools: Vec::new(),
            ending: Vec::new(),
            next: 1,
            not_before: now,
            log: LogLimit::new(now),
            strangers: TokenBucket::new(FOR_STRANGERS.0, FOR_STRANGERS.1, now),
            served: [0; 2],
        }
    }

    /// Has `wanted` workers wait for each of these sets from now on, and no others.
    fn want(&mut self, wanted: u32, sets: Vec<Set>, now: Instant) {
        self.wanted = wanted;
        let mut before = std::mem::take(&mut self.pools);
        for set in sets {
            let same = before.iter().position(|pool| pool.set == set);
            self.pools.push(match same {
                Some(index) => before.swap_remove(index),
                None => Pool {
                    set,
                    workers: Vec::new(),
                    not_before: now,
                    pause: PAUSE.0,
                },
            });
        }
        let most = wanted as usize;
        let of_kept = self.pools.iter_mut().flat_map(|pool| {
            // Those that are furthest are kept.
            pool.workers.sort_by_key(|worker| !worker.is_ready());
            let kept = most.min(pool.workers.len());
            pool.workers.drain(kept..)
        });
        let of_others = before.into_iter().flat_map(|pool| pool.workers);
        for mut worker in of_others.chain(of_kept) {
            worker.process.end();
            self.ending.push(worker.process);
        }
    }

    /// A worker for a session that needs this, if one is ready.
    fn take(&mut self, set: &Set) -> Option<Process> {
        let pool = self.pools.iter_mut().find(|pool| pool.set == *set)?;
        let index = pool.workers.iter().position(Worker::is_ready)?;
        Some(pool.workers.remove(index).process)
    }

    /// A worker of this pool has ended before its session.
    fn failed(&mut self, set: &Set, why: &str, now: Instant) {
        let Some(pool) = self.pools.iter_mut().find(|pool| pool.set == *set) else {
            return;
        };
        if pool.not_before + LASTED <= now {
            pool.pause = PAUSE.0;
        }
        pool.not_before = now + pool.pause;
        let seconds = pool.pause.as_secs();
        pool.pause = (pool.pause * 2).min(PAUSE.1);
        log::warn!(
            "a warm worker ended before it had a session: {why}; another is started in {seconds} s"
        );
    }

    /// Where one is missing that may be started, and when.
    fn due(&self) -> Option<(usize, Instant)> {
        let is_starting = |worker: &Worker| worker.started().is_some();
        if self
            .pools
            .iter()
            .any(|it| it.workers.iter().any(is_starting))
        {
            return None;
        }
        let lacking = |pool: &&Pool| pool.workers.len() < self.wanted as usize;
        let mut pools: Vec<(usize, &Pool)> = self.pools.iter().enumerate().collect();
        // Two pools by turns.
        pools.sort_by_key(|(_, pool)| pool.workers.len());
        let lacking = pools.into_iter().filter(|(_, pool)| lacking(pool));
        let due = lacking.map(|(index, pool)| (index, pool.not_before.max(self.not_before)));
        due.min_by_key(|(_, at)| *at)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let workers = self.pools.iter().flat_map(|pool| &pool.workers);
        let late = workers.filter_map(|worker| Some(worker.started()? + START_LIMIT));
        late.chain(self.due().map(|(_, at)| at)).min()
    }

    fn find(&mut self, id: u64) -> Option<&mut Worker> {
        let workers = self.pools.iter_mut().flat_map(|pool| &mut pool.workers);
        workers.into_iter().find(|worker| worker.id == id)
    }

    /// The links of those that may say something, and their logs.
    pub(super) fn links(&self) -> impl Iterator<Item = (u64, &Process)> {
        let workers = self.pools.iter().flat_map(|pool| &pool.workers);
        let speaking = workers.filter(|worker| !worker.process.silent);
        speaking.map(|worker| (worker.id, &worker.process))
    }

    pub(super) fn logs(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>)> {
        let workers = self.pools.iter().flat_map(|pool| &pool.workers);
        workers.filter_map(|worker| Some((worker.id, worker.process.log()?)))
    }

    /// Hears what one says.
    pub(super) fn on_link(&mut self, id: u64, now: Instant) {
        let Some(worker) = self.find(id) else {
            return;
        };
        let since = worker.started();
        worker.listen();
        if let Some(since) = since
            && worker.started().is_none()
        {
            self.rest(now.duration_since(since), now);
        }
    }

    /// After a start that took so long.
    fn rest(&mut self, took: Duration, now: Instant) {
        self.not_before = now + took.clamp(REST.0, REST.1);
    }

    /// Logs what one has logged, as much as one guest could.
    pub(super) fn on_log(&mut self, id: u64, now: Instant) {
        let lines = self.find(id).map(|worker| worker.process.logged());
        self.log_lines(id, lines.unwrap_or_default(), now);
    }

    fn log_lines(&mut self, id: u64, lines: Vec<String>, now: Instant) {
        for line in lines {
            let (level, target, text) = logging::parse_worker_line(&line);
            if let Some(suppressed) = self.log.admit(now) {
                if suppressed > 0 {
                    log::warn!("warm workers: {suppressed} lines suppressed");
                }
                log::log!(target: target, level, "warm worker {id}: {text}");
            }
        }
    }

    /// Collects those that have ended.
    pub(super) fn reap(&mut self, now: Instant) {
        self.ending
            .retain_mut(|process| process.try_wait().is_none());
        let mut failed = Vec::new();
        for pool in &mut self.pools {
            let has_ended = |worker: &mut Worker| worker.process.try_wait().is_some();
            for mut worker in pool.workers.extract_if(.., has_ended) {
                // Its last words.
                if !worker.process.silent {
                    worker.listen();
                }
                failed.push((pool.set.clone(), worker));
            }
        }
        for (set, mut worker) in failed {
            self.log_lines(worker.id, worker.process.logged(), now);
            let why = worker.ended.as_deref().unwrap_or("it was killed");
            self.failed(&set, why, now);
        }
    }

    /// Ends what has been getting ready for too long.
    fn expire(&mut self, now: Instant) {
        let workers = self.pools.iter_mut().flat_map(|pool| &mut pool.workers);
        let late = |since: Instant| since + START_LIMIT <= now;
        for worker in workers.filter(|worker| worker.started().is_some_and(late)) {
            let seconds = START_LIMIT.as_secs();
            worker.fail(format!("it was not ready within {seconds} s"));
        }
    }

    /// Takes in one that is to end, or has.
    pub(super) fn end(&mut self, mut process: Process) {
        process.end();
        self.ending.push(process);
    }

    /// A client over TCP that was given one has shown its secret.
    pub(super) fn no_stranger(&mut self) {
        self.strangers.put_back();
    }

    /// Ends them all, and starts no other.
    pub(super) fn stop(&mut self, now: Instant) {
        self.want(0, Vec::new(), now);
    }

    /// How many have been ended and are still there.
    pub(super) fn ending(&self) -> usize {
        self.ending.len()
    }

    /// Whether none is there any more.
    pub(super) fn is_empty(&self) -> bool {
        self.ending.is_empty() && self.pools.iter().all(|pool| pool.workers.is_empty())
    }

    /// The users that they are.
    pub(super) fn users(&self) -> impl Iterator<Item = u32> {
        let workers = self.pools.iter().flat_map(|pool| &pool.workers);
        let processes = workers.map(|worker| &worker.process).chain(&self.ending);
        processes.filter_map(|process| process.user)
    }

    /// For `vgpuctl`.
    pub(super) fn status(&self, listen: &[Endpoint]) -> Option<control::Warm> {
        if self.wanted == 0 {
            return None;
        }
        let workers = self.pools.iter().flat_map(|pool| {
            let devices = pool.set.devices;
            pool.workers.iter().map(move |worker| control::WarmWorker {
                pid: worker.process.pid(),
                state: worker.state.name().to_owned(),
                devices: devices.map(|devices| {
                    let names = devices.keys().iter();
                    names.map(ToString::to_string).collect()
                }),
            })
        });
        Some(control::Warm {
            wanted: self.wanted as usize * self.pools.len(),
            workers: workers.collect(),
            sessions: self.served[0],
            cold_sessions: self.served[1],
            cold_endpoints: cold_endpoints(listen),
        })
    }
}

impl Broker<'_> {
    /// Finds out for which sets of devices workers are to wait.
    pub(super) fn want_warm(&mut self, now: Instant) {
        let wanted = self.config.worker.warm_workers;
        let mut sets: Vec<Set> = Vec::new();
        if wanted > 0 && self.stopping.is_none() {
            for who in self.of_sockets() {
                let set = Set::of(&self.spec(0, &who, Carrier::Local, None));
                let there = &self.offer.executor.devices;
                // Sessions that are to have a device which is not there are refused.
                let is_there = set.devices.is_none_or(|it| it.find_in(there).is_ok());
                if is_there && !sets.contains(&set) {
                    sets.push(set);
                }
            }
        }
        if wanted > 0 && self.stopping.is_none() && self.of_sockets().is_empty() {
            let cold = cold_endpoints(&self.config.listen).join(", ");
            log::warn!("worker.warm_workers counts for nothing here: not for sessions over {cold}");
        }
        self.warm.want(wanted, sets, now);
    }

    /// One of each kind of those who come over sockets, as their workers are started.
    fn of_sockets(&self) -> Vec<Who> {
        let mut all = Vec::new();
        if !self.locals.is_empty() {
            all.push(Who::Local { uid: 0, pid: 0 });
        }
        if !self.tcps.is_empty() {
            all.push(Who::Tcp {
                name: None,
                address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            });
        }
        all
    }

    /// Starts a worker that is missing, if it is time.
    pub(super) fn keep_warm(&mut self, now: Instant) {
        self.warm.expire(now);
        let Some((index, _)) = self.warm.due().filter(|(_, at)| *at <= now) else {
            return;
        };
        let set = self.warm.pools[index].set.clone();
        let id = self.warm.next;
        self.warm.next += 1;
        let start = Start::Warm(Box::new(Warm {
            broker_pid: std::process::id().cast_signed(),
            confinement: self.confinement(),
            executor: set.executor.clone(),
            gpus: set.gpus.clone(),
            devices: set.devices,
            verbose: self.flags.verbose,
        }));
        match Process::start(&format!("warm-{id}"), &start, None) {
            Ok(process) => self.warm.pools[index].workers.push(Worker {
                id,
                process,
                state: State::Starting { since: now },
                ended: None,
            }),
            Err(error) => {
                let why = format!("it cannot be started: {error}");
                self.warm.failed(&set, &why, now);
            }
        }
    }

    /// Gives the session `id` to a worker that waits; if there is none, or it cannot be told, the connection comes back.
    pub(super) fn hand(
        &mut self,
        id: u64,
        who: &Who,
        spec: &Spec,
        guest: Option<Stranger<OwnedFd>>,
        now: Instant,
    ) -> Result<Session, Option<Stranger<OwnedFd>>> {
        let fits = self.warm.wanted > 0 && spec.refusal.is_none() && spec.carrier.is_socket();
        let guest = match guest {
            Some(guest) if fits => guest,
            other => return Err(other),
        };
        let set = Set::of(spec);
        let is_stranger = spec.carrier == Carrier::Tcp;
        let may_have = !is_stranger || self.warm.strangers.next(now) <= now;
        let process = may_have.then(|| self.warm.take(&set)).flatten();
        let Some(process) = process else {
            self.warm.served[1] += 1;
            return Err(Some(guest));
        };
        if is_stranger {
            self.warm.strangers.owe(now);
        }
        match Session::hand(id, who.clone(), spec.clone(), guest, process, now) {
            Ok(session) => {
                self.warm.served[0] += 1;
                Ok(session)
            }
            Err(refused) => {
                let (process, why, guest) = *refused;
                self.warm.failed(&set, &why, now);
                self.warm.end(process);
                self.warm.served[1] += 1;
                Err(Some(guest))
            }
        }
    }

    /// Has the session `id` served by a new worker, if the one that has waited does not take it. `is_over`: that one has
    /// ended. Returns whether there is a new one.
    pub(super) fn start_instead(&mut self, id: u64, is_over: bool, now: Instant) -> bool {
        let not_taken = |session: &Session| session.not_taken(is_over, now);
        let Some(why) = self.sessions.get(&id).and_then(not_taken) else {
            return false;
        };
        let user = self.free_user();
        let stopping = self.stopping.is_some();
        let Some(session) = self.sessions.get_mut(&id) else {
            return false;
        };
        let Some(Handed {
            guest, mut spec, ..
        }) = session.take_back()
        else {
            return false;
        };
        self.warm.served[0] -= 1;
        self.warm.served[1] += 1;
        let set = Set::of(&spec);
        if stopping || session.force.is_some() {
            session.kill(Force::Hung);
            return false;
        }
        spec.confinement.user = user;
        let started = session.start_again(&spec, guest);
        let (who, pid) = (session.who.clone(), session.pid());
        let line = match started {
            Ok(before) => {
                self.warm.end(before);
                format!("session {id}: {why}; another worker is started for it ({pid})")
            }
            Err(error) => {
                session.kill(Force::Hung);
                format!("session {id}: {why}; no other worker can be started: {error}")
            }
        };
        self.accounts.log(&who, log::Level::Warn, &line, now);
        self.warm.failed(&set, &why, now);
        true
    }
}

/// Endpoints whose sessions are served by workers that are started for them: see [`Carrier::is_socket`].
pub fn cold_endpoints(listen: &[Endpoint]) -> Vec<String> {
    let is_cold = |endpoint: &&Endpoint| {
        !matches!(
            endpoint,
            Endpoint::Local(_) | Endpoint::Unix(_) | Endpoint::Tcp { .. }
        )
    };
    listen
        .iter()
        .filter(is_cold)
        .map(Endpoint::to_string)
        .collect()
}
