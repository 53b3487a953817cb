//! Bits and fields of them (PTX ISA 9.7.1).
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::many_single_char_names,
    reason = "lane arithmetic truncates by definition"
)]

use super::body::Body;
use super::integer::{low, signed};
use super::modifiers::{Decoded, Modifiers};
use crate::ast::Instruction;
use crate::ops::LaneFn;
use crate::types::Type;

type T = Type;

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

/// A position or length of a bit field: the low byte of a 32-bit value counts, a 64-bit value is
/// clamped.
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
                // The sign is the top bit of the field, or of the value where the field extends
                // beyond it.
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
    // d = a's field inserted into b at position c, length e: two steps, the mask first.
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
