//! Workers that have ended: who has to know, and what goes into the account and the log.

use std::time::Instant;

use super::Broker;
use super::peer::Peer;
use super::session_worker::SessionWorker;
use super::xen::Command;
use crate::worker::link::Ended;

impl Broker<'_> {
    /// Collects the workers that have ended.
    pub(super) fn reap(&mut self, now: Instant) {
        let ended: Vec<_> = self
            .sessions
            .values_mut()
            .filter_map(|session| Some((session.id, session.process.try_wait()?)))
            .collect();
        self.warm.reap(now);
        for (id, status) in ended {
            if let Some(session) = self.sessions.get_mut(&id) {
                session.hear_out(now);
            }
            if self.start_instead(id, true, now) {
                continue;
            }
            // Its last words, which may say why.
            self.on_log(id, now);
            if let Some(mut session) = self.sessions.remove(&id) {
                self.end_turns(id, now);
                self.compilers.gone(id);
                self.memories.release(&session.peer.account(), id);
                let ended = session.ended(status);
                self.on_ended(&session, &ended, now);
            }
        }
        self.reap_compilers(now);
        self.answer_queries(now);
    }

    fn on_ended(&mut self, session: &SessionWorker, ended: &Ended, now: Instant) {
        let SessionWorker { id, peer, .. } = session;
        if let Peer::Xen(guest, name) = peer {
            self.tell_xen(Command::Over {
                domid: guest.domid,
                name: name.clone(),
                failed: !session.was_connected(),
            });
        }
        self.file_session_ended(peer);
        if session.stranger {
            return self.stranger_ended(session, &ended.text, now);
        }
        if session.refusing {
            return;
        }
        if self.offer_ended(session, now) {
            let level = if ended.fault {
                log::Level::Warn
            } else {
                log::Level::Debug
            };
            let line = format!("an offer ended: {}", ended.text);
            self.accounts.log(peer, level, &line, now);
            return;
        }
        let usage = session.usage();
        self.accounts.end(
            peer,
            usage,
            session.activity(),
            ended.fault,
            session.force,
            now,
        );
        let level = if ended.fault {
            log::Level::Warn
        } else {
            log::Level::Info
        };
        let line = format!(
            "session {id} ended after {:.1} s: {}; {} requests ({} failed), {} bytes in, {} out",
            now.duration_since(session.began).as_secs_f64(),
            ended.text,
            usage.requests,
            usage.failed_requests,
            usage.bytes_in,
            usage.bytes_out,
        );
        self.accounts.log(peer, level, &line, now);
        self.file_service_ended(*id, now);
    }
}
