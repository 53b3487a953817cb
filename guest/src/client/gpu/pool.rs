//! Pools of stream-ordered memory.

use bytemuck::Pod;
use vgpu_protocol::handle::Handle;
use vgpu_protocol::op::field::PoolRef;
use vgpu_protocol::op::{
    MemoryFreeAsync, MemoryPoolCreate, MemoryPoolInfo, MemoryPoolSetAttribute, MemoryPoolTrim,
};

use super::{Device, DeviceBuffer, Dropped, lock};
use crate::error::Result;

/// `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`.
const RELEASE_THRESHOLD: u32 = 4;
/// `CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH` and `CU_MEMPOOL_ATTR_USED_MEM_HIGH`.
const HIGH: [u32; 2] = [6, 8];

/// A pool of memory that is allocated and freed in the order of streams: it keeps what is freed, and gives it to the next
/// allocation without a call of the driver. All that it has counts as the session's.
///
/// A pool of [`Device::new_memory_pool`] is destroyed when it is dropped. Its buffers stay, and go back to the device when
/// they are freed.
///
/// ```no_run
/// # use vgpu_guest::{Client, Device, Options};
/// # let device = Device::new(Client::from_env(&Options::default())?)?;
/// let (stream, pool) = (device.new_stream()?, device.new_memory_pool()?);
/// pool.set_release_threshold(64 << 20)?;
/// for round in 0..10u8 {
///     // From the second round on the same memory.
///     let mut buffer = pool.alloc_async::<u8>(&stream, 1 << 20)?;
///     stream.memset(&mut buffer, round)?;
/// }
/// assert_eq!(pool.statistics()?.reserved, 1 << 20);
/// # Ok::<(), vgpu_guest::Error>(())
/// ```
#[derive(Debug)]
pub struct MemoryPool {
    device: Device,
    /// `None`: the default pool.
    handle: Option<Handle>,
}

impl Drop for MemoryPool {
    fn drop(&mut self) {
        if let Some(handle) = self.handle {
            self.device.drop_on_device(Dropped::MemoryPool(handle));
        }
    }
}

/// Bytes held by a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPoolStatistics {
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
    /// The default pool, from which [`alloc_async`](Self::alloc_async) allocates.
    pub fn memory_pool(&self) -> MemoryPool {
        MemoryPool {
            device: self.base(),
            handle: None,
        }
    }

    /// A pool beside the default one (`cuMemPoolCreate`). It may have as much as the session may.
    ///
    /// # Errors
    /// As many as this session may have are there; the session failed.
    pub fn new_memory_pool(&self) -> Result<MemoryPool> {
        self.pool(0)
    }

    /// The same with at most `bytes` of the device, in use or kept, where an allocation takes a multiple of 512.
    ///
    /// # Errors
    /// Those of [`new_memory_pool`](Self::new_memory_pool); `bytes` are 0.
    pub fn new_memory_pool_of(&self, bytes: u64) -> Result<MemoryPool> {
        match bytes {
            0 => Err(self.wrong(NEW, "a pool of 0 bytes")),
            bytes => self.pool(bytes),
        }
    }

    fn pool(&self, max_bytes: u64) -> Result<MemoryPool> {
        let handle = lock(&self.shared.session.memory_pools).mint();
        let Some(handle) = handle else {
            return Err(self.wrong(NEW, "as many memory pools as this session may have"));
        };
        let pool = MemoryPool {
            device: self.base(),
            handle: Some(handle),
        };
        let request = MemoryPoolCreate {
            pool: handle,
            max_bytes,
        };
        self.send(NEW, request)?;
        Ok(pool)
    }

    pub(super) fn send_free_async(&self, address: u64) -> Result<()> {
        let stream = self.stream_ref();
        self.send("free in a stream", MemoryFreeAsync { address, stream })
    }
}

const NEW: &str = "new memory pool";

impl MemoryPool {
    fn pool_ref(&self) -> PoolRef {
        self.handle.map_or(PoolRef::DEFAULT, PoolRef::of)
    }

    /// Memory for `len` elements from this pool, in the order of `stream`: [`Device::alloc_async`].
    ///
    /// # Errors
    /// The session's, the pool's or the device's memory does not suffice; the stream is of another session.
    pub fn alloc_async<T: Pod>(&self, stream: &Device, len: usize) -> Result<DeviceBuffer<T>> {
        stream.check_session("allocate from a memory pool", &self.device)?;
        stream.alloc_from(self.pool_ref(), len)
    }

    /// The bytes that it holds.
    ///
    /// # Errors
    /// The session failed.
    pub fn statistics(&self) -> Result<MemoryPoolStatistics> {
        let pool = self.pool_ref();
        let reply = self
            .device
            .ask("look at a memory pool", MemoryPoolInfo { pool })?;
        Ok(MemoryPoolStatistics {
            release_threshold: reply.release_threshold,
            reserved: reply.reserved,
            reserved_high: reply.reserved_high,
            used: reply.used,
            used_high: reply.used_high,
        })
    }

    /// How many bytes it may keep when a wait for the device ends; at first none.
    ///
    /// # Errors
    /// The session failed.
    pub fn set_release_threshold(&self, bytes: u64) -> Result<()> {
        self.set_attribute(RELEASE_THRESHOLD, bytes)
    }

    /// From here on the most bytes are those of now.
    ///
    /// # Errors
    /// The session failed.
    pub fn reset_high(&self) -> Result<()> {
        HIGH.into_iter()
            .try_for_each(|attribute| self.set_attribute(attribute, 0))
    }

    /// Gives what it does not use back to the device, but for `keep` bytes, once the work sent before is done.
    ///
    /// # Errors
    /// The session failed.
    pub fn trim(&self, keep: u64) -> Result<()> {
        let pool = self.pool_ref();
        self.device
            .send("trim a memory pool", MemoryPoolTrim { pool, keep })
    }

    fn set_attribute(&self, attribute: u32, value: u64) -> Result<()> {
        let request = MemoryPoolSetAttribute {
            pool: self.pool_ref(),
            attribute,
            value,
        };
        self.device.send("set up a memory pool", request)
    }
}
