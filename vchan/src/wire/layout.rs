//! The control page of libxenvchan and the sizes of the rings.
//!
//! Offsets follow `struct vchan_interface` of `xen/io/libxenvchan.h`. Numbers are in native byte
//! order, indexes run freely over all of `u32` and are reduced modulo the ring size on use.

use crate::error::PeerError;

/// Bytes of a page, and of the control page.
pub const PAGE: usize = 4096;

/// Byte offsets within the control page.
pub mod offset {
    /// `left.cons`: index up to which the server has read.
    pub const LEFT_CONS: usize = 0;
    /// `left.prod`: index up to which the client has written.
    pub const LEFT_PROD: usize = 4;
    /// `right.cons`: index up to which the client has read.
    pub const RIGHT_CONS: usize = 8;
    /// `right.prod`: index up to which the server has written.
    pub const RIGHT_PROD: usize = 12;
    /// `left_order`: log2 of the left ring's bytes.
    pub const LEFT_ORDER: usize = 16;
    /// `right_order`: log2 of the right ring's bytes.
    pub const RIGHT_ORDER: usize = 18;
    /// `cli_live`: see [`super::live`].
    pub const CLI_LIVE: usize = 20;
    /// `srv_live`: see [`super::live`].
    pub const SRV_LIVE: usize = 21;
    /// `cli_notify`: the events of which the client must notify the server.
    pub const CLI_NOTIFY: usize = 22;
    /// `srv_notify`: the events of which the server must notify the client.
    pub const SRV_NOTIFY: usize = 23;
    /// `grants[]`: references of the left ring's pages, then of the right ring's.
    pub const GRANTS: usize = 24;
}

/// Checks the offsets above against Xen's header, as bindgen read it for xen-sys.
const _: () = {
    use std::mem::offset_of;
    use xen_sys::generated::uapi::{ring_shared, vchan_interface};
    assert!(offset_of!(vchan_interface, left) + offset_of!(ring_shared, cons) == offset::LEFT_CONS);
    assert!(offset_of!(vchan_interface, left) + offset_of!(ring_shared, prod) == offset::LEFT_PROD);
    assert!(
        offset_of!(vchan_interface, right) + offset_of!(ring_shared, cons) == offset::RIGHT_CONS
    );
    assert!(
        offset_of!(vchan_interface, right) + offset_of!(ring_shared, prod) == offset::RIGHT_PROD
    );
    assert!(offset_of!(vchan_interface, left_order) == offset::LEFT_ORDER);
    assert!(offset_of!(vchan_interface, right_order) == offset::RIGHT_ORDER);
    assert!(offset_of!(vchan_interface, cli_live) == offset::CLI_LIVE);
    assert!(offset_of!(vchan_interface, srv_live) == offset::SRV_LIVE);
    assert!(offset_of!(vchan_interface, cli_notify) == offset::CLI_NOTIFY);
    assert!(offset_of!(vchan_interface, srv_notify) == offset::SRV_NOTIFY);
    assert!(offset_of!(vchan_interface, grants) == offset::GRANTS);
    assert!(bit::WRITE as u32 == xen_sys::generated::uapi::VCHAN_NOTIFY_WRITE);
    assert!(bit::READ as u32 == xen_sys::generated::uapi::VCHAN_NOTIFY_READ);
};

/// Values of the live bytes.
pub mod live {
    /// The side has closed, or its memory was unmapped.
    pub const CLOSED: u8 = 0;
    /// The side is connected.
    pub const CONNECTED: u8 = 1;
    /// Only in `cli_live`: no client has connected yet.
    pub const AWAITED: u8 = 2;
}

/// Bits of the notify bytes.
pub mod bit {
    /// `VCHAN_NOTIFY_WRITE`: ring after writing.
    pub const WRITE: u8 = 1;
    /// `VCHAN_NOTIFY_READ`: ring after reading.
    pub const READ: u8 = 2;
}

/// One of the two ends of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Provides the memory; reads the left ring, writes the right one.
    Server,
    /// Maps the memory; writes the left ring, reads the right one.
    Client,
}

