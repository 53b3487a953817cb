//! Accounts: usage of each guest, how often it was let in or turned away, and how much of the broker's work
//! and log it may still cause.
//!
//! Starting a process and writing a line are limited for each account, and again for each [`EndpointKind`]: whoever
//! can make up names, user ids or secrets has many accounts, but comes by one kind of endpoint. No I/O but the log.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::{Duration, Instant};

use vgpu_protocol::session::server::Durations;

use super::peer::{AccountKey, EndpointKind, Peer};
use crate::logging;
use crate::rate::{LogLimit, TokenBucket};
use crate::usage::{Activity, Requests, Usage};

/// Accounts kept at most; the oldest without a session make room. Guests come and go by the
/// thousands on a host that runs for years.
const MOST: usize = 512;

/// Processes that an account may start at once, and the interval for each further one.
const STARTS: (u32, Duration) = (16, Duration::from_millis(500));

/// The same of an account that [is trusted](Who::is_trusted).
const TRUSTED_STARTS: (u32, Duration) = (256, Duration::from_millis(20));

/// The same for all accounts of one kind of endpoint that are not.
const ROAD_STARTS: (u32, Duration) = (64, Duration::from_millis(60));

/// Lines of all accounts of one kind of endpoint.
const ROAD_LINES: (u32, Duration) = (40, Duration::from_millis(250));

/// Lines of one kind of endpoint that are written only if somebody asked for them by `-v`.
const ROAD_DETAILS: (u32, Duration) = (1000, Duration::from_millis(10));

/// One guest's figures. Those of running sessions are not in here.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) name: String,
    /// The same for programs: of a VM it outlives a restart.
    pub(super) id: String,
    /// Sessions that run.
    pub(super) running: usize,
    pub(super) started: u64,
    pub(super) refused: u64,
    /// Sessions that were ended by force.
    pub(super) killed: u64,
    /// Of ended sessions.
    pub(super) usage: Usage,
    /// Of ended sessions.
    pub(super) requests: Requests,
    endpoint_kind: EndpointKind,
    starts: TokenBucket,
    log: LogLimit,
    used_at: Instant,
}

/// The bound on all accounts of one kind of endpoint together.
#[derive(Debug)]
struct Shared {
    starts: TokenBucket,
    log: LogLimit,
    details: LogLimit,
}

impl Shared {
    fn new(now: Instant) -> Self {
        Self {
            starts: TokenBucket::new(ROAD_STARTS.0, ROAD_STARTS.1, now),
            log: LogLimit::of(ROAD_LINES.0, ROAD_LINES.1, now),
            details: LogLimit::of(ROAD_DETAILS.0, ROAD_DETAILS.1, now),
        }
    }
}

/// The accounts of all guests.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    accounts: BTreeMap<AccountKey, Account>,
    /// As many as there are endpoints.
    endpoint_kinds: BTreeMap<EndpointKind, Shared>,
    pub(super) started: u64,
    /// Guests turned away, by reason.
    pub(super) refusals: BTreeMap<Refusal, u64>,
    /// Sessions that have ended: as they should, or by a fault of guest, connection or device.
    pub(super) ends: [u64; 2],
    /// Sessions that were ended by force.
    pub(super) kills: BTreeMap<Force, u64>,
    /// Of ended sessions.
    pub(super) usage: Usage,
    /// Of ended sessions.
    pub(super) durations: Durations,
}

/// Why somebody was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refusal {
    /// By the rules, or for its user.
    Denied,
    /// At a limit on sessions.
    Busy,
    /// It connects more often than it may, or too many do.
    Rate,
    /// It has shown no secret, or a wrong one.
    Secret,
}

impl Refusal {
    pub(super) const ALL: [Self; 4] = [Self::Denied, Self::Busy, Self::Rate, Self::Secret];

    /// For programs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Busy => "busy",
            Self::Rate => "rate",
            Self::Secret => "secret",
        }
    }
}

/// The cause of a session's end by force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Force {
    /// An administrator.
    Kick,
    /// Its worker sent what no worker sends.
    Misbehaved,
    /// Its worker did not end in time.
    Hung,
    /// Its worker died.
    Crashed,
    /// The mediator stops.
    Stop,
}

impl Force {
    pub(super) const ALL: [Self; 5] = [
        Self::Kick,
        Self::Misbehaved,
        Self::Hung,
        Self::Crashed,
        Self::Stop,
    ];

