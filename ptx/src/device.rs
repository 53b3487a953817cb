//! A device: its memory, the modules on it, and launches.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::environment::Environment;
use crate::error::{Code, Error};
use crate::exec::{Launch as Running, Start};
use crate::grid::{self, Report};
use crate::memory::Bytes;
use crate::module::{Kernel, Module, reach, shared_layout};
use crate::program::{Builtin, Callee, Program, Target, Value};
use crate::space::{CONST, END, FUNCTION, GLOBAL, Region};
use crate::types::Space;
use crate::warp::Warp;

/// Between two allocations nothing is mapped for at least so many bytes.
const GUARD: u64 = 2 << 20;
/// Allocations begin at multiples of this.
const ALIGN: u64 = 512;
/// Threads of a block.
const THREADS: u64 = 1024;
/// Shared memory of a block without and with a kernel's consent.
const SHARED: [u32; 2] = [48 << 10, 227 << 10];
/// Calls within calls.
const DEPTH: u32 = 4096;

/// How big a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Bytes that may be allocated.
    pub memory: u64,
    /// Bytes of registers, stacks and shared memory of all resident blocks.
    pub run_memory: u64,
    /// Bytes for `malloc` in kernels.
    pub heap: u64,
    /// Bytes of stack a thread, for calls whose depth is not known before. What a call chain without
    /// recursion needs is given in any case.
    pub stack: u32,
    /// Threads that run blocks. One makes every launch come out the same.
    pub workers: u32,
    /// Use the processor's wide vectors if it has them.
    pub wide_vectors: bool,
}

impl Default for Config {
    fn default() -> Self {
        let workers =
            std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
        Self {
            memory: 4 << 30,
            run_memory: 1 << 30,
            heap: 8 << 20,
            stack: 1024,
            workers,
            wide_vectors: true,
        }
    }
}

/// A device. Everything on it may be used from several threads at once.
#[derive(Debug)]
pub struct Device {
    config: Config,
    state: Mutex<State>,
    environment: Environment,
    grid_ids: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// By address. Launches hold on to the list they began with.
    regions: Arc<Vec<Arc<Region>>>,
    used: u64,
    next: u64,
    next_const: u64,
    /// What everything answers after a fault.
    fault: Option<Error>,
    workspace: u64,
}

/// A module on a device: its variables have addresses.
#[derive(Debug, Clone)]
pub struct Loaded {
    module: Module,
    /// Addresses of the variables in global and constant memory.
    addresses: Arc<Vec<u64>>,
}

impl Loaded {
    /// The module.
    #[must_use]
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// Address and size of a variable.
    ///
    /// # Errors
    ///
    /// 500 if there is none of that name.
    pub fn variable(&self, name: &str) -> Result<(u64, u64), Error> {
        let p = &self.module.program;
        let found = p
            .variables
            .iter()
            .zip(&*self.addresses)
            .find(|(v, a)| v.module_scope && **a != 0 && v.name == name);
        found.map(|(v, a)| (*a, v.size)).ok_or_else(|| {
            Error::new(
                Code::NotFound,
                format!("the module has no variable '{name}'"),
            )
        })
    }
}

/// Ends a launch from another thread.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// The launch ends within some milliseconds.
    pub fn cancel(&self) {
        // Read by the workers after each slice; no data goes with it.
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How to launch a kernel.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Dynamic shared memory, bytes.
    pub shared: u32,
    /// Dynamic shared memory beyond 48 KiB is meant (`MAX_DYNAMIC_SHARED_SIZE_BYTES`).
    pub shared_opt_in: bool,
    /// All blocks at once, which may then wait for each other.
    pub cooperative: bool,
    /// Time for the launch.
    pub deadline: Option<Duration>,
    /// Instructions of warps, at most.
    pub steps: u64,
    /// To end it from another thread.
    pub cancel: Cancel,
}

impl Launch {
    /// So many blocks of so many threads, with no deadline.
    #[must_use]
    pub fn new(grid: [u32; 3], block: [u32; 3]) -> Self {
        Self {
            grid,
            block,
            shared: 0,
            shared_opt_in: false,
            cooperative: false,
            deadline: None,
            steps: u64::MAX,
            cancel: Cancel::default(),
        }
    }
}

fn invalid<T>(text: impl Into<String>) -> Result<T, Error> {
    Err(Error::new(Code::InvalidValue, text))
}

