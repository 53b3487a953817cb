//! The pools: which workers there are to be, when the next one is started, and what becomes of one that fails.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use vgpu_transport::endpoint::Endpoint;

use super::cold_endpoints;
use super::worker::{State, Worker};
use crate::broker::process::Process;
use crate::config::MOST_WARM;
use crate::control;
use crate::devices::{Device, Devices};
use crate::executor::ExecutorChoice;
use crate::logging;
use crate::rate::{LogLimit, TokenBucket};
use crate::worker::spec::Spec;

/// Pools at most: of this machine's programs, and of clients over TCP, of whom it is not known yet who they are.
pub(in crate::broker) const POOLS: usize = 2;

/// Workers that were ended and are still there, at most, where descriptors are counted.
pub(in crate::broker) const MOST_ENDING: usize = POOLS * MOST_WARM as usize;

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

/// Arguments that a worker must have been started with to serve a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) executor: ExecutorChoice,
    /// As in [`Spec::gpus`].
    pub(super) gpus: Option<Vec<Device>>,
    /// As in `Share::devices`.
    pub(super) devices: Option<Devices>,
}

impl Set {
    pub(super) fn of(spec: &Spec) -> Self {
        Self {
            executor: spec.executor.clone(),
            gpus: spec.gpus.clone(),
            devices: spec.share.devices,
        }
    }
}

/// The workers that wait, or get ready for it.
#[derive(Debug)]
pub(in crate::broker) struct WarmWorkers {
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
    served: [u64; 2],
}

#[derive(Debug)]
struct Pool {
    set: Set,
    workers: Vec<Worker>,
    /// The next one is not started before: the last one has failed.
    not_before: Instant,
    pause: Duration,
}

