//! Instructions that lanes of a warp execute together (PTX ISA 9.7.9.6, 9.7.13, 9.7.14).
#![allow(clippy::cast_possible_truncation, reason = "indices")]

use super::body::Body;
use super::modifiers::{Decoded, Modifiers, Wrong};
use crate::ast::{Instruction, Operand};
use crate::ops::Op;
use crate::program::{AtomicOp, Fragment, Matrix, NONE, Slot, Sync, SyncOp};
use crate::types::{Space, Type};

type T = Type;

fn emit<'a>(b: &mut Body<'_, 'a>, s: Sync, d: Slot, from: [Slot; 3]) {
    let x = b.program.syncs.len() as u32;
    b.program.syncs.push(s);
    b.emit(Op::Sync, d, from[0], from[1], from[2]).x = x;
}

const PLAIN: Sync = Sync {
    op: SyncOp::BarWarp,
    mask: NONE,
    wide: false,
    not: false,
    pred: NONE,
};

pub(crate) fn bar_warp<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    if !m.has("sync") {
        return m.unexpected();
    }
    let [mask] = b.operands(i)?;
    let mask = b.src(i, &mask, T::B32)?;
    emit(b, Sync { mask, ..PLAIN }, NONE, [NONE; 3]);
    Ok(())
}

/// The first operand: a register, or `d|p`.
fn two_results<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>) -> Decoded<(Slot, Slot)> {
    match &i.operands[0] {
        Operand::Pair(d, p) => {
            let p = b.pred_dst(i, &Operand::Name(p))?;
            let d = if *d == "_" {
                NONE
            } else {
                b.dst(i, &Operand::Name(d), T::B32)?
            };
            Ok((d, p))
        }
        o => Ok((b.dst(i, o, T::B32)?, NONE)),
    }
}

pub(crate) fn shfl<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let sync = m.has("sync");
    let op = match m.one_of(&["up", "down", "bfly", "idx"]) {
        Some("up") => SyncOp::ShflUp,
        Some("down") => SyncOp::ShflDown,
        Some("bfly") => SyncOp::ShflBfly,
        Some(_) => SyncOp::ShflIdx,
        None => return m.unexpected(),
    };
    let t = m.ty()?;
    m.check(t, &[T::B32])?;
    if i.operands.len() != if sync { 5 } else { 4 } {
        return b.mismatch(i);
    }
    let (d, pred) = two_results(b, i)?;
    let o = &i.operands;
    let from = [
        b.src(i, &o[1], T::B32)?,
        b.src(i, &o[2], T::B32)?,
        b.src(i, &o[3], T::B32)?,
    ];
    let mask = if sync { b.src(i, &o[4], T::B32)? } else { NONE };
    emit(
        b,
        Sync {
            op,
            mask,
            pred,
            ..PLAIN
        },
        d,
        from,
    );
    Ok(())
}

pub(crate) fn vote<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let sync = m.has("sync");
    let op = match m.one_of(&["all", "any", "uni", "ballot"]) {
        Some("all") => SyncOp::VoteAll,
        Some("any") => SyncOp::VoteAny,
        Some("uni") => SyncOp::VoteUni,
        Some(_) => SyncOp::VoteBallot,
        None => return m.unexpected(),
    };
    let t = m.ty()?;
    let ballot = op == SyncOp::VoteBallot;
    m.check(t, if ballot { &[T::B32] } else { &[T::Pred] })?;
    let o = &i.operands;
    if o.len() != if sync { 3 } else { 2 } {
        return b.mismatch(i);
    }
    let (d, pred) = if ballot {
        (b.dst(i, &o[0], T::B32)?, NONE)
    } else {
        (NONE, b.pred_dst(i, &o[0])?)
    };
    let (a, not) = b.pred(i, &o[1])?;
    let mask = if sync { b.src(i, &o[2], T::B32)? } else { NONE };
    emit(
        b,
        Sync {
            op,
            mask,
            pred,
            not,
            wide: false,
        },
        d,
        [a, NONE, NONE],
    );
    Ok(())
}

