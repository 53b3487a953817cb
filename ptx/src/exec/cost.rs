//! What instructions take more than others, in others: rough, and on the safe side, so that a slice of any
//! instructions is over within a millisecond or so.

/// A function for each lane.
pub(super) const LANES: u32 = 8;
/// One of the slow ones of these, a product of matrices.
pub(super) const SLOW: u32 = 64;
/// A load or store that is not one of the ordinary ones.
pub(super) const MEMORY: u32 = 8;
/// An access at as many places as there are lanes, none of which a cache may hold.
pub(super) const fn scattered(lanes: u32) -> u32 {
    lanes.count_ones() / 2
}
/// A chunk of memory that the system makes; a large page, if it gives those.
pub(super) const FETCH: u32 = 512;
/// A lane after the other, and others want the same.
pub(super) const ATOMIC: u32 = 64;
pub(super) const FENCE: u32 = 4;
/// On some virtual machines the clock is far away.
pub(super) const CLOCK: u32 = 64;
/// What concerns the groups of a warp.
pub(super) const TOGETHER: u32 = 8;
/// Of a call of the environment: what one lane may use up before the next has to wait.
pub(super) const CALL: u32 = 1024;
