//! Queues of work for a device, and events between them.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::allocations::{PIECE, Range, Rows, Transfer};
use crate::context::Context;
use crate::error::{Code, Error, invalid};
use crate::grid::{Grid, Report};
use crate::launch::{self, Launch};
use crate::loaded::Loaded;
use crate::module::Kernel;
use crate::pool::{Job, Pool, Seat, Step};

/// The kinds of work for a stream.
pub enum Work {
    /// Runs a kernel. `parameters` are packed as in [`Kernel::parameters`]; the deadline counts
    /// from the launch's first step.
    Launch {
        /// The kernel's module on the device.
        loaded: Loaded,
        /// The kernel.
        kernel: Kernel,
        /// Grid, block, limits.
        how: Launch,
        /// The packed parameters.
        parameters: Vec<u8>,
    },
    /// Copies to the device.
    Write {
        /// Address.
        to: u64,
        /// Returned in [`Done::data`], for reuse.
        data: Vec<u8>,
    },
    /// Copies from the device into [`Done::data`].
    Read {
        /// Address.
        from: u64,
        /// Number of bytes.
        bytes: u64,
    },
    /// Copies within the device; two ranges may overlap.
    Copy {
        /// The destination.
        to: Rows,
        /// The source: as many rows of the same length.
        from: Rows,
    },
    /// Fills with a repeated element.
    Fill {
        /// Address and pitch are multiples of `size`, and so is the width.
        to: Rows,
        /// The element: its low bytes.
        value: u32,
        /// Bytes of an element: 1, 2 or 4.
        size: u32,
    },
    /// Runs code of the host. It occupies a thread of the device, so it should take no longer than
    /// a copy of some hundred kilobytes; submit longer work in pieces. Not run after a fault.
    Host(Box<dyn FnOnce() -> Result<(), Error> + Send>),
    /// Marks the place in the stream, and notes the time when it is reached.
    Record(Event),
    /// Waits until the event's latest record at the time of submission is reached.
    Wait(Event),
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Launch { kernel, how, .. } => write!(
                f,
                "Launch({}, {:?} x {:?})",
                kernel.name, how.grid, how.block
            ),
            Self::Write { to, data } => write!(f, "Write({} bytes to 0x{to:x})", data.len()),
            Self::Read { from, bytes } => write!(f, "Read({bytes} bytes from 0x{from:x})"),
            Self::Copy { to, from } => write!(f, "Copy({from:?} to {to:?})"),
            Self::Fill { to, size, .. } => write!(f, "Fill({to:?} with elements of {size})"),
            Self::Host(_) => f.write_str("Host"),
            Self::Record(_) => f.write_str("Record"),
            Self::Wait(_) => f.write_str("Wait"),
        }
    }
}

/// The result of work.
#[derive(Debug)]
pub struct Done {
    /// For work other than a launch the report is zeros.
    pub result: Result<Report, Error>,
    /// The bytes read, or the buffer of a write.
    pub data: Vec<u8>,
    /// Start of its first step.
    pub began: Instant,
    /// End of its last step.
    pub ended: Instant,
}

type Tell = Box<dyn FnOnce(Done) + Send>;

/// A queue: its work is done in order. Streams run concurrently on the device's threads, a slice at
/// a time in turn, so that an endless kernel of one does not stop another. Clones are the same
/// queue.
#[derive(Clone)]
pub struct Stream {
    queue: Arc<Queue>,
    /// The device lives as long as its streams.
    _device: Arc<Owner>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({} pending)", self.pending())
    }
}

/// Ends the device with its last handle.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) context: Arc<Context>,
    pub(crate) pool: Arc<Pool>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        let text = "the device has ended";
        self.context
            .fail(Error::new(Code::ContextIsDestroyed, text));
        self.pool.end();
    }
}

struct Queue {
    context: Arc<Context>,
    pool: Arc<Pool>,
    state: Mutex<Queued>,
}

#[derive(Default)]
struct Queued {
    items: VecDeque<Item>,
    /// An item is being executed, and is not in the list.
    busy: bool,
    /// A thread is starting items, and starts the next one too if `ended` is set meanwhile.
    beginning: bool,
    /// The last item to be started has ended while its thread was still starting it.
    ended: bool,
    /// Items whose end has not been reported.
    pending: usize,
}

