//! Floating point (PTX ISA 9.7.3 to 9.7.5).
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::many_single_char_names,
    reason = "bits of formats"
)]
#![allow(clippy::float_cmp, reason = "exact values are meant")]

use rustc_apfloat::ieee::{Double, Single};
use rustc_apfloat::{Float, Round};

use super::body::Body;
use super::modifiers::{Decoded, Modifiers, Wrong};
use crate::approximate;
use crate::ast::Instruction;
use crate::half::{self, HalfOp, Rounding};
use crate::number::{canon, ftz, sat32};
use crate::ops::{LaneFn, Op};
use crate::types::Type;

type T = Type;

/// The constant of [`lane`].
mod code {
    pub(super) const ADD: u32 = 0;
    pub(super) const SUB: u32 = 1;
    pub(super) const MUL: u32 = 2;
    pub(super) const DIV: u32 = 3;
    pub(super) const FMA: u32 = 4;
    pub(super) const SQRT: u32 = 5;
    pub(super) const RCP: u32 = 6;
    pub(super) const MIN: u32 = 7;
    pub(super) const MAX: u32 = 8;
    pub(super) const ABS: u32 = 9;
    pub(super) const NEG: u32 = 10;
    pub(super) const F64: u32 = 16;
    pub(super) const FTZ: u32 = 32;
    pub(super) const SAT: u32 = 64;
    pub(super) const NAN: u32 = 128;
    pub(super) const XORSIGN: u32 = 256;
    pub(super) const ABS_RESULT: u32 = 512;
    pub(super) const ROUND_SHIFT: u32 = 12;
}

fn apfloat_round(r: Rounding) -> Round {
    match r {
        Rounding::Nearest => Round::NearestTiesToEven,
        Rounding::Zero => Round::TowardZero,
        Rounding::Down => Round::TowardNegative,
        Rounding::Up => Round::TowardPositive,
        Rounding::Away => Round::NearestTiesToAway,
    }
}

/// One operation, rounded in any direction.
fn directed<F: Float>(op: u32, a: F, b: F, c: F, one: F, r: Round) -> F {
    match op {
        code::ADD => a.add_r(b, r).value,
        code::SUB => a.sub_r(b, r).value,
        code::MUL => a.mul_r(b, r).value,
        code::DIV => a.div_r(b, r).value,
        code::RCP => one.div_r(a, r).value,
        _ => a.mul_add_r(b, c, r).value,
    }
}

/// A square root rounded in any direction: takes the nearest one, and determines on which side of
/// the exact root it lies.
fn sqrt_directed(x: f64, r: Rounding) -> f64 {
    if x <= 0.0 || !x.is_finite() || r == Rounding::Nearest {
        return x.sqrt();
    }
    // Scaled so that the remainder is exact.
    let (x, scale) = if x < f64::from_bits(0x0400 << 52) {
        (
            x * f64::from_bits((1023 + 200) << 52),
            f64::from_bits((1023 - 100) << 52),
        )
    } else {
        (x, 1.0)
    };
    let s = x.sqrt();
    let rest = (-s).mul_add(s, x);
    let s = match r {
        Rounding::Up if rest > 0.0 => s.next_up(),
        Rounding::Down | Rounding::Zero if rest < 0.0 => s.next_down(),
        _ => s,
    };
    s * scale
}

fn op64(op: u32, a: u64, b: u64, c: u64, k: u32) -> u64 {
    let (x, y) = (f64::from_bits(a), f64::from_bits(b));
    let r = Rounding::from_index(k >> code::ROUND_SHIFT & 7);
    match op {
        code::MIN | code::MAX => {
            if x.is_nan() || y.is_nan() {
                return if k & code::NAN != 0 || x.is_nan() && y.is_nan() {
                    0x7fff_ffff_ffff_ffff
                } else if x.is_nan() {
                    b
                } else {
                    a
                };
            }
            if x == y {
                return if op == code::MIN { a | b } else { a & b };
            }
            if (x < y) == (op == code::MIN) { a } else { b }
        }
        code::ABS => a & !(1 << 63),
        code::NEG => a ^ 1 << 63,
        code::SQRT => sqrt_directed(x, r).to_bits(),
        code::RCP if r == Rounding::Nearest => (1.0 / x).to_bits(),
        code::DIV if r == Rounding::Nearest => (x / y).to_bits(),
        _ => {
            let f = |v: u64| Double::from_bits(u128::from(v));
            directed(op, f(a), f(b), f(c), f(0x3ff0 << 48), apfloat_round(r)).to_bits() as u64
        }
    }
}

