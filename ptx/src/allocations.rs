//! A device's allocations: addresses, the bytes behind them, copies.

use std::sync::Arc;

use crate::error::{Code, Error, invalid};
use crate::memory::{Bytes, HostMemory};
use crate::quota::{Charge, Quota};
use crate::space::{CONST, END, GLOBAL, Kind, LOWEST, Region};

/// Bytes that stay unmapped between two allocations, at least.
const GUARD: u64 = 2 << 20;
/// Allocations begin at multiples of this, and count against the quota in multiples of it.
pub(crate) const ALIGN: u64 = 512;

/// All regions of a device.
#[derive(Debug)]
pub(crate) struct Allocations {
    /// Sorted by address. A launch keeps the list it began with.
    regions: Arc<Vec<Arc<Region>>>,
    quota: Arc<Quota>,
    next: u64,
    next_const: u64,
}

impl Allocations {
    pub(crate) fn new(quota: u64) -> Self {
        Self {
            regions: Arc::default(),
            quota: Quota::new(quota),
            next: GLOBAL,
            next_const: CONST,
        }
    }

    pub(crate) fn list(&self) -> Arc<Vec<Arc<Region>>> {
        Arc::clone(&self.regions)
    }

    pub(crate) fn quota(&self) -> &Quota {
        &self.quota
    }

    /// A new region, all zero.
    pub(crate) fn add(&mut self, bytes: u64, read_only: bool) -> Result<u64, Error> {
        let full = || {
            let quota = self.quota.limit();
            Error::new(
                Code::OutOfMemory,
                format!("{bytes} bytes: the quota of {quota} bytes does not allow it"),
            )
        };
        let size = bytes.checked_next_multiple_of(ALIGN).ok_or_else(full)?;
        let charge = self.quota.take(size).ok_or_else(full)?;
        let base = self.place(size, read_only).ok_or_else(full)?;
        let storage = Bytes::zeroed(bytes).ok_or_else(full)?;
        let after = base + size + GUARD;
        if read_only {
            self.next_const = after;
        } else {
            self.next = after;
        }
        self.insert(base, storage, Kind::of(read_only), charge);
        Ok(base)
    }

    /// Makes memory of the program's part of the device: at its own address, if nothing is there and the device has
    /// such addresses.
    pub(crate) fn register(&mut self, memory: &HostMemory) -> Result<u64, Error> {
        let full = || Error::new(Code::OutOfMemory, "no addresses are left for it");
        let len = memory.len();
        let charge = self.quota.take(0).ok_or_else(full)?;
        let own = memory.address();
        let base = match (LOWEST..END).contains(&own) && self.is_free(own, len) {
            true => own,
            false => {
                let size = len.checked_next_multiple_of(ALIGN).ok_or_else(full)?;
                let base = self.place(size, false).ok_or_else(full)?;
                self.next = base + size + GUARD;
                base
            }
        };
        self.insert(base, memory.bytes(), Kind::Host, charge);
        Ok(base)
    }

    /// Where `size` bytes can begin with nothing near them: behind the last place, or in a gap once all addresses have
    /// been used.
    fn place(&self, size: u64, read_only: bool) -> Option<u64> {
        let (start, end, next) = match read_only {
            true => (CONST, CONST + (1 << 40), self.next_const),
            false => (GLOBAL, END, self.next),
        };
        let room = size.checked_add(GUARD)?;
        let from_next = self.gap(next, end, room);
        from_next.or_else(|| self.gap(start, end, room))
    }

    /// Whether no region has any of these addresses.
    fn is_free(&self, address: u64, len: u64) -> bool {
        let Some(end) = address.checked_add(len).filter(|end| *end <= END) else {
            return false;
        };
        let after = self.regions.partition_point(|r| r.base < end);
        let before = after.checked_sub(1).map(|at| &self.regions[at]);
        before.is_none_or(|r| r.base + r.bytes.len() <= address)
    }

