//! Copies, piece by piece: by the caller's thread, and large ones by a few others beside it, since one processor copies
//! slower than the device. Only the caller's thread makes requests.
//!
//! The others may not get a processor when they should. So none has a piece before it runs, and where the caller had to
//! wait for one of them all the same, the next copies are its own alone.

use std::collections::VecDeque;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use vgpu_protocol::op::field::StreamRef;
use vgpu_protocol::op::{
    CopyFromDevice, CopyFromRegion, CopyToDevice, CopyToRegion, StreamSynchronize,
};

use super::super::{Client, lock};
use super::{SLOT, SLOTS, Staging, Stores, Taken, WITHIN};
use crate::data::Data;
use crate::error::{Cause, Result};

/// Copies of fewer bytes go through the ring: another request and a wait cost more than the second copy.
const LEAST: usize = 256 << 10;

/// Copies are cut in this many pieces, as far as pieces are of [`LEAST_PIECE`] to [`SLOT`] bytes.
const PIECES: usize = 8;
const LEAST_PIECE: usize = 128 << 10;

/// Copies of fewer bytes are over before another thread is of much use.
const LEAST_SHARED: usize = 4 << 20;

/// Threads beside the caller's: one for each so many bytes, and two at most, as a third one makes nothing faster.
const SHARE: usize = 16 << 20;
const MOST_HELPERS: usize = 2;

/// Processors that there have to be for each of these threads.
const PROCESSORS: usize = 4;

/// Pieces that are asked for at once: half of the slots, so that two threads' copies are not in each other's way. More where
/// several take them.
const MOST: usize = SLOTS / 2;
const MOST_SHARED: usize = SLOTS - SLOTS / 4;

/// Copies at most that the caller makes alone before it is helped again.
const MOST_ALONE: u32 = 64;

/// Whether copies are shared, by what came of it.
#[derive(Debug)]
pub(super) struct Helpers {
    most: usize,
    /// Copies to come that the caller makes alone, and how many there were the last time. No other data goes with them, so
    /// all accesses are relaxed.
    alone: AtomicU32,
    last_alone: AtomicU32,
}

impl Helpers {
    /// `threads`: how many copy at most, if that is said.
    pub(super) fn new(threads: Option<NonZeroUsize>) -> Self {
        let processors = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            most: match threads {
                Some(threads) => threads.get() - 1,
                None => (processors() / PROCESSORS).min(MOST_HELPERS),
            },
            alone: AtomicU32::new(0),
            last_alone: AtomicU32::new(0),
        }
    }

    /// The number of threads that help with a copy of this many bytes.
    fn of(&self, bytes: usize) -> usize {
        let less = |alone: u32| alone.checked_sub(1);
        let (set, read) = (Ordering::Relaxed, Ordering::Relaxed);
        match bytes < LEAST_SHARED || self.alone.fetch_update(set, read, less).is_ok() {
            true => 0,
            false => self.most.min((bytes / SHARE).max(1)),
        }
    }

    /// A copy that took so long was shared, and the caller waited so long for the others at its end.
    fn note(&self, took: Duration, waited: Duration) {
        let last = self.last_alone.load(Ordering::Relaxed);
        let alone = match waited > took / 4 {
            true => (2 * last + 1).min(MOST_ALONE),
            false => 0,
        };
        self.last_alone.store(alone, Ordering::Relaxed);
        self.alone.store(alone, Ordering::Relaxed);
    }
}

/// Starts as many threads as there can be of these, and says how many.
fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    helpers: usize,
    mut work: impl FnMut() -> Box<dyn FnOnce() + Send + 'scope>,
) -> usize {
    let named = || thread::Builder::new().name("vgpu-copy".to_owned());
    let mut start = |_: &usize| named().spawn_scoped(scope, work()).is_ok();
    (0..helpers).take_while(|n| start(n)).count()
}

/// A copy to the device.
struct Up<'a> {
    staging: &'a Staging,
    bytes: &'a [u8],
    /// Bytes of a piece.
    piece: usize,
    /// The first byte that nobody has taken. Relaxed: it decides who copies what, and publishes nothing.
    next: AtomicUsize,
    stores: Stores,
    stream: StreamRef,
}

