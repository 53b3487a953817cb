//! Blocks: their barriers, and who runs them when.
//!
//! A block is run for a slice of instructions, then looked at: the clock, the budget, whether someone
//! wants it to stop. Blocks that have had a slice and are not done stay resident, and others start
//! beside them, so that a block may wait for one that comes after it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::Code;
use crate::error::Error;
use crate::exec::{Cx, Launch, SharedMemory, run};
use crate::memory::Bytes;
use crate::program::{BarrierKind, NONE};
use crate::space::Fault;
use crate::warp::{State, Stop, Warp, lanes, predicate};

/// Instructions of one warp in a row.
const WARP_SLICE: u32 = 4096;
/// Instructions of a block between two looks at the clock.
const BLOCK_SLICE: u32 = 8192;
/// Blocks that one worker has begun, at most.
const RESIDENT: usize = 64;

/// What ends a launch early.
#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) deadline: Option<Instant>,
    /// Instructions of warps.
    pub(crate) steps: u64,
    pub(crate) cancel: Arc<AtomicBool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Ready,
    /// All its lanes wait, and none of them for a barrier that the warp has reached.
    Parked,
    /// At this barrier, and counted there.
    At(u32),
    AtCluster,
    Done,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bar {
    /// Warps that have come.
    arrived: u32,
    /// Warps that are needed, if the instruction says so.
    need: Option<u32>,
}

/// A block that has begun.
#[derive(Debug)]
struct Block {
    ctaid: [u32; 3],
    warps: Vec<Warp>,
    standing: Vec<Standing>,
    bars: [Bar; 16],
    shared: SharedMemory,
    live: u32,
}

enum Progress {
    Done,
    More,
    /// All warps wait for the other blocks of the cluster.
    AtCluster,
}

impl Block {
    fn new(cx: &Cx<'_>, shared: SharedMemory) -> Self {
        let n = cx.threads().div_ceil(32);
        Self {
            ctaid: [0; 3],
            warps: (0..n).map(|k| Warp::new(k, cx)).collect(),
            standing: vec![Standing::Ready; n as usize],
            bars: [Bar::default(); 16],
            shared,
            live: n,
        }
    }

    fn start(&mut self, cx: &Cx<'_>, ctaid: [u32; 3]) {
        self.ctaid = ctaid;
        for w in &mut self.warps {
            w.start(cx, ctaid);
        }
        self.standing.fill(Standing::Ready);
        self.bars = [Bar::default(); 16];
        self.live = u32::try_from(self.warps.len()).unwrap_or(0);
    }

    /// Runs the block for a slice; `used` counts the instructions.
    fn slice(&mut self, cx: &Cx<'_>, used: &mut u64) -> Result<Progress, Box<Fault>> {
        cx.ctaid.set(self.ctaid);
        let mut left = BLOCK_SLICE;
        loop {
            let mut ran = false;
            for k in 0..self.warps.len() {
                if self.standing[k] != Standing::Ready {
                    continue;
                }
                ran = true;
                let given = WARP_SLICE.min(left);
                let mut fuel = given;
                let stop = run(&mut self.warps[k], cx, &self.shared, &mut fuel);
                let unspent = std::mem::take(&mut self.warps[k].unspent);
                let spent = (given - fuel - unspent).max(1);
                *used += u64::from(spent);
                left = if unspent > 0 {
                    0
                } else {
                    left.saturating_sub(spent)
                };
                match stop {
                    Stop::Slice => {}
                    Stop::Parked => self.arrive(cx, k)?,
                    Stop::Exited => {
                        self.standing[k] = Standing::Done;
                        self.live -= 1;
                        self.complete(cx)?;
                    }
                    Stop::Fault(f) => return Err(f),
                }
                if left == 0 {
                    break;
                }
            }
            if self.live == 0 {
                return Ok(Progress::Done);
            }
            if left == 0 {
                return Ok(Progress::More);
            }
            if !ran {
                if self
                    .standing
                    .iter()
                    .all(|s| matches!(s, Standing::AtCluster | Standing::Done))
                {
                    return Ok(Progress::AtCluster);
                }
                return Err(self.deadlock(cx));
            }
        }
    }

