//! Names of objects that live in the mediator.
//!
//! The guest chooses them, so creating an object needs no round trip. A handle consists of the
//! object's kind, its slot in the session's table, and the generation of that slot: a handle kept
//! after its object was closed never names the slot's next object.

use std::fmt;

/// The kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum HandleKind {
    /// A stream of the device: an order of work.
    Stream = 1,
    /// A module: code and variables on the device.
    Module = 2,
    /// An event: a point in a stream.
    Event = 3,
    /// A graph: work that was captured in streams.
    Graph = 4,
    /// A graph that can be launched.
    GraphExec = 5,
    /// A region: memory of the guest's that the mediator has mapped.
    Region = 6,
    /// A memory pool beside the device's default one.
    MemoryPool = 7,
}

impl HandleKind {
    const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Stream),
            2 => Some(Self::Module),
            3 => Some(Self::Event),
            4 => Some(Self::Graph),
            5 => Some(Self::GraphExec),
            6 => Some(Self::Region),
            7 => Some(Self::MemoryPool),
            _ => None,
        }
    }
}

/// A slot number and kind (low 32 bits: slot 24, kind 8) and a generation (high 32 bits, from 1).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle {
    kind: HandleKind,
    slot: u32,
    generation: u32,
}

/// Slots a table can have at most; the slot number has 24 bits on the wire.
pub const MAX_SLOTS: u32 = 1 << 24;

/// The reasons why a handle is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandleError {
    /// Generations start at 1.
    #[error("generation is 0")]
    Generation,
    /// An unknown kind of object.
    #[error("kind {0} is unknown")]
    UnknownKind(u8),
    /// The operation needs an object of another kind.
    #[error("names a {found:?}, but a {wanted:?} is needed")]
    WrongKind {
        /// The handle's kind.
        found: HandleKind,
        /// The kind that the operation works on.
        wanted: HandleKind,
    },
    /// The slot is outside the table.
    #[error("slot {slot} is outside the table of {capacity}")]
    Slot {
        /// The handle's slot.
        slot: u32,
        /// The number of slots.
        capacity: u32,
    },
    /// The slot is empty, or holds another generation.
    #[error("names an object that is not open")]
    NotOpen,
    /// The slot is still in use.
    #[error("slot {0} is in use")]
    InUse(u32),
    /// The generation was used before in this slot.
    #[error("generation {given} was used before; the next free one is {next}")]
    Reused {
        /// The generation of the handle.
        given: u32,
        /// The lowest the slot accepts.
        next: u32,
    },
}

impl Handle {
    /// A handle for slot `slot` (below [`MAX_SLOTS`]) in its `generation` (not 0).
    ///
    /// # Errors
    /// [`HandleError::Slot`] or [`HandleError::Generation`].
    pub const fn new(kind: HandleKind, slot: u32, generation: u32) -> Result<Self, HandleError> {
        if slot >= MAX_SLOTS {
            return Err(HandleError::Slot {
                slot,
                capacity: MAX_SLOTS,
            });
        }
        if generation == 0 {
            return Err(HandleError::Generation);
        }
        Ok(Self {
            kind,
            slot,
            generation,
        })
    }

    /// Decodes the number found on the wire, which must not be 0 (0 means "no handle").
    ///
    /// # Errors
    /// [`HandleError::Generation`] or [`HandleError::UnknownKind`].
    pub fn from_bits(bits: u64) -> Result<Self, HandleError> {
        let [s0, s1, s2, kind, g0, g1, g2, g3] = bits.to_le_bytes();
        let kind = HandleKind::from_code(kind).ok_or(HandleError::UnknownKind(kind))?;
        Self::new(
            kind,
            u32::from_le_bytes([s0, s1, s2, 0]),
            u32::from_le_bytes([g0, g1, g2, g3]),
        )
    }

    /// The number on the wire; never 0.
    pub const fn to_bits(self) -> u64 {
        (self.generation as u64) << 32 | (self.kind as u64) << 24 | self.slot as u64
    }

    /// The kind of object.
    pub const fn kind(self) -> HandleKind {
        self.kind
    }

    /// Its slot in the table.
    pub const fn slot(self) -> u32 {
        self.slot
    }

    /// Number of times the slot was opened, including this one.
    pub const fn generation(self) -> u32 {
        self.generation
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}#{}.{}", self.kind, self.slot, self.generation)
    }
}

/// The mediator's side: objects of one kind, found by the guest's handles.
#[derive(Debug)]
pub struct HandleTable<T> {
    kind: HandleKind,
    capacity: u32,
    /// Grows up to `capacity` with the highest slot opened.
    slots: Vec<Slot<T>>,
    open: u32,
}

