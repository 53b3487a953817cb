//! Turns on a device, whose time is shared by weight. Messages and times come in, messages go
//! out; no I/O.
//!
//! Workers ask for a turn before their first work and give it back when that is done. While one guest alone wants
//! the device, all its sessions have it for as long as they like. As soon as another waits for it, one session at
//! a time has it, for [`QUANTUM`], and the next is that of the guest which has had least of it for its weight.
//!
//! Time is measured here, from the word that gives a turn to the one that gives it back: what a worker says of it
//! would be no proof. Only time that several guests want counts. Where several sessions are at the device at once
//! each is charged an equal part.
//!
//! A session that does not give its turn back holds nobody up for longer than [`OVERDUE`]: the others go on beside
//! it, and its guest has no other turn while somebody else waits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::peer::AccountKey;

/// The length of a turn that others wait for.
pub(super) const QUANTUM: Duration = Duration::from_millis(5);

/// How long such a turn may take until the others go on without waiting for its end.
const OVERDUE: Duration = Duration::from_millis(100);

/// Guests whose time is known at most.
const MOST: usize = 1024;

/// A nanosecond of a guest with weight 1, in units of a ledger.
const SCALE: u128 = 1 << 16;

/// A message to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// It has the device: until a further message, or for this time.
    Turn(Option<Duration>),
    /// It has the device for this time from now on.
    Yield(Duration),
}

/// Words, and the sessions they are for.
pub(super) type Words = Vec<(u64, Word)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Since the n-th time that anybody began to wait.
    Waiting(u64),
    Holding,
    /// It should have given its turn back.
    Overdue,
}

/// A session that has a turn or wants one.
#[derive(Debug)]
struct Member {
    account: AccountKey,
    weight: u32,
    state: State,
}

/// The turn that is under way.
#[derive(Debug)]
struct Turn {
    account: AccountKey,
    /// When it is overdue; none while nobody else waits for the device.
    until: Option<Instant>,
}

/// One guest's time on the device.
#[derive(Debug)]
struct Ledger {
    /// Its time for its weight, and what it missed while it was away.
    had: u128,
    shared: Shared,
}

/// A guest's figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shared {
    /// Its weight when it last wanted a turn.
    pub(super) weight: u32,
    /// How many it has had.
    pub(super) turns: u64,
    /// Its time on the device while others wanted that too.
    pub(super) time: Duration,
}

/// The state of one device.
#[derive(Debug, Default)]
pub(super) struct Turns {
    members: BTreeMap<u64, Member>,
    turn: Option<Turn>,
    /// Time up to then is in the ledgers.
    charged: Option<Instant>,
    ledgers: BTreeMap<AccountKey, Ledger>,
    /// Weighted time of the guest served last: new guests begin there.
    clock: u128,
    waited: u64,
}

impl Turns {
    /// Session `id` wants a turn.
    pub(super) fn want(
        &mut self,
        id: u64,
        account: &AccountKey,
        weight: u32,
        now: Instant,
    ) -> Words {
        if self.members.contains_key(&id) {
            return Words::new();
        }
        self.charge(now);
        let is_away = !self.members.values().any(|it| it.account == *account);
        let (clock, weight) = (self.clock, weight.max(1));
        let ledger = self.ledgers.entry(account.clone());
        let ledger = ledger.or_insert_with(|| Ledger::new(clock, weight));
        ledger.shared.weight = weight;
        if is_away {
            // Nobody saves time up.
            ledger.had = ledger.had.max(clock);
        }
        self.waited += 1;
        let member = Member {
            account: account.clone(),
            weight,
            state: State::Waiting(self.waited),
        };
        self.members.insert(id, member);
        self.forget();
        self.decide(now)
    }

    /// From now on session `id`, of the guest `account`, counts with this weight.
    pub(super) fn reweigh(&mut self, id: u64, account: &AccountKey, weight: u32, now: Instant) {
        self.charge(now);
        let weight = weight.max(1);
        if let Some(member) = self.members.get_mut(&id) {
            member.weight = weight;
        }
        if let Some(ledger) = self.ledgers.get_mut(account) {
            ledger.shared.weight = weight;
        }
    }