    /// A warp has no lane that can run: is it at a barrier?
    fn arrive(&mut self, cx: &Cx<'_>, k: usize) -> Result<(), Box<Fault>> {
        let w = &mut self.warps[k];
        self.standing[k] = Standing::Parked;
        let Some(first) = w.groups.first().copied() else {
            return Ok(());
        };
        let there = w
            .groups
            .iter()
            .filter(|g| g.state == first.state)
            .fold(0, |m, g| m | g.mask);
        if there != w.live {
            return Ok(());
        }
        let id = match first.state {
            State::Bar(id) => id,
            State::ClusterBar => {
                self.standing[k] = Standing::AtCluster;
                return Ok(());
            }
            _ => return Ok(()),
        };
        let info = |pc: u32| &cx.program.barriers[cx.program.code[pc as usize].x as usize];
        let b = info(first.pc);
        let lane = first.mask.trailing_zeros();
        let Some(bar) = self.bars.get_mut(id as usize) else {
            return Err(Box::new(Fault::new(
                Code::IllegalInstruction,
                first.pc,
                lane,
                format!("barrier {id} of 16"),
            )));
        };
        if b.count != NONE {
            let n = w.frames[first.frame as usize].regs.r32[b.count as usize][lane as usize];
            if n == 0 || !n.is_multiple_of(32) {
                return Err(Box::new(Fault::new(
                    Code::IllegalInstruction,
                    first.pc,
                    lane,
                    format!("a barrier for {n} threads, which are no whole warps"),
                )));
            }
            bar.need = Some(n / 32);
        }
        bar.arrived += 1;
        self.standing[k] = Standing::At(id);
        // Who only arrives goes on.
        let mut waits = false;
        for g in std::mem::take(&mut w.groups) {
            if info(g.pc).kind == BarrierKind::Arrive {
                w.push(g.pc + 1, g.frame, g.mask, State::Ready);
            } else {
                waits = true;
                w.groups.push(g);
            }
        }
        if !waits {
            self.standing[k] = Standing::Ready;
        }
        self.complete(cx)
    }

    /// Lets all go on whose barrier is complete.
    fn complete(&mut self, cx: &Cx<'_>) -> Result<(), Box<Fault>> {
        for id in 0..16u32 {
            let bar = self.bars[id as usize];
            if bar.arrived == 0 || bar.arrived < bar.need.unwrap_or(self.live) {
                continue;
            }
            self.bars[id as usize] = Bar::default();
            self.release(cx, State::Bar(id), Standing::At(id));
        }
        Ok(())
    }

    fn release(&mut self, cx: &Cx<'_>, state: State, standing: Standing) {
        let barrier = |pc: u32| {
            let i = cx.program.code[pc as usize];
            (i.op == crate::ops::Op::Bar).then(|| &cx.program.barriers[i.x as usize])
        };
        let at = |k: &usize| self.standing[*k] == standing;
        let those: Vec<usize> = (0..self.warps.len()).filter(at).collect();
        // What `bar.red` gives, over all threads.
        let (mut count, mut all) = (0u32, true);
        for k in &those {
            let w = &self.warps[*k];
            for g in w.groups.iter().filter(|g| g.state == state) {
                let Some(b) = barrier(g.pc).filter(|b| b.pred != NONE) else {
                    continue;
                };
                let p = predicate(
                    &w.frames[g.frame as usize].regs.p,
                    b.pred,
                    u16::from(b.not),
                    1,
                ) & g.mask;
                count += p.count_ones();
                all &= p == g.mask;
            }
        }
        for k in those {
            let w = &mut self.warps[k];
            for g in std::mem::take(&mut w.groups) {
                if g.state != state {
                    w.groups.push(g);
                    continue;
                }
                if let Some(b) = barrier(g.pc).filter(|b| b.dst != NONE) {
                    let r = &mut w.frames[g.frame as usize].regs;
                    if b.kind == BarrierKind::Popc {
                        for l in lanes(g.mask) {
                            r.r32[b.dst as usize][l] = count;
                        }
                    } else {
                        let yes = if b.kind == BarrierKind::And {
                            all
                        } else {
                            count > 0
                        };
                        let o = &mut r.p[b.dst as usize];
                        *o = if yes { *o | g.mask } else { *o & !g.mask };
                    }
                }
                w.push(g.pc + 1, g.frame, g.mask, State::Ready);
            }
            self.standing[k] = Standing::Ready;
        }
    }

    fn deadlock(&self, cx: &Cx<'_>) -> Box<Fault> {
        let stuck = |k: &usize| self.standing[*k] != Standing::Done;
        let first = (0..self.warps.len()).find(stuck).unwrap_or(0);
        let (pc, lane) = self.warps[first]
            .groups
            .first()
            .map_or((0, 0), |g| (g.pc, g.mask.trailing_zeros()));
        Box::new(Fault::new(
            Code::LaunchTimeout,
            pc,
            (self.warps[first].index * 32 + lane) & 31,
            format!("no thread of the block can go on: {}", self.describe(cx)),
        ))
    }

    fn describe(&self, cx: &Cx<'_>) -> String {
        let left = (0..self.warps.len()).filter(|k| self.standing[*k] != Standing::Done);
        left.take(4)
            .map(|k| self.warps[k].describe(cx.program))
            .collect::<Vec<_>>()
            .join("; ")
    }

