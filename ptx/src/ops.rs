//! The operations on which warps spend most of their time, each written once: the executor's loop
//! and the list of operations are both made from [`with_hot_ops`].
//!
//! A row is a name and the operation on one lane. The word before the braces names the registers it
//! takes: see the functions of the same names in `exec/lanes.rs`. Rarer instructions are an
//! [`Op::Lanes`](crate::ops::Op) with a function for one lane, named by the row of the instruction
//! table that needs it.

/// Calls the macro `$cb` with the arguments and all rows.
macro_rules! with_hot_ops {
    ($cb:ident $args:tt) => {
        $cb! { $args
        un32 {
            Mov32 |a| a;
            Not32 |a| !a;
            Neg32 |a| a.wrapping_neg();
            AbsS32 |a| if (a as i32) < 0 { a.wrapping_neg() } else { a };
            Low16 |a| a & 0xffff;
            Sext16 |a| a as i16 as i32 as u32;
            Sext8 |a| a as i8 as i32 as u32;
            Low8 |a| a & 0xff;
            NegF32 |a| canon(a ^ 0x8000_0000);
            AbsF32 |a| canon(a & 0x7fff_ffff);
            CvtF32S32 |a| (a as i32 as f32).to_bits();
            CvtF32U32 |a| (a as f32).to_bits();
            CvtS32F32 |a| (f32::from_bits(a) as i32) as u32;
            SqrtF32 |a| f32r(f32::from_bits(a).sqrt());
        }
        bin32 {
            Add32 |a, b| a.wrapping_add(b);
            Sub32 |a, b| a.wrapping_sub(b);
            Mul32 |a, b| a.wrapping_mul(b);
            And32 |a, b| a & b;
            Or32 |a, b| a | b;
            Xor32 |a, b| a ^ b;
            Shl32 |a, b| if b > 31 { 0 } else { a << (b & 31) };
            ShrU32 |a, b| if b > 31 { 0 } else { a >> (b & 31) };
            ShrS32 |a, b| ((a as i32) >> (if b > 31 { 31 } else { b })) as u32;
            MinS32 |a, b| (a as i32).min(b as i32) as u32;
            MaxS32 |a, b| (a as i32).max(b as i32) as u32;
            MinU32 |a, b| a.min(b);
            MaxU32 |a, b| a.max(b);
            MulHiS32 |a, b| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32;
            MulHiU32 |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32;
            Add16 |a, b| a.wrapping_add(b) & 0xffff;
            Sub16 |a, b| a.wrapping_sub(b) & 0xffff;
        }
        float_bin32 {
            AddF32 |a, b| a + b;
            SubF32 |a, b| a - b;
            MulF32 |a, b| a * b;
            DivF32 |a, b| a / b;
            AddF32z |a, b| flushed(flushed(a) + flushed(b));
            SubF32z |a, b| flushed(flushed(a) - flushed(b));
            MulF32z |a, b| flushed(flushed(a) * flushed(b));
        }
        float_tri32 {
            FmaF32 |a, b, c| fma_f32::<V3>(a, b, c);
            FmaF32z |a, b, c| flushed(fma_f32::<V3>(flushed(a), flushed(b), flushed(c)));
        }
        bin32 {
            MinF32 |a, b| min_f32(a, b);
            MaxF32 |a, b| max_f32(a, b);
        }
        tri32 {
            Mad32 |a, b, c| a.wrapping_mul(b).wrapping_add(c);
            Shf32 |a, b, c| (((u64::from(b) << 32 | u64::from(a)) << (c & 31)) >> 32) as u32;
        }
        un64 {
            Mov64 |a| a;
            Not64 |a| !a;
            Neg64 |a| a.wrapping_neg();
        }
        bin64 {
            Add64 |a, b| a.wrapping_add(b);
            Sub64 |a, b| a.wrapping_sub(b);
            Mul64 |a, b| a.wrapping_mul(b);
            And64 |a, b| a & b;
            Or64 |a, b| a | b;
            Xor64 |a, b| a ^ b;
            AddF64 |a, b| (f64::from_bits(a) + f64::from_bits(b)).to_bits();
            SubF64 |a, b| (f64::from_bits(a) - f64::from_bits(b)).to_bits();
            MulF64 |a, b| (f64::from_bits(a) * f64::from_bits(b)).to_bits();
            DivF64 |a, b| (f64::from_bits(a) / f64::from_bits(b)).to_bits();
        }
        tri64 {
            Mad64 |a, b, c| a.wrapping_mul(b).wrapping_add(c);
            FmaF64 |a, b, c| f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)).to_bits();
        }
        shift64 {
            Shl64 |a, b| if b > 63 { 0 } else { a << (b & 63) };
            ShrU64 |a, b| if b > 63 { 0 } else { a >> (b & 63) };
            ShrS64 |a, b| ((a as i64) >> (if b > 63 { 63 } else { b })) as u64;
        }
        wide {
            MulWideS32 |a, b| (i64::from(a as i32) * i64::from(b as i32)) as u64;
            MulWideU32 |a, b| u64::from(a) * u64::from(b);
        }
        wide_add {
            MadWideS32 |a, b, c| ((i64::from(a as i32) * i64::from(b as i32)) as u64).wrapping_add(c);
            MadWideU32 |a, b, c| (u64::from(a) * u64::from(b)).wrapping_add(c);
        }
        widen {
            ZextU32 |a| u64::from(a);
            SextS32 |a| i64::from(a as i32) as u64;
        }
        narrow {
            Low32 |a| a as u32;
        }
        cmp32 {
            Eq32 |a, b| a == b;
            Ne32 |a, b| a != b;
            LtS32 |a, b| (a as i32) < b as i32;
            LeS32 |a, b| (a as i32) <= b as i32;
            GtS32 |a, b| (a as i32) > b as i32;
            GeS32 |a, b| (a as i32) >= b as i32;
            LtU32 |a, b| a < b;
            LeU32 |a, b| a <= b;
            GtU32 |a, b| a > b;
            GeU32 |a, b| a >= b;
            EqF32 |a, b| f32::from_bits(a) == f32::from_bits(b);
            NeF32 |a, b| f32::from_bits(a) < f32::from_bits(b) || f32::from_bits(a) > f32::from_bits(b);
            LtF32 |a, b| f32::from_bits(a) < f32::from_bits(b);
            LeF32 |a, b| f32::from_bits(a) <= f32::from_bits(b);
            GtF32 |a, b| f32::from_bits(a) > f32::from_bits(b);
            GeF32 |a, b| f32::from_bits(a) >= f32::from_bits(b);
            EquF32 |a, b| !(f32::from_bits(a) < f32::from_bits(b) || f32::from_bits(a) > f32::from_bits(b));
            NeuF32 |a, b| f32::from_bits(a) != f32::from_bits(b);
            LtuF32 |a, b| !(f32::from_bits(a) >= f32::from_bits(b));
            LeuF32 |a, b| !(f32::from_bits(a) > f32::from_bits(b));
            GtuF32 |a, b| !(f32::from_bits(a) <= f32::from_bits(b));
            GeuF32 |a, b| !(f32::from_bits(a) < f32::from_bits(b));
        }
        cmp64 {
            Eq64 |a, b| a == b;
            Ne64 |a, b| a != b;
            LtS64 |a, b| (a as i64) < b as i64;
            LeS64 |a, b| (a as i64) <= b as i64;
            GtS64 |a, b| (a as i64) > b as i64;
            GeS64 |a, b| (a as i64) >= b as i64;
            LtU64 |a, b| a < b;
            LeU64 |a, b| a <= b;
            GtU64 |a, b| a > b;
            GeU64 |a, b| a >= b;
        }
        }
    };
}
pub(crate) use with_hot_ops;

