//! The instructions: one row each, which the decoder, `docs/ptx.md`, the tests and fuzzing read.
//!
//! To add an instruction, add a row here, with the function that decodes it; a test then tries
//! every form of the row, and another reports that the document is out of date.
//!
//! A form is an instruction as it is written. `{a,b,}` stands for any one of these, or nothing.
//! Among the operands `H`, `R` and `D` are registers of 16, 32 and 64 bits, `P` a predicate, `I` a
//! small constant, `A` an address in a 64-bit register, `S` one in shared memory, `M` a mask of
//! lanes, `L` a label.

use std::collections::HashSet;
use std::sync::OnceLock;

use crate::ast::Instruction;
use crate::decode::body::Body;
use crate::decode::modifiers::{Decoded, Modifiers};
use crate::decode::{bits, compare, control, data, float, integer, logic, together, video};
use crate::types::Type;

type Decode = for<'p, 'a> fn(&mut Body<'p, 'a>, &Instruction<'a>, &mut Modifiers<'a>) -> Decoded;

/// A family of instructions.
pub struct Row {
    /// The first word of the opcode.
    pub name: &'static str,
    /// Chapter of the PTX ISA.
    pub chapter: Chapter,
    /// All implemented forms; empty: the family is not implemented.
    pub forms: &'static [&'static str],
    /// The least `sm_` of `.target`.
    pub sm: u32,
    /// The least `.version`.
    pub ptx: (u32, u32),
    pub(crate) decode: Decode,
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Row")
            .field("name", &self.name)
            .field("forms", &self.forms)
            .finish_non_exhaustive()
    }
}

macro_rules! chapters {
    ($($v:ident $title:literal;)*) => {
        /// Chapters of the PTX ISA's list of instructions.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Chapter { $(#[doc = $title] $v,)* }

        impl Chapter {
            /// All, in order.
            pub const ALL: &[Self] = &[$(Self::$v,)*];

            /// Its title.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Self::$v => $title,)* }
            }
        }
    };
}
chapters! {
    Integer "Integer arithmetic and bit fields";
    Carry "Extended-precision arithmetic";
    Float "Floating point";
    Compare "Comparison and selection";
    Logic "Logic and shifts";
    Move "Data movement and conversion";
    Control "Control flow";
    Sync "Barriers, fences, atomics";
    Warp "Between the lanes of a warp";
    Matrix "Matrices";
    Video "Video";
    Other "Other";
}

macro_rules! table {
    ($($chapter:ident { $($name:literal $decode:path $(, sm $sm:literal)? $(, ptx $major:literal $minor:literal)? : $($form:literal)*;)* })*) => {
        /// All rows.
        pub static TABLE: &[Row] = &[$($(Row {
            name: $name,
            chapter: Chapter::$chapter,
            forms: &[$($form),*],
            sm: 0 $(+ $sm)?,
            ptx: (0 $(+ $major)?, 0 $(+ $minor)?),
            decode: $decode,
        },)*)*];
    };
}