/// A piece of a copy to the device in its slot.
struct Filled<'a> {
    taken: Taken<'a>,
    at: usize,
    bytes: usize,
}

impl<'a> Up<'a> {
    /// The next piece: where it begins, and its bytes.
    fn claim(&self) -> Option<(usize, &'a [u8])> {
        let at = self.next.fetch_add(self.piece, Ordering::Relaxed);
        let left = self.bytes.get(at..).filter(|left| !left.is_empty())?;
        Some((at, &left[..left.len().min(self.piece)]))
    }

    /// From here on nobody gets a piece.
    fn stop(&self) {
        self.next.store(self.bytes.len(), Ordering::Relaxed);
    }

    /// Fills a slot that the device is done with.
    fn fill(&self, taken: Taken<'a>, (at, piece): (usize, &[u8])) -> Filled<'a> {
        let offset = taken.slot().start();
        let view = &self.staging.mapped.view;
        let written = match self.stores {
            Stores::Cached => view.write_at(offset, piece),
            Stores::NonTemporal => view.write_non_temporal_at(offset, piece),
        };
        written.expect(WITHIN);
        let bytes = piece.len();
        Filled { taken, at, bytes }
    }

    /// Fills slots as long as there are pieces, and slots that come soon.
    fn help(&self, tell: &Sender<Filled<'a>>) {
        while let Some(taken) = self.staging.take(self.stream)
            && taken.comes_soon()
            && let Some(piece) = self.claim()
            && tell.send(self.fill(taken, piece)).is_ok()
        {}
    }
}

/// A copy from the device: pieces that were asked for, each with its place, the oldest first.
struct Down<'a> {
    staging: &'a Staging,
    asked: Mutex<Asked<'a>>,
    more: Condvar,
    stores: Stores,
}

#[derive(Default)]
struct Asked<'a> {
    pieces: VecDeque<Coming<'a>>,
    /// No more of them come.
    is_over: bool,
}

/// A piece of a copy from the device.
struct Coming<'a> {
    taken: Taken<'a>,
    to: &'a mut [u8],
}

impl<'a> Down<'a> {
    fn ask(&self, coming: Coming<'a>) {
        lock(&self.asked).pieces.push_back(coming);
        self.more.notify_one();
    }

    fn next(&self) -> Option<Coming<'a>> {
        lock(&self.asked).pieces.pop_front()
    }

    fn stop(&self) {
        lock(&self.asked).is_over = true;
        self.more.notify_all();
    }

    /// Takes a piece that has come out of its slot.
    fn read(&self, coming: Coming<'_>) -> usize {
        let (view, offset) = (&self.staging.mapped.view, coming.taken.slot().start());
        let read = match self.stores {
            Stores::Cached => view.read_at(offset, coming.to),
            Stores::NonTemporal => view.read_non_temporal_at(offset, coming.to),
        };
        read.expect(WITHIN);
        coming.to.len()
    }

    /// Takes pieces out of their slots; one that does not come is given back.
    fn help(&self, tell: &Sender<std::result::Result<usize, Coming<'a>>>) {
        loop {
            let next = |asked: &mut Asked<'_>| asked.pieces.is_empty() && !asked.is_over;
            let asked = self.more.wait_while(lock(&self.asked), next);
            let coming = asked
                .unwrap_or_else(PoisonError::into_inner)
                .pieces
                .pop_front();
            let Some(coming) = coming else {
                return;
            };
            let soon = coming.taken.comes_soon();
            let told = match soon {
                true => Ok(self.read(coming)),
                false => Err(coming),
            };
            if tell.send(told).is_err() || !soon {
                return;
            }
        }
    }
}

