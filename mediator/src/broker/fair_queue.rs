//! A bounded queue in which one that sends many takes room from itself first. No I/O.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Entries in the order in which they came, each of somebody.
#[derive(Debug)]
pub(super) struct FairQueue<K, T> {
    waiting: VecDeque<Entry<K, T>>,
    most: usize,
    most_of_one: usize,
}

/// One that waits.
#[derive(Debug)]
pub(super) struct Entry<K, T> {
    pub(super) key: K,
    pub(super) item: T,
    pub(super) since: Instant,
}

impl<K: PartialEq + Clone, T> FairQueue<K, T> {
    /// Of at most `most` entries, and `most_of_one` of one key.
    pub(super) fn new(most: usize, most_of_one: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            most,
            most_of_one,
        }
    }

    /// Lets one in, also beyond the bounds: it may be taken out at once. Then
    /// [`crowded_out`](Self::crowded_out) keeps them.
    pub(super) fn push(&mut self, key: K, item: T, now: Instant) {
        self.waiting.push_back(Entry {
            key,
            item,
            since: now,
        });
    }

    /// The entry beyond the queue's room: the last one of the key with most entries.
    pub(super) fn crowded_out(&mut self) -> Option<Entry<K, T>> {
        let mut of_each: Vec<(&K, usize, usize)> = Vec::new();
        for (index, entry) in self.waiting.iter().enumerate() {
            match of_each.iter_mut().find(|(key, ..)| **key == entry.key) {
                Some((_, count, last)) => (*count, *last) = (*count + 1, index),
                None => of_each.push((&entry.key, 1, index)),
            }
        }
        // Of several that have as many, the one that came last.
        let (_, count, last) = of_each
            .into_iter()
            .max_by_key(|(_, count, last)| (*count, *last))?;
        if self.waiting.len() <= self.most && count <= self.most_of_one {
            return None;
        }
        self.waiting.remove(last)
    }

    /// Takes out those that have waited for `patience`.
    pub(super) fn expire(&mut self, patience: Duration, now: Instant) -> Vec<Entry<K, T>> {
        let over = |entry: &Entry<K, T>| now.saturating_duration_since(entry.since) >= patience;
        // They lie in the order in which they came.
        let kept = self.waiting.iter().position(|entry| !over(entry));
        let gone = kept.unwrap_or(self.waiting.len());
        self.waiting.drain(..gone).collect()
    }

    /// Since when the first one waits.
    pub(super) fn first(&self) -> Option<Instant> {
        self.waiting.front().map(|entry| entry.since)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry<K, T>> {
        self.waiting.iter()
    }

    /// Takes out the one at this place of [`iter`](Self::iter).
    pub(super) fn remove(&mut self, index: usize) -> Option<Entry<K, T>> {
        self.waiting.remove(index)
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_of_the_one_with_most_makes_room() {
        let now = Instant::now();
        let mut queue = FairQueue::new(4, 3);
        for (number, key) in ["a", "b", "a", "a"].iter().enumerate() {
            queue.push(key, number, now);
            assert!(queue.crowded_out().is_none());
        }
        queue.push(&"a", 4, now);
        assert_eq!(queue.crowded_out().map(|entry| entry.item), Some(4));
        queue.push(&"c", 5, now);
        assert_eq!(queue.crowded_out().map(|entry| entry.item), Some(3));
        assert!(queue.crowded_out().is_none());
        let later = now + Duration::from_secs(1);
        queue.push(&"d", 6, later);
        queue.push(&"d", 7, later);
        let out: Vec<_> = std::iter::from_fn(|| queue.crowded_out()).collect();
        assert_eq!(out.len(), 2);
        let gone = queue.expire(Duration::from_secs(1), later);
        assert!(gone.iter().all(|entry| entry.since == now));
        assert!(queue.iter().all(|entry| entry.since == later));
    }

    proptest! {
        #[test]
        fn whoever_has_least_is_never_crowded_out(keys in prop::collection::vec(0..6_u8, 0..200)) {
            let now = Instant::now();
            let mut queue = FairQueue::new(16, 8);
            for key in keys {
                queue.push(key, (), now);
                let count = |queue: &FairQueue<u8, ()>, key| queue.iter().filter(|at| at.key == key).count();
                let before: Vec<usize> = (0..6).map(|key| count(&queue, key)).collect();
                while let Some(out) = queue.crowded_out() {
                    prop_assert_eq!(before[usize::from(out.key)], *before.iter().max().unwrap());
                }
                prop_assert!(queue.iter().count() <= 16 && count(&queue, key) <= 8);
            }
        }
    }
}
