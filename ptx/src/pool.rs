//! The threads of a device, and their scheduling.
//!
//! A job offers seats: at most that many threads may work on it at once. Each thread takes at most
//! one seat of every job and goes round its seats, one step at a time, so that no job keeps another
//! from going on. Threads start when there is work for them, up to a limit, wait when there is
//! none, and end with the device.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Sleep of a thread whose seats all wait for other threads.
const NAP: Duration = Duration::from_millis(1);
/// With more seats than this a thread checks between steps for seats whose time is up: a round
/// takes long then.
const FEW: usize = 8;
/// The interval of those checks.
const CHECK_INTERVAL: Duration = Duration::from_millis(1);

/// The outcome of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// There is more to do.
    More,
    /// There will be more, but other threads must do something first.
    Idle,
    /// The seat is no longer needed.
    Left,
}

/// Work for one or several threads.
pub(crate) trait Job: Send + Sync {
    /// Threads that can take part.
    fn seats(&self) -> u32;
    /// A seat, unless all are taken or no more are needed.
    fn sit(self: Arc<Self>) -> Option<Box<dyn Seat>>;
    /// Whether [`Self::sit`] may still give a seat.
    fn has_seats(&self) -> bool;
}

/// One thread's part of a job.
pub(crate) trait Seat {
    /// Works for at most some hundred microseconds.
    fn step(&mut self) -> Step;
    /// Whether its next step would be its last, because it was ended or its time is up. Must be
    /// quick.
    fn is_over(&self, now: Instant) -> bool;
}

/// Brings the first seat whose time is up to the front.
fn prefer_over(seats: &mut VecDeque<Box<dyn Seat>>, looked: &mut Instant) {
    let now = Instant::now();
    if now.saturating_duration_since(*looked) < CHECK_INTERVAL {
        return;
    }
    match seats.iter().position(|s| s.is_over(now)) {
        Some(at) => {
            if let Some(seat) = seats.remove(at) {
                seats.push_front(seat);
            }
        }
        // There may be more than this one: the next step checks again.
        None => *looked = now,
    }
}

/// Threads for jobs.
pub(crate) struct Pool {
    limit: u32,
    state: Mutex<State>,
    wake: Condvar,
    /// The serial number of the newest job, which threads check between steps. Written under the
    /// lock of the state, read by the threads' acquire loads, which then take the lock.
    newest: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Jobs with seats to take, each with its serial number.
    jobs: VecDeque<(u64, Arc<dyn Job>)>,
    /// Threads that wait for work, and the number of these that have been woken and are not yet
    /// running.
    waiting: usize,
    called: usize,
    threads: Vec<JoinHandle<()>>,
    ended: bool,
}

impl State {
    /// Removes the jobs that have no more seats from the list.
    fn without_seats(&mut self) -> Vec<(u64, Arc<dyn Job>)> {
        if self.jobs.iter().all(|(_, job)| job.has_seats()) {
            return Vec::new();
        }
        let jobs = std::mem::take(&mut self.jobs).into_iter();
        let (kept, gone): (Vec<_>, Vec<_>) = jobs.partition(|(_, job)| job.has_seats());
        self.jobs = kept.into();
        gone
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} threads at most)", self.limit)
    }
}

