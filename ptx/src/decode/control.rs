//! Branches, calls, barriers, fences (PTX ISA 9.7.12, 9.7.13).
#![allow(clippy::cast_possible_truncation, reason = "indices")]

use super::body::{Body, Entity, Shape};
use super::modifiers::{Decoded, Modifiers, Wrong, mistake};
use crate::ast::{Instruction, Operand};
use crate::ops::Op;
use crate::program::{Barrier, BarrierKind, Builtin, Call, Callee, NONE, Place};
use crate::types::Type;

type T = Type;

pub(crate) fn bra<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Decoded {
    m.has("uni");
    let [Operand::Name(name)] = &i.operands[..] else {
        return b.mismatch(i);
    };
    match b.lookup(name) {
        Some(Entity::Label(id)) => {
            let at = b.program.code.len();
            b.emit(Op::Bra, NONE, NONE, NONE, NONE);
            b.fixups.push((at, id));
            Ok(())
        }
        Some(_) => b.mismatch(i),
        None => mistake(format!("Unknown symbol '{name}'")),
    }
}

pub(crate) fn brx<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Decoded {
    if !m.has("idx") {
        return m.unexpected();
    }
    m.has("uni");
    let [index, Operand::Name(table)] = &i.operands[..] else {
        return b.mismatch(i);
    };
    let a = b.src(i, index, T::U32)?;
    match b.lookup(table) {
        Some(Entity::Targets(t)) => {
            b.emit(Op::Brx, NONE, a, NONE, NONE).x = t as u32;
            Ok(())
        }
        _ => mistake(format!("Unknown symbol '{table}'")),
    }
}

pub(crate) fn call<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    m.has("uni");
    let mut o = i.operands.iter();
    let mut next = o.next();
    let results = match next {
        Some(Operand::List(l)) => {
            next = o.next();
            &l[..]
        }
        _ => &[],
    };
    let Some(Operand::Name(name)) = next else {
        return b.mismatch(i);
    };
    let mut next = o.next();
    let args = match next {
        Some(Operand::List(l)) => {
            next = o.next();
            &l[..]
        }
        _ => &[],
    };
    let (callee, (want_results, want_params)) = match b.lookup(name) {
        Some(Entity::Function(f)) => {
            let shapes = b.names.shapes[f as usize].clone();
            let callee = if b.names.external[f as usize] {
                match Builtin::named(name) {
                    Some(x) => Callee::Builtin(x),
                    None => {
                        return Err(Wrong::Mistakes(vec![format!(
                            "{}'{name}'",
                            super::body::UNRESOLVED
                        )]));
                    }
                }
            } else {
                b.function.calls.push(f);
                Callee::Function(f)
            };
            (callee, shapes)
        }
        Some(Entity::Register(64, slot)) => {
            let Some(Operand::Name(proto)) = next else {
                return b.mismatch(i);
            };
            let shapes = match b.lookup(proto) {
                Some(Entity::Prototype(r, p)) => (r, p),
                Some(Entity::Targets(_)) => return Err(Wrong::Unsupported),
                _ => return mistake(format!("Unknown symbol '{proto}'")),
            };
            b.function.calls_indirectly = true;
            (Callee::Register(slot), shapes)
        }
        Some(_) => return b.mismatch(i),
        None => {
            return Err(Wrong::Mistakes(vec![
                format!("Call to '{name}' requires call prototype"),
                format!("Unknown symbol '{name}'"),
            ]));
        }
    };
    if results.len() != want_results.len() || args.len() != want_params.len() {
        return b.mismatch(i);
    }
    let mut places = (Vec::new(), Vec::new());
    for (o, s) in args.iter().zip(&want_params) {
        let p = b.argument(i, o, *s)?;
        places.0.push(p);
    }
    for (o, s) in results.iter().zip(&want_results) {
        if matches!(o, Operand::Number(_)) {
            return b.mismatch(i);
        }
        let p = b.argument(i, o, *s)?;
        places.1.push(p);
    }
    let x = b.program.calls.len() as u32;
    b.program.calls.push(Call {
        callee,
        args: places.0,
        results: places.1,
    });
    b.emit(Op::Call, NONE, NONE, NONE, NONE).x = x;
    Ok(())
}

