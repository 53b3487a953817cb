//! Integer arithmetic, comparison, selection, logic and shifts (PTX ISA 9.7.1, 9.7.2, 9.7.6 to 9.7.8).
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::many_single_char_names,
    reason = "lane arithmetic truncates by definition"
)]

use super::{Body, Decoded, Modifiers, Wrong, float, mistake};
use crate::ast::{Instruction, Operand};
use crate::exec::chain;
use crate::ops::{LaneFn, Op};
use crate::program::{NONE, Slot, flag};
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

/// What all lane functions of integers take as their constant: the width.
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

pub(crate) fn logic<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let t = m.ty()?;
    if t == T::Pred {
        let n = if i.name == "not" { 2 } else { 3 };
        if i.operands.len() != n {
            return b.mismatch(i);
        }
        let d = b.pred_dst(i, &i.operands[0])?;
        let (a, a_not) = b.pred(i, &i.operands[1])?;
        let (c, c_not) = if n == 3 {
            b.pred(i, &i.operands[2])?
        } else {
            (0, false)
        };
        let op = match i.name {
            "and" => Op::AndPred,
            "or" => Op::OrPred,
            "xor" => Op::XorPred,
            _ => Op::NotPred,
        };
        b.emit(op, d, a, c, NONE).w =
            if a_not { flag::A_NOT } else { 0 } | if c_not { flag::B_NOT } else { 0 };
        return Ok(());
    }
    m.check(t, &[T::B16, T::B32, T::B64])?;
    // Zero above 16 bits stays zero for all but `not`.
    let types = [t; 3];
    match (i.name, t.bits()) {
        ("and", 64) => b.hot(i, Op::And64, &types),
        ("or", 64) => b.hot(i, Op::Or64, &types),
        ("xor", 64) => b.hot(i, Op::Xor64, &types),
        ("not", 64) => b.hot(i, Op::Not64, &types[..2]),
        ("and", _) => b.hot(i, Op::And32, &types),
        ("or", _) => b.hot(i, Op::Or32, &types),
        ("xor", _) => b.hot(i, Op::Xor32, &types),
        ("not", 32) => b.hot(i, Op::Not32, &types[..2]),
        ("not", k) => b.simple(i, |a, _, _, k| low(!a, k), k, &types[..2]),
        (_, k) => b.simple(i, |a, _, _, _| u64::from(a == 0), k, &types[..2]),
    }
}

pub(crate) fn shift<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let t = m.ty()?;
    let left = i.name == "shl";
    if left {
        m.check(t, &[T::B16, T::B32, T::B64])?;
    } else {
        m.check(
            t,
            &[
                T::B16,
                T::B32,
                T::B64,
                T::U16,
                T::U32,
                T::U64,
                T::S16,
                T::S32,
                T::S64,
            ],
        )?;
    }
    let types = [t, t, T::U32];
    match (left, t.is_signed(), t.bits()) {
        (true, _, 32) => b.hot(i, Op::Shl32, &types),
        (true, _, 64) => b.hot(i, Op::Shl64, &types),
        (false, true, 32) => b.hot(i, Op::ShrS32, &types),
        (false, true, 64) => b.hot(i, Op::ShrS64, &types),
        (false, false, 32 | 16) => b.hot(i, Op::ShrU32, &types),
        (false, false, 64) => b.hot(i, Op::ShrU64, &types),
        (true, _, k) => b.simple(
            i,
            |a, b, _, _| if b > 15 { 0 } else { low(a << b, 16) },
            k,
            &types,
        ),
        (_, _, k) => b.simple(
            i,
            |a, b, _, _| low((signed(a, 16) >> b.min(15)) as u64, 16),
            k,
            &types,
        ),
    }
}

pub(crate) fn count<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let t = m.ty()?;
    m.check(t, &[T::B32, T::B64])?;
    let f: LaneFn = match i.name {
        "popc" => |a, _, _, _| u64::from(a.count_ones()),
        "clz" => |a, _, _, k| u64::from(a.leading_zeros() - (64 - k)),
        _ => |a, _, _, k| a.reverse_bits() >> (64 - k),
    };
    let d = if i.name == "brev" { t } else { T::U32 };
    b.simple(i, f, t.bits(), &[d, t])
}

