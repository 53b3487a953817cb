//! The address map (PTX ISA 5.1): the target of every access of a kernel is decided here.

use std::sync::Arc;

use crate::error::Code;
use crate::memory::Bytes;
use crate::quota::Charge;
use crate::types::Space;

/// Shared memory of the lane's own block; that of block r of the cluster starts at `SHARED + (r + 1
/// << RANK_SHIFT)`.
pub(crate) const SHARED: u64 = 1 << 40;
pub(crate) const RANK_SHIFT: u32 = 24;
/// Memory of the lane's own thread.
pub(crate) const LOCAL: u64 = 2 << 40;
/// Parameters of the kernel.
pub(crate) const PARAM: u64 = 3 << 40;
/// Functions, 16 apart; not readable.
pub(crate) const FUNCTION: u64 = 4 << 40;
/// Constants of the modules.
pub(crate) const CONST: u64 = 5 << 40;
/// Global addresses that are not constants are from here on, above all windows: a program may have its memory anywhere.
pub(crate) const LOWEST: u64 = 6 << 40;
/// Allocations and module variables.
pub(crate) const GLOBAL: u64 = 0x7f00_0000_0000;
/// The end of all addresses.
pub(crate) const END: u64 = 1 << 48;
/// An address below this is an offset in the space that the instruction names.
const WINDOW: u64 = 1 << 40;

/// A range of device memory.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) base: u64,
    pub(crate) bytes: Bytes,
    pub(crate) kind: Kind,
    /// Its charge against the quota, returned when nobody holds the region any more.
    pub(crate) _charge: Charge,
}

/// The kind of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An allocation, or a variable of a module.
    Memory,
    /// Constants of a module, which kernels cannot write.
    Constants,
    /// Memory of the program's.
    Host,
}

impl Kind {
    pub(crate) fn of(read_only: bool) -> Self {
        match read_only {
            true => Self::Constants,
            false => Self::Memory,
        }
    }
}

impl Region {
    #[inline(always)]
    pub(crate) fn is_read_only(&self) -> bool {
        self.kind == Kind::Constants
    }
}

/// A fault of one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) code: Code,
    pub(crate) text: String,
    pub(crate) pc: u32,
    pub(crate) lane: u32,
}

/// The reasons why an instruction has not been executed.
#[derive(Debug)]
pub(crate) enum Halt {
    Fault(Fault),
    /// More memory had to be fetched than is allowed at once. Nothing has happened, and the
    /// instruction is executed again.
    Again,
}

impl From<Box<Fault>> for Box<Halt> {
    fn from(fault: Box<Fault>) -> Self {
        Self::new(Halt::Fault(*fault))
    }
}

impl Fault {
    pub(crate) fn new(code: Code, pc: u32, lane: u32, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
            pc,
            lane,
        }
    }
}

/// The region that contains an address; `hit` is the index of the last one found.
#[inline(always)]
pub(crate) fn region<'r>(
    regions: &'r [Arc<Region>],
    hit: &mut usize,
    addr: u64,
) -> Option<&'r Region> {
    if let Some(r) = regions.get(*hit)
        && addr.wrapping_sub(r.base) < r.bytes.len()
    {
        return Some(r);
    }
    let at = regions.partition_point(|r| r.base <= addr).checked_sub(1)?;
    let r = &regions[at];
    if addr - r.base < r.bytes.len() {
        *hit = at;
        return Some(r);
    }
    None
}

/// The window of a generic address.
pub(crate) fn space_of(addr: u64) -> Space {
    match addr >> 40 {
        1 => Space::Shared,
        2 => Space::Local,
        3 => Space::Param,
        5 => Space::Const,
        _ => Space::Global,
    }
}

/// The start of the window of a space; 0 where addresses in the space are generic addresses.
pub(crate) fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED,
        Space::Local => LOCAL,
        Space::Param => PARAM,
        _ => 0,
    }
}

/// `cvta`: the generic form of an address of `space`. A generic address stays as it is.
pub(crate) fn to_generic(space: Space, addr: u64) -> u64 {
    if addr < WINDOW {
        addr + window(space)
    } else {
        addr
    }
}

/// `cvta.to`: the reverse.
pub(crate) fn from_generic(space: Space, addr: u64) -> u64 {
    let base = window(space);
    if base != 0 && addr >> 40 == base >> 40 {
        addr - base
    } else {
        addr
    }
}

/// The target of an address, with the offset in its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lead {
    Global(u64),
    /// The cluster's block, unless it is the lane's own, and the offset.
    Shared(Option<u32>, u64),
    Local(u64),
    Param(u64),
}

/// Determines the target from the space that the instruction names and the address.
#[inline]
pub(crate) fn lead(space: Space, addr: u64) -> Lead {
    let inside = match space {
        Space::Generic => addr,
        s if addr < WINDOW => addr | window(s),
        _ => addr,
    };
    let low = inside & (WINDOW - 1);
    match (space, space_of(inside)) {
        (Space::Global, _) => Lead::Global(addr),
        (_, Space::Shared) => match low >> RANK_SHIFT {
            0 => Lead::Shared(None, low),
            r => Lead::Shared(u32::try_from(r - 1).ok(), low & ((1 << RANK_SHIFT) - 1)),
        },
        (_, Space::Local) => Lead::Local(low),
        (_, Space::Param) => Lead::Param(low),
        _ => Lead::Global(addr),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_goes_through_its_window_and_back() {
        for s in [
            Space::Shared,
            Space::Local,
            Space::Param,
            Space::Global,
            Space::Const,
        ] {
            let a = if window(s) == 0 { GLOBAL + 16 } else { 16 };
            assert_eq!(from_generic(s, to_generic(s, a)), a);
        }
        assert_eq!(lead(Space::Shared, 8), Lead::Shared(None, 8));
        assert_eq!(lead(Space::Generic, SHARED + 8), Lead::Shared(None, 8));
        assert_eq!(lead(Space::Generic, 8), Lead::Global(8));
        assert_eq!(lead(Space::Global, SHARED), Lead::Global(SHARED));
    }
}