/// The sizes of both rings in bytes; when asked for, the least sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingSizes {
    /// The right ring.
    pub server_to_client: usize,
    /// The left ring.
    pub client_to_server: usize,
}

impl RingSizes {
    /// The default of `vchan` and `vgpu` on Xen: 256 KiB each way, 130 of the 1,024 pages that a
    /// kernel grants by default. Sides that stay awake gain little from larger rings, and a guest
    /// may want several channels, with regions beside them. Without Xen see
    /// [`local::default_rings`](crate::local::default_rings).
    pub const DEFAULT: Self = Self {
        server_to_client: 256 << 10,
        client_to_server: 256 << 10,
    };
}

impl Default for RingSizes {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl From<usize> for RingSizes {
    fn from(bytes: usize) -> Self {
        Self {
            server_to_client: bytes,
            client_to_server: bytes,
        }
    }
}

/// The smallest order: a ring of 1 KiB inside the control page.
pub const ORDER_SMALL: u16 = 10;
/// A ring of 2 KiB inside the control page.
pub const ORDER_LARGE: u16 = 11;
/// The smallest ring with pages of its own.
pub const ORDER_PAGE: u16 = 12;
/// log2 of the largest ring in libxenvchan's format, 1 MiB.
pub const ORDER_MAX: u16 = 20;
/// The largest ring of granted pages with the [extension](crate::extension), 2 MiB: their references
/// must fit its page.
pub const ORDER_MAX_EXTENDED: u16 = 21;
/// The largest ring with the extension in memory that is shared as a whole, 8 MiB: more than twice
/// the size of a processor's second-level cache.
pub const ORDER_MAX_LOCAL: u16 = 23;

/// A size that no ring can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a ring of {bytes} bytes is not possible: the most is {most} bytes")]
pub struct RingSizeError {
    /// Bytes asked for.
    pub bytes: usize,
    /// Most bytes possible.
    pub most: usize,
}

/// The wire format that a side is ready to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// The [extension](crate::extension) where the peer knows it, else libxenvchan's.
    #[default]
    Extended,
    /// libxenvchan's only.
    Classic,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Extended => "extended",
            Self::Classic => "classic",
        })
    }
}

/// A valid pair of ring orders (log2 of bytes); the only way to get one checks the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orders {
    left: u16,
    right: u16,
}

impl Orders {
    /// The pair a server uses for rings that hold at least `sizes`, by libxenvchan's rule: one
    /// small ring of each in-page size if both fit, else the smaller one of 2 KiB in the page.
    ///
    /// # Errors
    /// A size above 1 MiB.
    pub fn choose(sizes: RingSizes) -> Result<Self, RingSizeError> {
        Self::choose_up_to(sizes, ORDER_MAX)
    }

    /// [`choose`](Self::choose) for a server that is ready to use `format`, where the extension
    /// allows orders up to `most`: [`ORDER_MAX_EXTENDED`] or [`ORDER_MAX_LOCAL`].
    ///
    /// # Errors
    /// A size above what the format allows.
    pub fn choose_for(format: Format, most: u16, sizes: RingSizes) -> Result<Self, RingSizeError> {
        match format {
            Format::Extended => Self::choose_up_to(sizes, most),
            Format::Classic => Self::choose(sizes),
        }
    }

    fn choose_up_to(sizes: RingSizes, most: u16) -> Result<Self, RingSizeError> {
        let page_order = |bytes| page_order(bytes, most.min(ORDER_MAX_LOCAL));
        const SMALL: usize = 1 << ORDER_SMALL;
        const LARGE: usize = 1 << ORDER_LARGE;
        let (left, right) = (sizes.client_to_server, sizes.server_to_client);
        let (left, right) = if left <= SMALL && right <= LARGE {
            (ORDER_SMALL, ORDER_LARGE)
        } else if left <= LARGE && right <= SMALL {
            (ORDER_LARGE, ORDER_SMALL)
        } else if left <= LARGE {
            (ORDER_LARGE, page_order(right)?)
        } else if right <= LARGE {
            (page_order(left)?, ORDER_LARGE)
        } else {
            (page_order(left)?, page_order(right)?)
        };
        Ok(Self { left, right })
    }

