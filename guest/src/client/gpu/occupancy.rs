//! How many blocks of a kernel the device has at once.

use vgpu_protocol::op::FunctionOccupancy;

use super::Function;
use crate::attributes::{
    CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK as THREADS_PER_BLOCK,
    CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR as THREADS_PER_MULTIPROCESSOR,
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as MULTIPROCESSORS,
    CU_DEVICE_ATTRIBUTE_WARP_SIZE as WARP_SIZE,
    CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK as THREADS_OF_KERNEL,
};
use crate::error::Result;

impl Function {
    /// Blocks that a multiprocessor has at once, of `block_threads` threads and `shared_bytes` bytes of dynamic shared memory
    /// each (`cuOccupancyMaxActiveBlocksPerMultiprocessor`). Times the multiprocessors it is the largest grid of a
    /// [cooperative](super::LaunchBuilder::cooperative) launch. A processor in the place of a GPU answers by the limits of
    /// the multiprocessors that it reports; registers are none of these.
    ///
    /// # Errors
    /// Blocks of no threads (`CUDA_ERROR_INVALID_VALUE`); the session failed.
    pub fn max_active_blocks(&self, block_threads: u32, shared_bytes: u32) -> Result<u32> {
        let request = FunctionOccupancy {
            module: self.handle(),
            function: self.number(),
            block_threads,
            shared_bytes: shared_bytes.into(),
            flags: 0,
        };
        let reply = self.device().ask("occupancy", request)?;
        Ok(reply.blocks)
    }

    /// The threads of a block with which the most threads run at once, and the blocks that fill the device then, as
    /// `cuOccupancyMaxPotentialBlockSize` finds them. `shared_bytes` says how much dynamic shared memory a block of so many
    /// threads has; `limit` is the most threads of a block, 0 for no limit beyond the kernel's. It asks the mediator for
    /// each size that it tries: once for most kernels, and for as many sizes as a block has warps at most.
    ///
    /// ```no_run
    /// # use vgpu_guest::{Client, Device, LaunchConfig, Options};
    /// # let device = Device::new(Client::from_env(&Options::default())?)?;
    /// # let function = device.load_module(b"")?.load_function("k")?;
    /// let (blocks, threads) = function.max_potential_block_size(|_| 0, 0)?;
    /// let config = LaunchConfig {
    ///     grid_dim: (blocks, 1, 1),
    ///     block_dim: (threads, 1, 1),
    ///     shared_mem_bytes: 0,
    /// };
    /// # Ok::<(), vgpu_guest::Error>(())
    /// ```
    ///
    /// # Errors
    /// No block of any size can run; the session failed.
    pub fn max_potential_block_size(
        &self,
        shared_bytes: impl Fn(u32) -> u32,
        limit: u32,
    ) -> Result<(u32, u32)> {
        let device = self.device();
        let number = |value: Option<i32>, otherwise| {
            let number = value.and_then(|value| u32::try_from(value).ok());
            number.filter(|number| *number > 0).unwrap_or(otherwise)
        };
        let of_device = |attribute, otherwise| number(device.attribute(attribute), otherwise);
        let warp = of_device(WARP_SIZE, 32);
        let full = of_device(THREADS_PER_MULTIPROCESSOR, u32::MAX);
        let most = of_device(THREADS_PER_BLOCK, 1024);
        let most = most.min(number(self.attribute(THREADS_OF_KERNEL), most));
        let most = if limit == 0 { most } else { most.min(limit) };
        let (mut best, mut best_threads) = ((0, 0), 0);
        let mut warps = most.div_ceil(warp);
        while warps > 0 && best_threads < full {
            let threads = most.min(warps * warp);
            let blocks = self.max_active_blocks(threads, shared_bytes(threads))?;
            if threads.saturating_mul(blocks) > best_threads {
                best = (blocks, threads);
                best_threads = threads.saturating_mul(blocks);
            }
            warps -= 1;
        }
        if best_threads == 0 {
            let what = format!(
                "kernel '{}' with so much shared memory has no size of a block",
                self.name()
            );
            return Err(device.wrong("occupancy", what));
        }
        let (blocks, threads) = best;
        Ok((
            blocks.saturating_mul(of_device(MULTIPROCESSORS, 1)),
            threads,
        ))
    }
}
