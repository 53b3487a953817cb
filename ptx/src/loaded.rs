//! A module on a device: the addresses of its variables, and the initial state of a launch of each
//! kernel.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::allocations::Allocations;
use crate::error::{Code, Error, invalid};
use crate::exec::cx::Start;
use crate::module::{Module, reach, shared_layout};
use crate::program::{Builtin, Callee, Program, Target, Value};
use crate::space::FUNCTION;
use crate::types::Space;

/// A module on a device: its variables have addresses. Clones share it.
#[derive(Debug, Clone)]
pub struct Loaded {
    module: Module,
    /// Addresses of the variables in global and constant memory.
    addresses: Arc<Vec<u64>>,
    /// The plan of each kernel that was launched.
    plans: Arc<Mutex<HashMap<u32, Arc<Plan>>>>,
}

/// The initial state of every launch of a kernel.
#[derive(Debug)]
pub(crate) struct Plan {
    /// One per function.
    pub(crate) starts: Vec<Start>,
    /// Start of dynamic shared memory.
    pub(crate) dynamic_at: u64,
    /// Stack needed by calls without recursion.
    pub(crate) stack: u32,
    /// Something in the module calls `malloc`.
    pub(crate) uses_heap: bool,
}

impl Loaded {
    pub(crate) fn new(module: &Module, memory: &mut Allocations) -> Result<Self, Error> {
        let p = &module.program;
        let mut addresses = Vec::with_capacity(p.variables.len());
        for v in &p.variables {
            addresses.push(match v.space {
                Space::Global | Space::Const if v.size > 0 => {
                    match memory.add(v.size, v.space == Space::Const) {
                        Ok(a) => a,
                        Err(e) => {
                            memory.remove_all(&addresses);
                            return Err(e);
                        }
                    }
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
            let r = memory.region(*address, init.len() as u64)?;
            if r.bytes.write(address - r.base, &init).is_none() {
                return invalid("an initialiser longer than its variable");
            }
        }
        Ok(Self {
            module: module.clone(),
            addresses: Arc::new(addresses),
            plans: Arc::default(),
        })
    }

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

    pub(crate) fn program(&self) -> &Program {
        &self.module.program
    }

    /// Addresses of the variables in memory.
    pub(crate) fn addresses(&self) -> &[u64] {
        &self.addresses
    }

    /// Made at the first launch of a kernel, then kept.
    pub(crate) fn plan(&self, kernel: u32) -> Arc<Plan> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = plans
            .entry(kernel)
            .or_insert_with(|| Arc::new(Plan::new(self.program(), kernel, &self.addresses)));
        Arc::clone(plan)
    }
}

impl Plan {
    fn new(program: &Program, kernel: u32, addresses: &[u64]) -> Self {
        let functions = reach(program, kernel);
        let (layout, fixed) = shared_layout(program, &functions);
        let dynamic = |k: &u32| program.variables[*k as usize].dynamic;
        let dynamic_at = layout.iter().filter(|(k, _)| dynamic(k)).map(|(_, at)| *at);
        let entry = &program.functions[kernel as usize];
        let malloc = Callee::Builtin(Builtin::Malloc);
        Self {
            dynamic_at: dynamic_at.min().unwrap_or(fixed),
            starts: starts(program, &functions, addresses, &layout),
            stack: chain(program, kernel).saturating_sub(entry.locals),
            uses_heap: program.calls.iter().any(|c| c.callee == malloc),
        }
    }
}

/// Stack needed by calls of known depth: the deepest chain without recursion.
fn chain(program: &Program, kernel: u32) -> u32 {
    fn visit(p: &Program, k: u32, known: &mut HashMap<u32, Option<u32>>) -> Option<u32> {
        if let Some(n) = known.get(&k) {
            return *n;
        }
        // Under way: meeting it again is recursion.
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
    // The call tree is as deep as the module's text allows: larger modules are not followed.
    if program.functions.len() > 2000 {
        return 0;
    }
    visit(program, kernel, &mut HashMap::new()).unwrap_or(0)
}

/// The constants of each function that the kernel can reach.
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
