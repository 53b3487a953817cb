//! A launch: its blocks, dealt out to the participating threads.
//!
//! A block is run for a slice of instructions; then the clock, the budget and any request to stop
//! are checked. Blocks that are not done after a slice stay, and others start beside them, so that
//! a block may wait for a later one.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use crate::context::{Context, Limit};
use crate::error::{Code, Error};
use crate::exec::block::Unit;
use crate::exec::cx::{Cx, Launch as View};
use crate::exec::vectors;
use crate::launch::Launch;
use crate::loaded::{Loaded, Plan};
use crate::module::Kernel;
use crate::pool::{Job, Seat, Step};
use crate::quota::Charge;
use crate::space::Region;

/// Most blocks that one thread has begun.
const RESIDENT: usize = 64;
/// Greatest depth of calls.
const DEPTH: u32 = 4096;
/// Most blocks that a thread takes at once; fewer when few are left.
const BATCH: u64 = 16;

/// The totals of a launch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Instructions executed, counted per warp.
    pub steps: u64,
    /// Blocks that ran to their end.
    pub blocks: u64,
}

/// Receives the result of a launch and the time at which it began.
type Finish = Box<dyn FnOnce(Result<Report, Error>, Instant) + Send>;

/// A launch, from the moment it is queued.
pub(crate) struct Grid {
    context: Arc<Context>,
    loaded: Loaded,
    kernel: Kernel,
    how: Launch,
    parameters: Vec<u8>,
    /// Clusters, usually of one block.
    units: u64,
    unit_blocks: u64,
    seats: u32,
    /// Made by the first thread that takes part.
    prepared: Mutex<Option<Arc<Prepared>>>,
    began: OnceLock<Instant>,
    seating: Mutex<Seating>,
    outcome: Mutex<Option<Error>>,
    finish: Mutex<Option<Finish>>,
    /// Set after `outcome`; read by the threads between slices as a hint to leave.
    stop: AtomicBool,
    /// All of a cooperative launch's memory is reserved. Release by the seat that did it, acquire
    /// by the others.
    reserved: AtomicBool,
    counts: Vec<Count>,
    next: Line<AtomicU64>,
}

/// Aligned to a cache line and the neighbour that the processor fetches with it.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line<T>(T);

/// The counts of one seat: only its own thread writes them.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Count {
    steps: AtomicU64,
    finished: AtomicU64,
}

#[derive(Debug, Default)]
struct Seating {
    taken: u32,
    left: u32,
    /// The launch is over and its result reported.
    closed: bool,
    /// Units that a thread had no memory for while others were at work.
    returned: Vec<u64>,
}

/// The resources of a running launch.
struct Prepared {
    plan: Arc<Plan>,
    regions: Arc<Vec<Arc<Region>>>,
    memory: Arc<Charge>,
    /// Address of the grid's barrier: an allocation of this launch alone.
    workspace: Option<u64>,
    /// Bytes of a thread's stack, whatever the limit is later.
    stack: u32,
    shared: u32,
    id: u64,
    began: Instant,
    deadline: Option<Instant>,
}

impl Grid {
    /// `finish` is called once, by the thread that ends the launch.
    pub(crate) fn new(
        context: Arc<Context>,
        loaded: Loaded,
        kernel: Kernel,
        how: Launch,
        parameters: Vec<u8>,
        finish: Finish,
    ) -> Self {
        let product = |n: [u32; 3]| n.iter().map(|n| u64::from(*n)).product::<u64>();
        let unit_blocks = product(kernel.cluster.unwrap_or([1; 3])).max(1);
        let units = product(how.grid) / unit_blocks;
        let workers = context.config.workers.max(1);
        let seats = workers.min(u32::try_from(units).unwrap_or(u32::MAX)).max(1);
        Self {
            context,
            loaded,
            kernel,
            how,
            parameters,
            units,
            unit_blocks,
            seats,
            prepared: Mutex::default(),
            began: OnceLock::new(),
            seating: Mutex::default(),
            outcome: Mutex::default(),
            finish: Mutex::new(Some(finish)),
            stop: AtomicBool::new(false),
            reserved: AtomicBool::new(false),
            counts: (0..seats).map(|_| Count::default()).collect(),
            next: Line::default(),
        }
    }

