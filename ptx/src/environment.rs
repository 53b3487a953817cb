//! State besides memory that a device's launches share: printed output, and the heap of `malloc`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::output::{Output, Printed};

/// State besides memory that a device's launches share.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    output: Mutex<Output>,
    heap: Mutex<Heap>,
}

/// The heap of `malloc`: a part of device memory. Every step is logarithmic, whatever a kernel does.
#[derive(Debug, Default)]
struct Heap {
    base: u64,
    size: u64,
    /// Sizes of used and of free ranges, by offset.
    used: BTreeMap<u64, u64>,
    free: BTreeMap<u64, u64>,
    /// Free ranges by size and offset.
    by_size: BTreeSet<(u64, u64)>,
}

impl Heap {
    fn add_free(&mut self, at: u64, size: u64) {
        self.free.insert(at, size);
        self.by_size.insert((size, at));
    }

    fn take_free(&mut self, at: u64, size: u64) {
        self.free.remove(&at);
        self.by_size.remove(&(size, at));
    }

    fn malloc(&mut self, size: u64) -> Option<u64> {
        let size = size.max(1).checked_next_multiple_of(16)?;
        let (room, at) = self.by_size.range((size, 0)..).next().copied()?;
        self.take_free(at, room);
        if room > size {
            self.add_free(at + size, room - size);
        }
        self.used.insert(at, size);
        Some(at)
    }

    fn release(&mut self, at: u64) {
        let Some(mut size) = self.used.remove(&at) else {
            return;
        };
        let mut at = at;
        if let Some((before, n)) = self.free.range(..at).next_back().map(|(o, n)| (*o, *n))
            && before + n == at
        {
            self.take_free(before, n);
            (at, size) = (before, n + size);
        }
        if let Some(n) = self.free.get(&(at + size)).copied() {
            self.take_free(at + size, n);
            size += n;
        }
        self.add_free(at, size);
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Environment {
    pub(crate) fn set_heap(&self, base: u64, size: u64) {
        let mut h = Heap {
            base,
            size,
            ..Heap::default()
        };
        h.add_free(0, size);
        *lock(&self.heap) = h;
    }

    pub(crate) fn heap(&self) -> (u64, u64) {
        let h = lock(&self.heap);
        (h.base, h.size)
    }

    /// The address, or 0 if there is no room.
    pub(crate) fn malloc(&self, size: u64) -> u64 {
        let mut h = lock(&self.heap);
        h.malloc(size).map_or(0, |at| h.base + at)
    }

    pub(crate) fn free(&self, at: u64) {
        let mut h = lock(&self.heap);
        let off = at.wrapping_sub(h.base);
        h.release(off);
    }

    /// Appends a text to the output.
    pub(crate) fn print(&self, text: &[u8]) {
        lock(&self.output).push(text);
    }

    /// Takes at most `most` bytes of the output, the oldest first.
    pub(crate) fn take_printed(&self, most: usize) -> Printed {
        lock(&self.output).take(most)
    }

    /// Keeps at most so many bytes of output.
    pub(crate) fn set_most_printed(&self, most: usize) {
        lock(&self.output).set_most(most);
    }

    pub(crate) fn has_printed(&self) -> bool {
        !lock(&self.output).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heap_gives_what_was_freed_again_and_no_more_than_it_has() {
        let e = Environment::default();
        e.set_heap(4096, 64);
        let a = e.malloc(20);
        let b = e.malloc(32);
        assert_eq!((a, b), (4096, 4128));
        assert_eq!(e.malloc(1), 0);
        e.free(a);
        assert_eq!(e.malloc(32), 4096);
        assert_eq!(e.malloc(u64::MAX), 0);
    }
}