fn op32(op: u32, a: u32, b: u32, c: u32, k: u32) -> u32 {
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    let r = Rounding::from_index(k >> code::ROUND_SHIFT & 7);
    let nearest = r == Rounding::Nearest;
    match op {
        code::MIN | code::MAX => {
            let sign = (a ^ b) & 0x8000_0000;
            let (a, b) = if k & code::XORSIGN != 0 {
                (a & 0x7fff_ffff, b & 0x7fff_ffff)
            } else {
                (a, b)
            };
            if k & code::NAN != 0 && (x.is_nan() || y.is_nan()) {
                return crate::number::NAN32;
            }
            let v = if op == code::MIN {
                crate::number::min_f32(a, b)
            } else {
                crate::number::max_f32(a, b)
            };
            if k & code::XORSIGN != 0 && v != crate::number::NAN32 {
                v | sign
            } else {
                v
            }
        }
        code::ABS => a & 0x7fff_ffff,
        code::NEG => a ^ 0x8000_0000,
        code::ADD if nearest => (x + y).to_bits(),
        code::SUB if nearest => (x - y).to_bits(),
        code::MUL if nearest => (x * y).to_bits(),
        code::DIV if nearest => (x / y).to_bits(),
        code::RCP if nearest => (1.0 / x).to_bits(),
        code::FMA if nearest => crate::number::fma_f32::<false>(x, y, f32::from_bits(c)).to_bits(),
        code::SQRT if nearest => x.sqrt().to_bits(),
        // A root of 24 bits is never halfway, so 53 bits of it are enough to decide.
        code::SQRT if x == 0.0 => a,
        code::SQRT => {
            let s = f64::from(x).sqrt();
            let rest = (-s).mul_add(s, f64::from(x));
            half::narrow(
                crate::number::odd_sum(
                    s,
                    if rest == 0.0 || rest.is_nan() {
                        0.0
                    } else {
                        rest.signum() * s * 1e-18
                    },
                ),
                T::F32,
                r,
            )
        }
        _ => {
            let f = |v: u32| Single::from_bits(u128::from(v));
            directed(op, f(a), f(b), f(c), f(0x3f80_0000), apfloat_round(r)).to_bits() as u32
        }
    }
}

/// One lane of an operation with all of its modifiers.
fn lane(a: u64, b: u64, c: u64, k: u32) -> u64 {
    let op = k & 15;
    if k & code::F64 != 0 {
        return op64(op, a, b, c, k);
    }
    let z = |x: u64| {
        if k & code::FTZ != 0 {
            ftz(x as u32)
        } else {
            x as u32
        }
    };
    let r = canon(op32(op, z(a), z(b), z(c), k));
    let r = z(r.into());
    let r = if k & code::ABS_RESULT != 0 {
        r & 0x7fff_ffff
    } else {
        r
    };
    u64::from(if k & code::SAT != 0 { sat32(r) } else { r })
}

/// Takes rounding, `.ftz` and `.sat`: the constant of [`lane`] without the operation.
fn options(m: &mut Modifiers<'_>, t: T) -> u32 {
    let r = match m.one_of(&["rn", "rz", "rm", "rp"]) {
        Some("rz") => Rounding::Zero,
        Some("rm") => Rounding::Down,
        Some("rp") => Rounding::Up,
        _ => Rounding::Nearest,
    };
    let mut k = (r as u32) << code::ROUND_SHIFT;
    if t == T::F64 {
        return k | code::F64;
    }
    if m.has("ftz") {
        k |= code::FTZ;
    }
    if m.has("sat") {
        k |= code::SAT;
    }
    k
}

/// Operations on f16 and bf16, one or two of them.
fn half_op<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
    t: T,
    op: HalfOp,
    n: usize,
) -> Decoded {
    use half::code as h;
    let mut k = op as u32;
    if matches!(t, T::Bf16 | T::Bf16x2) {
        k |= h::BF16;
    }
    if matches!(t, T::F16x2 | T::Bf16x2) {
        k |= h::PAIR;
    }
    m.has("rn");
    for (word, bit) in [
        ("ftz", h::FTZ),
        ("sat", h::SAT),
        ("relu", h::RELU),
        ("NaN", h::NAN),
    ] {
        if m.has(word) {
            k |= bit;
        }
    }
    if m.has("xorsign") {
        if !m.has("abs") {
            return m.unexpected();
        }
        k |= h::XORSIGN;
    }
    b.simple(i, half::lane, k, &[t; 4][..n])
}