impl Device {
    /// A device with nothing on it.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let state = State {
            regions: Arc::default(),
            used: 0,
            next: GLOBAL,
            next_const: CONST,
            fault: None,
            workspace: 0,
        };
        Self {
            config,
            state: Mutex::new(state),
            environment: Environment::default(),
            grid_ids: AtomicU64::new(1),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, if no fault has ended the context.
    fn sound(&self) -> Result<MutexGuard<'_, State>, Error> {
        let s = self.state();
        match &s.fault {
            Some(e) => Err(e.clone()),
            None => Ok(s),
        }
    }

    /// Allocates memory, all zero, at an address that is a multiple of 512.
    ///
    /// # Errors
    ///
    /// 1 for no bytes, 2 beyond the quota, the error of an earlier fault.
    pub fn allocate(&self, bytes: u64) -> Result<u64, Error> {
        if bytes == 0 {
            return invalid("an allocation of no bytes");
        }
        let mut s = self.sound()?;
        s.add(bytes, self.config.memory, false)
    }

    /// Frees an allocation. A launch that is running keeps what it began with.
    ///
    /// # Errors
    ///
    /// 1 if nothing begins at the address, the error of an earlier fault.
    pub fn free(&self, address: u64) -> Result<(), Error> {
        let mut s = self.sound()?;
        let at = s.regions.binary_search_by_key(&address, |r| r.base);
        let Some(at) = at.ok().filter(|k| !s.regions[*k].read_only) else {
            return invalid(format!("nothing is allocated at 0x{address:x}"));
        };
        // Copied only if a running launch holds the list.
        let r = Arc::make_mut(&mut s.regions).remove(at);
        s.used -= r.bytes.len();
        Ok(())
    }

    /// The allocation that an address lies in: where it begins, and its bytes.
    ///
    /// # Errors
    ///
    /// 1 if it is in none.
    pub fn range(&self, address: u64) -> Result<(u64, u64), Error> {
        let r = self.region(address, 1)?;
        Ok((r.base, r.bytes.len()))
    }

    fn region(&self, address: u64, len: u64) -> Result<Arc<Region>, Error> {
        let s = self.sound()?;
        let at = s
            .regions
            .partition_point(|r| r.base <= address)
            .checked_sub(1);
        let r = at.map(|k| &s.regions[k]).filter(|r| {
            (address - r.base)
                .checked_add(len)
                .is_some_and(|end| end <= r.bytes.len())
        });
        r.cloned().ok_or_else(|| {
            Error::new(
                Code::InvalidValue,
                format!("{len} bytes at 0x{address:x} are not all allocated"),
            )
        })
    }

    /// Copies from the device.
    ///
    /// # Errors
    ///
    /// 1 if the range is not inside one allocation, the error of an earlier fault.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), Error> {
        let r = self.region(address, out.len() as u64)?;
        r.bytes
            .read(address - r.base, out)
            .map_or_else(|| invalid("out of range"), Ok)
    }

    /// Copies to the device.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), Error> {
        let r = self.region(address, data.len() as u64)?;
        r.bytes
            .write(address - r.base, data)
            .map_or_else(|| invalid("out of range"), Ok)
    }

    /// Copies within the device; the ranges may overlap.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<(), Error> {
        let (t, f) = (self.region(to, bytes)?, self.region(from, bytes)?);
        // In pieces, from the end where the ranges overlap that way.
        let piece = 1u64 << 20;
        let pieces = bytes.div_ceil(piece);
        let mut buffer = vec![0; usize::try_from(piece.min(bytes)).unwrap_or(0)];
        for k in 0..pieces {
            let k = if to > from { pieces - 1 - k } else { k };
            let at = k * piece;
            let n = usize::try_from(piece.min(bytes - at)).unwrap_or(0);
            let done = f
                .bytes
                .read(from - f.base + at, &mut buffer[..n])
                .and_then(|()| t.bytes.write(to - t.base + at, &buffer[..n]));
            if done.is_none() {
                return invalid("out of range");
            }
        }
        Ok(())
    }

    /// Fills `count` elements of 1, 2 or 4 bytes with a value.
    ///
    /// # Errors
    ///
    /// 1 for another size, for an address not aligned to it, and as [`Self::read`].
    pub fn fill(&self, address: u64, value: u32, size: u32, count: u64) -> Result<(), Error> {
        if !matches!(size, 1 | 2 | 4) || !address.is_multiple_of(u64::from(size)) {
            return invalid(format!("elements of {size} bytes at 0x{address:x}"));
        }
        let Some(bytes) = count.checked_mul(u64::from(size)) else {
            return invalid("too many elements");
        };
        let r = self.region(address, bytes)?;
        let element = &value.to_le_bytes()[..size as usize];
        let piece = element.repeat(65_536 / element.len());
        let mut at = 0;
        while at < bytes {
            let n = (bytes - at).min(piece.len() as u64);
            let part = &piece[..usize::try_from(n).unwrap_or(0)];
            if r.bytes.write(address - r.base + at, part).is_none() {
                return invalid("out of range");
            }
            at += n;
        }
        Ok(())
    }

    /// Bytes allocated, and the quota.
    #[must_use]
    pub fn memory(&self) -> (u64, u64) {
        (self.state().used, self.config.memory)
    }

    /// Puts a module's variables on the device.
    ///
    /// # Errors
    ///
    /// 2 beyond the quota, the error of an earlier fault.
    pub fn load(&self, module: &Module) -> Result<Loaded, Error> {
        let p = &module.program;
        let mut s = self.sound()?;
        let mut addresses = Vec::with_capacity(p.variables.len());
        for v in &p.variables {
            let is_const = v.space == Space::Const;
            addresses.push(match v.space {
                Space::Global | Space::Const if v.size > 0 => {
                    s.add(v.size, self.config.memory, is_const)?
                }
                _ => 0,
            });
        }
        for (v, address) in p.variables.iter().zip(&addresses) {
            if *address == 0 || v.init.is_empty() {
                continue;
            }
            let mut init = v.init.clone();
            for (at, size, target, plus) in &v.relocations {
                let a = match target {
                    Target::Variable(k) => addresses[*k as usize],
                    Target::Function(k) => FUNCTION + 16 * u64::from(*k),
                };
                let (from, n) = (usize::try_from(*at).unwrap_or(0), *size as usize);
                init[from..from + n]
                    .copy_from_slice(&a.wrapping_add_signed(*plus).to_le_bytes()[..n]);
            }
            let at = s.regions.partition_point(|r| r.base <= *address) - 1;
            let r = &s.regions[at];
            if r.bytes.write(address - r.base, &init).is_none() {
                return invalid("an initialiser longer than its variable");
            }
        }
        Ok(Loaded {
            module: module.clone(),
            addresses: Arc::new(addresses),
        })
    }

    /// Takes a module's variables away again.
    ///
    /// # Errors
    ///
    /// The error of an earlier fault.
    pub fn unload(&self, loaded: &Loaded) -> Result<(), Error> {
        let mut s = self.sound()?;
        let mut list = (*s.regions).clone();
        list.retain(|r| !loaded.addresses.contains(&r.base));
        s.used = list.iter().map(|r| r.bytes.len()).sum();
        s.regions = Arc::new(list);
        Ok(())
    }

    /// What kernels have printed since the last call.
    #[must_use]
    pub fn take_output(&self) -> Vec<u8> {
        self.environment.take_output()
    }

    /// Runs a kernel to its end. `parameters` are packed as [`Kernel::parameters`] says.
    ///
    /// # Errors
    ///
    /// 1 for a launch that cannot be, 400 for a kernel of another module, 720 for a cooperative launch
    /// that is too large; 700, 702, 710, 715 to 719 for what happens in the kernel, and from then on
    /// for everything on this device.
    pub fn launch(
        &self,
        loaded: &Loaded,
        kernel: &Kernel,
        how: &Launch,
        parameters: &[u8],
    ) -> Result<Report, Error> {
        let program = &*loaded.module.program;
        if program
            .functions
            .get(kernel.index as usize)
            .is_none_or(|f| f.name != kernel.name)
        {
            return Err(Error::new(
                Code::InvalidHandle,
                format!("kernel '{}' is of another module", kernel.name),
            ));
        }
        let cluster = kernel.cluster.unwrap_or([1; 3]);
        check(kernel, how, parameters, cluster)?;
        let functions = reach(program, kernel.index);
        let (layout, fixed) = shared_layout(program, &functions);
        let dynamic_at = program
            .variables
            .iter()
            .enumerate()
            .filter(|(_, v)| v.dynamic);
        let dynamic_at = dynamic_at
            .filter_map(|(k, _)| layout.get(&u32::try_from(k).unwrap_or(0)))
            .min()
            .copied()
            .unwrap_or(fixed);
        let total = u32::try_from(dynamic_at + u64::from(how.shared)).unwrap_or(u32::MAX);
        let (regions, workspace) = {
            let mut s = self.sound()?;
            let mallocs = program
                .calls
                .iter()
                .any(|c| matches!(c.callee, Callee::Builtin(Builtin::Malloc)));
            if mallocs && self.environment.heap().1 == 0 && self.config.heap > 0 {
                let base = s.add(self.config.heap, self.config.memory, false)?;
                self.environment.set_heap(base, self.config.heap);
            }
            if how.cooperative {
                // The grid's barrier counts in a word of its own, which begins at zero.
                let old = s.workspace;
                if old == 0 {
                    s.workspace = s.add(16, self.config.memory, false)?;
                }
            }
            (Arc::clone(&s.regions), s.workspace)
        };
        if how.cooperative {
            self.write(workspace, &[0; 16])?;
        }
        let starts = starts(program, &functions, &loaded.addresses, &layout);
        let memory_left = AtomicU64::new(self.config.run_memory);
        let units = how.grid.iter().map(|n| u64::from(*n)).product::<u64>();
        if how.cooperative {
            let warps = how.block.iter().product::<u32>().div_ceil(32);
            let each = u64::from(warps) * Warp::bytes(program, kernel.index) + u64::from(total);
            if units.saturating_mul(each) > self.config.run_memory {
                return Err(Error::new(
                    Code::CooperativeLaunchTooLarge,
                    format!(
                        "{units} blocks at once need {} bytes of {}",
                        units.saturating_mul(each),
                        self.config.run_memory
                    ),
                ));
            }
        }
        let entry = &program.functions[kernel.index as usize];
        #[cfg(target_arch = "x86_64")]
        let wide_vectors = self.config.wide_vectors && crate::vectors::available();
        #[cfg(not(target_arch = "x86_64"))]
        let wide_vectors = false;
        let running = Running {
            program,
            kernel: kernel.index,
            regions: &regions,
            params: &parameters[..kernel.parameter_bytes as usize],
            grid: how.grid,
            block: how.block,
            cluster,
            starts: &starts,
            shared: total,
            dynamic_shared: how.shared,
            stack: self
                .config
                .stack
                .max(chain(program, kernel.index).saturating_sub(entry.locals)),
            depth: DEPTH,
            memory_left: &memory_left,
            environment: &self.environment,
            workspace: if how.cooperative { workspace } else { 0 },
            grid_id: self.grid_ids.fetch_add(1, Ordering::Relaxed),
            workers: self
                .config
                .workers
                .max(1)
                .min(u32::try_from(units).unwrap_or(u32::MAX)),
            since: Instant::now(),
            wide_vectors,
        };
        let limits = grid::Limits {
            deadline: how.deadline.and_then(|d| Instant::now().checked_add(d)),
            steps: how.steps,
            cancel: Arc::clone(&how.cancel.0),
        };
        let result = grid::execute(&running, &limits, how.cooperative);
        if let Err(e) = &result
            && e.code.is_sticky()
        {
            self.state().fault.get_or_insert_with(|| e.clone());
        }
        result
    }
}