pub(crate) fn bfind<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let t = m.ty()?;
    m.check(t, &[T::U32, T::S32, T::U64, T::S64])?;
    let k =
        t.bits() | if t.is_signed() { 128 } else { 0 } | if m.has("shiftamt") { 256 } else { 0 };
    b.simple(
        i,
        |a, _, _, k| {
            let n = k & 127;
            let a = if k & 128 != 0 && a >> (n - 1) & 1 != 0 {
                low(!a, n)
            } else {
                a
            };
            if a == 0 {
                return 0xffff_ffff;
            }
            let at = 63 - a.leading_zeros();
            u64::from(if k & 256 != 0 { n - 1 - at } else { at })
        },
        k,
        &[T::U32, t],
    )
}

/// A position or length of a bit field: of 32 bits its low byte counts, of 64 bits it is clamped.
fn field(x: u64, width: u32) -> u32 {
    if width == 64 {
        x.min(255) as u32
    } else {
        (x & 255) as u32
    }
}

pub(crate) fn bfe<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Decoded {
    let t = m.ty()?;
    m.check(t, &[T::U32, T::S32, T::U64, T::S64])?;
    let k = t.bits() | if t.is_signed() { 128 } else { 0 };
    b.simple(
        i,
        |a, b, c, k| {
            let n = k & 127;
            let (pos, len) = (field(b, n), field(c, n));
            if len == 0 {
                return 0;
            }
            let wide = if k & 128 != 0 { signed(a, n) } else { a as i64 };
            let from = if pos > 63 {
                if wide < 0 && k & 128 != 0 { -1 } else { 0 }
            } else if k & 128 != 0 {
                wide >> pos
            } else {
                ((wide as u64) >> pos) as i64
            };
            let v = if len >= n {
                from as u64
            } else if k & 128 != 0 {
                // The sign is the top bit of the field, or of the value where the field reaches beyond it.
                let top = (pos + len - 1).min(n - 1);
                let bit = a >> top & 1;
                low(from as u64, len) | if bit != 0 { !low(u64::MAX, len) } else { 0 }
            } else {
                low(from as u64, len)
            };
            low(v, n)
        },
        k,
        &[t, t, T::U32, T::U32],
    )
}

pub(crate) fn bfi<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Decoded {
    let t = m.ty()?;
    m.check(t, &[T::B32, T::B64])?;
    // d = the field of a put into b at position c, length e: two steps, the mask first.
    let [d, x, y, pos, len] = b.operands(i)?;
    let wide = t.bits() == 64;
    let d = b.dst(i, &d, t)?;
    let (x, y) = (b.src(i, &x, t)?, b.src(i, &y, t)?);
    let (pos, len) = (b.src(i, &pos, T::U32)?, b.src(i, &len, T::U32)?);
    let packed = b.temp(32)?;
    b.lanes(
        |p, l, _, k| u64::from(field(p, k) | field(l, k) << 8),
        t.bits(),
        (packed, false),
        &[(pos, false), (len, false)],
    )?;
    b.lanes(
        |x, y, p, k| {
            let (pos, len) = ((p & 255) as u32, (p >> 8 & 255) as u32);
            if pos >= k {
                return y;
            }
            let mask = low(low(u64::MAX, len) << pos, k);
            y & !mask | x << pos & mask
        },
        t.bits(),
        (d, wide),
        &[(x, wide), (y, wide), (packed, false)],
    )?;
    Ok(())
}