    /// Session `id` gives its turn back, and wants `another` or not.
    pub(super) fn over(&mut self, id: u64, another: bool, now: Instant) -> Words {
        self.charge(now);
        match self.members.get_mut(&id) {
            None => {}
            Some(_) if !another => {
                self.members.remove(&id);
            }
            // A word out of turn changes nothing.
            Some(member) if matches!(member.state, State::Waiting(_)) => {}
            Some(member) => {
                self.waited += 1;
                member.state = State::Waiting(self.waited);
            }
        }
        self.decide(now)
    }

    /// Session `id` has ended.
    pub(super) fn gone(&mut self, id: u64, now: Instant) -> Words {
        self.over(id, false, now)
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.turn.as_ref()?.until
    }

    /// Lets others go on beside a turn that is overdue.
    pub(super) fn expire(&mut self, now: Instant) -> Words {
        if self.deadline().is_none_or(|until| now < until) {
            return Words::new();
        }
        self.charge(now);
        for member in self.members.values_mut() {
            if member.state == State::Holding {
                member.state = State::Overdue;
            }
        }
        self.decide(now)
    }

    /// The figures of a guest that has wanted the device.
    pub(super) fn shared(&self, account: &AccountKey) -> Option<Shared> {
        self.ledgers.get(account).map(|ledger| ledger.shared)
    }

    /// Charges those who are at the device for the time since the last call. Called before anything changes.
    fn charge(&mut self, now: Instant) {
        let since = self.charged.replace(now).unwrap_or(now);
        if !self.is_contended() {
            return;
        }
        let there = || {
            let members = self.members.values();
            members.filter(|member| !matches!(member.state, State::Waiting(_)))
        };
        let Some(count) = u32::try_from(there().count()).ok().filter(|n| *n > 0) else {
            return;
        };
        let part = now.saturating_duration_since(since) / count;
        for member in there() {
            if let Some(ledger) = self.ledgers.get_mut(&member.account) {
                let had = part.as_nanos() * SCALE / u128::from(member.weight);
                ledger.had = ledger.had.saturating_add(had);
                ledger.shared.time += part;
            }
        }
    }

    /// Whether more than one guest wants the device or has it.
    fn is_contended(&self) -> bool {
        let mut accounts = self.members.values().map(|member| &member.account);
        let first = accounts.next();
        accounts.any(|account| Some(account) != first)
    }

    /// The session that is next: of the guest that has had least, the one that has waited longest. A guest with a
    /// session at the device beside the others comes last.
    fn next(&self) -> Option<u64> {
        let overdue = self.members.values();
        let overdue: BTreeSet<&AccountKey> = overdue
            .filter(|member| member.state == State::Overdue)
            .map(|member| &member.account)
            .collect();
        let waiting = self.members.iter().filter_map(|(id, member)| {
            let State::Waiting(since) = member.state else {
                return None;
            };
            let had = self.ledgers.get(&member.account).map(|ledger| ledger.had);
            let is_overdue = overdue.contains(&member.account);
            Some((is_overdue, had.unwrap_or(self.clock), since, *id))
        });
        waiting.min().map(|(.., id)| id)
    }

    fn decide(&mut self, now: Instant) -> Words {
        let mut words = Words::new();
        let mut members = self.members.values();
        if !members.any(|member| member.state == State::Holding) {
            self.turn = None;
        }
        if self.turn.is_none()
            && let Some(member) = self.next().and_then(|id| self.members.get(&id))
        {
            let account = member.account.clone();
            if let Some(ledger) = self.ledgers.get(&account) {
                self.clock = self.clock.max(ledger.had);
            }
            let until = None;
            self.turn = Some(Turn { account, until });
            if self.others_wait() {
                self.limit(now);
                self.hold_next(Some(QUANTUM), &mut words);
                return words;
            }
        }
        if self.turn.as_ref().is_some_and(|turn| turn.until.is_none()) {
            // Nobody else waits: the guest's own sessions need not wait for each other.
            while self.hold_next(None, &mut words) {}
            if self.others_wait() {
                self.limit(now);
                let holding = self.members.iter();
                let holding = holding.filter(|(_, member)| member.state == State::Holding);
                words.extend(holding.map(|(id, _)| (*id, Word::Yield(QUANTUM))));
            }
        }
        words
    }

