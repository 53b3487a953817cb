//! A worker's state for its blocks: the launch, its constants, the current block.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "lane arithmetic truncates and reinterprets by definition"
)]

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use super::registers::Regs;
use crate::environment::Environment;
use crate::memory::Bytes;
use crate::program::{Program, Special, Value};
use crate::quota::Charge;
use crate::space::{LOCAL, Region};

/// Slots with known values at the start of a function's frame.
#[derive(Debug, Default)]
pub(crate) struct Start {
    pub(crate) r32: Vec<(u16, u32)>,
    pub(crate) r64: Vec<(u16, u64)>,
    /// Those that differ between lanes, warps, blocks or frames.
    pub(crate) varying: Vec<(u16, bool, Value)>,
    /// Those among them that differ between blocks.
    pub(crate) of_block: Vec<(u16, bool, Special)>,
}

/// State shared by all blocks of a launch.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) program: &'a Program,
    pub(crate) kernel: u32,
    pub(crate) regions: &'a [Arc<Region>],
    pub(crate) params: &'a [u8],
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) cluster: [u32; 3],
    /// One per function.
    pub(crate) starts: &'a [Start],
    pub(crate) shared: u32,
    pub(crate) dynamic_shared: u32,
    /// Bytes of stack per thread.
    pub(crate) stack: u32,
    /// Greatest depth of calls.
    pub(crate) depth: u32,
    /// The charge for blocks and their stacks.
    pub(crate) memory: &'a Charge,
    pub(crate) environment: &'a Environment,
    /// Address of the grid-wide barrier.
    pub(crate) workspace: u64,
    pub(crate) grid_id: u64,
    pub(crate) workers: u32,
    pub(crate) since: Instant,
    pub(crate) wide_vectors: bool,
}

/// A worker's state for its blocks.
#[derive(Debug)]
pub(crate) struct Cx<'a> {
    pub(crate) launch: &'a Launch<'a>,
    pub(crate) program: &'a Program,
    pub(crate) kernel: u32,
    pub(crate) stack: u32,
    pub(crate) depth: u32,
    pub(crate) worker: u32,
    /// The index of the current block.
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
    /// `clock`: the previous context's last value.
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

    /// Charges `bytes` more memory. False: there is no room for it.
    pub(crate) fn take_memory(&self, bytes: u64) -> bool {
        self.launch.memory.grow(bytes)
    }

    /// Nanoseconds since the launch, strictly increasing.
    pub(super) fn now(&self) -> u64 {
        let t = u64::try_from(self.launch.since.elapsed().as_nanos())
            .unwrap_or(u64::MAX)
            .max(self.clock.get() + 1);
        self.clock.set(t);
        t
    }

    /// Sets the slots that differ between blocks, in a frame that has been filled before.
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
}
