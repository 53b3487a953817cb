//! How many blocks a multiprocessor has at once, as an answer to programs that size their grids by it.

use crate::launch::{SHARED, THREADS, WARP};
use crate::module::Kernel;

/// Threads of a multiprocessor, as devices of compute capability 8.0 have them.
pub const MULTIPROCESSOR_THREADS: u32 = 2048;
/// Blocks of a multiprocessor.
pub const MULTIPROCESSOR_BLOCKS: u32 = 32;
/// Bytes of a multiprocessor's shared memory.
pub const MULTIPROCESSOR_SHARED: u32 = 228 << 10;
/// Bytes of that which each block takes beside its own.
pub const RESERVED_SHARED: u32 = 1 << 10;

impl Kernel {
    /// Blocks of `threads` threads with `shared` bytes of dynamic shared memory that a multiprocessor has at once, by the
    /// limits above; 0 for a block that cannot be launched. `opt_in` allows dynamic shared memory beyond 48 KiB.
    ///
    /// Registers are no limit: a thread's are memory of the host.
    #[must_use]
    pub fn blocks_per_multiprocessor(&self, threads: u32, shared: u32, opt_in: bool) -> u32 {
        let all_shared = self.shared_bytes.saturating_add(shared);
        let impossible = threads == 0
            || u64::from(threads) > THREADS
            || threads > self.max_threads
            || shared > 0 && all_shared > SHARED[usize::from(opt_in)];
        if impossible {
            return 0;
        }
        let by_threads = MULTIPROCESSOR_THREADS / threads.next_multiple_of(WARP);
        let by_shared = MULTIPROCESSOR_SHARED / all_shared.saturating_add(RESERVED_SHARED);
        MULTIPROCESSOR_BLOCKS.min(by_threads).min(by_shared)
    }
}

#[cfg(test)]
mod tests {
    use crate::module::Module;

    #[test]
    fn threads_blocks_and_shared_memory_are_the_limits() {
        let text = ".version 6.0\n.target sm_50\n.address_size 64\n\
            .visible .entry k()\n.maxntid 512, 1, 1\n{\nret;\n}\n";
        let kernel = Module::load(text.as_bytes()).unwrap().kernel("k").unwrap();
        let blocks = |threads, shared| kernel.blocks_per_multiprocessor(threads, shared, false);
        assert_eq!(blocks(1, 0), 32);
        assert_eq!(blocks(64, 0), 32);
        assert_eq!(blocks(65, 0), 21);
        assert_eq!(blocks(512, 0), 4);
        assert_eq!((blocks(513, 0), blocks(0, 0)), (0, 0));
        assert_eq!((blocks(32, 48 << 10), blocks(32, (48 << 10) + 1)), (4, 0));
        assert_eq!(kernel.blocks_per_multiprocessor(32, 100 << 10, true), 2);
        assert_eq!(kernel.blocks_per_multiprocessor(32, u32::MAX, true), 0);
    }
}
