//! Atomics and asynchronous copies, one lane after the other.
#![allow(
    clippy::too_many_arguments,
    reason = "what the loop holds in its hands"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "lane arithmetic truncates and reinterprets by definition"
)]

use std::sync::atomic::{Ordering, fence};

use super::access::{Access, Target};
use super::cost;
use super::cx::{Cx, SharedMemory};
use super::lanes::operand;
use super::load_store::address;
use super::registers::{Regs, lanes};
use super::warp::Warp;
use crate::Code;
use crate::number::{f32r, max_f32, min_f32};
use crate::program::{AtomicOp, Inst, NONE, flag};
use crate::space::{Fault, Halt};
use crate::types::{Space, Type};

/// The value that an atomic leaves in memory.
pub(crate) fn combine(op: AtomicOp, ty: Type, old: u64, b: u64, c: u64) -> u64 {
    let bits = ty.bits();
    let low = |x: u64| if bits == 64 { x } else { x & ((1 << bits) - 1) };
    let signed = |x: u64| ((x << (64 - bits)) as i64) >> (64 - bits);
    low(match (op, ty) {
        (AtomicOp::Add, Type::F32) => {
            u64::from(f32r(f32::from_bits(old as u32) + f32::from_bits(b as u32)))
        }
        (AtomicOp::Add, Type::F64) => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        (AtomicOp::Add, Type::F16 | Type::Bf16) => crate::half::add(ty, old, b),
        (AtomicOp::Add, Type::F16x2 | Type::Bf16x2) => {
            let half = if ty == Type::F16x2 {
                Type::F16
            } else {
                Type::Bf16
            };
            crate::half::add(half, old & 0xffff, b & 0xffff)
                | crate::half::add(half, old >> 16, b >> 16) << 16
        }
        (AtomicOp::Add, _) => old.wrapping_add(b),
        (AtomicOp::And, _) => old & b,
        (AtomicOp::Or, _) => old | b,
        (AtomicOp::Xor, _) => old ^ b,
        (AtomicOp::Exch, _) => b,
        (AtomicOp::Cas, _) => {
            if low(old) == low(b) {
                c
            } else {
                old
            }
        }
        (AtomicOp::Inc, _) => {
            if old >= low(b) {
                0
            } else {
                old + 1
            }
        }
        (AtomicOp::Dec, _) => {
            if old == 0 || old > low(b) {
                b
            } else {
                old - 1
            }
        }
        (AtomicOp::Min, Type::F32) => u64::from(min_f32(old as u32, b as u32)),
        (AtomicOp::Max, Type::F32) => u64::from(max_f32(old as u32, b as u32)),
        (AtomicOp::Min, t) if t.is_signed() => signed(old).min(signed(b)) as u64,
        (AtomicOp::Max, t) if t.is_signed() => signed(old).max(signed(b)) as u64,
        (AtomicOp::Min, _) => old.min(low(b)),
        (AtomicOp::Max, _) => old.max(low(b)),
    })
}

#[inline(never)]
pub(super) fn atomic(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    r: &mut Regs,
    i: &Inst,
    m: u32,
    pc: u32,
    fuel: &mut u32,
) -> Result<(), Box<Halt>> {
    let x = &cx.program.atomics[i.x as usize];
    let wide = x.ty.bits() == 64;
    w.burn(fuel, cost::ATOMIC);
    let places = lanes(m).map(|l| address(r, i.a, x.addr_wide, l, x.offset));
    if !cx.fetch(w, fuel, x.space, x.ty.bytes().into(), places) {
        return Err(Box::new(Halt::Again));
    }
    if x.fence {
        fence(Ordering::SeqCst);
    }
    for l in lanes(m) {
        let addr = address(r, i.a, x.addr_wide, l, x.offset);
        let (b, c) = (operand(r, i.b, wide, l), operand(r, i.c, wide, l));
        let what = Access {
            space: x.space,
            size: x.ty.bytes(),
            write: true,
            pc: pc - 1,
            lane: l as u32,
        };
        let target = cx.access(shared, w, &what, addr)?;
        let Target::Bytes(bytes, at) = target else {
            return Err(Box::new(Halt::Fault(Fault::new(
                Code::InvalidAddressSpace,
                pc - 1,
                l as u32,
                format!("atomic on local memory or parameters at 0x{addr:x}"),
            ))));
        };
        let old = match x.ty.bytes() {
            2 => bytes
                .update::<u16>(at, |o| combine(x.op, x.ty, o.into(), b, c) as u16)
                .map(u64::from),
            4 => bytes
                .update::<u32>(at, |o| combine(x.op, x.ty, o.into(), b, c) as u32)
                .map(u64::from),
            _ => bytes.update::<u64>(at, |o| combine(x.op, x.ty, o, b, c)),
        }
        .unwrap_or(0);
        if i.d != NONE {
            if wide {
                r.r64[i.d as usize][l] = old;
            } else {
                r.r32[i.d as usize][l] = old as u32;
            }
        }
    }
    if x.fence {
        fence(Ordering::SeqCst);
    }
    Ok(())
}

/// `cp.async`, done at once. d: destination, a: source, b: bytes to read; the rest of `imm` bytes
/// is zero.
#[inline(never)]
pub(super) fn copy_async(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    r: &mut Regs,
    i: &Inst,
    m: u32,
    pc: u32,
    fuel: &mut u32,
) -> Result<(), Box<Halt>> {
    let size = i.imm as u32;
    w.burn(fuel, cost::ATOMIC);
    let places = lanes(m).map(|l| address(r, i.a, i.w & flag::A64 != 0, l, 0));
    if !cx.fetch(w, fuel, Space::Global, size.into(), places) {
        return Err(Box::new(Halt::Again));
    }
    for l in lanes(m) {
        let to = address(r, i.d, i.w & flag::D64 != 0, l, 0);
        let from = address(r, i.a, i.w & flag::A64 != 0, l, 0);
        let read = if i.b == NONE {
            size
        } else {
            r.r32[i.b as usize][l].min(size)
        };
        let what = |space, write| Access {
            space,
            size,
            write,
            pc: pc - 1,
            lane: l as u32,
        };
        let to = cx.access(shared, w, &what(Space::Shared, true), to)?;
        let mut bytes = [0u64; 16];
        if read > 0 {
            let from = cx.access(shared, w, &what(Space::Global, false), from)?;
            for (k, b) in bytes.iter_mut().enumerate().take(read as usize) {
                *b = from.load(cx, &w.local, l, k as u32, 1);
            }
        }
        for k in 0..size {
            to.store(&mut w.local, l, k, 1, bytes[k as usize & 15]);
        }
    }
    Ok(())
}