impl Queued {
    /// Takes the next item, for a thread that will start it; without one, the stream is idle.
    fn take_next(&mut self) -> Option<Item> {
        let next = self.items.pop_front();
        self.busy = next.is_some();
        self.beginning = self.busy;
        next
    }
}

struct Item {
    work: Work,
    done: Tell,
    /// For a record or a wait: the number of the event's record.
    record: u64,
}

impl Stream {
    pub(crate) fn new(device: Arc<Owner>) -> Self {
        Self {
            queue: Arc::new(Queue {
                context: Arc::clone(&device.context),
                pool: Arc::clone(&device.pool),
                state: Mutex::default(),
            }),
            _device: device,
        }
    }

    /// Queues work and returns at once. `done` is called exactly once, on a thread of the device
    /// and in the order of the stream; it must not block, and may submit more.
    ///
    /// Only the caller bounds the queue: see [`Self::pending`].
    ///
    /// # Errors
    ///
    /// Errors of the call itself; `done` is then never called: 1 for an impossible launch or a
    /// range that is not allocated, 400 for a kernel of another module, 2 if the system cannot
    /// create a thread, and the error of an earlier fault. Later errors are passed to `done`: that
    /// of a fault in the kernel (700, 702, 710, 715 to 719), which every later call on the device
    /// returns too, or 701 and 720 for a launch that needs more memory than there is.
    pub fn submit(
        &self,
        work: Work,
        done: impl FnOnce(Done) + Send + 'static,
    ) -> Result<(), Error> {
        self.queue.check(&work)?;
        if !self.queue.pool.is_alive() {
            return Err(Error::new(Code::OutOfMemory, "no thread to run it on"));
        }
        let record = match &work {
            Work::Record(e) => e.announce(),
            Work::Wait(e) => e.latest(),
            _ => 0,
        };
        let item = Item {
            work,
            done: Box::new(done),
            record,
        };
        let first = {
            let mut q = self.queue.lock();
            q.pending += 1;
            if q.busy {
                q.items.push_back(item);
                None
            } else {
                q.busy = true;
                q.beginning = true;
                Some(item)
            }
        };
        if let Some(item) = first {
            self.queue.begin(item, false);
        }
        Ok(())
    }

    /// Submitted work whose end has not been reported yet: none, once `done` of the last one has returned.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.queue.lock().pending
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Queued> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The checks of work that are possible before its turn.
    fn check(&self, work: &Work) -> Result<(), Error> {
        self.context.check()?;
        let inside = |at: u64, bytes: u64| {
            let a = self.context.allocations();
            a.region(at, bytes).map(|_| ())
        };
        match work {
            Work::Launch {
                loaded,
                kernel,
                how,
                parameters,
            } => launch::check(loaded, kernel, how, parameters),
            Work::Write { to, data } => inside(*to, data.len() as u64),
            Work::Read { from, bytes } => inside(*from, *bytes),
            Work::Copy { to, from } => {
                same_shape(*to, *from)?;
                inside(from.address, from.span()?)?;
                inside(to.address, to.span()?)
            }
            Work::Fill { to, size, .. } => {
                check_fill(*to, *size)?;
                inside(to.address, to.span()?)
            }
            Work::Host(_) | Work::Record(_) | Work::Wait(_) => Ok(()),
        }
    }

    /// Starts an item, and those after it that end at once, as all do after a fault: in a loop,
    /// since a program may have queued more than a stack can hold. The caller has set `beginning`.
    fn begin(self: &Arc<Self>, item: Item, inside: bool) {
        let mut item = item;
        loop {
            Arc::clone(self).start(item, inside);
            let mut q = self.lock();
            if !std::mem::take(&mut q.ended) {
                q.beginning = false;
                return;
            }
            let Some(next) = q.take_next() else {
                return;
            };
            drop(q);
            item = next;
        }
    }

