//! Matrices spread over the lanes of a warp (PTX ISA 9.7.14).
//!
//! The fragments of `mma` and `ldmatrix` are laid out as the ISA says. The layout of `wmma` is the
//! implementation's: element n of a matrix is in lane n / (elements per lane), in order, repeating
//! where there are more registers than elements.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "elements of packed registers"
)]

use super::access::Access;
use super::cx::{Cx, SharedMemory};
use super::lanes::operand;
use super::registers::lanes;
use super::warp::{Member, Warp};
use crate::half::{Rounding, narrow, widen};
use crate::number::{NAN32, f32r};
use crate::program::{Fragment, Inst, Matrix, Slot, SyncOp};
use crate::space::Fault;
use crate::types::Type;

struct Lanes<'w> {
    w: &'w mut Warp,
    frame: [u32; 32],
}

impl Lanes<'_> {
    fn get(&self, lane: usize, slot: Slot) -> u32 {
        self.w.frames[self.frame[lane] as usize].regs.r32[slot as usize][lane]
    }

    fn get64(&self, lane: usize, slot: Slot) -> u64 {
        self.w.frames[self.frame[lane] as usize].regs.r64[slot as usize][lane]
    }

    fn put(&mut self, lane: usize, slot: Slot, v: u32) {
        self.w.frames[self.frame[lane] as usize].regs.r32[slot as usize][lane] = v;
    }

    /// Element `e` of a fragment: 8, 16, 32 or 64 bits.
    fn element(&self, f: &Fragment, lane: usize, e: usize) -> u64 {
        let bits = f.ty.bits() as usize;
        if bits == 64 {
            return self.get64(lane, f.regs[e]);
        }
        let per = 32 / bits;
        let word = u64::from(self.get(lane, f.regs[e / per]));
        word >> (bits * (e % per)) & ((1 << bits) - 1)
    }

    fn set_element(&mut self, f: &Fragment, lane: usize, e: usize, v: u64) {
        let bits = f.ty.bits() as usize;
        if bits == 64 {
            self.w.frames[self.frame[lane] as usize].regs.r64[f.regs[e] as usize][lane] = v;
            return;
        }
        let per = 32 / bits;
        let slot = f.regs[e / per];
        let mask = (((1u64 << bits) - 1) as u32) << (bits * (e % per));
        let old = self.get(lane, slot);
        self.put(
            lane,
            slot,
            old & !mask | (v as u32) << (bits * (e % per)) & mask,
        );
    }
}

fn number(t: Type, v: u64) -> f64 {
    match t {
        Type::F16 | Type::Bf16 => widen(t, v),
        // The low bits of a tf32 are ignored.
        Type::Tf32 => f64::from(f32::from_bits(v as u32 & 0xffff_e000)),
        Type::F64 => f64::from_bits(v),
        _ => f64::from(f32::from_bits(v as u32)),
    }
}

fn integer(t: Type, v: u64) -> i64 {
    match t {
        Type::S8 => i64::from(v as i8),
        Type::U8 => i64::from(v as u8),
        _ => i64::from(v as i32),
    }
}

/// Lane and element of entry (r, c) of each operand of `mma`.
fn place_a(bits: u32, r: u32, c: u32) -> (usize, usize) {
    let per = if bits == 64 { 1 } else { 32 / bits };
    let (g, t, e) = (r % 8, c / per % 4, c % per);
    let reg = r / 8 + 2 * (c / (4 * per));
    ((g * 4 + t) as usize, (reg * per + e) as usize)
}

fn place_b(bits: u32, r: u32, c: u32) -> (usize, usize) {
    let per = if bits == 64 { 1 } else { 32 / bits };
    let (g, t, e) = (c, r / per % 4, r % per);
    ((g * 4 + t) as usize, (r / (4 * per) * per + e) as usize)
}

fn place_c(r: u32, c: u32) -> (usize, usize) {
    ((r % 8 * 4 + c / 2) as usize, (r / 8 * 2 + c % 2) as usize)
}

/// Lane and element of entry (r, c) of a matrix that `wmma` loaded.
fn place_opaque(rows: u32, cols: u32, r: u32, c: u32) -> (usize, usize) {
    let each = rows * cols / 32;
    let n = r * cols + c;
    ((n / each) as usize, (n % each) as usize)
}

