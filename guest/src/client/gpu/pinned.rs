//! Page-locked memory of this program, which the device copies from and to by itself.

use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroU64;
use std::ops::{Range, RangeBounds};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use bytemuck::Pod;
use vgpu_protocol::op::field::StreamRef;
use vgpu_protocol::op::{
    CopyFromRegion, CopyToRegion, NO_WORD, Operation, Request, StreamSynchronize, Synchronize,
};
use vgpu_protocol::status::ErrorCode;

use super::super::staging::Mapped;
use super::buffer::within;
use super::{Device, DevicePtr, DeviceRows, Dropped, KernelArg, lock, told};
use crate::error::Result;

/// Bytes of a region that buffers are cut from; larger buffers have one of their own.
const CHUNK: usize = 16 << 20;

/// Buffers begin at multiples of this many bytes: more than any element wants.
const ALIGN: usize = 256;

/// The reason why an access to a region cannot fail.
const WITHIN: &str = "a buffer lies within its region";

/// The page-locked memory of a session.
#[derive(Debug, Default)]
pub(in crate::client) struct Arena {
    chunks: Vec<Chunk>,
    /// Of buffers that were dropped while the device may have copied.
    leaving: VecDeque<(Place, Vec<StreamRef>)>,
}

#[derive(Debug)]
struct Chunk {
    mapped: Arc<Mapped>,
    /// Parts that no buffer has, apart from each other and in order.
    free: Vec<Range<usize>>,
}

/// A part of a region.
#[derive(Debug, Clone)]
struct Place {
    mapped: Arc<Mapped>,
    part: Range<usize>,
}

impl Chunk {
    fn new(mapped: Mapped) -> Self {
        let all = 0..mapped.view.len();
        Self {
            mapped: Arc::new(mapped),
            free: Vec::from([all]),
        }
    }

    fn take(&mut self, bytes: usize) -> Option<Place> {
        let at = self.free.iter().position(|free| free.len() >= bytes)?;
        let free = &mut self.free[at];
        let part = free.start..free.start + bytes;
        free.start = part.end;
        if free.start == free.end {
            self.free.remove(at);
        }
        Some(Place {
            mapped: Arc::clone(&self.mapped),
            part,
        })
    }

    fn put(&mut self, part: Range<usize>) {
        let at = self.free.partition_point(|free| free.start < part.start);
        self.free.insert(at, part);
        // With what follows, then with what is before.
        for first in [at, at.wrapping_sub(1)] {
            if let Some([one, next]) = self.free.get_mut(first..first.wrapping_add(2))
                && one.end == next.start
            {
                one.end = next.end;
                self.free.remove(first + 1);
            }
        }
    }

    fn is_unused(&self) -> bool {
        matches!(&self.free[..], [all] if all.len() == self.mapped.view.len())
    }
}

impl Arena {
    fn take(&mut self, bytes: usize) -> Option<Place> {
        self.chunks.iter_mut().find_map(|chunk| chunk.take(bytes))
    }

    /// Takes back what nobody uses; a chunk that is to be given back, if that leaves one.
    fn put(&mut self, place: &Place) -> Option<Arc<Mapped>> {
        let own = |chunk: &Chunk| Arc::ptr_eq(&chunk.mapped, &place.mapped);
        let at = self.chunks.iter().position(own)?;
        self.chunks[at].put(place.part.clone());
        let ordinary = |chunk: &Chunk| chunk.is_unused() && chunk.mapped.view.len() <= CHUNK;
        let kept = self.chunks.iter().filter(|chunk| ordinary(chunk)).count();
        let goes = self.chunks[at].is_unused() && (!ordinary(&self.chunks[at]) || kept > 1);
        goes.then(|| self.chunks.swap_remove(at).mapped)
    }
}

