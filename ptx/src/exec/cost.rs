//! The cost of expensive instructions, in ordinary ones: rough and conservative, so that a slice of
//! any instructions ends within about a millisecond.

/// A lane function, called for each lane.
pub(super) const LANES: u32 = 8;
/// A slow lane function, or a product of matrices.
pub(super) const SLOW: u32 = 64;
/// A load or store other than the ordinary ones.
pub(super) const MEMORY: u32 = 8;
/// An access at as many places as there are lanes, none of which may be in a cache.
pub(super) const fn scattered(lanes: u32) -> u32 {
    lanes.count_ones() / 2
}
/// A chunk of memory allocated by the system: a large page, if it uses those.
pub(super) const FETCH: u32 = 512;
/// One lane after the other, with contention.
pub(super) const ATOMIC: u32 = 64;
pub(super) const FENCE: u32 = 4;
/// On some virtual machines the clock is slow to read.
pub(super) const CLOCK: u32 = 64;
/// An operation on the groups of a warp.
pub(super) const TOGETHER: u32 = 8;
/// A call of the environment: the most that one lane may use before the next has to wait.
pub(super) const CALL: u32 = 1024;