pub(crate) fn matching<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let op = if m.has("any") {
        SyncOp::MatchAny
    } else if m.has("all") {
        SyncOp::MatchAll
    } else {
        return m.unexpected();
    };
    if !m.has("sync") {
        return m.unexpected();
    }
    let t = m.ty()?;
    m.check(t, &[T::B32, T::B64])?;
    if i.operands.len() != 3 {
        return b.mismatch(i);
    }
    let (d, pred) = two_results(b, i)?;
    let a = b.src(i, &i.operands[1], t)?;
    let mask = b.src(i, &i.operands[2], T::B32)?;
    emit(
        b,
        Sync {
            op,
            mask,
            pred,
            not: false,
            wide: t == T::B64,
        },
        d,
        [a, NONE, NONE],
    );
    Ok(())
}

pub(crate) fn redux<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    if !m.has("sync") {
        return m.unexpected();
    }
    let op = match m.one_of(&["add", "min", "max", "and", "or", "xor"]) {
        Some("add") => AtomicOp::Add,
        Some("min") => AtomicOp::Min,
        Some("max") => AtomicOp::Max,
        Some("and") => AtomicOp::And,
        Some("or") => AtomicOp::Or,
        Some(_) => AtomicOp::Xor,
        None => return m.unexpected(),
    };
    let t = m.ty()?;
    if t == T::F32 {
        return Err(Wrong::Unsupported);
    }
    m.check(
        t,
        if matches!(op, AtomicOp::And | AtomicOp::Or | AtomicOp::Xor) {
            &[T::B32]
        } else {
            &[T::U32, T::S32]
        },
    )?;
    let [d, a, mask] = b.operands(i)?;
    let d = b.dst(i, &d, t)?;
    let a = b.src(i, &a, t)?;
    let mask = b.src(i, &mask, T::B32)?;
    emit(
        b,
        Sync {
            op: SyncOp::Redux(op, t.is_signed()),
            mask,
            ..PLAIN
        },
        d,
        [a, NONE, NONE],
    );
    Ok(())
}

pub(crate) fn activemask<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let t = m.ty()?;
    m.check(t, &[T::B32])?;
    b.hot(i, Op::ActiveMask, &[t])
}

pub(crate) fn elect<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    m.has("sync");
    if i.operands.len() != 2 {
        return b.mismatch(i);
    }
    let (d, pred) = two_results(b, i)?;
    let mask = b.src(i, &i.operands[1], T::B32)?;
    emit(
        b,
        Sync {
            op: SyncOp::Elect,
            mask,
            pred,
            ..PLAIN
        },
        d,
        [NONE; 3],
    );
    Ok(())
}

/// The registers of a fragment.
fn fragment<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    o: &Operand<'a>,
    t: T,
    n: usize,
    to: bool,
) -> Decoded<Vec<Slot>> {
    let single = [o.clone()];
    let parts = match o {
        Operand::Vector(p) => &p[..],
        _ => &single,
    };
    if parts.len() != n {
        return b.mismatch(i);
    }
    let mut out = Vec::new();
    for p in parts {
        let s = if to { b.dst(i, p, t)? } else { b.src(i, p, t)? };
        out.push(s);
    }
    Ok(out)
}

fn matrix<'a>(b: &mut Body<'_, 'a>, x: Matrix, address: [Slot; 2], wide: bool) -> Decoded {
    b.program.matrices.push(x);
    let op = SyncOp::Matrix(b.program.matrices.len() as u32 - 1);
    let mask = b.bits(false, u64::from(u32::MAX))?;
    emit(
        b,
        Sync {
            op,
            mask,
            wide,
            ..PLAIN
        },
        NONE,
        [address[0], address[1], NONE],
    );
    Ok(())
}

fn shape(m: &mut Modifiers<'_>, known: &[(&'static str, [u32; 3])]) -> Option<[u32; 3]> {
    known.iter().find(|(w, _)| m.has(w)).map(|(_, s)| *s)
}

fn float_or_int(m: &Modifiers<'_>, t: T) -> Decoded<u32> {
    Ok(match t {
        T::F16 | T::Bf16 => 16,
        T::Tf32 => 32,
        T::U8 | T::S8 => 8,
        T::F64 => 64,
        _ => return m.unexpected(),
    })
}