    fn seating(&self) -> MutexGuard<'_, Seating> {
        self.seating.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn prepare(&self) -> Result<Prepared, Error> {
        let began = *self.began.get_or_init(Instant::now);
        // A short kernel would be over before the first look.
        if let Some(code) = self.how.cancel.code() {
            let text = format!("cancelled: kernel '{}' had not begun", self.kernel.name);
            return Err(Error::new(code, text));
        }
        let plan = self.loaded.plan(self.kernel.index);
        let shared = plan.dynamic_at + u64::from(self.how.shared);
        let stack = u32::try_from(self.context.limit(Limit::Stack)).unwrap_or(u32::MAX);
        let mut memory = self.context.sound()?;
        let heap = self.context.limit(Limit::Heap);
        if plan.uses_heap && self.context.environment.heap().1 == 0 && heap > 0 {
            let base = memory.add(heap, false)?;
            self.context.environment.set_heap(base, heap);
        }
        // The grid's barrier counts in a word of its own, which starts at zero.
        let workspace = if self.how.cooperative {
            Some(memory.add(16, false)?)
        } else {
            None
        };
        let nothing = self.context.run_memory.take(0);
        Ok(Prepared {
            plan,
            regions: memory.list(),
            memory: Arc::new(nothing.ok_or_else(|| Error::new(Code::OutOfMemory, "no bytes"))?),
            workspace,
            stack,
            shared: u32::try_from(shared).unwrap_or(u32::MAX),
            id: self.context.launch_id(),
            began,
            deadline: self.how.deadline.and_then(|d| began.checked_add(d)),
        })
    }

    /// Prepares the launch, or returns the preparation of another thread.
    fn prepared(&self) -> Result<Arc<Prepared>, Error> {
        let mut p = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(p) = &*p {
            return Ok(Arc::clone(p));
        }
        let new = Arc::new(self.prepare()?);
        *p = Some(Arc::clone(&new));
        Ok(new)
    }

    /// The executor's view of the launch.
    fn view<'a>(&'a self, p: &'a Prepared) -> View<'a> {
        let config = &self.context.config;
        let wide_vectors = config.wide_vectors && vectors::are_there();
        View {
            program: self.loaded.program(),
            kernel: self.kernel.index,
            regions: &p.regions,
            params: &self.parameters[..self.kernel.parameter_bytes as usize],
            grid: self.how.grid,
            block: self.how.block,
            cluster: self.kernel.cluster.unwrap_or([1; 3]),
            starts: &p.plan.starts,
            shared: p.shared,
            dynamic_shared: self.how.shared,
            stack: p.stack.max(p.plan.stack),
            depth: DEPTH,
            memory: &p.memory,
            environment: &self.context.environment,
            workspace: p.workspace.unwrap_or(0),
            grid_id: p.id,
            workers: self.seats,
            since: p.began,
            wide_vectors,
        }
    }

    fn fail(&self, e: Error) {
        let mut o = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        o.get_or_insert(e);
        // The other threads read it after their slice; it guards no data.
        self.stop.store(true, Ordering::Relaxed);
    }

    fn sum(&self, f: impl Fn(&Count) -> &AtomicU64) -> u64 {
        let each = self.counts.iter().map(|c| f(c).load(Ordering::Relaxed));
        each.sum()
    }

    /// Whether it was told to end, or its time is up.
    fn is_over(&self, deadline: Option<Instant>, now: Instant) -> bool {
        let told = self.stop.load(Ordering::Relaxed) || self.how.cancel.is_cancelled();
        told || self.context.is_faulty() || deadline.is_some_and(|d| now >= d)
    }

