//! Memory on the device.

use std::marker::PhantomData;
use std::num::NonZeroU64;
use std::ops::{Bound, RangeBounds};

use bytemuck::Pod;
use vgpu_protocol::op::MemoryAllocate;

use super::{Device, Dropped, explained, is_out_of_memory};
use crate::error::Result;

/// Elements of one kind that lie on a device behind each other.
pub trait DevicePtr<T: Pod> {
    /// Whose they are.
    fn device(&self) -> &Device;

    /// Where the first lies on the device.
    fn address(&self) -> u64;

    /// How many there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// `len` elements on a device, freed when this is dropped, once the work sent before is done.
#[derive(Debug)]
pub struct DeviceBuffer<T: Pod> {
    device: Device,
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
        let bytes = (len as u64)
            .checked_mul(size_of::<T>() as u64)
            .ok_or_else(|| self.wrong(DOING, format!("{len} elements have no room anywhere")))?;
        let address = match NonZeroU64::new(bytes) {
            Some(bytes) => self.allocate(DOING, bytes)?,
            None => 0,
        };
        Ok(DeviceBuffer {
            device: self.base(),
            address,
            len,
            elements: PhantomData,
        })
    }
}

impl Device {
    fn allocate(&self, doing: &'static str, bytes: NonZeroU64) -> Result<u64> {
        let mut client = self.client()?;
        let mut reply = client.request(doing, MemoryAllocate { bytes });
        // What is kept for the next vector add may do.
        if reply.as_ref().is_err_and(is_out_of_memory) && client.give_back_places() {
            reply = client.request(doing, MemoryAllocate { bytes });
        }
        Ok(explained(&mut client, reply)?.address)
    }
}

impl<T: Pod> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        if self.address != 0 {
            self.device.drop_on_device(Dropped::Memory(self.address));
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

/// Where a range begins in `len` elements, and how many it has.
fn part(len: usize, range: impl RangeBounds<usize>) -> (usize, usize) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => len,
    };
    assert!(
        start <= end && end <= len,
        "elements {start} to {end} of {len}"
    );
    (start, end - start)
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
