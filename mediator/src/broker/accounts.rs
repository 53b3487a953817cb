//! What each guest has used, and how often it was let in or turned away.

use std::collections::BTreeMap;
use std::time::Instant;

use super::who::{AccountKey, Who};
use crate::rate::LogLimit;
use crate::usage::Usage;

/// Accounts kept at most; the oldest without a session make room. Guests come and go by the
/// thousands on a host that runs for years.
const MOST: usize = 512;

/// One guest's figures. Those of running sessions are not in here.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) name: String,
    /// Sessions that run.
    pub(super) running: usize,
    pub(super) started: u64,
    pub(super) refused: u64,
    /// Of ended sessions.
    pub(super) usage: Usage,
    log: LogLimit,
    used_at: Instant,
}

/// The accounts of all guests.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    accounts: BTreeMap<AccountKey, Account>,
    pub(super) started: u64,
    pub(super) refused: u64,
    /// Of ended sessions.
    pub(super) usage: Usage,
}

impl Accounts {
    /// The account of `who`, new if need be.
    pub(super) fn of(&mut self, who: &Who, now: Instant) -> &mut Account {
        let key = who.account();
        if !self.accounts.contains_key(&key) && self.accounts.len() >= MOST {
            self.forget_one();
        }
        let account = self.accounts.entry(key).or_insert_with(|| Account {
            name: String::new(),
            running: 0,
            started: 0,
            refused: 0,
            usage: Usage::default(),
            log: LogLimit::new(now),
            used_at: now,
        });
        // A guest may have been renamed.
        account.name = who.account_name();
        account.used_at = now;
        account
    }

    /// How many sessions of `who` run.
    #[cfg(test)]
    pub(super) fn running(&self, who: &Who) -> usize {
        self.accounts
            .get(&who.account())
            .map_or(0, |account| account.running)
    }

    /// Counts a session that begins.
    pub(super) fn begin(&mut self, who: &Who, now: Instant) {
        self.started += 1;
        let account = self.of(who, now);
        account.running += 1;
        account.started += 1;
    }

    /// Counts a session that has ended.
    pub(super) fn end(&mut self, who: &Who, usage: &Usage, now: Instant) {
        self.usage.add(usage);
        let account = self.of(who, now);
        account.running = account.running.saturating_sub(1);
        account.usage.add(usage);
    }

    /// Counts a guest turned away.
    pub(super) fn refuse(&mut self, who: &Who, now: Instant) {
        self.refused += 1;
        self.of(who, now).refused += 1;
    }

    /// Logs a line that the guest caused, unless it has caused too many.
    pub(super) fn log(&mut self, who: &Who, level: log::Level, line: &str, now: Instant) {
        match self.of(who, now).log.admit(now) {
            None => {}
            Some(0) => log::log!(level, "{who}: {line}"),
            Some(n) => log::log!(level, "{who}: {line} ({n} lines about it left out)"),
        }
    }

    /// All accounts.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&AccountKey, &Account)> {
        self.accounts.iter()
    }

    fn forget_one(&mut self) {
        let oldest = self
            .accounts
            .iter()
            .filter(|(_, account)| account.running == 0)
            .min_by_key(|(_, account)| account.used_at)
            .map(|(key, _)| key.clone());
        if let Some(key) = oldest {
            self.accounts.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(uid: u32) -> Who {
        Who::Local { uid, pid: 1 }
    }

    #[test]
    fn sessions_and_figures_are_counted_by_guest() {
        let now = Instant::now();
        let mut accounts = Accounts::default();
        accounts.begin(&local(1), now);
        accounts.begin(&local(1), now);
        accounts.begin(&local(2), now);
        accounts.refuse(&local(2), now);
        let usage = Usage {
            requests: 3,
            ..Usage::default()
        };
        accounts.end(&local(1), &usage, now);
        assert_eq!(accounts.running(&local(1)), 1);
        assert_eq!(accounts.running(&local(3)), 0);
        assert_eq!((accounts.started, accounts.refused), (3, 1));
        assert_eq!(accounts.of(&local(1), now).usage, usage);
        assert_eq!(accounts.of(&local(2), now).refused, 1);
        assert_eq!(accounts.usage, usage);
    }

    #[test]
    fn guests_without_sessions_are_forgotten_before_memory_grows() {
        let now = Instant::now();
        let mut accounts = Accounts::default();
        accounts.begin(&local(0), now);
        for uid in 1..2000 {
            accounts.refuse(&local(uid), now);
        }
        assert_eq!(accounts.iter().count(), MOST);
        assert_eq!(accounts.running(&local(0)), 1);
    }
}
