#![forbid(unsafe_code)]
//! Checked access to the bytes of a region.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;

use super::bounds;
use super::error::RegionError;
use crate::error::Result;
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::wire::shm::Region;

const WORD: usize = size_of::<u64>();

pub(super) fn read(data: &Region, len: usize, offset: usize, to: &mut [u8]) -> Result<()> {
    bounds::check(offset, to.len(), len)?;
    data.copy_out(offset, to);
    Ok(())
}

pub(super) fn write(data: &Region, len: usize, offset: usize, from: &[u8]) -> Result<()> {
    bounds::check(offset, from.len(), len)?;
    data.copy_in(offset, from);
    Ok(())
}

pub(super) fn load(data: &Region, len: usize, offset: usize) -> Result<u64> {
    bounds::check_word(offset, WORD, len)?;
    // Pairs with the other side's `store`.
    Ok(data.u64_at(offset).load(Ordering::Acquire))
}

pub(super) fn store(data: &Region, len: usize, offset: usize, value: u64) -> Result<()> {
    bounds::check_word(offset, WORD, len)?;
    // Pairs with the other side's `load`.
    data.u64_at(offset).store(value, Ordering::Release);
    Ok(())
}

/// The address of some bytes of a region, mapped while this lives.
///
/// Getting the address is safe. `unsafe` code that uses it **must not make a reference** to the
/// bytes (the peer may change them at any time) nor use the address after the view is gone.
pub struct View {
    bytes: Region,
    writable: bool,
    _mapping: Option<Arc<dyn Any + Send + Sync>>,
}

impl View {
    pub(super) fn new(
        data: &Region,
        region: usize,
        offset: usize,
        len: usize,
        writable: bool,
    ) -> Result<Self> {
        bounds::check(offset, len, region)?;
        Ok(Self {
            bytes: data.part(offset, len),
            writable,
            _mapping: None,
        })
    }

    /// Drops `mapping` after the bytes.
    pub(super) fn holding(mut self, mapping: Arc<dyn Any + Send + Sync>) -> Self {
        self._mapping = Some(mapping);
        self
    }

    /// The first byte.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.bytes.pointer(0, 0)
    }

    /// Copies bytes out of it, from `offset` on. The peer can change them at any moment: check the copy, and use the
    /// copy.
    ///
    /// # Errors
    /// [`RegionError::OutOfBounds`].
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        read(&self.bytes, self.len(), offset, to)
    }

    /// Copies `from` into it at `offset`.
    ///
    /// # Errors
    /// [`RegionError::OutOfBounds`], [`RegionError::ReadOnly`].
    pub fn write_at(&self, offset: usize, from: &[u8]) -> Result<()> {
        self.check_writable()?;
        write(&self.bytes, self.len(), offset, from)
    }

    /// [`read_at`](Self::read_at) past the processor's caches: faster for many bytes, while the first reading of the copy
    /// is slower.
    ///
    /// # Errors
    /// Those of `read_at`.
    pub fn read_non_temporal_at(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        bounds::check(offset, to.len(), self.len())?;
        self.bytes.copy_out_non_temporal(offset, to);
        Ok(())
    }

    /// [`write_at`](Self::write_at) past the processor's caches: for bytes that a device reads next.
    ///
    /// # Errors
    /// Those of `write_at`.
    pub fn write_non_temporal_at(&self, offset: usize, from: &[u8]) -> Result<()> {
        self.check_writable()?;
        bounds::check(offset, from.len(), self.len())?;
        self.bytes.copy_in_non_temporal(offset, from);
        Ok(())
    }

    /// Loads a word in the machine's byte order, in one piece.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at); [`RegionError::Misaligned`].
    pub fn load_u64(&self, offset: usize) -> Result<u64> {
        load(&self.bytes, self.len(), offset)
    }

    /// Stores a word in the machine's byte order, in one piece.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at); [`RegionError::Misaligned`].
    pub fn store_u64(&self, offset: usize, value: u64) -> Result<()> {
        self.check_writable()?;
        store(&self.bytes, self.len(), offset, value)
    }

    fn check_writable(&self) -> Result<()> {
        match self.writable {
            true => Ok(()),
            false => Err(RegionError::ReadOnly.into()),
        }
    }

    /// Bytes of the view.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether they may be written.
    pub fn is_writable(&self) -> bool {
        self.writable
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View({:?})", self.bytes)
    }
}