    /// Starts an item; no other of the stream is being executed.
    fn start(self: Arc<Self>, item: Item, inside: bool) {
        let Item { work, done, record } = item;
        if let Work::Launch {
            loaded,
            kernel,
            how,
            parameters,
        } = work
        {
            let queue = Arc::clone(&self);
            let finish = move |result, began| {
                queue.finish(done, result, Vec::new(), began);
            };
            let context = Arc::clone(&self.context);
            let grid = Grid::new(context, loaded, kernel, how, parameters, Box::new(finish));
            self.pool.push(Arc::new(grid), inside);
            return;
        }
        let pool = Arc::clone(&self.pool);
        let event = match &work {
            Work::Wait(e) => Some(e.clone()),
            _ => None,
        };
        let job = Arc::new(Single(Mutex::new(Some(Task {
            queue: self,
            work,
            done: Some(done),
            record,
            began: None,
            at: 0,
            data: Vec::new(),
            transfer: None,
        }))));
        match event {
            Some(e) => e.when(record, pool, job, inside),
            None => pool.push(job, inside),
        }
    }

    /// Reports the end of an item, then starts the next.
    fn finish(
        self: Arc<Self>,
        done: Tell,
        result: Result<Report, Error>,
        data: Vec<u8>,
        began: Instant,
    ) {
        let told = Done {
            result,
            data,
            began,
            ended: Instant::now(),
        };
        if catch_unwind(AssertUnwindSafe(|| done(told))).is_err() {
            let text = "the function that was told the end of some work panicked";
            self.context.fail(Error::new(Code::Unknown, text));
        }
        let next = {
            let mut q = self.lock();
            // Not before it was reported: who sees an idle stream may report work of its own behind this.
            q.pending -= 1;
            if q.beginning {
                // The starting thread is below on this stack, or another thread that is about to
                // check.
                q.ended = true;
                return;
            }
            q.take_next()
        };
        if let Some(item) = next {
            self.begin(item, true);
        }
    }
}

/// Whether rows can be filled with elements of this size.
pub(crate) fn check_fill(to: Rows, size: u32) -> Result<(), Error> {
    let whole = |n: u64| n.is_multiple_of(size.into());
    let pitched = to.height < 2 || whole(to.pitch);
    if !matches!(size, 1 | 2 | 4) || !whole(to.address) || !whole(to.width) || !pitched {
        return invalid(format!("elements of {size} bytes in {to:?}"));
    }
    Ok(())
}

/// Whether a copy has as many bytes on both sides.
pub(crate) fn same_shape(to: Rows, from: Rows) -> Result<(), Error> {
    if (to.width, to.height) != (from.width, from.height) {
        return invalid(format!("a copy of {from:?} to {to:?}"));
    }
    Ok(())
}

/// A job for one thread.
struct Single(Mutex<Option<Task>>);

impl Single {
    fn lock(&self) -> MutexGuard<'_, Option<Task>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job for Single {
    fn seats(&self) -> u32 {
        1
    }

    fn sit(self: Arc<Self>) -> Option<Box<dyn Seat>> {
        let task = self.lock().take()?;
        Some(Box::new(task))
    }

    fn has_seats(&self) -> bool {
        self.lock().is_some()
    }
}

/// Work other than a launch, being executed.
struct Task {
    queue: Arc<Queue>,
    work: Work,
    done: Option<Tell>,
    record: u64,
    began: Option<Instant>,
    /// Bytes done so far.
    at: u64,
    data: Vec<u8>,
    transfer: Option<Transfer>,
}

impl Seat for Task {
    fn is_over(&self, _now: Instant) -> bool {
        self.queue.context.is_faulty()
    }

    fn step(&mut self) -> Step {
        let began = *self.began.get_or_insert_with(Instant::now);
        let went = catch_unwind(AssertUnwindSafe(|| self.go_on()));
        let result = match went {
            Ok(Ok(true)) => return Step::More,
            Ok(Ok(false)) => Ok(Report::default()),
            Ok(Err(e)) => Err(e),
            Err(_) => Err(Error::new(Code::Unknown, "the code of the host panicked")),
        };
        if let Err(e) = &result
            && e.code.is_sticky()
        {
            self.queue.context.fail(e.clone());
        }
        if let Work::Record(e) = &self.work {
            // After a fault too: whoever waits for it has the same fault.
            e.reach(self.record);
        }
        let mut data = std::mem::take(&mut self.data);
        if let Work::Write { data: d, .. } = &mut self.work {
            data = std::mem::take(d);
        } else if result.is_err() {
            data = Vec::new();
        }
        self.transfer = None;
        if let Some(done) = self.done.take() {
            Arc::clone(&self.queue).finish(done, result, data, began);
        }
        Step::Left
    }
}

