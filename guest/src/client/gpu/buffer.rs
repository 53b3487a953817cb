//! Memory on the device.

use std::marker::PhantomData;
use std::num::NonZeroU64;
use std::ops::{Bound, Range, RangeBounds};

use bytemuck::Pod;
use vgpu_protocol::op::field::PoolRef;
use vgpu_protocol::op::{MemoryAllocate, MemoryAllocateAsync, Operation, Request};

use super::{Device, Dropped, explained, is_out_of_memory};
use crate::error::Result;

/// Elements of one kind that lie on a device behind each other.
pub trait DevicePtr<T: Pod> {
    /// The device with the elements.
    fn device(&self) -> &Device;

    /// Device address of the first element.
    fn address(&self) -> u64;

    /// How many there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// `len` elements on a device, freed when this is dropped, once the work sent before is done, or in the order of the
/// stream that it was allocated on.
#[derive(Debug)]
pub struct DeviceBuffer<T: Pod> {
    /// With the stream in whose order it is freed, where it has one.
    device: Device,
    /// Freed in the order of that stream.
    ordered: bool,
    /// 0 where there are no bytes.
    address: u64,
    len: usize,
    elements: PhantomData<fn() -> T>,
}

impl Device {
    /// Memory for `len` elements; what they are is not said.
    ///
    /// # Errors
    /// The session's or the device's memory does not suffice.
    pub fn alloc<T: Pod>(&self, len: usize) -> Result<DeviceBuffer<T>> {
        const DOING: &str = "allocate";
        let address = match self.bytes_of::<T>(DOING, len)? {
            Some(bytes) => {
                let asked = MemoryAllocate { bytes };
                self.allocate(DOING, &asked)?.address
            }
            None => 0,
        };
        Ok(DeviceBuffer {
            device: self.base(),
            ordered: false,
            address,
            len,
            elements: PhantomData,
        })
    }

    /// The same in the order of this stream (`cuMemAllocAsync`), and freed in its order when the buffer is dropped: what
    /// the stream has freed before is had again without a call of the driver. What is sent to another stream waits for
    /// this one by way of an event, and so does this one before the buffer goes.
    ///
    /// # Errors
    /// Those of [`alloc`](Self::alloc).
    pub fn alloc_async<T: Pod>(&self, len: usize) -> Result<DeviceBuffer<T>> {
        self.alloc_from(PoolRef::DEFAULT, len)
    }

    /// The same from a pool.
    pub(super) fn alloc_from<T: Pod>(&self, pool: PoolRef, len: usize) -> Result<DeviceBuffer<T>> {
        const DOING: &str = "allocate in a stream";
        let stream = self.stream_ref();
        let address = match self.bytes_of::<T>(DOING, len)? {
            Some(bytes) => {
                let asked = MemoryAllocateAsync {
                    bytes,
                    pool,
                    stream,
                };
                self.allocate(DOING, &asked)?.address
            }
            None => 0,
        };
        Ok(DeviceBuffer {
            device: self.clone(),
            ordered: true,
            address,
            len,
            elements: PhantomData,
        })
    }

    /// Frees a buffer in the order of this stream (`cuMemFreeAsync`), and not of the one that it was allocated on.
    ///
    /// # Errors
    /// The session failed.
    pub fn free_async<T: Pod>(&self, mut buffer: DeviceBuffer<T>) -> Result<()> {
        self.check_session("free in a stream", &buffer.device)?;
        let address = std::mem::take(&mut buffer.address);
        match address {
            0 => Ok(()),
            address => self.send_free_async(address),
        }
    }

    /// The bytes of this many elements.
    pub(super) fn bytes_of<T>(
        &self,
        doing: &'static str,
        len: usize,
    ) -> Result<Option<NonZeroU64>> {
        let bytes = (len as u64).checked_mul(size_of::<T>() as u64);
        let bytes = bytes
            .ok_or_else(|| self.wrong(doing, format!("{len} elements have no room anywhere")))?;
        Ok(NonZeroU64::new(bytes))
    }

