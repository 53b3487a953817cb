//! TCP connections that have not shown a secret yet: bounded in total and per source.
//!
//! Each connection is served by a worker process of its own, so their number is bounded: in total,
//! and for each source address. A connection without a place waits for one, within bounds too; a
//! host that reconnects all its sessions at once is admitted little by little. No I/O: `T` is the
//! connection.
//!
//! A few sources must not keep the others out, so the source with fewer places comes first, and
//! when all places are taken, the source with most gives one up to a source that has at least two
//! fewer. The queue follows the same rule: when it is full, the source with most loses its last
//! entry.
//!
//! The rate of process starts is bounded as well. A place stays taken for a moment after a
//! rejection, and each source has a bucket of starts. Starts for clients that show a secret go back
//! into that bucket and are charged to their account instead; while the account owes, the place
//! stays taken, which delays only that source.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::fair_queue::{Entry, FairQueue};
use crate::rate::TokenBucket;

/// Looked at, at once.
pub(super) const PLACES: usize = 32;
/// Of these, from one source.
const PLACES_OF_ONE: usize = 8;
/// Waiting for a place.
pub(super) const WAITING: usize = 128;
/// Of these, from one source.
const WAITING_OF_ONE: usize = 64;
/// How long a place stays taken after its holder was not let in.
const REFUSED_PLACE_TIME: Duration = Duration::from_millis(500);
/// How long a place that others need is left to a source with more: enough to show a secret, and a
/// bound on the processes that ever new sources could start.
const CROWDED_PLACE_TIME: Duration = Duration::from_secs(1);
/// How long anybody waits for a place; clients give up at about that time.
const PLACE_WAIT_LIMIT: Duration = Duration::from_secs(10);
/// Processes that one source may start at once, and the interval for each further one.
const STARTS: (u32, Duration) = (16, Duration::from_millis(500));

/// One source: an IPv4 address, or the half of an IPv6 address that a network
/// gives its hosts to fill as they like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Source(IpAddr);

impl Source {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = address.to_bits() >> 64 << 64;
                Self(Ipv6Addr::from_bits(network).into())
            }
            v4 => Self(v4),
        }
    }
}

#[derive(Debug)]
struct Place {
    of: Source,
    since: Instant,
    holder: Holder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    /// Being looked at, in this session.
    Session(u64),
    /// Nobody, until this time.
    Over(Instant),
}

/// Somebody who is to be looked at now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Turn<T> {
    pub(super) connection: T,
    /// The session that gives up its place for that: it is to be ended.
    pub(super) instead_of: Option<u64>,
}

/// How somebody who waits can get a place.
#[derive(Debug, Clone, Copy)]
struct Chance {
    /// No sooner than this.
    at: Instant,
    /// Places that its source has.
    held: usize,
    /// Its place in the queue.
    waiting: usize,
    /// The place that is taken from another source then.
    taken: Option<usize>,
}

/// The places of one source.
#[derive(Debug, Clone, Copy)]
struct Taken {
    places: usize,
    /// When the first of them is free by itself.
    free_from: Option<Instant>,
    /// Which of them was taken first, and when.
    oldest: usize,
    since: Instant,
}

/// The places and the queue.
#[derive(Debug)]
pub(super) struct Unauthenticated<T> {
    places: Vec<Place>,
    waiting: FairQueue<Source, T>,
    /// Of sources that have used some lately. Their number is bounded by that of starts.
    starts: BTreeMap<Source, TokenBucket>,
}

impl<T> Default for Unauthenticated<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            waiting: FairQueue::new(WAITING, WAITING_OF_ONE),
            starts: BTreeMap::new(),
        }
    }
}

impl<T> Unauthenticated<T> {
    /// Takes a connection into the queue. After [`next`](Self::next),
    /// [`crowded_out`](Self::crowded_out) says for whom there is no room.
    pub(super) fn arrive(&mut self, from: IpAddr, connection: T, now: Instant) {
        self.waiting.push(Source::of(from), connection, now);
    }

    /// A connection for which there is no room in the queue.
    pub(super) fn crowded_out(&mut self) -> Option<T> {
        self.waiting.crowded_out().map(|entry| entry.item)
    }

