//! The options of a launch, and their limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crate::error::{Code, Error, invalid};
use crate::loaded::Loaded;
use crate::module::Kernel;

/// Most threads of a block.
pub(crate) const THREADS: u64 = 1024;
/// Threads of a warp.
pub(crate) const WARP: u32 = 32;
/// Most bytes of shared memory of a block, without and with the kernel's opt-in.
pub(crate) const SHARED: [u32; 2] = [48 << 10, 227 << 10];

/// Ends a launch from another thread.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicU8>);

/// The launch ends and nothing else.
const WITHDRAWN: u8 = 1;
/// The launch ends as at its deadline.
const CANCELLED: u8 = 2;

impl Cancel {
    /// Ends the launch within some milliseconds, as its deadline would: a fault of the device.
    pub fn cancel(&self) {
        // Read by `code` after each slice; it guards no data.
        self.0.fetch_max(CANCELLED, Ordering::Relaxed);
    }

    /// Ends the launch within some milliseconds, and no other: its error is [`Code::Cancelled`], and
    /// the device goes on. Blocks that ran have done what they did.
    pub fn withdraw(&self) {
        // With the load in `code`: whoever sees that this launch has to end sees it of those that were withdrawn before.
        self.0.fetch_max(WITHDRAWN, Ordering::Release);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.code().is_some()
    }

    /// The code of the launch's error, if it has to end.
    pub(crate) fn code(&self) -> Option<Code> {
        // With `withdraw`.
        match self.0.load(Ordering::Acquire) {
            0 => None,
            WITHDRAWN => Some(Code::Cancelled),
            _ => Some(Code::LaunchTimeout),
        }
    }
}

/// The options of a launch.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Number of blocks.
    pub grid: [u32; 3],
    /// Number of threads of a block.
    pub block: [u32; 3],
    /// Dynamic shared memory, bytes.
    pub shared: u32,
    /// Allows dynamic shared memory beyond 48 KiB (`MAX_DYNAMIC_SHARED_SIZE_BYTES`).
    pub shared_opt_in: bool,
    /// Runs all blocks at once, so that they may wait for each other.
    pub cooperative: bool,
    /// Time limit of the launch.
    pub deadline: Option<Duration>,
    /// Most instructions, counted per warp.
    pub steps: u64,
    /// Ends the launch from another thread.
    pub cancel: Cancel,
}

impl Launch {
    /// A launch with `grid` blocks of `block` threads, without a deadline.
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

/// Checks whether a launch is possible, before any of it is done.
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
