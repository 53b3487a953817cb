//! Integer arithmetic (PTX ISA 9.7.1, 9.7.2).
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::many_single_char_names,
    reason = "lane arithmetic truncates by definition"
)]

use super::body::Body;
use super::float;
use super::modifiers::{Decoded, Modifiers, mistake};
use crate::ast::Instruction;
use crate::ops::{LaneFn, Op};
use crate::program::{chain, flag};
use crate::types::Type;

type T = Type;

/// The low `k` bits.
pub(crate) fn low(x: u64, k: u32) -> u64 {
    if k >= 64 { x } else { x & ((1 << k) - 1) }
}

/// The value of the low `k` bits in two's complement.
pub(crate) fn signed(x: u64, k: u32) -> i64 {
    ((x << (64 - k)) as i64) >> (64 - k)
}

const INTEGERS: [T; 6] = [T::U16, T::S16, T::U32, T::S32, T::U64, T::S64];

/// The constant of all integer lane functions: the width.
fn integer(b: &mut Body<'_, '_>, m: &Modifiers<'_>, t: T) -> Decoded<u32> {
    m.check(t, &INTEGERS)?;
    let _ = b;
    Ok(t.bits())
}

/// The operation of the loop for 32 and 64 bits, or the lane function.
fn sized<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    t: T,
    n: usize,
    op32: Option<Op>,
    op64: Option<Op>,
    f: LaneFn,
) -> Decoded {
    let types = [t; 4];
    match (t.bits(), op32, op64) {
        (32, Some(op), _) | (64, _, Some(op)) => b.hot(i, op, &types[..n]),
        (k, _, _) => b.simple(i, f, k, &types[..n]),
    }
}

pub(crate) fn add<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Decoded {
    let t = m.ty()?;
    if t.is_float() {
        return float::arithmetic(b, i, m, t);
    }
    let k = integer(b, m, t)?;
    if m.has("cc") {
        return carry(b, i, t, chain::ADD | chain::CARRY_OUT);
    }
    let minus = i.name == "sub";
    if m.has("sat") {
        m.check(t, &[T::S32])?;
        let f: LaneFn = if minus {
            |a, b, _, _| u64::from((a as i32).saturating_sub(b as i32) as u32)
        } else {
            |a, b, _, _| u64::from((a as i32).saturating_add(b as i32) as u32)
        };
        return b.simple(i, f, k, &[t; 3]);
    }
    if k == 16 {
        return b.hot(i, if minus { Op::Sub16 } else { Op::Add16 }, &[t; 3]);
    }
    let (o32, o64) = if minus {
        (Op::Sub32, Op::Sub64)
    } else {
        (Op::Add32, Op::Add64)
    };
    sized(b, i, t, 3, Some(o32), Some(o64), |a, b, _, k| {
        low(a.wrapping_add(b), k)
    })
}

pub(crate) fn sub<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Decoded {
    if m.has("cc") {
        let t = m.ty()?;
        return carry(b, i, t, chain::SUB | chain::CARRY_OUT);
    }
    add(b, i, m)
}

/// `addc`, `subc`, `madc`.
pub(crate) fn chained<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let kind = match i.name {
        "addc" => chain::ADD,
        "subc" => chain::SUB,
        _ if m.has("lo") => chain::MAD_LO,
        _ if m.has("hi") => chain::MAD_HI,
        _ => return m.unexpected(),
    };
    let out = if m.has("cc") { chain::CARRY_OUT } else { 0 };
    let t = m.ty()?;
    carry(b, i, t, kind | chain::CARRY_IN | out)
}

fn carry<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, t: T, how: u32) -> Decoded {
    if !matches!(t, T::U32 | T::S32 | T::U64 | T::S64) {
        return mistake(format!(
            "Unexpected instruction types specified for '{}'",
            i.name
        ));
    }
    let n = if how & chain::KIND >= chain::MAD_LO {
        4
    } else {
        3
    };
    b.hot(i, Op::Carry, &[t; 4][..n])?;
    let last = b.program.code.len() - 1;
    let inst = &mut b.program.code[last];
    inst.x = how | if t.is_signed() { chain::SIGNED } else { 0 };
    inst.w = if t.bits() == 64 { flag::D64 } else { 0 };
    Ok(())
}

fn wider(t: T) -> Option<T> {
    Some(match t {
        T::U16 => T::U32,
        T::S16 => T::S32,
        T::U32 => T::U64,
        T::S32 => T::S64,
        _ => return None,
    })
}

