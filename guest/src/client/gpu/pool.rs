//! The pool of stream-ordered memory.

use vgpu_protocol::op::{MemoryFreeAsync, MemoryPoolInfo, MemoryPoolSetAttribute, MemoryPoolTrim};

use super::Device;
use crate::error::Result;

/// `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`.
const RELEASE_THRESHOLD: u32 = 4;
/// `CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH` and `CU_MEMPOOL_ATTR_USED_MEM_HIGH`.
const HIGH: [u32; 2] = [6, 8];

/// Bytes held by the pool of [`Device::alloc_async`]. All of it counts as the session's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPool {
    /// Bytes that it may keep when a wait for the device ends.
    pub release_threshold: u64,
    /// Bytes that it has from the device.
    pub reserved: u64,
    /// The most so far.
    pub reserved_high: u64,
    /// Bytes of them that are allocated.
    pub used: u64,
    /// The most so far.
    pub used_high: u64,
}

impl Device {
    /// Bytes held by the pool of [`alloc_async`](Self::alloc_async).
    ///
    /// # Errors
    /// The session failed.
    pub fn memory_pool(&self) -> Result<MemoryPool> {
        let reply = self.ask("look at the memory pool", MemoryPoolInfo {})?;
        Ok(MemoryPool {
            release_threshold: reply.release_threshold,
            reserved: reply.reserved,
            reserved_high: reply.reserved_high,
            used: reply.used,
            used_high: reply.used_high,
        })
    }

    /// How many bytes the pool may keep when a wait for the device ends; at first none.
    ///
    /// # Errors
    /// The session failed.
    pub fn set_release_threshold(&self, bytes: u64) -> Result<()> {
        self.set_pool_attribute(RELEASE_THRESHOLD, bytes)
    }

    /// From here on the most bytes are those of now.
    ///
    /// # Errors
    /// The session failed.
    pub fn reset_memory_pool_high(&self) -> Result<()> {
        HIGH.into_iter()
            .try_for_each(|attribute| self.set_pool_attribute(attribute, 0))
    }

    /// Gives what the pool does not use back to the device, but for `keep` bytes, once the work sent before is done.
    ///
    /// # Errors
    /// The session failed.
    pub fn trim_memory_pool(&self, keep: u64) -> Result<()> {
        self.send("trim the memory pool", MemoryPoolTrim { keep })
    }

    fn set_pool_attribute(&self, attribute: u32, value: u64) -> Result<()> {
        let request = MemoryPoolSetAttribute { attribute, value };
        self.send("set up the memory pool", request)
    }

    pub(super) fn send_free_async(&self, address: u64) -> Result<()> {
        let stream = self.stream_ref();
        self.send("free in a stream", MemoryFreeAsync { address, stream })
    }
}
