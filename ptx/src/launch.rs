//! How a kernel is launched, and what launches cannot be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::{Code, Error, invalid};
use crate::loaded::Loaded;
use crate::module::Kernel;

/// Threads of a block.
const THREADS: u64 = 1024;
/// Shared memory of a block without and with a kernel's consent.
const SHARED: [u32; 2] = [48 << 10, 227 << 10];

/// Ends a launch from another thread.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// The launch ends within some milliseconds.
    pub fn cancel(&self) {
        // Read by `is_cancelled` after each slice; no data goes with it.
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// How to launch a kernel.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Dynamic shared memory, bytes.
    pub shared: u32,
    /// Dynamic shared memory beyond 48 KiB is meant (`MAX_DYNAMIC_SHARED_SIZE_BYTES`).
    pub shared_opt_in: bool,
    /// All blocks at once, which may then wait for each other.
    pub cooperative: bool,
    /// Time for the launch.
    pub deadline: Option<Duration>,
    /// Instructions of warps, at most.
    pub steps: u64,
    /// To end it from another thread.
    pub cancel: Cancel,
}

impl Launch {
    /// So many blocks of so many threads, with no deadline.
    #[must_use]
    pub fn new(grid: [u32; 3], block: [u32; 3]) -> Self {
        Self {
            grid,
            block,
            shared: 0,
            shared_opt_in: false,
            cooperative: false,
            deadline: None,
            steps: u64::MAX,
            cancel: Cancel::default(),
        }
    }
}

/// Whether a launch can be, before anything of it is done.
pub(crate) fn check(
    loaded: &Loaded,
    kernel: &Kernel,
    how: &Launch,
    parameters: &[u8],
) -> Result<(), Error> {
    let functions = &loaded.program().functions;
    let f = functions.get(kernel.index as usize);
    if f.is_none_or(|f| f.name != kernel.name) {
        return Err(Error::new(
            Code::InvalidHandle,
            format!("kernel '{}' is of another module", kernel.name),
        ));
    }
    let cluster = kernel.cluster.unwrap_or([1; 3]);
    let [gx, gy, gz] = how.grid;
    let [bx, by, bz] = how.block;
    if gx == 0 || gy == 0 || gz == 0 || gx > i32::MAX.cast_unsigned() || gy > 65_535 || gz > 65_535
    {
        return invalid(format!(
            "a grid of {gx} x {gy} x {gz} blocks; at most 2147483647 x 65535 x 65535"
        ));
    }
    let threads = [bx, by, bz].iter().map(|n| u64::from(*n)).product::<u64>();
    if threads == 0 || bx > 1024 || by > 1024 || bz > 64 || threads > THREADS {
        return invalid(format!(
            "a block of {bx} x {by} x {bz} threads; at most {THREADS}, and 1024 x 1024 x 64"
        ));
    }
    if threads > u64::from(kernel.max_threads) {
        return invalid(format!(
            "a block of {threads} threads; kernel '{}' allows {}",
            kernel.name, kernel.max_threads
        ));
    }
    if kernel.required_block.is_some_and(|r| r != how.block) {
        return invalid(format!(
            "a block of {bx} x {by} x {bz} threads; kernel '{}' wants {:?}",
            kernel.name,
            kernel.required_block.unwrap_or_default()
        ));
    }
    let limit = SHARED[usize::from(how.shared_opt_in)];
    if how.shared > 0 && kernel.shared_bytes.saturating_add(how.shared) > limit {
        return invalid(format!(
            "{} bytes of shared memory and {} dynamic; at most {limit}",
            kernel.shared_bytes, how.shared
        ));
    }
    if parameters.len() < kernel.parameter_bytes as usize {
        return invalid(format!(
            "{} bytes of parameters; kernel '{}' has {}",
            parameters.len(),
            kernel.name,
            kernel.parameter_bytes
        ));
    }
    if cluster.contains(&0)
        || cluster.iter().product::<u32>() > 16
        || (0..3).any(|d| !how.grid[d].is_multiple_of(cluster[d]))
    {
        return invalid(format!(
            "a grid of {gx} x {gy} x {gz} blocks in clusters of {cluster:?}"
        ));
    }
    Ok(())
}
