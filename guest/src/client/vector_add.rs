//! Adding vectors, by a kernel of our own: copies to the device, launches, copies back.

use std::num::NonZeroU64;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use vgpu_protocol::handle::Handle;
use vgpu_protocol::op::field::{Bytes, StreamRef};
use vgpu_protocol::op::{
    FenceReply, Launch, MemoryAllocate, MemoryFree, ModuleFunction, ModuleLoad, ModuleUnload,
    StreamCreate, StreamDestroy,
};

use vgpu_protocol::status::{ErrorCode, Status};

use super::gpu::{NON_BLOCKING, explained, is_out_of_memory};
use super::staging::Stores;
use super::{Client, Session, lock};
use crate::data::Data;
use crate::error::{Cause, Error, Result};

const KERNEL: &[u8] = include_bytes!("vector_add.ptx");

/// Threads of a block, and elements of a thread, as the kernel has it.
const THREADS: u32 = 256;
const ELEMENTS_OF_THREAD: u32 = 4;

/// Elements that are on the device at once, in one place: while one piece is computed the next is on its way.
pub(crate) const PIECE: usize = 1 << 19;

/// The same where copies go by way of shared memory: several threads make a copy of this many bytes.
const STAGED_PIECE: usize = 1 << 20;

/// Elements of the smallest place.
const LEAST: usize = 1 << 10;

/// Places that are kept for the next call.
const KEPT: usize = 2;

/// How often a place is looked for that may have been left without a word.
const PLACE_CHECK_INTERVAL: Duration = Duration::from_millis(20);

const DOING: &str = "vector add";

/// The times and bytes of a vector add.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VectorAddReport {
    /// Elements added.
    pub elements: usize,
    /// From the call to its end.
    pub elapsed: Duration,
    /// Time that the device ran kernels of this session, as the mediator's executor measured it, without what an
    /// earlier answer has told. Kernels that ran side by side count once.
    pub device_time: Duration,
}

/// State shared by the vector adds of a session.
#[derive(Debug, Default)]
pub(super) struct Adder {
    kernel: Option<Kernel>,
    /// Places that no add uses now.
    kept: Vec<Place>,
    /// Adds that have one.
    taken: usize,
    /// How often one was left or given back since the session began.
    times_left: u64,
}

/// Failures that any client of the session has heard of while adds are under way.
#[derive(Debug, Default)]
pub(super) struct Heard {
    adds: usize,
    failures: FenceReply,
}

impl Heard {
    /// A fence has told this.
    pub(super) fn note(&mut self, told: &FenceReply) {
        if self.adds > 0 {
            self.failures.add_all(told);
        }
    }

    /// Failures of these requests.
    fn of(&self, requests: &[u32]) -> FenceReply {
        let mut own = FenceReply::default();
        let failures = self.failures.failures.as_slice().iter();
        let failures = failures.filter(|failure| requests.contains(&failure.request_id));
        failures.for_each(|failure| own.add(*failure));
        own
    }
}

/// An add that is under way, however it ends.
struct UnderWay(Arc<Session>);

impl UnderWay {
    fn new(session: &Arc<Session>) -> Self {
        lock(&session.heard).adds += 1;
        Self(Arc::clone(session))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut heard = lock(&self.0.heard);
        heard.adds -= 1;
        if heard.adds == 0 {
            heard.failures = FenceReply::default();
        }
    }
}

/// Held by an add that has a place, or by whoever gives places back; released however that ends.
struct Taken(Arc<Session>);

impl Taken {
    fn new(session: &Arc<Session>) -> Self {
        lock(&session.adder).taken += 1;
        Self(Arc::clone(session))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut adder = lock(&self.0.adder);
        adder.taken -= 1;
        adder.times_left += 1;
        drop(adder);
        self.0.left.notify_all();
    }
}

#[derive(Debug, Clone, Copy)]
struct Kernel {
    module: Handle,
    function: u32,
}

/// Memory for a piece of both vectors, and the stream in whose order it is used.
#[derive(Debug)]
struct Place {
    address: u64,
    elements: usize,
    /// Its own; none is the default stream.
    stream: Option<Handle>,
    /// The quiet requests of the piece that is in it.
    requests: Vec<u32>,
}

impl Place {
    fn stream(&self) -> StreamRef {
        self.stream.map_or(StreamRef::DEFAULT, StreamRef::of)
    }

