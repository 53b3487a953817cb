//! Usage of a session: counters in the worker, figures in the broker.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use vgpu_protocol::op::{Op, StatisticsReply};
use vgpu_protocol::session::server::{Counts, Durations};
use vgpu_protocol::session::tally::{Counted, OpResult, Tally};

/// Usage of a session, a guest or the whole mediator so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Bytes received from the guest, frame headers included.
    pub bytes_in: u64,
    /// Bytes sent to the guest, frame headers included.
    pub bytes_out: u64,
    /// Requests received.
    pub requests: u64,
    /// Requests that failed: answered with an error, or later where nothing answers them.
    pub failed_requests: u64,
    /// Kernels that were ended at their deadline.
    pub kernels_killed: u64,
    /// Time that the device worked, in nanoseconds, as the executor measured it.
    pub device_ns: u64,
}

impl Usage {
    /// Adds `other`; figures that overflow stay at the top.
    pub fn add(&mut self, other: &Usage) {
        self.bytes_in = self.bytes_in.saturating_add(other.bytes_in);
        self.bytes_out = self.bytes_out.saturating_add(other.bytes_out);
        self.requests = self.requests.saturating_add(other.requests);
        self.failed_requests = self.failed_requests.saturating_add(other.failed_requests);
        self.kernels_killed = self.kernels_killed.saturating_add(other.kernels_killed);
        self.device_ns = self.device_ns.saturating_add(other.device_ns);
    }
}

/// Current holdings and waiting work of a session or a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Standing {
    /// Bytes of device memory in use.
    pub memory: u64,
    /// Bytes of device memory that there are for it; 0 where the device is another mediator's.
    pub memory_limit: u64,
    /// Requests, and work of the device, that are not done.
    pub queue: u64,
}

impl Standing {
    /// Adds `other`; figures that overflow stay at the top.
    pub fn add(&mut self, other: &Standing) {
        self.memory = self.memory.saturating_add(other.memory);
        self.memory_limit = self.memory_limit.saturating_add(other.memory_limit);
        self.queue = self.queue.saturating_add(other.queue);
    }
}

/// Requests that are over, by operation and result.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Requests(
    /// By the operation's number on the wire; without those that were never asked for.
    pub BTreeMap<u16, Counted>,
);

impl Requests {
    /// Adds `other`; counts that overflow stay at the top, and numbers of no operation are left out.
    pub fn add(&mut self, other: &Self) {
        for (op, counts) in other.iter() {
            let all = self.0.entry(op.code()).or_default();
            for (all, more) in all.iter_mut().zip(counts) {
                *all = all.saturating_add(more);
            }
        }
    }

    /// The counts of each operation.
    pub fn iter(&self) -> impl Iterator<Item = (Op, Counted)> {
        let known = |(code, counts): (&u16, &Counted)| {
            let op = Op::from_code(*code)?;
            op.index().map(|_| (op, *counts))
        };
        self.0.iter().filter_map(known)
    }
}

/// Requests and answers of a session by kind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activity {
    /// Those that are over.
    pub requests: Requests,
    /// How long answers took.
    pub durations: Durations,
}

/// State that the executor of a session's requests can report at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Bytes of device memory in use.
    pub memory: u64,
    /// Bytes of device memory that there are for the session.
    pub memory_limit: u64,
    /// Works in the device's queue.
    pub queued: u64,
    /// Kernels that were ended at their deadline so far.
    pub kernels_killed: u64,
}

/// The part of a session's state that other threads may read while it runs.
#[derive(Debug, Default)]
pub struct Observed {
    /// Its usage.
    pub counters: Counters,
    /// The name that the guest's program gave itself, fit for a log; set once it is admitted.
    pub client: OnceLock<String>,
    connected: AtomicBool,
}

impl Observed {
    /// Notes that the guest's channel is up.
    pub fn set_connected(&self) {
        self.connected.store(true, Ordering::Relaxed);
    }

    /// Whether the guest's channel is up.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }
}