    /// Connections that have waited too long.
    pub(super) fn out_of_patience(&mut self, now: Instant) -> Vec<T> {
        let gone = self.waiting.expire(PLACE_WAIT_LIMIT, now);
        gone.into_iter().map(|entry| entry.item).collect()
    }

    /// The next connection for which there is a place; [`begin`](Self::begin) takes it.
    pub(super) fn next(&mut self, now: Instant) -> Option<Turn<T>> {
        self.places
            .retain(|place| !matches!(place.holder, Holder::Over(at) if at <= now));
        self.starts.retain(|_, bucket| !bucket.is_full(now));
        let chance = self.chance(now).filter(|chance| chance.at <= now)?;
        let instead_of =
            chance
                .taken
                .and_then(|place| match self.places.swap_remove(place).holder {
                    Holder::Session(id) => Some(id),
                    Holder::Over(_) => None,
                });
        let Entry {
            item: connection, ..
        } = self.waiting.remove(chance.waiting)?;
        Some(Turn {
            connection,
            instead_of,
        })
    }

    /// `session` looks at somebody from there.
    pub(super) fn begin(&mut self, from: IpAddr, session: u64, now: Instant) {
        let of = Source::of(from);
        self.places.push(Place {
            of,
            since: now,
            holder: Holder::Session(session),
        });
        let new = || TokenBucket::new(STARTS.0, STARTS.1, now);
        self.starts.entry(of).or_insert_with(new).owe(now);
    }

    /// `session` knows now who it is; its account owes nothing from `paid` on.
    pub(super) fn let_in(&mut self, session: u64, paid: Instant, now: Instant) {
        if let Some(index) = self.place_of(session) {
            if let Some(bucket) = self.starts.get_mut(&self.places[index].of) {
                bucket.put_back();
            }
            self.leave(index, paid, now);
        }
    }

    /// `session` ended without that.
    pub(super) fn refused(&mut self, session: u64, now: Instant) {
        if let Some(index) = self.place_of(session) {
            self.leave(index, now + REFUSED_PLACE_TIME, now);
        }
    }

    fn place_of(&self, session: u64) -> Option<usize> {
        let holder = Holder::Session(session);
        self.places.iter().position(|place| place.holder == holder)
    }

    /// The place is free at the time `at`.
    fn leave(&mut self, index: usize, at: Instant, now: Instant) {
        if at <= now {
            self.places.swap_remove(index);
        } else {
            self.places[index].holder = Holder::Over(at.min(now + PLACE_WAIT_LIMIT));
        }
    }