    /// Whether another guest waits than the one whose turn it is, or is at the device beside it and may wait at any
    /// moment: without turns this one would have much in the device's queue then.
    fn others_wait(&self) -> bool {
        let account = self.turn.as_ref().map(|turn| &turn.account);
        let mut members = self.members.values();
        members.any(|member| member.state != State::Holding && Some(&member.account) != account)
    }

    /// Has the turn end.
    fn limit(&mut self, now: Instant) {
        if let Some(turn) = &mut self.turn {
            turn.until = Some(now + OVERDUE);
        }
    }

    /// Gives the turn to the session that has waited longest of those whose guest has it.
    fn hold_next(&mut self, most: Option<Duration>, words: &mut Words) -> bool {
        let Some(turn) = &self.turn else {
            return false;
        };
        let own = self.members.iter_mut();
        let own = own.filter(|(_, member)| member.account == turn.account);
        let waiting = own.filter_map(|(id, member)| match member.state {
            State::Waiting(since) => Some((since, id, member)),
            _ => None,
        });
        let Some((_, id, member)) = waiting.min_by_key(|(since, _, _)| *since) else {
            return false;
        };
        member.state = State::Holding;
        if let Some(ledger) = self.ledgers.get_mut(&member.account) {
            ledger.shared.turns += 1;
        }
        words.push((*id, Word::Turn(most)));
        true
    }

    /// If there are too many guests, forgets those that are away and have had least.
    fn forget(&mut self) {
        while self.ledgers.len() > MOST {
            let members = self.members.values();
            let there: BTreeSet<&AccountKey> = members.map(|member| &member.account).collect();
            let ledgers = self.ledgers.iter();
            let away = ledgers.filter(|(account, _)| !there.contains(account));
            let Some((least, _)) = away.min_by_key(|(_, ledger)| ledger.had) else {
                return;
            };
            let least = least.clone();
            self.ledgers.remove(&least);
        }
    }
}