/// Elements in page-locked memory of this program. Over `local:` the mediator maps the same memory, and the device copies
/// from it and to it without either program's help; elsewhere, and where the session has as much of it as its mediator
/// allows (`pinned_mib`), it is ordinary memory, which copies take like any other
/// ([`is_page_locked`](Self::is_page_locked)).
///
/// ```no_run
/// # use vgpu_guest::{Client, Device, Options};
/// # let device = Device::new(Client::from_env(&Options::default())?)?;
/// let mut numbers = device.alloc_pinned::<f32>(1 << 20)?;
/// numbers.write(0, &[1.0; 1000])?;
/// let mut there = device.alloc::<f32>(1 << 20)?;
/// device.memcpy_htod_pinned(&numbers, .., &mut there)?;
/// device.memcpy_dtoh_pinned(&there, &mut numbers, ..)?;
/// let mut first = [0.0; 1000];
/// numbers.read(0, &mut first)?; // waits for both copies
/// # Ok::<(), vgpu_guest::Error>(())
/// ```
pub struct PinnedBuffer<T: Pod> {
    device: Device,
    memory: Memory<T>,
    len: usize,
    /// Streams whose copies may still use it.
    streams: Mutex<Vec<StreamRef>>,
    elements: PhantomData<fn() -> T>,
}

enum Memory<T> {
    Locked(Place),
    Ordinary(Vec<T>),
}

impl<T: Pod> fmt::Debug for PinnedBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedBuffer")
            .field("len", &self.len)
            .field("is_page_locked", &self.is_page_locked())
            .finish_non_exhaustive()
    }
}

impl Device {
    /// Page-locked memory for `len` elements (`cuMemHostAlloc`); what they are is not said.
    ///
    /// # Errors
    /// The session failed, or something that was sent before has.
    pub fn alloc_pinned<T: Pod>(&self, len: usize) -> Result<PinnedBuffer<T>> {
        const DOING: &str = "allocate page-locked memory";
        let bytes = self
            .bytes_of::<T>(DOING, len)?
            .map_or(0, |bytes| bytes.get());
        let place = match usize::try_from(bytes) {
            Ok(0) => None,
            Ok(bytes) => self.pinned_place(DOING, bytes)?,
            Err(_) => None,
        };
        Ok(PinnedBuffer {
            device: self.base(),
            memory: match place {
                Some(place) => Memory::Locked(place),
                None => Memory::Ordinary(vec![T::zeroed(); len]),
            },
            len,
            streams: Mutex::default(),
            elements: PhantomData,
        })
    }

    fn pinned_place(&self, doing: &'static str, bytes: usize) -> Result<Option<Place>> {
        let Some(bytes) = bytes.checked_next_multiple_of(ALIGN) else {
            return Ok(None);
        };
        let arena = || lock(&self.shared.session.pinned);
        // What was dropped is free once its copies are done.
        loop {
            let Some((place, streams)) = arena().leaving.pop_front() else {
                break;
            };
            let waited = self.wait_for_streams(doing, &streams);
            self.put_place(&place);
            waited?;
        }
        if let Some(place) = arena().take(bytes) {
            return Ok(Some(place));
        }
        for chunk in [bytes.max(CHUNK), bytes] {
            if let Some(mapped) = self.client()?.map_memory(doing, chunk)? {
                let mut chunk = Chunk::new(mapped);
                let place = chunk.take(bytes);
                arena().chunks.push(chunk);
                return Ok(place);
            }
        }
        Ok(None)
    }

    fn put_place(&self, place: &Place) {
        let gone = lock(&self.shared.session.pinned).put(place);
        if let Some(mapped) = gone {
            self.drop_on_device(Dropped::Region(mapped.handle));
        }
    }

    /// Waits until what was sent to these streams is done.
    fn wait_for_streams(&self, doing: &'static str, streams: &[StreamRef]) -> Result<()> {
        for stream in streams {
            let mut client = self.client()?;
            let mut waited = client
                .request(doing, StreamSynchronize { stream: *stream })
                .map(|reply| reply.device_ns);
            // A stream that was destroyed is named by nobody, and its work goes on.
            let handle = Some(ErrorCode::Handle.into());
            if waited.as_ref().is_err_and(|error| error.status() == handle) {
                let all = client.request(doing, Synchronize {});
                waited = all.map(|reply| reply.device_ns);
            }
            let device_ns = told(&mut client, doing, waited)?;
            client.keep_device_time(device_ns);
        }
        Ok(())
    }

