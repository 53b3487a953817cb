//! Modules: the contents of an image, and the kernels of it that can run.

use std::collections::HashMap;
use std::sync::Arc;

use crate::ast::{self, Ast, Linkage};
use crate::decode::body::{Names, UNRESOLVED, shape};
use crate::decode::function::{Setting, empty, function, layout};
use crate::decode::modifiers::Wrong;
use crate::decode::variable::variable;
use crate::error::{Code, Diagnostic, Error, refused};
use crate::image;
use crate::parse::parse;
use crate::program::{Parameter, Program, Variable};
use crate::types::Space;

/// The capability that a device reports: for it, compilers emit nothing that this crate lacks.
pub const COMPUTE_CAPABILITY: (u32, u32) = (8, 0);

/// Most bytes of static shared memory of one kernel.
const SHARED_LIMIT: u64 = 227 << 10;
/// Most bytes of parameters of one kernel, before PTX ISA 8.1 and since.
const PARAMETERS: [u64; 2] = [0x1100, 32_764];

/// The limits of accepted modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The newest `.version`. A driver of CUDA 13.0 accepts 9.0.
    pub version: (u32, u32),
    /// The highest `sm_` of `.target`.
    pub target: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            version: (9, 0),
            target: 90,
        }
    }
}

/// A loaded module. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Module {
    pub(crate) program: Arc<Program>,
    version: (u32, u32),
    target: String,
    by_name: Arc<HashMap<String, u32>>,
}

/// A kernel of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    pub(crate) index: u32,
    /// Its name.
    pub name: String,
    /// Parameters in order, with their offsets among the packed bytes.
    pub parameters: Vec<Parameter>,
    /// Bytes of the packed parameters.
    pub parameter_bytes: u32,
    /// Registers that it uses, in PTX's numbering.
    pub registers: u32,
    /// Static shared memory, bytes.
    pub shared_bytes: u32,
    /// Bytes of local memory per thread, without called functions.
    pub local_bytes: u32,
    /// Constants of the module, bytes.
    pub const_bytes: u64,
    /// Most threads of a block.
    pub max_threads: u32,
    /// `.reqntid`: the only size of a block that may be launched.
    pub required_block: Option<[u32; 3]>,
    /// `.reqnctapercluster`
    pub cluster: Option<[u32; 3]>,
}

/// A variable that the host can reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleVariable {
    /// Its name.
    pub name: String,
    /// Global or const.
    pub space: Space,
    /// Bytes.
    pub size: u64,
    /// Bytes.
    pub align: u32,
}

impl Module {
    /// Loads PTX text, or a fatbin with PTX inside; bytes after a NUL are ignored, as the driver does.
    ///
    /// # Errors
    ///
    /// The driver's errors (200, 209, 218, 222), with a log as ptxas writes it.
    pub fn load(image: &[u8]) -> Result<Self, Error> {
        Self::load_with(image, &Options::default())
    }

    /// [`Self::load`] with other limits.
    ///
    /// # Errors
    ///
    /// As [`Self::load`].
    pub fn load_with(image: &[u8], options: &Options) -> Result<Self, Error> {
        let text = image::text(image)?;
        let ast = parse(&text, &|ast| check_header(ast, options))?;
        if ast.address_size != 64 {
            return Err(fatal(
                " 32-Bit ABI (--machine 32 or 32-Bit addressing) is not supported on sm_90 or higher architectures.",
            ));
        }
        build(&ast)
    }

    /// Kernels, in the order of the text, with the reason if one cannot run.
    #[must_use]
    pub fn kernels(&self) -> Vec<(String, Result<Kernel, Error>)> {
        let list = self.program.functions.iter().filter(|f| f.entry);
        list.map(|f| (f.name.clone(), self.kernel(&f.name)))
            .collect()
    }

    /// Looks up a kernel.
    ///
    /// # Errors
    ///
    /// 500 if there is none of that name; 218, with instruction and line, if it or a function it
    /// calls uses an instruction that this crate does not implement.
    pub fn kernel(&self, name: &str) -> Result<Kernel, Error> {
        let found = self
            .by_name
            .get(name)
            .filter(|k| self.program.functions[**k as usize].entry);
        let Some(index) = found.copied() else {
            return Err(Error::new(
                Code::NotFound,
                format!("the module has no kernel '{name}'"),
            ));
        };
        let f = &self.program.functions[index as usize];
        let reached = reach(&self.program, index);
        let unsupported = reached
            .iter()
            .flat_map(|k| &self.program.functions[*k as usize].unsupported)
            .min();
        if let Some((line, opcode)) = unsupported {
            let text = format!("the cpu executor does not implement '{opcode}'");
            return Err(refused(&[Diagnostic::error(*line, text)]));
        }
        let (_, bytes) = shared_layout(&self.program, &reached);
        let limit = f.limits.req_ntid.or(f.limits.max_ntid).map_or(1024, |n| {
            n.iter().fold(1, |a: u32, b| a.saturating_mul(*b)).min(1024)
        });
        Ok(Kernel {
            index,
            name: f.name.clone(),
            parameters: f.layout.clone(),
            parameter_bytes: f.param_bytes,
            registers: f.registers,
            shared_bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            local_bytes: f.locals,
            const_bytes: self
                .program
                .variables
                .iter()
                .filter(|v| v.space == Space::Const)
                .map(|v| v.size)
                .sum(),
            max_threads: limit,
            required_block: f.limits.req_ntid,
            cluster: f.limits.cluster,
        })
    }

