//! Little-endian integers of alignment 1, so that wire structures have no padding and can be
//! copied out of a byte slice at any offset, on any host.

use bytemuck::{Pod, Zeroable};

macro_rules! little_endian {
    ($($name:ident($int:ty, $bytes:literal)),+) => {$(
        #[repr(transparent)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
        pub(crate) struct $name([u8; $bytes]);

        impl $name {
            pub(crate) const fn get(self) -> $int {
                <$int>::from_le_bytes(self.0)
            }
        }

        impl From<$int> for $name {
            fn from(value: $int) -> Self {
                Self(value.to_le_bytes())
            }
        }
    )+};
}

little_endian!(U16(u16, 2), U32(u32, 4), I32(i32, 4), U64(u64, 8));