    /// The reason why the launch must end, if it must.
    fn over(&self, p: &Prepared) -> Option<(Code, &'static str)> {
        if let Some(code) = self.how.cancel.code() {
            return Some((code, "cancelled"));
        }
        let why = if p.deadline.is_some_and(|d| Instant::now() >= d) {
            "the deadline is over"
        } else if self.how.steps != u64::MAX && self.sum(|c| &c.steps) > self.how.steps {
            "the budget of instructions is used up"
        } else {
            return None;
        };
        Some((Code::LaunchTimeout, why))
    }

    /// Units that are dealt out at once: few enough that the last ones do not keep anyone waiting
    /// long.
    fn batch(&self) -> u64 {
        (self.units / (u64::from(self.seats) * 32)).clamp(1, BATCH)
    }

    /// Called when the last seat has been left, or none was ever taken: reports the result.
    fn close(&self) {
        let prepared = self
            .prepared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let workspace = prepared.as_ref().and_then(|p| p.workspace);
        if let Some(at) = workspace {
            drop(self.context.allocations().remove(at));
        }
        // Memory that the program has freed meanwhile goes with the list of regions. For a stopped
        // launch the end is reported first: freeing much memory takes time.
        let stopped = self.stop.load(Ordering::Relaxed);
        let late = prepared.filter(|_| stopped);
        let began = *self.began.get_or_init(Instant::now);
        let outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        let result = match outcome.clone() {
            Some(e) => Err(e),
            None => Ok(Report {
                steps: self.sum(|c| &c.steps),
                blocks: self.sum(|c| &c.finished) * self.unit_blocks,
            }),
        };
        drop(outcome);
        if let Err(e) = &result
            && e.code.is_sticky()
        {
            self.context.fail(e.clone());
        }
        let finish = self
            .finish
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(f) = finish {
            f(result, began);
        }
        drop(late);
    }
}

impl Job for Grid {
    fn seats(&self) -> u32 {
        self.seats
    }

    fn sit(self: Arc<Self>) -> Option<Box<dyn Seat>> {
        let number = {
            let mut s = self.seating();
            if s.closed || s.taken == self.seats {
                return None;
            }
            s.taken += 1;
            s.taken - 1
        };
        Some(Box::new(Place {
            number,
            mine: u64::from(number),
            dealt: 0..0,
            resident: VecDeque::new(),
            idle: Vec::new(),
            building: None,
            vain: 0,
            clock: 0,
            prepared: None,
            memory: None,
            grid: self,
        }))
    }

    fn has_seats(&self) -> bool {
        let s = self.seating();
        !s.closed && s.taken < self.seats
    }
}

/// One thread's part of a launch.
struct Place {
    grid: Arc<Grid>,
    number: u32,
    /// For a cooperative launch: unit k belongs to seat k mod n.
    mine: u64,
    /// Units taken and not begun.
    dealt: std::ops::Range<u64>,
    resident: VecDeque<Unit>,
    idle: Vec<Unit>,
    /// A unit under construction, and its number in the grid.
    building: Option<(Unit, u64)>,
    /// Slices since a block ended: once every block has had a slice without ending, another begins.
    vain: usize,
    clock: u64,
    prepared: Option<Arc<Prepared>>,
    /// Dropped after the units that it pays for.
    memory: Option<Arc<Charge>>,
}

/// A thread's next step.
enum Turn {
    Go(Step),
    /// It leaves, returning a unit for which it has no memory.
    Leave(Option<u64>),
}

/// The outcome of trying to begin another block.
enum Begin {
    Begun,
    /// None is wanted, or there is none.
    None,
    /// There is no memory for it now.
    NoMemory,
}

impl Seat for Place {
    fn is_over(&self, now: Instant) -> bool {
        let deadline = self.prepared.as_ref().and_then(|p| p.deadline);
        self.grid.is_over(deadline, now)
    }

    fn step(&mut self) -> Step {
        let grid = Arc::clone(&self.grid);
        let went = catch_unwind(AssertUnwindSafe(|| self.go_on(&grid)));
        let turn = went.unwrap_or_else(|_| {
            grid.fail(Error::new(Code::Unknown, "the executor panicked"));
            Turn::Leave(None)
        });
        match turn {
            Turn::Go(step) => step,
            Turn::Leave(unit) => self.leave(unit),
        }
    }
}