impl WarmWorkers {
    pub(in crate::broker) fn new(now: Instant) -> Self {
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
    pub(super) fn want(&mut self, wanted: u32, sets: Vec<Set>, now: Instant) {
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

    /// Whether any are to be there.
    pub(super) fn are_wanted(&self) -> bool {
        self.wanted > 0
    }

    /// A worker for a session that needs this, of a client that may be a stranger, if one is ready.
    pub(super) fn take(&mut self, set: &Set, stranger: bool, now: Instant) -> Option<Process> {
        let may_have = !stranger || self.strangers.next(now) <= now;
        let process = may_have.then(|| self.find_ready(set)).flatten();
        self.served[usize::from(process.is_none())] += 1;
        if stranger && process.is_some() {
            self.strangers.owe(now);
        }
        process
    }

    fn find_ready(&mut self, set: &Set) -> Option<Process> {
        let pool = self.pools.iter_mut().find(|pool| pool.set == *set)?;
        let index = pool.workers.iter().position(Worker::is_ready)?;
        Some(pool.workers.remove(index).process)
    }

    /// One that was taken does not serve its session, which is served by another.
    pub(super) fn not_taken(&mut self, set: &Set, mut process: Process, why: &str, now: Instant) {
        self.served[0] = self.served[0].saturating_sub(1);
        self.served[1] += 1;
        self.failed(set, why, now);
        process.end();
        self.ending.push(process);
    }

    /// The number and the set of the worker that is to be started now, if one is.
    pub(super) fn next(&mut self, now: Instant) -> Option<(u64, Set)> {
        let (index, _) = self.due().filter(|(_, at)| *at <= now)?;
        let id = self.next;
        self.next += 1;
        Some((id, self.pools[index].set.clone()))
    }

    /// It starts.
    pub(super) fn starts(&mut self, id: u64, set: &Set, process: Process, now: Instant) {
        let state = State::Starting { since: now };
        if let Some(pool) = self.pools.iter_mut().find(|pool| pool.set == *set) {
            pool.workers.push(Worker {
                id,
                process,
                state,
                ended: None,
            });
        }
    }

    /// A worker of this pool has ended before its session.
    pub(super) fn failed(&mut self, set: &Set, why: &str, now: Instant) {
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

    pub(in crate::broker) fn deadline(&self) -> Option<Instant> {
        let workers = self.pools.iter().flat_map(|pool| &pool.workers);
        let late = workers.filter_map(|worker| Some(worker.started()? + START_LIMIT));
        late.chain(self.due().map(|(_, at)| at)).min()
    }

    fn find(&mut self, id: u64) -> Option<&mut Worker> {
        let workers = self.pools.iter_mut().flat_map(|pool| &mut pool.workers);
        workers.into_iter().find(|worker| worker.id == id)
    }

    /// The links of those that may say something, and their logs.
    pub(in crate::broker) fn links(&self) -> impl Iterator<Item = (u64, &Process)> {
        let workers = self.pools.iter().flat_map(|pool| &pool.workers);
        let speaking = workers.filter(|worker| !worker.process.silent);
        speaking.map(|worker| (worker.id, &worker.process))
    }

    pub(in crate::broker) fn logs(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>)> {
        let workers = self.pools.iter().flat_map(|pool| &pool.workers);
        workers.filter_map(|worker| Some((worker.id, worker.process.log()?)))
    }

    /// Hears what one says.
    pub(in crate::broker) fn on_link(&mut self, id: u64, now: Instant) {
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
    pub(in crate::broker) fn on_log(&mut self, id: u64, now: Instant) {
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
    pub(in crate::broker) fn reap(&mut self, now: Instant) {
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
    pub(super) fn expire(&mut self, now: Instant) {
        let workers = self.pools.iter_mut().flat_map(|pool| &mut pool.workers);
        let late = |since: Instant| since + START_LIMIT <= now;
        for worker in workers.filter(|worker| worker.started().is_some_and(late)) {
            let seconds = START_LIMIT.as_secs();
            worker.fail(format!("it was not ready within {seconds} s"));
        }
    }

    /// A client over TCP that was given one has shown its secret.
    pub(in crate::broker) fn no_stranger(&mut self) {
        self.strangers.put_back();
    }

    /// Ends them all, and starts no other.
    pub(in crate::broker) fn stop(&mut self, now: Instant) {
        self.want(0, Vec::new(), now);
    }

    /// How many have been ended and are still there.
    pub(in crate::broker) fn ending(&self) -> usize {
        self.ending.len()
    }

    /// Whether none is there any more.
    pub(in crate::broker) fn is_empty(&self) -> bool {
        self.ending.is_empty() && self.pools.iter().all(|pool| pool.workers.is_empty())
    }

    /// The users that they are.
    pub(in crate::broker) fn users(&self) -> impl Iterator<Item = u32> {
        let workers = self.pools.iter().flat_map(|pool| &pool.workers);
        let processes = workers.map(|worker| &worker.process).chain(&self.ending);
        processes.filter_map(|process| process.user)
    }

    /// For `vgpuctl`.
    pub(in crate::broker) fn status(&self, listen: &[Endpoint]) -> Option<control::Warm> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::DeviceKey;

    fn set(gpu: u32) -> Set {
        Set {
            executor: ExecutorChoice::Cuda,
            gpus: None,
            devices: Some(vec![DeviceKey::Index(gpu)].try_into().unwrap()),
        }
    }

    #[test]
    fn pauses_double_up_to_five_minutes_and_are_short_again_after_a_good_while() {
        let mut now = Instant::now();
        let mut warm = WarmWorkers::new(now);
        warm.want(1, vec![set(0)], now);
        assert_eq!(warm.due(), Some((0, now)));
        let mut pauses = Vec::new();
        for _ in 0..11 {
            warm.failed(&set(0), "a test", now);
            let (_, due) = warm.due().unwrap();
            pauses.push((due - now).as_secs());
            // It is started, and takes as long as it may.
            now = due + START_LIMIT;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        now += LASTED;
        warm.failed(&set(0), "a test", now);
        assert_eq!(warm.deadline(), Some(now + PAUSE.0));
    }

    #[test]
    fn a_pool_that_fails_holds_up_no_other_and_its_pause_outlives_a_reload() {
        let now = Instant::now();
        let mut warm = WarmWorkers::new(now);
        warm.want(1, vec![set(0), set(1)], now);
        warm.failed(&set(0), "a test", now);
        assert_eq!(warm.due(), Some((1, now)));
        warm.want(2, vec![set(2), set(0)], now);
        assert_eq!(warm.due(), Some((0, now)));
        warm.failed(&set(2), "a test", now);
        assert_eq!(warm.deadline(), Some(now + PAUSE.0));
        // One of a set that nobody wants any more.
        warm.failed(&set(1), "a test", now);
        warm.want(0, Vec::new(), now);
        assert_eq!((warm.due(), warm.deadline()), (None, None));
        assert!(warm.is_empty() && warm.status(&[]).is_none());
    }
}
