//! The device memory that a session owns: whatever names an address is checked against it.

use std::collections::BTreeMap;

use vgpu_protocol::op::field::PoolRef;

use super::device::Rows;

/// Alignment of allocations in bytes, and the bytes counted for the smallest.
pub(super) const GRAIN: u64 = 512;

/// The bytes that an allocation of `bytes` counts against the share, or `None` where no device could have it.
pub(super) fn counted(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(GRAIN)
}

/// Owner of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// The guest allocated it.
    Guest,
    /// The guest allocated it from a pool, of which it takes a block.
    Pool(PoolBlock),
    /// A variable of a module.
    Module,
}

/// The part of a pool that an allocation takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PoolBlock {
    /// The pool, which may have been destroyed since.
    pub(super) pool: PoolRef,
    /// Bytes.
    pub(super) bytes: u64,
}

/// By where they begin.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    ranges: BTreeMap<u64, (u64, Owner)>,
    allocations: usize,
}

impl Ranges {
    /// Allocations of the guest.
    pub(super) fn allocations(&self) -> usize {
        self.allocations
    }

    pub(super) fn add_allocation(&mut self, address: u64, bytes: u64) {
        self.ranges.insert(address, (bytes, Owner::Guest));
        self.allocations += 1;
    }

    /// An allocation in a block of a pool.
    pub(super) fn add_from_pool(&mut self, address: u64, bytes: u64, block: PoolBlock) {
        self.ranges.insert(address, (bytes, Owner::Pool(block)));
        self.allocations += 1;
    }

    pub(super) fn add_variable(&mut self, address: u64, bytes: u64) {
        self.ranges.insert(address, (bytes, Owner::Module));
    }

    /// Takes an allocation of the guest out; gives its bytes, and its block where it is of a pool.
    pub(super) fn remove_allocation(&mut self, address: u64) -> Option<(u64, Option<PoolBlock>)> {
        let found = match *self.ranges.get(&address)? {
            (bytes, Owner::Guest) => (bytes, None),
            (bytes, Owner::Pool(block)) => (bytes, Some(block)),
            (_, Owner::Module) => return None,
        };
        self.ranges.remove(&address);
        self.allocations -= 1;
        Some(found)
    }

    pub(super) fn remove_variable(&mut self, address: u64) {
        if matches!(self.ranges.get(&address), Some((_, Owner::Module))) {
            self.ranges.remove(&address);
        }
    }

    /// Whether `bytes` from `address` on lie within one range.
    ///
    /// # Errors
    /// Why not, in words.
    pub(super) fn check(&self, address: u64, bytes: u64) -> Result<(), String> {
        let before = self.ranges.range(..=address).next_back();
        let inside = before.is_some_and(|(start, (len, _))| {
            (address - start)
                .checked_add(bytes)
                .is_some_and(|end| end <= *len)
        });
        if inside {
            return Ok(());
        }
        Err(format!(
            "{bytes} bytes at {address:#x} are not all within one allocation of this session"
        ))
    }

    /// Whether rows lie within one range, from the first byte of the first to the last of the last.
    ///
    /// # Errors
    /// Why not, in words.
    pub(super) fn check_rows(&self, rows: Rows) -> Result<(), String> {
        match rows.span() {
            Some(bytes) => self.check(rows.address, bytes),
            None => Err(format!("{rows:x?} are more than any memory has")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_inside_to_the_byte() {
        let mut ranges = Ranges::default();
        ranges.add_allocation(0x1000, 100);
        ranges.add_allocation(0x1064, 10);
        for (address, bytes) in [(0x1000, 100), (0x1000, 1), (0x1063, 1), (0x1064, 10)] {
            assert_eq!(ranges.check(address, bytes), Ok(()), "{address:#x} {bytes}");
        }
        for (address, bytes) in [
            (0xfff, 1),
            (0xfff, 2),
            (0x1000, 101),
            (0x1063, 2),
            (0x1063, u64::MAX),
            (0x1064, 11),
            (0x106e, 1),
            (0, u64::MAX),
            (u64::MAX, 1),
            (u64::MAX, u64::MAX),
        ] {
            assert!(
                ranges.check(address, bytes).is_err(),
                "{address:#x} {bytes}"
            );
        }
    }

    #[test]
    fn a_guest_frees_what_it_allocated_and_nothing_else() {
        let mut ranges = Ranges::default();
        ranges.add_allocation(0x1000, 100);
        ranges.add_variable(0x2000, 8);
        assert_eq!(ranges.allocations(), 1);
        assert_eq!(ranges.remove_allocation(0x1001), None);
        assert_eq!(ranges.remove_allocation(0x2000), None);
        ranges.remove_variable(0x1000);
        assert_eq!(ranges.check(0x1000, 1), Ok(()));
        assert_eq!(ranges.remove_allocation(0x1000), Some((100, None)));
        assert_eq!(ranges.remove_allocation(0x1000), None);
        let block = PoolBlock {
            pool: PoolRef::DEFAULT,
            bytes: 512,
        };
        ranges.add_from_pool(0x3000, 5, block);
        assert!(ranges.check(0x3000, 6).is_err());
        assert_eq!(ranges.remove_allocation(0x3000), Some((5, Some(block))));
        assert!(ranges.check(0x1000, 1).is_err());
        ranges.remove_variable(0x2000);
        assert!(ranges.check(0x2000, 1).is_err());
        assert_eq!(ranges.allocations(), 0);
    }

    #[test]
    fn small_allocations_count_what_they_take() {
        assert_eq!(counted(1), Some(512));
        assert_eq!(counted(512), Some(512));
        assert_eq!(counted(513), Some(1024));
        assert_eq!(counted(u64::MAX), None);
    }
}
