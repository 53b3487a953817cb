//! Blocks that have begun: their barriers, and the scheduling of their warps.

use std::sync::Arc;

use super::cx::{Cx, SharedMemory};
use super::registers::{lanes, predicate};
use super::vectors::run;
use super::warp::{State, Stop, Warp};
use crate::Code;
use crate::error::Error;
use crate::memory::Bytes;
use crate::program::{BarrierKind, NONE};
use crate::space::Fault;

/// Most instructions of one warp in a row.
const WARP_SLICE: u32 = 2048;
/// Instructions of a block between two readings of the clock.
const BLOCK_SLICE: u32 = 4096;
/// Bytes of registers allocated between two readings of the clock.
const BUILD: u64 = 1 << 19;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Ready,
    /// All its lanes wait, none of them for a barrier that the whole warp has reached.
    Parked,
    /// Waiting at this barrier, and counted there.
    At(u32),
    AtCluster,
    Done,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bar {
    /// Warps that have arrived.
    arrived: u32,
    /// Number of warps needed, if the instruction gives it.
    need: Option<u32>,
}

/// A block that has begun.
#[derive(Debug)]
struct Block {
    ctaid: [u32; 3],
    warps: Vec<Warp>,
    /// The next warp, under construction.
    growing: Option<Warp>,
    standing: Vec<Standing>,
    bars: [Bar; 16],
    shared: SharedMemory,
    live: u32,
    /// The warp whose turn is next.
    turn: usize,
}

enum Progress {
    Done,
    More,
    /// All warps wait for the other blocks of the cluster.
    AtCluster,
}

impl Block {
    fn new(shared: SharedMemory) -> Self {
        Self {
            ctaid: [0; 3],
            warps: Vec::new(),
            growing: None,
            standing: Vec::new(),
            bars: [Bar::default(); 16],
            shared,
            live: 0,
            turn: 0,
        }
    }

    /// The first warp that has not been constructed.
    fn missing(&self, cx: &Cx<'_>) -> Option<u32> {
        let k = u32::try_from(self.warps.len()).unwrap_or(u32::MAX);
        (k < cx.threads().div_ceil(32)).then_some(k)
    }

    fn start(&mut self, cx: &Cx<'_>, ctaid: [u32; 3]) {
        self.ctaid = ctaid;
        for w in &mut self.warps {
            w.start(cx, ctaid);
        }
        self.standing.clear();
        self.standing.resize(self.warps.len(), Standing::Ready);
        self.bars = [Bar::default(); 16];
        self.turn = 0;
        self.live = u32::try_from(self.warps.len()).unwrap_or(0);
    }

