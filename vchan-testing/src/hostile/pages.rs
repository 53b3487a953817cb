#![allow(unsafe_code)]
//! The memory that both sides of a channel share, in the hands of a peer that keeps no rule.
//!
//! Made by one honest rendezvous, which brings pages, doorbell and death notice together. Any
//! number of channels can be set up over the same pages, one after the other, which is what makes a
//! hundred thousand of them cheap.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vchan::Channel;
use vchan::backend::{Backend, Parts};
use vchan::control_page::ControlPage;
use vchan::error::{PeerError, Result};
use vchan::extension::{self, Acceptance, Header};
use vchan::extension_page::ExtensionPage;
use vchan::layout::{ORDER_MAX_LOCAL, Orders, PAGE, RingPlace, Role, offset};
use vchan::reactor::Token;
use vchan::shm::Region;
use vchan::testing::{self, RawControlPage, RawExtensionPage, RawRegion};

/// Pages, doorbell and death notice of one channel.
#[derive(Debug)]
pub(super) struct SharedPages {
    parts: Parts,
    backend: Arc<dyn Backend>,
    /// The two sides' agreement, where they use the extension.
    agreed: Option<(Header, Acceptance)>,
}

/// Offsets of the words of one ring, counted from the control page on; the extension page counts as
/// following it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words {
    pub(super) prod: usize,
    pub(super) cons: usize,
}

/// The extension's four wait words.
const WAITS: [usize; 4] = [
    PAGE + extension::offset::LEFT_READER_WAIT,
    PAGE + extension::offset::LEFT_WRITER_WAIT,
    PAGE + extension::offset::RIGHT_READER_WAIT,
    PAGE + extension::offset::RIGHT_WRITER_WAIT,
];

/// A snapshot of everything shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Picture {
    /// The control page and, where there is one, the extension page.
    pub(super) pages: Vec<u8>,
    /// The ring this side reads.
    pub(super) incoming: Vec<u8>,
    /// The ring this side writes.
    pub(super) outgoing: Vec<u8>,
}

impl Picture {
    pub(super) fn word(&self, at: usize) -> u32 {
        u32::from_ne_bytes(std::array::from_fn(|i| self.pages[at + i]))
    }
}

impl SharedPages {
    pub(super) fn new(parts: Parts) -> Result<Self> {
        let agreed = match &parts.extension {
            Some(page) => {
                let header = page.header()?;
                let (acceptance, _) = header
                    .check(parts.orders.classic(), &header.nonce, ORDER_MAX_LOCAL)
                    .map_err(PeerError::from)?;
                Some((header, acceptance))
            }
            None => None,
        };
        let Parts {
            role,
            orders,
            first_index,
            control,
            extension,
            left,
            right,
            backend,
        } = parts;
        let backend: Arc<dyn Backend> = backend.into();
        let parts = Parts {
            role,
            orders,
            first_index,
            control,
            extension,
            left,
            right,
            backend: Box::new(Lent(Arc::clone(&backend))),
        };
        Ok(Self {
            parts,
            backend,
            agreed,
        })
    }

    pub(super) fn role(&self) -> Role {
        self.parts.role
    }

    fn orders(&self) -> Orders {
        self.parts.orders
    }

    /// The control page and, where there is one, the extension page.
    pub(super) fn pages(&self) -> impl Iterator<Item = &Region> {
        let extension = self.parts.extension.as_ref();
        [self.parts.control.region()]
            .into_iter()
            .chain(extension.map(|page| page.region()))
    }

    pub(super) fn is_extended(&self) -> bool {
        self.parts.extension.is_some()
    }

    /// The ring that this side reads.
    pub(super) fn incoming(&self) -> &Region {
        match self.role() {
            Role::Server => &self.parts.left,
            Role::Client => &self.parts.right,
        }
    }

    /// The ring that this side writes.
    pub(super) fn outgoing(&self) -> &Region {
        match self.role() {
            Role::Server => &self.parts.right,
            Role::Client => &self.parts.left,
        }
    }

    pub(super) fn regions(&self) -> impl Iterator<Item = &Region> {
        self.pages().chain([&self.parts.left, &self.parts.right])
    }

    /// The words of the ring that this side reads, and of the one that it writes.
    pub(super) fn words(&self) -> (Words, Words) {
        use extension::offset as extended;
        let (left, right) = match self.is_extended() {
            true => (
                (extended::LEFT_PROD, extended::LEFT_CONS),
                (extended::RIGHT_PROD, extended::RIGHT_CONS),
            ),
            false => (
                (offset::LEFT_PROD, offset::LEFT_CONS),
                (offset::RIGHT_PROD, offset::RIGHT_CONS),
            ),
        };
        let start = if self.is_extended() { PAGE } else { 0 };
        let words = |(prod, cons)| Words {
            prod: start + prod,
            cons: start + cons,
        };
        match self.role() {
            Role::Server => (words(left), words(right)),
            Role::Client => (words(right), words(left)),
        }
    }

