//! Moves, loads and stores, addresses, atomics (PTX ISA 9.7.9, 9.7.13).
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bits of addresses"
)]

use super::body::{Body, Entity};
use super::modifiers::{Decoded, Modifiers, Wrong, mistake};
use crate::ast::{Instruction, Operand};
use crate::ops::Op;
use crate::program::{Atomic, AtomicOp, Memory, NONE, Slot, flag};
use crate::space;
use crate::types::{Space, Type};

type T = Type;

pub(crate) fn mov<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Decoded {
    let t = m.ty()?;
    let [to, from] = b.operands(i)?;
    if t == T::Pred {
        let d = b.pred_dst(i, &to)?;
        let (a, not) = b.pred(i, &from)?;
        b.emit(Op::MovPred, d, a, 0, NONE).w = if not { flag::A_NOT } else { 0 };
        return Ok(());
    }
    if t.bits() == 128 {
        return Err(Wrong::Unsupported);
    }
    match (&to, &from) {
        (_, Operand::Vector(parts)) => return pack(b, i, t, &to, parts),
        (Operand::Vector(parts), _) => return unpack(b, i, t, parts, &from),
        _ => {}
    }
    if let Operand::Name(n) = from {
        let which = match n {
            "%clock" | "%clock64" | "%globaltimer" | "%globaltimer_lo" => Some(0),
            "%clock_hi" | "%globaltimer_hi" => Some(1),
            _ => None,
        };
        if let Some(which) = which {
            let d = b.dst(i, &to, t)?;
            let inst = b.emit(Op::Clock, d, NONE, NONE, NONE);
            inst.x = which;
            inst.w = if t.bits() == 64 { flag::D64 } else { 0 };
            return Ok(());
        }
    }
    b.hot(
        i,
        if t.bits() == 64 { Op::Mov64 } else { Op::Mov32 },
        &[t; 2],
    )
}

fn pack<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    t: T,
    to: &Operand<'a>,
    parts: &[Operand<'a>],
) -> Decoded {
    let d = b.dst(i, to, t)?;
    let part = match (t.bits(), parts.len()) {
        (32, 2) | (64, 4) => T::B16,
        (64, 2) => T::B32,
        (16 | 32, _) => return Err(Wrong::Unsupported),
        _ => return b.mismatch(i),
    };
    let mut s = Vec::new();
    for p in parts {
        s.push(b.src(i, p, part)?);
    }
    if s.len() == 4 {
        let (low, high) = (b.temp(32)?, b.temp(32)?);
        b.emit(Op::Pack32, low, s[0], s[1], NONE);
        b.emit(Op::Pack32, high, s[2], s[3], NONE);
        s = vec![low, high];
    }
    b.emit(
        if t.bits() == 64 {
            Op::Pack64
        } else {
            Op::Pack32
        },
        d,
        s[0],
        s[1],
        NONE,
    );
    Ok(())
}

fn unpack<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    t: T,
    parts: &[Operand<'a>],
    from: &Operand<'a>,
) -> Decoded {
    let a = b.src(i, from, t)?;
    let part = match (t.bits(), parts.len()) {
        (32, 2) | (64, 4) => T::B16,
        (64, 2) => T::B32,
        (16 | 32, _) => return Err(Wrong::Unsupported),
        _ => return b.mismatch(i),
    };
    let mut d = Vec::new();
    for p in parts {
        d.push(b.dst(i, p, part)?);
    }
    if d.len() == 4 {
        let (low, high) = (b.temp(32)?, b.temp(32)?);
        b.emit(Op::Unpack64, low, a, high, NONE);
        b.emit(Op::Unpack32, d[0], low, d[1], NONE);
        b.emit(Op::Unpack32, d[2], high, d[3], NONE);
    } else if t.bits() == 64 {
        b.emit(Op::Unpack64, d[0], a, d[1], NONE);
    } else {
        // The source is read completely before the low half may overwrite it.
        b.emit(Op::Unpack32, d[0], a, d[1], NONE);
    }
    Ok(())
}

/// A decoded address.
pub(crate) struct Address {
    pub(crate) slot: Slot,
    pub(crate) wide: bool,
    pub(crate) offset: i64,
    /// A generic address of the frame, whatever the instruction says.
    pub(crate) generic: bool,
    /// Offset and room among the kernel's parameters.
    kernel: Option<(i64, u32)>,
}