pub(crate) fn mul<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Decoded {
    let t = m.ty()?;
    if t.is_float() {
        return float::arithmetic(b, i, m, t);
    }
    let k = integer(b, m, t)?;
    let s = t.is_signed();
    if m.has("wide") {
        let Some(w) = wider(t) else {
            return m.unexpected();
        };
        let types = [w, t, t];
        return match t {
            T::S32 => b.hot(i, Op::MulWideS32, &types),
            T::U32 => b.hot(i, Op::MulWideU32, &types),
            T::S16 => b.simple(
                i,
                |a, b, _, _| low((signed(a, 16) * signed(b, 16)) as u64, 32),
                k,
                &types,
            ),
            _ => b.simple(i, |a, b, _, _| a * b, k, &types),
        };
    }
    if m.has("hi") {
        let f: LaneFn = if s {
            |a, b, _, k| {
                low(
                    ((i128::from(signed(a, k)) * i128::from(signed(b, k))) >> k) as u64,
                    k,
                )
            }
        } else {
            |a, b, _, k| ((u128::from(a) * u128::from(b)) >> k) as u64
        };
        return sized(
            b,
            i,
            t,
            3,
            Some(if s { Op::MulHiS32 } else { Op::MulHiU32 }),
            None,
            f,
        );
    }
    if !m.has("lo") {
        return m.unexpected();
    }
    sized(
        b,
        i,
        t,
        3,
        Some(Op::Mul32),
        Some(Op::Mul64),
        |a, b, _, k| low(a.wrapping_mul(b), k),
    )
}

pub(crate) fn mad<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Decoded {
    let t = m.ty()?;
    if t.is_float() {
        return float::fma(b, i, m, t);
    }
    let k = integer(b, m, t)?;
    let s = t.is_signed();
    if m.has("wide") {
        let Some(w) = wider(t) else {
            return m.unexpected();
        };
        let types = [w, t, t, w];
        return match t {
            T::S32 => b.hot(i, Op::MadWideS32, &types),
            T::U32 => b.hot(i, Op::MadWideU32, &types),
            T::S16 => b.simple(
                i,
                |a, b, c, _| low(((signed(a, 16) * signed(b, 16)) as u64).wrapping_add(c), 32),
                k,
                &types,
            ),
            _ => b.simple(i, |a, b, c, _| low((a * b).wrapping_add(c), 32), k, &types),
        };
    }
    let hi = m.has("hi");
    if !hi && !m.has("lo") {
        return m.unexpected();
    }
    if m.has("cc") {
        return carry(
            b,
            i,
            t,
            chain::CARRY_OUT | if hi { chain::MAD_HI } else { chain::MAD_LO },
        );
    }
    if hi {
        let sat = m.has("sat");
        if sat {
            m.check(t, &[T::S32])?;
            return b.simple(
                i,
                |a, b, c, _| {
                    u64::from(
                        (((signed(a, 32) * signed(b, 32)) >> 32) as i32).saturating_add(c as i32)
                            as u32,
                    )
                },
                k,
                &[t; 4],
            );
        }
        let f: LaneFn = if s {
            |a, b, c, k| {
                low(
                    (((i128::from(signed(a, k)) * i128::from(signed(b, k))) >> k) as u64)
                        .wrapping_add(c),
                    k,
                )
            }
        } else {
            |a, b, c, k| {
                low(
                    (((u128::from(a) * u128::from(b)) >> k) as u64).wrapping_add(c),
                    k,
                )
            }
        };
        return b.simple(i, f, k, &[t; 4]);
    }
    sized(
        b,
        i,
        t,
        4,
        Some(Op::Mad32),
        Some(Op::Mad64),
        |a, b, c, k| low(a.wrapping_mul(b).wrapping_add(c), k),
    )
}

fn mul24_product(a: u64, b: u64, k: u32) -> i64 {
    if k & 1 != 0 {
        signed(a, 24) * signed(b, 24)
    } else {
        (low(a, 24) * low(b, 24)) as i64
    }
}

pub(crate) fn mul24<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let t = m.ty()?;
    m.check(t, &[T::U32, T::S32])?;
    let hi = m.has("hi");
    if !hi && !m.has("lo") {
        return m.unexpected();
    }
    let k = u32::from(t.is_signed());
    let n = if i.name == "mad24" { 4 } else { 3 };
    let f: LaneFn = match hi {
        true => |a, b, c, k| low(((mul24_product(a, b, k) >> 16) as u64).wrapping_add(c), 32),
        false => |a, b, c, k| low((mul24_product(a, b, k) as u64).wrapping_add(c), 32),
    };
    b.simple(i, f, k, &[t; 4][..n])
}