    /// Offsets at which either side asks the other to be woken.
    pub(super) fn requests(&self) -> &'static [usize] {
        match self.is_extended() {
            true => &WAITS,
            false => &[offset::CLI_NOTIFY, offset::SRV_NOTIFY],
        }
    }

    /// Offsets of this side's own live byte, and of the other's.
    pub(super) fn lives(&self) -> (usize, usize) {
        match self.role() {
            Role::Server => (offset::SRV_LIVE, offset::CLI_LIVE),
            Role::Client => (offset::CLI_LIVE, offset::SRV_LIVE),
        }
    }

    /// Offset at which this side marks its stream as complete, if the format has one.
    pub(super) fn ended(&self) -> Option<usize> {
        self.is_extended().then_some(match self.role() {
            Role::Server => PAGE + extension::offset::RIGHT_ENDED,
            Role::Client => PAGE + extension::offset::LEFT_ENDED,
        })
    }

    /// Offset in the control page where the first ring begins, or the page ends.
    pub(super) fn rings_from(&self) -> usize {
        [self.orders().left_place(), self.orders().right_place()]
            .into_iter()
            .filter_map(|place| match place {
                RingPlace::ControlPage { offset } => Some(offset),
                RingPlace::OwnPages { .. } => None,
            })
            .min()
            .unwrap_or(PAGE)
    }

    /// Rings the other side's doorbell.
    pub(super) fn ring(&self) -> io::Result<()> {
        self.backend.notify()
    }

    /// Fills the pages in as two honest sides that have just met leave them.
    pub(super) fn reset(&self, first_index: u32) {
        let control = &self.parts.control;
        control.initialise(self.orders().classic(), first_index);
        if let (Some(page), Some((header, acceptance))) = (&self.parts.extension, &self.agreed) {
            page.initialise(header, first_index);
            page.accept(acceptance);
        }
        control.connect_client();
    }

    pub(super) fn picture(&self) -> Picture {
        let copy = |region: &Region| {
            let mut bytes = vec![0; region.len()];
            // SAFETY: as in `again`; the other side writes in another mapping, as a peer does.
            unsafe { region.copy_out(0, &mut bytes) };
            bytes
        };
        let mut pages = copy(self.parts.control.region());
        if let Some(page) = &self.parts.extension {
            pages.extend_from_slice(&copy(page.region()));
        }
        Picture {
            pages,
            incoming: copy(self.incoming()),
            outgoing: copy(self.outgoing()),
        }
    }

    /// Builds a new channel over the same pages, as a rendezvous would now.
    pub(super) fn channel(&self, first_index: u32) -> Result<Channel> {
        let extension = self.parts.extension.as_ref();
        let extension = extension.map(|page| again(page.region()));
        testing::channel(Parts {
            role: self.role(),
            orders: self.orders(),
            first_index: (self.role() == Role::Server).then_some(first_index),
            control: ControlPage::over(again(self.parts.control.region())),
            extension: extension.map(ExtensionPage::over),
            left: again(&self.parts.left),
            right: again(&self.parts.right),
            backend: Box::new(Lent(Arc::clone(&self.backend))),
        })
    }

    /// Writes `bytes` into the ring that this side writes, from `offset` on.
    pub(super) fn fill(&self, offset: usize, bytes: &[u8]) {
        // SAFETY: as in `again`.
        unsafe { self.outgoing().copy_in(offset, bytes) };
    }

    fn page_of(&self, at: usize) -> (&Region, usize) {
        match &self.parts.extension {
            Some(page) if at >= PAGE => (page.region(), at - PAGE),
            _ => (self.parts.control.region(), at),
        }
    }

    pub(super) fn set_u32(&self, at: usize, value: u32) {
        let (page, at) = self.page_of(at);
        page.u32_at(at).store(value, Ordering::SeqCst);
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        let (page, at) = self.page_of(at);
        page.u32_at(at).load(Ordering::SeqCst)
    }

    pub(super) fn set_u8(&self, at: usize, value: u8) {
        let (page, at) = self.page_of(at);
        page.u8_at(at).store(value, Ordering::SeqCst);
    }
}

/// Another handle to the same memory.
fn again(region: &Region) -> Region {
    // SAFETY: each end of the pages belongs to one thread at a time, which does not use its channel
    // while it copies by itself.
    unsafe { region.part(0, region.len()) }
}

/// A doorbell of lasting pages, lent to a short-lived channel.
#[derive(Debug)]
struct Lent(Arc<dyn Backend>);

impl Backend for Lent {
    fn notify(&self) -> io::Result<()> {
        self.0.notify()
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.0.poll_fd()
    }

    fn acknowledge(&self) -> io::Result<bool> {
        self.0.acknowledge()
    }

    fn peer_alive(&self) -> bool {
        self.0.peer_alive()
    }

    fn peer_lost(&self) -> bool {
        self.0.peer_lost()
    }

    fn spin_helps(&self) -> bool {
        self.0.spin_helps()
    }

    fn token(&self) -> Option<Token> {
        self.0.token()
    }

    fn moved(&self) {
        self.0.moved();
    }

    fn describe(&self) -> String {
        self.0.describe()
    }
}