fn is_half(t: T) -> bool {
    matches!(t, T::F16 | T::Bf16 | T::F16x2 | T::Bf16x2)
}

/// An operation on f32 or f64 that is not one of the executor's hot operations.
fn general<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, k: u32, types: &[T]) -> Decoded {
    b.simple(i, lane, k, types)?;
    if k >> code::ROUND_SHIFT != 0 {
        b.is_slow();
    }
    Ok(())
}

/// `add`, `sub`, `mul`
pub(crate) fn arithmetic<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
    t: T,
) -> Decoded {
    let (op, h, hot32, hot64) = match i.name {
        "add" => (code::ADD, HalfOp::Add, Op::AddF32, Op::AddF64),
        "sub" => (code::SUB, HalfOp::Sub, Op::SubF32, Op::SubF64),
        _ => (code::MUL, HalfOp::Mul, Op::MulF32, Op::MulF64),
    };
    if is_half(t) {
        return half_op(b, i, m, t, h, 3);
    }
    m.check(t, &[T::F32, T::F64])?;
    // `add.f32` with an operand of another format.
    let k = options(m, t);
    match k {
        0 => b.hot(i, hot32, &[t; 3]),
        code::F64 => b.hot(i, hot64, &[t; 3]),
        code::FTZ if op == code::ADD => b.hot(i, Op::AddF32z, &[t; 3]),
        code::FTZ if op == code::SUB => b.hot(i, Op::SubF32z, &[t; 3]),
        code::FTZ => b.hot(i, Op::MulF32z, &[t; 3]),
        _ => general(b, i, k | op, &[t; 3]),
    }
}

/// `fma`, and `mad` of floats
pub(crate) fn fma<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
    t: T,
) -> Decoded {
    if is_half(t) {
        return half_op(b, i, m, t, HalfOp::Fma, 4);
    }
    m.check(t, &[T::F32, T::F64])?;
    let k = options(m, t);
    match k {
        0 => b.hot(i, Op::FmaF32, &[t; 4]),
        code::F64 => b.hot(i, Op::FmaF64, &[t; 4]),
        code::FTZ => b.hot(i, Op::FmaF32z, &[t; 4]),
        _ => general(b, i, k | code::FMA, &[t; 4]),
    }
}

pub(crate) fn fma_row<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let t = m.ty()?;
    fma(b, i, m, t)
}

pub(crate) fn divide<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
    t: T,
) -> Decoded {
    m.check(t, &[T::F32, T::F64])?;
    if i.name == "rem" {
        return m.unexpected();
    }
    let (approx, full) = (m.has("approx"), m.has("full"));
    if approx || full {
        m.check(t, &[T::F32])?;
        let k = u32::from(m.has("ftz")) | u32::from(full) << 1;
        return b.simple(
            i,
            |a, b, _, k| u64::from(approximate::div(a as u32, b as u32, k & 1 != 0, k & 2 != 0)),
            k,
            &[t; 3],
        );
    }
    let k = options(m, t);
    match k {
        0 => b.hot(i, Op::DivF32, &[t; 3]),
        code::F64 => b.hot(i, Op::DivF64, &[t; 3]),
        _ => general(b, i, k | code::DIV, &[t; 3]),
    }
}

/// `abs`, `neg`
pub(crate) fn sign<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
    t: T,
) -> Decoded {
    let abs = i.name == "abs";
    if is_half(t) {
        return half_op(b, i, m, t, if abs { HalfOp::Abs } else { HalfOp::Neg }, 2);
    }
    m.check(t, &[T::F32, T::F64])?;
    let k = options(m, t);
    match (k, abs) {
        (0, true) => b.hot(i, Op::AbsF32, &[t; 2]),
        (0, false) => b.hot(i, Op::NegF32, &[t; 2]),
        _ => b.simple(
            i,
            lane,
            k | if abs { code::ABS } else { code::NEG },
            &[t; 2],
        ),
    }
}