pub(crate) fn prmt<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let t = m.ty()?;
    m.check(t, &[T::B32])?;
    const MODES: [&str; 6] = ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"];
    let k = m
        .one_of(&MODES)
        .and_then(|w| MODES.iter().position(|x| *x == w))
        .map_or(0, |p| p + 1);
    b.simple(
        i,
        |a, b, c, k| {
            let bytes = a | b << 32;
            let byte = |n: u64| bytes >> (8 * (n & 7)) & 255;
            let s = c & 3;
            let pick = |n: u64| match k {
                0 => {
                    let sel = c >> (4 * n) & 15;
                    let v = byte(sel);
                    if sel & 8 == 0 {
                        v
                    } else if v & 128 != 0 {
                        255
                    } else {
                        0
                    }
                }
                1 => byte(s + n),
                2 => byte(s.wrapping_sub(n)),
                3 => byte(s),
                4 => byte(s.max(n)),
                5 => byte(s.min(n)),
                _ => byte((s & 1) * 2 + (n & 1)),
            };
            (0..4).fold(0, |v, n| v | pick(n) << (8 * n))
        },
        k as u32,
        &[T::B32; 4],
    )
}

pub(crate) fn shf<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Decoded {
    let left = m.has("l");
    if !left && !m.has("r") {
        return m.unexpected();
    }
    let wrap = m.has("wrap");
    if !wrap && !m.has("clamp") {
        return m.unexpected();
    }
    let t = m.ty()?;
    m.check(t, &[T::B32])?;
    let types = [t, t, t, T::U32];
    if left && wrap {
        return b.hot(i, Op::Shf32, &types);
    }
    b.simple(
        i,
        |a, b, c, k| {
            let n = if k & 2 != 0 { c & 31 } else { c.min(32) };
            let both = b << 32 | a;
            if k & 1 != 0 {
                low((u128::from(both) << n >> 32) as u64, 32)
            } else {
                low(both >> n, 32)
            }
        },
        u32::from(left) | u32::from(wrap) << 1,
        &types,
    )
}

pub(crate) fn lop3<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let t = m.ty()?;
    m.check(t, &[T::B32])?;
    if i.operands.len() != 5 {
        return Err(Wrong::Unsupported);
    }
    let Operand::Number(n) = i.operands[4] else {
        return b.mismatch(i);
    };
    let k = super::number_bits(n, T::U32) as u32 & 255;
    let short = Instruction {
        operands: i.operands[..4].to_vec(),
        ..i.clone()
    };
    b.simple(
        &short,
        |a, b, c, k| {
            let mut v = 0;
            for n in 0..8 {
                if k >> n & 1 != 0 {
                    let x = if n & 4 != 0 { a } else { !a };
                    let y = if n & 2 != 0 { b } else { !b };
                    let z = if n & 1 != 0 { c } else { !c };
                    v |= x & y & z;
                }
            }
            low(v, 32)
        },
        k,
        &[T::B32; 4],
    )
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

/// `vadd4` and its family, without selectors of bytes.
pub(crate) fn video<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let bits: u32 = match i.name.chars().last() {
        Some('4') => 8,
        Some('2') => 16,
        _ => return Err(Wrong::Unsupported),
    };
    if i.operands
        .iter()
        .any(|o| !matches!(o, Operand::Name(_) | Operand::Number(_)))
        || i.operands.len() != 4
    {
        return Err(Wrong::Unsupported);
    }
    let op = match i.name.trim_start_matches('v').trim_end_matches(['2', '4']) {
        "add" => 0,
        "sub" => 1,
        "avrg" => 2,
        "absdiff" => 3,
        "min" => 4,
        _ => 5,
    };
    let (d, x, y) = (m.ty()?, m.ty()?, m.ty()?);
    let (sat, sum) = (m.has("sat"), m.has("add"));
    let k = op
        | bits << 3
        | u32::from(d.is_signed()) << 8
        | u32::from(x.is_signed()) << 9
        | u32::from(y.is_signed()) << 10
        | u32::from(sat) << 11
        | u32::from(sum) << 12;
    b.simple(
        i,
        |a, b, c, k| {
            let bits = k >> 3 & 31;
            let part = |v: u64, n: u32, s: u32| {
                let f = low(v >> (bits * n), bits);
                if k & s != 0 {
                    signed(f, bits)
                } else {
                    f as i64
                }
            };
            let (mut out, mut total) = (0, signed(c, 32));
            for n in 0..32 / bits {
                let (x, y) = (part(a, n, 512), part(b, n, 1024));
                let mut v = match k & 7 {
                    0 => x + y,
                    1 => x - y,
                    2 => (x + y + i64::from(x + y >= 0)) >> 1,
                    3 => (x - y).abs(),
                    4 => x.min(y),
                    _ => x.max(y),
                };
                if k & 2048 != 0 {
                    v = if k & 256 != 0 {
                        v.clamp(-1 << (bits - 1), (1 << (bits - 1)) - 1)
                    } else {
                        v.clamp(0, (1 << bits) - 1)
                    };
                }
                out |= low(v as u64, bits) << (bits * n);
                total += v;
            }
            if k & 4096 != 0 {
                low(total as u64, 32)
            } else {
                out
            }
        },
        k,
        &[T::B32; 4],
    )
}