    fn insert(&mut self, base: u64, bytes: Bytes, kind: Kind, charge: Charge) {
        // Copied only if a running launch holds the list.
        let list = Arc::make_mut(&mut self.regions);
        let at = list.partition_point(|r| r.base < base);
        list.insert(
            at,
            Arc::new(Region {
                base,
                bytes,
                kind,
                _charge: charge,
            }),
        );
    }

    /// The first gap of more than `room` bytes between `from` and `end`.
    fn gap(&self, from: u64, end: u64, room: u64) -> Option<u64> {
        let mut at = from;
        let first = self.regions.partition_point(|r| r.base < from);
        let there = &self.regions[first.saturating_sub(1)..];
        for r in there.iter().take_while(|r| r.base < end) {
            // Memory of the program's may come nearer to others than allocations do.
            if r.base.saturating_sub(at) > room {
                return Some(at);
            }
            let after = (r.base + r.bytes.len()).next_multiple_of(ALIGN);
            at = at.max(after + GUARD);
        }
        (end.saturating_sub(at) > room).then_some(at)
    }

    /// Takes the allocation that begins at an address out of the list.
    pub(crate) fn remove(&mut self, address: u64) -> Result<Arc<Region>, Error> {
        self.take_out(address, Kind::Memory)
    }

    /// The same for memory of the program's.
    pub(crate) fn unregister(&mut self, address: u64) -> Result<Arc<Region>, Error> {
        self.take_out(address, Kind::Host)
    }

    fn take_out(&mut self, address: u64, kind: Kind) -> Result<Arc<Region>, Error> {
        let at = self.regions.binary_search_by_key(&address, |r| r.base);
        let Some(at) = at.ok().filter(|k| self.regions[*k].kind == kind) else {
            return invalid(format!("nothing is allocated at 0x{address:x}"));
        };
        Ok(Arc::make_mut(&mut self.regions).remove(at))
    }

    /// Takes all regions that begin at one of these addresses out of the list.
    pub(crate) fn remove_all(&mut self, addresses: &[u64]) -> Vec<Arc<Region>> {
        let (gone, kept) = self
            .regions
            .iter()
            .cloned()
            .partition(|r| addresses.contains(&r.base));
        self.regions = Arc::new(kept);
        gone
    }

    /// The region that holds all of a range.
    pub(crate) fn region(&self, address: u64, len: u64) -> Result<Arc<Region>, Error> {
        let at = self
            .regions
            .partition_point(|r| r.base <= address)
            .checked_sub(1);
        let r = at.map(|k| &self.regions[k]).filter(|r| {
            (address - r.base)
                .checked_add(len)
                .is_some_and(|end| end <= r.bytes.len())
        });
        r.cloned().ok_or_else(|| {
            Error::new(
                Code::InvalidValue,
                format!("{len} bytes at 0x{address:x} are not all allocated"),
            )
        })
    }
}

/// A part of a region, for copies.
#[derive(Debug)]
pub(crate) struct Range {
    region: Arc<Region>,
    at: u64,
}

impl Range {
    pub(crate) fn new(region: Arc<Region>, address: u64) -> Self {
        let at = address - region.base;
        Self { region, at }
    }

    pub(crate) fn read(&self, at: u64, out: &mut [u8]) -> Result<(), Error> {
        let done = self.region.bytes.read(self.at + at, out);
        done.map_or_else(|| invalid("out of range"), Ok)
    }

    pub(crate) fn write(&self, at: u64, data: &[u8]) -> Result<(), Error> {
        let done = self.region.bytes.write(self.at + at, data);
        done.map_or_else(|| invalid("out of range"), Ok)
    }
}

/// Rows of bytes on a device, at equal distances. One row is a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// Address of the first.
    pub address: u64,
    /// Bytes from the beginning of one to that of the next.
    pub pitch: u64,
    /// Bytes of each.
    pub width: u64,
    /// How many there are.
    pub height: u64,
}