    /// Which warp a fault is of: the one whose lanes were at its pc.
    fn warp_at(&self, f: &Fault) -> u32 {
        let here = |w: &&Warp| w.mask >> f.lane & 1 != 0 && w.pc.wrapping_sub(f.pc) <= 1;
        let waits = |w: &&Warp| {
            w.groups
                .iter()
                .any(|g| g.pc == f.pc && g.mask >> f.lane & 1 != 0)
        };
        self.warps
            .iter()
            .find(here)
            .or_else(|| self.warps.iter().find(waits))
            .map_or(0, |w| w.index)
    }
}

/// Blocks that run together: a cluster, which mostly is one block.
struct Unit {
    blocks: Vec<Block>,
    done: Vec<bool>,
}

/// What all workers of a launch share.
struct Work<'a> {
    launch: &'a Launch<'a>,
    limits: &'a Limits,
    units: u64,
    next: AtomicU64,
    finished: AtomicU64,
    steps: AtomicU64,
    stop: AtomicBool,
    outcome: Mutex<Option<Error>>,
    /// All begin before any waits: unit k is of worker k mod n.
    cooperative: bool,
}

/// What a launch did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Instructions of warps.
    pub steps: u64,
    /// Blocks that ran to their end.
    pub blocks: u64,
}

/// Runs a grid on so many workers.
pub(crate) fn execute(
    launch: &Launch<'_>,
    limits: &Limits,
    cooperative: bool,
) -> Result<Report, Error> {
    let cluster: u64 = launch.cluster.iter().map(|n| u64::from(*n)).product();
    let blocks: u64 = launch.grid.iter().map(|n| u64::from(*n)).product();
    let work = Work {
        launch,
        limits,
        units: blocks / cluster,
        next: AtomicU64::new(0),
        finished: AtomicU64::new(0),
        steps: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        outcome: Mutex::new(None),
        cooperative,
    };
    std::thread::scope(|s| {
        for k in 1..launch.workers {
            let work = &work;
            s.spawn(move || worker(work, k));
        }
        worker(&work, 0);
    });
    let report = Report {
        steps: work.steps.load(Ordering::Relaxed),
        blocks: work.finished.load(Ordering::Relaxed) * cluster,
    };
    match work
        .outcome
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
    {
        Some(e) => Err(e),
        None => Ok(report),
    }
}

impl Work<'_> {
    fn fail(&self, e: Error) {
        let mut o = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        o.get_or_insert(e);
        // Read by the other workers after their slice; no data goes with it.
        self.stop.store(true, Ordering::Relaxed);
    }

    fn over(&self) -> Option<&'static str> {
        if self.limits.cancel.load(Ordering::Relaxed) {
            return Some("cancelled");
        }
        if self.limits.deadline.is_some_and(|d| Instant::now() >= d) {
            return Some("the deadline is over");
        }
        (self.steps.load(Ordering::Relaxed) > self.limits.steps)
            .then_some("the budget of instructions is used up")
    }

    /// The blocks of a unit.
    fn ctaids(&self, unit: u64) -> Vec<[u32; 3]> {
        let (g, c) = (self.launch.grid, self.launch.cluster);
        let per = |d: usize| u64::from(g[d] / c[d]);
        let at = [
            unit % per(0),
            unit / per(0) % per(1),
            unit / per(0) / per(1),
        ];
        let mut list = Vec::new();
        for z in 0..c[2] {
            for y in 0..c[1] {
                for x in 0..c[0] {
                    let k = |d: usize, i: u32| u32::try_from(at[d]).unwrap_or(0) * c[d] + i;
                    list.push([k(0, x), k(1, y), k(2, z)]);
                }
            }
        }
        list
    }
}