table! {
    Integer {
        "add" integer::add: "add.{u16,s16} H, H, H" "add{.sat,}.s32 R, R, R" "add.u32 R, R, I" "add.{u64,s64} D, D, D"
            "add.cc.{u32,s32} R, R, R" "add.cc.{u64,s64} D, D, D"
            "add{.rn,.rz,.rm,.rp,}{.ftz,}{.sat,}.f32 R, R, R" "add{.rn,.rz,.rm,.rp,}.f64 D, D, D"
            "add{.rn,}{.ftz,}{.sat,}.f16 H, H, H" "add{.rn,}{.ftz,}{.sat,}.f16x2 R, R, R" "add{.rn,}.bf16 H, H, H" "add{.rn,}.bf16x2 R, R, R";
        "sub" integer::sub: "sub.{u16,s16} H, H, H" "sub{.sat,}.s32 R, R, R" "sub.u32 R, R, I" "sub.{u64,s64} D, D, D"
            "sub.cc.{u32,s32} R, R, R" "sub.cc.{u64,s64} D, D, D"
            "sub{.rn,.rz,.rm,.rp,}{.ftz,}{.sat,}.f32 R, R, R" "sub{.rn,.rz,.rm,.rp,}.f64 D, D, D"
            "sub{.rn,}{.ftz,}{.sat,}.f16 H, H, H" "sub{.rn,}{.ftz,}{.sat,}.f16x2 R, R, R" "sub{.rn,}.bf16 H, H, H" "sub{.rn,}.bf16x2 R, R, R";
        "mul" integer::mul: "mul.{lo,hi}.{u16,s16} H, H, H" "mul.{lo,hi}.{u32,s32} R, R, R" "mul.{lo,hi}.{u64,s64} D, D, D"
            "mul.wide.{u16,s16} R, H, H" "mul.wide.{u32,s32} D, R, R"
            "mul{.rn,.rz,.rm,.rp,}{.ftz,}{.sat,}.f32 R, R, R" "mul{.rn,.rz,.rm,.rp,}.f64 D, D, D"
            "mul{.rn,}{.ftz,}{.sat,}.f16 H, H, H" "mul{.rn,}{.ftz,}{.sat,}.f16x2 R, R, R" "mul{.rn,}.bf16 H, H, H" "mul{.rn,}.bf16x2 R, R, R";
        "mad" integer::mad: "mad.{lo,hi}.{u16,s16} H, H, H, H" "mad.{lo,hi}.{u32,s32} R, R, R, R" "mad.{lo,hi}.{u64,s64} D, D, D, D"
            "mad.hi.sat.s32 R, R, R, R" "mad.wide.{u16,s16} R, H, H, R" "mad.wide.{u32,s32} D, R, R, D"
            "mad.{lo,hi}.cc.{u32,s32} R, R, R, R" "mad.{lo,hi}.cc.{u64,s64} D, D, D, D"
            "mad.{rn,rz,rm,rp}{.ftz,}{.sat,}.f32 R, R, R, R" "mad.{rn,rz,rm,rp}.f64 D, D, D, D";
        "mul24" integer::mul24: "mul24.{lo,hi}.{u32,s32} R, R, R";
        "mad24" integer::mul24: "mad24.{lo,hi}.{u32,s32} R, R, R, R";
        "div" integer::div: "div.{u16,s16} H, H, H" "div.{u32,s32} R, R, R" "div.{u64,s64} D, D, D"
            "div.{approx,full,rn,rz,rm,rp}{.ftz,}.f32 R, R, R" "div.{rn,rz,rm,rp}.f64 D, D, D";
        "rem" integer::div: "rem.{u16,s16} H, H, H" "rem.{u32,s32} R, R, R" "rem.{u64,s64} D, D, D";
        "abs" integer::abs: "abs.s16 H, H" "abs.s32 R, R" "abs.s64 D, D" "abs{.ftz,}.f32 R, R" "abs.f64 D, D"
            "abs{.ftz,}.f16 H, H" "abs{.ftz,}.f16x2 R, R" "abs.bf16 H, H" "abs.bf16x2 R, R";
        "neg" integer::abs: "neg.s16 H, H" "neg.s32 R, R" "neg.s64 D, D" "neg{.ftz,}.f32 R, R" "neg.f64 D, D"
            "neg{.ftz,}.f16 H, H" "neg{.ftz,}.f16x2 R, R" "neg.bf16 H, H" "neg.bf16x2 R, R";
        "min" integer::min_max: "min.{u16,s16} H, H, H" "min.u32 R, R, R" "min{.relu,}.s32 R, R, R" "min.{u64,s64} D, D, D"
            "min{.ftz,}{.NaN,}{.xorsign.abs,}.f32 R, R, R" "min.f64 D, D, D" "min{.ftz,}{.NaN,}{.xorsign.abs,}.f16 H, H, H"
            "min{.ftz,}{.NaN,}{.xorsign.abs,}.f16x2 R, R, R" "min{.NaN,}{.xorsign.abs,}.bf16 H, H, H" "min{.NaN,}{.xorsign.abs,}.bf16x2 R, R, R";
        "max" integer::min_max: "max.{u16,s16} H, H, H" "max.u32 R, R, R" "max{.relu,}.s32 R, R, R" "max.{u64,s64} D, D, D"
            "max{.ftz,}{.NaN,}{.xorsign.abs,}.f32 R, R, R" "max.f64 D, D, D" "max{.ftz,}{.NaN,}{.xorsign.abs,}.f16 H, H, H"
            "max{.ftz,}{.NaN,}{.xorsign.abs,}.f16x2 R, R, R" "max{.NaN,}{.xorsign.abs,}.bf16 H, H, H" "max{.NaN,}{.xorsign.abs,}.bf16x2 R, R, R";
        "sad" integer::sad: "sad.{u16,s16} H, H, H, H" "sad.{u32,s32} R, R, R, R" "sad.{u64,s64} D, D, D, D";
        "popc" bits::count: "popc.b32 R, R" "popc.b64 R, D";
        "clz" bits::count: "clz.b32 R, R" "clz.b64 R, D";
        "brev" bits::count: "brev.b32 R, R" "brev.b64 D, D";
        "bfind" bits::bfind: "bfind{.shiftamt,}.{u32,s32} R, R" "bfind{.shiftamt,}.{u64,s64} R, D";
        "bfe" bits::bfe: "bfe.{u32,s32} R, R, R, R" "bfe.{u64,s64} D, D, R, R";
        "bfi" bits::bfi: "bfi.b32 R, R, R, R, R" "bfi.b64 D, D, D, R, R";
        "fns" bits::fns: "fns.b32 R, R, R, R";
        "dp4a" integer::dot: "dp4a.{u32,s32}.{u32,s32} R, R, R, R";
        "dp2a" integer::dot: "dp2a.{lo,hi}.{u32,s32}.{u32,s32} R, R, R, R";
        "bmsk" bits::bmsk, sm 70, ptx 7 6: "bmsk.{clamp,wrap}.b32 R, R, R";
        "szext" bits::bmsk, sm 70, ptx 7 6: "szext.{clamp,wrap}.{u32,s32} R, R, R";
    }
    Carry {
        "addc" integer::chained: "addc{.cc,}.{u32,s32} R, R, R" "addc{.cc,}.{u64,s64} D, D, D";
        "subc" integer::chained: "subc{.cc,}.{u32,s32} R, R, R" "subc{.cc,}.{u64,s64} D, D, D";
        "madc" integer::chained: "madc.{lo,hi}{.cc,}.{u32,s32} R, R, R, R" "madc.{lo,hi}{.cc,}.{u64,s64} D, D, D, D";
    }
    Float {
        "fma" float::fma_row: "fma.{rn,rz,rm,rp}{.ftz,}{.sat,}.f32 R, R, R, R" "fma.{rn,rz,rm,rp}.f64 D, D, D, D"
            "fma.rn{.ftz,}{.sat,}.f16 H, H, H, H" "fma.rn{.ftz,}.relu.f16 H, H, H, H" "fma.rn{.ftz,}{.sat,.relu,}.f16x2 R, R, R, R"
            "fma.rn{.relu,}.bf16 H, H, H, H" "fma.rn{.relu,}.bf16x2 R, R, R, R";
        "rcp" float::function: "rcp.{approx,rn,rz,rm,rp}{.ftz,}.f32 R, R" "rcp.{rn,rz,rm,rp,approx.ftz}.f64 D, D";
        "sqrt" float::function: "sqrt.{approx,rn,rz,rm,rp}{.ftz,}.f32 R, R" "sqrt.{rn,rz,rm,rp}.f64 D, D";
        "rsqrt" float::function: "rsqrt.approx{.ftz,}.f32 R, R" "rsqrt.approx{.ftz,}.f64 D, D";
        "sin" float::function: "sin.approx{.ftz,}.f32 R, R";
        "cos" float::function: "cos.approx{.ftz,}.f32 R, R";
        "lg2" float::function: "lg2.approx{.ftz,}.f32 R, R";
        "ex2" float::function: "ex2.approx{.ftz,}.f32 R, R" "ex2.approx{.ftz,}.f16 H, H" "ex2.approx{.ftz,}.f16x2 R, R" "ex2.approx.ftz.bf16 H, H" "ex2.approx.ftz.bf16x2 R, R";
        "tanh" float::function: "tanh.approx.f32 R, R" "tanh.approx.{f16,bf16} H, H" "tanh.approx.{f16x2,bf16x2} R, R";
        "copysign" float::copysign: "copysign.f32 R, R, R" "copysign.f64 D, D, D";
        "testp" float::testp: "testp.{finite,infinite,number,notanumber,normal,subnormal}.f32 P, R" "testp.{finite,infinite,number,notanumber,normal,subnormal}.f64 P, D";
    }
    Compare {
        "setp" compare::setp: "setp.{eq,ne,lt,le,gt,ge}{.and,.or,}.{u16,s16} P, H, H?" "setp.{eq,ne,lt,le,gt,ge}{.and,.xor,}.s32 P|P, R, R?"
            "setp.{eq,ne}.b16 P, H, H" "setp.{eq,ne}.b32 P, R, R" "setp.{eq,ne}.b64 P, D, D"
            "setp.{eq,ne,lt,le,gt,ge,lo,ls,hi,hs}{.or,}.u32 P, R, R?" "setp.{eq,ne,lt,le,gt,ge}{.and,}.{u64,s64} P, D, D?"
            "setp.{eq,ne,lt,le,gt,ge,equ,neu,ltu,leu,gtu,geu,num,nan}{.and,}{.ftz,}.f32 P|P, R, R?"
            "setp.{eq,ne,lt,le,gt,ge,equ,neu,ltu,leu,gtu,geu,num,nan}{.xor,}.f64 P, D, D?"
            "setp.{eq,ne,lt,le,gt,ge,equ,neu,ltu,leu,gtu,geu,num,nan}.{f16,bf16} P, H, H";
        "set" compare::set: "set.{eq,ne,lt,le,gt,ge}{.and,}.{u32,s32,f32}.{s32,u32} R, R, R?" "set.{eq,lt,gtu,neu,nan}{.or,}{.ftz,}.{u32,s32,f32}.f32 R, R, R?"
            "set.{eq,gt,leu}.{u32,f32}.f64 R, D, D" "set.{eq,gt,leu}.{f16,u16}.f16 H, H, H" "set.{eq,gt,leu}{.ftz,}.{u32,f16x2}.f16x2 R, R, R" "set.{eq,gt}.{u32,bf16x2}.bf16x2 R, R, R";
        "selp" compare::selp: "selp.{b16,u16,s16} H, H, H, P" "selp.{b32,u32,s32,f32} R, R, R, P" "selp.{b64,u64,s64,f64} D, D, D, P";
        "slct" compare::slct: "slct.{b32,u32,s32,f32}.s32 R, R, R, R" "slct{.ftz,}.{b32,f32}.f32 R, R, R, R" "slct.{b64,u64,s64,f64}.s32 D, D, D, R";
    }
    Logic {
        "and" logic::logic: "and.pred P, P, P" "and.b16 H, H, H" "and.b32 R, R, R" "and.b64 D, D, D";
        "or" logic::logic: "or.pred P, P, P" "or.b16 H, H, H" "or.b32 R, R, R" "or.b64 D, D, D";
        "xor" logic::logic: "xor.pred P, P, P" "xor.b16 H, H, H" "xor.b32 R, R, R" "xor.b64 D, D, D";
        "not" logic::logic: "not.pred P, P" "not.b16 H, H" "not.b32 R, R" "not.b64 D, D";
        "cnot" logic::logic: "cnot.b16 H, H" "cnot.b32 R, R" "cnot.b64 D, D";
        "lop3" logic::lop3: "lop3.b32 R, R, R, R, 150";
        "shf" logic::shf: "shf.{l,r}.{wrap,clamp}.b32 R, R, R, R";
        "shl" logic::shift: "shl.b16 H, H, R" "shl.b32 R, R, R" "shl.b64 D, D, R";
        "shr" logic::shift: "shr.{b16,u16,s16} H, H, R" "shr.{b32,u32,s32} R, R, R" "shr.{b64,u64,s64} D, D, R";
        "prmt" logic::prmt: "prmt.b32{.f4e,.b4e,.rc8,.ecl,.ecr,.rc16,} R, R, R, R";
    }
    Move {
        "mov" data::mov: "mov.pred P, P" "mov.{b16,u16,s16} H, H" "mov.{b32,u32,s32,f32} R, R" "mov.{b64,u64,s64,f64} D, D" "mov.u32 R, I"
            "mov.b32 R, {H, H}" "mov.b32 {H, H}, R" "mov.b64 D, {R, R}" "mov.b64 {R, R}, D" "mov.b64 D, {H, H, H, H}" "mov.b64 {H, H, H, H}, D"
            "mov.u32 R, %tid.x" "mov.u32 R, %clock" "mov.u64 D, {%clock64,%globaltimer}";
        "ld" data::memory: "ld{.global,.const,}.{u8,s8} R, [A]" "ld{.global,.const,}.{u16,s16} H, [A]" "ld{.weak,.volatile,}{.global,}{.ca,.cg,.cs,.lu,.cv,}.{b32,u32,s32,f32} R, [A]"
            "ld{.relaxed,.acquire}{.cta,.cluster,.gpu,.sys}{.global,}.{b64,u64,s64,f64} D, [A]" "ld.global.nc{.L1::no_allocate,}.f32 R, [A]" "ld.global{.L1::evict_last,}{.L2::128B,}.v2.b32 {R, R}, [A]" "ld{.global,}.v4.f32 {R, R, R, R}, [A]"
            "ld.shared{::cta,}.{b32,u32} R, [S]" "ld{.shared,.local}.v2.b64 {D, D}, [S]" "ld.param.u64 D, [out]" "ld.mmio.relaxed.sys.global.u32 R, [A]";
        "ldu" data::memory: "ldu.global.{b32,u32,f32} R, [A]";
        "st" data::memory: "st{.global,}.{u8,s8,b8} [A], R" "st{.global,}.{u16,s16} [A], H" "st{.weak,.volatile,}{.global,}{.wb,.cg,.cs,.wt,}.{b32,u32,s32,f32} [A], R"
            "st{.relaxed,.release}{.cta,.cluster,.gpu,.sys}{.global,}.{b64,u64,s64,f64} [A], D" "st.global.v2.b32 [A], {R, R}" "st{.global,}.v4.f32 [A], {R, R, R, R}"
            "st.shared{::cta,}.b32 [S], R" "st{.shared,.local}.v2.b64 [S], {D, D}";
        "cvt" float::cvt: "cvt.{u16,s16}.{u8,s8} H, H" "cvt.{u16,s16}.{u32,s32} H, R" "cvt.{u32,s32}.{u8,s8,u16,s16} R, H" "cvt{.sat,}.{u8,s8}.{u32,s32} R, R" "cvt.{u64,s64}.{u32,s32} D, R" "cvt{.sat,}.{u32,s32}.{u64,s64} R, D"
            "cvt.{rn,rz,rm,rp}.f32.{s32,u32} R, R" "cvt.{rn,rz,rm,rp}.f32.{s64,u64} R, D" "cvt.{rn,rz,rm,rp}.f64.{s64,u64} D, D" "cvt.rn.f64.{s32,u32} D, R"
            "cvt.{rni,rzi,rmi,rpi}{.ftz,}{.sat,}.{s32,u32}.f32 R, R" "cvt.{rni,rzi,rmi,rpi}.{s64,u64}.f32 D, R" "cvt.{rni,rzi,rmi,rpi}.{s32,u32}.f64 R, D" "cvt.{rni,rzi,rmi,rpi}.{s64,u64}.f64 D, D"
            "cvt.{rni,rzi,rmi,rpi}{.ftz,}.f32.f32 R, R" "cvt{.ftz,}.sat.f32.f32 R, R" "cvt.{rni,rzi,rmi,rpi}.f64.f64 D, D" "cvt.{rn,rz,rm,rp}{.ftz,}{.sat,}.f32.f64 R, D" "cvt{.ftz,}.f64.f32 D, R"
            "cvt.{rn,rz,rm,rp}{.sat,}.f16.f32 H, R" "cvt.rn{.relu,}.f16.f32 H, R" "cvt.{rn,rz,rm,rp}.f16.f64 H, D" "cvt{.ftz,}.f32.f16 R, H" "cvt.f64.f16 D, H" "cvt.{rni,rzi,rmi,rpi}.s32.f16 R, H" "cvt.rn.f16.{s32,u32} H, R"
            "cvt.{rn,rz}{.relu,}.bf16.f32 H, R" "cvt.f32.bf16 R, H" "cvt.{rn,rz}{.relu,}.{f16x2,bf16x2}.f32 R, R, R" "cvt.{rna,rn,rz}.tf32.f32 R, R" "cvt.pack.sat.{u16,s16}.s32 R, R, R";
        "cvta" data::cvta: "cvta{.to,}.{global,shared,local,const,param}.u64 D, D";
        "isspacep" data::isspacep: "isspacep.{global,shared,local,const,param} P, D";
        "mapa" data::mapa, sm 90, ptx 7 8: "mapa{.shared::cluster,}.u64 D, D, R" "mapa.shared::cluster.u32 R, R, R";
        "getctarank" data::mapa, sm 90, ptx 7 8: "getctarank{.shared::cluster,}.u64 R, D";
        "prefetch" data::hint: "prefetch{.global,.local,}.L1 [A]" "prefetch{.global,.local,}.L2 [A]";
        "prefetchu" data::hint: "prefetchu.L1 [A]";
        "discard" data::hint, sm 80, ptx 7 4: "discard.global.L2 [A], 128";
        "applypriority" data::hint, sm 80, ptx 7 4: "applypriority.global.L2::evict_normal [A], 128";
        "cp" data::copy_async, sm 80, ptx 7 0: "cp.async.{ca,cg}.shared{::cta,}.global{.L2::128B,} [S], [A], 16" "cp.async.ca.shared.global [S], [A], 4, R" "cp.async.commit_group" "cp.async.wait_group 0" "cp.async.wait_all";
        "stacksave" data::stack: "stacksave.u64 D";
        "stackrestore" data::stack: "stackrestore.u64 D";
        "createpolicy" data::unsupported:;
        "alloca" data::unsupported:;
        "istypep" data::unsupported:;
        "tex" data::unsupported:;
        "tld4" data::unsupported:;
        "txq" data::unsupported:;
        "suld" data::unsupported:;
        "sust" data::unsupported:;
        "sured" data::unsupported:;
        "suq" data::unsupported:;
        "tensormap" data::unsupported:;
        "multimem" data::unsupported:;
    }
    Control {
        "bra" control::bra: "bra{.uni,} L";
        "brx" control::brx: "brx.idx{.uni,} R, table";
        "call" control::call: "call{.uni,} nothing";
        "ret" control::leave: "ret{.uni,}";
        "exit" control::leave: "exit";
        "trap" control::leave: "trap";
        "brkpt" control::leave: "brkpt";
        "nanosleep" control::nanosleep, sm 70, ptx 6 3: "nanosleep.u32 I";
        "pmevent" control::nothing: "pmevent I";
        "griddepcontrol" control::nothing, sm 90, ptx 7 8: "griddepcontrol.{launch_dependents,wait}";
        "setmaxnreg" data::unsupported:;
    }
    Sync {
        "bar" control::barrier: "bar{.cta,}.sync 0" "bar.sync I, 32" "bar.arrive I, 32" "bar.red.popc.u32 R, 0, P" "bar.red.{and,or}.pred P, 0, !P" "bar.warp.sync M";
        "barrier" control::barrier: "barrier{.cta,}.sync{.aligned,} 0" "barrier{.cta,}.arrive{.aligned,} I, 32" "barrier{.cta,}.red.popc{.aligned,}.u32 R, 0, P" "barrier.cluster.{arrive,wait}{.aligned,}" "barrier.cluster.arrive.{release,relaxed}" "barrier.cluster.wait.acquire";
        "membar" control::fence: "membar.{cta,gl,sys}";
        "fence" control::fence: "fence{.sc,.acq_rel}.{cta,cluster,gpu,sys}" "fence.proxy.{alias,async}" "fence.proxy.async.{global,shared::cta}" "fence.mbarrier_init.release.cluster";
        "atom" data::atomic: "atom{.global,}.add.{u32,s32,f32} R, [A], R" "atom{.relaxed,.acquire,.release,.acq_rel}{.cta,.cluster,.gpu,.sys}.global.add.u64 D, [A], D" "atom.global.add.f64 D, [A], D" "atom{.global,}.add.noftz.{f16x2,bf16x2} R, [A], R" "atom.global.add.noftz.{f16,bf16} H, [A], H"
            "atom{.global,}.{and,or,xor,exch}.b32 R, [A], R" "atom.global.{and,or,xor,exch}.b64 D, [A], D" "atom.global.{inc,dec}.u32 R, [A], R" "atom.shared.{min,max}.{u32,s32} R, [S], R" "atom.global.{min,max}.{u64,s64} D, [A], D"
            "atom.global.cas.b16 H, [A], H, H" "atom{.global,}.cas.b32 R, [A], R, R" "atom.global.cas.b64 D, [A], D, D";
        "red" data::atomic: "red{.global,}{.relaxed,.release,}{.gpu,.sys,}.add.{u32,s32,f32} [A], R" "red.global.{and,or,xor}.b32 [A], R" "red.shared.{min,max}.s32 [S], R" "red.global.add.{u64,f64} [A], D" "red.async.relaxed.cluster.global.inc.u32 [A], R";
        "mbarrier" data::unsupported:;
        "clusterlaunchcontrol" data::unsupported:;
    }
    Warp {
        "shfl" together::shfl: "shfl.sync.{up,down,bfly,idx}.b32 R|P, R, R, R, M" "shfl.sync.{up,down,bfly,idx}.b32 R, R, I, 31, M" "shfl.{up,down,bfly,idx}.b32 R, R, I, 31";
        "vote" together::vote: "vote.sync.{all,any,uni}.pred P, P, M" "vote.sync.ballot.b32 R, !P, M" "vote.{all,any,uni}.pred P, P" "vote.ballot.b32 R, P";
        "match" together::matching, sm 70, ptx 6 0: "match.any.sync.b32 R, R, M" "match.any.sync.b64 R, D, M" "match.all.sync.b32 R|P, R, M" "match.all.sync.b64 R|P, D, M";
        "redux" together::redux, sm 80, ptx 7 0: "redux.sync.{add,min,max}.{u32,s32} R, R, M" "redux.sync.{and,or,xor}.b32 R, R, M";
        "activemask" together::activemask, ptx 6 2: "activemask.b32 R";
        "elect" together::elect, sm 90, ptx 8 0: "elect.sync R|P, M";
    }
    Matrix {
        "mma" together::mma: "mma.sync.aligned.m16n8k16.row.col.f32.{f16.f16,bf16.bf16}.f32 {R, R, R, R}, {R, R, R, R}, {R, R}, {R, R, R, R}" "mma.sync.aligned.m16n8k8.row.col.f32.{f16.f16,bf16.bf16}.f32 {R, R, R, R}, {R, R}, {R}, {R, R, R, R}" "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {R, R}, {R, R, R, R}, {R, R}, {R, R}" "mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {R, R}, {R, R}, {R}, {R, R}" "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {R, R, R, R}, {R, R}, {R}, {R, R, R, R}" "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {R, R, R, R}, {R, R, R, R}, {R, R}, {R, R, R, R}" "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {D, D}, {D}, {D}, {D, D}" "mma.sync.aligned.m8n8k16.row.col{.satfinite,}.s32.{u8,s8}.{u8,s8}.s32 {R, R}, {R}, {R}, {R, R}" "mma.sync.aligned.m16n8k16.row.col{.satfinite,}.s32.{u8,s8}.{u8,s8}.s32 {R, R, R, R}, {R, R}, {R}, {R, R, R, R}" "mma.sync.aligned.m16n8k32.row.col{.satfinite,}.s32.{u8,s8}.{u8,s8}.s32 {R, R, R, R}, {R, R, R, R}, {R, R}, {R, R, R, R}";
        "ldmatrix" together::ldmatrix, sm 75, ptx 6 5: "ldmatrix.sync.aligned.m8n8.x1{.trans,}{.shared,.shared::cta,}.b16 {R}, [S]" "ldmatrix.sync.aligned.m8n8.x2{.trans,}{.shared,.shared::cta,}.b16 {R, R}, [S]" "ldmatrix.sync.aligned.m8n8.x4{.trans,}{.shared,.shared::cta,}.b16 {R, R, R, R}, [S]";
        "stmatrix" together::ldmatrix, sm 90, ptx 7 8: "stmatrix.sync.aligned.m8n8.x1{.trans,}{.shared,}.b16 [S], {R}" "stmatrix.sync.aligned.m8n8.x2{.trans,}{.shared,}.b16 [S], {R, R}" "stmatrix.sync.aligned.m8n8.x4{.trans,}{.shared,}.b16 [S], {R, R, R, R}";
        "movmatrix" together::movmatrix, sm 75, ptx 7 8: "movmatrix.sync.aligned.m8n8.trans.b16 R, R";
        "wmma" together::wmma, sm 70, ptx 6 0: "wmma.load.{a,b}.sync.aligned.{row,col}.{m16n16k16,m32n8k16,m8n32k16}{.global,}.f16 {R, R, R, R, R, R, R, R}, [A], R" "wmma.load.{a,b}.sync.aligned.{row,col}.{m16n16k16,m32n8k16,m8n32k16}.shared.f16 {R, R, R, R, R, R, R, R}, [S]" "wmma.load.c.sync.aligned.{row,col}.{m16n16k16,m32n8k16,m8n32k16}{.global,}.f16 {R, R, R, R}, [A], R" "wmma.load.c.sync.aligned.{row,col}.{m16n16k16,m32n8k16,m8n32k16}.shared.f32 {R, R, R, R, R, R, R, R}, [S]" "wmma.store.d.sync.aligned.{row,col}.{m16n16k16,m32n8k16,m8n32k16}{.global,}.f16 [A], {R, R, R, R}, R" "wmma.store.d.sync.aligned.{row,col}.{m16n16k16,m32n8k16,m8n32k16}.shared.f32 [S], {R, R, R, R, R, R, R, R}" "wmma.mma.sync.aligned.{row,col}.{row,col}.{m16n16k16,m32n8k16,m8n32k16}.f16.f16 {R, R, R, R}, {R, R, R, R, R, R, R, R}, {R, R, R, R, R, R, R, R}, {R, R, R, R}" "wmma.mma.sync.aligned.{row,col}.{row,col}.{m16n16k16,m32n8k16,m8n32k16}.f16.f32 {R, R, R, R}, {R, R, R, R, R, R, R, R}, {R, R, R, R, R, R, R, R}, {R, R, R, R, R, R, R, R}" "wmma.mma.sync.aligned.{row,col}.{row,col}.{m16n16k16,m32n8k16,m8n32k16}.f32.f16 {R, R, R, R, R, R, R, R}, {R, R, R, R, R, R, R, R}, {R, R, R, R, R, R, R, R}, {R, R, R, R}" "wmma.mma.sync.aligned.{row,col}.{row,col}.{m16n16k16,m32n8k16,m8n32k16}.f32.f32 {R, R, R, R, R, R, R, R}, {R, R, R, R, R, R, R, R}, {R, R, R, R, R, R, R, R}, {R, R, R, R, R, R, R, R}";
        "wgmma" data::unsupported:;
        "tcgen05" data::unsupported:;
    }
    Video {
        "vadd4" video::video: "vadd4.{u32,s32}.{u32,s32}.{u32,s32}{.sat,.add,} R, R, R, R";
        "vsub4" video::video: "vsub4.{u32,s32}.{u32,s32}.{u32,s32}{.sat,.add,} R, R, R, R";
        "vavrg4" video::video: "vavrg4.{u32,s32}.{u32,s32}.{u32,s32}{.sat,.add,} R, R, R, R";
        "vabsdiff4" video::video: "vabsdiff4.{u32,s32}.{u32,s32}.{u32,s32}{.sat,.add,} R, R, R, R";
        "vmin4" video::video: "vmin4.{u32,s32}.{u32,s32}.{u32,s32}{.sat,.add,} R, R, R, R";
        "vmax4" video::video: "vmax4.{u32,s32}.{u32,s32}.{u32,s32}{.sat,.add,} R, R, R, R";
        "vadd2" video::video: "vadd2.{u32,s32}.{u32,s32}.{u32,s32}{.sat,.add,} R, R, R, R";
        "vsub2" video::video: "vsub2.{u32,s32}.{u32,s32}.{u32,s32}{.sat,.add,} R, R, R, R";
        "vavrg2" video::video: "vavrg2.{u32,s32}.{u32,s32}.{u32,s32}{.sat,.add,} R, R, R, R";
        "vabsdiff2" video::video: "vabsdiff2.{u32,s32}.{u32,s32}.{u32,s32}{.sat,.add,} R, R, R, R";
        "vmin2" video::video: "vmin2.{u32,s32}.{u32,s32}.{u32,s32}{.sat,.add,} R, R, R, R";
        "vmax2" video::video: "vmax2.{u32,s32}.{u32,s32}.{u32,s32}{.sat,.add,} R, R, R, R";
        "vadd" data::unsupported:;
        "vsub" data::unsupported:;
        "vabsdiff" data::unsupported:;
        "vmin" data::unsupported:;
        "vmax" data::unsupported:;
        "vshl" data::unsupported:;
        "vshr" data::unsupported:;
        "vmad" data::unsupported:;
        "vset" data::unsupported:;
        "vset2" data::unsupported:;
        "vset4" data::unsupported:;
    }
}

