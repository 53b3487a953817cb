#![forbid(unsafe_code)]
//! Errors of a shared region. None of them ends the channel.

/// The reasons for which a call on a region can fail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// The bytes asked for do not lie within the region.
    #[error("{len} bytes at offset {offset} are outside the region of {region} bytes")]
    OutOfBounds {
        /// Offset of the first byte.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Bytes of the region.
        region: u64,
    },
    /// A word was asked for at an offset that is not a multiple of its size.
    #[error("offset {offset} is not a multiple of {size}")]
    Misaligned {
        /// The offset.
        offset: u64,
        /// Bytes of the word.
        size: usize,
    },
    /// This side may only read the region.
    #[error("this side may only read the region")]
    ReadOnly,
    /// The owner has revoked the region.
    #[error("the owner has revoked the region")]
    Revoked,
    /// The owner has closed the region, or its process has ended.
    #[error("the owner of the region has closed it")]
    OwnerClosed,
    /// The owner's state byte in the header page holds a value that has no meaning.
    #[error("the owner set the region's state to {0}, allowed is 0 to 2")]
    State(u8),
    /// The deadline of a revocation passed and the peer still holds the region.
    #[error("the peer still holds the revoked region of {pages} pages")]
    StillHeld {
        /// Pages that cannot be used again until it lets go.
        pages: usize,
    },
    /// A region of no bytes.
    #[error("a region of 0 bytes")]
    Empty,
    /// This side's limit for the channel's regions does not allow it.
    #[error(
        "a region of {wanted} pages is beyond the channel's limit of {limit}: {used} are in use, \
         {held} of them in ended regions that the peer still holds"
    )]
    Limit {
        /// Pages asked for, with those that describe the region.
        wanted: usize,
        /// Pages of all regions that this side made, or of all that it mapped.
        used: usize,
        /// Pages of ended regions which the peer has not let go.
        held: usize,
        /// The limit in pages.
        limit: usize,
    },
    /// Too many regions in one channel, ended ones that keep their pages included.
    #[error("the channel has {0} regions already, which is the most")]
    TooMany(usize),
    /// The bytes are not a ticket that this side can use.
    #[error("not a usable ticket: {0}")]
    Ticket(#[from] TicketError),
    /// The memory behind the ticket is not the region's: it has ended, or never existed.
    #[error("the memory that the ticket names does not belong to its region")]
    Stale,
    /// The region was mapped through this ticket before.
    #[error("the region was mapped before; a ticket serves once")]
    Used,
    /// The list of the region's pages breaks a rule.
    #[error("the region's list of pages is wrong: grant reference {reference} {problem}")]
    List {
        /// The grant reference concerned.
        reference: u32,
        /// The rule it breaks.
        problem: &'static str,
    },
    /// This kind of channel has no regions.
    #[error("{0} has no shared regions")]
    Unsupported(String),
}

/// The field of a ticket that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TicketError {
    /// Not 48 bytes.
    #[error("it has {0} bytes")]
    Length(usize),
    /// The magic number is wrong.
    #[error("it does not start as one")]
    Magic,
    /// From another version of this crate.
    #[error("it has version {0}, this side knows 1")]
    Version(u16),
    /// A carrier that does not exist, or is not that of this channel.
    #[error("carrier {0} is not this channel's")]
    Carrier(u8),
    /// An access that does not exist.
    #[error("access {0} does not exist")]
    Access(u8),
    /// A reference to the header page that cannot be one.
    #[error("{0:#x} is no reference to a header page")]
    Handle(u64),
    /// Id 0.
    #[error("its id is 0")]
    Id,
    /// A length of 0, or one beyond any memory.
    #[error("it is for {0} bytes")]
    RegionLength(u64),
}

impl RegionError {
    /// One line: the remedy, for people.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::OutOfBounds { .. } | Self::Misaligned { .. } => {
                "correct the offset and length; the region's len() has its size"
            }
            Self::ReadOnly => "create the region with an access that lets this side write",
            Self::Revoked | Self::OwnerClosed | Self::Stale | Self::Used => {
                "ask the other side for a new region and its ticket"
            }
            Self::State(_) | Self::List { .. } => "do not trust the peer; it is broken or hostile",
            Self::StillHeld { .. } => {
                "revoke again later, or close the channel; the pages stay set aside until then"
            }
            Self::Empty => "ask for at least one byte",
            Self::Limit { .. } => {
                "use a smaller region; end others and give their pages back; or raise the limit with \
                 Regions::set_limit"
            }
            Self::TooMany(_) => "end other regions of this channel and give their pages back",
            Self::Ticket(_) => {
                "pass on the bytes of ticket() unchanged, to the same version of vchan"
            }
            Self::Unsupported(_) => "send the bytes over the channel itself",
        }
    }
}