impl Rows {
    /// One row.
    #[must_use]
    pub fn range(address: u64, bytes: u64) -> Self {
        Self {
            address,
            pitch: bytes,
            width: bytes,
            height: 1,
        }
    }

    /// Bytes from the first of the first row to the last of the last one.
    pub(crate) fn span(&self) -> Result<u64, Error> {
        let last = match self.height {
            0 => return Ok(0),
            height => (height - 1).checked_mul(self.pitch),
        };
        let span = last.and_then(|last| last.checked_add(self.width));
        span.map_or_else(|| invalid("rows that no memory holds"), Ok)
    }

    /// The bytes of all rows.
    pub(crate) fn bytes(&self) -> Result<u64, Error> {
        let bytes = self.width.checked_mul(self.height);
        bytes.map_or_else(|| invalid("rows that no memory holds"), Ok)
    }
}

/// A copy or a fill, done a piece at a time so that others get their turn between two pieces.
#[derive(Debug)]
pub(crate) struct Transfer {
    to: Range,
    to_pitch: u64,
    source: Source,
    width: u64,
    height: u64,
    /// Rows that are done, and bytes of the next.
    row: u64,
    done: u64,
    buffer: Vec<u8>,
}

#[derive(Debug)]
enum Source {
    /// Backward: the ranges overlap so that the last bytes go first.
    Device {
        from: Range,
        pitch: u64,
        backward: bool,
    },
    /// The buffer holds the element repeated.
    Pattern,
}

/// Bytes of a piece: some tens of microseconds.
pub(crate) const PIECE: usize = 256 << 10;

/// Bytes that another row in a piece counts for beyond its own.
pub(crate) const ROW: usize = 64;

fn piece(bytes: u64) -> usize {
    usize::try_from(bytes).map_or(PIECE, |n| n.min(PIECE))
}

impl Transfer {
    /// Rows of the same shape within the device. Two ranges may overlap.
    pub(crate) fn copy(to: (Range, Rows), from: (Range, Rows)) -> Self {
        let ((to, shape), (from, Rows { pitch, .. })) = (to, from);
        let backward = to.region.base + to.at > from.region.base + from.at;
        let source = Source::Device {
            from,
            pitch,
            backward,
        };
        Self::new(to, shape, source, vec![0; piece(shape.width)])
    }

    /// An element repeated; its size divides [`PIECE`].
    pub(crate) fn fill((to, shape): (Range, Rows), element: &[u8]) -> Self {
        let pattern = element.repeat(piece(shape.width).div_ceil(element.len().max(1)));
        Self::new(to, shape, Source::Pattern, pattern)
    }

    fn new(to: Range, shape: Rows, source: Source, buffer: Vec<u8>) -> Self {
        Self {
            to,
            to_pitch: shape.pitch,
            source,
            width: shape.width,
            height: if shape.width == 0 { 0 } else { shape.height },
            row: 0,
            done: 0,
            buffer,
        }
    }

    /// Does the next piece. True: there are more.
    pub(crate) fn step(&mut self) -> Result<bool, Error> {
        let mut room = PIECE;
        while room > 0 && self.row < self.height {
            let left = self.width - self.done;
            // Whole elements, as is all that is taken from the room.
            let n = piece(left).min(room);
            self.part(left, n)?;
            self.done += n as u64;
            room = room.saturating_sub(n + ROW);
            if self.done == self.width {
                self.row += 1;
                self.done = 0;
            }
        }
        Ok(self.row < self.height)
    }

