//! The state of one guest. Time and names come in, decisions go out; no I/O.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::name::is_channel;
use crate::policy::{Identity, Judgement};
use crate::rate::TokenBucket;

/// The xenstore directory of all domains.
pub(super) const DOMAINS: &str = "/local/domain";

/// Children of `data/vgpu` that are looked at. A guest that makes more harms only itself.
const MOST_NAMES: usize = 64;

/// Channels of one guest that may be with the broker at once.
const MOST_ANNOUNCED: usize = 16;

/// How long a channel for which there is no room is put off.
const LATER: Duration = Duration::from_secs(1);

/// How long a channel whose keys make no sense is left alone.
const IGNORED: Duration = Duration::from_secs(30);

/// After a channel that led nowhere, the guest's next one waits so long; twice as long after each
/// further one, up to the second figure. Trying one costs dom0 a process.
const PENALTY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Events of one guest closer than this make one look.
const DEBOUNCE: Duration = Duration::from_millis(5);

/// A guest's identity, what the policy says about it, and its channels.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) identity: Identity,
    pub(super) judgement: Judgement,
    /// When the next look is due, if one is.
    look_at: Option<Instant>,
    looks: TokenBucket,
    /// Each announcement starts a process in dom0, so their rate is bounded too.
    announcements: TokenBucket,
    /// None is announced before this.
    not_before: Instant,
    penalty: Duration,
    channels: BTreeMap<String, Channel>,
}

#[derive(Debug)]
enum Channel {
    /// With the broker.
    Announced,
    /// To be announced again, if it is still there then.
    Later(Instant),
}

/// The action for the next look at the guest's node.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) name: String,
    pub(super) again: bool,
}

impl Guest {
    pub(super) fn new(identity: Identity, judgement: Judgement, now: Instant) -> Self {
        Self {
            identity,
            judgement,
            look_at: None,
            looks: TokenBucket::new(4, Duration::from_millis(200), now),
            announcements: TokenBucket::new(16, Duration::from_millis(500), now),
            not_before: now,
            penalty: PENALTY.0,
            channels: BTreeMap::new(),
        }
    }

    /// Its home in xenstore.
    pub(super) fn home(&self) -> String {
        home(self.identity.domid)
    }

    /// Something below its `data/vgpu` has changed.
    pub(super) fn mark(&mut self, now: Instant) {
        let allowed = self.looks.next(now).max(now + DEBOUNCE);
        self.look_at.get_or_insert(allowed);
    }

    /// When [`look`](Self::is_due) is due next.
    pub(super) fn due_at(&self) -> Option<Instant> {
        if !self.judgement.allow {
            return None;
        }
        let later = self.channels.values().filter_map(|channel| match channel {
            Channel::Later(at) => Some(*at),
            Channel::Announced => None,
        });
        self.look_at.into_iter().chain(later).min()
    }

    /// Whether to look now; counts the look.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        if self.due_at().is_none_or(|at| at > now) {
            return false;
        }
        if !self.looks.take(now) {
            self.look_at = Some(self.looks.next(now));
            return false;
        }
        self.look_at = None;
        true
    }

    /// The names to look into, of those that `data/vgpu` holds. Forgets what is gone.
    pub(super) fn candidates(&mut self, names: &[Box<str>], now: Instant) -> Vec<Candidate> {
        self.channels.retain(|name, channel| {
            matches!(channel, Channel::Announced) || names.iter().any(|there| **there == **name)
        });
        let announced = |channel: &&Channel| matches!(channel, Channel::Announced);
        let room = MOST_ANNOUNCED.saturating_sub(self.channels.values().filter(announced).count());
        let mut candidates: Vec<Candidate> = names
            .iter()
            .filter(|name| is_channel(name))
            .take(MOST_NAMES)
            .filter_map(|name| {
                match self.channels.get(&**name) {
                    None => Some(false),
                    Some(Channel::Later(at)) if *at <= now => Some(true),
                    Some(_) => None,
                }
                .map(|again| Candidate {
                    name: name.to_string(),
                    again,
                })
            })
            .collect();
        // Those that wait for the longest time first.
        candidates.sort_by_key(|candidate| !candidate.again);
        candidates.truncate(room);
        candidates
    }

    /// Whether the candidate may be announced now; if not, another look is due later.
    pub(super) fn announce(&mut self, name: &str, now: Instant) -> bool {
        if now < self.not_before || !self.announcements.take(now) {
            let next = self.announcements.next(now).max(self.not_before);
            self.look_at = Some(self.look_at.map_or(next, |at| at.min(next)));
            return false;
        }
        self.channels.insert(name.to_owned(), Channel::Announced);
        true
    }

    /// The broker has no room for the channel.
    pub(super) fn put_off(&mut self, name: &str, now: Instant) {
        if let Some(channel) = self.channels.get_mut(name) {
            *channel = Channel::Later(now + LATER);
        }
    }

    /// The channel's keys make no sense.
    pub(super) fn ignore(&mut self, name: &str, now: Instant) {
        self.channels
            .insert(name.to_owned(), Channel::Later(now + IGNORED));
    }

    /// The session on the channel is over, or `failed` to begin. There may be room for another.
    pub(super) fn over(&mut self, name: &str, failed: bool, now: Instant) {
        self.channels.remove(name);
        if failed {
            self.not_before = now + self.penalty;
            self.penalty = (self.penalty * 2).min(PENALTY.1);
        } else {
            self.penalty = PENALTY.0;
        }
        self.mark(now);
    }
}

