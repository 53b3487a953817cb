//! Instructions that the lanes of a warp execute together: shuffles, votes, matrices.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "lane arithmetic truncates and reinterprets by definition"
)]

use std::sync::atomic::{Ordering, fence};

use super::atomic::combine;
use super::cx::{Cx, SharedMemory};
use super::lanes::operand;
use super::matrix::matrix_is_there;
use super::registers::{lanes, predicate};
use super::warp::{Member, State, Warp};
use crate::program::{Inst, NONE, SyncOp};
use crate::space::Fault;
use crate::types::Type;

pub(super) fn sync(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    i: &Inst,
    mut m: u32,
    fuel: &mut u32,
) -> Result<(), Box<Fault>> {
    if !matrix_is_there(w, cx, i, m, fuel) {
        // The same lanes execute the instruction again, which must not count twice.
        w.pc -= 1;
        w.burnt += 1;
        return Ok(());
    }
    let s = &cx.program.syncs[i.x as usize];
    let (pc, frame) = (w.pc - 1, w.frame);
    let mut want = m;
    if s.mask != NONE {
        let masks = &w.frames[frame as usize].regs.r32[s.mask as usize];
        want = masks[m.trailing_zeros() as usize];
        let here = lanes(m)
            .filter(|l| masks[*l] == want)
            .fold(0u32, |x, l| x | 1u32 << l);
        // Lanes with another mask meet separately: they execute the instruction again.
        let others = m & !here;
        w.mask &= !others;
        w.push(pc, frame, others, State::Ready);
        m = here;
    }
    if want & w.live & !m == 0 {
        return together(w, cx, shared, &[Member { pc, frame, mask: m }]);
    }
    w.park(m, pc, State::Sync(want));
    finish_syncs(w, cx, shared)
}

/// Executes the meetings that are complete, after lanes parked or ended.
pub(super) fn finish_syncs(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
) -> Result<(), Box<Fault>> {
    while let Some(mut which) = w.complete(cx.program) {
        let members: Vec<Member> = which
            .iter()
            .map(|k| &w.groups[*k])
            .map(|g| Member {
                pc: g.pc,
                frame: g.frame,
                mask: g.mask,
            })
            .collect();
        which.sort_unstable();
        for k in which.iter().rev() {
            w.groups.swap_remove(*k);
        }
        together(w, cx, shared, &members)?;
        for x in members {
            w.push(x.pc + 1, x.frame, x.mask, State::Ready);
        }
    }
    Ok(())
}

/// Executes an instruction for all members as one.
fn together(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    members: &[Member],
) -> Result<(), Box<Fault>> {
    let inst = |x: &Member| &cx.program.code[x.pc as usize];
    let info = |x: &Member| &cx.program.syncs[inst(x).x as usize];
    let op = info(&members[0]).op;
    if let SyncOp::Matrix(_) = op {
        return super::matrix::execute(w, cx, shared, members);
    }
    let all = members.iter().fold(0, |m, x| m | x.mask);
    let mut a = [0u64; 32];
    let mut b = [0u32; 32];
    let mut c = [0u32; 32];
    for x in members {
        let (i, s, r) = (inst(x), info(x), &w.frames[x.frame as usize].regs);
        let vote = matches!(
            op,
            SyncOp::VoteAll | SyncOp::VoteAny | SyncOp::VoteUni | SyncOp::VoteBallot
        );
        for l in lanes(x.mask) {
            a[l] = if vote {
                u64::from(predicate(&r.p, i.a, u16::from(s.not), 1) >> l & 1)
            } else {
                operand(r, i.a, s.wide, l)
            };
            b[l] = operand(r, i.b, false, l) as u32;
            c[l] = operand(r, i.c, false, l) as u32;
        }
    }
    let mut out = [0u64; 32];
    let mut p = 0u32;
    match op {
        SyncOp::BarWarp => fence(Ordering::AcqRel),
        SyncOp::ShflUp | SyncOp::ShflDown | SyncOp::ShflBfly | SyncOp::ShflIdx => {
            for l in lanes(all) {
                let (seg, clamp) = (c[l] >> 8 & 31, c[l] & 31);
                let (lane, by) = (l as u32, b[l] & 31);
                let max = lane & seg | clamp & !seg;
                let (j, ok) = match op {
                    SyncOp::ShflUp => (
                        lane.wrapping_sub(by),
                        lane.wrapping_sub(by) as i32 >= max as i32,
                    ),
                    SyncOp::ShflDown => (lane + by, lane + by <= max),
                    SyncOp::ShflBfly => (lane ^ by, lane ^ by <= max),
                    _ => (by & !seg | lane & seg, (by & !seg | lane & seg) <= max),
                };
                let j = if ok { (j & 31) as usize } else { l };
                p |= u32::from(ok) << l;
                out[l] = if all >> j & 1 != 0 {
                    a[j]
                } else {
                    inactive(w, cx, members, l, j)
                };
            }
        }
        SyncOp::VoteAll | SyncOp::VoteAny | SyncOp::VoteUni | SyncOp::VoteBallot => {
            let ballot = lanes(all).fold(0u32, |m, l| m | (a[l] as u32) << l);
            let yes = match op {
                SyncOp::VoteAll => ballot == all,
                SyncOp::VoteAny => ballot != 0,
                _ => ballot == all || ballot == 0,
            };
            p = if yes { u32::MAX } else { 0 };
            out = [u64::from(ballot); 32];
        }
        SyncOp::MatchAny => {
            for l in lanes(all) {
                out[l] = u64::from(
                    lanes(all)
                        .filter(|j| a[*j] == a[l])
                        .fold(0u32, |m, j| m | 1u32 << j),
                );
            }
        }
        SyncOp::MatchAll => {
            let first = a[all.trailing_zeros() as usize & 31];
            let same = lanes(all).all(|l| a[l] == first);
            p = if same { u32::MAX } else { 0 };
            out = [if same { u64::from(all) } else { 0 }; 32];
        }
        SyncOp::Redux(op, signed) => {
            let ty = if signed { Type::S32 } else { Type::U32 };
            let v = lanes(all)
                .map(|l| a[l])
                .reduce(|x, y| combine(op, ty, x, y, 0))
                .unwrap_or(0);
            out = [v; 32];
        }
        SyncOp::Elect => {
            let leader = all.trailing_zeros();
            p = 1 << (leader & 31);
            out = [u64::from(leader); 32];
        }
        SyncOp::Matrix(_) => {}
    }
    for x in members {
        let (i, s) = (*inst(x), info(x));
        let r = &mut w.frames[x.frame as usize].regs;
        if i.d != NONE {
            for l in lanes(x.mask) {
                r.r32[i.d as usize][l] = out[l] as u32;
            }
        }
        if s.pred != NONE {
            let o = &mut r.p[s.pred as usize];
            *o = *o & !x.mask | p & x.mask;
        }
    }
    Ok(())
}

/// The value that a shuffle reads from a lane that does not take part: the contents of its
/// register.
fn inactive(w: &Warp, cx: &Cx<'_>, members: &[Member], lane: usize, from: usize) -> u64 {
    let own = members.iter().find(|x| x.mask >> lane & 1 != 0);
    own.map_or(0, |x| {
        operand(
            &w.frames[x.frame as usize].regs,
            cx.program.code[x.pc as usize].a,
            false,
            from,
        )
    })
}
