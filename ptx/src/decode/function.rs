//! Functions: their declarations, labels and instructions. The row of [`crate::table`] decides how
//! an instruction is decoded.

use std::collections::{HashMap, HashSet};

use super::body::{Body, Entity, Names, Scope, shape};
use super::modifiers::{Decoded, Modifiers, Wrong, mistake};
use super::variable::variable;
use crate::ast::{self, Instruction, Statement};
use crate::error::Diagnostic;
use crate::ops::Op;
use crate::program::{Function, NONE, Parameter, Place, Program, flag};
use crate::table;
use crate::types::Space;

/// The settings common to all functions of a module.
#[derive(Debug)]
pub(crate) struct Setting<'p> {
    pub(crate) program: &'p mut Program,
    pub(crate) names: &'p Names,
    pub(crate) lane_functions: &'p mut HashMap<usize, u32>,
    /// The number behind `sm_`.
    pub(crate) target: u32,
    pub(crate) version: (u32, u32),
}

/// Decodes a function with a body.
pub(crate) fn function<'a>(
    s: &mut Setting<'_>,
    f: &ast::Function<'a>,
    statements: &[Statement<'a>],
) -> Result<Function, Vec<Diagnostic>> {
    let start = u32::try_from(s.program.code.len()).unwrap_or(u32::MAX);
    let mut b = Body {
        program: s.program,
        names: s.names,
        scopes: vec![Scope::default()],
        function: empty(f),
        constants: HashMap::new(),
        labels: Vec::new(),
        fixups: Vec::new(),
        tables: Vec::new(),
        found: Vec::new(),
        line: f.line,
        sinks: [NONE; 3],
        seen_variables: HashSet::new(),
        lane_functions: s.lane_functions,
        target: s.target,
        version: s.version,
    };
    b.function.start = start;
    b.function.np = 1; // predicate 0 stays false
    if let Err(e) = b.parameters(f) {
        b.report(f.line, e);
    }
    b.block(statements);
    b.emit(Op::Ret, NONE, NONE, NONE, NONE);
    b.resolve_labels();
    b.function.end = u32::try_from(b.program.code.len()).unwrap_or(u32::MAX);
    if b.found.is_empty() {
        Ok(b.function)
    } else {
        Err(b.found)
    }
}

/// A function before its body.
pub(crate) fn empty(f: &ast::Function<'_>) -> Function {
    Function {
        name: f.name.to_string(),
        entry: f.entry,
        start: 0,
        end: 0,
        n32: 0,
        n64: 0,
        np: 0,
        constants: Vec::new(),
        frame: 0,
        locals: 0,
        params: Vec::new(),
        results: Vec::new(),
        layout: Vec::new(),
        param_bytes: 0,
        limits: f.limits,
        calls: Vec::new(),
        calls_indirectly: false,
        variables: Vec::new(),
        unsupported: Vec::new(),
        registers: 0,
    }
}

/// The packed layout of a kernel's parameters: each at the next multiple of its alignment.
pub(crate) fn layout(f: &ast::Function<'_>) -> (Vec<Parameter>, u64) {
    let mut at = 0u64;
    let mut list = Vec::new();
    for p in &f.params {
        at = at.next_multiple_of(u64::from(p.align.max(1)));
        list.push(Parameter {
            name: p.name.to_string(),
            ty: p.ty,
            offset: u32::try_from(at).unwrap_or(u32::MAX),
            size: u32::try_from(p.size()).unwrap_or(u32::MAX),
            align: p.align,
        });
        at = at.saturating_add(p.size());
    }
    (list, at)
}