    /// When a place becomes free or somebody has waited long enough, if anybody waits.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let first = self.waiting.first()? + PLACE_WAIT_LIMIT;
        Some(
            self.chance(now)
                .map_or(first, |chance| chance.at.min(first)),
        )
    }

    /// Sends everybody away who waits.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// The first chance of anybody who waits.
    fn chance(&self, now: Instant) -> Option<Chance> {
        let taken = self.taken();
        // Of each source the one that has waited longest stands for the others.
        let mut first: BTreeMap<Source, usize> = BTreeMap::new();
        for (index, entry) in self.waiting.iter().enumerate() {
            first.entry(entry.key).or_insert(index);
        }
        first
            .into_iter()
            .filter_map(|(source, index)| self.chance_of(source, index, &taken, now))
            .min_by_key(|chance| (chance.at, chance.held, chance.waiting))
    }

    fn chance_of(
        &self,
        source: Source,
        waiting: usize,
        taken: &BTreeMap<Source, Taken>,
        now: Instant,
    ) -> Option<Chance> {
        let own = taken.get(&source);
        let held = own.map_or(0, |own| own.places);
        let soonest = self.starts.get(&source).map_or(now, |it| it.next(now));
        let chance = |at: Instant, taken| Chance {
            at: at.max(soonest),
            held,
            waiting,
            taken,
        };
        if held >= PLACES_OF_ONE {
            return own?.free_from.map(|at| chance(at, None));
        }
        if self.places.len() < PLACES {
            return Some(chance(now, None));
        }
        let freed = taken.values().filter_map(|of| of.free_from).min();
        let freed = freed.map(|at| chance(at, None));
        let richest = taken
            .values()
            .filter(|of| of.places >= held + 2)
            .max_by_key(|of| (of.places, Reverse(of.since)))
            .map(|of| chance((of.since + CROWDED_PLACE_TIME).max(now), Some(of.oldest)));
        freed.into_iter().chain(richest).min_by_key(|it| it.at)
    }

    /// The connections of each source.
    fn taken(&self) -> BTreeMap<Source, Taken> {
        let mut taken: BTreeMap<Source, Taken> = BTreeMap::new();
        for (index, place) in self.places.iter().enumerate() {
            let free_from = match place.holder {
                Holder::Over(at) => Some(at),
                Holder::Session(_) => None,
            };
            let of = taken.entry(place.of).or_insert(Taken {
                places: 0,
                free_from,
                oldest: index,
                since: place.since,
            });
            of.places += 1;
            of.free_from = of.free_from.into_iter().chain(free_from).min();
            if place.since < of.since {
                (of.oldest, of.since) = (index, place.since);
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Everybody for whom there is a place; their sessions are numbered from `first`.
    fn admit(strangers: &mut Unauthenticated<IpAddr>, first: u64, now: Instant) -> Vec<IpAddr> {
        let mut admitted = Vec::new();
        strangers.out_of_patience(now);
        while let Some(turn) = strangers.next(now) {
            let from = turn.connection;
            strangers.begin(from, first + admitted.len() as u64, now);
            admitted.push(from);
        }
        admitted
    }

    #[test]
    fn one_source_leaves_room_for_others_and_gets_its_turn() {
        let now = Instant::now();
        let mut strangers = Unauthenticated::default();
        let (many, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let queued = (0..100).filter(|_| {
            strangers.arrive(many, many, now);
            strangers.crowded_out().is_none()
        });
        assert_eq!(queued.count(), WAITING_OF_ONE);
        strangers.arrive(other, other, now);
        assert_eq!(strangers.crowded_out(), None);
        let admitted = admit(&mut strangers, 0, now);
        assert_eq!(admitted.len(), PLACES_OF_ONE + 1);
        assert!(
            admitted[..3].contains(&other),
            "who has fewer places comes first"
        );
        // Those who are let in make room at once.
        let of_many = admitted
            .iter()
            .enumerate()
            .filter(|(_, from)| **from == many);
        for (session, _) in of_many.take(3) {
            strangers.let_in(session as u64, now, now);
        }
        assert_eq!(admit(&mut strangers, 100, now), [many; 3]);
    }

    #[test]
    fn a_refused_one_keeps_its_place_for_a_moment() {
        let now = Instant::now();
        let mut strangers = Unauthenticated::default();
        let from = address("2001:db8::1");
        for host in 0..20_u16 {
            let neighbour = address(&format!("2001:db8::{host:x}"));
            strangers.arrive(neighbour, from, now);
            assert_eq!(strangers.crowded_out(), None);
        }
        assert_eq!(admit(&mut strangers, 0, now).len(), PLACES_OF_ONE);
        (0..PLACES_OF_ONE as u64).for_each(|session| strangers.refused(session, now));
        assert_eq!(admit(&mut strangers, 100, now).len(), 0);
        assert_eq!(strangers.deadline(now), Some(now + REFUSED_PLACE_TIME));
        assert_eq!(
            admit(&mut strangers, 100, now + REFUSED_PLACE_TIME).len(),
            PLACES_OF_ONE
        );
    }

    #[test]
    fn places_and_patience_are_bounded() {
        let now = Instant::now();
        let mut strangers = Unauthenticated::default();
        for host in 0..200_u8 {
            let from = address(&format!("192.0.2.{host}"));
            strangers.arrive(from, from, now);
        }
        while strangers.crowded_out().is_some() {}
        assert_eq!(admit(&mut strangers, 0, now).len(), PLACES);
        assert_eq!(strangers.deadline(now), Some(now + PLACE_WAIT_LIMIT));
        for session in 0..PLACES as u64 {
            strangers.let_in(session, now, now);
        }
        assert_eq!(admit(&mut strangers, 100, now + PLACE_WAIT_LIMIT).len(), 0);
        assert_eq!(strangers.deadline(now), None);
    }

    #[test]
    fn no_few_sources_keep_another_out() {
        let start = Instant::now();
        for sources in [2, 3, 4, 5, 8, 16] {
            let mut strangers = Unauthenticated::default();
            let crowd: Vec<IpAddr> = (1..=sources)
                .map(|host| address(&format!("192.0.2.{host}")))
                .collect();
            let mut sessions = 0;
            let mut fill = |strangers: &mut Unauthenticated<IpAddr>, now| {
                for from in (0..72).flat_map(|_| &crowd) {
                    strangers.arrive(*from, *from, now);
                    sessions += admit(strangers, sessions, now).len() as u64;
                    while strangers.crowded_out().is_some() {}
                }
            };
            fill(&mut strangers, start);
            let other = address("198.51.100.1");
            let mut now = start;
            for session in 100_000..100_020 {
                // The crowd sends ever new ones, and has its way in between.
                now += CROWDED_PLACE_TIME;
                fill(&mut strangers, now);
                strangers.arrive(other, other, now);
                let turn = strangers.next(now + CROWDED_PLACE_TIME).expect("a place");
                assert_eq!(turn.connection, other, "{sources} sources, {session}");
                strangers.begin(other, session, now);
                strangers.let_in(session, now, now);
                while strangers.crowded_out().is_some() {}
            }
            assert!(strangers.places.len() <= PLACES);
            assert!(strangers.waiting.iter().count() <= WAITING);
        }
    }

    #[test]
    fn the_source_with_most_gives_up_its_oldest_place_and_no_equal_does() {
        let now = Instant::now();
        let mut strangers = Unauthenticated::default();
        let host = |host: usize| address(&format!("192.0.2.{host}"));
        for number in 0..PLACES {
            let from = host(number / PLACES_OF_ONE);
            strangers.arrive(from, from, now + Duration::from_millis(number as u64));
        }
        assert_eq!(admit(&mut strangers, 0, now).len(), PLACES);
        let mut gone = Vec::new();
        let mut now = now;
        for session in 100..200 {
            strangers.arrive(host(9), host(9), now);
            let at = strangers.deadline(now).unwrap();
            now = at.max(now);
            match strangers.next(now) {
                Some(turn) => {
                    strangers.begin(host(9), session, now);
                    gone.extend(turn.instead_of);
                }
                None => break,
            }
        }
        // Places are even now: 7 and 7 and 6 and 6 of the four, 6 of the newcomer.
        assert_eq!(gone.len(), 6);
        assert!(gone.iter().all(|session| *session < 100), "{gone:?}");
        assert_eq!(strangers.taken()[&Source::of(host(9))].places, 6);
    }

    #[test]
    fn a_source_has_a_bucket_of_starts_and_a_secret_pays_for_itself() {
        let start = Instant::now();
        let from = address("192.0.2.1");
        let second = Duration::from_secs(1);
        let mut strangers = Unauthenticated::default();
        let mut started = 0;
        for tick in 0..100 {
            let now = start + second * tick / 10;
            strangers.arrive(from, from, now);
            let first = started;
            started += admit(&mut strangers, first, now).len() as u64;
            (first..started).for_each(|session| strangers.refused(session, now));
        }
        // In ten seconds.
        let (burst, interval) = STARTS;
        let most = u64::from(burst)
            + u64::try_from((10 * second).as_nanos() / interval.as_nanos()).unwrap();
        assert!((most - 2..=most).contains(&started), "{started} of {most}");

        let now = start + 100 * second;
        let mut strangers = Unauthenticated::default();
        for session in 0..100 {
            strangers.arrive(from, from, now);
            assert_eq!(admit(&mut strangers, session, now), [from]);
            strangers.let_in(session, now, now);
        }
        // An account that owes keeps the places of its source, and of nobody else.
        for session in 0..PLACES_OF_ONE as u64 {
            strangers.arrive(from, from, now);
            assert_eq!(admit(&mut strangers, session, now), [from]);
            strangers.let_in(session, now + second, now);
        }
        let other = address("192.0.2.2");
        strangers.arrive(from, from, now);
        strangers.arrive(other, other, now);
        assert_eq!(admit(&mut strangers, 100, now), [other]);
        assert_eq!(strangers.deadline(now), Some(now + second));
        assert_eq!(admit(&mut strangers, 200, now + second), [from]);
    }
}
