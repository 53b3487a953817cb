#![forbid(unsafe_code)]
//! Published channels whose pages no client may accept.

use std::sync::atomic::Ordering;
use vchan::DomId;
use vchan::error::Result;
use vchan::extension::offset as extended;
use vchan::layout::{PAGE, RingSizes, live, offset};
use vchan::shm::Region;
use vchan::testing::{self, RawControlPage, RawExtensionPage, RawRegion};
use vchan::xen;

/// A defect of an offer's pages: its name, and the function that causes it.
type Lie = (&'static str, fn(&Region, Option<&Region>));

/// Rings with pages of their own, so that there is a list of grants.
const RINGS: usize = 8 << 10;

/// Every lie. The grant list has four entries: two pages per ring. (A page of the server's own that
/// this domain may map for another purpose looks the same as a ring, and harms its owner alone.)
const LIES: [Lie; 19] = [
    ("all zero", |page, _| fill(page, |_| 0)),
    ("noise", |page, _| {
        fill(page, |at| (at ^ 0x5EED).wrapping_mul(0x9E37_79B9));
    }),
    ("orders 0, 13", |page, _| orders(page, 0, 13)),
    ("orders 9, 13", |page, _| orders(page, 9, 13)),
    ("orders 13, 21", |page, _| orders(page, 13, 21)),
    ("orders 65535, 13", |page, _| orders(page, 0xFFFF, 13)),
    ("orders 10, 10", |page, _| orders(page, 10, 10)),
    ("orders 10, 20", |page, _| orders(page, 10, 20)),
    ("srv_live 0", |page, _| {
        byte(page, offset::SRV_LIVE, live::CLOSED)
    }),
    ("srv_live 7", |page, _| byte(page, offset::SRV_LIVE, 7)),
    ("left.prod beyond the ring", |page, extension| {
        word(page, offset::LEFT_PROD, 8193);
        if let Some(extension) = extension {
            word(extension, extended::LEFT_PROD, 8193);
        }
    }),
    ("grants all 0", |page, _| {
        (0..4).for_each(|entry| word(page, offset::GRANTS + 4 * entry, 0));
    }),
    ("a grant twice", |page, _| {
        let first = page.u32_at(offset::GRANTS).load(Ordering::SeqCst);
        word(page, offset::GRANTS + 4, first);
    }),
    ("a grant of nobody", |page, _| {
        word(page, offset::GRANTS + 4, 0x00FF_FFFF)
    }),
    ("a grant beyond every table", |page, _| {
        word(page, offset::GRANTS + 8, u32::MAX)
    }),
    ("extension of version 0", |_, extension| {
        header(extension, 8, 0)
    }),
    ("extension with orders 40", |_, extension| {
        header(extension, 10, 40)
    }),
    ("extension with too many grants", |_, extension| {
        header(extension, 14, 512)
    }),
    ("extension with another nonce", |_, extension| {
        header(extension, 24, 0xABCD)
    }),
];

/// A server's published pages, corrupted.
#[derive(Debug)]
pub struct Offer(xen::Server);

impl Offer {
    /// The defect of each.
    pub fn lies() -> impl Iterator<Item = &'static str> {
        LIES.iter().map(|(name, _)| *name)
    }

    /// Publishes a channel at `path` and corrupts its pages with the lie of this number.
    ///
    /// # Errors
    /// As [`xen::Server::publish`].
    pub fn publish(peer: DomId, path: &str, lie: usize) -> Result<Self> {
        let server = xen::Server::publish(peer, path, RingSizes::from(RINGS))?;
        let (control, extension) = testing::published_pages(&server);
        (LIES[lie].1)(control.region(), extension.map(|page| page.region()));
        Ok(Self(server))
    }

    /// Whether a client has declared itself connected.
    pub fn is_accepted(&self) -> bool {
        let (control, _) = testing::published_pages(&self.0);
        control
            .region()
            .u8_at(offset::CLI_LIVE)
            .load(Ordering::SeqCst)
            == live::CONNECTED
    }
}

fn word(page: &Region, at: usize, value: u32) {
    page.u32_at(at).store(value, Ordering::SeqCst);
}

fn byte(page: &Region, at: usize, value: u8) {
    page.u8_at(at).store(value, Ordering::SeqCst);
}

fn half(page: &Region, at: usize, value: u16) {
    for (i, part) in value.to_ne_bytes().into_iter().enumerate() {
        byte(page, at + i, part);
    }
}

fn orders(page: &Region, left: u16, right: u16) {
    half(page, offset::LEFT_ORDER, left);
    half(page, offset::RIGHT_ORDER, right);
}

/// If there was no page left for an extension there is none to corrupt.
fn header(extension: Option<&Region>, at: usize, value: u16) {
    if let Some(page) = extension {
        half(page, extended::HEADER + at, value);
    }
}

fn fill(page: &Region, value: impl Fn(u32) -> u32) {
    for at in (0..PAGE).step_by(4) {
        word(page, at, value(u32::try_from(at).unwrap_or(0)));
    }
}
