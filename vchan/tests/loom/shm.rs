//! Shared memory as loom sees it, under the names of `src/shm.rs`: each index and byte of the
//! control page an atomic of its own, each ring byte a cell whose data races loom reports.

use crate::sync::Arc;
use loom::cell::UnsafeCell;

use crate::layout::{live, offset};
use crate::sync::atomic::{AtomicU8, AtomicU32};

/// Ring bytes that a model may touch: this many at the start, this many at the end.
const CELLS: usize = 4;

/// A ring of which only the first and last few bytes exist.
#[derive(Debug, Clone)]
pub(crate) struct Region {
    cells: Arc<Cells>,
    len: usize,
}

#[derive(Debug)]
struct Cells(Vec<UnsafeCell<u8>>);

// SAFETY: the cells are reached through loom only, which runs one thread of the model at a time.
unsafe impl Send for Cells {}
// SAFETY: as for `Send`.
unsafe impl Sync for Cells {}

impl Region {
    pub(crate) fn new(len: usize) -> Self {
        let cells = (0..2 * CELLS).map(|_| UnsafeCell::new(0)).collect();
        Self {
            cells: Arc::new(Cells(cells)),
            len,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_writable(&self) -> bool {
        true
    }

    fn cell(&self, at: usize) -> &UnsafeCell<u8> {
        match at {
            at if at < CELLS => &self.cells.0[at],
            at => &self.cells.0[at + 2 * CELLS - self.len],
        }
    }

    pub(crate) fn copy_in(&self, offset: usize, from: &[u8]) {
        for (i, &byte) in from.iter().enumerate() {
            // SAFETY: loom lets the closure run only if no other access is in progress, and fails
            // the model where one is not ordered before or after this one.
            self.cell(offset + i)
                .with_mut(|cell| unsafe { *cell = byte });
        }
    }

    pub(crate) fn copy_out(&self, offset: usize, to: &mut [u8]) {
        for (i, byte) in to.iter_mut().enumerate() {
            // SAFETY: as in `copy_in`.
            *byte = self.cell(offset + i).with(|cell| unsafe { *cell });
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
    /// Both live, nobody has asked for anything; `left` and `right` are (cons, prod).
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
