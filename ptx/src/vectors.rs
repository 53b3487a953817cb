//! The loop once more, for processors with AVX2 and FMA.
#![allow(unsafe_code)]
#![cfg(target_arch = "x86_64")]

use crate::exec::{Cx, SharedMemory, run_with};
use crate::warp::{Stop, Warp};

/// Whether this processor has what [`run`] needs.
pub(crate) fn available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
}

/// As `exec::run`.
pub(crate) fn run(w: &mut Warp, cx: &Cx<'_>, shared: &SharedMemory, fuel: &mut u32) -> Stop {
    // SAFETY: `Launch::wide_vectors`, which leads here, is what `available` said.
    unsafe { run_v3(w, cx, shared, fuel) }
}

#[target_feature(enable = "avx2,fma,bmi1,bmi2")]
fn run_v3(w: &mut Warp, cx: &Cx<'_>, shared: &SharedMemory, fuel: &mut u32) -> Stop {
    run_with::<true>(w, cx, shared, fuel)
}