pub(crate) fn fns<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Decoded {
    let t = m.ty()?;
    m.check(t, &[T::B32])?;
    b.simple(
        i,
        |mask, base, offset, _| {
            let (base, n) = (base as i64, signed(offset, 32));
            let set = |k: i64| (0..32).contains(&k) && mask >> k & 1 != 0;
            if n == 0 {
                return if set(base) { base as u64 } else { 0xffff_ffff };
            }
            if n == i64::from(i32::MIN) {
                return 0;
            }
            let mut left = n.abs();
            let mut k = base;
            while (0..32).contains(&k) {
                if set(k) {
                    left -= 1;
                    if left == 0 {
                        return k as u64;
                    }
                }
                k += n.signum();
            }
            0xffff_ffff
        },
        0,
        &[T::U32; 4],
    )
}

pub(crate) fn bmsk<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let wrap = m.has("wrap");
    if !wrap && !m.has("clamp") {
        return m.unexpected();
    }
    let t = m.ty()?;
    if i.name == "bmsk" {
        m.check(t, &[T::B32])?;
        return b.simple(
            i,
            |a, b, _, k| {
                let (a, b) = if k != 0 {
                    (a & 31, b & 31)
                } else {
                    (a.min(32), b.min(32))
                };
                if a >= 32 {
                    0
                } else {
                    low(low(u64::MAX, b as u32) << a, 32)
                }
            },
            u32::from(wrap),
            &[T::B32; 3],
        );
    }
    m.check(t, &[T::U32, T::S32])?;
    b.simple(
        i,
        |a, n, _, k| {
            let n = if k & 1 != 0 { n & 31 } else { n.min(32) } as u32;
            if n == 0 {
                return 0;
            }
            if k & 2 != 0 {
                low(signed(low(a, n), n) as u64, 32)
            } else {
                low(a, n)
            }
        },
        u32::from(wrap) | u32::from(t.is_signed()) << 1,
        &[t, t, T::U32],
    )
}

/// Comparisons in the order that [`crate::half::compare`] numbers them; `lo ls hi hs` are unsigned.
pub(crate) const COMPARE: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan",
    "lo", "ls", "hi", "hs",
];

struct Comparison {
    which: u32,
    /// and, or, xor with a third operand.
    combine: Option<u16>,
    ftz: bool,
}

fn comparison(m: &mut Modifiers<'_>) -> Decoded<Comparison> {
    let Some(word) = m.next_of(&COMPARE) else {
        return m.unexpected();
    };
    let which = COMPARE.iter().position(|w| *w == word).unwrap_or(0) as u32;
    let combine = m.next_of(&["and", "or", "xor"]).map(|w| match w {
        "and" => 0,
        "or" => 1,
        _ => 2,
    });
    Ok(Comparison {
        which,
        combine,
        ftz: m.has("ftz"),
    })
}

