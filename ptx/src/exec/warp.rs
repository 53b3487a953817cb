//! A warp: 32 lanes, the groups that they run in, and their registers.
//!
//! Lanes at the same place run as one group. Of several groups the one in the deepest call, and
//! there at the lowest pc, runs; with the code layout of compilers this reunites them after a
//! branch. Lanes may wait for each other, so a group that was passed over for too long gets a turn.

use super::cx::Cx;
use super::registers::{Local, ROWS, Regs, Row, lanes};
use crate::Code;
use crate::program::{Inst, Place, Program, SyncOp};
use crate::space::Fault;

/// Backward branches taken while other groups wait, before those get a turn.
const BRANCHES_BEFORE_TURN: u32 = 256;
/// Instructions of such a turn.
const INSTRUCTIONS_OF_TURN: u32 = 128;
/// Most bytes of a thread's local memory, with the arguments of all calls: the hardware's limit,
/// rounded up as it grows.
const LOCAL_LIMIT: usize = 1 << 20;

/// An activation of a function.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) function: u32,
    pub(crate) regs: Regs,
    /// Start of its bytes in local memory.
    pub(crate) base: u32,
    pub(crate) parent: u32,
    pub(crate) return_pc: u32,
    /// Index of the call, for the results.
    pub(crate) call: u32,
    /// Lanes in it, or in functions it has called.
    pub(crate) lanes: u32,
    pub(crate) depth: u32,
    /// Stack used by it and its callers.
    pub(crate) stack: u32,
}

impl Frame {
    /// A frame with no registers yet.
    fn new(cx: &Cx<'_>, function: u32) -> Self {
        let f = &cx.program.functions[function as usize];
        Self {
            function,
            regs: Regs {
                r32: Vec::with_capacity(f.n32 as usize),
                r64: Vec::with_capacity(f.n64 as usize),
                p: vec![0; f.np as usize],
                cc: 0,
            },
            base: 0,
            parent: 0,
            return_pc: 0,
            call: 0,
            lanes: 0,
            depth: 0,
            stack: 0,
        }
    }

    /// Makes some more registers. True: all exist.
    fn grow(&mut self, cx: &Cx<'_>) -> bool {
        let f = &cx.program.functions[self.function as usize];
        let (n32, n64) = (f.n32 as usize, f.n64 as usize);
        let r = &mut self.regs;
        if r.r32.len() < n32 {
            r.r32.resize(n32.min(r.r32.len() + ROWS), Row([0; 32]));
        } else {
            r.r64.resize(n64.min(r.r64.len() + ROWS), Row([0; 32]));
        }
        r.r32.len() == n32 && r.r64.len() == n64
    }
}

/// The condition that a group waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    /// The other lanes of the mask.
    Sync(u32),
    /// A barrier of the block.
    Bar(u32),
    ClusterBar,
}

/// Lanes at one place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    pub(crate) pc: u32,
    pub(crate) frame: u32,
    pub(crate) mask: u32,
    pub(crate) state: State,
    /// The time at which it began to wait.
    pub(crate) since: u64,
}

/// Lanes at an instruction that they execute together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Member {
    pub(crate) pc: u32,
    pub(crate) frame: u32,
    pub(crate) mask: u32,
}

/// The reasons why a warp stops.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Its share of instructions is used up.
    Slice,
    /// No group can run.
    Parked,
    Exited,
    Fault(Box<Fault>),
}