#[derive(Debug)]
struct Slot<T> {
    /// The last generation opened; 0 before the first.
    generation: u32,
    object: Option<T>,
}

impl<T> HandleTable<T> {
    /// An empty table of at most `capacity` objects (no more than [`MAX_SLOTS`]).
    pub fn new(kind: HandleKind, capacity: u32) -> Self {
        Self {
            kind,
            capacity: capacity.min(MAX_SLOTS),
            slots: Vec::new(),
            open: 0,
        }
    }

    /// Puts `object` under `handle`.
    ///
    /// # Errors
    /// The slot is outside the table, in use, or the generation was used before; `object` is dropped.
    pub fn open(&mut self, handle: Handle, object: T) -> Result<&mut T, HandleError> {
        let index = self.index(handle)?;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || Slot {
                generation: 0,
                object: None,
            });
        }
        let slot = &mut self.slots[index];
        if slot.object.is_some() {
            return Err(HandleError::InUse(handle.slot));
        }
        if handle.generation <= slot.generation {
            let next = slot.generation.saturating_add(1);
            return Err(HandleError::Reused {
                given: handle.generation,
                next,
            });
        }
        slot.generation = handle.generation;
        self.open += 1;
        Ok(slot.object.insert(object))
    }

    /// The object under `handle`.
    ///
    /// # Errors
    /// [`HandleError::NotOpen`], or the handle cannot belong to this table.
    pub fn get_mut(&mut self, handle: Handle) -> Result<&mut T, HandleError> {
        let index = self.index(handle)?;
        match self.slots.get_mut(index) {
            Some(Slot {
                generation,
                object: Some(object),
            }) if *generation == handle.generation => Ok(object),
            _ => Err(HandleError::NotOpen),
        }
    }

    /// Removes and returns the object; its handle names nothing from here on.
    ///
    /// # Errors
    /// As [`get_mut`](Self::get_mut).
    pub fn close(&mut self, handle: Handle) -> Result<T, HandleError> {
        self.get_mut(handle)?;
        let index = self.index(handle)?;
        let object = self.slots[index]
            .object
            .take()
            .ok_or(HandleError::NotOpen)?;
        self.open -= 1;
        Ok(object)
    }

    /// The objects that are open.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots
            .iter_mut()
            .filter_map(|slot| slot.object.as_mut())
    }

    /// Objects open now.
    pub fn len(&self) -> u32 {
        self.open
    }

    /// Whether no object is open.
    pub fn is_empty(&self) -> bool {
        self.open == 0
    }

    fn index(&self, handle: Handle) -> Result<usize, HandleError> {
        if handle.kind != self.kind {
            return Err(HandleError::WrongKind {
                found: handle.kind,
                wanted: self.kind,
            });
        }
        if handle.slot >= self.capacity {
            return Err(HandleError::Slot {
                slot: handle.slot,
                capacity: self.capacity,
            });
        }
        usize::try_from(handle.slot).map_err(|_| HandleError::Slot {
            slot: handle.slot,
            capacity: self.capacity,
        })
    }
}

/// The guest's side: mints handles of one kind that the mediator's table will accept.
#[derive(Debug)]
pub struct HandleMinter {
    kind: HandleKind,
    capacity: u32,
    /// Last generation minted for each slot used so far.
    generations: Vec<u32>,
    /// Slots that were released and may be minted again.
    free: Vec<u32>,
}

impl HandleMinter {
    /// A minter for a table of `capacity` objects.
    pub fn new(kind: HandleKind, capacity: u32) -> Self {
        Self {
            kind,
            capacity: capacity.min(MAX_SLOTS),
            generations: Vec::new(),
            free: Vec::new(),
        }
    }

    /// A new handle, or `None` when every slot is in use.
    pub fn mint(&mut self) -> Option<Handle> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = u32::try_from(self.generations.len()).ok()?;
                if slot >= self.capacity {
                    return None;
                }
                self.generations.push(0);
                slot
            }
        };
        let generation = self.generations.get_mut(slot as usize)?;
        *generation += 1;
        Handle::new(self.kind, slot, *generation).ok()
    }

    /// Releases the slot of `handle`, once the mediator has closed it. A handle that is not the
    /// slot's newest has no effect.
    pub fn release(&mut self, handle: Handle) {
        let newest = self.generations.get(handle.slot as usize) == Some(&handle.generation);
        // A slot whose generations are used up is never minted again.
        let usable = handle.generation < u32::MAX;
        if newest && usable && handle.kind == self.kind && !self.free.contains(&handle.slot) {
            self.free.push(handle.slot);
        }
    }
}