pub(crate) fn div<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Decoded {
    let t = m.ty()?;
    if t.is_float() {
        return float::divide(b, i, m, t);
    }
    let k = integer(b, m, t)?;
    let f: LaneFn = match (i.name, t.is_signed()) {
        ("div", true) => |a, b, _, k| {
            if b == 0 {
                low(u64::MAX, k)
            } else {
                low(signed(a, k).wrapping_div(signed(b, k)) as u64, k)
            }
        },
        ("div", false) => |a, b, _, k| a.checked_div(b).unwrap_or(low(u64::MAX, k)),
        (_, true) => |a, b, _, k| {
            if b == 0 {
                low(u64::MAX, k)
            } else {
                low(signed(a, k).wrapping_rem(signed(b, k)) as u64, k)
            }
        },
        _ => |a, b, _, k| a.checked_rem(b).unwrap_or(low(u64::MAX, k)),
    };
    b.simple(i, f, k, &[t; 3])
}

pub(crate) fn abs<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Decoded {
    let t = m.ty()?;
    if t.is_float() {
        return float::sign(b, i, m, t);
    }
    m.check(t, &[T::S16, T::S32, T::S64])?;
    if i.name == "abs" {
        sized(b, i, t, 2, Some(Op::AbsS32), None, |a, _, _, k| {
            low(signed(a, k).wrapping_abs() as u64, k)
        })
    } else {
        sized(
            b,
            i,
            t,
            2,
            Some(Op::Neg32),
            Some(Op::Neg64),
            |a, _, _, k| low(a.wrapping_neg(), k),
        )
    }
}

pub(crate) fn min_max<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let t = m.ty()?;
    if t.is_float() {
        return float::min_max(b, i, m, t);
    }
    let k = integer(b, m, t)?;
    let relu = m.has("relu");
    if relu {
        m.check(t, &[T::S32])?;
    }
    let min = i.name == "min";
    let (op, f): (Op, LaneFn) = match (min, t.is_signed()) {
        (true, true) => (Op::MinS32, |a, b, _, k| {
            low(
                signed(a, k & 127)
                    .min(signed(b, k & 127))
                    .max(if k > 127 { 0 } else { i64::MIN }) as u64,
                k & 127,
            )
        }),
        (false, true) => (Op::MaxS32, |a, b, _, k| {
            low(
                signed(a, k & 127)
                    .max(signed(b, k & 127))
                    .max(if k > 127 { 0 } else { i64::MIN }) as u64,
                k & 127,
            )
        }),
        (true, false) => (Op::MinU32, |a, b, _, _| a.min(b)),
        (false, false) => (Op::MaxU32, |a, b, _, _| a.max(b)),
    };
    if relu {
        return b.simple(i, f, k | 128, &[t; 3]);
    }
    sized(b, i, t, 3, Some(op), None, f)
}

pub(crate) fn sad<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Decoded {
    let t = m.ty()?;
    let k = integer(b, m, t)?;
    let f: LaneFn = if t.is_signed() {
        |a, b, c, k| {
            low(
                (i128::from(signed(a, k)) - i128::from(signed(b, k))).unsigned_abs() as u64,
                k,
            )
            .wrapping_add(c)
                & low(u64::MAX, k)
        }
    } else {
        |a, b, c, k| low(a.abs_diff(b).wrapping_add(c), k)
    };
    b.simple(i, f, k, &[t; 4])
}

/// `dp4a`, `dp2a`
pub(crate) fn dot<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Decoded {
    let high = m.has("hi");
    let two = i.name == "dp2a";
    if two && !high && !m.has("lo") {
        return m.unexpected();
    }
    let (x, y) = (m.ty()?, m.ty()?);
    m.check(x, &[T::U32, T::S32])?;
    m.check(y, &[T::U32, T::S32])?;
    let k = u32::from(x.is_signed())
        | u32::from(y.is_signed()) << 1
        | u32::from(two) << 2
        | u32::from(high) << 3;
    b.simple(
        i,
        |a, b, c, k| {
            let part = |v: u64, bits: u32, n: u32, s: bool| {
                let f = low(v >> (bits * n), bits);
                if s { signed(f, bits) } else { f as i64 }
            };
            let mut sum = signed(c, 32);
            if k & 4 != 0 {
                let off = if k & 8 != 0 { 2 } else { 0 };
                for n in 0..2 {
                    sum += part(a, 16, n, k & 1 != 0) * part(b, 8, n + off, k & 2 != 0);
                }
            } else {
                for n in 0..4 {
                    sum += part(a, 8, n, k & 1 != 0) * part(b, 8, n, k & 2 != 0);
                }
            }
            low(sum as u64, 32)
        },
        k,
        &[T::B32; 4],
    )
}
