//! The executor's loop: one instruction of one warp at a time, 32 lanes each.
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

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use crate::Code;
use crate::environment::Environment;
use crate::memory::{Bytes, Word};
use crate::number::{canon, f32r, flushed, fma_f32, max_f32, min_f32};
use crate::ops::{Op, with_hot_ops};
use crate::program::{AtomicOp, Callee, Inst, Memory, NONE, Program, Special, SyncOp, Value, flag};
use crate::quota::Charge;
use crate::space::{FUNCTION, Fault, LOCAL, Lead, Region, lead, region};
use crate::types::{Space, Type};
use crate::warp::{Regs, State, Stop, Warp, lanes, predicate};

/// Slots that a function's frames begin with, their values known.
#[derive(Debug, Default)]
pub(crate) struct Start {
    pub(crate) r32: Vec<(u16, u32)>,
    pub(crate) r64: Vec<(u16, u64)>,
    /// Those that differ between lanes, warps, blocks or frames.
    pub(crate) varying: Vec<(u16, bool, Value)>,
    /// Of these the ones that another block has another value of.
    pub(crate) of_block: Vec<(u16, bool, Special)>,
}

/// What all blocks of a launch share.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) program: &'a Program,
    pub(crate) kernel: u32,
    pub(crate) regions: &'a [Arc<Region>],
    pub(crate) params: &'a [u8],
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) cluster: [u32; 3],
    /// Of each function.
    pub(crate) starts: &'a [Start],
    pub(crate) shared: u32,
    pub(crate) dynamic_shared: u32,
    /// Bytes of stack a thread may use.
    pub(crate) stack: u32,
    /// Calls within calls.
    pub(crate) depth: u32,
    /// For blocks and their stacks.
    pub(crate) memory: &'a Charge,
    pub(crate) environment: &'a Environment,
    /// Of the grid-wide barrier.
    pub(crate) workspace: u64,
    pub(crate) grid_id: u64,
    pub(crate) workers: u32,
    pub(crate) since: Instant,
    pub(crate) wide_vectors: bool,
}

/// What a worker runs its blocks with.
#[derive(Debug)]
pub(crate) struct Cx<'a> {
    pub(crate) launch: &'a Launch<'a>,
    pub(crate) program: &'a Program,
    pub(crate) kernel: u32,
    pub(crate) stack: u32,
    pub(crate) depth: u32,
    pub(crate) worker: u32,
    /// The block in hand.
    pub(crate) ctaid: Cell<[u32; 3]>,
    clock: Cell<u64>,
}

/// The memory of a block, and of the others of its cluster.
#[derive(Debug, Clone)]
pub(crate) struct SharedMemory {
    pub(crate) own: Arc<Bytes>,
    pub(crate) cluster: Arc<Vec<Arc<Bytes>>>,
}

impl<'a> Cx<'a> {
    /// `clock`: what the last one ended with.
    pub(crate) fn new(launch: &'a Launch<'a>, worker: u32, clock: u64) -> Self {
        Self {
            launch,
            program: launch.program,
            kernel: launch.kernel,
            stack: launch.stack,
            depth: launch.depth,
            worker,
            ctaid: Cell::default(),
            clock: Cell::new(clock),
        }
    }

    pub(crate) fn clock(&self) -> u64 {
        self.clock.get()
    }

    pub(crate) fn threads(&self) -> u32 {
        self.launch.block.iter().product()
    }

    /// The thread of a lane.
    pub(crate) fn thread(&self, warp: u32, lane: u32) -> [u32; 3] {
        let [bx, by, _] = self.launch.block;
        let t = warp * 32 + lane;
        [t % bx, t / bx % by, t / bx / by]
    }

    /// Whether so much more memory may be used.
    pub(crate) fn take_memory(&self, bytes: u64) -> bool {
        self.launch.memory.grow(bytes)
    }

    /// Nanoseconds since the launch, always rising.
    fn now(&self) -> u64 {
        let t = u64::try_from(self.launch.since.elapsed().as_nanos())
            .unwrap_or(u64::MAX)
            .max(self.clock.get() + 1);
        self.clock.set(t);
        t
    }

    /// Sets what differs between blocks in a frame that has been filled before.
    pub(crate) fn refill(&self, regs: &mut Regs, function: u32, warp: u32, ctaid: [u32; 3]) {
        for (slot, wide, special) in &self.launch.starts[function as usize].of_block {
            let row = self.special(*special, warp, ctaid);
            if *wide {
                *regs.r64[*slot as usize] = row.map(u64::from);
            } else {
                *regs.r32[*slot as usize] = row;
            }
        }
    }

    /// Sets the constants and special registers of a frame.
    pub(crate) fn fill(
        &self,
        regs: &mut Regs,
        function: u32,
        warp: u32,
        ctaid: [u32; 3],
        base: u32,
    ) {
        let s = &self.launch.starts[function as usize];
        for (slot, v) in &s.r32 {
            *regs.r32[*slot as usize] = [*v; 32];
        }
        for (slot, v) in &s.r64 {
            *regs.r64[*slot as usize] = [*v; 32];
        }
        for (slot, wide, value) in &s.varying {
            let row: [u32; 32] = match value {
                Value::Special(special) => self.special(*special, warp, ctaid),
                Value::Frame(at) => [base.wrapping_add(*at); 32],
                Value::FrameGeneric(at) => {
                    *regs.r64[*slot as usize] = [LOCAL + u64::from(base) + u64::from(*at); 32];
                    continue;
                }
                _ => [0; 32],
            };
            if *wide {
                *regs.r64[*slot as usize] = row.map(u64::from);
            } else {
                *regs.r32[*slot as usize] = row;
            }
        }
    }

