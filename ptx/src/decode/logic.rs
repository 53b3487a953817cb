//! Logic, shifts, permutations (PTX ISA 9.7.8).
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::many_single_char_names,
    reason = "lane arithmetic truncates by definition"
)]

use super::body::{Body, number_bits};
use super::integer::{low, signed};
use super::modifiers::{Decoded, Modifiers, Wrong};
use crate::ast::{Instruction, Operand};
use crate::ops::Op;
use crate::program::{NONE, flag};
use crate::types::Type;

type T = Type;

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
    // Bits above 16 are zero and stay zero for all but `not`.
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
    let k = number_bits(n, T::U32) as u32 & 255;
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
