//! The checks of every access of a lane: its target, and its errors.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "lane arithmetic truncates and reinterprets by definition"
)]

use super::cost;
use super::cx::{Cx, SharedMemory};
use super::warp::Warp;
use crate::Code;
use crate::memory::Bytes;
use crate::space::{Fault, Lead, lead, region};
use crate::types::Space;

impl Cx<'_> {
    /// The target of an access of `size` bytes, checked. Call [`Self::fetch`] first.
    pub(crate) fn access<'s>(
        &'s self,
        shared: &'s SharedMemory,
        w: &mut Warp,
        what: &Access,
        addr: u64,
    ) -> Result<Target<'s>, Box<Fault>> {
        let fault = |code, why: &str| {
            let verb = if what.write { "write" } else { "read" };
            let space = match what.space {
                Space::Generic => "",
                Space::Global => " of global memory",
                Space::Shared => " of shared memory",
                Space::Local => " of local memory",
                Space::Const => " of constant memory",
                _ => " of parameters",
            };
            Err(Box::new(Fault::new(
                code,
                what.pc,
                what.lane,
                format!("{verb} of {} bytes{space} at 0x{addr:x}: {why}", what.size),
            )))
        };
        let size = u64::from(what.size);
        if addr & (size - 1) != 0 {
            return fault(Code::MisalignedAddress, "not aligned to its size");
        }
        match lead(what.space, addr) {
            Lead::Global(addr) => match region(self.launch.regions, &mut w.hit, addr) {
                Some(r) if r.bytes.len() - (addr - r.base) >= size => {
                    if what.write && r.is_read_only() {
                        return fault(Code::IllegalAddress, "constants cannot be written");
                    }
                    let at = addr - r.base;
                    if !r.bytes.is_there(at) {
                        debug_assert!(false, "an access before its memory is fetched");
                        r.bytes.fetch(at);
                    }
                    Ok(Target::Bytes(&r.bytes, at))
                }
                Some(r) => fault(
                    Code::IllegalAddress,
                    &format!(
                        "reaches beyond the {} bytes at 0x{:x}",
                        r.bytes.len(),
                        r.base
                    ),
                ),
                None => {
                    let before = self
                        .launch
                        .regions
                        .partition_point(|r| r.base <= addr)
                        .checked_sub(1)
                        .map(|k| &self.launch.regions[k]);
                    let near = before.filter(|r| addr - r.base < 1 << 32).map(|r| {
                        format!(
                            "; {} bytes behind the end of the {} bytes at 0x{:x}",
                            addr - r.base - r.bytes.len(),
                            r.bytes.len(),
                            r.base
                        )
                    });
                    fault(
                        Code::IllegalAddress,
                        &format!("nothing is allocated there{}", near.unwrap_or_default()),
                    )
                }
            },
            Lead::Shared(block, off) => {
                let bytes = match block {
                    None => Some(&shared.own),
                    Some(r) => shared.cluster.get(r as usize),
                };
                match bytes {
                    Some(b) if off.checked_add(size).is_some_and(|end| end <= b.len()) => {
                        Ok(Target::Bytes(b, off))
                    }
                    _ => fault(
                        Code::IllegalAddress,
                        &format!("beyond the {} bytes of the block", shared.own.len()),
                    ),
                }
            }
            Lead::Local(off)
                if off
                    .checked_add(size)
                    .is_some_and(|end| end <= w.local.len() as u64 * 4) =>
            {
                Ok(Target::Local(off as usize))
            }
            Lead::Local(_) => fault(Code::IllegalAddress, "beyond the stack of the thread"),
            Lead::Param(off)
                if !what.write
                    && off
                        .checked_add(size)
                        .is_some_and(|end| end <= self.launch.params.len() as u64) =>
            {
                Ok(Target::Param(off as usize))
            }
            Lead::Param(_) => fault(
                Code::IllegalAddress,
                "parameters cannot be written, and end there",
            ),
        }
    }

    /// Fetches these places in global memory as far as they have not been fetched: one chunk at
    /// least, and no more than the fuel allows. False: some are left.
    pub(super) fn fetch(
        &self,
        w: &mut Warp,
        fuel: &mut u32,
        space: Space,
        size: u64,
        places: impl IntoIterator<Item = u64>,
    ) -> bool {
        let mut first = true;
        for addr in places {
            let Lead::Global(addr) = lead(space, addr) else {
                continue;
            };
            // An invalid place is reported by its access.
            let Some(r) = region(self.launch.regions, &mut w.hit, addr) else {
                continue;
            };
            for at in [addr - r.base, addr - r.base + (size - 1)] {
                if r.bytes.is_there(at) {
                    continue;
                }
                if !first && *fuel == 0 {
                    return false;
                }
                first = false;
                r.bytes.fetch(at);
                w.burn(fuel, cost::FETCH);
            }
        }
        true
    }

    /// Reads bytes of a string or of arguments, for the environment.
    pub(crate) fn read(
        &self,
        w: &mut Warp,
        shared: &SharedMemory,
        lane: usize,
        pc: u32,
        addr: u64,
        size: u32,
    ) -> Result<u64, Box<Fault>> {
        let what = Access {
            space: Space::Generic,
            size,
            write: false,
            pc,
            lane: lane as u32,
        };
        let target = self.access(shared, w, &what, addr)?;
        Ok(target.load(self, &w.local, lane, 0, size))
    }
}

