//! Arithmetic: one operation for all lanes of a row.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "lane arithmetic truncates and reinterprets by definition"
)]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_lossless,
    reason = "conversions of lanes round by definition"
)]
#![allow(
    clippy::neg_cmp_op_on_partial_ord,
    clippy::float_cmp,
    reason = "unordered comparisons are what PTX has"
)]
#![allow(
    clippy::inline_always,
    reason = "the loop is instantiated for each set of processor features"
)]

use super::cx::Cx;
use super::registers::{Regs, lanes, predicate};
use crate::number::canon;
use crate::program::{Inst, NONE, chain, flag};

/// All ones for each lane in a mask.
#[inline(always)]
pub(super) fn expand(m: u32) -> [u32; 32] {
    let mut v = [0; 32];
    for (l, v) in v.iter_mut().enumerate() {
        *v = (m >> l & 1).wrapping_neg();
    }
    v
}

#[inline(always)]
pub(super) fn put32(r: &mut Regs, d: u16, m: u32, v: &[u32; 32]) {
    let o = &mut r.r32[d as usize].0;
    if m == u32::MAX {
        *o = *v;
    } else {
        let k = expand(m);
        for l in 0..32 {
            o[l] = o[l] & !k[l] | v[l] & k[l];
        }
    }
}

#[inline(always)]
pub(super) fn put64(r: &mut Regs, d: u16, m: u32, v: &[u64; 32]) {
    let o = &mut r.r64[d as usize].0;
    if m == u32::MAX {
        *o = *v;
    } else {
        let k = expand(m);
        for l in 0..32 {
            let k = (k[l] as i32) as i64 as u64;
            o[l] = o[l] & !k | v[l] & k;
        }
    }
}

const BITS: [u32; 32] = {
    let mut b = [0; 32];
    let mut l = 0;
    while l < 32 {
        b[l] = 1 << l;
        l += 1;
    }
    b
};

/// `setp`: p = t op c, q = !t op c.
#[inline(always)]
pub(super) fn put_test(r: &mut Regs, i: &Inst, m: u32, t: u32) {
    let (mut p, mut q) = (t, !t);
    if i.w & flag::COMBINE != 0 {
        let c = predicate(&r.p, i.c, i.w, flag::C_NOT);
        let f = |x: u32| match i.w >> flag::BOOL_SHIFT & 3 {
            0 => x & c,
            1 => x | c,
            _ => x ^ c,
        };
        (p, q) = (f(p), f(q));
    }
    let o = &mut r.p[i.d as usize];
    *o = *o & !m | p & m;
    if i.imm != 0 {
        let o = &mut r.p[(i.imm - 1) as usize];
        *o = *o & !m | q & m;
    }
}

macro_rules! shapes {
    ($($name:ident($($arg:ident $file:ident $t:ty),*) -> $put:ident $out:ty;)*) => { $(
        #[inline(always)]
        pub(super) fn $name(r: &mut Regs, i: &Inst, m: u32, f: impl Fn($($t),*) -> $out) {
            $(let $arg = &r.$file[i.$arg as usize];)*
            let mut v: [$out; 32] = [0; 32];
            for l in 0..32 {
                v[l] = f($($arg[l]),*);
            }
            $put(r, i.d, m, &v);
        }
    )* };
}
shapes! {
    un32(a r32 u32) -> put32 u32;
    bin32(a r32 u32, b r32 u32) -> put32 u32;
    tri32(a r32 u32, b r32 u32, c r32 u32) -> put32 u32;
    un64(a r64 u64) -> put64 u64;
    bin64(a r64 u64, b r64 u64) -> put64 u64;
    tri64(a r64 u64, b r64 u64, c r64 u64) -> put64 u64;
    shift64(a r64 u64, b r32 u32) -> put64 u64;
    wide(a r32 u32, b r32 u32) -> put64 u64;
    wide_add(a r32 u32, b r32 u32, c r64 u64) -> put64 u64;
    widen(a r32 u32) -> put64 u64;
    narrow(a r64 u64) -> put32 u32;
}

/// Stores a row of results; a NaN among them becomes the GPU's canonical one. NaNs are rare, so the
/// row is first only tested for any.
#[inline(always)]
fn put_floats(r: &mut Regs, d: u16, m: u32, v: &[f32; 32]) {
    // Plain loops: the compiler does not use the wide vectors for closures called through
    // iterators.
    let mut bits = [0u32; 32];
    let mut nan = 0u32;
    for l in 0..32 {
        bits[l] = v[l].to_bits();
        nan |= u32::from(v[l].is_nan());
    }
    if nan != 0 {
        for b in &mut bits {
            *b = canon(*b);
        }
    }
    put32(r, d, m, &bits);
}

#[inline(always)]
pub(super) fn float_bin32(r: &mut Regs, i: &Inst, m: u32, f: impl Fn(f32, f32) -> f32) {
    let (a, b) = (&r.r32[i.a as usize], &r.r32[i.b as usize]);
    let mut v = [0.0; 32];
    for l in 0..32 {
        v[l] = f(f32::from_bits(a[l]), f32::from_bits(b[l]));
    }
    put_floats(r, i.d, m, &v);
}

