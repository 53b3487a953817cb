//! The executor's loop for this processor: compiled once for any, and once for AVX2 and FMA.
#![allow(unsafe_code)]

use super::cx::{Cx, SharedMemory};
use super::run::run_with;
use super::warp::{Stop, Warp};

/// Whether this processor supports the second one.
#[cfg(target_arch = "x86_64")]
pub(crate) fn are_there() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
}

/// Only x86-64 has a second loop.
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
    // SAFETY: `wide_vectors` is only set after `are_there` returned true.
    unsafe { run_v3(w, cx, shared, fuel) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2")]
fn run_v3(w: &mut Warp, cx: &Cx<'_>, shared: &SharedMemory, fuel: &mut u32) -> Stop {
    run_with::<true>(w, cx, shared, fuel)
}