pub(crate) fn mma<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Decoded {
    m.has("sync");
    m.has("aligned");
    let known = [
        ("m16n8k16", [16, 8, 16]),
        ("m16n8k8", [16, 8, 8]),
        ("m16n8k4", [16, 8, 4]),
        ("m16n8k32", [16, 8, 32]),
        ("m8n8k4", [8, 8, 4]),
        ("m8n8k16", [8, 8, 16]),
    ];
    let Some(shape) = shape(m, &known) else {
        return Err(Wrong::Unsupported);
    };
    if !m.has("row") || !m.has("col") {
        return Err(Wrong::Unsupported);
    }
    let saturate = m.has("satfinite");
    let (Some(d), Some(x), Some(y), Some(c)) = (
        m.optional_type(),
        m.optional_type(),
        m.optional_type(),
        m.optional_type(),
    ) else {
        m.left.clear();
        return Err(Wrong::Unsupported);
    };
    if !m.left.is_empty() {
        m.left.clear();
        return Err(Wrong::Unsupported);
    }
    let bits = float_or_int(m, x)?;
    // Known combinations only.
    let k = shape[2];
    let good = match x {
        T::F16 => {
            x == y
                && matches!((d, c), (T::F32, T::F32) | (T::F16, T::F16))
                && shape[0] == 16
                && matches!(k, 8 | 16)
        }
        T::Bf16 => x == y && (d, c) == (T::F32, T::F32) && shape[0] == 16 && matches!(k, 8 | 16),
        T::Tf32 => x == y && (d, c) == (T::F32, T::F32) && shape[0] == 16 && matches!(k, 4 | 8),
        T::F64 => {
            x == y
                && (d, c) == (T::F64, T::F64)
                && (shape == [8, 8, 4] || shape[0] == 16 && k <= 16)
        }
        T::U8 | T::S8 => {
            matches!(y, T::U8 | T::S8)
                && (d, c) == (T::S32, T::S32)
                && (shape[0] == 16 && matches!(k, 16 | 32) || shape == [8, 8, 16])
        }
        _ => false,
    };
    if !good || x == T::F64 && shape != [8, 8, 4] {
        return Err(Wrong::Unsupported);
    }
    let per = if bits == 64 { 1 } else { 32 / bits };
    let half_rows = shape[0] / 8;
    let (na, nb) = (
        (half_rows * k / (4 * per)) as usize,
        (k / (4 * per)) as usize,
    );
    let nc = (half_rows * 2) as usize;
    let [od, oa, ob, oc] = b.operands(i)?;
    let element = if bits == 64 { T::B64 } else { T::B32 };
    let (acc, n) = match d {
        T::F16 => (T::B32, nc / 2),
        T::F64 => (T::B64, nc),
        _ => (T::B32, nc),
    };
    let x = Matrix::Multiply {
        shape,
        a: Fragment {
            ty: x,
            regs: fragment(b, i, &oa, element, na, false)?,
        },
        b: Fragment {
            ty: y,
            regs: fragment(b, i, &ob, element, nb, false)?,
        },
        c: Fragment {
            ty: c,
            regs: fragment(b, i, &oc, acc, n, false)?,
        },
        d: Fragment {
            ty: d,
            regs: fragment(b, i, &od, acc, n, true)?,
        },
        saturate,
        opaque: false,
    };
    matrix(b, x, [NONE; 2], false)
}

/// `ldmatrix`, `stmatrix`
pub(crate) fn ldmatrix<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    m.has("sync");
    m.has("aligned");
    if !m.has("m8n8") {
        m.left.clear();
        return Err(Wrong::Unsupported);
    }
    let n = match m.one_of(&["x1", "x2", "x4"]) {
        Some("x2") => 2,
        Some("x4") => 4,
        _ => 1,
    };
    let transposed = m.has("trans");
    let generic = !m.has("shared") && !m.has("shared::cta");
    let t = m.ty()?;
    m.check(t, &[T::B16])?;
    let store = i.name == "stmatrix";
    let [x, y] = b.operands(i)?;
    let (regs, addr) = if store { (y, x) } else { (x, y) };
    let at = b.address(i, &addr)?;
    let regs = fragment(b, i, &regs, T::B32, n, !store)?;
    let slot = super::data::offset_slot(b, &at)?;
    let space = if generic {
        Space::Generic
    } else {
        Space::Shared
    };
    matrix(
        b,
        Matrix::Rows {
            regs,
            transposed,
            store,
            space,
        },
        [slot, NONE],
        at.wide,
    )
}

