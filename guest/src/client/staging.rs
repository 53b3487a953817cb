//! Copies of ordinary memory by way of page-locked memory that this program shares with the mediator: one copy by this
//! program's processors, and one by the device. The ring would take two, and the mediator's thread.
//!
//! The memory is a region of some slots. A slot is used by one piece of a copy at a time. The device writes the slot's
//! own word when it is done with it, which is looked for before anybody sleeps.

mod copies;

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vchan::region::{Access, OwnedRegion, View};
use vgpu_protocol::handle::Handle;
use vgpu_protocol::op::field::{Bytes, StreamRef};
use vgpu_protocol::op::{Features, RegionMap, RegionUnmap};

use super::{Client, lock};
use crate::error::Result;
use copies::Helpers;

/// Slots, and bytes of each: all of them stay in a processor's cache.
const SLOTS: usize = 16;
const SLOT: usize = 256 << 10;

/// Distance between the words of two slots: each has a cache line of its own.
const WORD: usize = 64;

/// Bytes before the first slot, for the words.
const WORDS: usize = 4096;

/// From this many bytes on, this side copies past the processor's caches. A program may have fewer in a cache, and read them
/// there next.
const NON_TEMPORAL: usize = 8 << 20;

/// Why accesses to the region cannot fail.
const WITHIN: &str = "words and slots lie within the region";

/// How long a word is looked for before the mediator is asked to say when it has come.
const WORD_POLL_TIME: Duration = Duration::from_micros(50);

/// Memory of this program's that the mediator has mapped for the device.
pub(super) struct Mapped {
    pub(super) handle: Handle,
    pub(super) view: View,
    /// The device copies from it and to it by itself.
    by_device: bool,
    /// Its address for kernels.
    pub(super) there: Option<NonZeroU64>,
    // After the view of it.
    _region: OwnedRegion,
}

impl std::fmt::Debug for Mapped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapped")
            .field("handle", &self.handle)
            .field("bytes", &self.view.len())
            .finish_non_exhaustive()
    }
}

/// How this side's processor copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stores {
    Cached,
    NonTemporal,
}

impl Stores {
    /// For a copy of this many bytes, or a part of one.
    pub(super) fn of(bytes: usize) -> Self {
        match bytes < NON_TEMPORAL {
            true => Self::Cached,
            false => Self::NonTemporal,
        }
    }
}

/// The way that the bytes of copies between program and device go in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CopyWay {
    /// In page-locked memory that the program shares with the mediator: the device copies from
    /// [`PinnedBuffer`](crate::PinnedBuffer)s and to them by itself, and large copies of ordinary memory go by way of such
    /// memory.
    PageLocked,
    /// Those of [`PinnedBuffer`](crate::PinnedBuffer)s in memory that the program shares with the mediator, whose processor
    /// copies; others through the session's stream.
    Shared,
    /// Through the session's stream: a ring over `xen:` and `local:`.
    Stream,
}

/// Memory for pieces of copies.
#[derive(Debug)]
pub(super) struct Staging {
    mapped: Mapped,
    /// Those that no thread has, the one that was used longest ago first.
    slots: Mutex<VecDeque<Slot>>,
    helpers: Helpers,
}

/// The state of a session's staging memory.
#[derive(Debug, Default)]
pub(super) enum State {
    #[default]
    Untried,
    /// It cannot have any. Whether it can have memory that the device does not copy from by itself.
    Without {
        shared: bool,
    },
    Open(Arc<Staging>),
}

#[derive(Debug)]
struct Slot {
    number: usize,
    /// Its word when the device is done with it.
    value: u64,
    /// The stream of the copy that uses it.
    stream: StreamRef,
}

impl Slot {
    fn word(&self) -> usize {
        self.number * WORD
    }

    fn start(&self) -> usize {
        WORDS + self.number * SLOT
    }
}

/// A slot that this thread has, until this is dropped.
struct Taken<'s> {
    staging: &'s Staging,
    slot: Option<Slot>,
}