impl Place {
    fn go_on(&mut self, grid: &Grid) -> Turn {
        let made = match self.prepared.take() {
            Some(p) => Ok(p),
            None => grid.prepared(),
        };
        let prepared = match made {
            Ok(p) => p,
            Err(e) => {
                grid.fail(e);
                return Turn::Leave(None);
            }
        };
        self.memory
            .get_or_insert_with(|| Arc::clone(&prepared.memory));
        let view = grid.view(&prepared);
        let cx = Cx::new(&view, self.number, self.clock);
        let turn = self.advance(grid, &prepared, &cx);
        self.clock = cx.clock();
        self.prepared = Some(prepared);
        turn
    }

    fn advance(&mut self, grid: &Grid, prepared: &Prepared, cx: &Cx<'_>) -> Turn {
        let mut waits = false;
        if grid.stop.load(Ordering::Relaxed) {
            return Turn::Leave(None);
        }
        if grid.how.cooperative && !grid.reserved.load(Ordering::Acquire) {
            if self.number == 0 && self.reserve(grid, prepared, cx) {
                grid.reserved.store(true, Ordering::Release);
            } else {
                waits = true;
            }
        } else {
            match self.begin(grid, cx) {
                Begin::Begun if grid.how.cooperative => {}
                Begin::Begun | Begin::None => {
                    if self.building.is_none() {
                        let Some(unit) = self.resident.pop_front() else {
                            return Turn::Leave(None);
                        };
                        if let Err(e) = self.slice(grid, cx, unit) {
                            grid.fail(e);
                            return Turn::Leave(None);
                        }
                    }
                }
                Begin::NoMemory => {
                    // This seat has nothing to do until others free memory.
                    if self.others_sit() {
                        let unit = self.dealt.next();
                        return Turn::Leave(unit);
                    }
                    if prepared.memory.is_alone() {
                        let text = "no memory for another block";
                        grid.fail(Error::new(Code::LaunchOutOfResources, text));
                        return Turn::Leave(None);
                    }
                    waits = true;
                }
            }
        }
        if let Some(e) = grid.context.fault() {
            grid.fail(e);
            return Turn::Leave(None);
        }
        if let Some((code, why)) = grid.over(prepared) {
            let finished = grid.sum(|c| &c.finished);
            if finished < grid.units {
                let (done, all) = (finished * grid.unit_blocks, grid.units * grid.unit_blocks);
                let stands = self.resident.front().map(|u| u.describe(cx));
                let stands = stands.map_or(String::new(), |s| format!("; {s}"));
                let name = &grid.kernel.name;
                grid.fail(Error::new(
                    code,
                    format!("{why}: kernel '{name}', {done} of {all} blocks done{stands}"),
                ));
            }
            return Turn::Leave(None);
        }
        Turn::Go(if waits { Step::Idle } else { Step::More })
    }

    /// Reserves the memory for all blocks of a cooperative launch. False: others use it now.
    fn reserve(&self, grid: &Grid, prepared: &Prepared, cx: &Cx<'_>) -> bool {
        let all = grid.units.checked_mul(Unit::bytes_of(cx));
        let limit = grid.context.config.run_memory;
        if all.is_none_or(|n| n > limit) {
            grid.fail(Error::new(
                Code::CooperativeLaunchTooLarge,
                format!(
                    "{} blocks at once need {} bytes of {limit}",
                    grid.units * grid.unit_blocks,
                    all.unwrap_or(u64::MAX)
                ),
            ));
            return false;
        }
        prepared.memory.grow(all.unwrap_or(0))
    }