    /// Offset of the second vector: a multiple of the bytes that a thread takes at once.
    fn second(&self) -> u64 {
        self.address + bytes_of(self.elements)
    }
}

/// Whether a place was refused that may be there later.
fn is_short(error: &Error) -> bool {
    let handles = Status::from(ErrorCode::QuotaHandles);
    is_out_of_memory(error) || error.status() == Some(handles)
}

fn bytes_of(elements: usize) -> u64 {
    (elements * size_of::<f32>()) as u64
}

impl Client {
    /// Writes `a[i] + b[i]` to `out[i]` for every `i`.
    ///
    /// The vectors travel from where they are to where the sum belongs: no copy of them is made
    /// here, whatever their length. The kernel is loaded with the first call of a session, and up to 16 MiB of
    /// device memory are kept for the next one. There is no limit on the total time, only on the time in which
    /// nothing moves ([`Options::stall_timeout`](crate::Options::stall_timeout)).
    ///
    /// # Errors
    /// Vectors of different lengths; whatever the mediator answers. Then `out` holds a part of the
    /// sum, or none of it.
    pub fn vector_add(&mut self, a: &[f32], b: &[f32], out: &mut [f32]) -> Result<VectorAddReport> {
        self.vector_add_watched(a, b, out, |_| ())
    }

    /// Like [`vector_add`](Self::vector_add); `progress` receives how many elements are complete. While
    /// it runs, no other client of the session goes on.
    ///
    /// # Errors
    /// Those of [`vector_add`](Self::vector_add).
    pub fn vector_add_watched(
        &mut self,
        a: &[f32],
        b: &[f32],
        out: &mut [f32],
        mut progress: impl FnMut(usize),
    ) -> Result<VectorAddReport> {
        let start = Instant::now();
        if a.len() != b.len() || a.len() != out.len() {
            let what = format!(
                "vectors of different lengths: a has {} elements, b {}, out {}",
                a.len(),
                b.len(),
                out.len()
            );
            return Err(self.error(DOING, Cause::Input(what)));
        }
        let mut device_ns = 0;
        if !a.is_empty() {
            let _under_way = UnderWay::new(&self.session);
            device_ns = self.add(a, b, out, &mut progress)?;
        }
        Ok(VectorAddReport {
            elements: a.len(),
            elapsed: start.elapsed(),
            device_time: Duration::from_nanos(device_ns),
        })
    }

    fn add(
        &mut self,
        a: &[f32],
        b: &[f32],
        out: &mut [f32],
        progress: &mut dyn FnMut(usize),
    ) -> Result<u64> {
        let kernel = self.kernel()?;
        let (place, taken) = self.place(a.len())?;
        let mut places = vec![place];
        let added = self.add_pieces(kernel, &mut places, a, b, out, progress);
        self.leave(places, added.is_ok());
        drop(taken);
        added
    }

    /// Adds piece by piece; returns how long the device worked.
    fn add_pieces(
        &mut self,
        kernel: Kernel,
        places: &mut Vec<Place>,
        a: &[f32],
        b: &[f32],
        out: &mut [f32],
        progress: &mut dyn FnMut(usize),
    ) -> Result<u64> {
        let stores = Stores::of(size_of_val(a));
        let size = places[0].elements;
        if a.len() > size {
            places.extend(self.another_place(size));
        }
        let mut device_ns = 0;
        let mut sums = out.chunks_mut(size);
        let mut complete = 0;
        let mut finish = |client: &mut Self, place: &mut Place| -> Result<u64> {
            let sums = sums.next().expect("as many pieces as were begun");
            let mut count = |bytes: usize| progress(complete + bytes / size_of::<f32>());
            let elements = sums.len();
            let ns = client.finish(place, sums, stores, &mut count)?;
            complete += elements;
            Ok(ns)
        };
        let many = places.len();
        let pieces = a.len().div_ceil(size);
        for (k, (a, b)) in a.chunks(size).zip(b.chunks(size)).enumerate() {
            if k >= many {
                device_ns += finish(self, &mut places[k % many])?;
            }
            self.begin(kernel, &mut places[k % many], (a, b), stores)?;
        }
        for k in pieces.saturating_sub(many)..pieces {
            device_ns += finish(self, &mut places[k % many])?;
        }
        Ok(device_ns)
    }

