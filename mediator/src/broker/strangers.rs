//! Who has connected over TCP and not yet shown a secret: how many at once, and from where.
//!
//! Each is looked at by a worker process of its own, so their number is bounded: in all, and for
//! each source address, so that one address cannot take every place. A place of somebody who was
//! not let in stays taken for a moment, which bounds how often processes are started for him. Who
//! finds no place waits for one, within bounds too; a host that reconnects all its sessions at once
//! is let in little by little. No I/O: `T` is the connection.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Looked at, at once.
const PLACES: usize = 32;
/// Of these, from one source.
const PLACES_OF_ONE: usize = 8;
/// Waiting for a place.
const WAITING: usize = 128;
/// Of these, from one source.
const WAITING_OF_ONE: usize = 64;
/// How long a place stays taken after its holder was not let in.
const HELD: Duration = Duration::from_millis(500);
/// How long anybody waits for a place; clients give up at about that time.
const PATIENCE: Duration = Duration::from_secs(10);

/// What counts as one source: an IPv4 address, or the half of an IPv6 address that a network
/// gives its hosts to fill as they like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
enum Holder {
    /// Being looked at, in this session.
    Session(u64),
    /// Nobody, from this time on.
    Over(Instant),
}

/// The places and the queue.
#[derive(Debug)]
pub(super) struct Strangers<T> {
    places: Vec<(Source, Holder)>,
    waiting: VecDeque<(IpAddr, T, Instant)>,
}

impl<T> Default for Strangers<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            waiting: VecDeque::new(),
        }
    }
}

impl<T> Strangers<T> {
    /// Takes a connection into the queue. Given back if there is no room.
    pub(super) fn arrive(&mut self, from: IpAddr, connection: T, now: Instant) -> Result<(), T> {
        let source = Source::of(from);
        let of_one = |(from, ..): &&(IpAddr, T, Instant)| Source::of(*from) == source;
        if self.waiting.len() >= WAITING
            || self.waiting.iter().filter(of_one).count() >= WAITING_OF_ONE
        {
            return Err(connection);
        }
        self.waiting.push_back((from, connection, now));
        Ok(())
    }

    /// The next connection for which there is a place; [`begin`](Self::begin) takes it.
    pub(super) fn next(&mut self, now: Instant) -> Option<T> {
        self.expire(now);
        if self.places.len() >= PLACES {
            return None;
        }
        let has_place = |from: &IpAddr| {
            let source = Source::of(*from);
            let taken = self.places.iter().filter(|(of, _)| *of == source);
            taken.count() < PLACES_OF_ONE
        };
        let index = self.waiting.iter().position(|(from, ..)| has_place(from))?;
        self.waiting
            .remove(index)
            .map(|(_, connection, _)| connection)
    }

    /// `session` looks at somebody from there.
    pub(super) fn begin(&mut self, from: IpAddr, session: u64) {
        self.places
            .push((Source::of(from), Holder::Session(session)));
    }

    /// `session` knows now who it is.
    pub(super) fn let_in(&mut self, session: u64) {
        self.places
            .retain(|(_, holder)| !matches!(holder, Holder::Session(id) if *id == session));
    }

    /// `session` ended without that.
    pub(super) fn refused(&mut self, session: u64, now: Instant) {
        for (_, holder) in &mut self.places {
            if matches!(holder, Holder::Session(id) if *id == session) {
                *holder = Holder::Over(now + HELD);
            }
        }
    }

    /// When a place becomes free or somebody has waited long enough, if anybody waits.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let (.., first) = self.waiting.front()?;
        let held = self.places.iter().filter_map(|(_, holder)| match holder {
            Holder::Over(at) => Some(*at),
            Holder::Session(_) => None,
        });
        held.chain([*first + PATIENCE]).min()
    }

    /// Sends everybody away who waits.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    fn expire(&mut self, now: Instant) {
        self.places
            .retain(|(_, holder)| !matches!(holder, Holder::Over(at) if *at <= now));
        self.waiting
            .retain(|(.., since)| now.duration_since(*since) < PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Everybody for whom there is a place; their sessions are numbered from `first`.
    fn admit(strangers: &mut Strangers<IpAddr>, first: u64, now: Instant) -> Vec<IpAddr> {
        let mut admitted = Vec::new();
        while let Some(from) = strangers.next(now) {
            strangers.begin(from, first + admitted.len() as u64);
            admitted.push(from);
        }
        admitted
    }

    #[test]
    fn one_source_leaves_room_for_others_and_gets_its_turn() {
        let now = Instant::now();
        let mut strangers = Strangers::default();
        let (many, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let queued = (0..100).filter(|_| strangers.arrive(many, many, now).is_ok());
        assert_eq!(queued.count(), WAITING_OF_ONE);
        strangers.arrive(other, other, now).unwrap();
        let admitted = admit(&mut strangers, 0, now);
        assert_eq!(admitted.len(), PLACES_OF_ONE + 1);
        assert_eq!(admitted.last(), Some(&other));
        // Those who are let in make room at once.
        (0..3).for_each(|session| strangers.let_in(session));
        assert_eq!(admit(&mut strangers, 100, now), [many; 3]);
    }

    #[test]
    fn a_refused_one_keeps_its_place_for_a_moment() {
        let now = Instant::now();
        let mut strangers = Strangers::default();
        let from = address("2001:db8::1");
        for host in 0..20_u16 {
            let neighbour = address(&format!("2001:db8::{host:x}"));
            strangers.arrive(neighbour, from, now).unwrap();
        }
        assert_eq!(admit(&mut strangers, 0, now).len(), PLACES_OF_ONE);
        (0..PLACES_OF_ONE as u64).for_each(|session| strangers.refused(session, now));
        assert_eq!(admit(&mut strangers, 100, now).len(), 0);
        assert_eq!(strangers.deadline(), Some(now + HELD));
        assert_eq!(admit(&mut strangers, 100, now + HELD).len(), PLACES_OF_ONE);
    }

    #[test]
    fn places_and_patience_are_bounded() {
        let now = Instant::now();
        let mut strangers = Strangers::default();
        for host in 0..200_u8 {
            let from = address(&format!("192.0.2.{host}"));
            let _ = strangers.arrive(from, from, now);
        }
        assert_eq!(admit(&mut strangers, 0, now).len(), PLACES);
        assert_eq!(strangers.deadline(), Some(now + PATIENCE));
        for session in 0..PLACES as u64 {
            strangers.let_in(session);
        }
        assert_eq!(admit(&mut strangers, 100, now + PATIENCE).len(), 0);
        assert_eq!(strangers.deadline(), None);
    }
}