    /// Copies the elements of `range` in `from` to the front of `to`. Returns at once: writing to `from` waits until they
    /// are copied.
    ///
    /// # Errors
    /// `range` is not in `from`, or `to` is shorter; the session failed.
    pub fn memcpy_htod_pinned<T: Pod>(
        &self,
        from: &PinnedBuffer<T>,
        range: impl RangeBounds<usize>,
        to: &mut impl DevicePtr<T>,
    ) -> Result<()> {
        const DOING: &str = "copy to the device";
        self.check_session(DOING, to.device())?;
        self.check_session(DOING, &from.device)?;
        let range = from.range(DOING, range)?;
        let room = to.len() * size_of::<T>();
        let Some(bytes) = self.bytes(DOING, range.len() * size_of::<T>(), room)? else {
            return Ok(());
        };
        let (to, stream) = (to.address(), self.stream_ref());
        match &from.memory {
            Memory::Ordinary(elements) => {
                self.send_bytes(DOING, to, bytemuck::cast_slice(&elements[range]))
            }
            Memory::Locked(place) => {
                from.is_used_in(stream);
                let copy = CopyFromRegion {
                    to,
                    region: place.mapped.handle,
                    offset: place.offset(range.start * size_of::<T>()),
                    bytes,
                    word: NO_WORD,
                    value: 0,
                    stream,
                };
                self.send(DOING, copy)
            }
        }
    }

    /// Copies the front of `from` to the elements of `range` in `to`, once the work sent before is done. Returns at once
    /// where `to` is page-locked: reading it waits until they are there.
    ///
    /// # Errors
    /// `range` is not in `to`, or `from` is shorter; the session failed.
    pub fn memcpy_dtoh_pinned<T: Pod>(
        &self,
        from: &impl DevicePtr<T>,
        to: &mut PinnedBuffer<T>,
        range: impl RangeBounds<usize>,
    ) -> Result<()> {
        const DOING: &str = "copy from the device";
        self.check_session(DOING, from.device())?;
        self.check_session(DOING, &to.device)?;
        let range = to.range(DOING, range)?;
        let room = from.len() * size_of::<T>();
        let Some(bytes) = self.bytes(DOING, range.len() * size_of::<T>(), room)? else {
            return Ok(());
        };
        let (from, stream) = (from.address(), self.stream_ref());
        match &mut to.memory {
            Memory::Ordinary(elements) => {
                let to = bytemuck::cast_slice_mut(&mut elements[range]);
                self.copy_down_told(DOING, from, to)
            }
            Memory::Locked(place) => {
                let copy = CopyToRegion {
                    from,
                    region: place.mapped.handle,
                    offset: place.offset(range.start * size_of::<T>()),
                    bytes,
                    word: NO_WORD,
                    value: 0,
                    stream,
                };
                to.is_used_in(stream);
                self.send(DOING, copy)
            }
        }
    }
}

impl Device {
    /// Fills the rows of `to` from the elements of `range` in `from`, in which each row begins `from_pitch` elements after the
    /// one before it. Returns at once: writing to `from` waits until they are copied.
    ///
    /// Where `from` is page-locked each row is a request of its own, unless there is nothing between rows on either side: for
    /// many short rows [`memcpy_2d_htod`](Self::memcpy_2d_htod) is faster.
    ///
    /// # Errors
    /// `range` is not in `from`, or has too few rows, or they overlap; the session failed.
    pub fn memcpy_2d_htod_pinned<T: Pod>(
        &self,
        from: &PinnedBuffer<T>,
        range: impl RangeBounds<usize>,
        from_pitch: usize,
        to: &mut impl DeviceRows<T>,
    ) -> Result<()> {
        const DOING: &str = "copy rows to the device";
        self.check_session(DOING, to.device())?;
        self.check_session(DOING, &from.device)?;
        let range = from.range(DOING, range)?;
        self.check_rows(DOING, range.len(), from_pitch, to.width(), to.height())?;
        let place = match &from.memory {
            Memory::Ordinary(elements) => {
                return self.memcpy_2d_htod(&elements[range], from_pitch, to);
            }
            Memory::Locked(place) => place,
        };
        let stream = self.stream_ref();
        from.is_used_in(stream);
        let region = place.mapped.handle;
        self.send_rows(DOING, rows_of(to, place, range.start, from_pitch), |row| {
            CopyFromRegion {
                to: row.there,
                region,
                offset: row.here,
                bytes: row.bytes,
                word: NO_WORD,
                value: 0,
                stream,
            }
        })
    }