    /// Sends a piece to its place, and the launch behind it, without a wait.
    fn begin(
        &mut self,
        kernel: Kernel,
        place: &mut Place,
        (a, b): (&[f32], &[f32]),
        stores: Stores,
    ) -> Result<()> {
        let stream = place.stream();
        for (to, vector) in [(place.address, a), (place.second(), b)] {
            let bytes = bytemuck::cast_slice(vector);
            self.copy_up(DOING, to, bytes, stores, stream, &mut place.requests)?;
        }
        let elements = u32::try_from(a.len()).expect("no piece is longer");
        let blocks = elements.div_ceil(ELEMENTS_OF_THREAD).div_ceil(THREADS);
        let addresses = [place.address, place.second()].map(u64::to_le_bytes);
        let parameters = [addresses.as_flattened(), &elements.to_le_bytes()].concat();
        let launch = Launch {
            module: kernel.module,
            function: kernel.function,
            grid: [blocks, 1, 1],
            block: [THREADS, 1, 1],
            shared_bytes: 0,
            stream,
            deadline_ms: 0,
            parameters: Bytes::new(&parameters).expect("short"),
            attributes: Default::default(),
        };
        let id = self.send_quiet(DOING, launch)?;
        place.requests.push(id);
        Ok(())
    }

    /// Takes the sums of a piece; returns how long the device worked.
    fn finish(
        &mut self,
        place: &mut Place,
        sums: &mut [f32],
        stores: Stores,
        progress: &mut dyn FnMut(usize),
    ) -> Result<u64> {
        let sums = bytemuck::cast_slice_mut(sums);
        let (from, stream) = (place.address, place.stream());
        let copied = self.copy_down(DOING, from, sums, stores, stream, progress);
        let device_ns = explained(self, copied)?;
        let requests = std::mem::take(&mut place.requests);
        self.check_failures(&requests)?;
        Ok(device_ns)
    }

    /// An error if one of these quiet requests has failed; failures of others stay for the next fence.
    fn check_failures(&mut self, requests: &[u32]) -> Result<()> {
        if self.quiet_failed {
            let failures = self.ask_for_failures()?;
            lock(&self.session.failures).add_all(&failures);
        }
        // A fence of another client may have heard of them.
        let heard = lock(&self.session.heard);
        let mut own = heard.of(requests);
        own.dropped = heard.failures.dropped;
        drop(heard);
        match own.is_empty() {
            true => Ok(()),
            false => Err(self.error(DOING, Cause::Failed(own))),
        }
    }

    /// The kernel, loaded if this is the session's first add. Other adds wait for that.
    fn kernel(&mut self) -> Result<Kernel> {
        let session = Arc::clone(&self.session);
        let mut adder = lock(&session.adder);
        if let Some(kernel) = adder.kernel {
            return Ok(kernel);
        }
        let Some(module) = lock(&session.modules).mint() else {
            let what = "as many modules as this session may have; drop one first";
            return Err(self.error(DOING, Cause::Input(what.to_owned())));
        };
        let loaded = self.load_kernel(module);
        match &loaded {
            Ok(kernel) => adder.kernel = Some(*kernel),
            Err(_) => {
                // The mediator remembers a module that could not be loaded, unless the session is over.
                if self.send_quiet(DOING, ModuleUnload { module }).is_ok() {
                    lock(&session.modules).release(module);
                }
            }
        }
        loaded
    }

    fn load_kernel(&mut self, module: Handle) -> Result<Kernel> {
        let mut data = Data::up(KERNEL);
        let bytes = NonZeroU64::new(KERNEL.len() as u64).expect("a kernel");
        let loaded = self.request_with(DOING, ModuleLoad { module, bytes }, &mut data);
        explained(self, loaded)?;
        let name = "add".into();
        let function = self
            .request(DOING, ModuleFunction { module, name })?
            .function;
        Ok(Kernel { module, function })
    }

