#![forbid(unsafe_code)]
//! The ticket by which a region is handed over, as bytes. Pure.
//!
//! | offset | what |
//! |---|---|
//! | 0 | magic `vcrg` |
//! | 4 | version u16, 1 |
//! | 6 | carrier u8: 1 grants, 2 descriptors |
//! | 7 | access u8: 1 peer reads, 2 peer writes, 3 both |
//! | 8 | id u64, counted up by the owner from 1 |
//! | 16 | nonce, 16 bytes |
//! | 32 | length in bytes u64 |
//! | 40 | grant reference of the header page u32; 0 with descriptors |
//! | 44 | reserved u32, 0 |
//!
//! Numbers are little-endian. The same bytes are at the start of the region's header page, so that
//! a ticket whose region is gone is recognised.

use super::error::{RegionError, TicketError};
use crate::wire::layout::PAGE;

/// Length of a ticket in bytes.
pub const TICKET_BYTES: usize = 48;

const MAGIC: [u8; 4] = *b"vcrg";
const VERSION: u16 = 1;

/// The accesses that a region allows its two sides. The owner can always read; so can the peer,
/// since no mapping is writable but not readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The owner writes. The peer's pages are read-only: no program of the peer's can get around
    /// that.
    PeerReads,
    /// The peer writes; [`OwnedRegion`](super::OwnedRegion) refuses to.
    PeerWrites,
    /// Both write.
    Both,
}

impl Access {
    /// Whether the peer's mapping is writable.
    pub fn peer_writes(self) -> bool {
        self != Self::PeerReads
    }

    /// Whether the owner writes.
    pub fn owner_writes(self) -> bool {
        self != Self::PeerWrites
    }

    fn code(self) -> u8 {
        match self {
            Self::PeerReads => 1,
            Self::PeerWrites => 2,
            Self::Both => 3,
        }
    }
}

/// The way by which the memory of a region gets to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// By grant references, starting with that of the header page.
    Grants {
        /// Grant reference of the header page.
        header: u32,
    },
    /// By descriptors, which are sent beside the channel.
    Descriptors,
}

/// A ticket, valid by itself: every field is in its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// Unique among the regions of one owner within a channel.
    pub id: u64,
    /// Random; distinguishes the region from all others.
    pub nonce: [u8; 16],
    /// Bytes; at least 1.
    pub length: u64,
    /// The sides that may write.
    pub access: Access,
    /// The carrier of the memory.
    pub carrier: Carrier,
}

impl Ticket {
    /// As bytes.
    pub fn encode(&self) -> [u8; TICKET_BYTES] {
        let (carrier, header) = match self.carrier {
            Carrier::Grants { header } => (1, header),
            Carrier::Descriptors => (2, 0),
        };
        let mut bytes = [0; TICKET_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6] = carrier;
        bytes[7] = self.access.code();
        bytes[8..16].copy_from_slice(&self.id.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.nonce);
        bytes[32..40].copy_from_slice(&self.length.to_le_bytes());
        bytes[40..44].copy_from_slice(&header.to_le_bytes());
        bytes
    }

    /// Decodes bytes of a peer.
    ///
    /// # Errors
    /// [`RegionError::Ticket`] with the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RegionError> {
        let bytes: &[u8; TICKET_BYTES] = bytes
            .try_into()
            .map_err(|_| TicketError::Length(bytes.len()))?;
        if bytes[..4] != MAGIC {
            return Err(TicketError::Magic.into());
        }
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        if version != VERSION {
            return Err(TicketError::Version(version).into());
        }
        let access = match bytes[7] {
            1 => Access::PeerReads,
            2 => Access::PeerWrites,
            3 => Access::Both,
            other => return Err(TicketError::Access(other).into()),
        };
        let number = |at: usize| -> u64 {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(number)
        };
        // The reserved word is the upper half.
        let header = number(40);
        let carrier = match (bytes[6], u32::try_from(header)) {
            (1, Ok(header)) if header != 0 => Carrier::Grants { header },
            (2, Ok(0)) => Carrier::Descriptors,
            (1 | 2, _) => return Err(TicketError::Handle(header).into()),
            (other, _) => return Err(TicketError::Carrier(other).into()),
        };
        let mut nonce = [0; 16];
        nonce.copy_from_slice(&bytes[16..32]);
        let (id, length) = (number(8), number(32));
        if id == 0 {
            return Err(TicketError::Id.into());
        }
        if length == 0 || usize::try_from(length).is_err() {
            return Err(TicketError::RegionLength(length).into());
        }
        Ok(Self {
            id,
            nonce,
            length,
            access,
            carrier,
        })
    }

    /// Pages of data.
    pub fn pages(&self) -> usize {
        usize::try_from(self.length.div_ceil(PAGE as u64)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        Ticket {
            id: 7,
            nonce: *b"0123456789abcdef",
            length: 2 << 20,
            access: Access::Both,
            carrier: Carrier::Grants { header: 9 },
        }
    }

    #[test]
    fn a_ticket_comes_back_as_it_was() {
        for access in [Access::PeerReads, Access::PeerWrites, Access::Both] {
            for carrier in [Carrier::Grants { header: 9 }, Carrier::Descriptors] {
                let ticket = Ticket {
                    access,
                    carrier,
                    ..ticket()
                };
                assert_eq!(Ticket::decode(&ticket.encode()), Ok(ticket));
            }
        }
    }

    #[test]
    fn hostile_tickets_are_refused_by_field() {
        let good = ticket().encode();
        let with = |at: usize, bytes: &[u8]| {
            let mut bad = good;
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            match Ticket::decode(&bad) {
                Err(RegionError::Ticket(error)) => error,
                other => panic!("accepted: {other:?}"),
            }
        };
        assert_eq!(with(0, b"x"), TicketError::Magic);
        assert_eq!(with(4, &[2]), TicketError::Version(2));
        assert_eq!(with(6, &[0]), TicketError::Carrier(0));
        assert_eq!(with(6, &[2]), TicketError::Handle(9));
        assert_eq!(with(7, &[0]), TicketError::Access(0));
        assert_eq!(with(7, &[4]), TicketError::Access(4));
        assert_eq!(with(8, &[0; 8]), TicketError::Id);
        assert_eq!(with(32, &[0; 8]), TicketError::RegionLength(0));
        assert_eq!(with(40, &[0; 4]), TicketError::Handle(0));
        assert_eq!(with(44, &[1]), TicketError::Handle(1 << 32 | 9));
        for length in [0, 1, 47] {
            let error = Ticket::decode(&good[..length]);
            assert_eq!(error, Err(TicketError::Length(length).into()));
        }
        let long = [&good[..], &[0]].concat();
        assert_eq!(Ticket::decode(&long), Err(TicketError::Length(49).into()));
    }

    #[test]
    fn pages_of_any_length() {
        let pages = |length| Ticket { length, ..ticket() }.pages();
        assert_eq!([1, 4096, 4097].map(pages), [1, 1, 2]);
        assert_eq!(pages(u64::MAX), 1 << 52);
    }
}