impl<'a> Body<'_, 'a> {
    /// The place of an argument or a result of a call.
    fn argument(&mut self, i: &Instruction<'a>, o: &Operand<'a>, want: Shape) -> Decoded<Place> {
        if let Operand::Name(n) = o {
            match self.lookup(n) {
                Some(Entity::Frame {
                    at,
                    size,
                    param: true,
                }) if size == want.size && want.register.is_none() => {
                    return Ok(Place::Frame { at, size });
                }
                Some(Entity::Frame { .. }) => return self.mismatch(i),
                Some(Entity::Predicate(p)) => return Ok(Place::Pred(p)),
                _ => {}
            }
        }
        if matches!(o, Operand::Sink) {
            return Err(Wrong::Unsupported);
        }
        let t = want.register.unwrap_or(match want.size {
            8 => T::B64,
            1 | 2 => T::B16,
            4 => T::B32,
            _ => return self.mismatch(i),
        });
        if t == T::Pred {
            return self.mismatch(i);
        }
        let (slot, bits) = self.loose(i, o, t)?;
        if (bits == 64) != (t.bits() == 64) {
            return self.mismatch(i);
        }
        Ok(if bits == 64 {
            Place::R64(slot)
        } else {
            Place::R32(slot)
        })
    }
}

/// `ret`, `exit`, `trap`, `brkpt`
pub(crate) fn leave<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    m.has("uni");
    if !i.operands.is_empty() {
        return b.mismatch(i);
    }
    let op = match i.name {
        "ret" => Op::Ret,
        "exit" => Op::Exit,
        _ => Op::Trap,
    };
    b.emit(op, NONE, NONE, NONE, NONE).x = u32::from(i.name == "brkpt");
    Ok(())
}

/// `bar`, `barrier`
pub(crate) fn barrier<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    if m.has("warp") {
        return super::together::bar_warp(b, i, m);
    }
    if m.has("cluster") {
        for w in ["acquire", "release", "relaxed", "aligned"] {
            m.has(w);
        }
        // A warp that arrives waits next: it is enough that all meet there.
        let op = if m.has("arrive") {
            Op::Fence
        } else {
            Op::ClusterBar
        };
        if op == Op::ClusterBar && !m.has("wait") {
            return m.unexpected();
        }
        b.emit(op, NONE, NONE, NONE, NONE);
        return Ok(());
    }
    m.has("cta");
    m.has("aligned");
    let o = &i.operands;
    let mut bar = Barrier {
        kind: BarrierKind::Sync,
        id: NONE,
        count: NONE,
        pred: NONE,
        not: false,
        dst: NONE,
    };
    if m.has("red") {
        bar.kind = match m.one_of(&["popc", "and", "or"]) {
            Some("popc") => BarrierKind::Popc,
            Some("and") => BarrierKind::And,
            Some("or") => BarrierKind::Or,
            _ => return m.unexpected(),
        };
        let t = m.ty()?;
        let popc = bar.kind == BarrierKind::Popc;
        m.check(t, if popc { &[T::U32] } else { &[T::Pred] })?;
        if o.len() != 3 && o.len() != 4 {
            return b.mismatch(i);
        }
        bar.dst = if popc {
            b.dst(i, &o[0], T::U32)?
        } else {
            b.pred_dst(i, &o[0])?
        };
        bar.id = b.src(i, &o[1], T::U32)?;
        if o.len() == 4 {
            bar.count = b.src(i, &o[2], T::U32)?;
        }
        (bar.pred, bar.not) = b.pred(i, &o[o.len() - 1])?;
    } else {
        let arrive = m.has("arrive");
        if !arrive && !m.has("sync") {
            return m.unexpected();
        }
        if o.is_empty() || o.len() > 2 || arrive && o.len() != 2 {
            return b.mismatch(i);
        }
        bar.kind = if arrive {
            BarrierKind::Arrive
        } else {
            BarrierKind::Sync
        };
        bar.id = b.src(i, &o[0], T::U32)?;
        if o.len() == 2 {
            bar.count = b.src(i, &o[1], T::U32)?;
        }
    }
    let x = b.program.barriers.len() as u32;
    b.program.barriers.push(bar);
    b.emit(Op::Bar, NONE, NONE, NONE, NONE).x = x;
    Ok(())
}

/// `membar`, `fence`
pub(crate) fn fence<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    m.left.clear();
    if !i.operands.is_empty() {
        return Err(Wrong::Unsupported);
    }
    b.emit(Op::Fence, NONE, NONE, NONE, NONE);
    Ok(())
}

pub(crate) fn nanosleep<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let t = m.ty()?;
    m.check(t, &[T::U32])?;
    let [a] = b.operands(i)?;
    b.src(i, &a, t)?;
    b.emit(Op::Sleep, NONE, NONE, NONE, NONE);
    Ok(())
}

/// Instructions that have no effect without more hardware.
pub(crate) fn nothing<'a>(
    b: &mut Body<'_, 'a>,
    _: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    m.left.clear();
    b.emit(Op::Nop, NONE, NONE, NONE, NONE);
    Ok(())
}