    fn special(&self, s: Special, warp: u32, ctaid: [u32; 3]) -> [u32; 32] {
        let l = self.launch;
        let [bx, by, _] = l.block;
        let rank = |c: [u32; 3]| {
            let k = |d: usize| c[d] % l.cluster[d];
            k(0) + l.cluster[0] * (k(1) + l.cluster[1] * k(2))
        };
        let each = |f: &dyn Fn(u32) -> u32| std::array::from_fn(|i| f(i as u32));
        match s {
            Special::Tid(d) => each(&|i| {
                let t = warp * 32 + i;
                match d {
                    0 => t % bx,
                    1 => t / bx % by,
                    _ => t / bx / by,
                }
            }),
            Special::LaneId => each(&|i| i),
            Special::LaneMask(which) => each(&|i| {
                let eq = 1u32 << i;
                match which {
                    "eq" => eq,
                    "lt" => eq - 1,
                    "le" => eq | (eq - 1),
                    "gt" => !(eq | (eq - 1)),
                    _ => !(eq - 1),
                }
            }),
            Special::Ntid(d) => [l.block[d]; 32],
            Special::Ctaid(d) => [ctaid[d]; 32],
            Special::Nctaid(d) => [l.grid[d]; 32],
            Special::WarpId => [warp; 32],
            Special::NWarpId => [64; 32],
            Special::SmId => [self.worker; 32],
            Special::NSmId => [l.workers; 32],
            Special::GridId => [l.grid_id as u32; 32],
            Special::DynamicShared => [l.dynamic_shared; 32],
            Special::TotalShared => [l.shared; 32],
            Special::EnvReg(1) => [(l.workspace >> 32) as u32; 32],
            Special::EnvReg(2) => [l.workspace as u32; 32],
            Special::EnvReg(_) => [0; 32],
            Special::ClusterId(d) => [ctaid[d] / l.cluster[d]; 32],
            Special::NClusterId(d) => [l.grid[d] / l.cluster[d]; 32],
            Special::ClusterCtaId(d) => [ctaid[d] % l.cluster[d]; 32],
            Special::ClusterNctaId(d) => [l.cluster[d]; 32],
            Special::ClusterCtaRank => [rank(ctaid); 32],
            Special::ClusterNctaRank => [l.cluster.iter().product(); 32],
        }
    }

    /// Where an access of `size` bytes leads, checked.
    pub(crate) fn access<'s>(
        &'s self,
        shared: &'s SharedMemory,
        at: &mut Hit<'_>,
        what: &Access,
        addr: u64,
    ) -> Result<Target<'s>, Box<Fault>> {
        let fault = |code, why: &str| {
            let verb = if what.write { "write" } else { "read" };
            let space = match what.space {
                Space::Generic => "",
                Space::Global => " of global memory",
                Space::Shared => " of shared memory",
                Space::Local => " of local memory",
                Space::Const => " of constant memory",
                _ => " of parameters",
            };
            Err(Box::new(Fault::new(
                code,
                what.pc,
                what.lane,
                format!("{verb} of {} bytes{space} at 0x{addr:x}: {why}", what.size),
            )))
        };
        let size = u64::from(what.size);
        if addr & (size - 1) != 0 {
            return fault(Code::MisalignedAddress, "not aligned to its size");
        }
        match lead(what.space, addr) {
            Lead::Global(addr) => match region(self.launch.regions, at.hit, addr) {
                Some(r) if r.bytes.len() - (addr - r.base) >= size => {
                    if what.write && r.read_only {
                        return fault(Code::IllegalAddress, "constants cannot be written");
                    }
                    Ok(Target::Bytes(&r.bytes, addr - r.base))
                }
                Some(r) => fault(
                    Code::IllegalAddress,
                    &format!(
                        "reaches beyond the {} bytes at 0x{:x}",
                        r.bytes.len(),
                        r.base
                    ),
                ),
                None => {
                    let before = self
                        .launch
                        .regions
                        .partition_point(|r| r.base <= addr)
                        .checked_sub(1)
                        .map(|k| &self.launch.regions[k]);
                    let near = before.filter(|r| addr - r.base < 1 << 32).map(|r| {
                        format!(
                            "; {} bytes behind the end of the {} bytes at 0x{:x}",
                            addr - r.base - r.bytes.len(),
                            r.bytes.len(),
                            r.base
                        )
                    });
                    fault(
                        Code::IllegalAddress,
                        &format!("nothing is allocated there{}", near.unwrap_or_default()),
                    )
                }
            },
            Lead::Shared(block, off) => {
                let bytes = match block {
                    None => Some(&shared.own),
                    Some(r) => shared.cluster.get(r as usize),
                };
                match bytes {
                    Some(b) if off.checked_add(size).is_some_and(|end| end <= b.len()) => {
                        Ok(Target::Bytes(b, off))
                    }
                    _ => fault(
                        Code::IllegalAddress,
                        &format!("beyond the {} bytes of the block", shared.own.len()),
                    ),
                }
            }
            Lead::Local(off)
                if off
                    .checked_add(size)
                    .is_some_and(|end| end <= at.local as u64 * 4) =>
            {
                Ok(Target::Local(off as usize))
            }
            Lead::Local(_) => fault(Code::IllegalAddress, "beyond the stack of the thread"),
            Lead::Param(off)
                if !what.write
                    && off
                        .checked_add(size)
                        .is_some_and(|end| end <= self.launch.params.len() as u64) =>
            {
                Ok(Target::Param(off as usize))
            }
            Lead::Param(_) => fault(
                Code::IllegalAddress,
                "parameters cannot be written, and end there",
            ),
        }
    }

    /// Reads bytes for the environment: of a string, of arguments.
    pub(crate) fn fetch(
        &self,
        w: &mut Warp,
        shared: &SharedMemory,
        lane: usize,
        pc: u32,
        addr: u64,
        size: u32,
    ) -> Result<u64, Box<Fault>> {
        let what = Access {
            space: Space::Generic,
            size,
            write: false,
            pc,
            lane: lane as u32,
        };
        let target = self.access(
            shared,
            &mut Hit {
                hit: &mut w.hit,
                local: w.local.len(),
            },
            &what,
            addr,
        )?;
        Ok(target.load(self, &w.local, lane, 0, size))
    }
}