    /// Checks a pair found in a peer's control page.
    ///
    /// # Errors
    /// [`PeerError::Orders`] with the rule that is broken.
    pub fn check(left: u16, right: u16) -> Result<Self, PeerError> {
        let refuse = |reason| {
            Err(PeerError::Orders {
                left,
                right,
                reason,
            })
        };
        let valid = ORDER_SMALL..=ORDER_MAX;
        if !valid.contains(&left) || !valid.contains(&right) {
            return refuse("each must be 10 to 20");
        }
        if left == right && left < ORDER_PAGE {
            return refuse("two rings in the control page must differ in size");
        }
        let orders = Self { left, right };
        let grants_end = offset::GRANTS + 4 * orders.grant_count();
        let first_ring = [left, right]
            .into_iter()
            .filter(|&order| order < ORDER_PAGE);
        if first_ring
            .map(in_page_offset)
            .any(|start| grants_end > start)
        {
            return refuse("the list of grants would overlap the ring in the control page");
        }
        Ok(orders)
    }

    /// The orders that a client without the extension finds: the first 1 MiB of a larger ring.
    #[must_use]
    pub fn classic(self) -> Self {
        Self {
            left: self.left.min(ORDER_MAX),
            right: self.right.min(ORDER_MAX),
        }
    }

    /// Checks a pair found in a peer's extension page against this one, which is from its control
    /// page: only a ring of the largest classic order may be larger, up to the order `most`.
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn extended(self, left: u16, right: u16, most: u16) -> Result<Self, &'static str> {
        let most = most.min(ORDER_MAX_LOCAL);
        if left > most || right > most {
            return Err("each may be 21 at most, or 23 in memory that is not granted");
        }
        let extended = Self { left, right };
        if extended.classic() != self {
            return Err("one below 21 must be that of the control page, and others go with 20");
        }
        Ok(extended)
    }

    /// Order of the left ring.
    pub fn left(self) -> u16 {
        self.left
    }

    /// Order of the right ring.
    pub fn right(self) -> u16 {
        self.right
    }

    /// Bytes of the left ring.
    pub fn left_bytes(self) -> usize {
        1 << self.left
    }

    /// Bytes of the right ring.
    pub fn right_bytes(self) -> usize {
        1 << self.right
    }

    /// Both rings' real sizes.
    pub fn sizes(self) -> RingSizes {
        RingSizes {
            server_to_client: self.right_bytes(),
            client_to_server: self.left_bytes(),
        }
    }

    /// The place of the left ring.
    pub fn left_place(self) -> RingPlace {
        place(self.left)
    }

    /// The place of the right ring.
    pub fn right_place(self) -> RingPlace {
        place(self.right)
    }

    /// Pages beside the control page, and entries of `grants[]`.
    pub fn grant_count(self) -> usize {
        self.left_place().pages() + self.right_place().pages()
    }
}

/// The place of a ring's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingPlace {
    /// In the control page, from this offset on.
    ControlPage {
        /// Offset in bytes.
        offset: usize,
    },
    /// In granted pages of its own.
    OwnPages {
        /// Their number.
        pages: usize,
    },
}

impl RingPlace {
    /// Pages beside the control page.
    pub fn pages(self) -> usize {
        match self {
            Self::ControlPage { .. } => 0,
            Self::OwnPages { pages } => pages,
        }
    }
}

fn place(order: u16) -> RingPlace {
    if order < ORDER_PAGE {
        RingPlace::ControlPage {
            offset: in_page_offset(order),
        }
    } else {
        RingPlace::OwnPages {
            pages: (1 << order) / PAGE,
        }
    }
}

/// The in-page rings lie at the offset equal to their size: 1 KiB at 1024, 2 KiB at 2048.
fn in_page_offset(order: u16) -> usize {
    1 << order
}

fn page_order(bytes: usize, most: u16) -> Result<u16, RingSizeError> {
    (ORDER_PAGE..=most)
        .find(|&order| bytes <= 1 << order)
        .ok_or(RingSizeError {
            bytes,
            most: 1 << most,
        })
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