impl<'a> Body<'_, 'a> {
    pub(crate) fn address(&mut self, i: &Instruction<'a>, o: &Operand<'a>) -> Decoded<Address> {
        let Operand::Address(base, offset) = o else {
            return self.mismatch(i);
        };
        let plain = |slot, wide, offset| Address {
            slot,
            wide,
            offset,
            generic: false,
            kernel: None,
        };
        let Some(name) = base else {
            return Ok(plain(self.bits(true, *offset as u64)?, true, 0));
        };
        let Some(entity) = self.lookup(name) else {
            return self.unknown(i, name);
        };
        Ok(match entity {
            Entity::Register(64, s) => plain(s, true, *offset),
            Entity::Register(32, s) => plain(s, false, *offset),
            Entity::Variable(v) => plain(self.variable_value(true, v, *offset)?, true, 0),
            Entity::Frame { at, param, .. } => {
                // Within the frame: a far offset stays with the address, which is then checked.
                let o = Operand::Name(name);
                let _ = at;
                let slot = self.src(i, &o, T::B64)?;
                Address {
                    generic: param,
                    ..plain(slot, true, *offset)
                }
            }
            Entity::Kernel(at) => Address {
                kernel: Some((i64::from(at) + offset, self.function.param_bytes)),
                ..plain(self.bits(true, u64::from(at))?, true, *offset)
            },
            _ => return self.mismatch(i),
        })
    }
}

/// Takes semantics, scopes and hints, which have no effect here. True: an order is requested.
fn ordering(m: &mut Modifiers<'_>) -> bool {
    m.drop_hints();
    for w in [
        "weak", "relaxed", "volatile", "mmio", "cta", "cluster", "gpu", "sys", "ca", "cg", "cs",
        "lu", "cv", "wb", "wt", "nc", "unified",
    ] {
        m.has(w);
    }
    let mut ordered = false;
    for w in ["acquire", "release", "acq_rel", "sc"] {
        ordered |= m.has(w);
    }
    ordered
}

fn space_of(m: &mut Modifiers<'_>) -> Space {
    let names = [
        "global",
        "shared::cta",
        "shared::cluster",
        "shared",
        "local",
        "const",
        "param::entry",
        "param::func",
        "param",
    ];
    m.one_of(&names)
        .and_then(Space::parse)
        .unwrap_or(Space::Generic)
}

/// `ld`, `ldu`, `st`
pub(crate) fn memory<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    if m.left.iter().any(|w| w.contains("cache_hint")) {
        return Err(Wrong::Unsupported);
    }
    let ordered = ordering(m);
    let mut space = space_of(m);
    let n = match m.one_of(&["v2", "v4", "v8"]) {
        None => 1,
        Some("v2") => 2,
        Some("v4") => 4,
        _ => 8,
    };
    let t = m.ty()?;
    let store = i.name == "st";
    if t.bits() == 128 {
        return Err(Wrong::Unsupported);
    }
    if matches!(t, T::Pred | T::F16x2 | T::Bf16x2 | T::Tf32 | T::Bf16) {
        return m.unexpected();
    }
    let [x, y] = b.operands(i)?;
    let (value, addr) = if store { (y, x) } else { (x, y) };
    let at = b.address(i, &addr)?;
    let parts = match value {
        Operand::Vector(p) => p,
        o => vec![o],
    };
    if parts.len() != n {
        return b.mismatch(i);
    }
    let mut regs = Vec::new();
    for p in &parts {
        let (slot, bits) = if store {
            b.loose(i, p, t)?
        } else {
            b.loose_dst(i, p, t)?
        };
        if bits < t.bits() {
            return b.mismatch(i);
        }
        regs.push((slot, bits));
    }
    if ordered {
        b.emit(Op::Fence, NONE, NONE, NONE, NONE);
    }
    if at.generic {
        space = Space::Generic;
    }
    let size = t.bytes();
    if let (Some((off, room)), false) = (at.kernel, store) {
        // Parameters are the same for all lanes.
        let inside = off >= 0
            && off + i64::from(size) * n as i64 <= i64::from(room)
            && off % (i64::from(size) * n as i64) == 0;
        let plain = regs.iter().all(|(_, bits)| *bits == t.bits()) && matches!(t.bits(), 32 | 64);
        if inside && plain {
            for (k, (slot, bits)) in regs.iter().enumerate() {
                let op = if *bits == 64 {
                    Op::Param64
                } else {
                    Op::Param32
                };
                b.emit(op, *slot, NONE, NONE, NONE).imm = (off + i64::from(size) * k as i64) as i32;
            }
            return Ok(());
        }
    }
    let first = regs[0];
    let fast = regs.len() == 1 && i32::try_from(at.offset).is_ok() && first.1 == t.bits();
    let global =
        matches!(space, Space::Global | Space::Generic | Space::Const) && at.wide && !at.generic;
    let op = match (fast, global, space, t.bits(), store) {
        (true, true, _, 32, false) => Op::LdGlobal32,
        (true, true, _, 64, false) => Op::LdGlobal64,
        (true, true, _, 32, true) => Op::StGlobal32,
        (true, true, _, 64, true) => Op::StGlobal64,
        (true, _, Space::Shared, 32, false) => Op::LdShared32,
        (true, _, Space::Shared, 32, true) => Op::StShared32,
        _ => Op::Memory,
    };
    let x = b.program.memory.len() as u32;
    let signed = t.is_signed();
    b.program.memory.push(Memory {
        space,
        is_store: store,
        size,
        signed,
        regs,
        addr: at.slot,
        addr_wide: at.wide,
        offset: at.offset,
    });
    let (d, v) = if store {
        (NONE, first.0)
    } else {
        (first.0, NONE)
    };
    let inst = b.emit(op, d, at.slot, v, NONE);
    inst.x = x;
    inst.imm = i32::try_from(at.offset).unwrap_or(0);
    inst.w = if at.wide { flag::A64 } else { 0 };
    if ordered {
        b.emit(Op::Fence, NONE, NONE, NONE, NONE);
    }
    Ok(())
}