/// Fetches the memory that a matrix needs, for the lanes that have just arrived. False: some is
/// left.
pub(super) fn matrix_is_there(w: &mut Warp, cx: &Cx<'_>, i: &Inst, m: u32, fuel: &mut u32) -> bool {
    let sync = &cx.program.syncs[i.x as usize];
    let SyncOp::Matrix(index) = sync.op else {
        return true;
    };
    let regs = &w.frames[w.frame as usize].regs;
    let (fragment, rows, cols, by_rows, space) = match &cx.program.matrices[index as usize] {
        Matrix::Tile {
            fragment,
            rows,
            cols,
            by_rows,
            space,
            ..
        } => (fragment, rows, cols, by_rows, space),
        Matrix::Rows {
            regs: all, space, ..
        } => {
            let places: [u64; 32] = std::array::from_fn(|l| operand(regs, i.a, sync.wide, l));
            let places = places.into_iter().take(all.len() * 8);
            return cx.fetch(w, fuel, *space, 16, places);
        }
        _ => return true,
    };
    // The first of all lanes that meet is the first of those that arrived together.
    let lane = m.trailing_zeros() as usize & 31;
    let base = operand(regs, i.a, sync.wide, lane);
    let stride = operand(regs, i.b, false, lane);
    let (lines, each) = if *by_rows {
        (*rows, *cols)
    } else {
        (*cols, *rows)
    };
    let size = u64::from(fragment.ty.bytes());
    let places =
        (0..u64::from(lines)).map(|k| base.wrapping_add(k.wrapping_mul(stride).wrapping_mul(size)));
    cx.fetch(w, fuel, *space, u64::from(each) * size, places)
}