/// The test of the loop for a comparison of a type, and whether its operands are wide.
fn test_op(m: &Modifiers<'_>, t: T, which: u32) -> Decoded<Op> {
    let signed = t.is_signed();
    let float = [
        Op::EqF32,
        Op::NeF32,
        Op::LtF32,
        Op::LeF32,
        Op::GtF32,
        Op::GeF32,
        Op::EquF32,
        Op::NeuF32,
        Op::LtuF32,
        Op::LeuF32,
        Op::GtuF32,
        Op::GeuF32,
    ];
    let (s32, u32s) = (
        [Op::LtS32, Op::LeS32, Op::GtS32, Op::GeS32],
        [Op::LtU32, Op::LeU32, Op::GtU32, Op::GeU32],
    );
    let (s64, u64s) = (
        [Op::LtS64, Op::LeS64, Op::GtS64, Op::GeS64],
        [Op::LtU64, Op::LeU64, Op::GtU64, Op::GeU64],
    );
    if t.is_float() {
        return float
            .get(which as usize)
            .copied()
            .map_or_else(|| m.unexpected(), Ok);
    }
    let wide = t.bits() == 64;
    let bits = matches!(t, T::B16 | T::B32 | T::B64);
    Ok(match which {
        0 => {
            if wide {
                Op::Eq64
            } else {
                Op::Eq32
            }
        }
        1 => {
            if wide {
                Op::Ne64
            } else {
                Op::Ne32
            }
        }
        2..=5 if !bits => {
            let k = which as usize - 2;
            match (wide, signed) {
                (true, true) => s64[k],
                (true, false) => u64s[k],
                (false, true) => s32[k],
                _ => u32s[k],
            }
        }
        14..=17 if !signed && !bits => {
            let k = which as usize - 14;
            if wide { u64s[k] } else { u32s[k] }
        }
        _ => return m.unexpected(),
    })
}

/// Emits a test of two operands into predicate p, and its complement into q if there is one.
#[expect(clippy::too_many_arguments, reason = "the parts of one instruction")]
fn emit_test<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &Modifiers<'_>,
    c: &Comparison,
    t: T,
    p: Slot,
    q: Option<Slot>,
    x: &Operand<'a>,
    y: &Operand<'a>,
    third: Option<(Slot, bool)>,
) -> Decoded {
    m.check(
        t,
        &[
            T::B16,
            T::B32,
            T::B64,
            T::U16,
            T::U32,
            T::U64,
            T::S16,
            T::S32,
            T::S64,
            T::F16,
            T::Bf16,
            T::F32,
            T::F64,
        ],
    )?;
    let mut x = b.src(i, x, t)?;
    let mut y = b.src(i, y, t)?;
    let wide = t.bits() == 64;
    if t.bits() == 16 && (t.is_signed() || t.is_float()) {
        for s in [&mut x, &mut y] {
            let wider = b.temp(32)?;
            match t {
                T::S16 => {
                    b.emit(Op::Sext16, wider, *s, NONE, NONE);
                }
                _ => {
                    b.lanes(
                        |a, _, _, k| {
                            u64::from(crate::half::widen32(
                                if k == 0 { T::F16 } else { T::Bf16 },
                                a,
                            ))
                        },
                        u32::from(t == T::Bf16),
                        (wider, false),
                        &[(*s, false)],
                    )?;
                }
            }
            *s = wider;
        }
    }
    let slow = t == T::F64 || c.ftz || t.is_float() && c.which >= 12;
    let at;
    if slow {
        if c.which > 13 {
            return m.unexpected();
        }
        let f: LaneFn = if wide {
            |a, b, _, k| {
                u64::from(crate::half::compare(
                    k,
                    f64::from_bits(a),
                    f64::from_bits(b),
                ))
            }
        } else {
            |a, b, _, k| {
                let z = |x: u64| {
                    if k & 32 != 0 {
                        crate::number::ftz(x as u32)
                    } else {
                        x as u32
                    }
                };
                u64::from(crate::half::compare(
                    k,
                    f64::from(f32::from_bits(z(a))),
                    f64::from(f32::from_bits(z(b))),
                ))
            }
        };
        let index = b.lane_function(f);
        let inst = b.emit(Op::LanesTest, p, x, y, NONE);
        inst.x = index | (c.which | if c.ftz { 32 } else { 0 }) << 16;
        inst.w = if wide { flag::A64 | flag::B64 } else { 0 };
        at = inst;
    } else {
        let op = test_op(m, t, c.which)?;
        at = b.emit(op, p, x, y, NONE);
    }
    if let Some(q) = q {
        at.imm = i32::from(q) + 1;
    }
    if let (Some(how), Some((slot, not))) = (c.combine, third) {
        at.c = slot;
        at.w |= flag::COMBINE | how << flag::BOOL_SHIFT | if not { flag::C_NOT } else { 0 };
    }
    Ok(())
}