pub(crate) fn min_max<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
    t: T,
) -> Decoded {
    let min = i.name == "min";
    if is_half(t) {
        return half_op(b, i, m, t, if min { HalfOp::Min } else { HalfOp::Max }, 3);
    }
    m.check(t, &[T::F32, T::F64])?;
    let mut k = options(m, t);
    if m.has("NaN") {
        k |= code::NAN;
    }
    if m.has("xorsign") {
        k |= code::XORSIGN;
        m.has("abs");
    } else if m.has("abs") {
        k |= code::ABS_RESULT;
    }
    if i.operands.len() == 4 {
        return Err(Wrong::Unsupported);
    }
    match (k, min) {
        (0, true) => b.hot(i, Op::MinF32, &[t; 3]),
        (0, false) => b.hot(i, Op::MaxF32, &[t; 3]),
        _ => b.simple(
            i,
            lane,
            k | if min { code::MIN } else { code::MAX },
            &[t; 3],
        ),
    }
}

/// `sqrt`, `rcp`, `rsqrt`, `sin`, `cos`, `lg2`, `ex2`, `tanh`
pub(crate) fn function<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let t = m.ty()?;
    if is_half(t) {
        if !m.has("approx") {
            return m.unexpected();
        }
        return match i.name {
            "ex2" => half_op(b, i, m, t, HalfOp::Ex2, 2),
            "tanh" => half_op(b, i, m, t, HalfOp::Tanh, 2),
            _ => m.unexpected(),
        };
    }
    m.check(t, &[T::F32, T::F64])?;
    if m.has("approx") {
        let f: LaneFn = match (i.name, t) {
            ("rcp", T::F64) => |a, _, _, _| approximate::rcp64(a),
            ("rsqrt", T::F64) => |a, _, _, k| approximate::rsqrt64(a, k != 0),
            (_, T::F64) => return m.unexpected(),
            ("rcp", _) => |a, _, _, k| approximate::of(a as u32, k, approximate::rcp),
            ("rsqrt", _) => |a, _, _, k| approximate::of(a as u32, k, approximate::rsqrt),
            ("sqrt", _) => |a, _, _, k| approximate::of(a as u32, k, approximate::sqrt),
            ("sin", _) => |a, _, _, k| approximate::of(a as u32, k, approximate::sin),
            ("cos", _) => |a, _, _, k| approximate::of(a as u32, k, approximate::cos),
            ("lg2", _) => |a, _, _, k| approximate::of(a as u32, k, approximate::lg2),
            ("ex2", _) => |a, _, _, k| approximate::of(a as u32, k, approximate::ex2),
            _ => |a, _, _, k| approximate::of(a as u32, k, approximate::tanh),
        };
        let k = u32::from(m.has("ftz"));
        return b.simple(i, f, k, &[t; 2]);
    }
    let op = match i.name {
        "sqrt" => code::SQRT,
        "rcp" => code::RCP,
        _ => return m.unexpected(),
    };
    let k = options(m, t);
    if k == 0 && op == code::SQRT {
        return b.hot(i, Op::SqrtF32, &[t; 2]);
    }
    general(b, i, k | op, &[t; 2])
}

pub(crate) fn copysign<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let t = m.ty()?;
    m.check(t, &[T::F32, T::F64])?;
    b.simple(
        i,
        |a, b, _, k| {
            let sign = 1u64 << (k - 1);
            a & sign | b & (sign - 1)
        },
        t.bits(),
        &[t; 3],
    )
}

pub(crate) fn testp<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    const KINDS: [&str; 6] = [
        "finite",
        "infinite",
        "number",
        "notanumber",
        "normal",
        "subnormal",
    ];
    let Some(word) = m.next_of(&KINDS) else {
        return m.unexpected();
    };
    let which = KINDS.iter().position(|k| *k == word).unwrap_or(0) as u32;
    let t = m.ty()?;
    m.check(t, &[T::F32, T::F64])?;
    let [p, a] = b.operands(i)?;
    let p = b.pred_dst(i, &p)?;
    let a = b.src(i, &a, t)?;
    let index = b.lane_function(|a, _, _, k| {
        let x = if k & 8 != 0 {
            f64::from_bits(a).classify()
        } else {
            f32::from_bits(a as u32).classify()
        };
        use std::num::FpCategory as C;
        u64::from(match k & 7 {
            0 => !matches!(x, C::Nan | C::Infinite),
            1 => x == C::Infinite,
            2 => x != C::Nan,
            3 => x == C::Nan,
            // A zero is normal too.
            4 => matches!(x, C::Normal | C::Zero),
            _ => x == C::Subnormal,
        })
    });
    let inst = b.emit(
        Op::LanesTest,
        p,
        a,
        crate::program::NONE,
        crate::program::NONE,
    );
    inst.x = index | (which | if t == T::F64 { 8 } else { 0 }) << 16;
    inst.w = if t == T::F64 {
        crate::program::flag::A64
    } else {
        0
    };
    Ok(())
}

