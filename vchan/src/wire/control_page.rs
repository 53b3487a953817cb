#![forbid(unsafe_code)]
//! The control page: its initial contents, and the writer of each field.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};

use crate::error::PeerError;
use crate::wire::layout::{Orders, PAGE, RingPlace, Role, bit, live, offset};
use crate::wire::shm::{Region, SharedU8, SharedU32};

/// The control page, seen as atomics.
#[derive(Debug)]
pub struct ControlPage {
    page: Region,
}

impl ControlPage {
    /// Takes a writable, page-aligned region of one page.
    ///
    /// # Panics
    /// If it is not; backends map it themselves, so the peer cannot cause this.
    pub(crate) fn new(page: Region) -> Self {
        assert_eq!(page.len(), PAGE, "the control page is one page");
        assert!(page.is_writable(), "the control page must be writable");
        assert_eq!(
            page.start().as_ptr() as usize % PAGE,
            0,
            "the control page is page-aligned"
        );
        Self { page }
    }

    /// The page's memory, for hostile peers.
    #[cfg(feature = "testing")]
    pub(crate) fn region(&self) -> &Region {
        &self.page
    }

    /// Server: clears the page and fills in a ring pair without a client. Both rings start at
    /// `first_index`, 0 but in tests of the wrap-around.
    pub(crate) fn initialise(&self, orders: Orders, first_index: u32) {
        for at in (0..PAGE).step_by(4) {
            self.u32_at(at).store(0, Ordering::Relaxed);
        }
        for at in [
            offset::LEFT_CONS,
            offset::LEFT_PROD,
            offset::RIGHT_CONS,
            offset::RIGHT_PROD,
        ] {
            self.u32_at(at).store(first_index, Ordering::Relaxed);
        }
        self.u16_at(offset::LEFT_ORDER)
            .store(orders.left(), Ordering::Relaxed);
        self.u16_at(offset::RIGHT_ORDER)
            .store(orders.right(), Ordering::Relaxed);
        self.u8_at(offset::SRV_LIVE)
            .store(live::CONNECTED, Ordering::Relaxed);
        // The client's first write notifies a server that has not seen it connect.
        self.u8_at(offset::CLI_NOTIFY)
            .store(bit::WRITE, Ordering::Relaxed);
        // Last: a client (and our own wait for it) reads this byte first.
        self.u8_at(offset::CLI_LIVE)
            .store(live::AWAITED, Ordering::SeqCst);
    }

    /// Server: writes entry `index` of `grants[]`.
    ///
    /// # Panics
    /// If the entry would lie outside the page.
    pub fn set_grant(&self, index: usize, grant_ref: u32) {
        self.u32_at(offset::GRANTS + 4 * index)
            .store(grant_ref, Ordering::Relaxed);
    }

    /// Client: reads entry `index` of `grants[]`, once.
    ///
    /// # Panics
    /// If the entry lies outside the page.
    pub fn grant(&self, index: usize) -> u32 {
        self.u32_at(offset::GRANTS + 4 * index)
            .load(Ordering::Relaxed)
    }

    /// Client: reads the ring orders, once, and checks them.
    ///
    /// # Errors
    /// [`PeerError::Orders`].
    pub fn orders(&self) -> Result<Orders, PeerError> {
        Orders::check(
            self.u16_at(offset::LEFT_ORDER).load(Ordering::Relaxed),
            self.u16_at(offset::RIGHT_ORDER).load(Ordering::Relaxed),
        )
    }

    /// Client: declares itself connected and asks to be told of the server's first write. The
    /// caller must ring the server's doorbell next.
    pub fn connect_client(&self) {
        self.u8_at(offset::SRV_NOTIFY)
            .store(bit::WRITE, Ordering::SeqCst);
        self.u8_at(offset::CLI_LIVE)
            .store(live::CONNECTED, Ordering::SeqCst);
    }

    /// Server: whether a client has connected (even if it has left since).
    pub fn client_arrived(&self) -> bool {
        self.u8_at(offset::CLI_LIVE).load(Ordering::SeqCst) != live::AWAITED
    }

    /// Client: whether the server is still open.
    pub fn server_is_live(&self) -> bool {
        self.u8_at(offset::SRV_LIVE).load(Ordering::SeqCst) == live::CONNECTED
    }

    /// The part of the page that holds a ring, if the ring lies in the page.
    pub(crate) fn ring_in_page(&self, place: RingPlace) -> Option<Region> {
        match place {
            // A ring at offset N is N bytes long.
            RingPlace::ControlPage { offset } => Some(self.page.part(offset, offset)),
            RingPlace::OwnPages { .. } => None,
        }
    }

    /// The offset of a role's own live byte, for the kernel's unmap notification.
    pub fn live_offset(role: Role) -> usize {
        match role {
            Role::Server => offset::SRV_LIVE,
            Role::Client => offset::CLI_LIVE,
        }
    }

    /// The word at a byte offset.
    pub(crate) fn word(&self, at: usize) -> SharedU32 {
        self.page.word(at)
    }

    /// The byte at a byte offset.
    pub(crate) fn byte(&self, at: usize) -> SharedU8 {
        self.page.byte(at)
    }

    #[inline]
    pub(crate) fn u32_at(&self, at: usize) -> &AtomicU32 {
        self.page.u32_at(at)
    }

    #[inline]
    pub(crate) fn u16_at(&self, at: usize) -> &AtomicU16 {
        self.page.u16_at(at)
    }

    #[inline]
    pub(crate) fn u8_at(&self, at: usize) -> &AtomicU8 {
        self.page.u8_at(at)
    }
}