pub(crate) fn setp<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let c = comparison(m)?;
    let t = m.ty()?;
    if matches!(t, T::F16x2 | T::Bf16x2) {
        return Err(Wrong::Unsupported);
    }
    let n = if c.combine.is_some() { 4 } else { 3 };
    if i.operands.len() != n {
        return b.mismatch(i);
    }
    let (p, q) = match &i.operands[0] {
        Operand::Pair(p, q) => (
            b.pred_dst(i, &Operand::Name(p))?,
            Some(b.pred_dst(i, &Operand::Name(q))?),
        ),
        o => (b.pred_dst(i, o)?, None),
    };
    let third = if n == 4 {
        Some(b.pred(i, &i.operands[3])?)
    } else {
        None
    };
    emit_test(b, i, m, &c, t, p, q, &i.operands[1], &i.operands[2], third)
}

pub(crate) fn set<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Decoded {
    let c = comparison(m)?;
    let (d, t) = (m.ty()?, m.ty()?);
    let n = if c.combine.is_some() { 4 } else { 3 };
    if i.operands.len() != n {
        return b.mismatch(i);
    }
    if matches!(t, T::F16x2 | T::Bf16x2) {
        use crate::half::{HalfOp, code};
        if c.combine.is_some() || c.which > 13 {
            return Err(Wrong::Unsupported);
        }
        let op = if d.is_float() {
            HalfOp::Set
        } else {
            HalfOp::SetBits
        };
        let k = op as u32
            | code::PAIR
            | if t == T::Bf16x2 { code::BF16 } else { 0 }
            | if c.ftz { code::FTZ } else { 0 }
            | c.which << code::CMP_SHIFT;
        return b.simple(i, crate::half::lane, k, &[d, t, t]);
    }
    m.check(
        d,
        &[T::U16, T::S16, T::U32, T::S32, T::F32, T::F16, T::Bf16],
    )?;
    let third = if n == 4 {
        Some(b.pred(i, &i.operands[3])?)
    } else {
        None
    };
    let p = b.temp(1)?;
    emit_test(
        b,
        i,
        m,
        &c,
        t,
        p,
        None,
        &i.operands[1],
        &i.operands[2],
        third,
    )?;
    let one = match d {
        T::F32 => 0x3f80_0000,
        T::F16 => 0x3c00,
        T::Bf16 => 0x3f80,
        _ => low(u64::MAX, d.bits()),
    };
    let (yes, no) = (b.bits(false, one)?, b.bits(false, 0)?);
    let d = b.dst(i, &i.operands[0], d)?;
    b.emit(Op::Selp32, d, yes, no, p);
    Ok(())
}

pub(crate) fn selp<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let t = m.ty()?;
    let [d, x, y, p] = b.operands(i)?;
    let d = b.dst(i, &d, t)?;
    let (x, y) = (b.src(i, &x, t)?, b.src(i, &y, t)?);
    let (p, not) = b.pred(i, &p)?;
    b.emit(
        if t.bits() == 64 {
            Op::Selp64
        } else {
            Op::Selp32
        },
        d,
        x,
        y,
        p,
    )
    .w = if not { flag::C_NOT } else { 0 };
    Ok(())
}

pub(crate) fn slct<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let ftz = m.has("ftz");
    let (t, c) = (m.ty()?, m.ty()?);
    m.check(c, &[T::S32, T::F32])?;
    let k = u32::from(c == T::F32) | u32::from(ftz) << 1;
    b.simple(
        i,
        |a, b, c, k| {
            let c = c as u32;
            let yes = if k & 1 == 0 {
                c as i32 >= 0
            } else {
                f32::from_bits(if k & 2 != 0 { crate::number::ftz(c) } else { c }) >= 0.0
            };
            if yes { a } else { b }
        },
        k,
        &[t, t, t, c],
    )
}
