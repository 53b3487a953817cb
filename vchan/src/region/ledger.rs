#![forbid(unsafe_code)]
//! All regions of one channel, on this side: limits, and the end they share.
//!
//! # The cost of a peer that never unmaps
//! Pages granted to a peer may stay mapped there for as long as it likes, and no interface tells
//! whether they are: the peer's state byte is only its claim. So the pages of an ended region stay
//! with the channel. Once the peer claims to have unmapped them, they serve the next region; a peer
//! that lied sees bytes that were meant for it anyway. In this way all regions of a channel
//! together never take more pages than its limit, whatever the peer does.

use super::error::RegionError;
use super::header::Header;
use super::mapped_cell::MappedCell;
use super::memory::OwnerMemory;
use super::owned_cell::{OwnedCell, Owner};
use super::ticket::{Access, Ticket};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};
use crate::wire::layout::PAGE;

/// The most live regions that this side makes in a channel, and separately the most that it maps.
pub const MOST_REGIONS: usize = 64;

/// The most regions whose memory a channel holds, including ended ones: each costs a few
/// descriptors.
const MOST_HELD: usize = 4 * MOST_REGIONS;

/// The default limit in bytes, 64 MiB, for all regions that this side makes in a channel, and
/// separately for those that it maps.
pub const DEFAULT_LIMIT: usize = 64 << 20;

/// The regions of one channel.
#[derive(Debug)]
pub(crate) struct Ledger {
    state: Mutex<State>,
    /// Length of `state.mapped`, so that a channel without regions pays one load.
    mapped: AtomicUsize,
}

#[derive(Debug)]
struct State {
    closed: bool,
    limit: usize,
    last_id: u64,
    /// Pages of everything that this side has made: in use, ended, or in the making.
    own_pages: usize,
    own: Vec<Arc<OwnedCell>>,
    /// Memory of ended regions.
    kept: Vec<Arc<Owner>>,
    /// Pages of everything that is mapped, or being mapped.
    mapped_pages: usize,
    /// Ids of the regions being mapped.
    mapping: Vec<u64>,
    mapped: Vec<Arc<MappedCell>>,
    /// Headers of the peer's that were mapped for regions that could not be claimed; see
    /// [`Ledger::keep_unclaimed`].
    unclaimed: Vec<Header>,
}

/// The source of a new region's memory.
pub(super) enum Source {
    /// An ended region's, all of whose users are gone.
    Kept(Arc<Owner>),
    /// To be made by the backend; the pages are reserved.
    Fresh,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                closed: false,
                limit: DEFAULT_LIMIT / PAGE,
                last_id: 0,
                own_pages: 0,
                own: Vec::new(),
                kept: Vec::new(),
                mapped_pages: 0,
                mapping: Vec::new(),
                mapped: Vec::new(),
                unclaimed: Vec::new(),
            }),
            mapped: AtomicUsize::new(0),
        }
    }
}

impl Ledger {
    pub(super) fn set_limit(&self, bytes: usize) {
        self.lock().limit = bytes.div_ceil(PAGE);
    }

    /// Owner: finds memory for a region that needs `total` pages, `data` of them for its bytes, or
    /// reserves that many pages. Returns the source and the region's id.
    pub(super) fn begin(
        &self,
        data: usize,
        total: usize,
        access: Access,
        peer_alive: bool,
    ) -> Result<(u64, Source), RegionError> {
        let mut state = self.lock();
        if state.own.len() >= MOST_REGIONS {
            return Err(RegionError::TooMany(MOST_REGIONS));
        }
        let free = |owner: &Arc<Owner>| is_free(owner, peer_alive);
        // The smallest that fits, so that the large ones stay for large regions.
        let fitting = (0..state.kept.len())
            .filter(|&at| {
                let owner = &state.kept[at];
                owner.access == access && owner.memory.data.len() / PAGE >= data && free(owner)
            })
            .min_by_key(|&at| state.kept[at].memory.data.len());
        let source = match fitting {
            Some(at) => Source::Kept(state.kept.swap_remove(at)),
            None => {
                let all = state.own.len() + state.kept.len();
                if all >= MOST_HELD {
                    return Err(RegionError::TooMany(all));
                }
                if total > state.limit.saturating_sub(state.own_pages) {
                    let held = state.kept.iter().filter(|owner| !free(owner));
                    return Err(RegionError::Limit {
                        wanted: total,
                        used: state.own_pages,
                        held: held.map(|owner| owner.memory.pages()).sum(),
                        limit: state.limit,
                    });
                }
                state.own_pages += total;
                Source::Fresh
            }
        };
        state.last_id += 1;
        Ok((state.last_id, source))
    }

    /// Owner: the reserved pages could not be allocated.
    pub(super) fn abandon(&self, total: usize) {
        self.lock().own_pages -= total;
    }

    /// Owner: the region exists. False if the channel was closed meanwhile.
    pub(super) fn add(&self, cell: &Arc<OwnedCell>) -> bool {
        let mut state = self.lock();
        if !state.closed {
            state.own.push(Arc::clone(cell));
        }
        !state.closed
    }

    /// Owner: the region has ended; its memory is kept for another, unless the channel is closed.
    pub(super) fn end(&self, cell: &Arc<OwnedCell>) {
        let mut state = self.lock();
        state.own.retain(|own| !Arc::ptr_eq(own, cell));
        let owner = cell.take();
        if !state.closed {
            state.kept.extend(owner);
        }
    }