#[inline(always)]
pub(super) fn float_tri32(r: &mut Regs, i: &Inst, m: u32, f: impl Fn(f32, f32, f32) -> f32) {
    let (a, b, c) = (
        &r.r32[i.a as usize],
        &r.r32[i.b as usize],
        &r.r32[i.c as usize],
    );
    let mut v = [0.0; 32];
    for l in 0..32 {
        v[l] = f(
            f32::from_bits(a[l]),
            f32::from_bits(b[l]),
            f32::from_bits(c[l]),
        );
    }
    put_floats(r, i.d, m, &v);
}

#[inline(always)]
pub(super) fn cmp32(r: &mut Regs, i: &Inst, m: u32, f: impl Fn(u32, u32) -> bool) {
    let (a, b) = (&r.r32[i.a as usize], &r.r32[i.b as usize]);
    let mut v = [0u32; 32];
    for l in 0..32 {
        v[l] = if f(a[l], b[l]) { BITS[l] } else { 0 };
    }
    let mut t = 0;
    for x in v {
        t |= x;
    }
    put_test(r, i, m, t);
}

#[inline(always)]
pub(super) fn cmp64(r: &mut Regs, i: &Inst, m: u32, f: impl Fn(u64, u64) -> bool) {
    let (a, b) = (&r.r64[i.a as usize], &r.r64[i.b as usize]);
    let mut t = 0;
    for l in 0..32 {
        t |= u32::from(f(a[l], b[l])) << l;
    }
    put_test(r, i, m, t);
}

#[inline(always)]
pub(super) fn operand(r: &Regs, slot: u16, wide: bool, lane: usize) -> u64 {
    if slot == NONE {
        0
    } else if wide {
        r.r64[slot as usize][lane]
    } else {
        u64::from(r.r32[slot as usize][lane])
    }
}

#[inline(never)]
pub(super) fn lane_function(cx: &Cx<'_>, r: &mut Regs, i: &Inst, m: u32) {
    let f = cx.program.lanes[i.x as usize];
    let k = i.imm as u32;
    for l in lanes(m) {
        let a = operand(r, i.a, i.w & flag::A64 != 0, l);
        let b = operand(r, i.b, i.w & flag::B64 != 0, l);
        let c = if i.w & flag::C_PRED != 0 {
            u64::from(r.p[i.c as usize] >> l & 1)
        } else {
            operand(r, i.c, i.w & flag::C64 != 0, l)
        };
        let v = f(a, b, c, k);
        if i.w & flag::D64 != 0 {
            r.r64[i.d as usize][l] = v;
        } else {
            r.r32[i.d as usize][l] = v as u32;
        }
    }
}

/// The constant of a test's function is in a register, the second predicate in `imm`.
#[inline(never)]
pub(super) fn lane_test(cx: &Cx<'_>, r: &mut Regs, i: &Inst, m: u32) {
    let f = cx.program.lanes[(i.x & 0xffff) as usize];
    let k = i.x >> 16;
    let mut t = 0;
    for l in lanes(m) {
        let a = operand(r, i.a, i.w & flag::A64 != 0, l);
        let b = operand(r, i.b, i.w & flag::B64 != 0, l);
        t |= ((f(a, b, 0, k) & 1) as u32) << l;
    }
    put_test(r, i, m, t);
}

#[inline(never)]
pub(super) fn carry(r: &mut Regs, i: &Inst, m: u32) {
    let wide = i.w & flag::D64 != 0;
    let bits = if wide { 64 } else { 32 };
    let low = (1u128 << bits) - 1;
    for l in lanes(m) {
        let (a, b) = (
            u128::from(operand(r, i.a, wide, l)),
            u128::from(operand(r, i.b, wide, l)),
        );
        let c = u128::from(operand(r, i.c, wide, l));
        let cin = if i.x & chain::CARRY_IN != 0 {
            u128::from(r.cc >> l & 1)
        } else {
            0
        };
        let product = |hi: bool| {
            if !hi {
                a.wrapping_mul(b) & low
            } else if i.x & chain::SIGNED != 0 {
                let s = |x: u128| ((x << (128 - bits)) as i128) >> (128 - bits);
                ((s(a) * s(b)) >> bits) as u128 & low
            } else {
                (a * b) >> bits
            }
        };
        let full = match i.x & chain::KIND {
            chain::ADD => a + b + cin,
            // The flag after a subtraction is the borrow.
            chain::SUB => a.wrapping_sub(b).wrapping_sub(cin) & (low << 1 | 1),
            chain::MAD_LO => product(false) + c + cin,
            _ => product(true) + c + cin,
        };
        let out = (full >> bits & 1) as u32;
        if i.x & chain::CARRY_OUT != 0 {
            r.cc = r.cc & !(1 << l) | out << l;
        }
        if wide {
            r.r64[i.d as usize][l] = full as u64;
        } else {
            r.r32[i.d as usize][l] = full as u32;
        }
    }
}