impl State {
    fn add(&mut self, bytes: u64, quota: u64, read_only: bool) -> Result<u64, Error> {
        let full = || {
            Error::new(
                Code::OutOfMemory,
                format!("{bytes} bytes: the quota of {quota} bytes does not allow it"),
            )
        };
        if self.used.checked_add(bytes).is_none_or(|n| n > quota) {
            return Err(full());
        }
        let (start, end) = if read_only {
            (CONST, CONST + (1 << 40))
        } else {
            (GLOBAL, END)
        };
        let room = bytes.next_multiple_of(ALIGN) + GUARD;
        let next = if read_only {
            self.next_const
        } else {
            self.next
        };
        let base = if end - next > room {
            next
        } else {
            self.gap(start, end, room).ok_or_else(full)?
        };
        let storage = Bytes::zeroed(bytes).ok_or_else(full)?;
        let after = (base + room).next_multiple_of(ALIGN);
        if read_only {
            self.next_const = after;
        } else {
            self.next = after;
        }
        let list = Arc::make_mut(&mut self.regions);
        let at = list.partition_point(|r| r.base < base);
        list.insert(
            at,
            Arc::new(Region {
                base,
                bytes: storage,
                read_only,
            }),
        );
        self.used += bytes;
        Ok(base)
    }

