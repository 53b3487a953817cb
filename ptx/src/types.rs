//! Fundamental types and state spaces (PTX ISA 5.1, 5.2).

macro_rules! types {
    ($($v:ident $name:literal $bits:literal $kind:ident;)*) => {
        /// A fundamental type.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Type { $(#[doc = concat!("`.", $name, "`")] $v,)* }

        impl Type {
            /// The type with this name, without the dot.
            #[must_use]
            pub fn parse(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$v),)* _ => None }
            }

            /// Its name, without the dot.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$v => $name,)* }
            }

            /// Its width in bits; 1 for a predicate.
            #[must_use]
            pub fn bits(self) -> u32 {
                match self { $(Self::$v => $bits,)* }
            }

            /// All types, at their discriminants.
            pub(crate) const ALL: &[Self] = &[$(Self::$v,)*];

            pub(crate) fn kind(self) -> NumberKind {
                match self { $(Self::$v => NumberKind::$kind,)* }
            }
        }
    };
}

/// The interpretation of a type's bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NumberKind {
    Bits,
    Unsigned,
    Signed,
    Float,
}

types! {
    Pred "pred" 1 Bits;
    B8 "b8" 8 Bits; B16 "b16" 16 Bits; B32 "b32" 32 Bits; B64 "b64" 64 Bits; B128 "b128" 128 Bits;
    U8 "u8" 8 Unsigned; U16 "u16" 16 Unsigned; U32 "u32" 32 Unsigned; U64 "u64" 64 Unsigned;
    S8 "s8" 8 Signed; S16 "s16" 16 Signed; S32 "s32" 32 Signed; S64 "s64" 64 Signed;
    F16 "f16" 16 Float; F32 "f32" 32 Float; F64 "f64" 64 Float; Bf16 "bf16" 16 Float;
    F16x2 "f16x2" 32 Float; Bf16x2 "bf16x2" 32 Float; Tf32 "tf32" 32 Float;
}

impl Type {
    /// Its place in [`Self::ALL`].
    pub(crate) fn index(self) -> u32 {
        self as u32
    }

    pub(crate) fn bytes(self) -> u32 {
        self.bits().div_ceil(8)
    }

    pub(crate) fn is_signed(self) -> bool {
        self.kind() == NumberKind::Signed
    }

    pub(crate) fn is_float(self) -> bool {
        self.kind() == NumberKind::Float
    }
}

/// A state space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    /// Any of the others, determined by the address.
    Generic,
    /// The device's memory.
    Global,
    /// Memory of a block.
    Shared,
    /// Memory of a thread.
    Local,
    /// Read-only for kernels.
    Const,
    /// Parameters of a kernel, or of a call.
    Param,
    /// Registers, as parameters of a function.
    Reg,
}

impl Space {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "global" => Self::Global,
            "shared" | "shared::cta" | "shared::cluster" => Self::Shared,
            "local" => Self::Local,
            "const" => Self::Const,
            "param" | "param::entry" | "param::func" => Self::Param,
            _ => return None,
        })
    }
}