    /// Copies the rows of `from` to the elements of `range` in `to`, where each begins `to_pitch` elements after the one
    /// before it, once the work sent before is done. What is between the rows stays as it is. Returns at once where `to` is
    /// page-locked: reading it waits until they are there. Requests are as with
    /// [`memcpy_2d_htod_pinned`](Self::memcpy_2d_htod_pinned).
    ///
    /// # Errors
    /// `range` is not in `to`, or has too little room for the rows, or they overlap; the session failed.
    pub fn memcpy_2d_dtoh_pinned<T: Pod>(
        &self,
        from: &impl DeviceRows<T>,
        to: &mut PinnedBuffer<T>,
        range: impl RangeBounds<usize>,
        to_pitch: usize,
    ) -> Result<()> {
        const DOING: &str = "copy rows from the device";
        self.check_session(DOING, from.device())?;
        self.check_session(DOING, &to.device)?;
        let range = to.range(DOING, range)?;
        self.check_rows(DOING, range.len(), to_pitch, from.width(), from.height())?;
        let place = match &mut to.memory {
            Memory::Ordinary(elements) => {
                return self.memcpy_2d_dtoh(from, &mut elements[range], to_pitch);
            }
            Memory::Locked(place) => place.clone(),
        };
        let stream = self.stream_ref();
        to.is_used_in(stream);
        let region = place.mapped.handle;
        self.send_rows(DOING, rows_of(from, &place, range.start, to_pitch), |row| {
            CopyToRegion {
                from: row.there,
                region,
                offset: row.here,
                bytes: row.bytes,
                word: NO_WORD,
                value: 0,
                stream,
            }
        })
    }

    fn send_rows<O>(
        &self,
        doing: &'static str,
        mut rows: impl Iterator<Item = Row>,
        request: impl Fn(Row) -> O,
    ) -> Result<()>
    where
        O: Operation + Into<Request>,
    {
        self.client()?.noting_requests(|client, requests| {
            rows.try_for_each(|row| {
                requests.push(client.send_quiet(doing, request(row))?);
                Ok(())
            })
        })
    }
}

/// Bytes in one piece: their address on the device, and their offset in a region.
struct Row {
    there: u64,
    here: u64,
    bytes: NonZeroU64,
}

/// The rows on the device, and those from the element `at` of `place` on, `pitch` elements from one to the next.
fn rows_of<T: Pod, R: DeviceRows<T>>(
    rows: &R,
    place: &Place,
    at: usize,
    pitch: usize,
) -> impl Iterator<Item = Row> + use<T, R> {
    let (there, there_pitch) = (rows.address(), rows.pitch());
    let (width, pitch) = (rows.width() * size_of::<T>(), pitch * size_of::<T>());
    let here = place.offset(at * size_of::<T>());
    let (bytes, count) = match there_pitch == width && pitch == width {
        true => (width * rows.height(), rows.height().min(1)),
        false => (width, rows.height()),
    };
    let bytes = NonZeroU64::new(bytes as u64);
    bytes.into_iter().flat_map(move |bytes| {
        (0..count).map(move |row| Row {
            there: there + (row * there_pitch) as u64,
            here: here + (row * pitch) as u64,
            bytes,
        })
    })
}

impl Place {
    /// Offset in the region of the byte `at` of this part.
    fn offset(&self, at: usize) -> u64 {
        (self.part.start + at) as u64
    }
}

impl<T: Pod> PinnedBuffer<T> {
    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the device copies from it and to it by itself.
    pub fn is_page_locked(&self) -> bool {
        matches!(self.memory, Memory::Locked(_))
    }

    /// The address of the first element for kernels, which read and write the memory itself (`cuMemHostGetDevicePointer`).
    /// It is that of [`as_ptr`](Self::as_ptr) unless the mediator has something else there. None: no kernel can reach it, as
    /// where it [is not page-locked](Self::is_page_locked), or on a GPU that cannot map it.
    ///
    /// As an argument of a launch a buffer is passed by this address.
    pub fn device_address(&self) -> Option<NonZeroU64> {
        match &self.memory {
            Memory::Ordinary(_) => None,
            Memory::Locked(place) => place.mapped.there?.checked_add(place.part.start as u64),
        }
    }

