//! Answering `status`: workers are asked for figures of now, and not waited for long.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Broker;
use super::metrics::{self, Figures};
use super::session_worker::SessionWorker;
use super::xen::XenGuests;
use crate::control::{self, Answer, Guest, Status};
use crate::executor::ExecutorChoice;
use crate::gpus::Figures as GpuFigures;
use crate::logging;
use crate::usage::{Requests, Standing};
use crate::worker::link::Ask;

/// How long workers have for their figures.
const FIGURES_LIMIT: Duration = Duration::from_millis(300);

/// How long the GPUs have for theirs: the first time a library is loaded for them.
const GPUS_LIMIT: Duration = Duration::from_secs(2);

/// A question that waits for the workers' figures.
#[derive(Debug)]
pub(super) struct Query {
    asker: Asker,
    asked: Instant,
    /// Whether the workers, rather than the GPUs, are waited for until `deadline`.
    workers: bool,
    pub(super) deadline: Instant,
}

/// The connection that awaits the answer, and the form of that answer.
#[derive(Debug)]
pub(super) enum Asker {
    /// A control connection, for the status.
    Status(u64),
    /// A control connection, for the metrics.
    Metrics(u64),
    /// A collector of metrics.
    Scrape(u64),
}

impl Broker<'_> {
    pub(super) fn begin_query(&mut self, asker: Asker, now: Instant) {
        for session in self.sessions.values_mut().filter(|it| !it.process.silent) {
            session.ask(Ask::Report);
        }
        if self.has_gpus() {
            self.gpus.ask(now);
        }
        self.queries.push(Query {
            asker,
            asked: now,
            workers: true,
            deadline: now + FIGURES_LIMIT,
        });
        self.answer_queries(now);
    }

    /// Answers the questions for which all figures are there, or whose time is over.
    pub(super) fn answer_queries(&mut self, now: Instant) {
        let sessions = &self.sessions;
        let gpus = self.gpus.is_asked();
        let mut queries = std::mem::take(&mut self.queries);
        for query in &mut queries {
            let told = |session: &SessionWorker| {
                session.process.silent || is_current(session, query.asked)
            };
            if query.workers && (query.deadline <= now || sessions.values().all(told)) {
                query.workers = false;
                query.deadline = query.asked + GPUS_LIMIT;
            }
        }
        let (ready, waiting) = queries
            .into_iter()
            .partition(|query| !query.workers && (query.deadline <= now || !gpus));
        self.queries = waiting;
        let ready: Vec<Query> = ready;
        for query in ready {
            let status = self.status(query.asked, now);
            match query.asker {
                Asker::Status(connection) => {
                    let answer = Answer::Status(Box::new(status));
                    self.control.answer(connection, answer);
                }
                Asker::Metrics(connection) => {
                    let answer = Answer::Metrics(self.metrics_text(&status));
                    self.control.answer(connection, answer);
                }
                Asker::Scrape(connection) => {
                    let text = self.metrics_text(&status);
                    if let Some(server) = &mut self.metrics {
                        server.answer(connection, &text);
                    }
                }
            }
        }
    }

    fn metrics_text(&mut self, status: &Status) -> String {
        let mut requests: BTreeMap<String, Requests> = BTreeMap::new();
        for (_, account) in self.accounts.iter() {
            let of_guest = requests.entry(account.id.clone()).or_default();
            of_guest.add(&account.requests);
        }
        let mut durations = self.accounts.durations;
        for session in self.of_guests() {
            if let Some(activity) = session.activity() {
                let of_guest = requests.entry(session.peer.id()).or_default();
                of_guest.add(&activity.requests);
                durations.add_all(&activity.durations);
            }
        }
        let figures = Figures {
            status,
            requests: &requests,
            durations,
            refusals: &self.accounts.refusals,
            ends: self.accounts.ends,
            kills: &self.accounts.kills,
            reloads: self.reload.results,
            dropped_log_lines: logging::dropped(),
            xenstore: self.xen.as_ref().map(XenGuests::xenstore_is_up),
        };
        metrics::text(&figures, &mut self.labels)
    }

    /// Whether the executor is a GPU of this machine.
    fn has_gpus(&self) -> bool {
        self.chosen.choice == ExecutorChoice::Cuda
    }

    /// The sessions that serve a guest, or are about to.
    pub(super) fn of_guests(&self) -> impl Iterator<Item = &SessionWorker> {
        self.sessions.values().filter(|session| session.counts())
    }

    fn status(&self, asked: Instant, now: Instant) -> Status {
        let mut usage = self.accounts.usage;
        let mut guests: Vec<(_, Guest)> = self
            .accounts
            .iter()
            .map(|(key, account)| {
                let shared = self.turns.shared(key);
                let guest = Guest {
                    guest: account.name.clone(),
                    id: account.id.clone(),
                    sessions: account.running,
                    sessions_started: account.started,
                    refused: account.refused,
                    sessions_killed: account.killed,
                    weight: shared.map(|shared| shared.weight),
                    share_permille: 0,
                    turns: shared.map_or(0, |shared| shared.turns),
                    contended_ns: shared.map_or(0, |shared| nanoseconds(shared.time)),
                    devices: None,
                    standing: Standing::default(),
                    usage: account.usage,
                };
                (key.clone(), guest)
            })
            .collect();
        for session in self.of_guests() {
            usage.add(session.usage());
            let key = session.peer.account();
            if let Some((_, guest)) = guests.iter_mut().find(|(account, _)| *account == key) {
                guest.usage.add(session.usage());
                guest.standing.add(session.standing());
                if let Some(mib) = self.share(&session.peer).memory_mib {
                    // Of all its sessions together.
                    let most = u64::from(mib) << 20;
                    guest.standing.memory_limit = guest.standing.memory_limit.min(most);
                }
                for name in names(session).into_iter().flatten() {
                    let devices = guest.devices.get_or_insert_default();
                    if !devices.contains(&name) {
                        devices.push(name);
                    }
                }
            }
        }
        for (_, guest) in &mut guests {
            let (own, all) = (guest.usage.device_ns.into(), usage.device_ns.into());
            guest.share_permille = permille(own, all);
        }
        let figures = self.has_gpus().then(|| self.gpus.figures(now));
        let (figures, gpus_missing) = match figures {
            Some(Ok(figures)) => (figures, None),
            Some(Err(why)) => (GpuFigures::default(), Some(why)),
            None => (GpuFigures::default(), None),
        };
        let sessions = self
            .of_guests()
            .map(|session| (session, figures.of_process(session.pid())))
            .map(
                |(session, (nvml_memory, nvml_busy_percent))| control::Session {
                    id: session.id,
                    guest: session.peer.to_string(),
                    guest_id: session.peer.id(),
                    pid: session.pid(),
                    age_s: now.duration_since(session.began).as_secs(),
                    state: match self.is_offering(session.id) {
                        true => "offered".to_owned(),
                        false => session.state().to_owned(),
                    },
                    client: session.client().map(str::to_owned),
                    device: session
                        .used_device(&self.chosen.executor.devices)
                        .map(|key| key.to_string()),
                    devices: names(session),
                    standing: *session.standing(),
                    usage: *session.usage(),
                    nvml_memory,
                    nvml_busy_percent,
                    current: is_current(session, asked),
                },
            )
            .collect();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: now.duration_since(self.began).as_secs(),
            stopping: self.stopping.is_some(),
            listen: self.config.listen.iter().map(ToString::to_string).collect(),
            executor: self.chosen.executor.clone(),
            executor_choice: self.config.executor.to_string(),
            looks_again_s: self.looks_again_in(now),
            gpus: figures.gpus,
            gpus_missing,
            limits: control::Limits {
                max_sessions: self.config.limits.max_sessions,
                max_sessions_per_guest: self.config.limits.max_sessions_per_guest,
            },
            allow_all: self.config.policy.allow_all,
            missing_devices: self.missing_devices(),
            warm: self.warm.status(&self.config.listen),
            sessions_started: self.accounts.started,
            refused: self.accounts.refused(),
            protections: self.protections.clone(),
            usage,
            guests: guests.into_iter().map(|(_, guest)| guest).collect(),
            sessions,
        }
    }
}

/// The devices that it may use, if those are not all.
fn names(session: &SessionWorker) -> Option<Vec<String>> {
    let devices = session.devices.as_ref()?;
    Some(devices.keys().iter().map(ToString::to_string).collect())
}

fn permille(part: u128, all: u128) -> u64 {
    u64::try_from(part * 1000 / all.max(1)).unwrap_or(u64::MAX)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn is_current(session: &SessionWorker, asked: Instant) -> bool {
    session.reported.is_some_and(|reported| reported >= asked)
}