/// Clamps a 64-bit float to [0, 1].
fn sat64(x: f64) -> f64 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

/// The constant of [`convert`].
mod cvt {
    pub(super) const FROM_SHIFT: u32 = 5;
    pub(super) const ROUND_SHIFT: u32 = 10;
    /// Rounded to an integer before anything else.
    pub(super) const INTEGRAL: u32 = 1 << 13;
    pub(super) const FTZ: u32 = 1 << 14;
    pub(super) const SAT: u32 = 1 << 15;
    pub(super) const RELU: u32 = 1 << 16;
    /// The register is of 16 bits.
    pub(super) const SHORT: u32 = 1 << 17;
}

fn to_integral(x: f64, r: Rounding) -> f64 {
    match r {
        Rounding::Nearest => x.round_ties_even(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
        Rounding::Away => x.round(),
    }
}

/// The f64 nearest to an integer, with the last bit set if it is not exact.
fn odd_integer(v: i128) -> f64 {
    let (high, rest) = (v >> 32 << 32, v & 0xffff_ffff);
    crate::number::odd_sum(high as f64, rest as f64)
}

/// `cvt` for one lane.
fn convert(a: u64, _: u64, _: u64, k: u32) -> u64 {
    let d = T::ALL[(k & 31) as usize % T::ALL.len()];
    let s = T::ALL[(k >> cvt::FROM_SHIFT & 31) as usize % T::ALL.len()];
    let r = Rounding::from_index(k >> cvt::ROUND_SHIFT & 7);
    let v = convert_value(a, d, s, r, k);
    if k & cvt::SHORT != 0 { v & 0xffff } else { v }
}

fn convert_value(a: u64, d: T, s: T, r: Rounding, k: u32) -> u64 {
    let low = super::integer::low;
    let signed = super::integer::signed;
    let float_in = |x: u64| -> (f64, bool) {
        match s {
            T::F64 => (f64::from_bits(x), f64::from_bits(x).is_nan()),
            T::F32 => {
                let x = if k & cvt::FTZ != 0 {
                    ftz(x as u32)
                } else {
                    x as u32
                };
                (f64::from(f32::from_bits(x)), f32::from_bits(x).is_nan())
            }
            _ => (half::widen(s, x), half::widen(s, x).is_nan()),
        }
    };
    if !s.is_float() {
        let bits = s.bits();
        let v = if s.is_signed() {
            i128::from(signed(low(a, bits), bits))
        } else {
            i128::from(low(a, bits))
        };
        return match d {
            T::F64 if r == Rounding::Nearest => (v as f64).to_bits(),
            T::F64 => {
                let near = v as f64;
                let back = near as i128;
                let f = match r {
                    Rounding::Up if back < v => near.next_up(),
                    Rounding::Down if back > v => near.next_down(),
                    Rounding::Zero if back.abs() > v.abs() => {
                        if v > 0 {
                            near.next_down()
                        } else {
                            near.next_up()
                        }
                    }
                    _ => near,
                };
                f.to_bits()
            }
            T::F32 | T::F16 | T::Bf16 => {
                let x = u64::from(half::narrow(odd_integer(v), d, r));
                if d == T::F32 && k & cvt::SAT != 0 {
                    u64::from(sat32(x as u32))
                } else {
                    x
                }
            }
            _ => {
                let n = d.bits();
                let v = if k & cvt::SAT != 0 {
                    if d.is_signed() {
                        v.clamp(-(1 << (n - 1)), (1 << (n - 1)) - 1)
                    } else {
                        v.clamp(0, (1 << n) - 1)
                    }
                } else {
                    v
                };
                let v = v as u64;
                if d.is_signed() {
                    signed(low(v, n), n) as u64
                } else {
                    low(v, n)
                }
            }
        };
    }
    let (x, nan) = float_in(a);
    if !d.is_float() {
        let n = d.bits();
        if nan {
            let zero = s != T::F64 && n < 64;
            let min = 1u64 << (n - 1);
            return if zero {
                0
            } else if d.is_signed() {
                signed(min, n) as u64
            } else {
                min
            };
        }
        let v = to_integral(x, r);
        return if d.is_signed() {
            (v as i128).clamp(-(1 << (n - 1)), (1 << (n - 1)) - 1) as u64
        } else {
            (v as i128).clamp(0, (1 << n) - 1) as u64
        };
    }
    let x = if k & cvt::INTEGRAL != 0 {
        to_integral(x, r)
    } else {
        x
    };
    let same = d == s;
    match d {
        T::F64 => {
            if nan {
                return match s {
                    // The payload moves to the top.
                    T::F32 => {
                        let b = a as u32;
                        if k & cvt::SAT != 0 {
                            0
                        } else {
                            u64::from(b >> 31) << 63
                                | 0x7ff8 << 48
                                | u64::from(b & 0x007f_ffff) << 29
                        }
                    }
                    T::F64 => {
                        if k & cvt::SAT != 0 {
                            0
                        } else {
                            a | 1 << 51
                        }
                    }
                    _ => {
                        u64::from(half::widen32(s, a) >> 31) << 63
                            | 0x7ff8 << 48
                            | (u64::from(half::widen32(s, a)) & 0x007f_ffff) << 29
                    }
                };
            }
            (if k & cvt::SAT != 0 { sat64(x) } else { x }).to_bits()
        }
        T::F32 => {
            if s == T::Bf16 {
                return a << 16 & 0xffff_0000;
            }
            if nan {
                if k & cvt::SAT != 0 {
                    return 0;
                }
                return match s {
                    T::F64 => a >> 63 << 31 | 0x7fc0_0000,
                    _ => u64::from(crate::number::NAN32),
                };
            }
            let v = if same {
                (x as f32).to_bits()
            } else {
                half::narrow(x, T::F32, r)
            };
            let v = if k & cvt::FTZ != 0 { ftz(v) } else { v };
            u64::from(if k & cvt::SAT != 0 { sat32(v) } else { v })
        }
        T::Tf32 => {
            let b = a as u32;
            u64::from(if nan {
                // The low bits are dropped, as for any value.
                b & 0xffff_e000
            } else if b & 0x7f80_0000 == 0x7f80_0000 {
                b
            } else {
                match r {
                    Rounding::Away => b.wrapping_add(0x1000) & 0xffff_e000,
                    Rounding::Zero => b & 0xffff_e000,
                    _ => b.wrapping_add(0xfff + (b >> 13 & 1)) & 0xffff_e000,
                }
            })
        }
        _ => {
            if nan {
                return match s {
                    _ if k & cvt::SAT != 0 => 0,
                    T::F64 => a >> 48 & 0x8000 | 0x7e00,
                    _ => 0x7fff,
                };
            }
            let v = half::narrow(x, d, r);
            if k & cvt::SAT != 0 {
                return u64::from(if x > 0.0 {
                    if x < 1.0 { v } else { half::narrow(1.0, d, r) }
                } else {
                    0
                });
            }
            if k & cvt::RELU != 0 && v & 0x8000 != 0 {
                0
            } else {
                u64::from(v)
            }
        }
    }
}

pub(crate) fn cvt<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Decoded {
    if m.has("pack") {
        return pack(b, i, m);
    }
    let word = m.one_of(&["rni", "rzi", "rmi", "rpi", "rna", "rn", "rz", "rm", "rp"]);
    let r = match word {
        Some("rzi" | "rz") => Rounding::Zero,
        Some("rmi" | "rm") => Rounding::Down,
        Some("rpi" | "rp") => Rounding::Up,
        Some("rna") => Rounding::Away,
        _ => Rounding::Nearest,
    };
    let mut k = (r as u32) << cvt::ROUND_SHIFT;
    if word.is_some_and(|w| w.len() == 3 && w.ends_with('i')) {
        k |= cvt::INTEGRAL;
    }
    for (word, bit) in [
        ("ftz", cvt::FTZ),
        ("sat", cvt::SAT),
        ("satfinite", 0),
        ("relu", cvt::RELU),
    ] {
        if m.has(word) {
            if bit == 0 {
                return Err(Wrong::Unsupported);
            }
            k |= bit;
        }
    }
    let (d, s) = (m.ty()?, m.ty()?);
    if matches!(d, T::F16x2 | T::Bf16x2) {
        let one = if d == T::F16x2 { T::F16 } else { T::Bf16 };
        let k = k | one.index() | s.index() << cvt::FROM_SHIFT;
        m.check(s, &[T::F32])?;
        return b.simple(
            i,
            |a, b, _, k| convert(a, 0, 0, k) << 16 | convert(b, 0, 0, k),
            k,
            &[d, s, s],
        );
    }
    let good = |t: T| {
        !matches!(
            t,
            T::Pred | T::B8 | T::B16 | T::B32 | T::B64 | T::B128 | T::F16x2 | T::Bf16x2
        )
    };
    if !good(d) || !good(s) || s == T::Tf32 {
        return m.unexpected();
    }
    if d.is_float() && s.is_float() && d.bits() == s.bits() && d != s && d != T::Tf32 {
        return m.unexpected();
    }
    // A float becomes an integer by rounding to an integer; no other conversion rounds so.
    let [to, from] = b.operands(i)?;
    let (to, to_bits) = b.loose_dst(i, &to, d)?;
    let (from, from_bits) = b.loose(i, &from, s)?;
    if to_bits < d.bits() || from_bits < s.bits() || (to_bits != d.bits().max(16) && d.is_float()) {
        return b.mismatch(i);
    }
    let plain = k == 0 || k == (Rounding::Nearest as u32) << cvt::ROUND_SHIFT;
    let hot = match (d, s, to_bits, from_bits) {
        (T::F32, T::S32, 32, 32) if plain => Some(Op::CvtF32S32),
        (T::F32, T::U32, 32, 32) if plain => Some(Op::CvtF32U32),
        (T::S32, T::F32, 32, 32) if word == Some("rzi") && k & (cvt::FTZ | cvt::SAT) == 0 => {
            Some(Op::CvtS32F32)
        }
        (T::U64 | T::S64, T::U32, 64, 32) if plain => Some(Op::ZextU32),
        (T::U64 | T::S64, T::S32, 64, 32) if plain => Some(Op::SextS32),
        (T::U32 | T::S32, T::U64 | T::S64, 32, 64) if plain => Some(Op::Low32),
        (T::U32 | T::S32, T::U16, 32, _) if plain && from_bits < 64 => Some(Op::Low16),
        (T::U16 | T::S16, T::U16 | T::S16 | T::U32 | T::S32, 16, _) if plain && from_bits < 64 => {
            Some(Op::Low16)
        }
        (T::S32, T::S16, 32, _) if plain && from_bits < 64 => Some(Op::Sext16),
        (T::S32, T::S8, 32, _) if plain && from_bits < 64 => Some(Op::Sext8),
        (T::U32 | T::S32 | T::U16, T::U8, _, _) if plain && from_bits < 64 && to_bits < 64 => {
            Some(Op::Low8)
        }
        _ => None,
    };
    if let Some(op) = hot {
        b.emit(op, to, from, crate::program::NONE, crate::program::NONE);
        return Ok(());
    }
    k |= d.index() | s.index() << cvt::FROM_SHIFT;
    if to_bits == 16 {
        k |= cvt::SHORT;
    }
    b.lanes(convert, k, (to, to_bits == 64), &[(from, from_bits == 64)])?;
    Ok(())
}

/// `cvt.pack.sat.…`: not emitted by compilers for ordinary kernels.
fn pack<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Decoded {
    m.has("sat");
    let (d, s) = (m.ty()?, m.ty()?);
    m.check(s, &[T::S32])?;
    m.check(d, &[T::U16, T::S16])?;
    if m.has("b32") || i.operands.len() != 3 {
        return Err(Wrong::Unsupported);
    }
    let k = u32::from(d.is_signed());
    b.simple(
        i,
        |a, b, _, k| {
            let c = |x: u64| {
                let v = super::integer::signed(x, 32);
                (if k != 0 {
                    v.clamp(-32768, 32767)
                } else {
                    v.clamp(0, 65535)
                }) as u64
                    & 0xffff
            };
            c(a) << 16 | c(b)
        },
        k,
        &[T::B32, s, s],
    )
}
