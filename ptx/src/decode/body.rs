//! A function while it is decoded: the meaning of its names, its registers and constants, and the
//! operand helpers for the rows of the table of instructions.

use std::collections::{HashMap, HashSet};

use super::modifiers::{Decoded, Wrong, mistake};
use crate::ast::{self, Instruction, Number, Operand};
use crate::error::Diagnostic;
use crate::ops::{LaneFn, Op};
use crate::program::{Constant, Function, Inst, NONE, Program, Slot, Special, Value, flag};
use crate::types::{Space, Type};

/// Most bytes of a frame; no compiled function needs more.
const FRAME_LIMIT: u64 = 512 << 10;

/// The beginning of the message for a function that nobody defines.
pub(crate) const UNRESOLVED: &str = "Unresolved extern function ";

/// The meaning of a name.
#[derive(Debug, Clone)]
pub(super) enum Entity {
    Register(u32, Slot),
    Predicate(Slot),
    /// Index of [`Program::variables`].
    Variable(u32),
    /// Bytes of the frame: a `.local` variable, or a `.param` of a call.
    Frame {
        at: u32,
        size: u32,
        param: bool,
    },
    /// Offset among a kernel's parameters.
    Kernel(u32),
    Function(u32),
    Label(usize),
    Prototype(Vec<Shape>, Vec<Shape>),
    Targets(usize),
}

/// The shape of a parameter, for calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) size: u32,
    pub(crate) register: Option<Type>,
}

pub(crate) fn shape(v: &ast::Variable<'_>) -> Shape {
    Shape {
        size: u32::try_from(v.size()).unwrap_or(u32::MAX),
        register: (v.space == Space::Reg).then_some(v.ty),
    }
}

/// Names of the whole module.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) variables: HashMap<String, u32>,
    pub(crate) functions: HashMap<String, u32>,
    /// Results and parameters of each function.
    pub(crate) shapes: Vec<(Vec<Shape>, Vec<Shape>)>,
    /// Functions that nobody defines.
    pub(crate) external: Vec<bool>,
}

#[derive(Debug, Default)]
pub(super) struct Scope<'a> {
    pub(super) names: HashMap<&'a str, Entity>,
    /// Number and width of the registers of each prefix.
    pub(super) ranges: HashMap<&'a str, (u32, u32)>,
}