macro_rules! define_ops {
    (() $($kind:ident { $($name:ident |$($arg:ident),*| $body:expr;)* })*) => {
        /// The operation of a decoded instruction: those of [`with_hot_ops`], then the others.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u16)]
        pub(crate) enum Op {
            $($($name,)*)*
            /// d = f(a, b, c) for each lane; the flags in `w` tell which registers are wide.
            Lanes,
            /// The same with a predicate as d, combined as `setp` does.
            LanesTest,
            /// A chain through the carry flag.
            Carry,
            AndPred, OrPred, XorPred, NotPred, MovPred,
            Selp32, Selp64,
            /// d = {a, b} as two halves.
            Pack32, Pack64,
            /// {d, b} = the halves of a.
            Unpack32, Unpack64,
            Bra, Brx, Call, Ret, Exit, Trap, Nop,
            /// A parameter of the kernel at `imm`: the same for all lanes.
            Param32, Param64,
            /// The most frequent kinds: one value of the registers' width.
            LdGlobal32, LdGlobal64, StGlobal32, StGlobal64, LdShared32, StShared32,
            /// Any other load or store.
            Memory,
            Atomic,
            /// Executed by several lanes at once.
            Sync,
            Bar,
            ClusterBar,
            Fence,
            ActiveMask,
            Clock,
            /// No effect but a pause.
            Sleep,
            /// Copies from global to shared.
            CopyAsync,
            StackSave,
        }
    };
}
with_hot_ops!(define_ops());

/// A function of one lane: up to three operands and a constant of the instruction.
pub(crate) type LaneFn = fn(u64, u64, u64, u32) -> u64;
