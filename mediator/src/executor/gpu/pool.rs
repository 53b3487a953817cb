//! Stream-ordered memory: what a stream has freed is allocated again in its order, without a call of the driver.
//!
//! The driver's own pools take memory from the device many megabytes at a time and give it back when they like, so that
//! a quota could count it afterwards only. This one has each allocation from the device as it is, keeps what is freed,
//! and is the same for every device.

use std::collections::{BTreeMap, VecDeque};

use vgpu_protocol::op::MemoryAllocateAsyncReply;
use vgpu_protocol::op::{
    Body, MemoryAllocateAsync, MemoryFreeAsync, MemoryFreeAsyncReply, MemoryPoolInfoReply,
    MemoryPoolSetAttribute, MemoryPoolSetAttributeReply, MemoryPoolTrimReply,
};
use vgpu_protocol::session::server::Failure;

use super::super::cuda_result::NOT_SUPPORTED;
use super::device::{Device, DeviceError, Key};
use super::queue::{Reclaim, Wanted};
use super::ranges::counted;
use super::{Gpu, Refused, invalid};

/// Blocks that are kept at most: each allocation looks at them.
const MOST_FREE: usize = 512;

/// `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`.
const RELEASE_THRESHOLD: u32 = 4;
/// `CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH`.
const RESERVED_HIGH: u32 = 6;
/// `CU_MEMPOOL_ATTR_USED_MEM_HIGH`.
const USED_HIGH: u32 = 8;

/// The pool of a session.
#[derive(Debug, Default)]
pub(super) struct MemoryPool {
    /// Freed memory, the oldest first.
    free: VecDeque<Block>,
    threshold: u64,
    reserved: u64,
    reserved_high: u64,
    used: u64,
    used_high: u64,
}

/// Memory that was freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    address: u64,
    bytes: u64,
    /// In the order of which stream; none: of all.
    stream: Option<Key>,
    /// The newest work that was queued then.
    until: u64,
}

impl MemoryPool {
    /// The smallest free block with room for `bytes`, and not too much more, that `may` be used.
    fn take(&mut self, bytes: u64, may: impl Fn(&Block) -> bool) -> Option<Block> {
        let most = bytes.saturating_mul(2);
        let fits = |block: &Block| (bytes..=most).contains(&block.bytes) && may(block);
        let free = self
            .free
            .iter()
            .enumerate()
            .filter(|(_, block)| fits(block));
        let (at, _) = free.min_by_key(|(_, block)| block.bytes)?;
        let block = self.free.remove(at)?;
        self.count_used(block.bytes);
        Some(block)
    }

    /// Memory has come from the device, for an allocation.
    pub(super) fn came(&mut self, bytes: u64) {
        self.reserved += bytes;
        self.reserved_high = self.reserved_high.max(self.reserved);
        self.count_used(bytes);
    }

    fn count_used(&mut self, bytes: u64) {
        self.used += bytes;
        self.used_high = self.used_high.max(self.used);
    }

    fn put(&mut self, block: Block) {
        self.used -= block.bytes;
        self.free.push_back(block);
    }

    /// The oldest free block, which goes back to the device, while more than `keep` bytes are reserved.
    fn release(&mut self, keep: u64) -> Option<Block> {
        if self.reserved <= keep {
            return None;
        }
        let block = self.free.pop_front()?;
        self.reserved -= block.bytes;
        Some(block)
    }
}

impl<D: Device> Gpu<D> {
    pub(super) fn allocate_async(
        &mut self,
        id: u32,
        allocate: &MemoryAllocateAsync,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let stream = self.live(allocate.stream)?;
        self.check_allocations()?;
        let bytes = allocate.bytes.get();
        let wanted = Wanted::FromPool(bytes);
        let Some(size) = counted(bytes) else {
            return self.allocate(id, wanted);
        };
        let mut block = self.pool.take(size, |block| block.stream == Some(stream));
        if block.is_none() && !self.pool.free.is_empty() {
            self.take_done();
            self.sound()?;
            // The oldest work of each stream that is not done.
            let mut first = BTreeMap::new();
            for (tag, queued) in self.queue.iter().rev() {
                first.insert(queued.stream(), *tag);
            }
            let oldest = self.queue.first_key_value().map(|(tag, _)| *tag);
            block = self.pool.take(size, |block| {
                let first = match block.stream {
                    Some(stream) => first.get(&stream).copied(),
                    None => oldest,
                };
                first.is_none_or(|first| first > block.until)
            });
        }
        let Some(block) = block else {
            return self.allocate(id, wanted);
        };
        let address = block.address;
        self.ranges.add_from_pool(address, bytes, block.bytes);
        Ok(Some(MemoryAllocateAsyncReply { address }.encode()))
    }

    pub(super) fn free_async(
        &mut self,
        id: u32,
        free: &MemoryFreeAsync,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let stream = self.live(free.stream)?;
        self.free_in(id, free.address, Some(stream))?;
        Ok(Some(MemoryFreeAsyncReply {}.encode()))
    }

