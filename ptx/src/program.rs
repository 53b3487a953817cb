//! A module after name resolution: one flat list of instructions, and the tables they refer to.

use crate::ops::{LaneFn, Op};
use crate::types::{Space, Type};

/// A row of a register file: 32 lanes.
pub(crate) type Slot = u16;

/// No guard, no register.
pub(crate) const NONE: Slot = Slot::MAX;

/// Flags of [`Inst::w`].
pub(crate) mod flag {
    /// The guard is `@!p`.
    pub(crate) const GUARD_NOT: u16 = 1;
    /// Registers of 64 bits.
    pub(crate) const D64: u16 = 2;
    pub(crate) const A64: u16 = 4;
    pub(crate) const B64: u16 = 8;
    pub(crate) const C64: u16 = 16;
    /// `setp`: the result is combined with predicate c.
    pub(crate) const COMBINE: u16 = 32;
    pub(crate) const C_NOT: u16 = 64;
    /// Two bits: and, or, xor.
    pub(crate) const BOOL_SHIFT: u16 = 7;
    /// Predicate a or b is `!p`.
    pub(crate) const A_NOT: u16 = 512;
    pub(crate) const B_NOT: u16 = 1024;
    /// Operand c of [`super::Op::Lanes`] is a predicate.
    pub(crate) const C_PRED: u16 = 2048;
    /// The function of [`super::Op::Lanes`] takes much longer than others.
    pub(crate) const SLOW: u16 = 4096;
}

/// A decoded instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inst {
    pub(crate) op: Op,
    pub(crate) guard: Slot,
    pub(crate) d: Slot,
    pub(crate) a: Slot,
    pub(crate) b: Slot,
    pub(crate) c: Slot,
    pub(crate) w: u16,
    /// An index, a target, or the constant of a lane function.
    pub(crate) x: u32,
    pub(crate) imm: i32,
}

/// The kind of a carry instruction, in [`Inst::x`].
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

/// A load or store.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    pub(crate) space: Space,
    pub(crate) is_store: bool,
    /// Bytes of one element.
    pub(crate) size: u32,
    pub(crate) signed: bool,
    /// The registers, with whether they are wide and their width in bits.
    pub(crate) regs: Vec<(Slot, u32)>,
    pub(crate) addr: Slot,
    pub(crate) addr_wide: bool,
    pub(crate) offset: i64,
}

/// The operation of an atomic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtomicOp {
    Add,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
    Min,
    Max,
}

/// An atomic. Operands b and c are the instruction's.
#[derive(Debug, Clone)]
pub(crate) struct Atomic {
    pub(crate) op: AtomicOp,
    pub(crate) ty: Type,
    pub(crate) space: Space,
    pub(crate) addr_wide: bool,
    pub(crate) offset: i64,
    pub(crate) fence: bool,
}

/// The instructions that lanes execute together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SyncOp {
    BarWarp,
    ShflUp,
    ShflDown,
    ShflBfly,
    ShflIdx,
    VoteAll,
    VoteAny,
    VoteUni,
    VoteBallot,
    MatchAny,
    MatchAll,
    Redux(AtomicOp, bool),
    Elect,
    /// Index of [`Program::matrices`].
    Matrix(u32),
}

/// An instruction that lanes execute together.
#[derive(Debug, Clone)]
pub(crate) struct Sync {
    pub(crate) op: SyncOp,
    /// A register with the mask of lanes; [`NONE`]: those that are present.
    pub(crate) mask: Slot,
    /// Operand a is wide.
    pub(crate) wide: bool,
    /// Operand a is a predicate, negated.
    pub(crate) not: bool,
    /// A second result, a predicate.
    pub(crate) pred: Slot,
}

/// A barrier of the block.
#[derive(Debug, Clone)]
pub(crate) struct Barrier {
    pub(crate) kind: BarrierKind,
    pub(crate) id: Slot,
    /// [`NONE`]: all threads of the block.
    pub(crate) count: Slot,
    /// The predicate of `bar.red`.
    pub(crate) pred: Slot,
    pub(crate) not: bool,
    pub(crate) dst: Slot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BarrierKind {
    Sync,
    Arrive,
    Popc,
    And,
    Or,
}

/// The place of an argument or a result, in a function or in its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Bytes of the frame.
    Frame {
        at: u32,
        size: u32,
    },
    R32(Slot),
    R64(Slot),
    Pred(Slot),
}

/// Registers that hold part of a matrix.
#[derive(Debug, Clone)]
pub(crate) struct Fragment {
    pub(crate) ty: Type,
    pub(crate) regs: Vec<Slot>,
}

/// An operation on matrices.
#[derive(Debug, Clone)]
pub(crate) enum Matrix {
    /// d = a × b + c
    Multiply {
        /// m, n, k
        shape: [u32; 3],
        a: Fragment,
        b: Fragment,
        c: Fragment,
        d: Fragment,
        saturate: bool,
        /// The fragments have the layout of `wmma`.
        opaque: bool,
    },
    /// `ldmatrix`, `stmatrix`: 8 × 8 matrices of 16 bits, each row's address from a lane.
    Rows {
        regs: Vec<Slot>,
        transposed: bool,
        store: bool,
        space: Space,
    },
    /// `movmatrix`
    Transpose { d: Slot, a: Slot },
    /// `wmma.load`, `wmma.store`
    Tile {
        fragment: Fragment,
        rows: u32,
        cols: u32,
        by_rows: bool,
        store: bool,
        space: Space,
    },
}