    /// Room between what is allocated, once all addresses have been used.
    fn gap(&self, start: u64, end: u64, room: u64) -> Option<u64> {
        let mut at = start;
        for r in self
            .regions
            .iter()
            .filter(|r| (start..end).contains(&r.base))
        {
            if r.base - at > room {
                return Some(at);
            }
            at = (r.base + r.bytes.len() + GUARD).next_multiple_of(ALIGN);
        }
        (end.saturating_sub(at) > room).then_some(at)
    }
}

fn check(kernel: &Kernel, how: &Launch, parameters: &[u8], cluster: [u32; 3]) -> Result<(), Error> {
    let [gx, gy, gz] = how.grid;
    let [bx, by, bz] = how.block;
    if gx == 0 || gy == 0 || gz == 0 || gx > i32::MAX.cast_unsigned() || gy > 65_535 || gz > 65_535
    {
        return invalid(format!(
            "a grid of {gx} x {gy} x {gz} blocks; at most 2147483647 x 65535 x 65535"
        ));
    }
    let threads = [bx, by, bz].iter().map(|n| u64::from(*n)).product::<u64>();
    if threads == 0 || bx > 1024 || by > 1024 || bz > 64 || threads > THREADS {
        return invalid(format!(
            "a block of {bx} x {by} x {bz} threads; at most {THREADS}, and 1024 x 1024 x 64"
        ));
    }
    if threads > u64::from(kernel.max_threads) {
        return invalid(format!(
            "a block of {threads} threads; kernel '{}' allows {}",
            kernel.name, kernel.max_threads
        ));
    }
    if kernel.required_block.is_some_and(|r| r != how.block) {
        return invalid(format!(
            "a block of {bx} x {by} x {bz} threads; kernel '{}' wants {:?}",
            kernel.name,
            kernel.required_block.unwrap_or_default()
        ));
    }
    let limit = SHARED[usize::from(how.shared_opt_in)];
    if how.shared > 0 && kernel.shared_bytes.saturating_add(how.shared) > limit {
        return invalid(format!(
            "{} bytes of shared memory and {} dynamic; at most {limit}",
            kernel.shared_bytes, how.shared
        ));
    }
    if parameters.len() < kernel.parameter_bytes as usize {
        return invalid(format!(
            "{} bytes of parameters; kernel '{}' has {}",
            parameters.len(),
            kernel.name,
            kernel.parameter_bytes
        ));
    }
    if cluster.contains(&0)
        || cluster.iter().product::<u32>() > 16
        || (0..3).any(|d| !how.grid[d].is_multiple_of(cluster[d]))
    {
        return invalid(format!(
            "a grid of {gx} x {gy} x {gz} blocks in clusters of {cluster:?}"
        ));
    }
    Ok(())
}

