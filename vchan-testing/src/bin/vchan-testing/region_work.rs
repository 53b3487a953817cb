//! The tasks of the two ends of a shared region.

use clap::ValueEnum;

/// The client asks for it with one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RegionWork {
    /// Move bytes both ways and verify them, revoke, ask for too much.
    Check,
    /// Stay mapped until the other side is gone.
    Hold,
    /// Compare with the ring alone.
    Bench,
}

impl RegionWork {
    pub(crate) fn byte(self) -> u8 {
        match self {
            Self::Check => b'c',
            Self::Hold => b'h',
            Self::Bench => b'b',
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Check, Self::Hold, Self::Bench]
            .into_iter()
            .find(|work| work.byte() == byte)
    }
}
