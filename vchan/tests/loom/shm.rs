//! Shared memory as loom sees it, under the names of `src/wire/shm.rs`: each index and byte of the
//! control page and of a region's header is an atomic of its own, each other byte a cell whose data
//! races loom reports.

use std::ptr::NonNull;
use std::sync::{Mutex, OnceLock};

use loom::cell::UnsafeCell;

use crate::bell::Bell;
use crate::region::TICKET_BYTES;
use crate::region::header::{OWNER_STATE, PEER_STATE};
use crate::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, Without, is_left_out};
use crate::wire::layout::{PAGE, live, offset};

/// Ring bytes that a model may touch: this many at the start, this many at the end.
const CELLS: usize = 4;

/// A ring, or the data of a region, of which only the first and last few bytes exist; or the header
/// page of a region.
#[derive(Debug, Clone)]
pub(crate) struct Region {
    memory: Arc<Memory>,
    len: usize,
    /// For a header that the peer has mapped, where a kernel reports the end of the mapping.
    _mapping: Option<Arc<Mapping>>,
    /// The first ticket seen by this mapping, for the twin that does not look again.
    seen: Arc<OnceLock<usize>>,
}

#[derive(Debug)]
enum Memory {
    Bytes(Vec<UnsafeCell<u8>>),
    Header {
        /// All tickets that were ever there; copied while they change, as the code expects.
        tickets: Mutex<Vec<[u8; TICKET_BYTES]>>,
        /// Index of the current one.
        ticket: AtomicUsize,
        owner: AtomicU8,
        peer: AtomicU8,
    },
}

// SAFETY: the cells are reached through loom only, which runs one thread of the model at a time.
unsafe impl Send for Memory {}
// SAFETY: as for `Send`.
unsafe impl Sync for Memory {}

impl Region {
    pub(crate) fn new(len: usize) -> Self {
        Self::of(
            Memory::Bytes((0..2 * CELLS).map(|_| UnsafeCell::new(0)).collect()),
            len,
        )
    }

    /// The header page of a region; zeros, as its other bytes.
    pub(crate) fn header() -> Self {
        Self::of(
            Memory::Header {
                tickets: Mutex::new(vec![[0; TICKET_BYTES]]),
                ticket: AtomicUsize::new(0),
                owner: AtomicU8::notify(0),
                peer: AtomicU8::notify(0),
            },
            PAGE,
        )
    }

    fn of(memory: Memory, len: usize) -> Self {
        Self {
            memory: Arc::new(memory),
            len,
            _mapping: None,
            seen: Arc::default(),
        }
    }