    /// For programs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kick => "kick",
            Self::Misbehaved => "misbehaved",
            Self::Hung => "hung",
            Self::Crashed => "crashed",
            Self::Stop => "stop",
        }
    }
}

impl Accounts {
    /// The account of `who`, new if need be.
    pub(super) fn of(&mut self, peer: &Peer, now: Instant) -> &mut Account {
        let key = peer.account();
        if !self.accounts.contains_key(&key) && self.accounts.len() >= MOST {
            self.forget_one(now);
        }
        let account = self.accounts.entry(key).or_insert_with(|| {
            let (burst, interval) = match peer.is_trusted() {
                true => TRUSTED_STARTS,
                false => STARTS,
            };
            Account {
                name: String::new(),
                id: String::new(),
                running: 0,
                started: 0,
                refused: 0,
                killed: 0,
                usage: Usage::default(),
                requests: Requests::default(),
                endpoint_kind: peer.endpoint_kind(),
                starts: TokenBucket::new(burst, interval, now),
                log: LogLimit::new(now),
                used_at: now,
            }
        });
        // A guest may have been renamed.
        account.name = peer.account_name();
        account.id = peer.id();
        account.used_at = now;
        account
    }

    fn endpoint_kind(&mut self, endpoint_kind: EndpointKind, now: Instant) -> &mut Shared {
        self.endpoint_kinds
            .entry(endpoint_kind)
            .or_insert_with(|| Shared::new(now))
    }

    /// When a process may be started for `who`: `now`, or later.
    pub(super) fn may_start_at(&self, peer: &Peer, now: Instant) -> Instant {
        let account = self.accounts.get(&peer.account());
        let own = account.map_or(now, |account| account.starts.next(now));
        if peer.is_trusted() {
            return own;
        }
        let endpoint_kind = self.endpoint_kinds.get(&peer.endpoint_kind());
        own.max(endpoint_kind.map_or(now, |endpoint_kind| endpoint_kind.starts.next(now)))
    }

    /// Charges a process that is started for `who`. Gives the time when its account owes nothing any
    /// more, which is `now` where it was not started before its time.
    pub(super) fn charge_start(&mut self, peer: &Peer, now: Instant) -> Instant {
        if !peer.is_trusted() {
            self.endpoint_kind(peer.endpoint_kind(), now)
                .starts
                .owe(now);
        }
        self.of(peer, now).starts.owe(now)
    }

    /// How many sessions of `who` run.
    #[cfg(test)]
    pub(super) fn running(&self, peer: &Peer) -> usize {
        self.accounts
            .get(&peer.account())
            .map_or(0, |account| account.running)
    }

    /// Counts a session that begins.
    pub(super) fn begin(&mut self, peer: &Peer, now: Instant) {
        self.started += 1;
        let account = self.of(peer, now);
        account.running += 1;
        account.started += 1;
    }

    /// Counts a session that has ended: by a `fault` or not, by force or not.
    pub(super) fn end(
        &mut self,
        peer: &Peer,
        usage: &Usage,
        activity: Option<&Activity>,
        fault: bool,
        force: Option<Force>,
        now: Instant,
    ) {
        self.usage.add(usage);
        match force {
            Some(force) => *self.kills.entry(force).or_default() += 1,
            None => self.ends[usize::from(fault)] += 1,
        }
        let account = self.of(peer, now);
        account.killed += u64::from(force.is_some());
        account.running = account.running.saturating_sub(1);
        account.usage.add(usage);
        if let Some(activity) = activity {
            account.requests.add(&activity.requests);
            self.durations.add_all(&activity.durations);
        }
    }

    /// Guests turned away.
    pub(super) fn refused(&self) -> u64 {
        self.refusals.values().sum()
    }

    /// Counts a guest turned away.
    pub(super) fn refuse(&mut self, peer: &Peer, why: Refusal, now: Instant) {
        *self.refusals.entry(why).or_default() += 1;
        self.of(peer, now).refused += 1;
    }

    /// Logs a line that `who` caused, unless it has caused too many.
    pub(super) fn log(&mut self, peer: &Peer, level: log::Level, line: &str, now: Instant) {
        self.log_of(peer, peer, module_path!(), level, line, now);
    }

