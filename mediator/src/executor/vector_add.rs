//! Vector adds under way on an executor: which chunk is in which slot.
//!
//! Data goes from the guest's stream straight into a slot, and the sums from the slot straight to the
//! stream. Slots are used in turn, so the oldest submitted one is always the next to be sent.

use std::collections::VecDeque;

use vgpu_protocol::op::{Body, VECTOR_ADD_CHUNK, VectorAdd, VectorAddReply};

use super::ExecutorError;
use crate::session::INITIAL_CREDIT;
use crate::session::backend::Event;

// Floats travel as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"));

/// Bytes of one f32.
const ELEMENT: usize = size_of::<f32>();

/// Elements of a chunk, at most.
#[allow(clippy::cast_possible_truncation, reason = "a small constant")]
pub(super) const CHUNK: usize = VECTOR_ADD_CHUNK as usize;

/// Bytes of data that go up for a whole chunk.
const CHUNK_UP: u64 = 2 * ELEMENT as u64 * VECTOR_ADD_CHUNK;

// The first slot takes what comes before any room is granted.
const _: () = assert!(INITIAL_CREDIT as u64 <= CHUNK_UP);

/// Chunks on their way through a device: each slot is filled, submitted, and read back.
///
/// A slot is free at first and taken from [`submit`](Self::submit) until the session has sent its
/// result, when [`input`](Self::input) may be called for it again. Slots are used in turn.
///
/// # Panics
/// Methods may panic when a slot does not exist, is used in the wrong state, or for more than
/// [`CHUNK`] elements: those are this module's own mistakes, never a guest's.
pub(super) trait Pipeline: Send {
    /// How many chunks may be under way at once; at least 1.
    fn slots(&self) -> usize;

    /// The free slot's two inputs, `elements` long each. What they hold before is unspecified.
    ///
    /// # Errors
    /// There is no memory for the slot; whatever the device says.
    fn input(
        &mut self,
        slot: usize,
        elements: usize,
    ) -> Result<(&mut [f32], &mut [f32]), ExecutorError>;

    /// Starts adding the first `elements` of the slot's inputs. Does not wait for the device.
    ///
    /// # Errors
    /// Whatever the device says; the slot is free again then.
    fn submit(&mut self, slot: usize, elements: usize) -> Result<(), ExecutorError>;

    /// Whether the submitted slot's result is there. Does not wait.
    ///
    /// # Errors
    /// Whatever the device says.
    fn is_done(&mut self, slot: usize) -> Result<bool, ExecutorError>;

    /// The result of a slot that is done.
    fn result(&self, slot: usize) -> &[f32];

    /// Nanoseconds that the device worked so far on chunks that are done, each counted once.
    fn device_ns(&self) -> u64;
}

/// All vector adds of an executor.
#[derive(Debug)]
pub(super) struct VectorAdds<P> {
    adds: Vec<Add<P>>,
    events: VecDeque<Event>,
}

impl<P> Default for VectorAdds<P> {
    fn default() -> Self {
        Self {
            adds: Vec::new(),
            events: VecDeque::new(),
        }
    }
}

/// One of them.
#[derive(Debug)]
struct Add<P> {
    id: u32,
    pipeline: P,
    /// Elements whose chunk has not begun to come.
    left: u64,
    filling: Option<Filling>,
    /// Chunks submitted and not yet sent whole, oldest first, and how many of them are done.
    submitted: VecDeque<Chunk>,
    done: usize,
    /// Bytes of the oldest chunk's result that were sent.
    sent: usize,
    next_slot: usize,
}

#[derive(Debug, Clone, Copy)]
struct Chunk {
    slot: usize,
    elements: usize,
}

#[derive(Debug, Clone, Copy)]
struct Filling {
    chunk: Chunk,
    received: usize,
}

impl<P: Pipeline> VectorAdds<P> {
    /// Begins one, whose data is about to come.
    pub(super) fn start(&mut self, id: u32, add: &VectorAdd, pipeline: P) {
        // Beyond what every request may send at once.
        let room = CHUNK_UP * pipeline.slots() as u64 - u64::from(INITIAL_CREDIT);
        self.events.push_back(Event::Room(id, room));
        self.adds.push(Add {
            id,
            pipeline,
            left: add.elements.get(),
            filling: None,
            submitted: VecDeque::new(),
            done: 0,
            sent: 0,
            next_slot: 0,
        });
    }

    /// A request could not be begun.
    pub(super) fn refuse(&mut self, id: u32, error: &ExecutorError) {
        self.events.push_back(Event::Done(id, Err(error.into())));
        if error.ends_session() {
            self.events.push_back(Event::Lost(error.into()));
        }
    }

    /// The device was lost, though no call for a request said so.
    pub(super) fn lose(&mut self, error: &ExecutorError) {
        self.events.push_back(Event::Lost(error.into()));
    }

    pub(super) fn input(&mut self, id: u32) -> &mut [u8] {
        let Some(add) = self.adds.iter_mut().find(|add| add.id == id) else {
            return &mut [];
        };
        if let Err(error) = add.prepare() {
            self.fail(id, &error);
            return &mut [];
        }
        // Looked up once more, as the borrow of the failing case would last.
        let add = self.adds.iter_mut().find(|add| add.id == id);
        add.and_then(Add::room).unwrap_or_default()
    }

    pub(super) fn filled(&mut self, id: u32, n: usize) {
        let Some(add) = self.adds.iter_mut().find(|add| add.id == id) else {
            return;
        };
        if let Err(error) = add.filled(n).and_then(|()| add.look()) {
            self.fail(id, &error);
        }
    }

