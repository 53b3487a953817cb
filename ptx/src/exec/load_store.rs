//! Loads and stores: the ordinary ones row by row, any other lane by lane.
#![allow(
    clippy::too_many_arguments,
    reason = "what the loop holds in its hands"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "lane arithmetic truncates and reinterprets by definition"
)]
#![allow(
    clippy::inline_always,
    reason = "the loop is instantiated for each set of processor features"
)]

use super::access::Access;
use super::cost;
use super::cx::{Cx, SharedMemory};
use super::lanes::{put32, put64};
use super::registers::{Regs, lanes};
use super::warp::Warp;
use crate::memory::{Bytes, Word};
use crate::program::{Inst, Memory, flag};
use crate::space::{Halt, Lead, lead, region};
use crate::types::Space;

/// Whether 32 addresses are consecutive, `size` apart.
#[inline(always)]
fn is_row(a: &[u64; 32], size: u64) -> bool {
    let mut off = 0;
    for l in 0..32 {
        off |= a[l].wrapping_sub(a[0]) ^ (size * l as u64);
    }
    off == 0
}

macro_rules! global {
    ($load:ident $store:ident $file:ident $t:ty) => {
        #[inline(always)]
        pub(super) fn $load(
            w: &mut Warp,
            cx: &Cx<'_>,
            shared: &SharedMemory,
            r: &mut Regs,
            i: &Inst,
            m: u32,
            pc: u32,
            fuel: &mut u32,
        ) -> Result<(), Box<Halt>> {
            let a = &r.r64[i.a as usize];
            let plus = i64::from(i.imm) as u64;
            let first = a[m.trailing_zeros() as usize & 31].wrapping_add(plus);
            if let Some(g) = region(cx.launch.regions, &mut w.hit, first) {
                let shift = plus.wrapping_sub(g.base);
                if m == u32::MAX && is_row(a, size_of::<$t>() as u64) {
                    let row = &mut r.$file[i.d as usize];
                    if g.bytes.load_row::<$t>(first - g.base, row).is_some() {
                        return Ok(());
                    }
                } else {
                    let mut at = [0; 32];
                    for l in 0..32 {
                        at[l] = a[l].wrapping_add(shift);
                    }
                    if let Some(cost) =
                        quick_load::<$t>(&g.bytes, &at, m, &mut r.$file[i.d as usize])
                    {
                        w.burn(fuel, cost);
                        return Ok(());
                    }
                }
            }
            memory(w, cx, shared, r, i, m, pc, fuel)
        }

        #[inline(always)]
        pub(super) fn $store(
            w: &mut Warp,
            cx: &Cx<'_>,
            shared: &SharedMemory,
            r: &mut Regs,
            i: &Inst,
            m: u32,
            pc: u32,
            fuel: &mut u32,
        ) -> Result<(), Box<Halt>> {
            let a = &r.r64[i.a as usize];
            let plus = i64::from(i.imm) as u64;
            let first = a[0].wrapping_add(plus);
            if m == u32::MAX
                && is_row(a, size_of::<$t>() as u64)
                && let Some(g) = region(cx.launch.regions, &mut w.hit, first)
                && !g.is_read_only()
                && g.bytes
                    .store_row::<$t>(first - g.base, &r.$file[i.b as usize])
                    .is_some()
            {
                return Ok(());
            }
            memory(w, cx, shared, r, i, m, pc, fuel)
        }
    };
}
global!(load_global32 store_global32 r32 u32);
global!(load_global64 store_global64 r64 u64);

/// The addresses of all lanes.
#[inline(always)]
fn addresses(r: &Regs, slot: u16, wide: bool, offset: i64) -> [u64; 32] {
    let plus = offset as u64;
    let mut at = [0; 32];
    if wide {
        let a = &r.r64[slot as usize];
        for l in 0..32 {
            at[l] = a[l].wrapping_add(plus);
        }
    } else {
        let a = &r.r32[slot as usize];
        for l in 0..32 {
            at[l] = u64::from(a[l]).wrapping_add(plus);
        }
    }
    at
}

#[inline(always)]
pub(super) fn load_shared32(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    r: &mut Regs,
    i: &Inst,
    m: u32,
    pc: u32,
    fuel: &mut u32,
) -> Result<(), Box<Halt>> {
    let at = addresses(r, i.a, i.w & flag::A64 != 0, i64::from(i.imm));
    // Anywhere in it: the nearer caches hold all of a block's memory.
    if quick_load::<u32>(&shared.own, &at, m, &mut r.r32[i.d as usize]).is_some() {
        return Ok(());
    }
    memory(w, cx, shared, r, i, m, pc, fuel)
}

#[inline(always)]
pub(super) fn store_shared32(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    r: &mut Regs,
    i: &Inst,
    m: u32,
    pc: u32,
    fuel: &mut u32,
) -> Result<(), Box<Halt>> {
    let at = addresses(r, i.a, i.w & flag::A64 != 0, i64::from(i.imm));
    if quick_store::<u32>(&shared.own, &at, m, &r.r32[i.b as usize]) {
        return Ok(());
    }
    memory(w, cx, shared, r, i, m, pc, fuel)
}