impl Pool {
    /// A pool of at most `limit` threads; none starts yet.
    pub(crate) fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self {
            limit: limit.max(1),
            state: Mutex::default(),
            wake: Condvar::new(),
            newest: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ensures that there is at least one thread. False: the system cannot create any.
    pub(crate) fn is_alive(self: &Arc<Self>) -> bool {
        let mut s = self.lock();
        if s.threads.is_empty() && !s.ended {
            self.start(&mut s);
        }
        !s.threads.is_empty()
    }

    fn start(self: &Arc<Self>, s: &mut State) {
        let pool = Arc::clone(self);
        let thread = std::thread::Builder::new().name("vgpu-ptx".into());
        // With fewer threads than wanted the work takes longer.
        if let Ok(t) = thread.spawn(move || pool.work()) {
            s.threads.push(t);
        }
    }

    /// Hands a job to the threads. `inside`: the caller is one of them, and takes a seat itself.
    pub(crate) fn push(self: &Arc<Self>, job: Arc<dyn Job>, inside: bool) {
        let mut s = self.lock();
        if s.ended {
            // The latecomer does the rest itself: work of an ended device ends at once.
            drop(s);
            while let Some(mut seat) = Arc::clone(&job).sit() {
                while seat.step() != Step::Left {}
            }
            return;
        }
        let wanted = (job.seats() as usize).saturating_sub(usize::from(inside));
        let serial = self.newest.load(Ordering::Relaxed) + 1;
        s.jobs.push_back((serial, job));
        // Pairs with the acquire load in `work`.
        self.newest.store(serial, Ordering::Release);
        let asleep = s.waiting.saturating_sub(s.called);
        let sleepers = wanted.min(asleep);
        s.called += sleepers;
        let missing = wanted - sleepers;
        for _ in 0..missing.min((self.limit as usize).saturating_sub(s.threads.len())) {
            self.start(&mut s);
        }
        drop(s);
        for _ in 0..sleepers {
            self.wake.notify_one();
        }
    }

    /// Lets the threads finish their work and end; waits for them, unless the caller is one of
    /// them.
    pub(crate) fn end(&self) {
        let threads = {
            let mut s = self.lock();
            s.ended = true;
            std::mem::take(&mut s.threads)
        };
        self.wake.notify_all();
        let me = std::thread::current().id();
        for t in threads.into_iter().filter(|t| t.thread().id() != me) {
            // A panic of a job was reported where it happened.
            let _ = t.join();
        }
    }

    fn work(&self) {
        let mut seats: VecDeque<Box<dyn Seat>> = VecDeque::new();
        let mut seen = 0;
        // Consecutive seats that could do nothing.
        let mut idle = 0;
        let mut looked = Instant::now();
        loop {
            // Pairs with the release store in `push`.
            if seats.is_empty()
                || idle >= seats.len()
                || self.newest.load(Ordering::Acquire) != seen
            {
                let mut s = self.lock();
                if idle > 0 && idle >= seats.len() && self.newest.load(Ordering::Relaxed) == seen {
                    (s, _) = self
                        .wake
                        .wait_timeout(s, NAP)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                idle = 0;
                // Freed after the lock is released: some jobs hold much memory.
                let mut gone;
                loop {
                    for (serial, job) in &s.jobs {
                        if *serial > seen
                            && let Some(seat) = Arc::clone(job).sit()
                        {
                            seats.push_back(seat);
                        }
                    }
                    seen = self.newest.load(Ordering::Relaxed);
                    gone = s.without_seats();
                    if !seats.is_empty() {
                        drop(s);
                        break;
                    }
                    if s.ended {
                        return;
                    }
                    if !gone.is_empty() {
                        drop(s);
                        gone.clear();
                        s = self.lock();
                        continue;
                    }
                    s.waiting += 1;
                    s = self.wake.wait(s).unwrap_or_else(PoisonError::into_inner);
                    s.waiting -= 1;
                    s.called = s.called.saturating_sub(1);
                }
            }
            if seats.len() > FEW {
                prefer_over(&mut seats, &mut looked);
            }
            let Some(mut seat) = seats.pop_front() else {
                continue;
            };
            match seat.step() {
                Step::More => {
                    idle = 0;
                    seats.push_back(seat);
                }
                Step::Idle => {
                    idle += 1;
                    seats.push_back(seat);
                }
                Step::Left => {
                    idle = 0;
                    // The seat's memory is freed after its job was answered.
                    drop(seat);
                    let gone = self.lock().without_seats();
                    drop(gone);
                }
            }
        }
    }
}
