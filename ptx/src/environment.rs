//! What launches of a device share besides memory: what was printed, and the heap of `malloc`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of output that are kept; the oldest are dropped, as on a GPU.
const OUTPUT: usize = 1 << 20;

/// What launches of a device share besides memory.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    output: Mutex<Output>,
    heap: Mutex<Heap>,
}

#[derive(Debug, Default)]
struct Output {
    texts: VecDeque<Vec<u8>>,
    total: usize,
}

/// The heap of `malloc`: a part of device memory. Every step is logarithmic, whatever a kernel does.
#[derive(Debug, Default)]
struct Heap {
    base: u64,
    size: u64,
    /// Sizes of what is in use, and of what is free, by offset.
    used: BTreeMap<u64, u64>,
    free: BTreeMap<u64, u64>,
    /// What is free by size and offset.
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

    /// The address, or 0 where there is no room.
    pub(crate) fn malloc(&self, size: u64) -> u64 {
        let mut h = lock(&self.heap);
        h.malloc(size).map_or(0, |at| h.base + at)
    }

    pub(crate) fn free(&self, at: u64) {
        let mut h = lock(&self.heap);
        let off = at.wrapping_sub(h.base);
        h.release(off);
    }

    /// Keeps a text, and drops the oldest beyond what is kept.
    pub(crate) fn print(&self, text: Vec<u8>) {
        if text.is_empty() {
            return;
        }
        let mut o = lock(&self.output);
        o.total += text.len();
        o.texts.push_back(text);
        while o.total > OUTPUT {
            let gone = o.texts.pop_front().map_or(0, |t| t.len());
            o.total -= gone;
        }
    }

    /// All output since the last call.
    pub(crate) fn take_output(&self) -> Vec<u8> {
        std::mem::take(&mut *lock(&self.output))
            .texts
            .into_iter()
            .flatten()
            .collect()
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