    /// Owner: frees the memory of ended regions that nobody holds, as far as the peer's claims go.
    pub(super) fn give_back(&self, peer_alive: bool) {
        let mut state = self.lock();
        let given: Vec<_> = state
            .kept
            .extract_if(.., |owner| is_free(owner, peer_alive))
            .collect();
        state.own_pages -= given
            .iter()
            .map(|owner| owner.memory.pages())
            .sum::<usize>();
    }

    /// Owner: keeps the memory of a region that was never handed out.
    pub(super) fn keep(&self, memory: Arc<Owner>) {
        let mut state = self.lock();
        if !state.closed {
            state.kept.push(memory);
        }
    }

    /// Peer: reserves the pages of a mapping.
    pub(super) fn begin_mapping(&self, id: u64, pages: usize) -> Result<(), RegionError> {
        let mut state = self.lock();
        // Two mappings share the peer's state byte: the end of one would end the other.
        if state.mapped.iter().any(|cell| cell.id == id) || state.mapping.contains(&id) {
            return Err(RegionError::Used);
        }
        if state.mapped.len() + state.mapping.len() >= MOST_REGIONS {
            return Err(RegionError::TooMany(MOST_REGIONS));
        }
        if pages > state.limit.saturating_sub(state.mapped_pages) {
            return Err(RegionError::Limit {
                wanted: pages,
                used: state.mapped_pages,
                held: 0,
                limit: state.limit,
            });
        }
        state.mapped_pages += pages;
        state.mapping.push(id);
        Ok(())
    }

    /// Peer: claims the region of `ticket`, under the lock for the reason given at
    /// [`Header::claim`].
    pub(super) fn claim(&self, header: &Header, ticket: &Ticket) -> Result<(), RegionError> {
        let _one_at_a_time = self.lock();
        header.claim(ticket)
    }

    /// Peer: the mapping failed.
    pub(super) fn abandon_mapping(&self, id: u64, pages: usize) {
        let mut state = self.lock();
        state.mapping.retain(|&mapping| mapping != id);
        state.mapped_pages -= pages;
    }

    /// Peer: keeps a header mapped that was not claimed and whose unmapping a kernel would report:
    /// by then the page may be the header of another region, whose state that report would end.
    /// Costs a page each, until the channel or its peer ends.
    pub(super) fn keep_unclaimed(&self, header: Header) {
        let mut state = self.lock();
        // An owner that lets more than that come to nothing harms only itself.
        if !state.closed && state.unclaimed.len() < MOST_REGIONS {
            state.unclaimed.push(header);
        }
    }

    /// Peer: the mapping exists. False if the channel was closed meanwhile.
    pub(super) fn add_mapping(&self, cell: &Arc<MappedCell>) -> bool {
        let mut state = self.lock();
        state.mapping.retain(|&mapping| mapping != cell.id);
        if !state.closed {
            state.mapped.push(Arc::clone(cell));
            self.mapped.store(state.mapped.len(), Ordering::Release);
        }
        !state.closed
    }

    /// Peer: unmaps one region.
    pub(super) fn end_mapping(&self, cell: &Arc<MappedCell>) {
        self.end_mappings(|mapped| Arc::ptr_eq(mapped, cell));
    }

    /// The peer is gone: unmaps all of its memory. The end of its domain waits for that.
    pub(crate) fn peer_gone(&self) {
        self.end_mappings(|_| true);
        let unclaimed = std::mem::take(&mut self.lock().unclaimed);
        drop(unclaimed);
    }

    /// The doorbell rang: unmaps the regions that their owner has revoked or closed.
    #[inline]
    pub(crate) fn sweep(&self) {
        // Pairs with the stores in `add_mapping` and `end_mappings`.
        if self.mapped.load(Ordering::Acquire) > 0 {
            self.end_mappings(|cell| cell.check_open().is_err());
        }
    }

    fn end_mappings(&self, which: impl Fn(&Arc<MappedCell>) -> bool) {
        let ended: Vec<_> = {
            let mut state = self.lock();
            let ended: Vec<_> = state.mapped.extract_if(.., |cell| which(cell)).collect();
            state.mapped_pages -= ended.iter().map(|cell| cell.pages).sum::<usize>();
            self.mapped.store(state.mapped.len(), Ordering::Release);
            ended
        };
        // Unmapped without the lock: that rings the owner, through the channel.
        for cell in ended {
            drop(cell.take());
        }
    }

    /// This side closes the channel: ends all its regions.
    pub(crate) fn close(&self) {
        let (own, kept) = {
            let mut state = self.lock();
            state.closed = true;
            (
                std::mem::take(&mut state.own),
                std::mem::take(&mut state.kept),
            )
        };
        self.peer_gone();
        for owner in own.iter().filter_map(|cell| cell.take()).chain(kept) {
            owner.header.close();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is made by statements that do not panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the memory of an ended region has no user on this side and, as the peer claims, none on
/// the peer's.
fn is_free(owner: &Arc<Owner>, peer_alive: bool) -> bool {
    Arc::strong_count(owner) == 1 && (owner.header.is_released() || !peer_alive)
}

/// Pages of data that `bytes` need.
///
/// # Errors
/// [`RegionError::Empty`].
pub(super) fn data_pages(bytes: usize) -> Result<usize, RegionError> {
    match bytes.div_ceil(PAGE) {
        0 => Err(RegionError::Empty),
        pages => Ok(pages),
    }
}

/// The header of `memory`, for both sides of the module.
pub(super) fn header(memory: &OwnerMemory) -> Header {
    Header::new(memory.header.share())
}