const SPACES: [Space; 5] = [
    Space::Global,
    Space::Shared,
    Space::Local,
    Space::Const,
    Space::Param,
];

pub(crate) fn cvta<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let to = m.has("to");
    let s = space_of(m);
    let t = m.ty()?;
    m.check(t, &[T::U32, T::U64])?;
    let Some(k) = SPACES.iter().position(|x| *x == s) else {
        return m.unexpected();
    };
    if t == T::U32 {
        return Err(Wrong::Unsupported);
    }
    if space::window(s) == 0 {
        return b.hot(i, Op::Mov64, &[t; 2]);
    }
    b.simple(
        i,
        |a, _, _, k| {
            let s = SPACES[(k & 7) as usize % 5];
            if k & 8 != 0 {
                space::from_generic(s, a)
            } else {
                space::to_generic(s, a)
            }
        },
        k as u32 | if to { 8 } else { 0 },
        &[t; 2],
    )
}

pub(crate) fn isspacep<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let s = space_of(m);
    let Some(k) = SPACES.iter().position(|x| *x == s) else {
        return m.unexpected();
    };
    let [p, a] = b.operands(i)?;
    let p = b.pred_dst(i, &p)?;
    let a = b.src(i, &a, T::B64)?;
    let index = b.lane_function(|a, _, _, k| {
        let s = SPACES[k as usize % 5];
        u64::from(space::space_of(a) == s && (s != Space::Global || a >= space::LOWEST))
    });
    let inst = b.emit(Op::LanesTest, p, a, NONE, NONE);
    inst.x = index | (k as u32) << 16;
    inst.w = flag::A64;
    Ok(())
}

/// `mapa`, `getctarank`
pub(crate) fn mapa<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let t0 = space_of(m);
    let t = m.ty()?;
    m.check(t, &[T::U32, T::U64])?;
    let base = if t0 == Space::Shared || t == T::U32 {
        0
    } else {
        1
    };
    if i.name == "getctarank" {
        return b.simple(
            i,
            |a, _, _, _| (a >> space::RANK_SHIFT & 0xffff).wrapping_sub(1) & 0xffff_ffff,
            0,
            &[T::U32, t],
        );
    }
    b.simple(
        i,
        |a, rank, _, k| {
            (if k != 0 { space::SHARED } else { 0 })
                + (((rank & 0xff) + 1) << space::RANK_SHIFT)
                + (a & ((1 << space::RANK_SHIFT) - 1))
        },
        base,
        &[t, t, T::U32],
    )
}

/// `atom`, `red`
pub(crate) fn atomic<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    if m.left.iter().any(|w| w.contains("cache_hint")) || m.has("v2") || m.has("v4") || m.has("v8")
    {
        return Err(Wrong::Unsupported);
    }
    let fence = ordering(m);
    let space = space_of(m);
    let ops = [
        ("add", AtomicOp::Add),
        ("and", AtomicOp::And),
        ("or", AtomicOp::Or),
        ("xor", AtomicOp::Xor),
        ("exch", AtomicOp::Exch),
        ("cas", AtomicOp::Cas),
        ("inc", AtomicOp::Inc),
        ("dec", AtomicOp::Dec),
        ("min", AtomicOp::Min),
        ("max", AtomicOp::Max),
    ];
    let Some((_, op)) = ops.into_iter().find(|(w, _)| m.has(w)) else {
        return m.unexpected();
    };
    m.has("noftz");
    m.has("async");
    let t = m.ty()?;
    if t == T::B128 {
        return Err(Wrong::Unsupported);
    }
    let allowed: &[T] = match op {
        AtomicOp::Add => &[
            T::U32,
            T::S32,
            T::U64,
            T::S64,
            T::F32,
            T::F64,
            T::F16,
            T::F16x2,
            T::Bf16,
            T::Bf16x2,
        ],
        AtomicOp::And | AtomicOp::Or | AtomicOp::Xor => &[T::B32, T::B64],
        AtomicOp::Exch | AtomicOp::Cas => &[T::B16, T::B32, T::B64],
        AtomicOp::Inc | AtomicOp::Dec => &[T::U32],
        _ => &[T::U32, T::S32, T::U64, T::S64],
    };
    m.check(t, allowed)?;
    let red = i.name == "red";
    let o = &i.operands;
    let n = usize::from(!red) + 2 + usize::from(op == AtomicOp::Cas);
    if o.len() != n {
        return b.mismatch(i);
    }
    let rest = if red { &o[..] } else { &o[1..] };
    let d = match o.first() {
        Some(x) if !red && *x != Operand::Sink => b.dst(i, x, t)?,
        _ => NONE,
    };
    let at = b.address(i, &rest[0])?;
    let v = b.src(i, &rest[1], t)?;
    let c = if op == AtomicOp::Cas {
        b.src(i, &rest[2], t)?
    } else {
        NONE
    };
    let x = b.program.atomics.len() as u32;
    b.program.atomics.push(Atomic {
        op,
        ty: t,
        space: if at.generic { Space::Generic } else { space },
        addr_wide: at.wide,
        offset: at.offset,
        fence,
    });
    b.emit(Op::Atomic, d, at.slot, v, c).x = x;
    Ok(())
}