/// Stack that calls need whose depth is known: the deepest chain without recursion.
fn chain(program: &Program, kernel: u32) -> u32 {
    fn visit(p: &Program, k: u32, known: &mut HashMap<u32, Option<u32>>) -> Option<u32> {
        if let Some(n) = known.get(&k) {
            return *n;
        }
        // In work: to meet it again is recursion.
        known.insert(k, None);
        let f = &p.functions[k as usize];
        let mut deepest = 0;
        for c in &f.calls {
            deepest = visit(p, *c, known)?.max(deepest);
        }
        let own = if f.calls_indirectly {
            None
        } else {
            Some(
                deepest
                    .saturating_add(f.locals.next_multiple_of(16))
                    .saturating_add(16),
            )
        };
        known.insert(k, own);
        own
    }
    // The call tree of a module is as deep as its text allows: no deeper than this is followed.
    if program.functions.len() > 2000 {
        return 0;
    }
    visit(program, kernel, &mut HashMap::new()).unwrap_or(0)
}

/// The constants of each function that the kernel can get to.
fn starts(
    program: &Program,
    functions: &[u32],
    addresses: &[u64],
    layout: &HashMap<u32, u64>,
) -> Vec<Start> {
    let mut list: Vec<Start> = program.functions.iter().map(|_| Start::default()).collect();
    for k in functions {
        let s = &mut list[*k as usize];
        for c in &program.functions[*k as usize].constants {
            let bits = match c.value {
                Value::Bits(b) => b,
                Value::Variable(v, plus) => layout
                    .get(&v)
                    .copied()
                    .unwrap_or(addresses[v as usize])
                    .wrapping_add_signed(plus),
                Value::Function(f) => FUNCTION + 16 * u64::from(f),
                Value::Frame(_) | Value::FrameGeneric(_) | Value::Special(_) => {
                    s.varying.push((c.slot, c.wide, c.value));
                    if let Value::Special(x) = c.value
                        && x.is_of_block()
                    {
                        s.of_block.push((c.slot, c.wide, x));
                    }
                    continue;
                }
            };
            if c.wide {
                s.r64.push((c.slot, bits));
            } else {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "a register of 32 bits takes the low half"
                )]
                s.r32.push((c.slot, bits as u32));
            }
        }
    }
    list
}