/// The counters behind a [`Usage`] and an [`Activity`]: the session's thread counts, another thread reads.
///
/// All accesses are relaxed: each figure stands for itself and none guards other data. Nobody else
/// writes, so that a sum is a load and a store.
#[derive(Debug, Default)]
pub struct Counters {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    requests: AtomicU64,
    failed_requests: AtomicU64,
    failed_later: AtomicU64,
    kernels_killed: AtomicU64,
    device_ns: AtomicU64,
    memory: AtomicU64,
    memory_limit: AtomicU64,
    queue: AtomicU64,
    device: AtomicU32,
    requests_over: Arc<Tally>,
    answers: [AtomicU64; Durations::LIMITS.len() + 1],
    answers_us: AtomicU64,
}

impl Counters {
    /// Counts bytes received.
    pub fn received(&self, bytes: usize) {
        add(&self.bytes_in, bytes as u64);
    }

    /// Counts bytes sent.
    pub fn sent(&self, bytes: usize) {
        add(&self.bytes_out, bytes as u64);
    }

    /// The counts of requests that are over, for who serves them.
    pub fn tally(&self) -> &Arc<Tally> {
        &self.requests_over
    }

    /// Counts a request whose work has failed after it had counted as one that went well.
    pub fn failed_later(&self, op: Op) {
        add(&self.failed_later, 1);
        self.requests_over.count(op, OpResult::FailedLater);
    }

    /// Notes how many requests were received and have failed, how many of them are not answered, and
    /// what their backend says.
    pub fn asked(&self, counts: Counts, under_way: usize, load: Load) {
        let set = |counter: &AtomicU64, value| counter.store(value, Ordering::Relaxed);
        set(&self.requests, counts.requests);
        set(&self.failed_requests, counts.failed);
        for (counter, value) in self.answers.iter().zip(counts.durations.within) {
            set(counter, value);
        }
        set(&self.answers_us, counts.durations.sum_us);
        set(&self.kernels_killed, load.kernels_killed);
        set(&self.memory, load.memory);
        set(&self.memory_limit, load.memory_limit);
        set(&self.queue, load.queued.saturating_add(under_way as u64));
    }

    /// Counts the device's time.
    pub fn worked(&self, device_ns: u64) {
        add(&self.device_ns, device_ns);
    }

    /// Notes which of its devices the session uses, by the session's own number.
    pub fn set_device(&self, device: u32) {
        self.device.store(device, Ordering::Relaxed);
    }

    /// The device that the session uses.
    pub fn device(&self) -> u32 {
        self.device.load(Ordering::Relaxed)
    }

    /// The figures now.
    pub fn usage(&self) -> Usage {
        let failed = self.failed_requests.load(Ordering::Relaxed);
        let later = self.failed_later.load(Ordering::Relaxed);
        Usage {
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            failed_requests: failed.saturating_add(later),
            kernels_killed: self.kernels_killed.load(Ordering::Relaxed),
            device_ns: self.device_ns.load(Ordering::Relaxed),
        }
    }

    /// Requests and answers by kind, now.
    pub fn activity(&self) -> Activity {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let requests = self.requests_over.iter();
        let requests = requests.filter(|(_, counts)| counts.iter().any(|count| *count > 0));
        Activity {
            requests: Requests(requests.map(|(op, counts)| (op.code(), counts)).collect()),
            durations: Durations {
                within: std::array::from_fn(|at| load(&self.answers[at])),
                sum_us: load(&self.answers_us),
            },
        }
    }

    /// All figures of its usage, for the guest.
    pub(crate) fn statistics(&self) -> StatisticsReply {
        let (usage, standing) = (self.usage(), self.standing());
        StatisticsReply {
            requests: usage.requests,
            failed: usage.failed_requests,
            kernels_killed: usage.kernels_killed,
            bytes_in: usage.bytes_in,
            bytes_out: usage.bytes_out,
            device_ns: usage.device_ns,
            memory: standing.memory,
            memory_limit: standing.memory_limit,
            queue: standing.queue,
        }
    }

    /// The session's current holdings.
    pub fn standing(&self) -> Standing {
        Standing {
            memory: self.memory.load(Ordering::Relaxed),
            memory_limit: self.memory_limit.load(Ordering::Relaxed),
            queue: self.queue.load(Ordering::Relaxed),
        }
    }
}

fn add(counter: &AtomicU64, more: u64) {
    let sum = counter.load(Ordering::Relaxed).wrapping_add(more);
    counter.store(sum, Ordering::Relaxed);
}