/// A function while it is decoded.
#[derive(Debug)]
pub(crate) struct Body<'p, 'a> {
    pub(crate) program: &'p mut Program,
    pub(super) names: &'p Names,
    pub(super) scopes: Vec<Scope<'a>>,
    pub(super) function: Function,
    pub(super) constants: HashMap<(bool, ConstantKey), Slot>,
    pub(super) labels: Vec<Option<u32>>,
    /// Instructions and table targets that wait for a label.
    pub(super) fixups: Vec<(usize, usize)>,
    pub(super) tables: Vec<(usize, usize)>,
    pub(super) found: Vec<Diagnostic>,
    pub(super) line: u32,
    pub(super) sinks: [Slot; 3],
    pub(super) seen_variables: HashSet<u32>,
    pub(super) lane_functions: &'p mut HashMap<usize, u32>,
    pub(super) target: u32,
    pub(super) version: (u32, u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ConstantKey {
    Bits(u64),
    Variable(u32, i64),
    Function(u32),
    Frame(u32),
    FrameGeneric(u32),
    Special(u64),
}

impl<'a> Body<'_, 'a> {
    pub(super) fn report(&mut self, line: u32, w: Wrong) {
        if let Wrong::Mistakes(list) = w {
            self.found
                .extend(list.into_iter().map(|t| Diagnostic::error(line, t)));
        }
    }

    pub(super) fn define(&mut self, name: &'a str, e: Entity) {
        if let Some(s) = self.scopes.last_mut() {
            s.names.insert(name, e);
        }
    }

    /// Reserves room in the frame.
    pub(super) fn place(&mut self, v: &ast::Variable<'_>) -> Decoded<(u32, u32)> {
        let at = u64::from(self.function.frame).next_multiple_of(u64::from(v.align.max(8)));
        let end = at.saturating_add(v.size()).next_multiple_of(4);
        if end > FRAME_LIMIT {
            return mistake(format!(
                "Function '{}' uses too much local memory (0x{end:x} bytes, 0x{FRAME_LIMIT:x} max)",
                self.function.name
            ));
        }
        self.function.frame = u32::try_from(end).unwrap_or(u32::MAX);
        Ok((
            u32::try_from(at).unwrap_or(0),
            u32::try_from(v.size()).unwrap_or(0),
        ))
    }

    pub(super) fn slot(count: &mut u32) -> Decoded<Slot> {
        let s = Slot::try_from(*count).ok().filter(|s| *s < NONE);
        *count += 1;
        s.map_or_else(|| mistake("more registers than the cpu executor has"), Ok)
    }

    pub(super) fn register(&mut self, t: Type) -> Decoded<Entity> {
        self.function.registers += 1;
        Ok(match t.bits() {
            1 => Entity::Predicate(Self::slot(&mut self.function.np)?),
            64 => Entity::Register(64, Self::slot(&mut self.function.n64)?),
            128 => Entity::Register(128, 0),
            32 => Entity::Register(32, Self::slot(&mut self.function.n32)?),
            _ => Entity::Register(16, Self::slot(&mut self.function.n32)?),
        })
    }

    /// A register without a name, for a value within one instruction.
    pub(crate) fn temp(&mut self, bits: u32) -> Decoded<Slot> {
        match bits {
            1 => Self::slot(&mut self.function.np),
            64 => Self::slot(&mut self.function.n64),
            _ => Self::slot(&mut self.function.n32),
        }
    }

    /// The destination of results that are not wanted.
    pub(super) fn sink(&mut self, bits: u32) -> Decoded<Slot> {
        let k = match bits {
            1 => 0,
            64 => 2,
            _ => 1,
        };
        if self.sinks[k] == NONE {
            self.sinks[k] = self.temp(bits)?;
        }
        Ok(self.sinks[k])
    }

    pub(super) fn lookup(&mut self, name: &'a str) -> Option<Entity> {
        for k in (0..self.scopes.len()).rev() {
            if let Some(e) = self.scopes[k].names.get(name) {
                return Some(e.clone());
            }
            let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
            for cut in (1..=digits).rev() {
                let (prefix, number) = name.split_at(name.len() - cut);
                let Some((n, bits)) = self.scopes[k].ranges.get(prefix).copied() else {
                    continue;
                };
                if number.parse::<u32>().is_ok_and(|i| i < n)
                    && (cut == 1 || !number.starts_with('0'))
                {
                    let ty = match bits {
                        1 => Type::Pred,
                        64 => Type::B64,
                        128 => Type::B128,
                        32 => Type::B32,
                        _ => Type::B16,
                    };
                    let e = self.register(ty).ok()?;
                    self.scopes[k].names.insert(name, e.clone());
                    return Some(e);
                }
            }
        }
        if let Some(v) = self.names.variables.get(name) {
            return Some(Entity::Variable(*v));
        }
        self.names.functions.get(name).map(|f| Entity::Function(*f))
    }

    pub(crate) fn emit(&mut self, op: Op, d: Slot, a: Slot, b: Slot, c: Slot) -> &mut Inst {
        self.program.lines.push(self.line);
        self.program.code.push(Inst {
            op,
            guard: NONE,
            d,
            a,
            b,
            c,
            w: 0,
            x: 0,
            imm: 0,
        });
        let last = self.program.code.len() - 1;
        &mut self.program.code[last]
    }

    /// The error for operands that do not match.
    pub(crate) fn mismatch<T>(&self, i: &Instruction<'_>) -> Decoded<T> {
        mistake(format!("Arguments mismatch for instruction '{}'", i.name))
    }

    pub(crate) fn operands<const N: usize>(
        &self,
        i: &Instruction<'a>,
    ) -> Decoded<[Operand<'a>; N]> {
        match <[Operand<'a>; N]>::try_from(i.operands.clone()) {
            Ok(o) => Ok(o),
            Err(_) => self.mismatch(i),
        }
    }

    pub(super) fn unknown<T>(&self, i: &Instruction<'_>, name: &str) -> Decoded<T> {
        Err(Wrong::Mistakes(vec![
            format!("Arguments mismatch for instruction '{}'", i.name),
            format!("Unknown symbol '{name}'"),
        ]))
    }

    pub(super) fn constant(&mut self, wide: bool, key: ConstantKey, value: Value) -> Decoded<Slot> {
        if let Some(s) = self.constants.get(&(wide, key)) {
            return Ok(*s);
        }
        let slot = self.temp(if wide { 64 } else { 32 })?;
        self.function.constants.push(Constant { slot, wide, value });
        self.constants.insert((wide, key), slot);
        Ok(slot)
    }

    /// A slot that always holds these bits.
    pub(crate) fn bits(&mut self, wide: bool, v: u64) -> Decoded<Slot> {
        let v = if wide { v } else { v & 0xffff_ffff };
        self.constant(wide, ConstantKey::Bits(v), Value::Bits(v))
    }

    pub(super) fn variable_value(&mut self, wide: bool, v: u32, plus: i64) -> Decoded<Slot> {
        if self.seen_variables.insert(v) {
            self.function.variables.push(v);
        }
        self.constant(
            wide,
            ConstantKey::Variable(v, plus),
            Value::Variable(v, plus),
        )
    }

    /// A source of exactly the type's width.
    pub(crate) fn src(&mut self, i: &Instruction<'a>, o: &Operand<'a>, t: Type) -> Decoded<Slot> {
        let (slot, bits) = self.loose(i, o, t)?;
        let want = t.bits().max(16);
        if bits == want {
            Ok(slot)
        } else {
            self.mismatch(i)
        }
    }

    /// A source of any width, with the width of its register.
    pub(crate) fn loose(
        &mut self,
        i: &Instruction<'a>,
        o: &Operand<'a>,
        t: Type,
    ) -> Decoded<(Slot, u32)> {
        let width = t.bits().max(16);
        let wide = t.bits() == 64;
        let (name, plus) = match o {
            Operand::Number(n) => return Ok((self.bits(wide, number_bits(*n, t))?, width)),
            Operand::Element(n, e) => {
                return match special(n, Some(e)) {
                    Some(s) => Ok((self.special(s, wide)?, width)),
                    None => self.unknown(i, n),
                };
            }
            Operand::Name(n) => (*n, 0),
            Operand::Offset(n, k) => (*n, *k),
            _ => return self.mismatch(i),
        };
        let slot = match self.lookup(name) {
            Some(Entity::Register(bits, s)) if plus == 0 => {
                if bits == 128 {
                    return Err(Wrong::Unsupported);
                }
                return Ok((s, bits));
            }
            Some(Entity::Variable(v)) => self.variable_value(wide, v, plus)?,
            Some(Entity::Function(f)) => {
                self.constant(wide, ConstantKey::Function(f), Value::Function(f))?
            }
            Some(Entity::Frame { at, param, .. }) => {
                let at = at.wrapping_add_signed(i32::try_from(plus).unwrap_or(0));
                if param && !wide {
                    return self.mismatch(i);
                } else if param {
                    self.constant(true, ConstantKey::FrameGeneric(at), Value::FrameGeneric(at))?
                } else {
                    self.constant(wide, ConstantKey::Frame(at), Value::Frame(at))?
                }
            }
            Some(Entity::Kernel(at)) => self.bits(wide, u64::from(at).wrapping_add_signed(plus))?,
            Some(_) => return self.mismatch(i),
            None => match special(name, None) {
                Some(s) if plus == 0 => self.special(s, wide)?,
                _ => return self.unknown(i, name),
            },
        };
        Ok((slot, width))
    }

    pub(super) fn special(&mut self, s: Special, wide: bool) -> Decoded<Slot> {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut h = DefaultHasher::new();
        format!("{s:?}").hash(&mut h);
        self.constant(wide, ConstantKey::Special(h.finish()), Value::Special(s))
    }

    /// A destination of exactly the type's width.
    pub(crate) fn dst(&mut self, i: &Instruction<'a>, o: &Operand<'a>, t: Type) -> Decoded<Slot> {
        let (slot, bits) = self.loose_dst(i, o, t)?;
        if bits == t.bits().max(16) {
            Ok(slot)
        } else {
            self.mismatch(i)
        }
    }

    /// A destination of any width.
    pub(crate) fn loose_dst(
        &mut self,
        i: &Instruction<'a>,
        o: &Operand<'a>,
        t: Type,
    ) -> Decoded<(Slot, u32)> {
        match o {
            Operand::Name(n) => match self.lookup(n) {
                Some(Entity::Register(128, _)) => Err(Wrong::Unsupported),
                Some(Entity::Register(bits, s)) => Ok((s, bits)),
                Some(_) => self.mismatch(i),
                None => self.unknown(i, n),
            },
            Operand::Sink => Ok((self.sink(t.bits())?, t.bits().max(16))),
            _ => self.mismatch(i),
        }
    }

    /// A predicate as a source, and whether it is `!p`.
    pub(crate) fn pred(&mut self, i: &Instruction<'a>, o: &Operand<'a>) -> Decoded<(Slot, bool)> {
        match o {
            Operand::Name(n) | Operand::Not(n) => match self.lookup(n) {
                Some(Entity::Predicate(p)) => Ok((p, matches!(o, Operand::Not(_)))),
                Some(_) => self.mismatch(i),
                None => self.unknown(i, n),
            },
            Operand::Number(Number::Int(v)) => Ok((0, *v != 0)),
            _ => self.mismatch(i),
        }
    }

    pub(crate) fn pred_dst(&mut self, i: &Instruction<'a>, o: &Operand<'a>) -> Decoded<Slot> {
        match o {
            Operand::Sink | Operand::Name("_") => self.sink(1),
            Operand::Name(n) => match self.lookup(n) {
                Some(Entity::Predicate(p)) => Ok(p),
                Some(_) => self.mismatch(i),
                None => self.unknown(i, n),
            },
            _ => self.mismatch(i),
        }
    }

    /// Whether an operand is a predicate register.
    pub(crate) fn is_pred(&mut self, o: &Operand<'a>) -> bool {
        matches!(o, Operand::Name(n) | Operand::Not(n) if matches!(self.lookup(n), Some(Entity::Predicate(_))))
    }

    /// d = f(a, b, c, k) for each lane.
    pub(crate) fn lanes(
        &mut self,
        f: LaneFn,
        k: u32,
        d: (Slot, bool),
        from: &[(Slot, bool)],
    ) -> Decoded<&mut Inst> {
        let at = self.lane_function(f);
        let s = |n: usize| from.get(n).map_or((NONE, false), |s| *s);
        let (a, b, c) = (s(0), s(1), s(2));
        let inst = self.emit(Op::Lanes, d.0, a.0, b.0, c.0);
        inst.x = at;
        inst.imm = k.cast_signed();
        let set = |on: bool, f: u16| if on { f } else { 0 };
        inst.w =
            set(d.1, flag::D64) | set(a.1, flag::A64) | set(b.1, flag::B64) | set(c.1, flag::C64);
        Ok(inst)
    }

    /// Marks the function of the last instruction as much slower than others.
    pub(crate) fn is_slow(&mut self) {
        if let Some(i) = self.program.code.last_mut() {
            i.w |= flag::SLOW;
        }
    }

    pub(crate) fn lane_function(&mut self, f: LaneFn) -> u32 {
        let next = u32::try_from(self.program.lanes.len()).unwrap_or(u32::MAX);
        let at = *self.lane_functions.entry(f as usize).or_insert(next);
        if at == next {
            self.program.lanes.push(f);
        }
        at
    }

    /// An ordinary instruction of up to three operands of one type, with a lane function for each.
    pub(crate) fn simple(
        &mut self,
        i: &Instruction<'a>,
        f: LaneFn,
        k: u32,
        types: &[Type],
    ) -> Decoded {
        if i.operands.len() != types.len() {
            return self.mismatch(i);
        }
        let wide = |t: Type| t.bits() == 64;
        let d = (self.dst(i, &i.operands[0], types[0])?, wide(types[0]));
        let mut from = Vec::new();
        for (o, t) in i.operands.iter().zip(types).skip(1) {
            from.push((self.src(i, o, *t)?, wide(*t)));
        }
        self.lanes(f, k, d, &from)?;
        Ok(())
    }

    /// An operation of the executor's loop, its operands all of these types.
    pub(crate) fn hot(&mut self, i: &Instruction<'a>, op: Op, types: &[Type]) -> Decoded {
        if i.operands.len() != types.len() {
            return self.mismatch(i);
        }
        let d = self.dst(i, &i.operands[0], types[0])?;
        let mut s = [NONE; 3];
        for (k, (o, t)) in i.operands.iter().zip(types).skip(1).enumerate() {
            s[k] = self.src(i, o, *t)?;
        }
        self.emit(op, d, s[0], s[1], s[2]);
        Ok(())
    }
}

/// The bits of a literal as a value of a type.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "as the assembler converts it"
)]
pub(crate) fn number_bits(n: Number, t: Type) -> u64 {
    let float = |x: f64| match t {
        Type::F32 | Type::Tf32 | Type::B32 | Type::U32 | Type::S32 => {
            u64::from((x as f32).to_bits())
        }
        Type::F16 => u64::from(crate::half::from_f64(x)),
        _ => x.to_bits(),
    };
    let bits = match n {
        Number::Int(v) if matches!(t, Type::F32 | Type::F64) => float(v as f64),
        Number::Int(v) => v.cast_unsigned(),
        Number::F32(b) if t.bits() == 64 => f64::from(f32::from_bits(b)).to_bits(),
        Number::F32(b) => u64::from(b),
        Number::F64(b) => float(f64::from_bits(b)),
    };
    match t.bits() {
        64 | 128 => bits,
        16 => bits & 0xffff,
        _ => bits & 0xffff_ffff,
    }
}

