//! The loop for the processor at hand: once for any, once for those with AVX2 and FMA.
#![allow(unsafe_code)]

use super::cx::{Cx, SharedMemory};
use super::run::run_with;
use super::warp::{Stop, Warp};

/// Whether this processor has what the second one needs.
#[cfg(target_arch = "x86_64")]
pub(crate) fn are_there() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
}

/// Only one processor has a loop of its own.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn are_there() -> bool {
    false
}

/// Runs a warp for at most `fuel` instructions.
pub(super) fn run(w: &mut Warp, cx: &Cx<'_>, shared: &SharedMemory, fuel: &mut u32) -> Stop {
    if cx.launch.wide_vectors {
        return run_wide(w, cx, shared, fuel);
    }
    run_with::<false>(w, cx, shared, fuel)
}

#[cfg(not(target_arch = "x86_64"))]
fn run_wide(w: &mut Warp, cx: &Cx<'_>, shared: &SharedMemory, fuel: &mut u32) -> Stop {
    run_with::<false>(w, cx, shared, fuel)
}

#[cfg(target_arch = "x86_64")]
fn run_wide(w: &mut Warp, cx: &Cx<'_>, shared: &SharedMemory, fuel: &mut u32) -> Stop {
    // SAFETY: whoever sets `wide_vectors` has asked `are_there`.
    unsafe { run_v3(w, cx, shared, fuel) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2")]
fn run_v3(w: &mut Warp, cx: &Cx<'_>, shared: &SharedMemory, fuel: &mut u32) -> Stop {
    run_with::<true>(w, cx, shared, fuel)
}