    /// As [`log`](Self::log), about something else than `who` in the words of the line.
    pub(super) fn log_of(
        &mut self,
        peer: &Peer,
        about: &dyn Display,
        target: &str,
        level: log::Level,
        line: &str,
        now: Instant,
    ) {
        if !log::log_enabled!(target: target, level) {
            return;
        }
        if level > log::Level::Info {
            let details = self
                .endpoint_kind(peer.endpoint_kind(), now)
                .details
                .admit(now);
            if let Some(suppressed) = details {
                say_suppressed(&peer.endpoint_kind(), suppressed);
                log::log!(target: target, level, "{about}: {line}");
            }
            return;
        }
        let account = self.of(peer, now);
        let name = account.name.clone();
        let Some(of_account) = account.log.admit(now) else {
            return;
        };
        // Others of its kind of endpoint do not silence one that is trusted.
        if !peer.is_trusted() {
            match self.admit_to_kind(peer.endpoint_kind(), of_account + 1, now) {
                Some(of_kind) => say_suppressed(&peer.endpoint_kind(), of_kind),
                None => return,
            }
        }
        say_suppressed(&name, of_account);
        log::log!(target: target, level, "{about}: {line}");
    }

    /// Logs a line caused by an unknown peer of this kind of endpoint.
    pub(super) fn log_of_kind(&mut self, endpoint_kind: &EndpointKind, line: &str, now: Instant) {
        if let Some(suppressed) = self
            .endpoint_kind(endpoint_kind.clone(), now)
            .log
            .admit(now)
        {
            say_suppressed(endpoint_kind, suppressed);
            log::warn!("{line}");
        }
    }

    /// Admits a line that stands for `lines`, or counts these as suppressed.
    fn admit_to_kind(
        &mut self,
        endpoint_kind: EndpointKind,
        lines: u64,
        now: Instant,
    ) -> Option<u64> {
        let limit = &mut self.endpoint_kind(endpoint_kind, now).log;
        let admitted = limit.admit(now);
        if admitted.is_none() {
            // It has counted one.
            limit.suppress(lines - 1, now);
        }
        admitted
    }

    /// Says how many lines were suppressed where no later line has said so.
    pub(super) fn tell_suppressed(&mut self, now: Instant) {
        let mut due: Vec<(String, EndpointKind, u64)> = Vec::new();
        for account in self.accounts.values_mut() {
            if let Some(lines) = account.log.overdue(now) {
                due.push((account.name.clone(), account.endpoint_kind.clone(), lines));
            }
        }
        for (name, endpoint_kind, lines) in due {
            if let Some(of_kind) = self.admit_to_kind(endpoint_kind.clone(), lines, now) {
                say_suppressed(&endpoint_kind, of_kind);
                say_suppressed(&name, lines);
            }
        }
        for (endpoint_kind, shared) in &mut self.endpoint_kinds {
            for limit in [&mut shared.log, &mut shared.details] {
                say_suppressed(endpoint_kind, limit.overdue(now).unwrap_or(0));
            }
        }
    }

    /// When [`tell_suppressed`](Self::tell_suppressed) has something to say.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let accounts = self.accounts.values().filter_map(|it| it.log.due());
        let endpoint_kinds = self.endpoint_kinds.values();
        let endpoint_kinds = endpoint_kinds
            .flat_map(|endpoint_kind| [endpoint_kind.log.due(), endpoint_kind.details.due()]);
        accounts.chain(endpoint_kinds.flatten()).min()
    }

    /// All accounts.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&AccountKey, &Account)> {
        self.accounts.iter()
    }

    fn forget_one(&mut self, now: Instant) {
        let oldest = self
            .accounts
            .iter()
            .filter(|(_, account)| account.running == 0)
            .min_by_key(|(_, account)| account.used_at)
            .map(|(key, _)| key.clone());
        if let Some(mut account) = oldest.and_then(|key| self.accounts.remove(&key)) {
            let lines = account.log.take_suppressed();
            self.endpoint_kind(account.endpoint_kind, now)
                .log
                .suppress(lines, now);
        }
    }
}