/// A place that a lane may access.
pub(crate) enum Target<'a> {
    Bytes(&'a Bytes, u64),
    Local(usize),
    Param(usize),
}

/// What an access is, for its checks and its message.
pub(crate) struct Access {
    pub(crate) space: Space,
    pub(crate) size: u32,
    pub(crate) write: bool,
    pub(crate) pc: u32,
    pub(crate) lane: u32,
}

/// What a warp knows of memory.
pub(crate) struct Hit<'w> {
    pub(crate) hit: &'w mut usize,
    /// Words of local memory.
    pub(crate) local: usize,
}

impl Target<'_> {
    /// An element of 1 to 8 bytes, `plus` bytes on. The range was checked.
    pub(crate) fn load(
        &self,
        cx: &Cx<'_>,
        local: &[[u32; 32]],
        lane: usize,
        plus: u32,
        size: u32,
    ) -> u64 {
        match self {
            Self::Bytes(b, at) => {
                let at = at + u64::from(plus);
                match size {
                    1 => b.load::<u8>(at).map(u64::from),
                    2 => b.load::<u16>(at).map(u64::from),
                    4 => b.load::<u32>(at).map(u64::from),
                    _ => b.load::<u64>(at),
                }
                .unwrap_or(0)
            }
            Self::Local(at) => {
                let at = at + plus as usize;
                let word = u64::from(local[at / 4][lane]);
                match size {
                    8 => word | u64::from(local[at / 4 + 1][lane]) << 32,
                    4 => word,
                    2 => word >> (at % 4 * 8) & 0xffff,
                    _ => word >> (at % 4 * 8) & 0xff,
                }
            }
            Self::Param(at) => {
                let at = at + plus as usize;
                let mut v = [0; 8];
                v[..size as usize].copy_from_slice(&cx.launch.params[at..at + size as usize]);
                u64::from_le_bytes(v)
            }
        }
    }

    pub(crate) fn store(&self, local: &mut [[u32; 32]], lane: usize, plus: u32, size: u32, v: u64) {
        match self {
            Self::Bytes(b, at) => {
                let at = at + u64::from(plus);
                let _inside = match size {
                    1 => b.store(at, v as u8),
                    2 => b.store(at, v as u16),
                    4 => b.store(at, v as u32),
                    _ => b.store(at, v),
                };
            }
            Self::Local(at) => {
                let at = at + plus as usize;
                let word = &mut local[at / 4][lane];
                let shift = at % 4 * 8;
                match size {
                    8 => {
                        *word = v as u32;
                        local[at / 4 + 1][lane] = (v >> 32) as u32;
                    }
                    4 => *word = v as u32,
                    2 => *word = *word & !(0xffff << shift) | (v as u32 & 0xffff) << shift,
                    _ => *word = *word & !(0xff << shift) | (v as u32 & 0xff) << shift,
                }
            }
            Self::Param(_) => {}
        }
    }
}

/// All ones for each lane of a mask.
#[inline(always)]
fn expand(m: u32) -> [u32; 32] {
    let mut v = [0; 32];
    for (l, v) in v.iter_mut().enumerate() {
        *v = (m >> l & 1).wrapping_neg();
    }
    v
}

#[inline(always)]
fn put32(r: &mut Regs, d: u16, m: u32, v: &[u32; 32]) {
    let o = &mut r.r32[d as usize].0;
    if m == u32::MAX {
        *o = *v;
    } else {
        let k = expand(m);
        for l in 0..32 {
            o[l] = o[l] & !k[l] | v[l] & k[l];
        }
    }
}

#[inline(always)]
fn put64(r: &mut Regs, d: u16, m: u32, v: &[u64; 32]) {
    let o = &mut r.r64[d as usize].0;
    if m == u32::MAX {
        *o = *v;
    } else {
        let k = expand(m);
        for l in 0..32 {
            let k = (k[l] as i32) as i64 as u64;
            o[l] = o[l] & !k | v[l] & k;
        }
    }
}

const BITS: [u32; 32] = {
    let mut b = [0; 32];
    let mut l = 0;
    while l < 32 {
        b[l] = 1 << l;
        l += 1;
    }
    b
};

/// `setp`: p = t op c, q = !t op c.
#[inline(always)]
fn put_test(r: &mut Regs, i: &Inst, m: u32, t: u32) {
    let (mut p, mut q) = (t, !t);
    if i.w & flag::COMBINE != 0 {
        let c = predicate(&r.p, i.c, i.w, flag::C_NOT);
        let f = |x: u32| match i.w >> flag::BOOL_SHIFT & 3 {
            0 => x & c,
            1 => x | c,
            _ => x ^ c,
        };
        (p, q) = (f(p), f(q));
    }
    let o = &mut r.p[i.d as usize];
    *o = *o & !m | p & m;
    if i.imm != 0 {
        let o = &mut r.p[(i.imm - 1) as usize];
        *o = *o & !m | q & m;
    }
}