    /// Asks for memory.
    pub(super) fn allocate<O>(&self, doing: &'static str, asked: &O) -> Result<O::Reply>
    where
        O: Operation + Clone + Into<Request>,
    {
        let mut client = self.client()?;
        let mut reply = client.request(doing, asked.clone());
        // Memory kept for the next vector add may suffice.
        if reply.as_ref().is_err_and(is_out_of_memory) && client.give_back_places() {
            reply = client.request(doing, asked.clone());
        }
        explained(&mut client, reply)
    }
}

impl<T: Pod> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        match (self.address, self.ordered) {
            (0, _) => {}
            (address, true) => self.device.drop_in_order(address),
            (address, false) => self.device.drop_on_device(Dropped::Memory(address)),
        }
    }
}

impl<T: Pod> DeviceBuffer<T> {
    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of it, to read.
    ///
    /// # Panics
    /// The range is outside.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> DeviceSlice<'_, T> {
        let (start, len) = part(self.len, range);
        DeviceSlice {
            device: &self.device,
            address: self.address + (start * size_of::<T>()) as u64,
            len,
            elements: PhantomData,
        }
    }

    /// A part of it, to write.
    ///
    /// # Panics
    /// The range is outside.
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> DeviceSliceMut<'_, T> {
        let (start, len) = part(self.len, range);
        DeviceSliceMut {
            device: &self.device,
            address: self.address + (start * size_of::<T>()) as u64,
            len,
            elements: PhantomData,
        }
    }
}

/// First element and length of a range within `len` elements.
pub(super) fn part(len: usize, range: impl RangeBounds<usize>) -> (usize, usize) {
    let Range { start, end } = within(len, range).unwrap_or_else(|what| panic!("{what}"));
    (start, end - start)
}

/// A range within `len` elements.
///
/// # Errors
/// It is not, in words.
pub(super) fn within(
    len: usize,
    range: impl RangeBounds<usize>,
) -> std::result::Result<Range<usize>, String> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => len,
    };
    match start <= end && end <= len {
        true => Ok(start..end),
        false => Err(format!("elements {start} to {end} of {len}")),
    }
}

/// A part of a buffer, to read.
#[derive(Debug, Clone, Copy)]
pub struct DeviceSlice<'b, T: Pod> {
    device: &'b Device,
    address: u64,
    len: usize,
    elements: PhantomData<&'b T>,
}

/// A part of a buffer, to write.
#[derive(Debug)]
pub struct DeviceSliceMut<'b, T: Pod> {
    device: &'b Device,
    address: u64,
    len: usize,
    elements: PhantomData<&'b mut T>,
}

impl<'b, T: Pod> DeviceSliceMut<'b, T> {
    pub(super) fn new(device: &'b Device, address: u64, len: usize) -> Self {
        Self {
            device,
            address,
            len,
            elements: PhantomData,
        }
    }
}

impl<T: Pod> DevicePtr<T> for DeviceBuffer<T> {
    fn device(&self) -> &Device {
        &self.device
    }

    fn address(&self) -> u64 {
        self.address
    }

    fn len(&self) -> usize {
        self.len
    }
}

macro_rules! parts {
    ($($part:ident),*) => {$(
        impl<T: Pod> DevicePtr<T> for $part<'_, T> {
            fn device(&self) -> &Device {
                self.device
            }

            fn address(&self) -> u64 {
                self.address
            }

            fn len(&self) -> usize {
                self.len
            }
        }
    )*};
}

parts!(DeviceSlice, DeviceSliceMut);

#[cfg(test)]
mod tests {
    use super::part;

    #[test]
    fn parts_of_a_buffer() {
        assert_eq!(part(10, ..), (0, 10));
        assert_eq!(part(10, 3..), (3, 7));
        assert_eq!(part(10, ..=3), (0, 4));
        assert_eq!(part(10, 10..), (10, 0));
        assert_eq!(part(0, ..), (0, 0));
        for outside in [3..11, 11..11] {
            assert!(std::panic::catch_unwind(|| part(10, outside)).is_err());
        }
    }
}