    /// Begins another block if it is time for one, or continues its construction.
    fn begin(&mut self, grid: &Grid, cx: &Cx<'_>) -> Begin {
        if self.building.is_none() {
            let room = grid.how.cooperative
                || self.resident.len() < RESIDENT && self.vain >= self.resident.len();
            if !room || !self.deal(grid) {
                return Begin::None;
            }
            let unit = match self.idle.pop() {
                Some(u) => Some(u),
                None => self.make(grid, cx),
            };
            let Some(unit) = unit else {
                if self.resident.is_empty() {
                    return Begin::NoMemory;
                }
                // It must wait for one of the others.
                return Begin::None;
            };
            let Some(number) = self.dealt.next() else {
                return Begin::None;
            };
            self.building = Some((unit, number));
        }
        if let Some((mut unit, number)) = self.building.take() {
            if unit.build(cx) {
                unit.start(cx, number);
                self.resident.push_back(unit);
                self.vain = 0;
            } else {
                self.building = Some((unit, number));
            }
        }
        Begin::Begun
    }

    /// Whether there is a unit to begin: the next one of those dealt.
    fn deal(&mut self, grid: &Grid) -> bool {
        if !self.dealt.is_empty() {
            return true;
        }
        if grid.how.cooperative {
            let k = self.mine;
            self.mine += u64::from(grid.seats);
            self.dealt = k..k + u64::from(k < grid.units);
        } else {
            let n = grid.batch();
            // Fewer towards the end: units that one thread has taken are lost to the others.
            let left = grid
                .units
                .saturating_sub(grid.next.0.load(Ordering::Relaxed));
            let n = n.min(left / u64::from(grid.seats)).max(1);
            let k = grid.next.0.fetch_add(n, Ordering::Relaxed);
            self.dealt = k.min(grid.units)..(k + n).min(grid.units);
            if self.dealt.is_empty()
                && let Some(k) = grid.seating().returned.pop()
            {
                self.dealt = k..k + 1;
            }
        }
        !self.dealt.is_empty()
    }

    fn make(&self, grid: &Grid, cx: &Cx<'_>) -> Option<Unit> {
        let bytes = Unit::bytes_of(cx);
        // A cooperative launch has reserved its memory already.
        if !grid.how.cooperative && !cx.take_memory(bytes) {
            return None;
        }
        let unit = Unit::new(cx);
        if unit.is_none() && !grid.how.cooperative {
            cx.launch.memory.shrink(bytes);
        }
        unit
    }

    /// Runs a slice of a block that has begun.
    fn slice(&mut self, grid: &Grid, cx: &Cx<'_>, mut unit: Unit) -> Result<(), Error> {
        let mut used = 0;
        let result = unit.slice(cx, &mut used);
        let count = &grid.counts[self.number as usize];
        let add = |c: &AtomicU64, n| c.store(c.load(Ordering::Relaxed) + n, Ordering::Relaxed);
        add(&count.steps, used);
        if result? {
            add(&count.finished, 1);
            self.idle.push(unit);
            self.vain = 0;
        } else {
            self.resident.push_back(unit);
            self.vain += 1;
        }
        Ok(())
    }

    /// Whether other threads work on the launch.
    fn others_sit(&self) -> bool {
        let s = self.grid.seating();
        s.taken - s.left > 1
    }

    /// Gives the seat up, returning a unit for which it has no memory.
    fn leave(&mut self, unit: Option<u64>) -> Step {
        let stopped = self.grid.stop.load(Ordering::Relaxed);
        self.prepared = None;
        // A stopped launch is reported first: freeing much memory takes time.
        if let Some(memory) = self.memory.as_ref()
            && !stopped
        {
            for u in self.idle.drain(..) {
                let bytes = u.bytes();
                drop(u);
                if !self.grid.how.cooperative {
                    memory.shrink(bytes);
                }
            }
        }
        let last = {
            let mut s = self.grid.seating();
            s.returned.extend(unit);
            s.returned.extend(&mut self.dealt);
            if !stopped && s.taken - s.left == 1 && !s.returned.is_empty() {
                // No other thread is left to do it.
                return Step::More;
            }
            s.left += 1;
            let all = s.taken == s.left;
            // Units of a cooperative launch wait for their seat.
            let dealt = !self.grid.how.cooperative || s.taken == self.grid.seats;
            s.closed = all && (stopped || dealt);
            s.closed
        };
        if last {
            self.grid.close();
        }
        Step::Left
    }
}