/// A place that a lane may access.
pub(crate) enum Target<'a> {
    Bytes(&'a Bytes, u64),
    Local(usize),
    Param(usize),
}

/// The kind of an access, for its checks and its message.
pub(crate) struct Access {
    pub(crate) space: Space,
    pub(crate) size: u32,
    pub(crate) write: bool,
    pub(crate) pc: u32,
    pub(crate) lane: u32,
}

impl Target<'_> {
    /// Loads an element of 1 to 8 bytes, `plus` bytes on. The range was checked.
    pub(crate) fn load(
        &self,
        cx: &Cx<'_>,
        local: &[[u32; 32]],
        lane: usize,
        plus: u32,
        size: u32,
    ) -> u64 {
        match self {
            Self::Bytes(b, at) => {
                let at = at + u64::from(plus);
                match size {
                    1 => b.load::<u8>(at).map(u64::from),
                    2 => b.load::<u16>(at).map(u64::from),
                    4 => b.load::<u32>(at).map(u64::from),
                    _ => b.load::<u64>(at),
                }
                .unwrap_or(0)
            }
            Self::Local(at) => {
                let at = at + plus as usize;
                let word = u64::from(local[at / 4][lane]);
                match size {
                    8 => word | u64::from(local[at / 4 + 1][lane]) << 32,
                    4 => word,
                    2 => word >> (at % 4 * 8) & 0xffff,
                    _ => word >> (at % 4 * 8) & 0xff,
                }
            }
            Self::Param(at) => {
                let at = at + plus as usize;
                let mut v = [0; 8];
                v[..size as usize].copy_from_slice(&cx.launch.params[at..at + size as usize]);
                u64::from_le_bytes(v)
            }
        }
    }

    pub(crate) fn store(&self, local: &mut [[u32; 32]], lane: usize, plus: u32, size: u32, v: u64) {
        match self {
            Self::Bytes(b, at) => {
                let at = at + u64::from(plus);
                let _inside = match size {
                    1 => b.store(at, v as u8),
                    2 => b.store(at, v as u16),
                    4 => b.store(at, v as u32),
                    _ => b.store(at, v),
                };
            }
            Self::Local(at) => {
                let at = at + plus as usize;
                let word = &mut local[at / 4][lane];
                let shift = at % 4 * 8;
                match size {
                    8 => {
                        *word = v as u32;
                        local[at / 4 + 1][lane] = (v >> 32) as u32;
                    }
                    4 => *word = v as u32,
                    2 => *word = *word & !(0xffff << shift) | (v as u32 & 0xffff) << shift,
                    _ => *word = *word & !(0xff << shift) | (v as u32 & 0xff) << shift,
                }
            }
            Self::Param(_) => {}
        }
    }
}
