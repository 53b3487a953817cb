//! Two and four numbers in one register (PTX ISA 9.7.17).
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::many_single_char_names,
    reason = "lane arithmetic truncates by definition"
)]

use super::body::Body;
use super::integer::{low, signed};
use super::modifiers::{Decoded, Modifiers, Wrong};
use crate::ast::{Instruction, Operand};
use crate::types::Type;

type T = Type;

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