/// A domain's home in xenstore.
pub(super) fn home(domid: u16) -> String {
    format!("{DOMAINS}/{domid}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(now: Instant) -> Guest {
        let judgement = Judgement {
            allow: true,
            max_sessions: None,
            why: String::new(),
        };
        Guest::new(Identity::default(), judgement, now)
    }

    fn name(number: usize) -> Box<str> {
        format!("{number:016x}").into()
    }

    fn names(numbers: std::ops::Range<usize>) -> Vec<Box<str>> {
        numbers.map(name).collect()
    }

    #[test]
    fn a_new_channel_is_announced_once() {
        let now = Instant::now();
        let mut guest = guest(now);
        assert_eq!(guest.due_at(), None);
        guest.mark(now);
        assert!(!guest.is_due(now), "events are collected for a moment");
        let now = now + DEBOUNCE;
        assert!(guest.is_due(now));
        assert!(!guest.is_due(now));
        let there = ["mediator".into(), name(1), "junk".into()];
        let found = guest.candidates(&there, now);
        assert_eq!(found.len(), 1);
        assert_eq!((&*found[0].name, found[0].again), (&*name(1), false));
        assert!(guest.announce(&found[0].name, now));
        assert!(guest.candidates(&there, now).is_empty());
        // The guest removes its keys once it is connected; that makes nothing new.
        assert!(guest.candidates(&[], now).is_empty());
        assert!(guest.candidates(&there, now).is_empty());
        guest.over(&name(1), false, now);
        assert_eq!(guest.candidates(&there, now).len(), 1);
    }

    #[test]
    fn a_flood_of_events_makes_five_looks_a_second() {
        let start = Instant::now();
        let mut guest = guest(start);
        let looks = (0..10_000)
            .filter(|ms| {
                let now = start + Duration::from_millis(*ms);
                guest.mark(now);
                guest.is_due(now)
            })
            .count();
        assert!((45..=60).contains(&looks), "{looks}");
    }

    #[test]
    fn a_flood_of_names_is_bounded_in_number_and_rate() {
        let start = Instant::now();
        let mut guest = guest(start);
        let there = names(0..100_000);
        let found = guest.candidates(&there, start);
        assert_eq!(found.len(), MOST_ANNOUNCED);
        for candidate in &found {
            assert!(guest.announce(&candidate.name, start));
        }
        assert!(guest.candidates(&there, start).is_empty());
        // They fail at once, and the next ones come: two a second from here on.
        for candidate in &found {
            guest.over(&candidate.name, false, start);
        }
        let found = guest.candidates(&there, start);
        assert!(!guest.announce(&found[0].name, start));
        assert!(guest.due_at().is_some());
        assert!(guest.announce(&found[0].name, start + Duration::from_millis(500)));
    }

    #[test]
    fn what_is_put_off_comes_again_if_it_still_waits() {
        let now = Instant::now();
        let mut guest = guest(now);
        for number in 0..2 {
            assert!(guest.announce(&name(number), now));
            guest.put_off(&name(number), now);
        }
        assert!(guest.candidates(&names(0..2), now).is_empty());
        assert_eq!(guest.due_at(), Some(now + LATER));
        let now = now + LATER;
        assert!(guest.is_due(now));
        // The guest has given up on the first.
        let found = guest.candidates(&names(1..3), now);
        let again: Vec<_> = found
            .iter()
            .map(|found| (&*found.name, found.again))
            .collect();
        assert_eq!(again, [(&*name(1), true), (&*name(2), false)]);
        assert_eq!(guest.channels.len(), 1);
    }

    #[test]
    fn channels_that_lead_nowhere_are_tried_ever_less_often() {
        let mut now = Instant::now();
        let mut guest = guest(now);
        let mut waits = Vec::new();
        for number in 0..9 {
            let before = now;
            while !guest.announce(&name(number), now) {
                now = guest.due_at().expect("another look is due");
                assert!(guest.is_due(now));
            }
            waits.push(now.duration_since(before).as_secs());
            guest.over(&name(number), true, now);
        }
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        // One that works ends the penalty.
        now += PENALTY.1;
        assert!(guest.announce(&name(10), now));
        guest.over(&name(10), false, now);
        assert!(guest.announce(&name(11), now));
        guest.over(&name(11), true, now);
        assert!(guest.announce(&name(12), now + PENALTY.0));
    }

    #[test]
    fn a_channel_without_sense_is_left_alone_for_a_while() {
        let now = Instant::now();
        let mut guest = guest(now);
        guest.ignore(&name(1), now);
        assert!(guest.candidates(&names(1..2), now).is_empty());
        assert_eq!(guest.candidates(&names(1..2), now + IGNORED).len(), 1);
    }

    #[test]
    fn a_denied_guest_is_never_looked_at() {
        let now = Instant::now();
        let mut guest = guest(now);
        guest.judgement.allow = false;
        guest.mark(now);
        assert!(!guest.is_due(now + Duration::from_secs(9)));
    }
}