pub(crate) fn movmatrix<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    m.has("sync");
    m.has("aligned");
    if !m.has("m8n8") || !m.has("trans") {
        return m.unexpected();
    }
    let t = m.ty()?;
    m.check(t, &[T::B16])?;
    let [d, a] = b.operands(i)?;
    let (d, a) = (b.dst(i, &d, T::B32)?, b.src(i, &a, T::B32)?);
    matrix(b, Matrix::Transpose { d, a }, [NONE; 2], false)
}

pub(crate) fn wmma<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Decoded {
    let what = m.next_of(&["load", "store", "mma"]);
    let known = [
        ("m16n16k16", [16, 16, 16]),
        ("m32n8k16", [32, 8, 16]),
        ("m8n32k16", [8, 32, 16]),
    ];
    let Some(shape) = shape(m, &known) else {
        m.left.clear();
        return Err(Wrong::Unsupported);
    };
    let [rows, cols, inner] = shape;
    m.has("sync");
    m.has("aligned");
    if what == Some("mma") {
        let (Some(la), Some(lb)) = (m.next_of(&["row", "col"]), m.next_of(&["row", "col"])) else {
            return m.unexpected();
        };
        // The layouts were handled when the fragments were loaded.
        let _ = (la, lb);
        let saturate = m.has("satfinite");
        let mut types = Vec::new();
        while let Some(t) = m.optional_type() {
            types.push(t);
        }
        let (d, c) = match types[..] {
            [d, c] => (d, c),
            [d, T::F16, T::F16, c] => (d, c),
            _ => return Err(Wrong::Unsupported),
        };
        if !matches!((d, c), (T::F32 | T::F16, T::F32 | T::F16)) {
            return Err(Wrong::Unsupported);
        }
        let [od, oa, ob, oc] = b.operands(i)?;
        let n = |t: T| if t == T::F16 { 4 } else { 8 };
        let x = Matrix::Multiply {
            shape,
            a: Fragment {
                ty: T::F16,
                regs: fragment(b, i, &oa, T::B32, 8, false)?,
            },
            b: Fragment {
                ty: T::F16,
                regs: fragment(b, i, &ob, T::B32, 8, false)?,
            },
            c: Fragment {
                ty: c,
                regs: fragment(b, i, &oc, T::B32, n(c), false)?,
            },
            d: Fragment {
                ty: d,
                regs: fragment(b, i, &od, T::B32, n(d), true)?,
            },
            saturate,
            opaque: true,
        };
        return matrix(b, x, [NONE; 2], false);
    }
    let store = what == Some("store");
    let which = m.next_of(&["a", "b", "c", "d"]);
    let (r, c) = match which {
        Some("a") => (rows, inner),
        Some("b") => (inner, cols),
        Some(_) => (rows, cols),
        None => return m.unexpected(),
    };
    let Some(layout) = m.one_of(&["row", "col"]) else {
        return m.unexpected();
    };
    let space = match m.one_of(&["global", "shared::cta", "shared"]) {
        None => Space::Generic,
        Some("global") => Space::Global,
        Some(_) => Space::Shared,
    };
    let t = m.ty()?;
    let n = match (which, t) {
        (Some("a" | "b"), T::F16) => 8,
        (Some("c" | "d"), T::F16) => 4,
        (Some("c" | "d"), T::F32) => 8,
        _ => return Err(Wrong::Unsupported),
    };
    let o = &i.operands;
    if o.len() != 2 && o.len() != 3 {
        return b.mismatch(i);
    }
    let (regs, addr) = if store {
        (&o[1], &o[0])
    } else {
        (&o[0], &o[1])
    };
    let at = b.address(i, addr)?;
    let regs = fragment(b, i, regs, T::B32, n, !store)?;
    let stride = match o.get(2) {
        Some(s) => b.src(i, s, T::U32)?,
        None => b.bits(false, u64::from(if layout == "row" { c } else { r }))?,
    };
    let slot = super::data::offset_slot(b, &at)?;
    let x = Matrix::Tile {
        fragment: Fragment { ty: t, regs },
        rows: r,
        cols: c,
        by_rows: layout == "row",
        store,
        space,
    };
    matrix(b, x, [slot, stride], at.wide)
}
