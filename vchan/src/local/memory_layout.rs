#![forbid(unsafe_code)]
#![cfg_attr(
    not(feature = "testing"),
    allow(unreachable_pub, reason = "only tests of other crates use it")
)]
//! The layout of a channel's memory.

use crate::error::{Error, Result};
use crate::wire::control_page::ControlPage;
use crate::wire::extension_page::ExtensionPage;
use crate::wire::layout::{Format, ORDER_MAX_LOCAL, Orders, PAGE, RingPlace, RingSizes};
use crate::wire::shm::Region;

/// Memory for rings of given orders, with or without an extension page.
///
/// First the control page, then the extension page if there is one, the left ring's pages, the
/// right ring's.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Orders of the rings.
    pub orders: Orders,
    /// Whether there is an extension page.
    pub extension: bool,
}

/// The most memory that a channel can need, in bytes.
pub(super) const MOST_BYTES: usize = PAGE * 2 + 2 * (1 << ORDER_MAX_LOCAL);

/// The memory, divided.
#[derive(Debug)]
pub struct Pieces {
    /// The first page.
    pub control: ControlPage,
    /// The second page, if it is an extension page.
    pub extension: Option<ExtensionPage>,
    /// Client to server.
    pub left: Region,
    /// Server to client.
    pub right: Region,
}

impl Shape {
    /// The shape for rings of at least the sizes `rings`.
    pub fn choose(format: Format, rings: RingSizes) -> Result<Self> {
        let orders = Orders::choose_for(format, ORDER_MAX_LOCAL, rings).map_err(|error| {
            Error::setup(
                error.to_string(),
                format!("ask for rings of at most {} bytes", error.most),
            )
        })?;
        Ok(Self {
            orders,
            extension: format == Format::Extended,
        })
    }

    /// Bytes of memory.
    pub fn bytes(self) -> usize {
        PAGE * (1 + usize::from(self.extension) + self.orders.grant_count())
    }

    /// The pieces of `region`, which is [`bytes`](Self::bytes) long.
    pub fn divide(self, region: &Region) -> Pieces {
        let control = ControlPage::new(region.part(0, PAGE));
        let mut next = PAGE;
        let mut pages = |count| {
            let part = region.part(next, PAGE * count);
            next += part.len();
            part
        };
        let extension = self.extension.then(|| ExtensionPage::new(pages(1)));
        let mut ring = |place: RingPlace| {
            control
                .ring_in_page(place)
                .unwrap_or_else(|| pages(place.pages()))
        };
        let left = ring(self.orders.left_place());
        let right = ring(self.orders.right_place());
        Pieces {
            control,
            extension,
            left,
            right,
        }
    }
}

impl Pieces {
    /// The rings as they are used with `orders`, which are those of the shape or its classic ones.
    pub fn rings(&self, orders: Orders) -> (Region, Region) {
        (
            self.left.part(0, orders.left_bytes()),
            self.right.part(0, orders.right_bytes()),
        )
    }
}