impl Task {
    /// Does a part of it. True: there is more.
    fn go_on(&mut self) -> Result<bool, Error> {
        let context = &self.queue.context;
        context.check()?;
        let range = |at: u64, bytes: u64| {
            let region = context.allocations().region(at, bytes)?;
            Ok::<_, Error>(Range::new(region, at))
        };
        if let Some(t) = &mut self.transfer {
            return t.step();
        }
        // One piece at a time; the place is looked up again for each, so a range freed meanwhile is
        // refused.
        let part = |all: u64| (all - self.at).min(PIECE as u64);
        let cut = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        match &mut self.work {
            Work::Write { to, data } => {
                let all = data.len() as u64;
                let n = part(all);
                range(*to, all)?.write(self.at, &data[cut(self.at)..cut(self.at + n)])?;
                self.at += n;
                Ok(self.at < all)
            }
            Work::Read { from, bytes } => {
                let n = part(*bytes);
                let from = range(*from, *bytes)?;
                if self.at == 0 {
                    let room = self.data.try_reserve_exact(cut(*bytes));
                    room.map_err(|_| Error::new(Code::OutOfMemory, format!("{bytes} bytes")))?;
                }
                let old = self.data.len();
                self.data.resize(old + cut(n), 0);
                from.read(self.at, &mut self.data[old..])?;
                self.at += n;
                Ok(self.at < *bytes)
            }
            Work::Copy { to, from } => {
                let (to, from) = (
                    (range(to.address, to.span()?)?, *to),
                    (range(from.address, from.span()?)?, *from),
                );
                self.transfer = Some(Transfer::copy(to, from));
                Ok(true)
            }
            Work::Fill { to, value, size } => {
                let element = &value.to_le_bytes()[..*size as usize];
                let there = range(to.address, to.span()?)?;
                self.transfer = Some(Transfer::fill((there, *to), element));
                Ok(true)
            }
            Work::Host(_) => {
                let nothing = Work::Wait(Event::new());
                if let Work::Host(f) = std::mem::replace(&mut self.work, nothing) {
                    f()?;
                }
                Ok(false)
            }
            Work::Record(_) | Work::Wait(_) | Work::Launch { .. } => Ok(false),
        }
    }
}

/// A place in a stream that other streams wait for, with the time when it is reached. Clones are
/// the same event. It may be recorded repeatedly; a later record does not affect those that wait
/// already.
#[derive(Clone, Default)]
pub struct Event(Arc<Mutex<Records>>);

#[derive(Default)]
struct Records {
    /// Records submitted, and the newest one reached.
    announced: u64,
    reached: u64,
    time: Option<Instant>,
    waiting: Vec<(u64, Arc<Pool>, Arc<Single>)>,
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_done() {
            "Event(done)"
        } else {
            "Event(not done)"
        })
    }
}

impl Event {
    /// An event that was never recorded: waiting for it ends at once.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Records> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the latest record submitted is reached; true if there was none.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let r = self.lock();
        r.reached >= r.announced
    }

    /// The time at which the newest reached record was reached.
    #[must_use]
    pub fn time(&self) -> Option<Instant> {
        self.lock().time
    }

    fn announce(&self) -> u64 {
        let mut r = self.lock();
        r.announced += 1;
        r.announced
    }

    fn latest(&self) -> u64 {
        self.lock().announced
    }

    /// Marks a record as reached and resumes those that wait for it.
    fn reach(&self, record: u64) {
        let ready = {
            let mut r = self.lock();
            r.reached = r.reached.max(record);
            r.time = Some(Instant::now());
            let all = std::mem::take(&mut r.waiting);
            let (ready, rest): (Vec<_>, Vec<_>) =
                all.into_iter().partition(|(n, ..)| *n <= r.reached);
            r.waiting = rest;
            ready
        };
        for (_, pool, job) in ready {
            pool.push(job, false);
        }
    }

    /// Hands a job to its pool once a record is reached.
    fn when(&self, record: u64, pool: Arc<Pool>, job: Arc<Single>, inside: bool) {
        {
            let mut r = self.lock();
            if r.reached < record {
                r.waiting.push((record, pool, job));
                return;
            }
        }
        pool.push(job, inside);
    }
}