pub(crate) fn execute(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    members: &[Member],
) -> Result<(), Box<Fault>> {
    let first = members[0];
    let inst = cx.program.code[first.pc as usize];
    let sync = &cx.program.syncs[inst.x as usize];
    let SyncOp::Matrix(index) = sync.op else {
        return Ok(());
    };
    let mut frame = [first.frame; 32];
    let mut there = 0u32;
    for x in members {
        there |= x.mask;
        for l in lanes(x.mask) {
            frame[l] = x.frame;
        }
    }
    let mut l = Lanes { w, frame };
    match &cx.program.matrices[index as usize] {
        Matrix::Multiply {
            shape,
            a,
            b,
            c,
            d,
            saturate,
            opaque,
        } => multiply(&mut l, *shape, [a, b, c, d], *saturate, *opaque),
        Matrix::Rows {
            regs,
            transposed,
            store,
            space,
        } => {
            // All results are read before a register is written that may hold an address.
            let mut read = [[0u16; 8]; 32];
            for (j, slot) in regs.iter().enumerate() {
                for row in 0..8 {
                    let lane = j * 8 + row;
                    let addr = if sync.wide {
                        l.get64(lane, inst.a)
                    } else {
                        u64::from(l.get(lane, inst.a))
                    };
                    let what = Access {
                        space: *space,
                        size: 16,
                        write: *store,
                        pc: first.pc,
                        lane: lane as u32,
                    };
                    let target = cx.access(shared, l.w, &what, addr)?;
                    for col in 0..8 {
                        let (to, half) = if *transposed {
                            (col * 4 + row / 2, row % 2)
                        } else {
                            (row * 4 + col / 2, col % 2)
                        };
                        let f = Fragment {
                            ty: Type::F16,
                            regs: vec![*slot],
                        };
                        if there >> to & 1 == 0 {
                            continue;
                        }
                        if *store {
                            let v = l.element(&f, to, half);
                            target.store(&mut l.w.local, lane, col as u32 * 2, 2, v);
                        } else {
                            let v = target.load(cx, &l.w.local, lane, col as u32 * 2, 2);
                            read[to][j * 2 + half] = v as u16;
                        }
                    }
                }
            }
            if !store {
                for (j, slot) in regs.iter().enumerate() {
                    for to in lanes(there) {
                        let v = u32::from(read[to][j * 2]) | u32::from(read[to][j * 2 + 1]) << 16;
                        l.put(to, *slot, v);
                    }
                }
            }
        }
        Matrix::Transpose { d, a } => {
            let words: [u32; 32] = std::array::from_fn(|k| l.get(k, *a));
            let at = |r: usize, c: usize| words[r * 4 + c / 2] >> (16 * (c % 2)) & 0xffff;
            for to in lanes(there) {
                let (r, c) = (to / 4, to % 4 * 2);
                l.put(to, *d, at(c, r) | at(c + 1, r) << 16);
            }
        }
        Matrix::Tile {
            fragment,
            rows,
            cols,
            by_rows,
            store,
            space,
        } => {
            let lane = there.trailing_zeros() as usize & 31;
            let base = if sync.wide {
                l.get64(lane, inst.a)
            } else {
                u64::from(l.get(lane, inst.a))
            };
            let stride = u64::from(l.get(lane, inst.b));
            let size = fragment.ty.bytes();
            let each = (rows * cols / 32) as usize;
            let capacity = fragment.regs.len() * (32 / fragment.ty.bits() as usize);
            for r in 0..*rows {
                for c in 0..*cols {
                    let (major, minor) = if *by_rows { (r, c) } else { (c, r) };
                    let addr = base.wrapping_add(
                        (u64::from(major) * stride + u64::from(minor)) * u64::from(size),
                    );
                    let what = Access {
                        space: *space,
                        size,
                        write: *store,
                        pc: first.pc,
                        lane: lane as u32,
                    };
                    let target = cx.access(shared, l.w, &what, addr)?;
                    let (to, e) = place_opaque(*rows, *cols, r, c);
                    if *store {
                        let v = l.element(fragment, to, e);
                        target.store(&mut l.w.local, lane, 0, size, v);
                    } else {
                        let v = target.load(cx, &l.w.local, lane, 0, size);
                        let mut k = e;
                        while k < capacity {
                            l.set_element(fragment, to, k, v);
                            k += each;
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

fn multiply(
    l: &mut Lanes<'_>,
    [m, n, k]: [u32; 3],
    [a, b, c, d]: [&Fragment; 4],
    saturate: bool,
    opaque: bool,
) {
    let at = |which: u32, r: u32, q: u32| match (opaque, which) {
        (true, 0) => place_opaque(m, k, r, q),
        (true, 1) => place_opaque(k, n, r, q),
        (true, _) => place_opaque(m, n, r, q),
        (false, 0) => place_a(a.ty.bits(), r, q),
        (false, 1) => place_b(b.ty.bits(), r, q),
        _ => place_c(r, q),
    };
    let is_integer = matches!(a.ty, Type::S8 | Type::U8);
    let all = |rows: u32, cols: u32| (0..rows).flat_map(move |r| (0..cols).map(move |q| (r, q)));
    let place = |which: u32| move |(r, q): (u32, u32)| at(which, r, q);
    let mut out = Vec::with_capacity((m * n) as usize);
    if is_integer {
        let value = |l: &Lanes<'_>, f: &Fragment, (lane, e): (usize, usize)| {
            integer(f.ty, l.element(f, lane, e))
        };
        let x: Vec<i64> = all(m, k).map(place(0)).map(|p| value(l, a, p)).collect();
        // By columns, so that a sum runs along both.
        let y: Vec<i64> = all(n, k).map(|(q, j)| value(l, b, at(1, j, q))).collect();
        for (r, q) in all(m, n) {
            let (lane, e) = at(2, r, q);
            let (row, column) = (
                &x[(r * k) as usize..][..k as usize],
                &y[(q * k) as usize..][..k as usize],
            );
            let sum = row.iter().zip(column).map(|(x, y)| x * y).sum::<i64>()
                + integer(Type::S32, l.element(c, lane, e));
            let v = if saturate {
                sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX))
            } else {
                sum
            };
            out.push((lane, e, v as u64));
        }
    } else {
        let value = |l: &Lanes<'_>, f: &Fragment, (lane, e): (usize, usize)| {
            number(f.ty, l.element(f, lane, e))
        };
        let x: Vec<f64> = all(m, k).map(place(0)).map(|p| value(l, a, p)).collect();
        let y: Vec<f64> = all(n, k).map(|(q, j)| value(l, b, at(1, j, q))).collect();
        for (r, q) in all(m, n) {
            let (lane, e) = at(2, r, q);
            let (row, column) = (
                &x[(r * k) as usize..][..k as usize],
                &y[(q * k) as usize..][..k as usize],
            );
            let mut sum = number(c.ty, l.element(c, lane, e));
            for (x, y) in row.iter().zip(column) {
                sum = if d.ty == Type::F64 {
                    x.mul_add(*y, sum)
                } else {
                    sum + x * y
                };
            }
            let v = match d.ty {
                Type::F64 => sum.to_bits(),
                Type::F16 => u64::from(narrow(sum, Type::F16, Rounding::Nearest)),
                _ if sum.is_nan() => u64::from(NAN32),
                _ => u64::from(f32r(sum as f32)),
            };
            out.push((lane, e, v));
        }
    }
    for (lane, e, v) in out {
        l.set_element(d, lane, e, v);
    }
}
