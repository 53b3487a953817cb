//! The flags of a frame.

/// The flags of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Flags(u16);

impl Flags {
    /// No flag: a request that is answered, or the last data of one.
    pub const NONE: Flags = Flags(0);
    /// The frame goes from the mediator to the guest.
    pub const REPLY: Flags = Flags(1 << 0);
    /// A request that is answered only if it fails, and then at the next fence.
    pub const QUIET: Flags = Flags(1 << 1);
    /// Data: more follows in this direction.
    pub const MORE: Flags = Flags(1 << 2);
    /// A reply: quiet requests have failed, and the next fence names them.
    pub const FAILURES: Flags = Flags(1 << 3);
    /// A reply: kernels have printed something, which [`TakePrinted`](crate::op::TakePrinted)
    /// returns.
    pub const PRINTED: Flags = Flags(1 << 4);

    const KNOWN: u16 =
        Self::REPLY.0 | Self::QUIET.0 | Self::MORE.0 | Self::FAILURES.0 | Self::PRINTED.0;

    /// Checks `bits`; `None` if any bit is unknown.
    pub const fn from_bits(bits: u16) -> Option<Self> {
        if bits & !Self::KNOWN == 0 {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// The bits as on the wire.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Whether every flag of `other` is set.
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Flags) -> Self {
        Self(self.0 | other.0)
    }
}
