//! f32 arithmetic as on a GPU: canonical NaN, ordered signed zeros, fused rounding.
#![allow(
    clippy::cast_possible_truncation,
    reason = "narrowing is what these conversions are"
)]

/// The canonical NaN of arithmetic.
pub(crate) const NAN32: u32 = 0x7fff_ffff;

/// The bits of a result: any NaN becomes the GPU's canonical one.
#[inline(always)]
pub(crate) fn f32r(x: f32) -> u32 {
    canon(x.to_bits())
}

/// The same for bits.
#[inline(always)]
pub(crate) fn canon(x: u32) -> u32 {
    if x & 0x7fff_ffff > 0x7f80_0000 {
        NAN32
    } else {
        x
    }
}

/// A subnormal becomes a zero of its sign.
#[inline(always)]
pub(crate) fn ftz(x: u32) -> u32 {
    if x & 0x7f80_0000 == 0 {
        x & 0x8000_0000
    } else {
        x
    }
}

/// The same for a value.
#[inline(always)]
pub(crate) fn flushed(x: f32) -> f32 {
    f32::from_bits(ftz(x.to_bits()))
}

/// Clamps to [0, 1]; NaN and −0 become +0.
#[inline(always)]
pub(crate) fn sat32(x: u32) -> u32 {
    let f = f32::from_bits(x);
    if f > 0.0 {
        if f < 1.0 { x } else { 0x3f80_0000 }
    } else {
        0
    }
}

/// The minimum; a single NaN is ignored; −0 is below +0.
#[inline(always)]
pub(crate) fn min_f32(a: u32, b: u32) -> u32 {
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    let less = if x < y { a } else { b };
    let r = if x == y { a | b } else { less };
    let r = if x.is_nan() { b } else { r };
    canon(if y.is_nan() { a } else { r })
}

/// The maximum, likewise.
#[inline(always)]
pub(crate) fn max_f32(a: u32, b: u32) -> u32 {
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    let more = if x > y { a } else { b };
    let r = if x == y { a & b } else { more };
    let r = if x.is_nan() { b } else { r };
    canon(if y.is_nan() { a } else { r })
}

/// a × b + c, rounded once. Without the processor's instruction: the product is exact in f64, the
/// sum is rounded to odd there, which keeps the last rounding right.
#[inline(always)]
pub(crate) fn fma_f32<const V3: bool>(a: f32, b: f32, c: f32) -> f32 {
    if V3 {
        a.mul_add(b, c)
    } else {
        odd_sum(f64::from(a) * f64::from(b), f64::from(c)) as f32
    }
}

/// x + y, with the last bit set if it is not exact: a second rounding to at most 51 bits is then
/// correct.
#[inline(always)]
pub(crate) fn odd_sum(x: f64, y: f64) -> f64 {
    let s = x + y;
    let t = s - x;
    let e = (x - (s - t)) + (y - t);
    let bits = s.to_bits();
    // Not `!=`: the error of an overflow is a NaN.
    let inexact = e.abs() > 0.0;
    let toward = if (e > 0.0) == (s > 0.0) { 1 } else { u64::MAX };
    f64::from_bits(if inexact && bits & 1 == 0 {
        bits.wrapping_add(toward)
    } else {
        bits
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fused_multiply_add_without_the_instruction_is_the_same() {
        let mut s = 1u64;
        for _ in 0..200_000 {
            let mut next = || {
                s = s
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let x = (s >> 32) as u32;
                if s & 7 == 0 {
                    x
                } else {
                    x & 0x83ff_ffff | 0x3c00_0000
                }
            };
            let (a, b, c) = (next(), next(), next());
            let [x, y, z] = [a, b, c].map(f32::from_bits);
            let (got, want) = (f32r(fma_f32::<false>(x, y, z)), f32r(x.mul_add(y, z)));
            assert_eq!(got, want, "{a:x} {b:x} {c:x}");
        }
    }

    #[test]
    fn zeros_are_in_order_and_a_nan_loses() {
        assert_eq!(min_f32(0, 1 << 31), 1 << 31);
        assert_eq!(max_f32(1 << 31, 0), 0);
        assert_eq!(min_f32(0x7fc0_0000, 0x3f80_0000), 0x3f80_0000);
        assert_eq!(max_f32(0xffc0_0000, 0x7f80_0001), NAN32);
    }
}