impl Client {
    /// Copies `bytes` to the device in the order of `stream`. They have been taken when this returns; the ids of the
    /// requests are added to `requests`.
    pub(in super::super) fn copy_up(
        &mut self,
        doing: &'static str,
        to: u64,
        bytes: &[u8],
        stores: Stores,
        stream: StreamRef,
        requests: &mut Vec<u32>,
    ) -> Result<()> {
        let staging = match bytes.len() >= LEAST {
            true => self.staging(doing)?,
            false => None,
        };
        let Some(staging) = staging else {
            return self.copy_up_by_ring(doing, to, bytes, stream, requests);
        };
        let up = Up {
            staging: &staging,
            bytes,
            piece: piece_of(bytes.len()),
            next: AtomicUsize::new(0),
            stores,
            stream,
        };
        thread::scope(|scope| {
            let (tell, filled) = mpsc::channel();
            let helpers = start(scope, staging.helpers.of(bytes.len()), || {
                let (up, tell) = (&up, tell.clone());
                Box::new(move || up.help(&tell))
            });
            drop(tell);
            let copied = self.lead_up(doing, to, &up, &filled, helpers > 0, requests);
            up.stop();
            copied
        })
    }

    fn lead_up<'a>(
        &mut self,
        doing: &'static str,
        to: u64,
        up: &Up<'a>,
        filled: &Receiver<Filled<'a>>,
        is_shared: bool,
        requests: &mut Vec<u32>,
    ) -> Result<()> {
        let began = Instant::now();
        let send = |client: &mut Self, mut filled: Filled<'a>| {
            let staging = filled.taken.staging;
            let copy = CopyFromRegion {
                to: to + filled.at as u64,
                region: staging.mapped.handle,
                offset: filled.taken.slot().start() as u64,
                bytes: count(filled.bytes),
                word: filled.taken.slot().word() as u64,
                value: filled.taken.begin(up.stream),
                stream: up.stream,
            };
            client.send_quiet(doing, copy)
        };
        // A piece before its slot: to wait for a slot that nobody needs could be to wait for this thread.
        while let Some((at, piece)) = up.claim() {
            match up.staging.take(up.stream) {
                Some(taken) => {
                    self.wait_for(doing, &taken, up.stream)?;
                    requests.push(send(self, up.fill(taken, (at, piece)))?);
                }
                // Other threads and streams have every slot.
                None => self.copy_up_by_ring(doing, to + at as u64, piece, up.stream, requests)?,
            }
            for filled in filled.try_iter() {
                requests.push(send(self, filled)?);
            }
        }
        let waits = Instant::now();
        for filled in filled {
            requests.push(send(self, filled)?);
        }
        if is_shared {
            up.staging.helpers.note(began.elapsed(), waits.elapsed());
        }
        Ok(())
    }

    fn copy_up_by_ring(
        &mut self,
        doing: &'static str,
        to: u64,
        bytes: &[u8],
        stream: StreamRef,
        requests: &mut Vec<u32>,
    ) -> Result<()> {
        let copy = CopyToDevice {
            to,
            bytes: count(bytes.len()),
            stream,
        };
        requests.push(self.send_quiet_with(doing, copy, &mut Data::up(bytes))?);
        Ok(())
    }

    /// Fills `to` from the device, once the work before it in `stream` is done; `progress` is told how many bytes have
    /// come. Returns how long the device ran kernels since the last such answer.
    pub(in super::super) fn copy_down(
        &mut self,
        doing: &'static str,
        from: u64,
        to: &mut [u8],
        stores: Stores,
        stream: StreamRef,
        progress: &mut dyn FnMut(usize),
    ) -> Result<u64> {
        let (all, mut came, mut rest) = (to.len(), 0, to);
        let staging = match all >= LEAST {
            true => self.staging(doing)?,
            false => None,
        };
        if let Some(staging) = &staging {
            let down = Down {
                staging,
                asked: Mutex::default(),
                more: Condvar::new(),
                stores,
            };
            let copied = thread::scope(|scope| {
                let (tell, told) = mpsc::channel();
                let helpers = start(scope, staging.helpers.of(all), || {
                    let (down, tell) = (&down, tell.clone());
                    Box::new(move || down.help(&tell))
                });
                drop(tell);
                let copied = self.lead_down(
                    doing,
                    (from, stream),
                    &mut rest,
                    &down,
                    &told,
                    helpers > 0,
                    progress,
                );
                down.stop();
                copied
            });
            came = copied?;
        }
        if came < all {
            let copy = CopyFromDevice {
                from: from + came as u64,
                bytes: count(rest.len()),
                stream,
            };
            let mut count = |more| progress(came + more);
            let mut data = Data::down(rest).watched(&mut count);
            return Ok(self.request_with(doing, copy, &mut data)?.device_ns);
        }
        // Tells of what has failed before, and of the device's time.
        let reply = self.request(doing, StreamSynchronize { stream })?;
        Ok(reply.device_ns)
    }

    /// Copies what there are slots for, and leaves the rest. Returns how many bytes have come.
    #[allow(clippy::too_many_arguments, reason = "of one copy")]
    fn lead_down<'a>(
        &mut self,
        doing: &'static str,
        (from, stream): (u64, StreamRef),
        rest: &mut &'a mut [u8],
        down: &Down<'a>,
        told: &Receiver<std::result::Result<usize, Coming<'a>>>,
        is_shared: bool,
        progress: &mut dyn FnMut(usize),
    ) -> Result<usize> {
        let began = Instant::now();
        let (staging, all) = (down.staging, rest.len());
        let (piece, most) = (piece_of(all), if is_shared { MOST_SHARED } else { MOST });
        let (mut under_way, mut came) = (0, 0);
        let mut waited = Duration::ZERO;
        loop {
            while !rest.is_empty()
                && under_way < most
                && let Some(mut taken) = staging.take(stream)
            {
                self.wait_for(doing, &taken, stream)?;
                let at = all - rest.len();
                let bytes = piece.min(rest.len());
                let copy = CopyToRegion {
                    from: from + at as u64,
                    region: staging.mapped.handle,
                    offset: taken.slot().start() as u64,
                    bytes: count(bytes),
                    word: taken.slot().word() as u64,
                    value: taken.begin(stream),
                    stream,
                };
                self.send_quiet(doing, copy)?;
                let (to, tail) = std::mem::take(rest).split_at_mut(bytes);
                *rest = tail;
                under_way += 1;
                down.ask(Coming { taken, to });
            }
            let next = match told.try_recv() {
                Ok(told) => told,
                Err(_) => match down.next() {
                    Some(coming) => Err(coming),
                    None if under_way == 0 => break,
                    // Others have the last ones.
                    None => {
                        let waits = Instant::now();
                        let told = told.recv().expect("each piece is told of");
                        waited += waits.elapsed();
                        told
                    }
                },
            };
            came += match next {
                Ok(bytes) => bytes,
                Err(coming) => {
                    if !self.wait_for(doing, &coming.taken, stream)? {
                        let failures = self.fence()?;
                        return Err(self.error(doing, Cause::Failed(failures)));
                    }
                    down.read(coming)
                }
            };
            under_way -= 1;
            progress(came);
        }
        if is_shared {
            staging.helpers.note(began.elapsed(), waited);
        }
        Ok(came)
    }

    /// Waits until the device is done with a slot, which `stream` has used if it is not. Returns whether it has copied: if
    /// not, the copy has failed.
    fn wait_for(
        &mut self,
        doing: &'static str,
        taken: &Taken<'_>,
        stream: StreamRef,
    ) -> Result<bool> {
        if taken.comes_soon() {
            return Ok(true);
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

fn count(bytes: usize) -> NonZeroU64 {
    NonZeroU64::new(bytes as u64).expect("some are left")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn larger_copies_have_more_threads_and_small_ones_none() {
        let helpers = Helpers::new(NonZeroUsize::new(3));
        let of = [1, 4, 31, 32, 1000].map(|mib| helpers.of(mib * MIB));
        assert_eq!(of, [0, 1, 1, 2, 2]);
        let alone = Helpers::new(NonZeroUsize::new(1));
        assert_eq!(alone.of(1000 * MIB), 0);
    }

    #[test]
    fn a_caller_that_waits_for_the_others_copies_alone_longer_each_time() {
        let helpers = Helpers::new(NonZeroUsize::new(2));
        let ms = Duration::from_millis;
        let mut alone = Vec::new();
        for _ in 0..9 {
            helpers.note(ms(4), ms(2));
            // Small ones do not count.
            assert_eq!(helpers.of(MIB), 0);
            alone.push((0..).take_while(|_| helpers.of(8 * MIB) == 0).count());
        }
        assert!(alone.is_sorted());
        assert_eq!((alone[0], alone[8]), (1, MOST_ALONE as usize));
        helpers.note(ms(4), ms(0));
        assert_eq!(helpers.of(8 * MIB), 1);
    }
}
