#![forbid(unsafe_code)]
//! The extension of the wire format: its layout, and the checks of its fields. Pure.
//!
//! libxenvchan's control page keeps all changing fields in one cache line, wakes on any step of an
//! index, and limits rings to 1 MiB. Two sides that both know the extension use a second shared
//! page instead, the **extension page**:
//!
//! | offset | what | written by |
//! |---|---|---|
//! | 0 | [`Header`]: what the server offers | server, before anybody can find the page |
//! | 128 | [`Acceptance`]: what the client takes | client, before it sets `cli_live` to 1 |
//! | 256 + 128 n | ten words, each on a line of its own: [`offset`] | see there |
//! | 2048 | `u32[512]`: references of the left ring's pages beyond 1 MiB, then of the right ring's | server |
//!
//! The live bytes stay in the control page, where the kernel clears them for a process that dies.
//! Its indexes and notify bytes no longer change once the extension is accepted. A side that does
//! not know the extension never reads the page, and the channel is libxenvchan's.
//!
//! Numbers are in native byte order, as in the control page. A **wait word** asks to be woken when
//! [`ARMED`](crate::notify::ARMED) is set in it, at the index whose low 31 bits it holds. With
//! ARMED clear it asks for nothing, whatever its value: 0 here, and 1 in earlier versions of this
//! crate while they looked at the index themselves.

use crate::error::ExtensionError;
use crate::wire::layout::{ORDER_MAX, ORDER_MAX_EXTENDED, Orders, PAGE};

/// First bytes of an extension page.
pub const MAGIC: [u8; 8] = *b"vchan-ex";
/// The newest version, and the only one so far. A side that offers a version supports all before
/// it.
pub const VERSION: u16 = 1;
/// Length of a session's nonce.
pub const NONCE_BYTES: usize = 16;

/// Parts of the extension that a side may lack.
pub mod feature {
    /// Rings beyond 1 MiB: of 2 MiB (order 21), and of up to 8 MiB (order 23) in memory that is not
    /// granted page by page.
    pub const LARGE_RINGS: u32 = 1;
    /// All features of this version of the crate.
    pub const ALL: u32 = LARGE_RINGS;
}

/// Byte offsets in the extension page.
pub mod offset {
    /// [`Header`](super::Header).
    pub const HEADER: usize = 0;
    /// [`Acceptance`](super::Acceptance).
    pub const ACCEPTANCE: usize = 128;
    /// Index up to which the client has written the left ring.
    pub const LEFT_PROD: usize = 256;
    /// Index up to which the server has read the left ring.
    pub const LEFT_CONS: usize = 384;
    /// The `LEFT_PROD` at which the server wants to be woken; set by it, taken by the client.
    pub const LEFT_READER_WAIT: usize = 512;
    /// The `LEFT_CONS` at which the client wants to be woken; set by it, taken by the server.
    pub const LEFT_WRITER_WAIT: usize = 640;
    /// Index up to which the server has written the right ring.
    pub const RIGHT_PROD: usize = 768;
    /// Index up to which the client has read the right ring.
    pub const RIGHT_CONS: usize = 896;
    /// The `RIGHT_PROD` at which the client wants to be woken; set by it, taken by the server.
    pub const RIGHT_READER_WAIT: usize = 1024;
    /// The `RIGHT_CONS` at which the server wants to be woken; set by it, taken by the client.
    pub const RIGHT_WRITER_WAIT: usize = 1152;
    /// 1 once the client has closed with its stream complete.
    pub const LEFT_ENDED: usize = 1280;
    /// 1 once the server has closed with its stream complete.
    pub const RIGHT_ENDED: usize = 1408;
    /// References of the pages beyond the first 1 MiB of each ring.
    pub const EXTRA_GRANTS: usize = 2048;
}

/// Entries of the list of extra grants.
pub const EXTRA_GRANTS_MAX: usize = 2 * ((1 << ORDER_MAX_EXTENDED) - (1 << ORDER_MAX)) / PAGE;

const _: () = assert!(offset::EXTRA_GRANTS + 4 * EXTRA_GRANTS_MAX <= PAGE);

/// Random bytes that distinguish a channel from every other, even one with the same numbers.
pub type Nonce = [u8; NONCE_BYTES];

/// A server's offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The newest version the server knows.
    pub version: u16,
    /// [`feature`] bits; unknown ones are to be ignored.
    pub features: u32,
    /// Order of the left ring.
    pub left_order: u16,
    /// Order of the right ring.
    pub right_order: u16,
    /// Entries of the list of extra grants.
    pub extra_grants: u16,
    /// The channel's nonce.
    pub nonce: Nonce,
}

/// Bytes of a [`Header`] at its offset.
pub const HEADER_BYTES: usize = 40;

impl Header {
    /// The offer of this version for rings of these orders.
    pub fn offer(orders: Orders, nonce: Nonce) -> Self {
        let extra = orders.grant_count() - orders.classic().grant_count();
        Self {
            version: VERSION,
            features: feature::ALL,
            left_order: orders.left(),
            right_order: orders.right(),
            // At most 512 on Xen; see `ORDER_MAX_LOCAL` for local memory.
            extra_grants: u16::try_from(extra).unwrap_or(u16::MAX),
            nonce,
        }
    }