    /// A place for `elements`, or for as many of them as fit into memory at once. If there is no memory at all,
    /// waits for another add of the session.
    fn place(&mut self, elements: usize) -> Result<(Place, Taken)> {
        let most = match elements > PIECE && self.has_staging(DOING)? {
            true => STAGED_PIECE,
            false => PIECE,
        };
        let wanted = elements.next_power_of_two().clamp(LEAST, most);
        let session = Arc::clone(&self.session);
        // One add asks at a time. Whoever has memory is then counted before the next one is refused, and two
        // that find none cannot wait for each other.
        let _asking = lock(&session.asking);
        loop {
            let mut adder = lock(&session.adder);
            let (kept, times_left) = (adder.kept.pop(), adder.times_left);
            drop(adder);
            let place = match kept {
                Some(place) if place.elements >= wanted => Ok(place),
                kept => {
                    kept.iter().for_each(|place| self.give_back_place(place));
                    self.new_place(wanted)
                }
            };
            match place {
                Err(error) if is_short(&error) && self.wait_for_place(times_left) => {}
                Err(error) => return Err(error),
                Ok(place) => return Ok((place, Taken::new(&session))),
            }
        }
    }

    /// Waits until another add leaves a place, or for a while. Returns whether to look again: there is another add,
    /// or one has left since `times_left` was read.
    fn wait_for_place(&self, times_left: u64) -> bool {
        let adder = lock(&self.session.adder);
        if adder.times_left != times_left {
            return true;
        }
        if adder.taken == 0 {
            return false;
        }
        let left = self.session.left.wait_timeout(adder, PLACE_CHECK_INTERVAL);
        drop(left.unwrap_or_else(PoisonError::into_inner));
        true
    }

    fn new_place(&mut self, mut wanted: usize) -> Result<Place> {
        loop {
            let bytes = NonZeroU64::new(2 * bytes_of(wanted)).expect("not 0");
            let allocated = self.request(DOING, MemoryAllocate { bytes });
            match allocated {
                Err(error) if is_out_of_memory(&error) && wanted > LEAST => wanted /= 2,
                allocated => {
                    let address = explained(self, allocated)?.address;
                    return Ok(Place {
                        address,
                        elements: wanted,
                        stream: None,
                        requests: Vec::new(),
                    });
                }
            }
        }
    }

    /// A second place of this size with a stream of its own, if the session may have one.
    fn another_place(&mut self, elements: usize) -> Option<Place> {
        let mut adder = lock(&self.session.adder);
        let fits = |place: &Place| place.stream.is_some() && place.elements == elements;
        let kept = adder.kept.iter().position(fits);
        if let Some(at) = kept {
            return Some(adder.kept.swap_remove(at));
        }
        drop(adder);
        let bytes = NonZeroU64::new(2 * bytes_of(elements)).expect("not 0");
        let address = self.request(DOING, MemoryAllocate { bytes }).ok()?.address;
        let stream = lock(&self.session.streams).mint();
        let mut place = Place {
            address,
            elements,
            stream,
            requests: Vec::new(),
        };
        let create = stream.map(|stream| StreamCreate {
            stream,
            flags: NON_BLOCKING,
            priority: 0,
        });
        // Waited for, as it may be refused: that is no failure of the add.
        let made = create.is_some_and(|create| self.request(DOING, create).is_ok());
        if !made {
            self.give_back_place(&place);
            place.stream = None;
            return None;
        }
        Some(place)
    }

    /// Keeps the places used for the next call, or gives them back.
    fn leave(&mut self, places: Vec<Place>, sound: bool) {
        for place in places {
            let mut adder = lock(&self.session.adder);
            if sound && adder.kept.len() < KEPT {
                adder.kept.push(place);
                continue;
            }
            drop(adder);
            self.give_back_place(&place);
        }
    }

    /// Gives back all places that no add uses; whether there were any.
    pub(super) fn give_back_places(&mut self) -> bool {
        let session = Arc::clone(&self.session);
        let mut adder = lock(&session.adder);
        if adder.kept.is_empty() {
            return false;
        }
        let kept = std::mem::take(&mut adder.kept);
        adder.taken += 1;
        drop(adder);
        let _taken = Taken(session);
        kept.iter().for_each(|place| self.give_back_place(place));
        true
    }

    fn give_back_place(&mut self, place: &Place) {
        let address = place.address;
        // A session that has failed has nothing to give back to.
        let _ = self.send_quiet(DOING, MemoryFree { address });
        if let Some(stream) = place.stream
            && self.send_quiet(DOING, StreamDestroy { stream }).is_ok()
        {
            lock(&self.session.streams).release(stream);
        }
    }
}