macro_rules! shapes {
    ($($name:ident($($arg:ident $file:ident $t:ty),*) -> $put:ident $out:ty;)*) => { $(
        #[inline(always)]
        fn $name(r: &mut Regs, i: &Inst, m: u32, f: impl Fn($($t),*) -> $out) {
            $(let $arg = &r.$file[i.$arg as usize];)*
            let mut v: [$out; 32] = [0; 32];
            for l in 0..32 {
                v[l] = f($($arg[l]),*);
            }
            $put(r, i.d, m, &v);
        }
    )* };
}
shapes! {
    un32(a r32 u32) -> put32 u32;
    bin32(a r32 u32, b r32 u32) -> put32 u32;
    tri32(a r32 u32, b r32 u32, c r32 u32) -> put32 u32;
    un64(a r64 u64) -> put64 u64;
    bin64(a r64 u64, b r64 u64) -> put64 u64;
    tri64(a r64 u64, b r64 u64, c r64 u64) -> put64 u64;
    shift64(a r64 u64, b r32 u32) -> put64 u64;
    wide(a r32 u32, b r32 u32) -> put64 u64;
    wide_add(a r32 u32, b r32 u32, c r64 u64) -> put64 u64;
    widen(a r32 u32) -> put64 u64;
    narrow(a r64 u64) -> put32 u32;
}

/// A row of results: a NaN among them becomes the one that a GPU gives. They are rare, so the row is
/// first only asked whether it has any.
#[inline(always)]
fn put_floats(r: &mut Regs, d: u16, m: u32, v: &[f32; 32]) {
    // Plain loops: what is called here by way of iterators is not compiled for the wide vectors.
    let mut bits = [0u32; 32];
    let mut nan = 0u32;
    for l in 0..32 {
        bits[l] = v[l].to_bits();
        nan |= u32::from(v[l].is_nan());
    }
    if nan != 0 {
        for b in &mut bits {
            *b = canon(*b);
        }
    }
    put32(r, d, m, &bits);
}

#[inline(always)]
fn float_bin32(r: &mut Regs, i: &Inst, m: u32, f: impl Fn(f32, f32) -> f32) {
    let (a, b) = (&r.r32[i.a as usize], &r.r32[i.b as usize]);
    let mut v = [0.0; 32];
    for l in 0..32 {
        v[l] = f(f32::from_bits(a[l]), f32::from_bits(b[l]));
    }
    put_floats(r, i.d, m, &v);
}

#[inline(always)]
fn float_tri32(r: &mut Regs, i: &Inst, m: u32, f: impl Fn(f32, f32, f32) -> f32) {
    let (a, b, c) = (
        &r.r32[i.a as usize],
        &r.r32[i.b as usize],
        &r.r32[i.c as usize],
    );
    let mut v = [0.0; 32];
    for l in 0..32 {
        v[l] = f(
            f32::from_bits(a[l]),
            f32::from_bits(b[l]),
            f32::from_bits(c[l]),
        );
    }
    put_floats(r, i.d, m, &v);
}

#[inline(always)]
fn cmp32(r: &mut Regs, i: &Inst, m: u32, f: impl Fn(u32, u32) -> bool) {
    let (a, b) = (&r.r32[i.a as usize], &r.r32[i.b as usize]);
    let mut v = [0u32; 32];
    for l in 0..32 {
        v[l] = if f(a[l], b[l]) { BITS[l] } else { 0 };
    }
    let mut t = 0;
    for x in v {
        t |= x;
    }
    put_test(r, i, m, t);
}

#[inline(always)]
fn cmp64(r: &mut Regs, i: &Inst, m: u32, f: impl Fn(u64, u64) -> bool) {
    let (a, b) = (&r.r64[i.a as usize], &r.r64[i.b as usize]);
    let mut t = 0;
    for l in 0..32 {
        t |= u32::from(f(a[l], b[l])) << l;
    }
    put_test(r, i, m, t);
}

/// Runs a warp for at most `fuel` instructions.
pub(crate) fn run(w: &mut Warp, cx: &Cx<'_>, shared: &SharedMemory, fuel: &mut u32) -> Stop {
    #[cfg(target_arch = "x86_64")]
    if cx.launch.wide_vectors {
        return crate::vectors::run(w, cx, shared, fuel);
    }
    run_with::<false>(w, cx, shared, fuel)
}