    /// Variables in global and constant memory.
    #[must_use]
    pub fn variables(&self) -> Vec<ModuleVariable> {
        let reachable =
            |v: &&Variable| v.module_scope && matches!(v.space, Space::Global | Space::Const);
        let list = self.program.variables.iter().filter(reachable);
        list.map(|v| ModuleVariable {
            name: v.name.clone(),
            space: v.space,
            size: v.size,
            align: v.align,
        })
        .collect()
    }

    /// `.version`
    #[must_use]
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// `.target`
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }
}

fn fatal(text: &str) -> Error {
    Error::new(Code::InvalidPtx, format!("ptxas fatal   : {text}"))
}

/// The number of `sm_75`, `sm_90a`.
fn target_number(target: &str) -> Option<u32> {
    let digits = target
        .strip_prefix("sm_")
        .or_else(|| target.strip_prefix("compute_"))?;
    digits
        .trim_end_matches(|c: char| c.is_ascii_lowercase())
        .parse()
        .ok()
}

fn check_header(ast: &Ast<'_>, options: &Options) -> Result<(), Error> {
    if ast.version > options.version {
        let ((major, minor), (a, b)) = (ast.version, options.version);
        let line = Diagnostic::fatal(
            ast.version_line,
            format!("Unsupported .version {major}.{minor}; current version is '{a}.{b}'"),
        );
        return Err(Error::new(Code::UnsupportedPtxVersion, line.to_string()));
    }
    if ast.target.is_empty() {
        let text = "Missing .target directive at start of file 'application ptx input'";
        return Err(refused(&[Diagnostic::fatal(ast.target_line, text)]));
    }
    match target_number(ast.target) {
        None => Err(refused(&[Diagnostic::fatal(
            ast.target_line,
            format!("Unknown .target '{}'", ast.target),
        )])),
        Some(n) if n > options.target => Err(fatal(
            "SM version specified by .target is higher than default SM version assumed",
        )),
        Some(_) => Ok(()),
    }
}

