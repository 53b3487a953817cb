//! Workers that are there before their sessions: confined, with their executor open, and waiting (`worker.warm_workers`).
//!
//! There is a pool for each set of devices that the process of a session over a socket may be given; what a worker
//! depends on besides comes with its session. One is started at a time, with a rest as long as the start took, so that a
//! storm of connections has at most half a processor of this. One that ends before its session is replaced after a pause
//! that doubles. A session that finds none is served by a worker that is started for it, as without this.

mod pools;
mod worker;

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Instant;

use vchan::local::Stranger;
use vgpu_transport::endpoint::Endpoint;

use super::Broker;
use super::accounts::Force;
use super::peer::Peer;
use super::process::Process;
use super::session_worker::{Handed, SessionWorker};
use crate::worker::spec::{Carrier, Spec, Start, Warm};
use pools::Set;
pub(super) use pools::{MOST_ENDING, POOLS, WarmWorkers};

impl Broker<'_> {
    /// Finds out for which sets of devices workers are to wait.
    pub(super) fn want_warm(&mut self, now: Instant) {
        let wanted = self.config.worker.warm_workers;
        let mut sets: Vec<Set> = Vec::new();
        if wanted > 0 && self.stopping.is_none() {
            for peer in self.of_sockets() {
                let set = Set::of(&self.spec(0, &peer, Carrier::Local, None));
                let there = &self.chosen.executor.devices;
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
    fn of_sockets(&self) -> Vec<Peer> {
        let mut all = Vec::new();
        if !self.locals.is_empty() {
            all.push(Peer::Local { uid: 0, pid: 0 });
        }
        if !self.tcps.is_empty() {
            all.push(Peer::Tcp {
                name: None,
                address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            });
        }
        all
    }

    /// Starts a worker that is missing, if it is time.
    pub(super) fn keep_warm(&mut self, now: Instant) {
        self.warm.expire(now);
        let Some((id, set)) = self.warm.next(now) else {
            return;
        };
        let start = Start::Warm(Box::new(Warm {
            broker_pid: std::process::id().cast_signed(),
            confinement: self.confinement(),
            executor: set.executor.clone(),
            gpus: set.gpus.clone(),
            devices: set.devices,
            verbose: self.flags.verbose,
        }));
        match Process::start(&format!("warm-{id}"), &start, None) {
            Ok(process) => self.warm.starts(id, &set, process, now),
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
        peer: &Peer,
        spec: &Spec,
        guest: Option<Stranger<OwnedFd>>,
        now: Instant,
    ) -> Result<SessionWorker, Option<Stranger<OwnedFd>>> {
        let fits = self.warm.are_wanted() && spec.refusal.is_none() && spec.carrier.is_socket();
        let guest = match guest {
            Some(guest) if fits => guest,
            other => return Err(other),
        };
        let set = Set::of(spec);
        // Over TCP it is not known yet who it is.
        let Some(process) = self.warm.take(&set, spec.carrier == Carrier::Tcp, now) else {
            return Err(Some(guest));
        };
        match SessionWorker::hand(id, peer.clone(), spec.clone(), guest, process, now) {
            Ok(session) => Ok(session),
            Err(refused) => {
                let (process, why, guest) = *refused;
                self.warm.not_taken(&set, process, &why, now);
                Err(Some(guest))
            }
        }
    }

    /// Has the session `id` served by a new worker, if the one that has waited does not take it. `is_over`: that one has
    /// ended. Returns whether there is a new one.
    pub(super) fn start_instead(&mut self, id: u64, is_over: bool, now: Instant) -> bool {
        let not_taken = |session: &SessionWorker| session.not_taken(is_over, now);
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
        let set = Set::of(&spec);
        if stopping || session.force.is_some() {
            session.kill(Force::Hung);
            return false;
        }
        spec.confinement.user = user;
        let started = session.start_again(&spec, guest);
        let (peer, pid) = (session.peer.clone(), session.pid());
        let (line, is_new) = match started {
            Ok(before) => {
                self.warm.not_taken(&set, before, &why, now);
                let line = format!("{why}; another worker is started for it ({pid})");
                (line, true)
            }
            Err(error) => {
                session.kill(Force::Hung);
                let line = format!("{why}; no other worker can be started: {error}");
                (line, false)
            }
        };
        let line = format!("session {id}: {line}");
        self.accounts.log(&peer, log::Level::Warn, &line, now);
        if is_new {
            self.give_memory(id, now);
        }
        is_new
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_over_sockets_alone_get_one() {
        let listen = ["local:/a", "xen:", "unix:/b", "file:/c", "tcp:127.0.0.1:1"];
        let listen = listen.map(|it| it.parse().unwrap());
        assert_eq!(cold_endpoints(&listen), ["xen:", "file:/c"]);
    }
}