macro_rules! hot_match {
    (($r:ident $i:ident $m:ident $rest:block) $($kind:ident { $($name:ident |$($arg:ident),*| $body:expr;)* })*) => {
        match $i.op {
            $($(Op::$name => $kind($r, $i, $m, #[inline(always)] |$($arg),*| $body),)*)*
            _ => $rest
        }
    };
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
    /// The registers go back to their frame, `$do` may change the group, and those of the next come out.
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
    /// What takes as long as so many other instructions leaves so many fewer of them until the next look
    /// at the clock.
    macro_rules! burn {
        ($n:expr) => {
            w.burn(fuel, $n)
        };
    }
    macro_rules! attempt {
        ($do:expr) => {
            if let Err(f) = $do {
                w.pc = pc;
                w.frames[w.frame as usize].regs = regs;
                return Stop::Fault(f);
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
                Op::LdGlobal32 => attempt!(load_global32(w, cx, shared, r, i, m, pc)),
                Op::LdGlobal64 => attempt!(load_global64(w, cx, shared, r, i, m, pc)),
                Op::StGlobal32 => attempt!(store_global32(w, cx, shared, r, i, m, pc)),
                Op::StGlobal64 => attempt!(store_global64(w, cx, shared, r, i, m, pc)),
                Op::LdShared32 => attempt!(load_shared32(w, cx, shared, r, i, m, pc)),
                Op::StShared32 => attempt!(store_shared32(w, cx, shared, r, i, m, pc)),
                Op::Memory => {
                    burn!(cost::MEMORY);
                    attempt!(memory(w, cx, shared, r, i, m, pc));
                }
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
                Op::Atomic => {
                    burn!(cost::ATOMIC);
                    attempt!(atomic(w, cx, shared, r, i, m, pc));
                }
                Op::CopyAsync => {
                    burn!(cost::ATOMIC);
                    attempt!(copy_async(w, cx, shared, r, i, m, pc));
                }
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
                Op::Trap => attempt!(Err::<(), _>(Box::new(Fault::new(Code::LaunchFailed, pc - 1, m.trailing_zeros(), if i.x == 0 { "trap" } else { "brkpt with no debugger" })))),
                Op::Sync => switch!({
                    let matrix = matches!(cx.program.syncs[i.x as usize].op, SyncOp::Matrix(_));
                    burn!(if matrix { cost::SLOW } else { cost::TOGETHER });
                    sync(w, cx, shared, i, m)
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

/// What instructions take more than others, in others: rough, and on the safe side, so that a slice of any
/// instructions is over within a millisecond or so.
pub(crate) mod cost {
    /// A function for each lane.
    pub(super) const LANES: u32 = 8;
    /// One of the slow ones of these, a product of matrices.
    pub(super) const SLOW: u32 = 64;
    /// A load or store that is not one of the ordinary ones.
    pub(super) const MEMORY: u32 = 8;
    /// A lane after the other, and others want the same.
    pub(super) const ATOMIC: u32 = 64;
    pub(super) const FENCE: u32 = 4;
    /// On some virtual machines the clock is far away.
    pub(super) const CLOCK: u32 = 64;
    /// What concerns the groups of a warp.
    pub(super) const TOGETHER: u32 = 8;
    /// Of a call of the environment: what one lane may use up before the next has to wait.
    pub(crate) const CALL: u32 = 1024;
}

/// Whether 32 addresses lie one behind the other, `size` apart.
#[inline(always)]
fn is_row(a: &[u64; 32], size: u64) -> bool {
    let mut off = 0;
    for l in 0..32 {
        off |= a[l].wrapping_sub(a[0]) ^ (size * l as u64);
    }
    off == 0
}

macro_rules! global {
    ($load:ident $store:ident $file:ident $t:ty) => {
        #[inline(always)]
        fn $load(
            w: &mut Warp,
            cx: &Cx<'_>,
            shared: &SharedMemory,
            r: &mut Regs,
            i: &Inst,
            m: u32,
            pc: u32,
        ) -> Result<(), Box<Fault>> {
            let a = &r.r64[i.a as usize];
            let plus = i64::from(i.imm) as u64;
            let first = a[m.trailing_zeros() as usize & 31].wrapping_add(plus);
            if let Some(g) = region(cx.launch.regions, &mut w.hit, first) {
                let shift = plus.wrapping_sub(g.base);
                if m == u32::MAX && is_row(a, size_of::<$t>() as u64) {
                    let row = &mut r.$file[i.d as usize];
                    if g.bytes.load_row::<$t>(first - g.base, row).is_some() {
                        return Ok(());
                    }
                } else {
                    let mut at = [0; 32];
                    for l in 0..32 {
                        at[l] = a[l].wrapping_add(shift);
                    }
                    if quick_load::<$t>(&g.bytes, &at, m, &mut r.$file[i.d as usize]) {
                        return Ok(());
                    }
                }
            }
            memory(w, cx, shared, r, i, m, pc)
        }

        #[inline(always)]
        fn $store(
            w: &mut Warp,
            cx: &Cx<'_>,
            shared: &SharedMemory,
            r: &mut Regs,
            i: &Inst,
            m: u32,
            pc: u32,
        ) -> Result<(), Box<Fault>> {
            let a = &r.r64[i.a as usize];
            let plus = i64::from(i.imm) as u64;
            let first = a[0].wrapping_add(plus);
            if m == u32::MAX
                && is_row(a, size_of::<$t>() as u64)
                && let Some(g) = region(cx.launch.regions, &mut w.hit, first)
                && !g.read_only
                && g.bytes
                    .store_row::<$t>(first - g.base, &r.$file[i.b as usize])
                    .is_some()
            {
                return Ok(());
            }
            memory(w, cx, shared, r, i, m, pc)
        }
    };
}
global!(load_global32 store_global32 r32 u32);
global!(load_global64 store_global64 r64 u64);

/// The addresses of all lanes.
#[inline(always)]
fn addresses(r: &Regs, slot: u16, wide: bool, offset: i64) -> [u64; 32] {
    let plus = offset as u64;
    let mut at = [0; 32];
    if wide {
        let a = &r.r64[slot as usize];
        for l in 0..32 {
            at[l] = a[l].wrapping_add(plus);
        }
    } else {
        let a = &r.r32[slot as usize];
        for l in 0..32 {
            at[l] = u64::from(a[l]).wrapping_add(plus);
        }
    }
    at
}

#[inline(always)]
fn load_shared32(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    r: &mut Regs,
    i: &Inst,
    m: u32,
    pc: u32,
) -> Result<(), Box<Fault>> {
    let at = addresses(r, i.a, i.w & flag::A64 != 0, i64::from(i.imm));
    if quick_load::<u32>(&shared.own, &at, m, &mut r.r32[i.d as usize]) {
        return Ok(());
    }
    memory(w, cx, shared, r, i, m, pc)
}

#[inline(always)]
fn store_shared32(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    r: &mut Regs,
    i: &Inst,
    m: u32,
    pc: u32,
) -> Result<(), Box<Fault>> {
    let at = addresses(r, i.a, i.w & flag::A64 != 0, i64::from(i.imm));
    if quick_store::<u32>(&shared.own, &at, m, &r.r32[i.b as usize]) {
        return Ok(());
    }
    memory(w, cx, shared, r, i, m, pc)
}

/// Loads for all lanes from one piece of memory: of one address, a row, or each its own. False: not all
/// of them lie inside, aligned, and nothing has changed.
#[inline(always)]
fn quick_load<T: Word + Default>(bytes: &Bytes, at: &[u64; 32], m: u32, out: &mut [T; 32]) -> bool {
    if m == u32::MAX {
        let (row, one) = (is_row(at, size_of::<T>() as u64), is_row(at, 0));
        if row && bytes.load_row::<T>(at[0], out).is_some() {
            return true;
        }
        if one && let Some(v) = bytes.load::<T>(at[0]) {
            *out = [v; 32];
            return true;
        }
        if let Some(v) = bytes.gather::<T>(at) {
            *out = v;
            return true;
        }
        return false;
    }
    // The register may hold the addresses, which are needed again where this does not succeed.
    let mut v = *out;
    let mut inside = true;
    for l in lanes(m) {
        match bytes.load::<T>(at[l]) {
            Some(x) => v[l] = x,
            None => inside = false,
        }
    }
    if inside {
        *out = v;
    }
    inside
}

/// Stores likewise. False: not all were stored.
#[inline(always)]
fn quick_store<T: Word>(bytes: &Bytes, at: &[u64; 32], m: u32, v: &[T; 32]) -> bool {
    if m == u32::MAX
        && is_row(at, size_of::<T>() as u64)
        && bytes.store_row::<T>(at[0], v).is_some()
    {
        return true;
    }
    let mut inside = true;
    for l in lanes(m) {
        inside &= bytes.store::<T>(at[l], v[l]).is_some();
    }
    inside
}

/// Any access whose lanes all go to one piece of global memory, or to the block's own shared memory. False:
/// it is not that, or a lane is at fault; then nothing is lost by doing it again lane by lane.
fn quick(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    r: &mut Regs,
    x: &Memory,
    m: u32,
) -> bool {
    let mut at = addresses(r, x.addr, x.addr_wide, x.offset);
    let first = at[m.trailing_zeros() as usize & 31];
    let bytes = match lead(x.space, first) {
        Lead::Global(_) => match region(cx.launch.regions, &mut w.hit, first) {
            Some(g) if !(g.read_only && x.is_store) => {
                at = at.map(|a| a.wrapping_sub(g.base));
                &g.bytes
            }
            _ => return false,
        },
        Lead::Shared(None, off) => {
            // Within the window, or generic: the same distance for all.
            let base = first.wrapping_sub(off);
            at = at.map(|a| a.wrapping_sub(base));
            &*shared.own
        }
        _ => return false,
    };
    let total = u64::from(x.size) * x.regs.len() as u64;
    // Aligned as a whole, and the last element inside: then all are.
    let wrong = lanes(m).fold(false, |bad, l| {
        bad | (at[l] & (total - 1) != 0 || at[l] > bytes.len() || bytes.len() - at[l] < total)
    });
    if wrong {
        return false;
    }
    for (k, (slot, bits)) in x.regs.iter().enumerate() {
        let here = at.map(|a| a.wrapping_add(u64::from(x.size) * k as u64));
        let slot = *slot as usize;
        if x.is_store {
            let wide = *bits == 64;
            let done = match (x.size, wide) {
                (4, false) => quick_store::<u32>(bytes, &here, m, &r.r32[slot]),
                (8, true) => quick_store::<u64>(bytes, &here, m, &r.r64[slot]),
                (2, false) => quick_store::<u16>(bytes, &here, m, &r.r32[slot].map(|v| v as u16)),
                (1, false) => quick_store::<u8>(bytes, &here, m, &r.r32[slot].map(|v| v as u8)),
                _ => false,
            };
            if !done {
                return false;
            }
            continue;
        }
        // An address was read before the first result is written, so any register may be a result.
        let mut v64 = [0u64; 32];
        let loaded = match x.size {
            4 if *bits == 32 => {
                if !quick_load::<u32>(bytes, &here, m, &mut r.r32[slot]) {
                    return false;
                }
                continue;
            }
            8 if *bits == 64 => {
                if !quick_load::<u64>(bytes, &here, m, &mut r.r64[slot]) {
                    return false;
                }
                continue;
            }
            1 => {
                let mut v = [0u8; 32];
                let ok = quick_load::<u8>(bytes, &here, m, &mut v);
                v64 = v.map(|v| {
                    if x.signed {
                        v as i8 as u64
                    } else {
                        u64::from(v)
                    }
                });
                ok
            }
            2 => {
                let mut v = [0u16; 32];
                let ok = quick_load::<u16>(bytes, &here, m, &mut v);
                v64 = v.map(|v| {
                    if x.signed {
                        v as i16 as u64
                    } else {
                        u64::from(v)
                    }
                });
                ok
            }
            4 => {
                let mut v = [0u32; 32];
                let ok = quick_load::<u32>(bytes, &here, m, &mut v);
                v64 = v.map(|v| {
                    if x.signed {
                        v as i32 as u64
                    } else {
                        u64::from(v)
                    }
                });
                ok
            }
            _ => false,
        };
        if !loaded {
            return false;
        }
        match bits {
            64 => put64(r, slot as u16, m, &v64),
            16 => put32(r, slot as u16, m, &v64.map(|v| v as u32 & 0xffff)),
            _ => put32(r, slot as u16, m, &v64.map(|v| v as u32)),
        }
    }
    true
}

fn address(r: &Regs, slot: u16, wide: bool, lane: usize, offset: i64) -> u64 {
    let a = if wide {
        r.r64[slot as usize][lane]
    } else {
        u64::from(r.r32[slot as usize][lane])
    };
    a.wrapping_add(offset as u64)
}

/// Any load or store, lane by lane.
#[inline(never)]
fn memory(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    r: &mut Regs,
    i: &Inst,
    m: u32,
    pc: u32,
) -> Result<(), Box<Fault>> {
    let x: &Memory = &cx.program.memory[i.x as usize];
    let size = x.size * x.regs.len() as u32;
    if quick(w, cx, shared, r, x, m) || x.addr_wide && local_row(w, r, x, m) {
        return Ok(());
    }
    for l in lanes(m) {
        let addr = address(r, x.addr, x.addr_wide, l, x.offset);
        let what = Access {
            space: x.space,
            size,
            write: x.is_store,
            pc: pc - 1,
            lane: l as u32,
        };
        let target = cx.access(
            shared,
            &mut Hit {
                hit: &mut w.hit,
                local: w.local.len(),
            },
            &what,
            addr,
        )?;
        // A vector may name its own address among its results: all of it is read before anything is written.
        let mut values = [0u64; 8];
        for (k, (slot, bits)) in x.regs.iter().enumerate() {
            let plus = x.size * k as u32;
            if x.is_store {
                let v = if *bits == 64 {
                    r.r64[*slot as usize][l]
                } else {
                    u64::from(r.r32[*slot as usize][l])
                };
                target.store(&mut w.local, l, plus, x.size, v);
            } else {
                let v = target.load(cx, &w.local, l, plus, x.size);
                let shift = 64 - x.size * 8;
                values[k & 7] = if x.signed {
                    ((v << shift) as i64 >> shift) as u64
                } else {
                    v
                };
            }
        }
        if !x.is_store {
            for (k, (slot, bits)) in x.regs.iter().enumerate() {
                let v = values[k & 7];
                match bits {
                    64 => r.r64[*slot as usize][l] = v,
                    16 => r.r32[*slot as usize][l] = v as u32 & 0xffff,
                    _ => r.r32[*slot as usize][l] = v as u32,
                }
            }
        }
    }
    Ok(())
}

/// Local memory at one address for all lanes, in words: whole rows. False: not that case.
fn local_row(w: &mut Warp, r: &mut Regs, x: &Memory, m: u32) -> bool {
    if !matches!(x.space, Space::Local | Space::Generic) || x.size < 4 {
        return false;
    }
    let a = &r.r64[x.addr as usize];
    let first = a[m.trailing_zeros() as usize];
    if lanes(m).any(|l| a[l] != first) {
        return false;
    }
    let addr = first.wrapping_add(x.offset as u64);
    let total = x.size as usize * x.regs.len();
    let Lead::Local(off) = lead(x.space, addr) else {
        return false;
    };
    let off = off as usize;
    if !off.is_multiple_of(total.next_power_of_two())
        || off.checked_add(total).is_none_or(|e| e > w.local.len() * 4)
    {
        return false;
    }
    for (k, (slot, bits)) in x.regs.iter().enumerate() {
        let row = (off + k * x.size as usize) / 4;
        for l in lanes(m) {
            match (x.is_store, x.size, bits) {
                (false, 4, 64) => {
                    r.r64[*slot as usize][l] = if x.signed {
                        w.local[row][l] as i32 as i64 as u64
                    } else {
                        w.local[row][l].into()
                    }
                }
                (false, 4, _) => r.r32[*slot as usize][l] = w.local[row][l],
                (false, _, 64) => {
                    r.r64[*slot as usize][l] =
                        u64::from(w.local[row + 1][l]) << 32 | u64::from(w.local[row][l])
                }
                (true, 4, 64) => w.local[row][l] = r.r64[*slot as usize][l] as u32,
                (true, 4, _) => w.local[row][l] = r.r32[*slot as usize][l],
                (true, _, 64) => {
                    w.local[row][l] = r.r64[*slot as usize][l] as u32;
                    w.local[row + 1][l] = (r.r64[*slot as usize][l] >> 32) as u32;
                }
                _ => return false,
            }
        }
    }
    true
}

#[inline(always)]
fn operand(r: &Regs, slot: u16, wide: bool, lane: usize) -> u64 {
    if slot == NONE {
        0
    } else if wide {
        r.r64[slot as usize][lane]
    } else {
        u64::from(r.r32[slot as usize][lane])
    }
}

#[inline(never)]
fn lane_function(cx: &Cx<'_>, r: &mut Regs, i: &Inst, m: u32) {
    let f = cx.program.lanes[i.x as usize];
    let k = i.imm as u32;
    for l in lanes(m) {
        let a = operand(r, i.a, i.w & flag::A64 != 0, l);
        let b = operand(r, i.b, i.w & flag::B64 != 0, l);
        let c = if i.w & flag::C_PRED != 0 {
            u64::from(r.p[i.c as usize] >> l & 1)
        } else {
            operand(r, i.c, i.w & flag::C64 != 0, l)
        };
        let v = f(a, b, c, k);
        if i.w & flag::D64 != 0 {
            r.r64[i.d as usize][l] = v;
        } else {
            r.r32[i.d as usize][l] = v as u32;
        }
    }
}

/// The constant of a test's function stands in a register, the second predicate in `imm`.
#[inline(never)]
fn lane_test(cx: &Cx<'_>, r: &mut Regs, i: &Inst, m: u32) {
    let f = cx.program.lanes[(i.x & 0xffff) as usize];
    let k = i.x >> 16;
    let mut t = 0;
    for l in lanes(m) {
        let a = operand(r, i.a, i.w & flag::A64 != 0, l);
        let b = operand(r, i.b, i.w & flag::B64 != 0, l);
        t |= ((f(a, b, 0, k) & 1) as u32) << l;
    }
    put_test(r, i, m, t);
}

/// What a carry instruction is, in [`Inst::x`].
pub(crate) mod chain {
    pub(crate) const ADD: u32 = 0;
    pub(crate) const SUB: u32 = 1;
    pub(crate) const MAD_LO: u32 = 2;
    pub(crate) const MAD_HI: u32 = 3;
    pub(crate) const KIND: u32 = 3;
    pub(crate) const CARRY_IN: u32 = 4;
    pub(crate) const CARRY_OUT: u32 = 8;
    pub(crate) const SIGNED: u32 = 16;
}

#[inline(never)]
fn carry(r: &mut Regs, i: &Inst, m: u32) {
    let wide = i.w & flag::D64 != 0;
    let bits = if wide { 64 } else { 32 };
    let low = (1u128 << bits) - 1;
    for l in lanes(m) {
        let (a, b) = (
            u128::from(operand(r, i.a, wide, l)),
            u128::from(operand(r, i.b, wide, l)),
        );
        let c = u128::from(operand(r, i.c, wide, l));
        let cin = if i.x & chain::CARRY_IN != 0 {
            u128::from(r.cc >> l & 1)
        } else {
            0
        };
        let product = |hi: bool| {
            if !hi {
                a.wrapping_mul(b) & low
            } else if i.x & chain::SIGNED != 0 {
                let s = |x: u128| ((x << (128 - bits)) as i128) >> (128 - bits);
                ((s(a) * s(b)) >> bits) as u128 & low
            } else {
                (a * b) >> bits
            }
        };
        let full = match i.x & chain::KIND {
            chain::ADD => a + b + cin,
            // The flag after a subtraction is the borrow.
            chain::SUB => a.wrapping_sub(b).wrapping_sub(cin) & (low << 1 | 1),
            chain::MAD_LO => product(false) + c + cin,
            _ => product(true) + c + cin,
        };
        let out = (full >> bits & 1) as u32;
        if i.x & chain::CARRY_OUT != 0 {
            r.cc = r.cc & !(1 << l) | out << l;
        }
        if wide {
            r.r64[i.d as usize][l] = full as u64;
        } else {
            r.r32[i.d as usize][l] = full as u32;
        }
    }
}

/// What an atomic leaves in memory.
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
fn atomic(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    r: &mut Regs,
    i: &Inst,
    m: u32,
    pc: u32,
) -> Result<(), Box<Fault>> {
    let x = &cx.program.atomics[i.x as usize];
    let wide = x.ty.bits() == 64;
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
        let target = cx.access(
            shared,
            &mut Hit {
                hit: &mut w.hit,
                local: w.local.len(),
            },
            &what,
            addr,
        )?;
        let Target::Bytes(bytes, at) = target else {
            return Err(Box::new(Fault::new(
                Code::InvalidAddressSpace,
                pc - 1,
                l as u32,
                format!("atomic on local memory or parameters at 0x{addr:x}"),
            )));
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

/// `cp.async`: at once. d: where to, a: where from, b: bytes to read, the rest of `imm` is zero.
#[inline(never)]
fn copy_async(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    r: &mut Regs,
    i: &Inst,
    m: u32,
    pc: u32,
) -> Result<(), Box<Fault>> {
    let size = i.imm as u32;
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
        let local = w.local.len();
        let to = cx.access(
            shared,
            &mut Hit {
                hit: &mut w.hit,
                local,
            },
            &what(Space::Shared, true),
            to,
        )?;
        let mut bytes = [0u64; 16];
        if read > 0 {
            let from = cx.access(
                shared,
                &mut Hit {
                    hit: &mut w.hit,
                    local,
                },
                &what(Space::Global, false),
                from,
            )?;
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

fn branch_by_index(w: &mut Warp, cx: &Cx<'_>, i: &Inst, m: u32) -> Result<(), Box<Fault>> {
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

fn call(
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
                // They execute the call again, for a function of their own.
                let (pc, frame) = (w.pc - 1, w.frame);
                w.mask &= !others;
                w.push(pc, frame, others, State::Ready);
                m = here;
            }
            f
        }
        Callee::Builtin(b) => {
            let used = crate::builtin::call(w, cx, shared, b, i.x, m)?;
            w.burn(fuel, used);
            return Ok(());
        }
    };
    let rows = w.enter(cx, i.x, function, m)?;
    w.burn(fuel, rows);
    Ok(())
}

/// Lanes at an instruction that they execute together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Member {
    pub(crate) pc: u32,
    pub(crate) frame: u32,
    pub(crate) mask: u32,
}

fn sync(
    w: &mut Warp,
    cx: &Cx<'_>,
    shared: &SharedMemory,
    i: &Inst,
    mut m: u32,
) -> Result<(), Box<Fault>> {
    let s = &cx.program.syncs[i.x as usize];
    let (pc, frame) = (w.pc - 1, w.frame);
    let mut want = m;
    if s.mask != NONE {
        let masks = &w.frames[frame as usize].regs.r32[s.mask as usize];
        want = masks[m.trailing_zeros() as usize];
        let here = lanes(m)
            .filter(|l| masks[*l] == want)
            .fold(0u32, |x, l| x | 1u32 << l);
        // Lanes with another mask are another meeting: they execute the instruction again.
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

/// Executes what is complete, after lanes parked or ended.
fn finish_syncs(w: &mut Warp, cx: &Cx<'_>, shared: &SharedMemory) -> Result<(), Box<Fault>> {
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
        return crate::matrix::execute(w, cx, shared, members);
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

/// The value that a shuffle reads from a lane that takes no part: what its register holds.
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