impl Taken<'_> {
    fn slot(&self) -> &Slot {
        self.slot.as_ref().expect("until it is dropped")
    }

    /// Begins another use of it, in `stream`; the value that its word will have.
    fn begin(&mut self, stream: StreamRef) -> u64 {
        let slot = self.slot.as_mut().expect("until it is dropped");
        slot.stream = stream;
        slot.value += 1;
        slot.value
    }

    fn is_done(&self) -> bool {
        self.staging.is_done(self.slot())
    }

    /// Whether the device is done with it, now or in a moment.
    fn comes_soon(&self) -> bool {
        let mut since = None;
        loop {
            for _ in 0..64 {
                if self.is_done() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if since.get_or_insert_with(Instant::now).elapsed() >= WORD_POLL_TIME {
                return false;
            }
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        lock(&self.staging.slots).extend(self.slot.take());
    }
}

impl Staging {
    /// Whether the device has copied what a slot was last used for.
    fn is_done(&self, slot: &Slot) -> bool {
        let word = self.mapped.view.load_u64(slot.word());
        word.expect(WITHIN) == slot.value
    }

    /// A slot that no thread has, for a copy in `stream`: one that the device is done with, or that stream's own. To wait
    /// for another stream could make a capture in it invalid.
    fn take(&self, stream: StreamRef) -> Option<Taken<'_>> {
        let mut slots = lock(&self.slots);
        let at = slots
            .iter()
            .position(|slot| slot.stream == stream || self.is_done(slot))?;
        Some(Taken {
            staging: self,
            slot: slots.remove(at),
        })
    }
}

impl Client {
    /// Maps memory that this program and the device share. `None`: the mediator does not offer it, or has refused it.
    ///
    /// # Errors
    /// The session failed.
    pub(super) fn map_memory(
        &mut self,
        doing: &'static str,
        bytes: usize,
    ) -> Result<Option<Mapped>> {
        let session = Arc::clone(&self.session);
        let Some(regions) = &session.regions else {
            return Ok(None);
        };
        if !session.agreed.features.contains(Features::REGIONS) {
            return Ok(None);
        }
        let made = regions
            .create(bytes, Access::Both)
            .and_then(|region| Ok((region.view(0, region.len())?, region)));
        let (view, region) = match made {
            Ok(made) => made,
            Err(error) => {
                log::debug!("no memory beside the ring: {error}");
                return Ok(None);
            }
        };
        let Some(handle) = lock(&session.region_handles).mint() else {
            return Ok(None);
        };
        let request = RegionMap {
            region: handle,
            bytes: NonZeroU64::new(bytes as u64).expect("a region has some"),
            address: view.as_ptr().addr().get() as u64,
            ticket: Bytes::new(&region.ticket()).expect("as long as it is"),
        };
        match self.request(doing, request) {
            Ok(reply) => Ok(Some(Mapped {
                handle,
                view,
                by_device: reply.by_device != 0,
                there: NonZeroU64::new(reply.address),
                _region: region,
            })),
            Err(error) if error.cause().ends_session() => Err(error),
            Err(error) => {
                lock(&session.region_handles).release(handle);
                log::info!("copies go through the ring: {error}");
                Ok(None)
            }
        }
    }

    /// Gives back what [`map_memory`](Self::map_memory) has given.
    pub(super) fn unmap_memory(&mut self, region: Handle) -> Result<()> {
        self.send_quiet("unmap memory", RegionUnmap { region })?;
        lock(&self.session.region_handles).release(region);
        Ok(())
    }

    /// The way that copies of this session go; to find out, the session takes the memory for them, where there is such.
    ///
    /// # Errors
    /// The session failed.
    pub fn copy_way(&mut self) -> Result<CopyWay> {
        if self.has_staging("look how copies go")? {
            return Ok(CopyWay::PageLocked);
        }
        Ok(match *lock(&self.session.staging) {
            State::Without { shared: true } => CopyWay::Shared,
            _ => CopyWay::Stream,
        })
    }

    /// Whether copies of ordinary memory go by way of memory that this program shares.
    pub(super) fn has_staging(&mut self, doing: &'static str) -> Result<bool> {
        self.staging(doing).map(|staging| staging.is_some())
    }

    fn staging(&mut self, doing: &'static str) -> Result<Option<Arc<Staging>>> {
        let session = Arc::clone(&self.session);
        let mut state = lock(&session.staging);
        match &*state {
            State::Without { .. } => return Ok(None),
            State::Open(staging) => return Ok(Some(Arc::clone(staging))),
            State::Untried => {}
        }
        let mapped = match self.map_memory(doing, WORDS + SLOTS * SLOT)? {
            Some(mapped) if mapped.by_device => mapped,
            other => {
                let shared = other.is_some();
                *state = State::Without { shared };
                if let Some(mapped) = other {
                    self.unmap_memory(mapped.handle)?;
                }
                return Ok(None);
            }
        };
        let slots = (0..SLOTS).map(|number| Slot {
            number,
            value: 0,
            stream: StreamRef::DEFAULT,
        });
        let staging = Arc::new(Staging {
            mapped,
            slots: Mutex::new(slots.collect()),
            helpers: Helpers::new(self.lane.options().copy_threads),
        });
        *state = State::Open(Arc::clone(&staging));
        Ok(Some(staging))
    }
}
