//! Copies of ordinary memory by way of page-locked memory that this program shares with the mediator: one copy by this
//! thread, and one by the device. The ring would take two, and the mediator's thread.
//!
//! The memory is a region of some slots. A slot is used by one piece of a copy at a time. The mediator writes the slot's
//! own word when the device is done with it, which is looked for before anybody sleeps.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vchan::region::{Access, OwnedRegion, View};
use vgpu_protocol::handle::Handle;
use vgpu_protocol::op::field::{Bytes, StreamRef};
use vgpu_protocol::op::{
    CopyFromDevice, CopyFromRegion, CopyToDevice, CopyToRegion, Features, RegionMap, RegionUnmap,
    StreamSynchronize,
};

use super::{Client, lock};
use crate::data::Data;
use crate::error::{Cause, Result};

/// Slots, and bytes of each: all of them stay in a processor's cache.
const SLOTS: usize = 16;
const SLOT: usize = 256 << 10;

/// Distance between the words of two slots: each has a cache line of its own.
const WORD: usize = 64;

/// Bytes before the first slot, for the words.
const WORDS: usize = 4096;

/// Copies of fewer bytes go through the ring: another request and a wait cost more than the second copy.
const LEAST: usize = 256 << 10;

/// Copies are cut in this many pieces, as far as pieces are of [`LEAST_PIECE`] to [`SLOT`] bytes.
const PIECES: usize = 8;
const LEAST_PIECE: usize = 128 << 10;

/// From so many bytes on this side copies past the processor's caches. A program may have fewer in a cache, and read them
/// there next.
const NON_TEMPORAL: usize = 8 << 20;

/// Why accesses to the region cannot fail.
const WITHIN: &str = "words and slots lie within the region";

/// How long a word is looked for before the mediator is asked to say when it has come.
const LOOK: Duration = Duration::from_micros(50);

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
    /// For a copy that is, or is a part of, one of so many bytes.
    pub(super) fn of(bytes: usize) -> Self {
        match bytes < NON_TEMPORAL {
            true => Self::Cached,
            false => Self::NonTemporal,
        }
    }
}

/// Memory for pieces of copies.
#[derive(Debug)]
pub(super) struct Staging {
    mapped: Mapped,
    /// Those that no thread has, the one that was used longest ago first.
    slots: Mutex<VecDeque<Slot>>,
}

/// What a session knows about its staging memory.
#[derive(Debug, Default)]
pub(super) enum State {
    #[default]
    Untried,
    /// It cannot have any.
    Without,
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

    fn staging(&mut self, doing: &'static str) -> Result<Option<Arc<Staging>>> {
        let session = Arc::clone(&self.session);
        let mut state = lock(&session.staging);
        match &*state {
            State::Without => return Ok(None),
            State::Open(staging) => return Ok(Some(Arc::clone(staging))),
            State::Untried => {}
        }
        let mapped = match self.map_memory(doing, WORDS + SLOTS * SLOT)? {
            Some(mapped) if mapped.by_device => mapped,
            other => {
                *state = State::Without;
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
        });
        *state = State::Open(Arc::clone(&staging));
        Ok(Some(staging))
    }