/// Hints: nothing happens.
pub(crate) fn hint<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    m.left.clear();
    if let Some(o @ Operand::Address(..)) = i.operands.first() {
        b.address(i, o)?;
    }
    b.emit(Op::Nop, NONE, NONE, NONE, NONE);
    Ok(())
}

/// `cp.async`: the copy is made at once, so groups are always complete.
pub(crate) fn copy_async<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    if !m.has("async") || m.has("bulk") || m.left.contains(&"mbarrier") {
        return Err(Wrong::Unsupported);
    }
    if m.has("commit_group") || m.has("wait_group") || m.has("wait_all") {
        b.emit(Op::Nop, NONE, NONE, NONE, NONE);
        return Ok(());
    }
    m.drop_hints();
    m.one_of(&["ca", "cg"]);
    if space_of(m) != Space::Global || space_of(m) != Space::Shared {
        return m.unexpected();
    }
    if i.operands.len() < 3 {
        return b.mismatch(i);
    }
    let (to, from) = (b.address(i, &i.operands[0])?, b.address(i, &i.operands[1])?);
    let Operand::Number(crate::ast::Number::Int(size @ (4 | 8 | 16))) = i.operands[2] else {
        return b.mismatch(i);
    };
    let read = match i.operands.get(3) {
        None => NONE,
        Some(o) if b.is_pred(o) => return Err(Wrong::Unsupported),
        Some(o) => b.src(i, o, T::U32)?,
    };
    let to_at = offset_slot(b, &to)?;
    let from_at = offset_slot(b, &from)?;
    let inst = b.emit(Op::CopyAsync, to_at, from_at, read, NONE);
    inst.imm = size as i32;
    inst.w = if to.wide { flag::D64 } else { 0 } | if from.wide { flag::A64 } else { 0 };
    Ok(())
}

/// The address with its offset added.
pub(crate) fn offset_slot(b: &mut Body<'_, '_>, a: &Address) -> Decoded<Slot> {
    if a.offset == 0 {
        return Ok(a.slot);
    }
    let k = b.bits(a.wide, a.offset as u64)?;
    let t = b.temp(if a.wide { 64 } else { 32 })?;
    b.emit(
        if a.wide { Op::Add64 } else { Op::Add32 },
        t,
        a.slot,
        k,
        NONE,
    );
    Ok(t)
}

/// Valid, but not implemented here.
pub(crate) fn unsupported<'a>(
    _: &mut Body<'_, 'a>,
    _: &Instruction<'a>,
    _: &mut Modifiers<'a>,
) -> Decoded {
    Err(Wrong::Unsupported)
}

/// `alloca`, `stacksave`, `stackrestore`
pub(crate) fn stack<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    if i.name == "alloca" {
        return Err(Wrong::Unsupported);
    }
    let t = m.ty()?;
    m.check(t, &[T::U32, T::U64])?;
    if i.name == "stacksave" && t == T::U64 {
        return b.hot_save(i, t);
    }
    if i.name == "stacksave" {
        return mistake("'stacksave' of 32 bits is not for this address size");
    }
    b.emit(Op::Nop, NONE, NONE, NONE, NONE);
    Ok(())
}

impl<'a> Body<'_, 'a> {
    fn hot_save(&mut self, i: &Instruction<'a>, t: T) -> Decoded {
        let [d] = self.operands(i)?;
        let d = self.dst(i, &d, t)?;
        self.emit(Op::StackSave, d, NONE, NONE, NONE);
        Ok(())
    }
}