/// Loads for all lanes from one piece of memory: at one address, in a row, or each its own. Returns
/// the cost beyond one instruction. None: not all addresses are inside, aligned and fetched;
/// nothing has changed then.
#[inline(always)]
fn quick_load<T: Word + Default>(
    bytes: &Bytes,
    at: &[u64; 32],
    m: u32,
    out: &mut [T; 32],
) -> Option<u32> {
    if m == u32::MAX {
        let (row, one) = (is_row(at, size_of::<T>() as u64), is_row(at, 0));
        if row && bytes.load_row::<T>(at[0], out).is_some() {
            return Some(0);
        }
        if one && let Some(v) = bytes.load::<T>(at[0]) {
            *out = [v; 32];
            return Some(0);
        }
        *out = bytes.gather::<T>(at)?;
        return Some(cost::scattered(m));
    }
    // The register may hold the addresses, which are needed again if this fails.
    let mut v = *out;
    for l in lanes(m) {
        v[l] = bytes.load::<T>(at[l])?;
    }
    *out = v;
    Some(cost::scattered(m))
}

/// The same for stores. False: not all were stored.
#[inline(always)]
fn quick_store<T: Word>(bytes: &Bytes, at: &[u64; 32], m: u32, v: &[T; 32]) -> bool {
    if m == u32::MAX
        && is_row(at, size_of::<T>() as u64)
        && bytes.store_row::<T>(at[0], v).is_some()
    {
        return true;
    }
    let mut inside = true;
    for l in lanes(m) {
        inside &= bytes.store::<T>(at[l], v[l]).is_some();
    }
    inside
}

/// Any access whose lanes all use one piece of global memory, or the block's own shared memory.
/// False: not such an access, or a lane is at fault, or not all is fetched; then nothing is lost by
/// repeating it lane by lane.
fn quick(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    r: &mut Regs,
    x: &Memory,
    m: u32,
) -> bool {
    let mut at = addresses(r, x.addr, x.addr_wide, x.offset);
    let first = at[m.trailing_zeros() as usize & 31];
    let bytes = match lead(x.space, first) {
        Lead::Global(_) => match region(cx.launch.regions, &mut w.hit, first) {
            Some(g) if !(g.is_read_only() && x.is_store) => {
                at = at.map(|a| a.wrapping_sub(g.base));
                &g.bytes
            }
            _ => return false,
        },
        Lead::Shared(None, off) => {
            // Within the window, or generic: the same offset for all.
            let base = first.wrapping_sub(off);
            at = at.map(|a| a.wrapping_sub(base));
            &*shared.own
        }
        _ => return false,
    };
    let total = u64::from(x.size) * x.regs.len() as u64;
    // If the whole is aligned and the last element is inside, all are.
    let wrong = lanes(m).fold(false, |bad, l| {
        bad | (at[l] & (total - 1) != 0
            || at[l] > bytes.len()
            || bytes.len() - at[l] < total
            || !bytes.is_there(at[l]))
    });
    if wrong {
        return false;
    }
    for (k, (slot, bits)) in x.regs.iter().enumerate() {
        let here = at.map(|a| a.wrapping_add(u64::from(x.size) * k as u64));
        let slot = *slot as usize;
        if x.is_store {
            let wide = *bits == 64;
            let done = match (x.size, wide) {
                (4, false) => quick_store::<u32>(bytes, &here, m, &r.r32[slot]),
                (8, true) => quick_store::<u64>(bytes, &here, m, &r.r64[slot]),
                (2, false) => quick_store::<u16>(bytes, &here, m, &r.r32[slot].map(|v| v as u16)),
                (1, false) => quick_store::<u8>(bytes, &here, m, &r.r32[slot].map(|v| v as u8)),
                _ => false,
            };
            if !done {
                return false;
            }
            continue;
        }
        // All addresses are read before the first result is written, so any register may be a
        // result.
        let mut v64 = [0u64; 32];
        macro_rules! narrow {
            ($t:ident $signed:ident) => {{
                let mut v = [0 as $t; 32];
                let ok = quick_load::<$t>(bytes, &here, m, &mut v).is_some();
                v64 = v.map(|v| match x.signed {
                    true => v as $signed as u64,
                    false => u64::from(v),
                });
                ok
            }};
        }
        let loaded = match x.size {
            4 if *bits == 32 => {
                if quick_load::<u32>(bytes, &here, m, &mut r.r32[slot]).is_none() {
                    return false;
                }
                continue;
            }
            8 if *bits == 64 => {
                if quick_load::<u64>(bytes, &here, m, &mut r.r64[slot]).is_none() {
                    return false;
                }
                continue;
            }
            1 => narrow!(u8 i8),
            2 => narrow!(u16 i16),
            4 => narrow!(u32 i32),
            _ => false,
        };
        if !loaded {
            return false;
        }
        match bits {
            64 => put64(r, slot as u16, m, &v64),
            16 => put32(r, slot as u16, m, &v64.map(|v| v as u32 & 0xffff)),
            _ => put32(r, slot as u16, m, &v64.map(|v| v as u32)),
        }
    }
    true
}

