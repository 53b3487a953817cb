//! Answering `status`: workers are asked for figures of now, and not waited for long.

use std::time::{Duration, Instant};

use super::Broker;
use super::session::Session;
use crate::control::{self, Answer, Guest, Status};
use crate::usage::Standing;

use crate::worker::link::Ask;

/// How long workers have for their figures.
const FIGURES_LIMIT: Duration = Duration::from_millis(300);

/// A question that waits for the workers' figures.
#[derive(Debug)]
pub(super) struct Query {
    connection: u64,
    asked: Instant,
    pub(super) deadline: Instant,
}

impl Broker<'_> {
    pub(super) fn begin_query(&mut self, connection: u64, now: Instant) {
        for session in self.sessions.values_mut().filter(|session| !session.silent) {
            session.ask(Ask::Report);
        }
        self.queries.push(Query {
            connection,
            asked: now,
            deadline: now + FIGURES_LIMIT,
        });
        self.answer_queries(now);
    }

    /// Answers the questions for which all figures are there, or whose time is over.
    pub(super) fn answer_queries(&mut self, now: Instant) {
        let sessions = &self.sessions;
        let (ready, waiting) = std::mem::take(&mut self.queries)
            .into_iter()
            .partition(|query| {
                query.deadline <= now
                    || sessions
                        .values()
                        .all(|session| session.silent || is_current(session, query.asked))
            });
        self.queries = waiting;
        let ready: Vec<Query> = ready;
        for query in ready {
            let status = self.status(query.asked, now);
            self.control
                .answer(query.connection, Answer::Status(Box::new(status)));
        }
    }

    fn status(&self, asked: Instant, now: Instant) -> Status {
        let mut usage = self.accounts.usage;
        let mut guests: Vec<(_, Guest)> = self
            .accounts
            .iter()
            .map(|(key, account)| {
                let guest = Guest {
                    guest: account.name.clone(),
                    sessions: account.running,
                    sessions_started: account.started,
                    refused: account.refused,
                    sessions_killed: account.killed,
                    standing: Standing::default(),
                    usage: account.usage,
                };
                (key.clone(), guest)
            })
            .collect();
        let serving = || self.sessions.values().filter(|session| session.counts());
        for session in serving() {
            usage.add(session.usage());
            let key = session.who.account();
            if let Some((_, guest)) = guests.iter_mut().find(|(account, _)| *account == key) {
                guest.usage.add(session.usage());
                guest.standing.add(session.standing());
            }
        }
        let sessions = serving()
            .map(|session| control::Session {
                id: session.id,
                guest: session.who.to_string(),
                pid: session.pid(),
                age_s: now.duration_since(session.began).as_secs(),
                state: match self.is_offering(session.id) {
                    true => "offered".to_owned(),
                    false => session.state().to_owned(),
                },
                client: session.client().map(str::to_owned),
                standing: *session.standing(),
                usage: *session.usage(),
                current: is_current(session, asked),
            })
            .collect();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: now.duration_since(self.began).as_secs(),
            stopping: self.stopping.is_some(),
            listen: self.config.listen.iter().map(ToString::to_string).collect(),
            executor: self.offer.executor.clone(),
            looks_again_s: self.looks_again_in(now),
            limits: control::Limits {
                max_sessions: self.config.limits.max_sessions,
                max_sessions_per_guest: self.config.limits.max_sessions_per_guest,
            },
            allow_all: self.config.policy.allow_all,
            sessions_started: self.accounts.started,
            refused: self.accounts.refused,
            protections: self.protections.clone(),
            usage,
            guests: guests.into_iter().map(|(_, guest)| guest).collect(),
            sessions,
        }
    }
}

fn is_current(session: &Session, asked: Instant) -> bool {
    session.reported.is_some_and(|reported| reported >= asked)
}
