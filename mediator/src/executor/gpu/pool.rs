//! Stream-ordered memory: what a stream has freed is allocated again in its order, without a call of the driver.
//!
//! The driver's own pools take memory from the device many megabytes at a time and give it back when they like, so that
//! a quota could count it afterwards only. These have each allocation from the device as it is, keep what is freed,
//! and are the same for every device.

use std::collections::{BTreeMap, VecDeque};
use std::iter;

use vgpu_protocol::handle::{Handle, HandleKind, HandleTable};
use vgpu_protocol::op::field::PoolRef;
use vgpu_protocol::op::{
    Body, MemoryAllocateAsync, MemoryAllocateAsyncReply, MemoryFreeAsync, MemoryFreeAsyncReply,
    MemoryPoolCreate, MemoryPoolCreateReply, MemoryPoolDestroyReply, MemoryPoolInfoReply,
    MemoryPoolSetAttribute, MemoryPoolSetAttributeReply, MemoryPoolTrim, MemoryPoolTrimReply,
};
use vgpu_protocol::session::server::Failure;

use super::super::cuda_result::{NOT_SUPPORTED, OUT_OF_MEMORY};
use super::device::{Device, DeviceError, Key};
use super::handles::{close, open, wrong};
use super::queue::{Reclaim, Wanted};
use super::ranges::{PoolBlock, counted};
use super::{Gpu, Refused, invalid};

/// Blocks that a pool keeps at most: each allocation looks at them.
const MOST_FREE: usize = 512;

/// Blocks that this many pools keep at most: more of them keep fewer each.
const POOLS_WITH_MOST_FREE: usize = 8;

/// `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`.
const RELEASE_THRESHOLD: u32 = 4;
/// `CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH`.
const RESERVED_HIGH: u32 = 6;
/// `CU_MEMPOOL_ATTR_USED_MEM_HIGH`.
const USED_HIGH: u32 = 8;

/// The pools of a session.
#[derive(Debug)]
pub(super) struct MemoryPools {
    default: MemoryPool,
    made: HandleTable<MemoryPool>,
}

/// One of them.
#[derive(Debug, Default)]
struct MemoryPool {
    /// Freed memory, the oldest first.
    free: VecDeque<Block>,
    /// Bytes that it may have from the device; 0: as many as the session.
    most: u64,
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

impl Block {
    /// Nobody waits for the driver to take it back, and only work that was queued before may use it.
    fn reclaim<M>(self) -> Reclaim<M> {
        Reclaim::memory(0, self.until, self.address, self.bytes)
    }
}

impl MemoryPools {
    /// The default pool, and room for `most` others.
    pub(super) fn new(most: u32) -> Self {
        Self {
            default: MemoryPool::default(),
            made: HandleTable::new(HandleKind::MemoryPool, most),
        }
    }

    fn named(&mut self, pool: PoolRef) -> Result<&mut MemoryPool, Refused> {
        match pool.handle() {
            None => Ok(&mut self.default),
            Some(handle) => self
                .made
                .get_mut(handle)
                .map_err(|error| wrong(handle, error)),
        }
    }

    fn all(&mut self) -> impl Iterator<Item = &mut MemoryPool> {
        iter::once(&mut self.default).chain(self.made.values_mut())
    }

    /// Blocks that each may keep.
    fn most_free(&self) -> usize {
        let pools = 1 + self.made.len() as usize;
        (MOST_FREE * POOLS_WITH_MOST_FREE / pools).clamp(1, MOST_FREE)
    }

    /// Memory has come from the device, for an allocation.
    pub(super) fn came(&mut self, block: PoolBlock) {
        // Of a pool that was destroyed meanwhile nobody counts it any more.
        if let Ok(pool) = self.named(block.pool) {
            pool.came(block.bytes);
        }
    }
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
    fn came(&mut self, bytes: u64) {
        self.reserved += bytes;
        self.reserved_high = self.reserved_high.max(self.reserved);
        self.count_used(bytes);
    }

    /// Bytes that it may keep if `bytes` come to it; `None`: it may never have as many.
    fn keeps_beside(&self, bytes: u64) -> Option<u64> {
        match self.most {
            0 => Some(u64::MAX),
            most => most.checked_sub(bytes),
        }
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

    /// Has free memory go back to the device, as far as more than `keep` bytes are reserved; says whether there was any.
    /// Whoever calls this goes on afterwards.
    fn release_to<M>(&mut self, keep: u64, reclaims: &mut VecDeque<Reclaim<M>>) -> bool {
        let before = reclaims.len();
        reclaims.extend(iter::from_fn(|| self.release(keep)).map(Block::reclaim));
        reclaims.len() > before
    }
}

impl<D: Device> Gpu<D> {
    pub(super) fn pool_create(
        &mut self,
        create: &MemoryPoolCreate,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let pool = MemoryPool {
            most: create.max_bytes,
            ..MemoryPool::default()
        };
        open(&mut self.pools.made, create.pool, pool)?;
        Ok(Some(MemoryPoolCreateReply {}.encode()))
    }

    /// Its allocations stay, and go back to the device when they are freed.
    pub(super) fn pool_destroy(&mut self, pool: Handle) -> Result<Option<Vec<u8>>, Refused> {
        let mut pool = close(&mut self.pools.made, pool)?;
        pool.release_to(0, &mut self.reclaims);
        self.go_on();
        Ok(Some(MemoryPoolDestroyReply {}.encode()))
    }