fn worker(work: &Work<'_>, number: u32) {
    let cx = Cx::new(work.launch, number);
    let mut resident: VecDeque<Unit> = VecDeque::new();
    let mut idle: Vec<Unit> = Vec::new();
    let mut mine = u64::from(number);
    let cap = if work.cooperative {
        usize::MAX
    } else {
        RESIDENT
    };
    // Slices since one ended: when every one has had its slice without result, another begins.
    let mut vain = 0;
    loop {
        while resident.len() < cap && (work.cooperative || vain >= resident.len()) {
            let unit = if work.cooperative {
                let u = mine;
                mine += u64::from(work.launch.workers);
                u
            } else {
                work.next.fetch_add(1, Ordering::Relaxed)
            };
            if unit >= work.units {
                break;
            }
            let ctaids = work.ctaids(unit);
            let made = match idle.pop() {
                Some(u) => Some(u),
                None => begin(&cx, ctaids.len()),
            };
            let Some(mut u) = made else {
                if resident.is_empty() || work.cooperative {
                    let code = if work.cooperative {
                        Code::CooperativeLaunchTooLarge
                    } else {
                        Code::LaunchOutOfResources
                    };
                    work.fail(Error::new(code, "no memory for another block"));
                    return;
                }
                // It must wait for one of the others; its number is not lost.
                idle_unit(work, unit);
                break;
            };
            for (b, c) in u.blocks.iter_mut().zip(ctaids) {
                b.start(&cx, c);
            }
            u.done.fill(false);
            resident.push_back(u);
            vain = 0;
        }
        let Some(mut unit) = resident.pop_front() else {
            return;
        };
        let mut used = 0;
        let result = unit.slice(&cx, &mut used);
        work.steps.fetch_add(used, Ordering::Relaxed);
        match result {
            Err((block, f)) => {
                work.fail(describe(&cx, &unit.blocks[block], &f));
                return;
            }
            Ok(true) => {
                work.finished.fetch_add(1, Ordering::Relaxed);
                idle.push(unit);
                vain = 0;
            }
            Ok(false) => {
                resident.push_back(unit);
                vain += 1;
            }
        }
        if work.stop.load(Ordering::Relaxed) {
            return;
        }
        if let Some(why) = work.over() {
            if work.finished.load(Ordering::Relaxed) < work.units {
                let done = work.finished.load(Ordering::Relaxed) * unit_size(work);
                let stands = resident
                    .front()
                    .and_then(|u| u.blocks.first())
                    .map_or(String::new(), |b| {
                        format!("; block {:?}: {}", b.ctaid, b.describe(&cx))
                    });
                let name = &cx.program.functions[cx.kernel as usize].name;
                let all = work.units * unit_size(work);
                work.fail(Error::new(
                    Code::LaunchTimeout,
                    format!("{why}: kernel '{name}', {done} of {all} blocks done{stands}"),
                ));
            }
            return;
        }
    }
}

fn unit_size(work: &Work<'_>) -> u64 {
    work.launch.cluster.iter().map(|n| u64::from(*n)).product()
}

/// Makes a number that was taken available again: only the last one taken can be.
fn idle_unit(work: &Work<'_>, unit: u64) {
    let _ = work
        .next
        .compare_exchange(unit + 1, unit, Ordering::Relaxed, Ordering::Relaxed);
}

fn begin(cx: &Cx<'_>, n: usize) -> Option<Unit> {
    let l = cx.launch;
    let warps = u64::from(cx.threads().div_ceil(32));
    let bytes = (warps * Warp::bytes(cx.program, cx.kernel) + u64::from(l.shared)) * n as u64;
    if !cx.take_memory(bytes) {
        return None;
    }
    let mut all = Vec::new();
    for _ in 0..n {
        all.push(Arc::new(Bytes::zeroed(u64::from(l.shared))?));
    }
    let cluster = Arc::new(all.clone());
    let blocks = all
        .into_iter()
        .map(|own| {
            Block::new(
                cx,
                SharedMemory {
                    own,
                    cluster: Arc::clone(&cluster),
                },
            )
        })
        .collect();
    Some(Unit {
        blocks,
        done: vec![false; n],
    })
}

impl Unit {
    /// True: all blocks are done. An error says which block it is of.
    fn slice(&mut self, cx: &Cx<'_>, used: &mut u64) -> Result<bool, (usize, Box<Fault>)> {
        let mut waiting = 0;
        for k in 0..self.blocks.len() {
            if self.done[k] {
                continue;
            }
            match self.blocks[k].slice(cx, used).map_err(|f| (k, f))? {
                Progress::Done => self.done[k] = true,
                Progress::More => {}
                Progress::AtCluster => waiting += 1,
            }
        }
        let left = self.done.iter().filter(|d| !**d).count();
        if left > 0 && waiting == left {
            for b in &mut self.blocks {
                b.release(cx, State::ClusterBar, Standing::AtCluster);
            }
        }
        Ok(left == 0)
    }
}

/// A fault with everything that helps to find it.
fn describe(cx: &Cx<'_>, block: &Block, f: &Fault) -> Error {
    let kernel = &cx.program.functions[cx.kernel as usize].name;
    let function = cx.program.function_at(f.pc).map_or("", |f| &f.name);
    let line = cx.program.lines.get(f.pc as usize).copied().unwrap_or(0);
    let [x, y, z] = block.ctaid;
    let [tx, ty, tz] = cx.thread(block.warp_at(f), f.lane);
    Error::new(
        f.code,
        format!(
            "{}\nkernel '{kernel}', block [{x},{y},{z}], thread [{tx},{ty},{tz}], function '{function}', line {line}",
            f.text
        ),
    )
}