/// The row of an opcode's first word.
pub(crate) fn row(name: &str) -> Option<&'static Row> {
    static BY_NAME: OnceLock<std::collections::HashMap<&'static str, usize>> = OnceLock::new();
    let map = BY_NAME.get_or_init(|| TABLE.iter().enumerate().map(|(k, r)| (r.name, k)).collect());
    map.get(name).map(|k| &TABLE[*k])
}

/// Modifiers of refused instructions, so that the error is about the instruction.
const FOREIGN: &[&str] = &[
    "mma_async",
    "commit_group",
    "wait_group",
    "fence",
    "bulk",
    "tensor",
    "mbarrier",
    "init",
    "inval",
    "arrive",
    "try_wait",
    "test_wait",
    "expect_tx",
    "complete_tx",
    "noComplete",
    "drop",
    "parity",
    "tile",
    "im2col",
    "reduce",
    "tensormap",
    "m64n8k16",
    "m64n16k16",
    "m64n32k16",
    "m64n64k16",
    "m64n96k16",
    "m64n128k16",
    "m64n192k16",
    "m64n256k16",
    "sp",
    "kind",
    "1d",
    "2d",
    "3d",
    "4d",
    "5d",
    "a1d",
    "a2d",
    "cube",
    "level",
    "grad",
    "r",
    "g",
    "b",
    "a",
    "width",
    "height",
    "depth",
    "trap",
    "clamp",
    "zero",
    "inc",
    "dec",
    "mma",
    "alloc",
    "dealloc",
    "ld",
    "st",
    "cp",
    "shift",
    "wait",
    "cta_group",
    "async",
    "b128",
    "acq_rel",
    "fractional",
    "range",
    "satfinite",
    "sync_restrict",
    "proxy",
    "try_cancel",
    "query_cancel",
    "shr7",
    "shr15",
    "rs",
    "e4m3x2",
    "e5m2x2",
    "e4m3",
    "e5m2",
    "u4",
    "s4",
    "b1",
    "and",
    "xor",
    "or",
    "popc",
    "m8n8k32",
    "m8n8k128",
    "m16n8k64",
    "m16n8k128",
    "m16n8k256",
    "relu",
    "ignore_src",
    "cluster",
    "L1",
    "L2",
    "add",
    "u16x2",
    "s16x2",
    "num",
    "v8",
    "s8x4",
];

