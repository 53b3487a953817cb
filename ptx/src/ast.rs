//! The syntax tree of a module, before any name is resolved.

use crate::types::{Space, Type};

/// A whole module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ast<'a> {
    pub(crate) version: (u32, u32),
    pub(crate) version_line: u32,
    pub(crate) target: &'a str,
    pub(crate) target_line: u32,
    pub(crate) address_size: u64,
    pub(crate) variables: Vec<Variable<'a>>,
    pub(crate) functions: Vec<Function<'a>>,
}

/// The visibility of a name to other modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Linkage {
    #[default]
    Internal,
    Visible,
    Extern,
    Weak,
}

/// A variable, a parameter, or a declared register.
#[derive(Debug, Clone)]
pub(crate) struct Variable<'a> {
    pub(crate) name: &'a str,
    pub(crate) space: Space,
    pub(crate) ty: Type,
    /// Elements of a vector: 1, 2 or 4.
    pub(crate) vector: u32,
    pub(crate) align: u32,
    /// All dimensions multiplied; 1 for a scalar, 0 for `[]` without an initialiser.
    pub(crate) count: u64,
    pub(crate) is_array: bool,
    pub(crate) init: Option<Vec<Init<'a>>>,
    pub(crate) linkage: Linkage,
    pub(crate) line: u32,
    /// `%r<10>`: the number of names.
    pub(crate) range: Option<u32>,
}

impl Variable<'_> {
    /// Size in bytes.
    pub(crate) fn size(&self) -> u64 {
        u64::from(self.ty.bytes())
            .saturating_mul(u64::from(self.vector))
            .saturating_mul(self.count)
    }
}

/// One element of an initialiser, nested braces flattened.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Init<'a> {
    Value(Number),
    Address(&'a str, i64),
}

/// A constant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Number {
    /// Two's complement of 64 bits.
    Int(i64),
    /// The bits of an f32.
    F32(u32),
    /// The bits of an f64.
    F64(u64),
}

/// A kernel or a function.
#[derive(Debug, Clone)]
pub(crate) struct Function<'a> {
    pub(crate) name: &'a str,
    pub(crate) entry: bool,
    pub(crate) results: Vec<Variable<'a>>,
    pub(crate) params: Vec<Variable<'a>>,
    pub(crate) limits: Limits,
    pub(crate) body: Option<Vec<Statement<'a>>>,
    pub(crate) line: u32,
}

/// A kernel's limits on its launches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) max_ntid: Option<[u32; 3]>,
    pub(crate) req_ntid: Option<[u32; 3]>,
    pub(crate) cluster: Option<[u32; 3]>,
}

/// A statement of a body.
#[derive(Debug, Clone)]
pub(crate) enum Statement<'a> {
    Block(Vec<Statement<'a>>),
    Declare(Variable<'a>),
    Label(&'a str),
    /// `name: .branchtargets a, b;`
    Targets(&'a str, Vec<&'a str>),
    /// `name: .callprototype (…) _ (…);` with its results and parameters.
    Prototype(&'a str, Vec<Variable<'a>>, Vec<Variable<'a>>),
    Instruction(Instruction<'a>),
}

/// An instruction.
#[derive(Debug, Clone)]
pub(crate) struct Instruction<'a> {
    /// The register of `@p` and whether it is `@!p`.
    pub(crate) guard: Option<(&'a str, bool)>,
    /// The first word of the opcode.
    pub(crate) name: &'a str,
    /// The modifiers: everything after its dots.
    pub(crate) modifiers: Vec<&'a str>,
    pub(crate) operands: Vec<Operand<'a>>,
    pub(crate) line: u32,
}

/// An operand.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand<'a> {
    /// A register, variable, function, label or special register.
    Name(&'a str),
    /// `%tid.x`
    Element(&'a str, &'a str),
    /// `sym+4`
    Offset(&'a str, i64),
    Number(Number),
    /// `_`
    Sink,
    /// `!p`
    Not(&'a str),
    /// `p|q`, either of which may be `_`
    Pair(&'a str, &'a str),
    /// `{a, b}`
    Vector(Vec<Operand<'a>>),
    /// `[base+offset]`
    Address(Option<&'a str>, i64),
    /// `(a, b)` of a call
    List(Vec<Operand<'a>>),
}
