//! The instructions with `.approx`: computed in f64 and rounded, which is within the error that PTX
//! allows (ISA 9.7.3); special values and signs are a GPU's.
#![allow(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]

use crate::half::{Rounding, narrow};
use crate::number::{NAN32, f32r, ftz};
use crate::types::Type;

/// A function of one f32, subnormals flushed where the instruction says so (`k` = 1).
pub(crate) fn of(a: u32, k: u32, f: fn(f64) -> f64) -> u64 {
    let z = |x: u32| if k != 0 { ftz(x) } else { x };
    let a = z(a);
    if f32::from_bits(a).is_nan() {
        return u64::from(NAN32);
    }
    u64::from(z(f32r(f(f64::from(f32::from_bits(a))) as f32)))
}

pub(crate) fn rcp(x: f64) -> f64 {
    1.0 / x
}

pub(crate) fn rsqrt(x: f64) -> f64 {
    1.0 / x.sqrt()
}

pub(crate) fn sqrt(x: f64) -> f64 {
    x.sqrt()
}

/// The hardware takes the angle as a fraction of a turn, from a product of f32 rounded toward zero:
/// a large angle loses most of its precision.
fn turn(x: f64) -> f64 {
    let turns = narrow(x * f64::from(0.159_154_94_f32), Type::F32, Rounding::Zero);
    let turns = f64::from(f32::from_bits(turns));
    turns - turns.round_ties_even()
}

pub(crate) fn sin(x: f64) -> f64 {
    let t = turn(x);
    if t.abs() == 0.5 {
        0.0
    } else {
        (t * std::f64::consts::TAU).sin()
    }
}

pub(crate) fn cos(x: f64) -> f64 {
    let t = turn(x);
    if t.abs() == 0.25 {
        0.0
    } else {
        (t * std::f64::consts::TAU).cos()
    }
}

pub(crate) fn lg2(x: f64) -> f64 {
    x.log2()
}

pub(crate) fn ex2(x: f64) -> f64 {
    x.exp2()
}

pub(crate) fn tanh(x: f64) -> f64 {
    x.tanh()
}

/// `div.approx`, or `div.full`, which handles divisors beyond 2^126.
pub(crate) fn div(a: u32, b: u32, flush: bool, full: bool) -> u32 {
    let z = |x: u32| if flush { ftz(x) } else { x };
    let (x, y) = (f32::from_bits(z(a)), f32::from_bits(z(b)));
    if !full && y.abs() > f32::from_bits(0x7e80_0000) && y.is_finite() {
        return f32r(x * (0.0f32).copysign(y));
    }
    z(f32r((f64::from(x) / f64::from(y)) as f32))
}

/// `rcp.approx.ftz.f64`: 20 bits of fraction, the low word 0.
pub(crate) fn rcp64(a: u64) -> u64 {
    let flush = |x: u64| {
        if x & 0x7ff0 << 48 == 0 {
            x & 1 << 63
        } else {
            x
        }
    };
    // The low word of the argument is ignored.
    let x = f64::from_bits(flush(a & 0xffff_ffff_0000_0000));
    if x.is_nan() {
        return 0x7fff_ffff << 32;
    }
    flush((1.0 / x).to_bits()) & 0xffff_ffff_0000_0000
}

/// `rsqrt.approx.f64`
pub(crate) fn rsqrt64(a: u64, flush: bool) -> u64 {
    let a = if flush && a & 0x7ff0 << 48 == 0 {
        a & 1 << 63
    } else {
        a
    };
    let r = 1.0 / f64::from_bits(a).sqrt();
    if r.is_nan() {
        0x7fff_ffff_ffff_ffff
    } else {
        r.to_bits()
    }
}