    /// Runs the block for `share` instructions; adds them to `used`.
    fn slice(&mut self, cx: &Cx<'_>, share: u32, used: &mut u64) -> Result<Progress, Box<Fault>> {
        cx.ctaid.set(self.ctaid);
        let mut left = share;
        loop {
            let mut ran = false;
            for _ in 0..self.warps.len() {
                let k = self.turn;
                self.turn = (k + 1) % self.warps.len();
                if self.standing[k] != Standing::Ready {
                    continue;
                }
                ran = true;
                let given = WARP_SLICE.min(left);
                let mut fuel = given;
                let stop = run(&mut self.warps[k], cx, &self.shared, &mut fuel);
                let burnt = std::mem::take(&mut self.warps[k].burnt);
                *used += u64::from(given - fuel - burnt);
                // A warp that cannot run has had its turn all the same.
                left = left.saturating_sub((given - fuel).max(1));
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

    /// Handles a warp without a lane that can run: checks whether it is at a barrier.
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
        // A warp that only arrives goes on.
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

    /// Releases all warps whose barrier is complete.
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
        // The result of `bar.red`, over all threads.
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

    /// The warp of a fault: the one whose lanes were at its pc.
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

    /// Describes a fault, with everything that helps to locate it.
    fn error(&self, cx: &Cx<'_>, f: &Fault) -> Error {
        let kernel = &cx.program.functions[cx.kernel as usize].name;
        let function = cx.program.function_at(f.pc).map_or("", |f| &f.name);
        let line = cx.program.lines.get(f.pc as usize).copied().unwrap_or(0);
        let [x, y, z] = self.ctaid;
        let [tx, ty, tz] = cx.thread(self.warp_at(f), f.lane);
        Error::new(
            f.code,
            format!(
                "{}\nkernel '{kernel}', block [{x},{y},{z}], thread [{tx},{ty},{tz}], function '{function}', line {line}",
                f.text
            ),
        )
    }
}

/// Blocks that run together: a cluster, usually of one block.
#[derive(Debug)]
pub(crate) struct Unit {
    blocks: Vec<Block>,
    done: Vec<bool>,
    bytes: u64,
}

impl Unit {
    /// Bytes of registers, stacks and shared memory of a unit.
    pub(crate) fn bytes_of(cx: &Cx<'_>) -> u64 {
        let warps = u64::from(cx.threads().div_ceil(32));
        let each = warps * Warp::bytes(cx.program, cx.kernel) + u64::from(cx.launch.shared);
        each * u64::from(cx.launch.cluster.iter().product::<u32>())
    }

    /// A unit without warps: [`Self::build`] makes them. None if there is no memory for it.
    pub(crate) fn new(cx: &Cx<'_>) -> Option<Self> {
        let n = cx.launch.cluster.iter().product::<u32>() as usize;
        let shared = u64::from(cx.launch.shared);
        let all: Option<Vec<_>> = (0..n)
            .map(|_| Bytes::fetched(shared).map(Arc::new))
            .collect();
        let cluster = Arc::new(all?);
        let blocks = cluster.iter().map(|own| {
            let (own, cluster) = (Arc::clone(own), Arc::clone(&cluster));
            Block::new(SharedMemory { own, cluster })
        });
        Some(Self {
            blocks: blocks.collect(),
            done: vec![false; n],
            bytes: Self::bytes_of(cx),
        })
    }

    /// The bytes charged for the unit.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes warps for a limited time. True: all exist.
    pub(crate) fn build(&mut self, cx: &Cx<'_>) -> bool {
        let mut left = (BUILD / Warp::bytes(cx.program, cx.kernel).max(1)).max(1);
        for b in &mut self.blocks {
            while let Some(k) = b.missing(cx) {
                if left == 0 {
                    return false;
                }
                left -= 1;
                let mut w = b.growing.take().unwrap_or_else(|| Warp::new(k));
                if w.build(cx) {
                    b.warps.push(w);
                } else {
                    b.growing = Some(w);
                }
            }
        }
        true
    }

    /// Starts the blocks of this cluster of the grid.
    pub(crate) fn start(&mut self, cx: &Cx<'_>, unit: u64) {
        let (g, c) = (cx.launch.grid, cx.launch.cluster);
        let per = |d: usize| u64::from(g[d] / c[d]);
        let at = [
            unit % per(0),
            unit / per(0) % per(1),
            unit / per(0) / per(1),
        ];
        let corner = |d: usize| u32::try_from(at[d]).unwrap_or(0) * c[d];
        for (k, b) in (0..).zip(&mut self.blocks) {
            let [x, y, z] = [k % c[0], k / c[0] % c[1], k / c[0] / c[1]];
            b.start(cx, [corner(0) + x, corner(1) + y, corner(2) + z]);
        }
        self.done.fill(false);
    }

    /// Runs a slice. True: all blocks are done. Adds the instructions to `used`.
    pub(crate) fn slice(&mut self, cx: &Cx<'_>, used: &mut u64) -> Result<bool, Error> {
        let mut waiting = 0;
        let share = BLOCK_SLICE / u32::try_from(self.blocks.len()).unwrap_or(1).max(1);
        for (b, done) in self.blocks.iter_mut().zip(&mut self.done) {
            if *done {
                continue;
            }
            match b.slice(cx, share, used) {
                Ok(Progress::Done) => *done = true,
                Ok(Progress::More) => {}
                Ok(Progress::AtCluster) => waiting += 1,
                Err(f) => return Err(b.error(cx, &f)),
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

    /// The position of its first block, for messages.
    pub(crate) fn describe(&self, cx: &Cx<'_>) -> String {
        let first = self.blocks.first();
        first.map_or(String::new(), |b| {
            format!("block {:?}: {}", b.ctaid, b.describe(cx))
        })
    }
}
