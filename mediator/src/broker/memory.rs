//! The pages by which a guest's sessions know of each other's device memory.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::time::Instant;

use super::Broker;
use super::peer::{AccountKey, Peer};
use super::session_worker::SessionWorker;
use crate::guest_memory::Page;

/// By guest: of those that have sessions.
#[derive(Debug, Default)]
pub(super) struct Memories(BTreeMap<AccountKey, Page>);

impl Memories {
    fn page(&mut self, account: AccountKey) -> io::Result<&mut Page> {
        Ok(match self.0.entry(account) {
            Entry::Occupied(page) => page.into_mut(),
            Entry::Vacant(place) => place.insert(Page::new()?),
        })
    }

    /// A session's worker is gone.
    pub(super) fn release(&mut self, account: &AccountKey, session: u64) {
        let page = self.0.get_mut(account);
        if page.is_some_and(|page| !page.release(session)) {
            self.0.remove(account);
        }
    }
}

impl Broker<'_> {
    /// Gives the worker of a session its guest's page. A session whose guest is not known yet has none.
    pub(super) fn give_memory(&mut self, id: u64, now: Instant) {
        let is_known = |session: &&SessionWorker| {
            session.counts() && !matches!(session.peer, Peer::Tcp { name: None, .. })
        };
        let Some(session) = self.sessions.get(&id).filter(is_known) else {
            return;
        };
        let page = self.memories.page(session.peer.account());
        let given = page.and_then(|page| {
            let word = page.word(id)?;
            session.give_memory(word, page)
        });
        if let Err(error) = given {
            let peer = session.peer.clone();
            let line = format!("session {id} cannot be given its guest's memory: {error}");
            self.accounts.log(&peer, log::Level::Error, &line, now);
        }
    }
}