    pub(super) fn output(&mut self, id: u32) -> &[u8] {
        let add = self.adds.iter().find(|add| add.id == id);
        add.map_or(&[], |add| add.output())
    }

    pub(super) fn sent(&mut self, id: u32, n: usize) {
        let Some(add) = self.adds.iter_mut().find(|add| add.id == id) else {
            return;
        };
        if add.sent(n) {
            self.events.push_back(Event::Room(id, CHUNK_UP));
        }
        if add.is_over() {
            let device_ns = add.pipeline.device_ns();
            let reply = VectorAddReply { device_ns }.encode();
            self.events.push_back(Event::Worked(device_ns));
            self.events.push_back(Event::Done(id, Ok(reply)));
            self.adds.retain(|add| add.id != id);
        }
    }

    /// Whether this one is under way.
    pub(super) fn has(&self, id: u32) -> bool {
        self.adds.iter().any(|add| add.id == id)
    }

    pub(super) fn cancel(&mut self, id: u32) {
        self.adds.retain(|add| add.id != id);
        self.events.retain(|event| event.request() != Some(id));
    }

    /// Whether the device has work whose end is not known yet.
    pub(super) fn awaits_device(&self) -> bool {
        self.adds.iter().any(|add| add.done < add.submitted.len())
    }

    /// What has happened, once the device has been asked.
    pub(super) fn next_event(&mut self) -> Option<Event> {
        if self.events.is_empty() {
            let mut failed = None;
            for add in &mut self.adds {
                let before = add.done;
                match add.look() {
                    Ok(()) if add.done > before => self.events.push_back(Event::Moved(add.id)),
                    Ok(()) => {}
                    Err(error) => failed = failed.or(Some((add.id, error))),
                }
            }
            if let Some((id, error)) = failed {
                self.fail(id, &error);
            }
        }
        self.events.pop_front()
    }

    fn fail(&mut self, id: u32, error: &ExecutorError) {
        self.cancel(id);
        self.refuse(id, error);
    }
}

impl<P: Pipeline> Add<P> {
    /// Makes the next chunk's slot ready for its data, if one is due and a slot is free.
    fn prepare(&mut self) -> Result<(), ExecutorError> {
        if self.filling.is_some() || self.left == 0 || self.submitted.len() >= self.pipeline.slots()
        {
            return Ok(());
        }
        let elements = usize::try_from(self.left).unwrap_or(CHUNK).min(CHUNK);
        let slot = self.next_slot;
        self.pipeline.input(slot, elements)?;
        self.left -= elements as u64;
        self.filling = Some(Filling {
            chunk: Chunk { slot, elements },
            received: 0,
        });
        Ok(())
    }

    fn room(&mut self) -> Option<&mut [u8]> {
        let Filling { chunk, received } = self.filling?;
        let half = chunk.elements * ELEMENT;
        let (a, b) = self.pipeline.input(chunk.slot, chunk.elements).ok()?;
        Some(match received.checked_sub(half) {
            None => &mut bytemuck::cast_slice_mut(a)[received..],
            Some(in_b) => &mut bytemuck::cast_slice_mut(b)[in_b..],
        })
    }

    fn filled(&mut self, n: usize) -> Result<(), ExecutorError> {
        let Some(filling) = &mut self.filling else {
            return Ok(());
        };
        filling.received += n;
        let chunk = filling.chunk;
        if filling.received < 2 * chunk.elements * ELEMENT {
            return Ok(());
        }
        self.filling = None;
        self.pipeline.submit(chunk.slot, chunk.elements)?;
        self.submitted.push_back(chunk);
        self.next_slot = (self.next_slot + 1) % self.pipeline.slots();
        Ok(())
    }

    /// Asks the device what is done.
    fn look(&mut self) -> Result<(), ExecutorError> {
        while let Some(chunk) = self.submitted.get(self.done) {
            if !self.pipeline.is_done(chunk.slot)? {
                break;
            }
            self.done += 1;
        }
        Ok(())
    }

    fn output(&self) -> &[u8] {
        match self.submitted.front() {
            Some(chunk) if self.done > 0 => {
                &bytemuck::cast_slice(self.pipeline.result(chunk.slot))[self.sent..]
            }
            _ => &[],
        }
    }

    /// Returns whether a slot is free again.
    fn sent(&mut self, n: usize) -> bool {
        self.sent += n;
        let whole = |chunk: &Chunk| self.sent == chunk.elements * ELEMENT;
        if !self.submitted.front().is_some_and(whole) {
            return false;
        }
        self.submitted.pop_front();
        self.done -= 1;
        self.sent = 0;
        true
    }

    fn is_over(&self) -> bool {
        self.left == 0 && self.filling.is_none() && self.submitted.is_empty()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::{Duration, Instant};

    use crate::executor::Executor;
    use crate::session::one_request::{by_portions, trial_add, wrong_sums};

    /// Adds two vectors of `n` elements by way of `executor`, at most `portion` bytes at a time.
    pub(in crate::executor) fn add_on(executor: &mut dyn Executor, n: usize, portion: usize) {
        let (request, up) = trial_add(n);
        let deadline = Instant::now() + Duration::from_secs(60);
        let answer = by_portions(executor, &request, &up, portion, deadline).unwrap();
        assert_eq!(answer.data.len(), 4 * n);
        assert_eq!(
            wrong_sums(n, &answer.data),
            0,
            "{n} elements by {portion} bytes"
        );
    }
}