/// A warp.
#[derive(Debug)]
pub(crate) struct Warp {
    pub(crate) index: u32,
    pub(crate) live: u32,
    /// Lanes of the running group; 0: none runs.
    pub(crate) mask: u32,
    pub(crate) pc: u32,
    pub(crate) frame: u32,
    /// A pc at which to look for another group.
    pub(crate) watch: u32,
    pub(crate) groups: Vec<Group>,
    pub(crate) frames: Vec<Frame>,
    pub(crate) free: Vec<u32>,
    /// Frames under construction.
    growing: Vec<Frame>,
    /// Local memory: one word of all lanes after the other.
    pub(crate) local: Local,
    /// Rows that it will have, already charged to the quota.
    wanted: usize,
    pub(crate) hit: usize,
    /// Fuel used beyond one per instruction.
    pub(crate) burnt: u32,
    spins: u32,
    turn: u32,
    now: u64,
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Warp {
    /// A warp with no registers: see [`Self::build`].
    pub(crate) fn new(index: u32) -> Self {
        Self {
            index,
            live: 0,
            mask: 0,
            pc: 0,
            frame: 0,
            watch: u32::MAX,
            groups: Vec::new(),
            frames: Vec::new(),
            free: Vec::new(),
            growing: Vec::new(),
            local: Local::default(),
            wanted: 0,
            hit: 0,
            burnt: 0,
            spins: 0,
            turn: 0,
            now: 0,
        }
    }

    /// Makes registers for a limited time. True: the kernel has all it needs.
    pub(crate) fn build(&mut self, cx: &Cx<'_>) -> bool {
        if self.frames.is_empty() {
            self.frames.push(Frame::new(cx, cx.kernel));
        }
        let first = &mut self.frames[0];
        if !first.grow(cx) {
            return false;
        }
        let words = cx.program.functions[cx.kernel as usize].frame.div_ceil(4);
        if !self.local.grow(words as usize) {
            return false;
        }
        let first = &mut self.frames[0];
        cx.fill(&mut first.regs, cx.kernel, self.index, [0; 3], 0);
        true
    }

    /// Bytes that a warp of this kernel needs before it calls anything.
    pub(crate) fn bytes(program: &Program, function: u32) -> u64 {
        let f = &program.functions[function as usize];
        u64::from(f.n32) * 128 + u64::from(f.n64) * 256 + u64::from(f.frame) * 32
    }

    /// Restarts it for another block.
    pub(crate) fn start(&mut self, cx: &Cx<'_>, ctaid: [u32; 3]) {
        let threads = cx.threads();
        let first = self.index * 32;
        let n = (threads - first).min(32);
        self.live = if n == 32 { u32::MAX } else { (1 << n) - 1 };
        self.groups.clear();
        self.free.clear();
        self.free
            .extend(1..u32::try_from(self.frames.len()).unwrap_or(1));
        (self.frame, self.mask, self.watch, self.turn, self.spins) = (0, self.live, u32::MAX, 0, 0);
        self.pc = cx.program.functions[cx.kernel as usize].start;
        let f = &mut self.frames[0];
        f.lanes = self.live;
        cx.refill(&mut f.regs, cx.kernel, self.index, ctaid);
    }

    /// Charges `n` units of fuel for an operation slower than one instruction.
    #[inline(always)]
    pub(crate) fn burn(&mut self, fuel: &mut u32, n: u32) {
        let n = n.min(*fuel);
        *fuel -= n;
        self.burnt += n;
    }

    /// Whether another group could run.
    pub(crate) fn others_wait(&self) -> bool {
        !self.groups.is_empty()
    }

    /// Sets lanes aside; they join a group that waits at the same place for the same condition.
    pub(crate) fn push(&mut self, pc: u32, frame: u32, mask: u32, state: State) {
        if mask == 0 {
            return;
        }
        self.now += 1;
        match self
            .groups
            .iter_mut()
            .find(|g| g.pc == pc && g.frame == frame && g.state == state)
        {
            Some(g) => g.mask |= mask,
            None => self.groups.push(Group {
                pc,
                frame,
                mask,
                state,
                since: self.now,
            }),
        }
    }

    /// Sets the running group aside and resumes the next one.
    pub(crate) fn reschedule(&mut self) -> bool {
        if self.turn > 1 && self.mask != 0 {
            self.turn -= 1;
            return true;
        }
        self.turn = 0;
        let (pc, frame, mask) = (self.pc, self.frame, std::mem::take(&mut self.mask));
        self.push(pc, frame, mask, State::Ready);
        self.pick()
    }

    /// Keeps the running group; without one, takes the deepest and lowest that is ready.
    pub(crate) fn pick(&mut self) -> bool {
        if self.mask == 0 {
            self.turn = 0;
            let best = (0..self.groups.len())
                .filter(|k| self.groups[*k].state == State::Ready)
                .min_by_key(|k| {
                    let g = &self.groups[*k];
                    (
                        u32::MAX - self.frames[g.frame as usize].depth,
                        g.pc,
                        g.frame,
                    )
                });
            let Some(best) = best else { return false };
            let g = self.groups.swap_remove(best);
            (self.pc, self.frame, self.mask) = (g.pc, g.frame, g.mask);
        }
        self.look();
        true
    }

    /// Finds the pc at which the running group meets the next one.
    fn look(&mut self) {
        if self.turn > 0 {
            self.watch = 0;
            return;
        }
        let depth = self.frames[self.frame as usize].depth;
        let waiting = self
            .groups
            .iter()
            .filter(|g| g.state == State::Ready && self.frames[g.frame as usize].depth == depth);
        self.watch = waiting.map(|g| g.pc).min().unwrap_or(u32::MAX);
    }

    /// Some lanes branch to `target`, the others go on at `self.pc`.
    #[inline]
    pub(crate) fn branch(&mut self, taken: u32, target: u32) -> bool {
        let rest = self.mask & !taken;
        let backward = target < self.pc;
        if rest == 0 {
            self.pc = target;
        } else {
            let (low, high) = if backward {
                ((target, taken), (self.pc, rest))
            } else {
                ((self.pc, rest), (target, taken))
            };
            self.push(high.0, self.frame, high.1, State::Ready);
            (self.pc, self.mask) = low;
            self.look();
        }
        if backward && self.others_wait() {
            self.spins += 1;
            if self.spins >= BRANCHES_BEFORE_TURN {
                self.spins = 0;
                return self.give_turn();
            }
        }
        true
    }

    /// Resumes the group that has waited longest.
    fn give_turn(&mut self) -> bool {
        let Some(k) = (0..self.groups.len())
            .filter(|k| self.groups[*k].state == State::Ready)
            .min_by_key(|k| self.groups[*k].since)
        else {
            return true;
        };
        let g = self.groups.swap_remove(k);
        let (pc, frame, mask) = (self.pc, self.frame, self.mask);
        self.push(pc, frame, mask, State::Ready);
        (self.pc, self.frame, self.mask) = (g.pc, g.frame, g.mask);
        self.turn = INSTRUCTIONS_OF_TURN;
        self.watch = 0;
        true
    }

    /// Removes lanes from the running group and lets them wait at `pc`.
    pub(crate) fn park(&mut self, mask: u32, pc: u32, state: State) {
        let frame = self.frame;
        self.mask &= !mask;
        if self.mask != 0 {
            // The others go on after the instruction.
            let (pc, rest) = (self.pc, std::mem::take(&mut self.mask));
            self.push(pc, frame, rest, State::Ready);
        }
        self.push(pc, frame, mask, state);
    }

    /// Ends lanes.
    pub(crate) fn exit(&mut self, mask: u32) {
        self.live &= !mask;
        self.mask &= !mask;
        let mut at = self.frame;
        loop {
            let f = &mut self.frames[at as usize];
            f.lanes &= !mask;
            let (parent, depth, empty) = (f.parent, f.depth, f.lanes == 0);
            if depth == 0 {
                break;
            }
            if empty {
                self.free.push(at);
            }
            at = parent;
        }
    }

    /// Returns lanes from their function, or ends them if it is the kernel. Returns the number of
    /// words of results.
    pub(crate) fn give_back(&mut self, cx: &Cx<'_>, mask: u32) -> u32 {
        let f = &self.frames[self.frame as usize];
        if f.depth == 0 {
            self.exit(mask);
            return 0;
        }
        let mut words = 0;
        let (parent, pc, call, function) = (f.parent, f.return_pc, f.call, f.function);
        for (from, to) in cx.program.functions[function as usize]
            .results
            .iter()
            .zip(&cx.program.calls[call as usize].results)
        {
            words += self.copy(self.frame, *from, parent, *to, mask);
        }
        self.mask &= !mask;
        let f = &mut self.frames[self.frame as usize];
        f.lanes &= !mask;
        if f.lanes == 0 {
            self.free.push(self.frame);
        }
        self.push(pc, parent, mask, State::Ready);
        words
    }

    /// The running group calls `function`; it goes on at `self.pc` afterwards. Returns the cost in
    /// rows of registers written.
    pub(crate) fn enter(
        &mut self,
        cx: &Cx<'_>,
        call: u32,
        function: u32,
        mask: u32,
    ) -> Result<u32, Box<Fault>> {
        let f = &cx.program.functions[function as usize];
        let caller = &self.frames[self.frame as usize];
        let base = caller.base
            + cx.program.functions[caller.function as usize]
                .frame
                .next_multiple_of(16);
        let stack = caller.stack + f.locals.next_multiple_of(16) + 16;
        let (depth, parent) = (caller.depth + 1, self.frame);
        let lane = mask.trailing_zeros();
        if stack > cx.stack || depth > cx.depth {
            return Err(Box::new(Fault::new(
                Code::IllegalAddress,
                self.pc - 1,
                lane,
                format!("the stack of {} bytes a thread is used up", cx.stack),
            )));
        }
        let mut rows = count(self.free.len() / 32);
        let words = (base + f.frame).div_ceil(4) as usize;
        if self.local.len() < words {
            let all = words.next_power_of_two();
            let more = all - self.local.len();
            if all * 4 > LOCAL_LIMIT || self.wanted < all && !cx.take_memory(more as u64 * 128) {
                return Err(Box::new(Fault::new(
                    Code::IllegalAddress,
                    self.pc - 1,
                    lane,
                    "the memory for stacks is used up",
                )));
            }
            self.wanted = all;
            if !self.local.grow(all) {
                return Ok(self.again(mask));
            }
            rows += count(ROWS);
        }
        let at = match self
            .free
            .iter()
            .rposition(|k| self.frames[*k as usize].function == function)
        {
            Some(k) => self.free.swap_remove(k),
            None => {
                let begun = self.growing.iter().position(|g| g.function == function);
                let mut new = match begun {
                    Some(k) => self.growing.swap_remove(k),
                    None => {
                        if !cx.take_memory(Self::bytes(cx.program, function)) {
                            return Err(Box::new(Fault::new(
                                Code::IllegalAddress,
                                self.pc - 1,
                                lane,
                                "the memory for stacks is used up",
                            )));
                        }
                        Frame::new(cx, function)
                    }
                };
                if !new.grow(cx) {
                    self.growing.push(new);
                    return Ok(self.again(mask));
                }
                rows += f.n32 + f.n64;
                self.frames.push(new);
                u32::try_from(self.frames.len() - 1).unwrap_or(u32::MAX)
            }
        };
        let new = &mut self.frames[at as usize];
        (new.base, new.parent, new.return_pc, new.call) = (base, parent, self.pc, call);
        (new.lanes, new.depth, new.stack) = (mask, depth, stack);
        new.regs.cc = 0;
        let ctaid = cx.ctaid.get();
        cx.fill(&mut new.regs, function, self.index, ctaid, base);
        rows += count(f.constants.len());
        let c = &cx.program.calls[call as usize];
        for (from, to) in c.args.iter().zip(&f.params) {
            rows += self.copy(parent, *from, at, *to, mask);
        }
        self.mask &= !mask;
        if self.mask != 0 {
            let (pc, rest) = (self.pc, std::mem::take(&mut self.mask));
            self.push(pc, parent, rest, State::Ready);
        }
        (self.frame, self.mask, self.pc) = (at, mask, f.start);
        self.look();
        Ok(rows)
    }

    /// Lets these lanes execute the call again, after a reading of the clock.
    fn again(&mut self, mask: u32) -> u32 {
        let rest = self.mask & !mask;
        self.push(self.pc, self.frame, rest, State::Ready);
        (self.mask, self.pc) = (mask, self.pc - 1);
        self.look();
        u32::MAX
    }

    /// Copies an argument or a result between two frames. Returns the cost in rows.
    fn copy(&mut self, from_frame: u32, from: Place, to_frame: u32, to: Place, mask: u32) -> u32 {
        if let (Place::Frame { at: a, size: n }, Place::Frame { at: b, size: m }) = (from, to) {
            let a = (self.frames[from_frame as usize].base + a) / 4;
            let b = (self.frames[to_frame as usize].base + b) / 4;
            let words = n.min(m).div_ceil(4);
            for k in 0..words {
                let row = self.local[(a + k) as usize];
                let to = &mut self.local[(b + k) as usize];
                for l in lanes(mask) {
                    to[l] = row[l];
                }
            }
            return words.saturating_mul(4);
        }
        for l in lanes(mask) {
            let v = self.get(from_frame, from, l);
            self.put(to_frame, to, l, v);
        }
        8
    }

    /// Up to eight bytes of an argument.
    pub(crate) fn get(&self, frame: u32, place: Place, lane: usize) -> u64 {
        let f = &self.frames[frame as usize];
        match place {
            Place::R32(s) => u64::from(f.regs.r32[s as usize][lane]),
            Place::R64(s) => f.regs.r64[s as usize][lane],
            Place::Pred(s) => u64::from(f.regs.p[s as usize] >> lane & 1),
            Place::Frame { at, size } => {
                let w = ((f.base + at) / 4) as usize;
                let high = if size > 4 {
                    u64::from(self.local[w + 1][lane])
                } else {
                    0
                };
                high << 32 | u64::from(self.local[w][lane])
            }
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "the halves of a word")]
    pub(crate) fn put(&mut self, frame: u32, place: Place, lane: usize, v: u64) {
        let f = &mut self.frames[frame as usize];
        match place {
            Place::R32(s) => f.regs.r32[s as usize][lane] = v as u32,
            Place::R64(s) => f.regs.r64[s as usize][lane] = v,
            Place::Pred(s) => {
                f.regs.p[s as usize] =
                    f.regs.p[s as usize] & !(1 << lane) | ((v & 1) as u32) << lane
            }
            Place::Frame { at, size } => {
                let w = ((f.base + at) / 4) as usize;
                self.local[w][lane] = v as u32;
                if size > 4 {
                    self.local[w + 1][lane] = (v >> 32) as u32;
                }
            }
        }
    }

    /// The groups of a complete meeting, if there is one: indices of [`Self::groups`].
    pub(crate) fn complete(&self, program: &Program) -> Option<Vec<usize>> {
        let kind = |g: &Group| kind_of(program, &program.code[g.pc as usize]);
        for g in &self.groups {
            let State::Sync(mask) = g.state else { continue };
            let with: Vec<usize> = (0..self.groups.len())
                .filter(|k| self.groups[*k].state == g.state && kind(&self.groups[*k]) == kind(g))
                .collect();
            let there = with.iter().fold(0, |m, k| m | self.groups[*k].mask);
            if mask & self.live & !there == 0 {
                return Some(with);
            }
        }
        None
    }

    /// The positions of the lanes, for messages.
    pub(crate) fn describe(&self, program: &Program) -> String {
        let at = |pc: u32| program.lines.get(pc as usize).copied().unwrap_or(0);
        let mut parts: Vec<String> = self
            .groups
            .iter()
            .take(4)
            .map(|g| {
                let what = match g.state {
                    State::Ready => "ready".to_string(),
                    State::Sync(m) => format!("waiting for the lanes {m:08x}"),
                    State::Bar(b) => format!("at barrier {b}"),
                    State::ClusterBar => "at the barrier of the cluster".to_string(),
                };
                format!("lanes {:08x} at line {} {what}", g.mask, at(g.pc))
            })
            .collect();
        if self.mask != 0 {
            parts.push(format!("lanes {:08x} at line {}", self.mask, at(self.pc)));
        }
        format!("warp {}: {}", self.index, parts.join(", "))
    }
}

/// The kind of an instruction that lanes execute together.
pub(crate) fn kind_of(program: &Program, i: &Inst) -> SyncOp {
    program.syncs[i.x as usize].op
}
