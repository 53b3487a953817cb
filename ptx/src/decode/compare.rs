//! Comparison and selection (PTX ISA 9.7.6, 9.7.7).
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::many_single_char_names,
    reason = "lane arithmetic truncates by definition"
)]

use super::body::Body;
use super::integer::low;
use super::modifiers::{Decoded, Modifiers, Wrong};
use crate::ast::{Instruction, Operand};
use crate::half;
use crate::number::ftz;
use crate::ops::{LaneFn, Op};
use crate::program::{NONE, Slot, flag};
use crate::types::Type;

type T = Type;

/// Comparisons in the numbering of [`crate::half::compare`]; `lo ls hi hs` are unsigned.
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
                            u64::from(half::widen32(if k == 0 { T::F16 } else { T::Bf16 }, a))
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
            |a, b, _, k| u64::from(half::compare(k, f64::from_bits(a), f64::from_bits(b)))
        } else {
            |a, b, _, k| {
                let z = |x: u64| {
                    if k & 32 != 0 { ftz(x as u32) } else { x as u32 }
                };
                u64::from(half::compare(
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
        use half::{HalfOp, code};
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
        return b.simple(i, half::lane, k, &[d, t, t]);
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
    let flush = m.has("ftz");
    let (t, c) = (m.ty()?, m.ty()?);
    m.check(c, &[T::S32, T::F32])?;
    let k = u32::from(c == T::F32) | u32::from(flush) << 1;
    b.simple(
        i,
        |a, b, c, k| {
            let c = c as u32;
            let yes = if k & 1 == 0 {
                c as i32 >= 0
            } else {
                f32::from_bits(if k & 2 != 0 { ftz(c) } else { c }) >= 0.0
            };
            if yes { a } else { b }
        },
        k,
        &[t, t, t, c],
    )
}
