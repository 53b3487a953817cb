//! Registers and local memory of a warp: rows of 32 lanes.
#![allow(
    clippy::inline_always,
    reason = "the loop is instantiated for each set of processor features"
)]

use crate::program::{NONE, Slot};

/// Rows allocated between two readings of the clock: half a megabyte at most.
pub(super) const ROWS: usize = 2048;

/// A register of all lanes, aligned to a cache line so that a vector of lanes never crosses two.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Row<T>(pub(crate) [T; 32]);

impl<T> std::ops::Deref for Row<T> {
    type Target = [T; 32];
    #[inline(always)]
    fn deref(&self) -> &[T; 32] {
        &self.0
    }
}

impl<T> std::ops::DerefMut for Row<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T; 32] {
        &mut self.0
    }
}

/// A register file.
#[derive(Debug, Default)]
pub(crate) struct Regs {
    pub(crate) r32: Vec<Row<u32>>,
    pub(crate) r64: Vec<Row<u64>>,
    pub(crate) p: Vec<u32>,
    /// The carry flag of each lane.
    pub(crate) cc: u32,
}

/// Local memory of a warp: rows of one word per lane.
#[derive(Debug, Default)]
pub(crate) struct Local(Vec<[u32; 32]>);

impl Local {
    /// Adds some rows, towards `rows` in all. True: there are that many.
    pub(super) fn grow(&mut self, rows: usize) -> bool {
        let now = self.0.len();
        self.0.reserve_exact(rows.saturating_sub(now));
        self.0.resize(rows.min(now + ROWS).max(now), [0; 32]);
        self.0.len() >= rows
    }
}

impl std::ops::Deref for Local {
    type Target = [[u32; 32]];
    #[inline(always)]
    fn deref(&self) -> &[[u32; 32]] {
        &self.0
    }
}

impl std::ops::DerefMut for Local {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [[u32; 32]] {
        &mut self.0
    }
}

/// The bits of a predicate operand.
pub(crate) fn predicate(p: &[u32], slot: Slot, w: u16, not: u16) -> u32 {
    let v = if slot == NONE { 0 } else { p[slot as usize] };
    if w & not != 0 { !v } else { v }
}

/// The lanes of a mask.
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        let l = rest.trailing_zeros();
        rest &= rest.wrapping_sub(1);
        (l < 32).then_some(l as usize)
    })
}