fn build(ast: &Ast<'_>) -> Result<Module, Error> {
    let mut found = Vec::new();
    let mut names = Names::default();
    // A function with a body counts; prototypes may come before it and again.
    let mut chosen: Vec<&ast::Function<'_>> = Vec::new();
    for f in &ast.functions {
        match names.functions.get(f.name) {
            None => {
                names
                    .functions
                    .insert(f.name.to_string(), index(chosen.len()));
                chosen.push(f);
            }
            Some(k) => {
                let old = &mut chosen[*k as usize];
                if old.body.is_some() && f.body.is_some() {
                    found.push(Diagnostic::error(
                        f.line,
                        format!("Duplicate definition of function '{}'", f.name),
                    ));
                } else if f.body.is_some() {
                    *old = f;
                }
            }
        }
    }
    for f in &chosen {
        let shapes = |list: &[ast::Variable<'_>]| list.iter().map(shape).collect();
        names.shapes.push((shapes(&f.results), shapes(&f.params)));
        names.external.push(f.body.is_none());
        if f.entry {
            check_parameters(ast, f, &mut found);
        }
    }
    let mut program = Program::default();
    let mut declared: Vec<&ast::Variable<'_>> = Vec::new();
    for v in &ast.variables {
        match names.variables.get(v.name) {
            Some(k) if v.linkage == Linkage::Extern => {
                let _ = k;
            }
            Some(k) if declared[*k as usize].linkage == Linkage::Extern => {
                declared[*k as usize] = v
            }
            Some(_) => found.push(Diagnostic::error(
                v.line,
                format!("Duplicate definition of variable '{}'", v.name),
            )),
            None => {
                names
                    .variables
                    .insert(v.name.to_string(), index(declared.len()));
                declared.push(v);
            }
        }
    }
    for v in declared {
        match variable(v, &names) {
            Ok(made) => program.variables.push(made),
            Err(Wrong::Mistakes(list)) => {
                found.extend(list.into_iter().map(|t| Diagnostic::error(v.line, t)))
            }
            Err(Wrong::Unsupported) => found.push(Diagnostic::error(
                v.line,
                "the cpu executor does not implement this variable",
            )),
        }
    }
    if !found.is_empty() {
        return Err(refused(&found));
    }
    let mut lane_functions = HashMap::new();
    for f in &chosen {
        let made = match &f.body {
            None => Ok(empty(f)),
            Some(body) => {
                let target = target_number(ast.target).unwrap_or(0);
                let mut s = Setting {
                    program: &mut program,
                    names: &names,
                    lane_functions: &mut lane_functions,
                    target,
                    version: ast.version,
                };
                function(&mut s, f, body)
            }
        };
        match made {
            Ok(f) => program.functions.push(f),
            Err(list) => {
                found.extend(list);
                program.functions.push(empty(f));
            }
        }
    }
    if let Some(d) = found.iter().find(|d| d.text.starts_with(UNRESOLVED)) {
        return Err(fatal(&d.text));
    }
    if !found.is_empty() {
        return Err(refused(&found));
    }
    for (k, f) in program
        .functions
        .iter()
        .enumerate()
        .filter(|(_, f)| f.entry)
    {
        let (_, bytes) = shared_layout(&program, &reach(&program, index(k)));
        if bytes > SHARED_LIMIT {
            return Err(Error::new(
                Code::InvalidPtx,
                format!(
                    "ptxas error   : Entry function '{}' uses too much shared data (0x{bytes:x} bytes, 0x{SHARED_LIMIT:x} max)",
                    f.name
                ),
            ));
        }
    }
    Ok(Module {
        program: Arc::new(program),
        version: ast.version,
        target: ast.target.to_string(),
        by_name: Arc::new(names.functions),
    })
}

fn index(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn check_parameters(ast: &Ast<'_>, f: &ast::Function<'_>, found: &mut Vec<Diagnostic>) {
    let (_, bytes) = layout(f);
    let new = ast.version >= (8, 1);
    let max = PARAMETERS[usize::from(new)];
    if bytes > max {
        found.push(Diagnostic::error(f.line, format!("Entry function '{}' uses too much parameter space (0x{bytes:x} bytes, 0x{max:x} max).", f.name)));
        if !new {
            found.push(Diagnostic::error(f.line, "Feature 'Kernel parameter size larger than 4352 bytes' requires PTX ISA .version 8.1 or later"));
        }
    }
}

/// A kernel and all functions that it can reach.
pub(crate) fn reach(program: &Program, kernel: u32) -> Vec<u32> {
    let mut seen = vec![false; program.functions.len()];
    let mut list = vec![kernel];
    seen[kernel as usize] = true;
    let mut at = 0;
    while at < list.len() {
        let f = &program.functions[list[at] as usize];
        at += 1;
        let mut go = |k: u32| {
            if !std::mem::replace(&mut seen[k as usize], true) {
                list.push(k);
            }
        };
        f.calls.iter().for_each(|k| go(*k));
        if f.calls_indirectly {
            (0..program.functions.len())
                .filter(|k| !program.functions[*k].entry)
                .for_each(|k| go(index(k)));
        }
    }
    list
}

/// The offsets of a kernel's shared variables, and the bytes of the static ones. The dynamic ones
/// begin after these, at their alignment.
pub(crate) fn shared_layout(program: &Program, functions: &[u32]) -> (HashMap<u32, u64>, u64) {
    let mut used: Vec<u32> = functions
        .iter()
        .flat_map(|k| program.functions[*k as usize].variables.iter().copied())
        .collect();
    used.sort_unstable();
    used.dedup();
    used.retain(|v| program.variables[*v as usize].space == Space::Shared);
    let (dynamic, fixed): (Vec<u32>, Vec<u32>) = used
        .into_iter()
        .partition(|v| program.variables[*v as usize].dynamic);
    let mut at = 0u64;
    let mut map = HashMap::new();
    for v in fixed {
        let x = &program.variables[v as usize];
        at = at.next_multiple_of(u64::from(x.align.max(1)));
        map.insert(v, at);
        at = at.saturating_add(x.size).min(1 << 40);
    }
    let bytes = at;
    let align = dynamic
        .iter()
        .map(|v| program.variables[*v as usize].align.max(1))
        .max()
        .unwrap_or(1);
    let at = at.next_multiple_of(u64::from(align));
    map.extend(dynamic.into_iter().map(|v| (v, at)));
    (map, bytes)
}
