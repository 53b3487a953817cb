//! A device's allocations: addresses, the bytes behind them, copies.

use std::sync::Arc;

use crate::error::{Code, Error, invalid};
use crate::memory::Bytes;
use crate::quota::Quota;
use crate::space::{CONST, END, GLOBAL, Region};

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
        let (start, end) = if read_only {
            (CONST, CONST + (1 << 40))
        } else {
            (GLOBAL, END)
        };
        let room = size + GUARD;
        let next = if read_only {
            self.next_const
        } else {
            self.next
        };
        let base = if end - next > room {
            next
        } else {
            self.gap(start, end, room).ok_or_else(full)?
        };
        let storage = Bytes::zeroed(bytes).ok_or_else(full)?;
        let after = base + room;
        if read_only {
            self.next_const = after;
        } else {
            self.next = after;
        }
        // Copied only if a running launch holds the list.
        let list = Arc::make_mut(&mut self.regions);
        let at = list.partition_point(|r| r.base < base);
        list.insert(
            at,
            Arc::new(Region {
                base,
                bytes: storage,
                read_only,
                _charge: charge,
            }),
        );
        Ok(base)
    }

    /// A gap between allocations, for when all addresses have been used.
    fn gap(&self, start: u64, end: u64, room: u64) -> Option<u64> {
        let mut at = start;
        let there = self.regions.iter();
        for r in there.filter(|r| (start..end).contains(&r.base)) {
            if r.base - at > room {
                return Some(at);
            }
            at = r.base + r.bytes.len().next_multiple_of(ALIGN) + GUARD;
        }
        (end.saturating_sub(at) > room).then_some(at)
    }

    /// Takes the region that begins at an address out of the list.
    pub(crate) fn remove(&mut self, address: u64) -> Result<Arc<Region>, Error> {
        let at = self.regions.binary_search_by_key(&address, |r| r.base);
        let Some(at) = at.ok().filter(|k| !self.regions[*k].read_only) else {
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