/// The target of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Callee {
    Function(u32),
    Register(Slot),
    Builtin(Builtin),
}

/// Functions of the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Builtin {
    Vprintf,
    AssertFail,
    Malloc,
    Free,
}

impl Builtin {
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "vprintf" => Self::Vprintf,
            "__assertfail" => Self::AssertFail,
            "malloc" => Self::Malloc,
            "free" => Self::Free,
            _ => return None,
        })
    }
}

/// A call.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) callee: Callee,
    pub(crate) args: Vec<Place>,
    pub(crate) results: Vec<Place>,
}

/// A value that a register slot holds from the start of a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value {
    Bits(u64),
    /// The address of a variable and an offset.
    Variable(u32, i64),
    Function(u32),
    /// Bytes of the frame: their address in local memory.
    Frame(u32),
    /// The same as a generic address.
    FrameGeneric(u32),
    Special(Special),
}

/// Special registers (PTX ISA chapter 10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    LaneId,
    WarpId,
    NWarpId,
    SmId,
    NSmId,
    GridId,
    LaneMask(&'static str),
    DynamicShared,
    TotalShared,
    EnvReg(u32),
    ClusterId(usize),
    NClusterId(usize),
    ClusterCtaId(usize),
    ClusterNctaId(usize),
    ClusterCtaRank,
    ClusterNctaRank,
}

impl Special {
    /// Whether its value differs between blocks.
    pub(crate) fn is_of_block(self) -> bool {
        matches!(
            self,
            Self::Ctaid(_) | Self::ClusterId(_) | Self::ClusterCtaId(_) | Self::ClusterCtaRank
        )
    }
}

/// A slot with its value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Constant {
    pub(crate) slot: Slot,
    pub(crate) wide: bool,
    pub(crate) value: Value,
}

/// A parameter of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Type of a scalar, or of the elements of an array.
    pub ty: Type,
    /// Bytes from the start of the packed parameters.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
    /// Bytes.
    pub align: u32,
}

/// A function's code.
#[derive(Debug, Clone)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) entry: bool,
    pub(crate) start: u32,
    pub(crate) end: u32,
    pub(crate) n32: u32,
    pub(crate) n64: u32,
    pub(crate) np: u32,
    pub(crate) constants: Vec<Constant>,
    /// Bytes of the frame: parameters, staging and `.local` variables.
    pub(crate) frame: u32,
    /// Bytes of the `.local` variables among these, which count as stack.
    pub(crate) locals: u32,
    pub(crate) params: Vec<Place>,
    pub(crate) results: Vec<Place>,
    /// A kernel's parameters; empty for other functions.
    pub(crate) layout: Vec<Parameter>,
    pub(crate) param_bytes: u32,
    pub(crate) limits: crate::ast::Limits,
    /// Functions called by name.
    pub(crate) calls: Vec<u32>,
    pub(crate) calls_indirectly: bool,
    /// Variables referred to.
    pub(crate) variables: Vec<u32>,
    /// The first instructions that this crate does not implement, with their lines.
    pub(crate) unsupported: Vec<(u32, String)>,
    pub(crate) registers: u32,
}

/// A variable of the module or of a function's body.
#[derive(Debug, Clone)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) space: Space,
    pub(crate) size: u64,
    pub(crate) align: u32,
    pub(crate) dynamic: bool,
    /// The initial bytes; the rest, up to the size, is zero.
    pub(crate) init: Vec<u8>,
    /// Addresses in the initial bytes: offset, number of bytes, target, addend.
    pub(crate) relocations: Vec<(u64, u32, Target, i64)>,
    pub(crate) module_scope: bool,
}

/// The target of an address in an initialiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Variable(u32),
    Function(u32),
}

/// A whole module, ready to run.
#[derive(Debug, Default)]
pub(crate) struct Program {
    pub(crate) code: Vec<Inst>,
    /// The line of each instruction.
    pub(crate) lines: Vec<u32>,
    pub(crate) functions: Vec<Function>,
    pub(crate) variables: Vec<Variable>,
    pub(crate) memory: Vec<Memory>,
    pub(crate) atomics: Vec<Atomic>,
    pub(crate) syncs: Vec<Sync>,
    pub(crate) barriers: Vec<Barrier>,
    pub(crate) calls: Vec<Call>,
    pub(crate) lanes: Vec<LaneFn>,
    pub(crate) targets: Vec<Vec<u32>>,
    pub(crate) matrices: Vec<Matrix>,
}

impl Program {
    /// The function that holds an instruction.
    pub(crate) fn function_at(&self, pc: u32) -> Option<&Function> {
        self.functions
            .iter()
            .find(|f| (f.start..f.end).contains(&pc))
    }
}