impl<'a> Body<'_, 'a> {
    fn parameters(&mut self, f: &ast::Function<'a>) -> Decoded {
        if f.entry {
            let (list, bytes) = layout(f);
            for (p, ast) in list.iter().zip(&f.params) {
                self.define(ast.name, Entity::Kernel(p.offset));
            }
            self.function.layout = list;
            self.function.param_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            return Ok(());
        }
        for p in &f.params {
            let place = self.parameter(p)?;
            self.function.params.push(place);
        }
        for p in &f.results {
            let place = self.parameter(p)?;
            self.function.results.push(place);
        }
        Ok(())
    }

    fn parameter(&mut self, p: &ast::Variable<'a>) -> Decoded<Place> {
        if p.space == Space::Reg {
            let e = self.register(p.ty)?;
            let place = match e {
                Entity::Predicate(s) => Place::Pred(s),
                Entity::Register(64, s) => Place::R64(s),
                Entity::Register(_, s) => Place::R32(s),
                _ => return mistake("not a register"),
            };
            self.define(p.name, e);
            return Ok(place);
        }
        let (at, size) = self.place(p)?;
        self.define(
            p.name,
            Entity::Frame {
                at,
                size,
                param: true,
            },
        );
        Ok(Place::Frame { at, size })
    }

    fn block(&mut self, statements: &[Statement<'a>]) {
        self.scopes.push(Scope::default());
        for s in statements {
            if let Statement::Label(name) = s {
                self.labels.push(None);
                let id = self.labels.len() - 1;
                self.define(name, Entity::Label(id));
            }
        }
        for s in statements {
            // The log is bounded, and so is the work for it.
            if self.found.len() > 100 {
                break;
            }
            match s {
                Statement::Block(inner) => self.block(inner),
                Statement::Declare(v) => {
                    if let Err(e) = self.declare(v) {
                        self.report(v.line, e);
                    }
                }
                Statement::Label(name) => {
                    if let Some(Entity::Label(id)) = self.lookup(name) {
                        self.labels[id] = u32::try_from(self.program.code.len()).ok();
                    }
                }
                Statement::Targets(name, list) => {
                    self.program.targets.push(Vec::new());
                    let at = self.program.targets.len() - 1;
                    // Labels are resolved here, where their scope is known.
                    let ids: Vec<usize> = list
                        .iter()
                        .filter_map(|n| match self.lookup(n) {
                            Some(Entity::Label(id)) => Some(id),
                            _ => None,
                        })
                        .collect();
                    if ids.len() == list.len() {
                        for id in ids {
                            self.tables.push((at, id));
                        }
                        self.define(name, Entity::Targets(at));
                    }
                }
                Statement::Prototype(name, results, params) => {
                    self.define(
                        name,
                        Entity::Prototype(
                            results.iter().map(shape).collect(),
                            params.iter().map(shape).collect(),
                        ),
                    );
                }
                Statement::Instruction(i) => self.instruction(i),
            }
        }
        self.scopes.pop();
    }

    fn declare(&mut self, v: &ast::Variable<'a>) -> Decoded {
        match v.space {
            Space::Reg => {
                let bits = match v.ty.bits() {
                    8 => 16,
                    b => b,
                };
                if v.vector != 1 {
                    return mistake("vectors of registers are not supported by the cpu executor");
                }
                if let Some(n) = v.range {
                    if let Some(s) = self.scopes.last_mut() {
                        s.ranges.insert(v.name, (n, bits));
                    }
                } else {
                    let e = self.register(v.ty)?;
                    self.define(v.name, e);
                }
            }
            Space::Local => {
                let before = self.function.frame;
                let (at, size) = self.place(v)?;
                self.function.locals += self.function.frame - before;
                self.define(
                    v.name,
                    Entity::Frame {
                        at,
                        size,
                        param: false,
                    },
                );
            }
            Space::Param => {
                let (at, size) = self.place(v)?;
                self.define(
                    v.name,
                    Entity::Frame {
                        at,
                        size,
                        param: true,
                    },
                );
            }
            _ => {
                let mut made = variable(v, self.names)?;
                made.module_scope = false;
                self.program.variables.push(made);
                let k = u32::try_from(self.program.variables.len() - 1).unwrap_or(0);
                self.define(v.name, Entity::Variable(k));
            }
        }
        Ok(())
    }

    fn instruction(&mut self, i: &Instruction<'a>) {
        self.line = i.line;
        let from = self.program.code.len();
        let result = self.decode(i);
        match result {
            Ok(()) => {}
            Err(Wrong::Unsupported) => {
                self.program.code.truncate(from);
                self.program.lines.truncate(from);
                let mut opcode = i.name.to_string();
                for m in &i.modifiers {
                    opcode.push('.');
                    opcode.push_str(m);
                }
                self.function.unsupported.push((i.line, opcode));
                return;
            }
            Err(w) => {
                self.report(i.line, w);
                return;
            }
        }
        if let Some((name, not)) = i.guard {
            match self.lookup(name) {
                Some(Entity::Predicate(p)) => {
                    for inst in &mut self.program.code[from..] {
                        inst.guard = p;
                        inst.w |= if not { flag::GUARD_NOT } else { 0 };
                    }
                }
                Some(_) => self.report(
                    i.line,
                    Wrong::Mistakes(vec![format!("Guard predicate '{name}' is no predicate")]),
                ),
                None => self.report(
                    i.line,
                    Wrong::Mistakes(vec![format!("Unknown symbol '{name}'")]),
                ),
            }
        }
    }

    fn decode(&mut self, i: &Instruction<'a>) -> Decoded {
        let Some(row) = table::row(i.name) else {
            return mistake(format!("Not a name of any known instruction: '{}'", i.name));
        };
        let unknown: Vec<String> = i
            .modifiers
            .iter()
            .filter(|m| !table::is_modifier(m))
            .map(|m| format!("Unknown modifier '.{m}'"))
            .collect();
        let mut mistakes = unknown;
        if mistakes.is_empty() {
            if self.target < row.sm {
                mistakes.push(format!(
                    "Feature '{}' requires .target sm_{} or higher",
                    row.name, row.sm
                ));
            }
            if self.version < row.ptx {
                mistakes.push(format!(
                    "Feature '{}' requires PTX ISA .version {}.{} or later",
                    row.name, row.ptx.0, row.ptx.1
                ));
            }
        }
        let mut m = Modifiers {
            left: i
                .modifiers
                .iter()
                .filter(|m| table::is_modifier(m))
                .copied()
                .collect(),
            name: i.name,
        };
        let r = (row.decode)(self, i, &mut m);
        if mistakes.is_empty() {
            return r.and_then(|()| m.done());
        }
        // Further errors are reported too, if they concern types.
        if let Err(Wrong::Mistakes(more)) = r {
            mistakes.extend(more.into_iter().filter(|t| t.starts_with("Unexpected")));
        }
        Err(Wrong::Mistakes(mistakes))
    }

    fn resolve_labels(&mut self) {
        for (inst, label) in std::mem::take(&mut self.fixups) {
            self.program.code[inst].x = self.labels[label].unwrap_or(0);
        }
        for (table, label) in std::mem::take(&mut self.tables) {
            let pc = self.labels[label].unwrap_or(0);
            self.program.targets[table].push(pc);
        }
    }
}