pub(super) fn address(r: &Regs, slot: u16, wide: bool, lane: usize, offset: i64) -> u64 {
    let a = if wide {
        r.r64[slot as usize][lane]
    } else {
        u64::from(r.r32[slot as usize][lane])
    };
    a.wrapping_add(offset as u64)
}

/// Any load or store, lane by lane.
#[inline(never)]
pub(super) fn memory(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    r: &mut Regs,
    i: &Inst,
    m: u32,
    pc: u32,
    fuel: &mut u32,
) -> Result<(), Box<Halt>> {
    let x: &Memory = &cx.program.memory[i.x as usize];
    let size = x.size * x.regs.len() as u32;
    w.burn(fuel, cost::MEMORY);
    if x.addr_wide && local_row(w, r, x, m) {
        return Ok(());
    }
    w.burn(fuel, cost::scattered(m));
    if quick(w, cx, shared, r, x, m) {
        return Ok(());
    }
    let places = lanes(m).map(|l| address(r, x.addr, x.addr_wide, l, x.offset));
    if !cx.fetch(w, fuel, x.space, u64::from(size), places) {
        return Err(Box::new(Halt::Again));
    }
    for l in lanes(m) {
        let addr = address(r, x.addr, x.addr_wide, l, x.offset);
        let what = Access {
            space: x.space,
            size,
            write: x.is_store,
            pc: pc - 1,
            lane: l as u32,
        };
        let target = cx.access(shared, w, &what, addr)?;
        // A vector may name its own address among its results: everything is read before anything
        // is written.
        let mut values = [0u64; 8];
        for (k, (slot, bits)) in x.regs.iter().enumerate() {
            let plus = x.size * k as u32;
            if x.is_store {
                let v = if *bits == 64 {
                    r.r64[*slot as usize][l]
                } else {
                    u64::from(r.r32[*slot as usize][l])
                };
                target.store(&mut w.local, l, plus, x.size, v);
            } else {
                let v = target.load(cx, &w.local, l, plus, x.size);
                let shift = 64 - x.size * 8;
                values[k & 7] = if x.signed {
                    ((v << shift) as i64 >> shift) as u64
                } else {
                    v
                };
            }
        }
        if !x.is_store {
            for (k, (slot, bits)) in x.regs.iter().enumerate() {
                let v = values[k & 7];
                match bits {
                    64 => r.r64[*slot as usize][l] = v,
                    16 => r.r32[*slot as usize][l] = v as u32 & 0xffff,
                    _ => r.r32[*slot as usize][l] = v as u32,
                }
            }
        }
    }
    Ok(())
}

/// Local memory at one address for all lanes, in words: whole rows. False: not such an access.
fn local_row(w: &mut Warp, r: &mut Regs, x: &Memory, m: u32) -> bool {
    if !matches!(x.space, Space::Local | Space::Generic) || x.size < 4 {
        return false;
    }
    let a = &r.r64[x.addr as usize];
    let first = a[m.trailing_zeros() as usize];
    if lanes(m).any(|l| a[l] != first) {
        return false;
    }
    let addr = first.wrapping_add(x.offset as u64);
    let total = x.size as usize * x.regs.len();
    let Lead::Local(off) = lead(x.space, addr) else {
        return false;
    };
    let off = off as usize;
    if !off.is_multiple_of(total.next_power_of_two())
        || off.checked_add(total).is_none_or(|e| e > w.local.len() * 4)
    {
        return false;
    }
    for (k, (slot, bits)) in x.regs.iter().enumerate() {
        let row = (off + k * x.size as usize) / 4;
        for l in lanes(m) {
            match (x.is_store, x.size, bits) {
                (false, 4, 64) => {
                    r.r64[*slot as usize][l] = if x.signed {
                        w.local[row][l] as i32 as i64 as u64
                    } else {
                        w.local[row][l].into()
                    }
                }
                (false, 4, _) => r.r32[*slot as usize][l] = w.local[row][l],
                (false, _, 64) => {
                    r.r64[*slot as usize][l] =
                        u64::from(w.local[row + 1][l]) << 32 | u64::from(w.local[row][l])
                }
                (true, 4, 64) => w.local[row][l] = r.r64[*slot as usize][l] as u32,
                (true, 4, _) => w.local[row][l] = r.r32[*slot as usize][l],
                (true, _, 64) => {
                    w.local[row][l] = r.r64[*slot as usize][l] as u32;
                    w.local[row + 1][l] = (r.r64[*slot as usize][l] >> 32) as u32;
                }
                _ => return false,
            }
        }
    }
    true
}