impl Ledger {
    fn new(had: u128, weight: u32) -> Self {
        Self {
            had,
            shared: Shared {
                weight,
                turns: 0,
                time: Duration::ZERO,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(number: u32) -> AccountKey {
        AccountKey::Local(number)
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Sessions that always have kernels of one length each; the device runs one at a time.
    struct World {
        turns: Turns,
        now: Instant,
        words: Words,
        /// By session number: its guest, weight, kernels' length, and the device's time it has had.
        sessions: Vec<(u32, u32, Duration, Duration)>,
    }

    impl World {
        fn new(sessions: &[(u32, u32, u64)]) -> Self {
            let sessions = sessions.iter();
            let mut world = Self {
                turns: Turns::default(),
                now: Instant::now(),
                words: Words::new(),
                sessions: sessions
                    .map(|(guest, weight, kernel)| (*guest, *weight, ms(*kernel), Duration::ZERO))
                    .collect(),
            };
            for id in 0..world.sessions.len() {
                world.want(id);
            }
            world
        }

        fn want(&mut self, id: usize) {
            let (guest, weight, ..) = self.sessions[id];
            let words = self
                .turns
                .want(id as u64, &account(guest), weight, self.now);
            self.words.extend(words);
        }

        /// Runs the holder of the turn until the device has worked for this time.
        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                assert_eq!(self.words.len(), 1, "one at a time: {:?}", self.words);
                let (id, word) = self.words.remove(0);
                let (Word::Turn(Some(most)) | Word::Yield(most)) = word else {
                    panic!("{id} has it alone");
                };
                let id = usize::try_from(id).unwrap();
                let kernel = self.sessions[id].2;
                let mut used = Duration::ZERO;
                while used < most {
                    used += kernel;
                }
                self.now += used;
                self.sessions[id].3 += used;
                let words = self.turns.over(id as u64, true, self.now);
                self.words.extend(words);
            }
        }

        /// Checks that each guest's part is that of its weight, to within 5 %.
        fn check(&self) {
            for (guest, .., had) in &self.sessions {
                let counted = self.turns.shared(&account(*guest)).unwrap().time;
                assert!(counted >= *had, "{guest}: {counted:?} for {had:?}");
            }
            let all: Duration = self.sessions.iter().map(|session| session.3).sum();
            let weights: u32 = self.sessions.iter().map(|session| session.1).sum();
            for (guest, weight, _, had) in &self.sessions {
                let part = had.as_secs_f64() / all.as_secs_f64();
                let due = f64::from(*weight) / f64::from(weights);
                assert!((part / due - 1.0).abs() < 0.05, "{guest}: {part} for {due}");
            }
        }
    }

    /// The first has the device alone until the second comes.
    fn contended(sessions: &[(u32, u32, u64)]) -> World {
        let mut world = World::new(sessions);
        assert_eq!(world.words[0], (0, Word::Turn(None)));
        assert_eq!(world.words[1], (0, Word::Yield(QUANTUM)));
        world.words.remove(0);
        world
    }

    #[test]
    fn time_is_shared_by_weight_whatever_the_kernels_take() {
        for kernels in [(1, 1), (3, 4), (50, 2), (2, 50)] {
            for weights in [(1, 1), (1, 3), (7, 2)] {
                let mut world = contended(&[(1, weights.0, kernels.0), (2, weights.1, kernels.1)]);
                world.run(Duration::from_secs(20));
                world.check();
            }
        }
    }

    #[test]
    fn ten_guests_have_equal_parts() {
        let sessions: Vec<_> = (0..10)
            .map(|guest| (guest, 1, 1 + u64::from(guest) % 3))
            .collect();
        let mut world = contended(&sessions);
        world.run(Duration::from_secs(20));
        world.check();
    }

    #[test]
    fn who_is_alone_has_it_all_with_all_its_sessions_and_owes_nothing_for_it() {
        let now = Instant::now();
        let mut turns = Turns::default();
        assert_eq!(turns.want(1, &account(1), 1, now), [(1, Word::Turn(None))]);
        assert_eq!(turns.want(2, &account(1), 1, now), [(2, Word::Turn(None))]);
        assert_eq!(turns.deadline(), None);
        // An hour later somebody else wants it, and both give it up.
        let now = now + Duration::from_secs(3600);
        let words = turns.want(3, &account(2), 1, now);
        assert_eq!(
            words,
            [(1, Word::Yield(QUANTUM)), (2, Word::Yield(QUANTUM))]
        );
        let now = now + ms(5);
        assert_eq!(turns.over(1, true, now), []);
        let now = now + ms(5);
        let words = turns.over(2, false, now);
        assert_eq!(words, [(3, Word::Turn(Some(QUANTUM)))]);
        // What it had for an hour is not held against it, and the 10 ms since then not twice: 11 ms later it is its
        // turn again.
        let words = turns.over(3, true, now + ms(11));
        assert_eq!(words, [(1, Word::Turn(Some(QUANTUM)))]);
        assert_eq!(turns.shared(&account(1)).unwrap().time, ms(10));
        assert_eq!(turns.shared(&account(2)).unwrap().time, ms(11));
    }

    #[test]
    fn nobody_saves_time_up_and_nobody_loses_debts_by_going_away() {
        let mut world = contended(&[(1, 1, 5), (2, 1, 5)]);
        world.run(Duration::from_secs(10));
        // A third comes late: it has no ten seconds to catch up on.
        world.sessions.push((3, 1, ms(5), Duration::ZERO));
        world.want(2);
        for session in &mut world.sessions {
            session.3 = Duration::ZERO;
        }
        world.run(Duration::from_secs(10));
        world.check();

        // One that is 50 ms ahead, goes and comes again is still ahead.
        let mut now = Instant::now();
        let mut turns = Turns::default();
        turns.want(1, &account(1), 1, now);
        turns.want(2, &account(2), 1, now);
        now += ms(50);
        let words = turns.over(1, false, now);
        assert_eq!(words, [(2, Word::Turn(None))]);
        let words = turns.want(3, &account(1), 1, now);
        assert_eq!(words, [(2, Word::Yield(QUANTUM))]);
        for _ in 0..9 {
            now += ms(5);
            let words = turns.over(2, true, now);
            assert_eq!(words, [(2, Word::Turn(Some(QUANTUM)))]);
        }
        // Now both have had as much, and the other has waited for longer.
        let words = turns.over(2, true, now + ms(5));
        assert_eq!(words, [(3, Word::Turn(Some(QUANTUM)))]);
    }

    #[test]
    fn one_that_hangs_dies_or_lies_holds_nobody_up() {
        let now = Instant::now();
        let mut turns = Turns::default();
        turns.want(1, &account(1), 1, now);
        turns.want(2, &account(2), 1, now);
        turns.want(3, &account(3), 1, now);
        let late = turns.deadline().unwrap();
        assert_eq!(turns.expire(late - ms(1)), []);
        assert_eq!(turns.expire(late), [(2, Word::Turn(Some(QUANTUM)))]);
        // Words out of turn change nothing.
        assert_eq!(turns.want(1, &account(1), 1, late), []);
        assert_eq!(turns.want(2, &account(2), 1, late), []);
        assert_eq!(turns.over(3, true, late), []);
        assert_eq!(turns.over(9, true, late), []);
        // The next one dies in its turn.
        assert_eq!(turns.gone(2, late), [(3, Word::Turn(Some(QUANTUM)))]);
        // The first gives its turn back at last; that is no end of the third's.
        assert_eq!(turns.over(1, true, late), []);
        assert_eq!(turns.over(3, false, late), [(1, Word::Turn(None))]);
        assert_eq!(turns.gone(1, late), []);
        assert!(turns.members.is_empty() && turns.turn.is_none());
    }

    #[test]
    fn time_beside_a_turn_that_is_overdue_is_charged_to_both() {
        let now = Instant::now();
        let mut turns = Turns::default();
        turns.want(1, &account(1), 1, now);
        turns.want(2, &account(2), 1, now);
        let late = turns.deadline().unwrap();
        // The second goes on by turns, as the first may come back at any moment.
        assert_eq!(turns.expire(late), [(2, Word::Turn(Some(QUANTUM)))]);
        // The first one's other session does not come to the device while the second has work.
        assert_eq!(turns.want(3, &account(1), 1, late), []);
        let now = late + ms(40);
        assert_eq!(turns.over(2, true, now), [(2, Word::Turn(Some(QUANTUM)))]);
        assert_eq!(turns.shared(&account(1)).unwrap().time, OVERDUE + ms(20));
        assert_eq!(turns.shared(&account(2)).unwrap().time, ms(20));
        // Once the kernel has ended it is by time again: the second has 100 ms to come.
        assert_eq!(turns.over(1, true, now), []);
        for _ in 0..20 {
            let words = turns.over(2, true, now + ms(1));
            assert_eq!(words, [(2, Word::Turn(Some(QUANTUM)))]);
        }
    }

    #[test]
    fn a_guest_cannot_hold_the_others_up_with_one_session_after_the_other() {
        let mut now = Instant::now();
        let mut turns = Turns::default();
        // Eight sessions of kernels that do not end, of a guest that has had least for its weight however long they
        // run, beside one that works.
        turns.want(9, &account(2), 1, now);
        for id in 1..=8 {
            turns.want(id, &account(1), 100, now);
        }
        now += ms(5);
        assert_eq!(turns.over(9, true, now), [(1, Word::Turn(Some(QUANTUM)))]);
        now = turns.deadline().unwrap();
        let mut words = turns.expire(now);
        for _ in 0..100 {
            let given = words.iter().find(|(id, _)| *id == 9);
            assert!(given.is_some(), "{words:?}");
            now += ms(5);
            words = turns.over(9, true, now);
        }
    }

    #[test]
    fn a_guest_that_comes_back_at_once_has_no_more_than_its_part() {
        // It gives every turn back as if it wanted no other, and asks anew.
        let mut now = Instant::now();
        let mut turns = Turns::default();
        let mut words = turns.want(1, &account(1), 1, now);
        words.extend(turns.want(2, &account(2), 1, now));
        for _ in 0..1000 {
            now += ms(5);
            let (id, _) = words.pop().unwrap();
            words = match id {
                1 => {
                    let mut words = turns.over(1, false, now);
                    words.extend(turns.want(1, &account(1), 1, now));
                    words
                }
                id => turns.over(id, true, now),
            };
        }
        let time = |guest| turns.shared(&account(guest)).unwrap().time;
        assert!(time(1) <= time(2) + 2 * QUANTUM, "{:?}", time(1));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut now = Instant::now();
        let mut turns = Turns::default();
        turns.want(0, &account(0), 1, now);
        for number in 1..5000 {
            turns.want(number.into(), &account(number), 1, now);
            now += ms(5);
            turns.over(0, true, now);
            now += ms(50);
            turns.over(number.into(), false, now);
        }
        assert!(turns.ledgers.len() <= MOST, "{}", turns.ledgers.len());
        assert_eq!(turns.members.len(), 1);
    }
}