    /// The region as the peer maps it. Where a kernel reports the end of that mapping, it does so
    /// in the header and rings `kernel_rings`.
    pub(crate) fn mapped(&self, kernel_rings: Option<Arc<Bell>>) -> Self {
        let memory = &self.memory;
        let mapping = kernel_rings.map(|bell| Mapping {
            memory: Arc::clone(memory),
            bell,
        });
        Self {
            memory: Arc::clone(memory),
            len: self.len,
            _mapping: mapping.map(Arc::new),
            seen: Arc::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn is_writable(&self) -> bool {
        true
    }

    pub(crate) fn share(&self) -> Self {
        self.clone()
    }

    pub(crate) fn part(&self, offset: usize, len: usize) -> Self {
        assert_eq!((offset, len), (0, self.len), "a part of a model's memory");
        self.clone()
    }

    pub(crate) fn pointer(&self, _offset: usize, _len: usize) -> NonNull<u8> {
        unreachable!("a model has no addresses")
    }

    fn cell(&self, at: usize) -> &UnsafeCell<u8> {
        let Memory::Bytes(cells) = &*self.memory else {
            panic!("there is no byte at {at}");
        };
        match at {
            at if at < CELLS => &cells[at],
            at => &cells[at + 2 * CELLS - self.len],
        }
    }

    pub(crate) fn copy_in(&self, offset: usize, from: &[u8]) {
        if let Memory::Header {
            tickets, ticket, ..
        } = &*self.memory
        {
            let mut tickets = tickets.lock().unwrap();
            tickets.push(from.try_into().unwrap());
            let latest = tickets.len() - 1;
            drop(tickets);
            return ticket.store(latest, Ordering::Relaxed);
        }
        for (i, &byte) in from.iter().enumerate() {
            // SAFETY: loom lets the closure run only if no other access is in progress, and fails
            // the model where one is not ordered before or after this one.
            self.cell(offset + i)
                .with_mut(|cell| unsafe { *cell = byte });
        }
    }

    pub(crate) fn copy_in_non_temporal(&self, offset: usize, from: &[u8]) {
        self.copy_in(offset, from);
    }

    /// A hint to the processor: no access.
    pub(crate) fn fetch(&self, _offset: usize) {}

    pub(crate) fn copy_out_non_temporal(&self, offset: usize, to: &mut [u8]) {
        self.copy_out(offset, to);
    }

    pub(crate) fn copy_out(&self, offset: usize, to: &mut [u8]) {
        if let Memory::Header {
            tickets, ticket, ..
        } = &*self.memory
        {
            let current = match self.seen.get() {
                Some(&seen) if is_left_out(Without::SecondLook) => seen,
                _ => ticket.load(Ordering::Relaxed),
            };
            let _ = self.seen.set(current);
            return to.copy_from_slice(&tickets.lock().unwrap()[current]);
        }
        for (i, byte) in to.iter_mut().enumerate() {
            // SAFETY: as in `copy_in`.
            *byte = self.cell(offset + i).with(|cell| unsafe { *cell });
        }
    }

    /// Done by an owner before it uses the memory for another region.
    pub(crate) fn zero(&self) {
        let Memory::Bytes(cells) = &*self.memory else {
            panic!("a header is not cleared");
        };
        for cell in cells {
            // SAFETY: as in `copy_in`.
            cell.with_mut(|cell| unsafe { *cell = 0 });
        }
    }

    pub(crate) fn u8_at(&self, at: usize) -> &AtomicU8 {
        match (&*self.memory, at) {
            (Memory::Header { owner, .. }, OWNER_STATE) => owner,
            (Memory::Header { peer, .. }, PEER_STATE) => peer,
            _ => panic!("there is no state at {at}"),
        }
    }

    pub(crate) fn u64_at(&self, _at: usize) -> &AtomicU64 {
        unreachable!("a model has no words in regions")
    }
}

#[derive(Debug)]
struct Mapping {
    memory: Arc<Memory>,
    bell: Arc<Bell>,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // A model that has failed is over.
        if let Memory::Header { peer, .. } = &*self.memory
            && !std::thread::panicking()
        {
            peer.store(0, Ordering::SeqCst);
            self.bell.ring();
        }
    }
}

/// A word as the channel holds it.
pub(crate) type SharedU32 = Arc<AtomicU32>;
/// A byte as the channel holds it.
pub(crate) type SharedU8 = Arc<AtomicU8>;

#[derive(Debug)]
struct Fields {
    left_cons: SharedU32,
    left_prod: SharedU32,
    right_cons: SharedU32,
    right_prod: SharedU32,
    cli_live: SharedU8,
    srv_live: SharedU8,
    cli_notify: SharedU8,
    srv_notify: SharedU8,
}

/// The control page of a connected channel.
#[derive(Debug, Clone)]
pub(crate) struct ControlPage(Arc<Fields>);

impl ControlPage {
    /// Both sides live, no requests are set; `left` and `right` are (cons, prod).
    pub(crate) fn connected(left: (u32, u32), right: (u32, u32)) -> Self {
        Self(Arc::new(Fields {
            left_cons: Arc::new(AtomicU32::new(left.0)),
            left_prod: Arc::new(AtomicU32::new(left.1)),
            right_cons: Arc::new(AtomicU32::new(right.0)),
            right_prod: Arc::new(AtomicU32::new(right.1)),
            cli_live: Arc::new(AtomicU8::live(live::CONNECTED)),
            srv_live: Arc::new(AtomicU8::live(live::CONNECTED)),
            cli_notify: Arc::new(AtomicU8::notify(0)),
            srv_notify: Arc::new(AtomicU8::notify(0)),
        }))
    }

    pub(crate) fn word(&self, at: usize) -> SharedU32 {
        Arc::clone(match at {
            offset::LEFT_CONS => &self.0.left_cons,
            offset::LEFT_PROD => &self.0.left_prod,
            offset::RIGHT_CONS => &self.0.right_cons,
            offset::RIGHT_PROD => &self.0.right_prod,
            at => panic!("there is no index at {at}"),
        })
    }

    pub(crate) fn byte(&self, at: usize) -> SharedU8 {
        Arc::clone(match at {
            offset::CLI_LIVE => &self.0.cli_live,
            offset::SRV_LIVE => &self.0.srv_live,
            offset::CLI_NOTIFY => &self.0.cli_notify,
            offset::SRV_NOTIFY => &self.0.srv_notify,
            at => panic!("there is no byte at {at}"),
        })
    }
}