    /// The next `n` bytes of a row with this many left.
    fn part(&mut self, left: u64, n: usize) -> Result<(), Error> {
        let to = self.row * self.to_pitch;
        match &self.source {
            Source::Device {
                from,
                pitch,
                backward,
            } => {
                let at = match backward {
                    true => left - n as u64,
                    false => self.done,
                };
                from.read(self.row * pitch + at, &mut self.buffer[..n])?;
                self.to.write(to + at, &self.buffer[..n])
            }
            Source::Pattern => self.to.write(to + self.done, &self.buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::NonNull;

    /// Two pages of this program's, never unmapped.
    #[expect(unsafe_code, reason = "what is leaked stays there")]
    fn host() -> HostMemory {
        #[repr(align(4096))]
        struct Pages(#[expect(dead_code, reason = "its address is all")] [u8; 8192]);
        let at = NonNull::from(Box::leak(Box::new(Pages([0; 8192])))).cast();
        // SAFETY: nothing else has the address.
        unsafe { HostMemory::new(at, 8192, Arc::new(())) }.unwrap()
    }

    /// The same at another place, where nobody looks.
    #[expect(unsafe_code, reason = "its bytes are not used")]
    fn host_at(address: usize) -> HostMemory {
        let at = NonNull::new(std::ptr::without_provenance_mut(address)).unwrap();
        // SAFETY: nothing here reads or writes it.
        unsafe { HostMemory::new(at, 8192, Arc::new(())) }.unwrap()
    }

    fn apart(a: &Allocations) -> bool {
        let pairs = a.regions.windows(2);
        pairs
            .into_iter()
            .all(|w| w[0].base + w[0].bytes.len() <= w[1].base)
    }

    #[test]
    fn memory_of_the_program_keeps_its_address_or_gets_another() {
        let mut a = Allocations::new(1 << 20);
        let first = a.add(512, false).unwrap();
        let memory = host();
        let at = a.register(&memory).unwrap();
        let fits = (LOWEST..END).contains(&memory.address());
        assert_eq!(at == memory.address(), fits);
        // Its place is taken now.
        let again = a.register(&memory).unwrap();
        assert!(again != at && again >= GLOBAL && apart(&a));
        assert_eq!(a.quota().used(), 512);
        // Neither kind is taken for the other.
        assert!(a.remove(at).is_err() && a.unregister(first).is_err());
        assert!(a.unregister(at + 64).is_err());
        a.unregister(at).unwrap();
        assert!(a.region(at, 1).is_err());
        a.unregister(again).unwrap();
        a.remove(first).unwrap();
        assert!(a.regions.is_empty());
    }

    #[test]
    fn memory_of_the_program_may_be_anywhere_but_in_a_window() {
        let mut a = Allocations::new(1 << 20);
        for own in [LOWEST, GLOBAL - 8192, GLOBAL - 4096, END - 8192] {
            let at = a.register(&host_at(usize::try_from(own).unwrap())).unwrap();
            assert_eq!(at == own, own != GLOBAL - 4096, "{own:x}");
        }
        for own in [64, LOWEST - 8192, CONST, END - 4096] {
            let at = a.register(&host_at(usize::try_from(own).unwrap())).unwrap();
            assert!(at >= GLOBAL && at != own, "{own:x} at {at:x}");
        }
        assert!(apart(&a));
    }

    #[test]
    fn allocations_keep_clear_of_what_lies_ahead() {
        let mut a = Allocations::new(1 << 30);
        let mut places = Vec::new();
        // As if the program had memory wherever the next allocation would begin.
        for ahead in [0, 1, GUARD / 2, GUARD, GUARD + 4096] {
            let base = a.next + ahead;
            let charge = a.quota.take(0).unwrap();
            a.insert(base, host().bytes(), Kind::Host, charge);
            places.push(a.add(8192, false).unwrap());
            assert!(apart(&a), "{ahead}: {a:?}");
        }
        // When all addresses have been used, gaps between them serve.
        a.next = END - GUARD;
        let gone = places[2];
        a.remove(gone).unwrap();
        for _ in 0..8 {
            a.add(8192, false).unwrap();
            assert!(apart(&a), "{a:?}");
        }
    }
}