fn say_suppressed(of: &dyn Display, lines: u64) {
    logging::count_suppressed(lines);
    match lines {
        0 => {}
        1 => log::warn!("{of}: 1 line suppressed"),
        lines => log::warn!("{of}: {lines} lines suppressed"),
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::Uid;
    use vgpu_file_transport::SessionName;

    use super::super::peer::Place;
    use super::*;
    use crate::policy::Identity;

    fn local(uid: u32) -> Peer {
        Peer::Local { uid, pid: 1 }
    }

    #[test]
    fn sessions_and_figures_are_counted_by_guest() {
        let now = Instant::now();
        let mut accounts = Accounts::default();
        accounts.begin(&local(1), now);
        accounts.begin(&local(1), now);
        accounts.begin(&local(2), now);
        accounts.refuse(&local(2), Refusal::Busy, now);
        let usage = Usage {
            requests: 3,
            ..Usage::default()
        };
        accounts.end(&local(1), &usage, None, false, Some(Force::Kick), now);
        assert_eq!(accounts.running(&local(1)), 1);
        assert_eq!(accounts.running(&local(3)), 0);
        assert_eq!((accounts.started, accounts.refused()), (3, 1));
        assert_eq!(accounts.of(&local(1), now).usage, usage);
        assert_eq!(accounts.of(&local(1), now).killed, 1);
        assert_eq!(accounts.of(&local(2), now).refused, 1);
        assert_eq!(accounts.usage, usage);
    }

    #[test]
    fn guests_without_sessions_are_forgotten_before_memory_grows() {
        let now = Instant::now();
        let mut accounts = Accounts::default();
        accounts.begin(&local(0), now);
        for uid in 1..2000 {
            accounts.refuse(&local(uid), Refusal::Rate, now);
        }
        assert_eq!(accounts.iter().count(), MOST);
        assert_eq!(accounts.running(&local(0)), 1);
    }

    #[test]
    fn every_road_has_a_bucket_an_account_and_one_for_all() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let starts = |accounts: &mut Accounts, peer: &Peer, now| {
            let started = (0..1000).take_while(|_| {
                let may = accounts.may_start_at(peer, now) <= now;
                may && accounts.charge_start(peer, now) <= now
            });
            u32::try_from(started.count()).unwrap()
        };
        let place = |guest: Option<&str>| Place {
            directory: "/d".into(),
            guest: guest.map(|name| name.parse().unwrap()),
        };
        let somebody = |number: u32| {
            // No user of this machine that runs tests.
            let uid = 0x7000_0000 + number;
            let guest = place(Some(&format!("g{number}")));
            let tcp = Peer::Tcp {
                name: Some(format!("n{number}")),
                address: "192.0.2.1:1".parse().unwrap(),
            };
            let identity = Identity {
                domid: u16::try_from(number).unwrap(),
                ..Identity::default()
            };
            [
                Peer::Local { uid, pid: 1 },
                Peer::Xen(identity, "0123456789abcdef".into()),
                tcp,
                Peer::FileSession(guest, SessionName::new([7; 16])),
            ]
        };
        let mut accounts = Accounts::default();
        for peer in somebody(0) {
            assert_eq!(starts(&mut accounts, &peer, start), STARTS.0, "{peer}");
            assert_eq!(starts(&mut accounts, &peer, start + second), 2, "{peer}");
            assert!(accounts.may_start_at(&peer, start + second) <= start + 2 * second);
        }
        // Invented names share the bucket of their kind of endpoint, also after accounts were forgotten.
        let now = start + 1000 * second;
        let mut started = [0; 4];
        for number in 0..2000 {
            for (index, peer) in somebody(number).iter().enumerate() {
                started[index] += starts(&mut accounts, peer, now);
                accounts.refuse(peer, Refusal::Rate, now);
            }
        }
        assert_eq!(started, [ROAD_STARTS.0; 4]);
        // One who is trusted does not wait for them.
        let uid = Uid::effective().as_raw();
        let trusted = Peer::Unix { uid, pid: 1 };
        assert_eq!(starts(&mut accounts, &trusted, now), TRUSTED_STARTS.0);
    }

    #[test]
    fn suppressed_lines_are_told_once_and_by_road_where_names_are_made_up() {
        let start = Instant::now();
        let mut accounts = Accounts::default();
        // What is off is neither written nor counted: no logger runs here, so all levels are.
        accounts.log(&local(1), log::Level::Warn, "off", start);
        assert_eq!(accounts.deadline(), None);
        for uid in 1..=2000 {
            let account = accounts.of(&local(uid), start);
            assert_eq!((0..11).filter_map(|_| account.log.admit(start)).count(), 10);
        }
        let due = accounts.deadline().unwrap();
        accounts.tell_suppressed(due);
        // A few are logged by name. All others are one number, which is logged after an interval.
        let own = accounts.accounts.values().filter_map(|it| it.log.due());
        assert_eq!(own.count(), 0);
        let of_kind = accounts.endpoint_kinds[&EndpointKind::Local]
            .log
            .due()
            .unwrap();
        assert_eq!(accounts.deadline(), Some(of_kind));
        accounts.tell_suppressed(of_kind);
        assert_eq!(accounts.deadline(), None);
    }
}