    pub(super) fn allocate_async(
        &mut self,
        id: u32,
        allocate: &MemoryAllocateAsync,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let stream = self.live(allocate.stream)?;
        let bytes = allocate.bytes.get();
        let of = allocate.pool;
        self.pools.named(of)?;
        self.check_allocations()?;
        let wanted = Wanted::FromPool(bytes, of);
        let Some(size) = counted(bytes) else {
            return self.allocate(id, wanted);
        };
        let pool = self.pools.named(of)?;
        let mut block = pool.take(size, |block| block.stream == Some(stream));
        if block.is_none() && !pool.free.is_empty() {
            self.take_done();
            self.sound()?;
            // The oldest work of each stream that is not done.
            let mut first = BTreeMap::new();
            for (tag, queued) in self.queue.iter().rev() {
                first.insert(queued.stream(), *tag);
            }
            let oldest = self.queue.first_key_value().map(|(tag, _)| *tag);
            block = self.pools.named(of)?.take(size, |block| {
                let first = match block.stream {
                    Some(stream) => first.get(&stream).copied(),
                    None => oldest,
                };
                first.is_none_or(|first| first > block.until)
            });
        }
        let Some(block) = block else {
            let room = self.make_room(of, size);
            let outcome = room.and_then(|()| self.allocate(id, wanted));
            self.go_on();
            return outcome;
        };
        let address = block.address;
        let block = PoolBlock {
            pool: of,
            bytes: block.bytes,
        };
        self.ranges.add_from_pool(address, bytes, block);
        Ok(Some(MemoryAllocateAsyncReply { address }.encode()))
    }

    /// Has a pool give back what it does not use, as far as it may not have `bytes` more beside that. Whoever calls this
    /// goes on afterwards.
    fn make_room(&mut self, pool: PoolRef, bytes: u64) -> Result<(), Refused> {
        let pool = self.pools.named(pool)?;
        let keep = pool.keeps_beside(bytes);
        if let Some(keep) = keep {
            pool.release_to(keep, &mut self.reclaims);
        }
        if keep.is_some_and(|keep| pool.reserved <= keep) {
            return Ok(());
        }
        let (used, most) = (pool.used, pool.most);
        let text = format!(
            "an allocation needs {bytes} bytes of a pool with {most}, of which {used} are in use"
        );
        Err(Failure::from(&DeviceError::new(OUT_OF_MEMORY, text)))
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
        let most = self.pools.most_free();
        let Some(block) = of_pool else {
            self.reclaim(Reclaim::memory(id, until, address, bytes));
            return Ok(());
        };
        let Ok(pool) = self.pools.named(block.pool) else {
            // It was destroyed.
            self.reclaim(Reclaim::memory(id, until, address, block.bytes));
            return Ok(());
        };
        pool.put(Block {
            address,
            bytes: block.bytes,
            stream,
            until,
        });
        if pool.free.len() > most {
            while pool.free.len() > most
                && let Some(block) = pool.release(0)
            {
                self.reclaims.push_back(block.reclaim());
            }
            self.go_on();
        }
        Ok(())
    }

    pub(super) fn pool_info(&mut self, pool: PoolRef) -> Result<Option<Vec<u8>>, Refused> {
        let pool = self.pools.named(pool)?;
        let reply = MemoryPoolInfoReply {
            release_threshold: pool.threshold,
            reserved: pool.reserved,
            reserved_high: pool.reserved_high,
            used: pool.used,
            used_high: pool.used_high,
        };
        Ok(Some(reply.encode()))
    }

    pub(super) fn pool_set_attribute(
        &mut self,
        set: &MemoryPoolSetAttribute,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let MemoryPoolSetAttribute {
            pool,
            attribute,
            value,
        } = *set;
        let pool = self.pools.named(pool)?;
        match attribute {
            RELEASE_THRESHOLD => pool.threshold = value,
            RESERVED_HIGH if value == 0 => pool.reserved_high = pool.reserved,
            USED_HIGH if value == 0 => pool.used_high = pool.used,
            RESERVED_HIGH | USED_HIGH => {
                return Err(invalid(format!("{value}, where only 0 can be set")));
            }
            _ => {
                let text = format!("attribute {attribute} of a pool cannot be set here");
                return Err(Failure::from(&DeviceError::new(NOT_SUPPORTED, text)));
            }
        }
        Ok(Some(MemoryPoolSetAttributeReply {}.encode()))
    }

    pub(super) fn pool_trim(&mut self, trim: &MemoryPoolTrim) -> Result<Option<Vec<u8>>, Refused> {
        let pool = self.pools.named(trim.pool)?;
        pool.release_to(trim.keep, &mut self.reclaims);
        self.go_on();
        Ok(Some(MemoryPoolTrimReply {}.encode()))
    }

    /// Has all free memory of the pools go back to the device; says whether there was any. Whoever calls this goes on
    /// afterwards.
    pub(super) fn release_all(&mut self) -> bool {
        let mut any = false;
        for pool in self.pools.all() {
            any |= pool.release_to(0, &mut self.reclaims);
        }
        any
    }

    /// A wait for the device has ended: what the pools hold beyond their thresholds goes back, unless something
    /// runs for which the driver would wait.
    pub(super) fn release_unused(&mut self) {
        if self.queue.is_empty() {
            for pool in self.pools.all() {
                pool.release_to(pool.threshold, &mut self.reclaims);
            }
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
