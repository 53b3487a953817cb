//! The end: no new guests, running requests finish, then everything is taken down.

use std::time::{Duration, Instant};

use super::Broker;
use super::accounts::Force;
use super::systemd::notify;
use crate::worker::link::Ask;

/// Time to collect workers that were killed.
const REAP_LIMIT: Duration = Duration::from_secs(2);

/// How soon after the first a second signal to end can be meant as one. Programs send several at
/// once: GNU `timeout` signals its child and then the group, systemd may add a SIGHUP.
const SAME_SIGNAL_WITHIN: Duration = Duration::from_secs(1);

/// Stages of the broker's end.
#[derive(Debug)]
pub(super) enum Shutdown {
    /// Sessions may finish their requests until `until`.
    Draining { since: Instant, until: Instant },
    /// They were killed and are collected until then.
    Reaping(Instant),
    /// Nothing is left to wait for.
    Over,
}

impl Shutdown {
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Self::Over)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Draining { until: at, .. } | Self::Reaping(at) => Some(*at),
            Self::Over => None,
        }
    }
}

impl Broker<'_> {
    /// A signal to end: the first one drains, one that comes at least a second later does not wait.
    pub(super) fn stop(&mut self, now: Instant) {
        match self.stopping {
            None => {}
            Some(Shutdown::Draining { since, .. })
                if now.duration_since(since) < SAME_SIGNAL_WITHIN =>
            {
                log::debug!("asked to stop twice at once, which counts once");
                return;
            }
            Some(Shutdown::Draining { .. }) => {
                log::warn!(
                    "asked to stop again; sessions cut off: {}",
                    self.sessions.len()
                );
                return self.kill_all(now);
            }
            // They are being cut off already.
            Some(Shutdown::Reaping(_) | Shutdown::Over) => return,
        }
        let time = self.config.limits.drain_timeout();
        log::info!(
            "stopping; sessions to finish within {1} s: {0}",
            self.sessions.len(),
            time.as_secs()
        );
        notify("STOPPING=1");
        // Their sockets disappear, so that guests learn at once that nobody is here.
        self.locals.clear();
        self.tcps.clear();
        self.newcomers.clear();
        self.reprobe = None;
        self.local_newcomers.clear();
        self.files.clear();
        for session in self.sessions.values_mut() {
            match session.stranger {
                // It has nobody to finish for.
                true => session.process.end(),
                false => session.ask(Ask::Drain),
            }
        }
        self.warm.stop(now);
        self.stopping = Some(Shutdown::Draining {
            since: now,
            until: now + time,
        });
    }

    fn kill_all(&mut self, now: Instant) {
        for session in self.sessions.values_mut() {
            session.kill(Force::Stop);
        }
        self.stopping = Some(Shutdown::Reaping(now + REAP_LIMIT));
    }

    pub(super) fn expire_stop(&mut self, now: Instant) {
        let due = |at: Instant| at <= now;
        match self.stopping {
            None => {}
            Some(_) if self.sessions.is_empty() && self.warm.is_empty() => {
                self.stopping = Some(Shutdown::Over)
            }
            Some(Shutdown::Draining { until, .. }) if due(until) => {
                if !self.sessions.is_empty() {
                    log::warn!(
                        "sessions that did not finish in time: {}",
                        self.sessions.len()
                    );
                }
                self.kill_all(now);
            }
            Some(Shutdown::Reaping(at)) if due(at) => {
                // They hang in the kernel; they end with this process.
                log::error!(
                    "workers that cannot be ended: {}",
                    self.sessions.len() + self.warm.ending()
                );
                self.stopping = Some(Shutdown::Over);
            }
            Some(_) => {}
        }
    }
}
