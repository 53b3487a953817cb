//! Formats narrower than f64, and rounding to them: f32, f16, bf16 and tf32.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "bits of formats"
)]

use crate::number::odd_sum;
use crate::types::Type;

/// A direction of rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Rounding {
    Nearest = 0,
    Zero = 1,
    Down = 2,
    Up = 3,
    /// To nearest, ties away from zero.
    Away = 4,
}

impl Rounding {
    pub(crate) fn from_index(k: u32) -> Self {
        [Self::Nearest, Self::Zero, Self::Down, Self::Up, Self::Away][(k % 5) as usize]
    }
}

/// Bits of the fraction and the bias of the exponent.
const fn format(t: Type) -> (u32, i32) {
    match t {
        Type::F16 | Type::F16x2 => (10, 15),
        Type::Bf16 | Type::Bf16x2 => (7, 127),
        _ => (23, 127),
    }
}

/// Rounds once to f16, bf16 or f32. A NaN becomes the canonical one.
pub(crate) fn narrow(x: f64, t: Type, mode: Rounding) -> u32 {
    let (mantissa, bias) = format(t);
    let total = if mantissa == 23 { 32 } else { 16 };
    let sign = u32::from(x.is_sign_negative()) << (total - 1);
    let infinity = ((2 * bias as u32 + 1) << mantissa) | sign;
    if x.is_nan() {
        return (1 << (total - 1)) - 1;
    }
    if x.is_infinite() {
        return infinity;
    }
    if x == 0.0 {
        return sign;
    }
    let bits = x.to_bits();
    let raw = (bits >> 52 & 0x7ff) as i32;
    let fraction = bits & ((1 << 52) - 1);
    let (exponent, m) = if raw == 0 {
        (-1022, fraction)
    } else {
        (raw - 1023, fraction | 1 << 52)
    };
    let least = 1 - bias;
    let shift = exponent.max(least) - mantissa as i32 - (exponent - 52);
    let (kept, rest, half) = if shift > 63 {
        (0, 1, 2)
    } else {
        (m >> shift, m & ((1 << shift) - 1), 1u64 << (shift - 1))
    };
    let negative = sign != 0;
    let up = match mode {
        Rounding::Nearest => rest > half || rest == half && kept & 1 == 1,
        Rounding::Away => rest >= half,
        Rounding::Zero => false,
        Rounding::Down => negative && rest != 0,
        Rounding::Up => !negative && rest != 0,
    };
    let kept = kept as u32 + u32::from(up);
    let magnitude = if exponent < least {
        kept
    } else {
        (((exponent + bias) as u32) << mantissa)
            .wrapping_add(kept)
            .wrapping_sub(1 << mantissa)
    };
    let top = infinity & !sign;
    if exponent >= least && exponent > bias || magnitude >= top {
        let away = match mode {
            Rounding::Nearest | Rounding::Away => true,
            Rounding::Zero => false,
            Rounding::Down => negative,
            Rounding::Up => !negative,
        };
        return if away { infinity } else { (top - 1) | sign };
    }
    magnitude | sign
}

/// The value of a 16-bit float.
pub(crate) fn widen(t: Type, x: u64) -> f64 {
    f64::from(f32::from_bits(widen32(t, x)))
}

/// The bits of the same value as f32. A NaN keeps its payload.
pub(crate) fn widen32(t: Type, x: u64) -> u32 {
    let x = x as u32 & 0xffff;
    if matches!(t, Type::Bf16 | Type::Bf16x2) {
        return x << 16;
    }
    let sign = (x & 0x8000) << 16;
    let (e, f) = (x >> 10 & 31, x & 0x3ff);
    match (e, f) {
        (0, 0) => sign,
        (0, _) => {
            let shift = f.leading_zeros() - 21;
            sign | (113 - shift) << 23 | ((f << shift) & 0x3ff) << 13
        }
        (31, _) => sign | 0x7f80_0000 | f << 13,
        _ => sign | (e + 112) << 23 | f << 13,
    }
}

/// The f16 nearest to a literal.
pub(crate) fn from_f64(x: f64) -> u32 {
    narrow(x, Type::F16, Rounding::Nearest)
}

/// a + b, as an atomic adds.
pub(crate) fn add(t: Type, a: u64, b: u64) -> u64 {
    u64::from(narrow(
        odd_sum(widen(t, a), widen(t, b)),
        t,
        Rounding::Nearest,
    ))
}

/// The operations on 16-bit floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum HalfOp {
    Add,
    Sub,
    Mul,
    Fma,
    Neg,
    Abs,
    Min,
    Max,
    Ex2,
    Tanh,
    /// Comparison: 1.0 or 0 where true.
    Set,
    /// Comparison: all ones or 0.
    SetBits,
}

const OPS: [HalfOp; 12] = [
    HalfOp::Add,
    HalfOp::Sub,
    HalfOp::Mul,
    HalfOp::Fma,
    HalfOp::Neg,
    HalfOp::Abs,
    HalfOp::Min,
    HalfOp::Max,
    HalfOp::Ex2,
    HalfOp::Tanh,
    HalfOp::Set,
    HalfOp::SetBits,
];