/// The special register of this name.
pub(crate) fn special(name: &str, element: Option<&str>) -> Option<Special> {
    let d = match element {
        Some("x") => Some(0),
        Some("y") => Some(1),
        Some("z") => Some(2),
        Some(_) => return None,
        None => None,
    };
    let of = |f: fn(usize) -> Special| d.map(f);
    match name {
        "%tid" => return of(Special::Tid),
        "%ntid" => return of(Special::Ntid),
        "%ctaid" => return of(Special::Ctaid),
        "%nctaid" => return of(Special::Nctaid),
        "%clusterid" => return of(Special::ClusterId),
        "%nclusterid" => return of(Special::NClusterId),
        "%cluster_ctaid" => return of(Special::ClusterCtaId),
        "%cluster_nctaid" => return of(Special::ClusterNctaId),
        _ => {}
    }
    if d.is_some() {
        return None;
    }
    Some(match name {
        "%laneid" => Special::LaneId,
        "%warpid" => Special::WarpId,
        "%nwarpid" => Special::NWarpId,
        "%smid" => Special::SmId,
        "%nsmid" => Special::NSmId,
        "%gridid" => Special::GridId,
        "%lanemask_eq" => Special::LaneMask("eq"),
        "%lanemask_lt" => Special::LaneMask("lt"),
        "%lanemask_le" => Special::LaneMask("le"),
        "%lanemask_gt" => Special::LaneMask("gt"),
        "%lanemask_ge" => Special::LaneMask("ge"),
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" | "%aggr_smem_size" => Special::TotalShared,
        "%cluster_ctarank" => Special::ClusterCtaRank,
        "%cluster_nctarank" => Special::ClusterNctaRank,
        _ => Special::EnvReg(
            name.strip_prefix("%envreg")?
                .parse()
                .ok()
                .filter(|n| *n < 32)?,
        ),
    })
}