    /// The first element. What lies there changes while copies to it are under way: [`wait`](Self::wait) first.
    pub fn as_ptr(&self) -> NonNull<T> {
        match &self.memory {
            Memory::Locked(place) => {
                let start = place.mapped.view.as_ptr().as_ptr();
                let start = start.wrapping_add(place.part.start).cast::<T>();
                NonNull::new(start).expect("the address of a region's byte")
            }
            Memory::Ordinary(elements) => {
                NonNull::new(elements.as_ptr().cast_mut()).unwrap_or(NonNull::dangling())
            }
        }
    }

    /// Has [`wait`](Self::wait), and whoever gets this memory next, wait for what was sent to the stream of `device` so far:
    /// for kernels that have its address otherwise than as an argument of their launch.
    ///
    /// # Errors
    /// `device` is of another session.
    pub fn is_used_by_kernels_of(&self, device: &Device) -> Result<()> {
        device.check_session("use page-locked memory", &self.device)?;
        self.is_used_in(device.stream_ref());
        Ok(())
    }

    /// Waits until no copy uses it. A stream that captures cannot be waited for: that makes its capture invalid, as in CUDA.
    ///
    /// # Errors
    /// Something that was sent before has failed; the session failed.
    pub fn wait(&self) -> Result<()> {
        let streams = std::mem::take(&mut *lock(&self.streams));
        self.device
            .wait_for_streams("wait for page-locked memory", &streams)
    }

    /// Puts `from` at the elements from `at` on, once no copy uses the buffer.
    ///
    /// # Errors
    /// There are fewer; those of [`wait`](Self::wait).
    pub fn write(&mut self, at: usize, from: &[T]) -> Result<()> {
        let end = at.saturating_add(from.len());
        let range = self.range("write to page-locked memory", at..end)?;
        self.wait()?;
        match &mut self.memory {
            Memory::Ordinary(elements) => elements[range].copy_from_slice(from),
            Memory::Locked(place) => {
                let at = place.part.start + range.start * size_of::<T>();
                let written = place.mapped.view.write_at(at, bytemuck::cast_slice(from));
                written.expect(WITHIN);
            }
        }
        Ok(())
    }

    /// Fills `to` with the elements from `at` on, once no copy uses the buffer.
    ///
    /// # Errors
    /// Those of [`write`](Self::write).
    pub fn read(&self, at: usize, to: &mut [T]) -> Result<()> {
        let end = at.saturating_add(to.len());
        let range = self.range("read page-locked memory", at..end)?;
        self.wait()?;
        match &self.memory {
            Memory::Ordinary(elements) => to.copy_from_slice(&elements[range]),
            Memory::Locked(place) => {
                let at = place.part.start + range.start * size_of::<T>();
                let read = place.mapped.view.read_at(at, bytemuck::cast_slice_mut(to));
                read.expect(WITHIN);
            }
        }
        Ok(())
    }

    /// A copy in `stream` may use it from here on.
    fn is_used_in(&self, stream: StreamRef) {
        let mut streams = lock(&self.streams);
        if !streams.contains(&stream) {
            streams.push(stream);
        }
    }

    fn range(&self, doing: &'static str, range: impl RangeBounds<usize>) -> Result<Range<usize>> {
        within(self.len, range).map_err(|what| self.device.wrong(doing, what))
    }
}

impl<T: Pod> KernelArg for PinnedBuffer<T> {
    fn write(&self, parameters: &mut Vec<u8>) {
        let address = self.device_address().map_or(0, NonZeroU64::get);
        parameters.extend_from_slice(&address.to_le_bytes());
    }

    fn device(&self) -> Option<&Device> {
        Some(&self.device)
    }

    fn is_used_by(&self, device: &Device) -> std::result::Result<(), &'static str> {
        if self.device_address().is_none() {
            return Err("memory of this program that no kernel can reach; copy it to the device");
        }
        self.is_used_in(device.stream_ref());
        Ok(())
    }
}

impl<T: Pod> Drop for PinnedBuffer<T> {
    fn drop(&mut self) {
        let Memory::Locked(place) = &self.memory else {
            return;
        };
        let streams = std::mem::take(&mut *lock(&self.streams));
        if streams.is_empty() {
            return self.device.put_place(place);
        }
        let leaving = (place.clone(), streams);
        lock(&self.device.shared.session.pinned)
            .leaving
            .push_back(leaving);
    }
}