    /// As bytes of the page.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_ne_bytes());
        bytes[10..12].copy_from_slice(&self.left_order.to_ne_bytes());
        bytes[12..14].copy_from_slice(&self.right_order.to_ne_bytes());
        bytes[14..16].copy_from_slice(&self.extra_grants.to_ne_bytes());
        bytes[16..20].copy_from_slice(&self.features.to_ne_bytes());
        bytes[24..].copy_from_slice(&self.nonce);
        bytes
    }

    /// From a private copy of the page's bytes.
    ///
    /// # Errors
    /// [`ExtensionError::Magic`].
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, ExtensionError> {
        let magic = part(bytes, 0);
        if magic != MAGIC {
            return Err(ExtensionError::Magic(magic));
        }
        Ok(Self {
            version: u16::from_ne_bytes(part(bytes, 8)),
            left_order: u16::from_ne_bytes(part(bytes, 10)),
            right_order: u16::from_ne_bytes(part(bytes, 12)),
            extra_grants: u16::from_ne_bytes(part(bytes, 14)),
            features: u32::from_ne_bytes(part(bytes, 16)),
            nonce: part(bytes, 24),
        })
    }

    /// Client: checks the offer of the channel that `nonce` belongs to and whose control page has
    /// the orders `classic`. Returns the acceptance to write, and the orders offered;
    /// [`Acceptance::orders`] of them are used. `most` is the largest order of this kind of memory.
    ///
    /// # Errors
    /// All but [`ExtensionError::Magic`] and [`ExtensionError::Features`].
    pub fn check(
        &self,
        classic: Orders,
        nonce: &Nonce,
        most: u16,
    ) -> Result<(Acceptance, Orders), ExtensionError> {
        if self.nonce != *nonce {
            return Err(ExtensionError::Nonce);
        }
        if self.version == 0 {
            return Err(ExtensionError::Version {
                found: 0,
                newest: VERSION,
            });
        }
        let orders = classic
            .extended(self.left_order, self.right_order, most)
            .map_err(|rule| ExtensionError::Orders {
                left: self.left_order,
                right: self.right_order,
                rule,
            })?;
        let needed = orders.grant_count() - classic.grant_count();
        if usize::from(self.extra_grants) != needed {
            return Err(ExtensionError::ExtraGrants {
                found: self.extra_grants,
                needed,
            });
        }
        let acceptance = Acceptance {
            version: self.version.min(VERSION),
            features: self.features & feature::ALL,
            nonce: *nonce,
        };
        Ok((acceptance, orders))
    }
}

/// A client's answer to an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acceptance {
    /// The version both use; 0 in the page while nothing is accepted.
    pub version: u16,
    /// [`feature`] bits, a part of those offered.
    pub features: u32,
    /// The channel's nonce again: proof that the writer found the page through the offer.
    pub nonce: Nonce,
}

/// Bytes of an [`Acceptance`] at its offset.
pub const ACCEPTANCE_BYTES: usize = 24;

impl Acceptance {
    /// As bytes of the page.
    pub fn encode(&self) -> [u8; ACCEPTANCE_BYTES] {
        let mut bytes = [0; ACCEPTANCE_BYTES];
        bytes[..2].copy_from_slice(&self.version.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.features.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.nonce);
        bytes
    }

    /// From a private copy of the page's bytes.
    pub fn decode(bytes: &[u8; ACCEPTANCE_BYTES]) -> Self {
        Self {
            version: u16::from_ne_bytes(part(bytes, 0)),
            features: u32::from_ne_bytes(part(bytes, 4)),
            nonce: part(bytes, 8),
        }
    }

    /// Server: checks the answer to `offer`. `None`: the client uses the classic format.
    ///
    /// # Errors
    /// [`ExtensionError::Version`], [`ExtensionError::Features`], [`ExtensionError::Nonce`].
    pub fn check(self, offer: &Header) -> Result<Option<Self>, ExtensionError> {
        if self.version == 0 {
            return Ok(None);
        }
        if self.version > offer.version {
            return Err(ExtensionError::Version {
                found: self.version,
                newest: offer.version,
            });
        }
        if self.nonce != offer.nonce {
            return Err(ExtensionError::Nonce);
        }
        if self.features & !offer.features != 0 {
            return Err(ExtensionError::Features {
                found: self.features,
                offered: offer.features,
            });
        }
        Ok(Some(self))
    }

    /// The orders in use, out of those offered.
    pub fn orders(&self, offered: Orders) -> Orders {
        if self.features & feature::LARGE_RINGS != 0 {
            offered
        } else {
            offered.classic()
        }
    }
}

/// `N` bytes from `at` on; the constants above keep it in range.
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

#[cfg(test)]
#[path = "extension_tests.rs"]
mod tests;
