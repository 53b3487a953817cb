//! The loop: one instruction of one warp at a time, 32 lanes each.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "lane arithmetic truncates and reinterprets by definition"
)]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_lossless,
    reason = "conversions of lanes round by definition"
)]
#![allow(
    clippy::neg_cmp_op_on_partial_ord,
    clippy::float_cmp,
    reason = "unordered comparisons are what PTX has"
)]
#![allow(
    clippy::inline_always,
    reason = "the loop is instantiated for each set of processor features"
)]

use std::sync::atomic::{Ordering, fence};

use super::atomic::{atomic, copy_async};
use super::call::{branch_by_index, call};
use super::cost;
use super::cx::{Cx, SharedMemory};
use super::lanes::*;
use super::load_store::*;
use super::registers::predicate;
use super::together::{finish_syncs, sync};
use super::warp::{State, Stop, Warp};
use crate::Code;
use crate::number::{canon, f32r, flushed, fma_f32, max_f32, min_f32};
use crate::ops::{Op, with_hot_ops};
use crate::program::{NONE, SyncOp, flag};
use crate::space::{Fault, Halt};

macro_rules! hot_match {
    (($r:ident $i:ident $m:ident $rest:block) $($kind:ident { $($name:ident |$($arg:ident),*| $body:expr;)* })*) => {
        match $i.op {
            $($(Op::$name => $kind($r, $i, $m, #[inline(always)] |$($arg),*| $body),)*)*
            _ => $rest
        }
    };
}

/// Stops the warp at an instruction that has not been executed; `pc` is behind it.
#[cold]
#[inline(never)]
#[allow(
    clippy::boxed_local,
    reason = "it comes in a box, which is opened out of the way of the loop"
)]
fn stop(w: &mut Warp, pc: u32, halt: Box<Halt>) -> Stop {
    w.pc = pc;
    match *halt {
        Halt::Fault(f) => Stop::Fault(Box::new(f)),
        Halt::Again => {
            w.pc -= 1;
            // It must not count twice.
            w.burnt += 1;
            Stop::Slice
        }
    }
}

/// The loop itself. `V3`: the processor has AVX2 and FMA.
#[inline(always)]
pub(crate) fn run_with<const V3: bool>(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    fuel: &mut u32,
) -> Stop {
    if !w.pick() {
        return if w.live == 0 {
            Stop::Exited
        } else {
            Stop::Parked
        };
    }
    let code = &cx.program.code[..];
    let mut regs = std::mem::take(&mut w.frames[w.frame as usize].regs);
    let mut pc = w.pc;
    /// Puts the registers back into their frame, runs `$do`, which may change the group, and takes
    /// out those of the next.
    macro_rules! switch {
        ($do:expr) => {{
            w.pc = pc;
            w.frames[w.frame as usize].regs = regs;
            let r: Result<(), Box<Fault>> = $do;
            if let Err(f) = r {
                return Stop::Fault(f);
            }
            if !w.pick() {
                return if w.live == 0 {
                    Stop::Exited
                } else {
                    Stop::Parked
                };
            }
            regs = std::mem::take(&mut w.frames[w.frame as usize].regs);
            pc = w.pc;
            continue;
        }};
    }
    /// Charges for an instruction that takes as long as `n` others: the clock is read that much
    /// earlier.
    macro_rules! burn {
        ($n:expr) => {
            w.burn(fuel, $n)
        };
    }
    macro_rules! attempt {
        ($do:expr) => {
            if let Err(halt) = $do {
                w.frames[w.frame as usize].regs = regs;
                return stop(w, pc, halt);
            }
        };
    }
    loop {
        if *fuel == 0 {
            w.pc = pc;
            w.frames[w.frame as usize].regs = regs;
            return Stop::Slice;
        }
        *fuel -= 1;
        let i = &code[pc as usize];
        pc += 1;
        let mut m = w.mask;
        if i.guard != NONE {
            let p = regs.p[i.guard as usize];
            m &= if i.w & flag::GUARD_NOT != 0 { !p } else { p };
            if m == 0 {
                if pc >= w.watch {
                    switch!({
                        w.reschedule();
                        Ok(())
                    });
                }
                continue;
            }
        }
        let r = &mut regs;
        with_hot_ops!(hot_match(r i m {
            match i.op {
                Op::Bra => {
                    if m == w.mask && !w.others_wait() {
                        pc = i.x;
                        continue;
                    }
                    w.pc = pc;
                    let frame = w.frame;
                    w.branch(m, i.x);
                    if w.frame != frame {
                        w.frames[frame as usize].regs = regs;
                        regs = std::mem::take(&mut w.frames[w.frame as usize].regs);
                    }
                    pc = w.pc;
                }
                Op::LdGlobal32 => attempt!(load_global32(w, cx, shared, r, i, m, pc, fuel)),
                Op::LdGlobal64 => attempt!(load_global64(w, cx, shared, r, i, m, pc, fuel)),
                Op::StGlobal32 => attempt!(store_global32(w, cx, shared, r, i, m, pc, fuel)),
                Op::StGlobal64 => attempt!(store_global64(w, cx, shared, r, i, m, pc, fuel)),
                Op::LdShared32 => attempt!(load_shared32(w, cx, shared, r, i, m, pc, fuel)),
                Op::StShared32 => attempt!(store_shared32(w, cx, shared, r, i, m, pc, fuel)),
                Op::Memory => attempt!(memory(w, cx, shared, r, i, m, pc, fuel)),
                Op::Param32 => {
                    let at = i.imm as usize;
                    let v = cx.launch.params.get(at..at + 4).map_or(0, |b| u32::from_le_bytes(b.try_into().unwrap_or_default()));
                    put32(r, i.d, m, &[v; 32]);
                }
                Op::Param64 => {
                    let at = i.imm as usize;
                    let v = cx.launch.params.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap_or_default()));
                    put64(r, i.d, m, &[v; 32]);
                }
                Op::AndPred | Op::OrPred | Op::XorPred | Op::NotPred | Op::MovPred => {
                    let a = predicate(&r.p, i.a, i.w, flag::A_NOT);
                    let b = predicate(&r.p, i.b, i.w, flag::B_NOT);
                    let v = match i.op {
                        Op::AndPred => a & b,
                        Op::OrPred => a | b,
                        Op::XorPred => a ^ b,
                        Op::NotPred => !a,
                        _ => a,
                    };
                    let o = &mut r.p[i.d as usize];
                    *o = *o & !m | v & m;
                }
                Op::Selp32 => {
                    let k = expand(predicate(&r.p, i.c, i.w, flag::C_NOT));
                    let (a, b) = (&r.r32[i.a as usize], &r.r32[i.b as usize]);
                    let mut v = [0; 32];
                    for l in 0..32 {
                        v[l] = a[l] & k[l] | b[l] & !k[l];
                    }
                    put32(r, i.d, m, &v);
                }
                Op::Selp64 => {
                    let c = predicate(&r.p, i.c, i.w, flag::C_NOT);
                    let (a, b) = (&r.r64[i.a as usize], &r.r64[i.b as usize]);
                    let mut v = [0; 32];
                    for l in 0..32 {
                        v[l] = if c >> l & 1 != 0 { a[l] } else { b[l] };
                    }
                    put64(r, i.d, m, &v);
                }
                Op::Pack64 => {
                    let (a, b) = (&r.r32[i.a as usize], &r.r32[i.b as usize]);
                    let mut v = [0; 32];
                    for l in 0..32 {
                        v[l] = u64::from(b[l]) << 32 | u64::from(a[l]);
                    }
                    put64(r, i.d, m, &v);
                }
                Op::Pack32 => bin32(r, i, m, |a, b| b << 16 | a & 0xffff),
                Op::Unpack64 => {
                    let a = &r.r64[i.a as usize];
                    let (mut low, mut high) = ([0; 32], [0; 32]);
                    for l in 0..32 {
                        low[l] = a[l] as u32;
                        high[l] = (a[l] >> 32) as u32;
                    }
                    put32(r, i.d, m, &low);
                    put32(r, i.b, m, &high);
                }
                Op::Unpack32 => {
                    let a = r.r32[i.a as usize];
                    put32(r, i.d, m, &a.map(|a| a & 0xffff));
                    put32(r, i.b, m, &a.map(|a| a >> 16));
                }
                Op::ActiveMask => put32(r, i.d, m, &[m; 32]),
                Op::Nop => {}
                Op::Lanes => {
                    burn!(if i.w & flag::SLOW != 0 { cost::SLOW } else { cost::LANES });
                    lane_function(cx, r, i, m);
                }
                Op::LanesTest => {
                    burn!(cost::LANES);
                    lane_test(cx, r, i, m);
                }
                Op::Carry => {
                    burn!(cost::LANES);
                    carry(r, i, m);
                }
                Op::Atomic => attempt!(atomic(w, cx, shared, r, i, m, pc, fuel)),
                Op::CopyAsync => attempt!(copy_async(w, cx, shared, r, i, m, pc, fuel)),
                Op::Fence => {
                    burn!(cost::FENCE);
                    fence(Ordering::SeqCst);
                }
                Op::Sleep => burn!(u32::MAX),
                Op::Clock => {
                    burn!(cost::CLOCK);
                    let t = cx.now();
                    if i.w & flag::D64 != 0 {
                        put64(r, i.d, m, &[t; 32]);
                    } else {
                        put32(r, i.d, m, &[if i.x == 1 { (t >> 32) as u32 } else { t as u32 }; 32]);
                    }
                }
                Op::StackSave => put64(r, i.d, m, &[0; 32]),
                Op::Brx => switch!({
                    burn!(cost::TOGETHER);
                    branch_by_index(w, cx, i, m)
                }),
                Op::Call => switch!(call(w, cx, shared, i, m, fuel)),
                Op::Ret => switch!({
                    burn!(cost::TOGETHER);
                    let words = w.give_back(cx, m);
                    burn!(words);
                    finish_syncs(w, cx, shared)
                }),
                Op::Exit => switch!({
                    burn!(cost::TOGETHER);
                    w.exit(m);
                    finish_syncs(w, cx, shared)
                }),
                Op::Trap => attempt!(Err::<(), _>(Box::new(Halt::Fault(Fault::new(Code::LaunchFailed, pc - 1, m.trailing_zeros(), if i.x == 0 { "trap" } else { "brkpt with no debugger" }))))),
                Op::Sync => switch!({
                    let matrix = matches!(cx.program.syncs[i.x as usize].op, SyncOp::Matrix(_));
                    burn!(if matrix { cost::SLOW } else { cost::TOGETHER });
                    sync(w, cx, shared, i, m, fuel)
                }),
                Op::Bar => switch!({
                    burn!(cost::TOGETHER);
                    let b = &cx.program.barriers[i.x as usize];
                    let id = w.frames[w.frame as usize].regs.r32[b.id as usize][m.trailing_zeros() as usize];
                    w.park(m, pc - 1, State::Bar(id));
                    Ok(())
                }),
                Op::ClusterBar => switch!({
                    burn!(cost::TOGETHER);
                    w.park(m, pc - 1, State::ClusterBar);
                    Ok(())
                }),
                _ => {}
            }
        }));
        if pc >= w.watch {
            switch!({
                w.pc = pc;
                w.reschedule();
                Ok(())
            });
        }
    }
}