/// The constant of [`lane`]: operation, bf16, packed pair, and options.
pub(crate) mod code {
    pub(crate) const BF16: u32 = 16;
    pub(crate) const PAIR: u32 = 32;
    pub(crate) const FTZ: u32 = 64;
    pub(crate) const SAT: u32 = 128;
    pub(crate) const RELU: u32 = 256;
    /// min, max: a NaN operand gives NaN.
    pub(crate) const NAN: u32 = 512;
    pub(crate) const XORSIGN: u32 = 1024;
    /// The comparison of `set`.
    pub(crate) const CMP_SHIFT: u32 = 12;
}

/// One lane: one or two 16-bit floats.
pub(crate) fn lane(a: u64, b: u64, c: u64, k: u32) -> u64 {
    let low = one(a & 0xffff, b & 0xffff, c & 0xffff, k);
    if k & code::PAIR == 0 {
        low
    } else {
        low | one(a >> 16 & 0xffff, b >> 16 & 0xffff, c >> 16 & 0xffff, k) << 16
    }
}

fn one(a: u64, b: u64, c: u64, k: u32) -> u64 {
    let t = if k & code::BF16 != 0 {
        Type::Bf16
    } else {
        Type::F16
    };
    let op = OPS[(k & 15) as usize % OPS.len()];
    let subnormal = |x: u64| x & if t == Type::F16 { 0x7c00 } else { 0x7f80 } == 0;
    let flush = |x: u64| {
        if k & code::FTZ != 0 && subnormal(x) {
            x & 0x8000
        } else {
            x
        }
    };
    let (a, b, c) = (flush(a), flush(b), flush(c));
    let (x, y, z) = (widen(t, a), widen(t, b), widen(t, c));
    let round = |v: f64| u64::from(narrow(v, t, Rounding::Nearest));
    let clean = |v: u64| if widen(t, v).is_nan() { 0x7fff } else { v };
    let r = match op {
        HalfOp::Add => round(odd_sum(x, y)),
        HalfOp::Sub => round(odd_sum(x, -y)),
        HalfOp::Mul => round(x * y),
        HalfOp::Fma => round(odd_sum(x * y, z)),
        HalfOp::Neg => clean(a ^ 0x8000),
        HalfOp::Abs => clean(a & 0x7fff),
        HalfOp::Ex2 => round(x.exp2()),
        HalfOp::Tanh => round(x.tanh()),
        HalfOp::Min | HalfOp::Max => {
            let (mut a, mut b, sign) = (a, b, (a ^ b) & 0x8000);
            if k & code::XORSIGN != 0 {
                (a, b) = (a & 0x7fff, b & 0x7fff);
            }
            let (x, y) = (widen(t, a), widen(t, b));
            let r = if x.is_nan() || y.is_nan() {
                if k & code::NAN != 0 || x.is_nan() && y.is_nan() {
                    0x7fff
                } else if x.is_nan() {
                    b
                } else {
                    a
                }
            } else if x == y {
                if op == HalfOp::Min { a | b } else { a & b }
            } else if (x < y) == (op == HalfOp::Min) {
                a
            } else {
                b
            };
            if k & code::XORSIGN != 0 && r != 0x7fff {
                r | sign
            } else {
                r
            }
        }
        HalfOp::Set | HalfOp::SetBits => {
            let yes = compare(k >> code::CMP_SHIFT, x, y);
            let one = if op == HalfOp::SetBits {
                0xffff
            } else {
                round(1.0)
            };
            return if yes { one } else { 0 };
        }
    };
    let v = widen(t, r);
    if k & code::SAT != 0 {
        return if v > 0.0 {
            if v < 1.0 { flush(r) } else { round(1.0) }
        } else {
            0
        };
    }
    if k & code::RELU != 0 && (v < 0.0 || r == 0x8000) {
        return 0;
    }
    flush(r)
}

/// The comparisons of floats, by their place in [`crate::decode::compare::COMPARE`].
pub(crate) fn compare(k: u32, x: f64, y: f64) -> bool {
    let unordered = x.is_nan() || y.is_nan();
    match k & 31 {
        0 => x == y,
        1 => x != y && !unordered,
        2 => x < y,
        3 => x <= y,
        4 => x > y,
        5 => x >= y,
        6 => x == y || unordered,
        7 => x != y,
        8 => x < y || unordered,
        9 => x <= y || unordered,
        10 => x > y || unordered,
        11 => x >= y || unordered,
        12 => !unordered,
        _ => unordered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrowing_to_f32_is_what_rust_does() {
        let mut s = 7u64;
        for _ in 0..200_000 {
            s = s
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let e = 0x380 - 30 + (s >> 7) % 300;
            let x = f64::from_bits(s & 0x800f_ffff_ffff_ffff | e << 52);
            assert_eq!(
                narrow(x, Type::F32, Rounding::Nearest),
                (x as f32).to_bits(),
                "{x:e}"
            );
        }
    }

    #[test]
    fn every_half_comes_back() {
        for t in [Type::F16, Type::Bf16] {
            for h in 0..=0xffffu64 {
                let v = widen(t, h);
                if !v.is_nan() {
                    assert_eq!(u64::from(narrow(v, t, Rounding::Nearest)), h, "{h:x}");
                }
            }
        }
    }
}
