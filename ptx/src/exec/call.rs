//! Calls, and branches by a table.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "lane arithmetic truncates and reinterprets by definition"
)]

use super::builtin;
use super::cx::{Cx, SharedMemory};
use super::registers::lanes;
use super::warp::{State, Warp};
use crate::Code;
use crate::program::{Callee, Inst};
use crate::space::{FUNCTION, Fault};

pub(super) fn branch_by_index(
    w: &mut Warp,
    cx: &Cx<'_>,
    i: &Inst,
    m: u32,
) -> Result<(), Box<Fault>> {
    let targets = &cx.program.targets[i.x as usize];
    let index = w.frames[w.frame as usize].regs.r32[i.a as usize];
    let (pc, frame) = (w.pc, w.frame);
    w.mask &= !m;
    w.push(pc, frame, w.mask, State::Ready);
    w.mask = 0;
    for l in lanes(m) {
        let Some(t) = targets.get(index[l] as usize) else {
            return Err(Box::new(Fault::new(
                Code::InvalidPc,
                pc - 1,
                l as u32,
                format!(
                    "index {} of a table of {} branches",
                    index[l],
                    targets.len()
                ),
            )));
        };
        w.push(*t, frame, 1 << l, State::Ready);
    }
    Ok(())
}

pub(super) fn call(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    i: &Inst,
    mut m: u32,
    fuel: &mut u32,
) -> Result<(), Box<Fault>> {
    let c = &cx.program.calls[i.x as usize];
    let function = match c.callee {
        Callee::Function(f) => f,
        Callee::Register(slot) => {
            let a = &w.frames[w.frame as usize].regs.r64[slot as usize];
            let first = m.trailing_zeros();
            let addr = a[first as usize];
            let here = lanes(m)
                .filter(|l| a[*l] == addr)
                .fold(0u32, |x, l| x | 1u32 << l);
            let number = addr.wrapping_sub(FUNCTION);
            let f = number
                .is_multiple_of(16)
                .then_some(number / 16)
                .and_then(|n| cx.program.functions.get(n as usize).map(|f| (n as u32, f)));
            let Some((f, known)) = f.filter(|(_, f)| !f.entry && f.end > f.start) else {
                return Err(Box::new(Fault::new(
                    Code::IllegalInstruction,
                    w.pc - 1,
                    first,
                    format!("call to 0x{addr:x}, which is no function"),
                )));
            };
            if known.params.len() != c.args.len() || known.results.len() < c.results.len() {
                return Err(Box::new(Fault::new(
                    Code::IllegalInstruction,
                    w.pc - 1,
                    first,
                    format!(
                        "call to '{}' with other parameters than its own",
                        known.name
                    ),
                )));
            }
            let others = m & !here;
            if others != 0 {
                // These lanes execute the call again, for their own function.
                let (pc, frame) = (w.pc - 1, w.frame);
                w.mask &= !others;
                w.push(pc, frame, others, State::Ready);
                m = here;
            }
            f
        }
        Callee::Builtin(b) => {
            let used = builtin::call(w, cx, shared, b, i.x, m)?;
            w.burn(fuel, used);
            return Ok(());
        }
    };
    let rows = w.enter(cx, i.x, function, m)?;
    w.burn(fuel, rows);
    Ok(())
}