/// Whether a word is a modifier of any instruction.
pub(crate) fn is_modifier(word: &str) -> bool {
    static WORDS: OnceLock<HashSet<String>> = OnceLock::new();
    let words = WORDS.get_or_init(|| {
        let mut set: HashSet<String> = FOREIGN.iter().map(ToString::to_string).collect();
        for form in TABLE.iter().flat_map(|r| r.forms) {
            for f in expand(form) {
                let opcode = f.split(' ').next().unwrap_or_default().to_string();
                set.extend(opcode.split('.').skip(1).map(str::to_string));
            }
        }
        set
    });
    words.contains(word)
        || Type::parse(word).is_some()
        || word.starts_with("L1::")
        || word.starts_with("L2::")
        || word.contains("::")
}

/// All instructions that a form stands for. Braces that hold operands stay.
#[must_use]
pub fn expand(form: &str) -> Vec<String> {
    let mut from = 0;
    while let Some(open) = form[from..].find('{').map(|k| from + k) {
        let Some(close) = form[open..].find('}').map(|k| open + k) else {
            break;
        };
        let inner = &form[open + 1..close];
        // Lists of registers are capital letters.
        if inner.chars().next().is_some_and(|c| c.is_ascii_uppercase()) {
            from = close;
            continue;
        }
        return inner
            .split(',')
            .flat_map(|choice| expand(&format!("{}{choice}{}", &form[..open], &form[close + 1..])))
            .collect();
    }
    vec![form.to_string()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_stands_for_all_its_choices() {
        assert_eq!(
            expand("a{.b,}.{c,d} {R, R}, P"),
            [
                "a.b.c {R, R}, P",
                "a.b.d {R, R}, P",
                "a.c {R, R}, P",
                "a.d {R, R}, P"
            ]
        );
    }

    #[test]
    fn no_word_has_two_rows() {
        let mut names: Vec<&str> = TABLE.iter().map(|r| r.name).collect();
        names.sort_unstable();
        let n = names.len();
        names.dedup();
        assert_eq!(names.len(), n);
    }
}