    /// Frees an allocation in the order of a stream, or of all.
    pub(super) fn free_in(
        &mut self,
        id: u32,
        address: u64,
        stream: Option<Key>,
    ) -> Result<(), Refused> {
        let Some((bytes, of_pool)) = self.ranges.remove_allocation(address) else {
            return Err(invalid(format!(
                "no allocation of this session begins at {address:#x}"
            )));
        };
        let until = self.last_tag;
        match of_pool {
            Some(bytes) => {
                self.pool.put(Block {
                    address,
                    bytes,
                    stream,
                    until,
                });
                if self.pool.free.len() > MOST_FREE {
                    self.release_one(0);
                    self.go_on();
                }
            }
            None => self.reclaim(Reclaim::memory(id, until, address, bytes)),
        }
        Ok(())
    }

    pub(super) fn pool_info(&self) -> Vec<u8> {
        MemoryPoolInfoReply {
            release_threshold: self.pool.threshold,
            reserved: self.pool.reserved,
            reserved_high: self.pool.reserved_high,
            used: self.pool.used,
            used_high: self.pool.used_high,
        }
        .encode()
    }

    pub(super) fn pool_set_attribute(
        &mut self,
        set: &MemoryPoolSetAttribute,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let MemoryPoolSetAttribute { attribute, value } = *set;
        match attribute {
            RELEASE_THRESHOLD => self.pool.threshold = value,
            RESERVED_HIGH if value == 0 => self.pool.reserved_high = self.pool.reserved,
            USED_HIGH if value == 0 => self.pool.used_high = self.pool.used,
            RESERVED_HIGH | USED_HIGH => {
                return Err(invalid(format!("{value}, where only 0 can be set")));
            }
            _ => {
                let text = format!("attribute {attribute} of the pool cannot be set here");
                return Err(Failure::from(&DeviceError::new(NOT_SUPPORTED, text)));
            }
        }
        Ok(Some(MemoryPoolSetAttributeReply {}.encode()))
    }

    pub(super) fn pool_trim(&mut self, keep: u64) -> Result<Option<Vec<u8>>, Refused> {
        self.release(keep);
        self.go_on();
        Ok(Some(MemoryPoolTrimReply {}.encode()))
    }

    /// Has free memory of the pool go back to the device, as far as more than `keep` bytes are reserved; says whether
    /// there was any. Whoever calls this goes on afterwards.
    pub(super) fn release(&mut self, keep: u64) -> bool {
        let mut any = false;
        while self.release_one(keep) {
            any = true;
        }
        any
    }

    fn release_one(&mut self, keep: u64) -> bool {
        let Some(block) = self.pool.release(keep) else {
            return false;
        };
        // Nobody waits for the driver to take it back, and only work that was queued before may use it.
        let Block {
            address,
            bytes,
            until,
            ..
        } = block;
        self.reclaims
            .push_back(Reclaim::memory(0, until, address, bytes));
        true
    }

    /// A wait for the device has ended: what the pool holds beyond its threshold goes back, unless something
    /// runs for which the driver would wait.
    pub(super) fn release_unused(&mut self) {
        if self.queue.is_empty() {
            self.release(self.pool.threshold);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(address: u64, bytes: u64) -> Block {
        Block {
            address,
            bytes,
            stream: None,
            until: 0,
        }
    }

    #[test]
    fn the_smallest_block_that_fits_is_taken_and_none_that_is_far_too_large() {
        let mut pool = MemoryPool::default();
        for (address, bytes) in [(1, 4096), (2, 1024), (3, 1536), (4, 1 << 20)] {
            pool.came(bytes);
            pool.put(block(address, bytes));
        }
        assert_eq!(pool.take(512, |_| false), None);
        assert_eq!(pool.take(1024, |_| true), Some(block(2, 1024)));
        assert_eq!(pool.take(1024, |_| true), Some(block(3, 1536)));
        assert_eq!(pool.take(1024, |_| true), None);
        assert_eq!(pool.take(4096, |block| block.address != 1), None);
        assert_eq!((pool.used, pool.reserved), (2560, 1_055_232));
    }

    #[test]
    fn what_is_kept_goes_back_the_oldest_first() {
        let mut pool = MemoryPool::default();
        for (address, bytes) in [(1, 512), (2, 1024), (3, 2048)] {
            pool.came(bytes);
            pool.put(block(address, bytes));
        }
        assert_eq!(pool.release(3584), None);
        assert_eq!(pool.release(2000), Some(block(1, 512)));
        assert_eq!(pool.release(2000), Some(block(2, 1024)));
        assert_eq!(pool.release(2000), Some(block(3, 2048)));
        assert_eq!(pool.release(0), None);
        assert_eq!(
            (pool.reserved, pool.reserved_high, pool.used_high),
            (0, 3584, 2048)
        );
    }
}
