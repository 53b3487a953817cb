//! Copies and fills.

use std::num::NonZeroU64;

use bytemuck::Pod;
use vgpu_protocol::op::{CopyWithinDevice, FillRange};

use super::super::staging::Stores;
use super::{Device, DeviceBuffer, DevicePtr, told};
use crate::error::Result;

/// A value that memory can be filled with: 1, 2 or 4 bytes.
pub trait Element: Pod {
    /// Its bits, as an element of memory.
    fn bits(self) -> u32;
}

macro_rules! elements {
    ($($element:ty => $bits:expr;)*) => {$(
        impl Element for $element {
            fn bits(self) -> u32 {
                let bits: fn($element) -> u32 = $bits;
                bits(self)
            }
        }
    )*};
}

elements! {
    u8 => u32::from;
    u16 => u32::from;
    u32 => |n| n;
    i8 => |n| n.cast_unsigned().into();
    i16 => |n| n.cast_unsigned().into();
    i32 => i32::cast_unsigned;
    f32 => f32::to_bits;
}

impl Device {
    /// Memory with `len` elements whose bytes are all 0.
    ///
    /// # Errors
    /// Those of [`alloc`](Self::alloc).
    pub fn alloc_zeros<T: Pod>(&self, len: usize) -> Result<DeviceBuffer<T>> {
        let mut buffer = self.alloc(len)?;
        self.memset_zeros(&mut buffer)?;
        Ok(buffer)
    }

    /// Memory with a copy of `from`.
    ///
    /// # Errors
    /// Those of [`alloc`](Self::alloc).
    pub fn clone_htod<T: Pod>(&self, from: &[T]) -> Result<DeviceBuffer<T>> {
        let mut buffer = self.alloc(from.len())?;
        self.memcpy_htod(from, &mut buffer)?;
        Ok(buffer)
    }

    /// Copies `from` to the front of `to`. `from` has been taken when this returns.
    ///
    /// # Errors
    /// `to` is shorter; the session failed.
    pub fn memcpy_htod<T: Pod>(&self, from: &[T], to: &mut impl DevicePtr<T>) -> Result<()> {
        const DOING: &str = "copy to the device";
        self.check_session(DOING, to.device())?;
        let bytes: &[u8] = bytemuck::cast_slice(from);
        if self
            .bytes(DOING, bytes.len(), to.len() * size_of::<T>())?
            .is_none()
        {
            return Ok(());
        }
        self.send_bytes(DOING, to.address(), bytes)
    }

    /// Copies the front of `from` to `to`, once the work sent before is done.
    ///
    /// # Errors
    /// `from` is shorter; something that was sent before has failed; the session failed. Then `to` holds a part
    /// of the copy, or none of it.
    pub fn memcpy_dtoh<T: Pod>(&self, from: &impl DevicePtr<T>, to: &mut [T]) -> Result<()> {
        const DOING: &str = "copy from the device";
        self.check_session(DOING, from.device())?;
        let room = from.len() * size_of::<T>();
        let to: &mut [u8] = bytemuck::cast_slice_mut(to);
        if self.bytes(DOING, to.len(), room)?.is_none() {
            return Ok(());
        }
        self.copy_down_told(DOING, from.address(), to)
    }

    /// Fills `to` from the device, and tells of what has failed before.
    pub(super) fn copy_down_told(
        &self,
        doing: &'static str,
        from: u64,
        to: &mut [u8],
    ) -> Result<()> {
        let (stores, stream) = (Stores::of(to.len()), self.stream_ref());
        let mut client = self.client()?;
        let copied = client.copy_down(doing, from, to, stores, stream, &mut |_| ());
        let device_ns = told(&mut client, doing, copied)?;
        client.keep_device_time(device_ns);
        Ok(())
    }

    /// A copy of `from`, once the work sent before is done.
    ///
    /// # Errors
    /// Those of [`memcpy_dtoh`](Self::memcpy_dtoh).
    pub fn clone_dtoh<T: Pod>(&self, from: &impl DevicePtr<T>) -> Result<Vec<T>> {
        let mut to = vec![T::zeroed(); from.len()];
        self.memcpy_dtoh(from, &mut to)?;
        Ok(to)
    }

    /// Copies `from` to the front of `to`, on the device. The two may overlap only where they are the same.
    ///
    /// # Errors
    /// `to` is shorter; the session failed.
    pub fn memcpy_dtod<T: Pod>(
        &self,
        from: &impl DevicePtr<T>,
        to: &mut impl DevicePtr<T>,
    ) -> Result<()> {
        const DOING: &str = "copy on the device";
        self.check_session(DOING, from.device())?;
        self.check_session(DOING, to.device())?;
        let (given, room) = (from.len() * size_of::<T>(), to.len() * size_of::<T>());
        let Some(bytes) = self.bytes(DOING, given, room)? else {
            return Ok(());
        };
        let request = CopyWithinDevice {
            to: to.address(),
            from: from.address(),
            bytes,
            stream: self.stream_ref(),
        };
        self.send(DOING, request)
    }

    /// Sets every byte to 0.
    ///
    /// # Errors
    /// The session failed.
    pub fn memset_zeros<T: Pod>(&self, to: &mut impl DevicePtr<T>) -> Result<()> {
        self.fill(to.device(), to.address(), to.len() * size_of::<T>(), 0, 1)
    }

    /// Sets every element to `value`.
    ///
    /// # Errors
    /// The session failed.
    pub fn memset<T: Element>(&self, to: &mut impl DevicePtr<T>, value: T) -> Result<()> {
        let size = size_of::<T>();
        self.fill(to.device(), to.address(), to.len(), value.bits(), size)
    }

    fn fill(&self, of: &Self, to: u64, count: usize, value: u32, size: usize) -> Result<()> {
        const DOING: &str = "fill";
        self.check_session(DOING, of)?;
        let Some(count) = NonZeroU64::new(count as u64) else {
            return Ok(());
        };
        let request = FillRange {
            to,
            value,
            element_bytes: u8::try_from(size).expect("1, 2 or 4"),
            count,
            stream: self.stream_ref(),
        };
        self.send(DOING, request)
    }

    /// The bytes of a copy, if there are any and they fit.
    pub(super) fn bytes(
        &self,
        doing: &'static str,
        given: usize,
        room: usize,
    ) -> Result<Option<NonZeroU64>> {
        if given > room {
            let what = format!("{given} bytes, where there are {room} on the device");
            return Err(self.wrong(doing, what));
        }
        Ok(NonZeroU64::new(given as u64))
    }
}