    /// Copies `bytes` to the device in the order of `stream`. They have been taken when this returns; the ids of the
    /// requests are added to `requests`.
    pub(super) fn copy_up(
        &mut self,
        doing: &'static str,
        to: u64,
        bytes: &[u8],
        stores: Stores,
        stream: StreamRef,
        requests: &mut Vec<u32>,
    ) -> Result<()> {
        let mut left = bytes;
        if bytes.len() >= LEAST
            && let Some(staging) = self.staging(doing)?
        {
            let most = piece_of(bytes.len());
            while !left.is_empty() {
                let Some(mut taken) = staging.take(stream) else {
                    break;
                };
                self.wait_for(doing, &taken, stream)?;
                let (piece, rest) = left.split_at(left.len().min(most));
                let offset = taken.slot().start();
                let view = &staging.mapped.view;
                let written = match stores {
                    Stores::Cached => view.write_at(offset, piece),
                    Stores::NonTemporal => view.write_non_temporal_at(offset, piece),
                };
                written.expect(WITHIN);
                let copy = CopyFromRegion {
                    to: to + (bytes.len() - left.len()) as u64,
                    region: staging.mapped.handle,
                    offset: offset as u64,
                    bytes: count(piece),
                    word: taken.slot().word() as u64,
                    value: taken.begin(stream),
                    stream,
                };
                requests.push(self.send_quiet(doing, copy)?);
                left = rest;
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        // A short copy, or other threads and streams have every slot.
        let copy = CopyToDevice {
            to: to + (bytes.len() - left.len()) as u64,
            bytes: count(left),
            stream,
        };
        requests.push(self.send_quiet_with(doing, copy, &mut Data::up(left))?);
        Ok(())
    }

    /// Fills `to` from the device, once the work before it in `stream` is done; `progress` is told how many bytes have
    /// come. Returns how long the device ran kernels since the last such answer.
    pub(super) fn copy_down(
        &mut self,
        doing: &'static str,
        from: u64,
        to: &mut [u8],
        stores: Stores,
        stream: StreamRef,
        progress: &mut dyn FnMut(usize),
    ) -> Result<u64> {
        let all = to.len();
        let staging = match all >= LEAST {
            true => self.staging(doing)?,
            false => None,
        };
        let (mut asked, mut came) = (0, 0);
        if let Some(staging) = &staging {
            let most = piece_of(all);
            let mut under_way = VecDeque::new();
            loop {
                // Half of them at most, so that two threads are not in each other's way.
                let next = match asked < all && under_way.len() < SLOTS / 2 {
                    true => staging.take(stream),
                    false => None,
                };
                if let Some(mut taken) = next {
                    self.wait_for(doing, &taken, stream)?;
                    let bytes = most.min(all - asked);
                    let copy = CopyToRegion {
                        from: from + asked as u64,
                        region: staging.mapped.handle,
                        offset: taken.slot().start() as u64,
                        bytes: NonZeroU64::new(bytes as u64).expect("some are left"),
                        word: taken.slot().word() as u64,
                        value: taken.begin(stream),
                        stream,
                    };
                    self.send_quiet(doing, copy)?;
                    asked += bytes;
                    under_way.push_back((taken, bytes));
                    continue;
                }
                let Some((taken, bytes)) = under_way.pop_front() else {
                    break;
                };
                if !self.wait_for(doing, &taken, stream)? {
                    let failures = self.fence()?;
                    return Err(self.error(doing, Cause::Failed(failures)));
                }
                let piece = &mut to[came..came + bytes];
                let (view, offset) = (&staging.mapped.view, taken.slot().start());
                let read = match stores {
                    Stores::Cached => view.read_at(offset, piece),
                    Stores::NonTemporal => view.read_non_temporal_at(offset, piece),
                };
                read.expect(WITHIN);
                came += bytes;
                progress(came);
            }
        }
        if came < all {
            let copy = CopyFromDevice {
                from: from + came as u64,
                bytes: count(&to[came..]),
                stream,
            };
            let mut count = |more| progress(came + more);
            let mut data = Data::down(&mut to[came..]).watched(&mut count);
            return Ok(self.request_with(doing, copy, &mut data)?.device_ns);
        }
        // Tells of what has failed before, and of the device's time.
        let reply = self.request(doing, StreamSynchronize { stream })?;
        Ok(reply.device_ns)
    }

    /// Waits until the device is done with a slot, which `stream` has used if it is not. Returns whether it has copied: if
    /// not, the copy has failed.
    fn wait_for(
        &mut self,
        doing: &'static str,
        taken: &Taken<'_>,
        stream: StreamRef,
    ) -> Result<bool> {
        let mut since = None;
        loop {
            for _ in 0..64 {
                if taken.is_done() {
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            if since.get_or_insert_with(Instant::now).elapsed() >= LOOK {
                break;
            }
        }
        let reply = self.request(doing, StreamSynchronize { stream })?;
        self.keep_device_time(reply.device_ns);
        Ok(taken.is_done())
    }
}

/// Bytes of a piece of a copy.
fn piece_of(bytes: usize) -> usize {
    (bytes / PIECES)
        .clamp(LEAST_PIECE, SLOT)
        .next_multiple_of(4096)
        .min(SLOT)
}

fn count(bytes: &[u8]) -> NonZeroU64 {
    NonZeroU64::new(bytes.len() as u64).expect("some are left")
}
