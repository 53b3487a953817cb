//! Memory on the device in two dimensions: rows at equal distances, and rectangles of them.

use std::marker::PhantomData;
use std::num::NonZeroU64;
use std::ops::RangeBounds;

use bytemuck::Pod;
use vgpu_protocol::op::{
    CopyRowsFromDevice, CopyRowsToDevice, CopyRowsWithinDevice, FillRows, MemoryAllocateRows,
};

use super::buffer::part;
use super::{Device, DeviceBuffer, DevicePtr, Dropped, Element};
use crate::data::Data;
use crate::error::Result;

/// Elements of one kind on a device, in rows: each begins [`pitch`](Self::pitch) bytes after the one
/// before it.
pub trait DeviceRows<T: Pod> {
    /// The device with the elements.
    fn device(&self) -> &Device;

    /// Device address of the first element.
    fn address(&self) -> u64;

    /// Bytes from the beginning of one row to that of the next.
    fn pitch(&self) -> usize;

    /// Elements of a row.
    fn width(&self) -> usize;

    /// Rows.
    fn height(&self) -> usize;
}

/// `height` rows of `width` elements on a device, at a pitch that the device chooses; freed when this is dropped, once the
/// work sent before is done.
///
/// ```no_run
/// # use vgpu_guest::{Client, Device, Options};
/// # let device = Device::new(Client::from_env(&Options::default())?)?;
/// let image = vec![0.5f32; 1000 * 600];
/// let mut there = device.alloc_pitched::<f32>(1000, 600)?;
/// device.memcpy_2d_htod(&image, 1000, &mut there)?;
/// // A rectangle of 100 times 50 elements, into an array of its own.
/// let mut part = vec![0.0; 100 * 50];
/// device.memcpy_2d_dtoh(&there.slice(300..400, 20..70), &mut part, 100)?;
/// # Ok::<(), vgpu_guest::Error>(())
/// ```
#[derive(Debug)]
pub struct PitchedBuffer<T: Pod> {
    device: Device,
    /// Its address is 0 where there are no bytes.
    rectangle: Rectangle,
    elements: PhantomData<fn() -> T>,
}

/// A rectangle of rows, to read.
#[derive(Debug, Clone, Copy)]
pub struct PitchedSlice<'b, T: Pod> {
    device: &'b Device,
    rectangle: Rectangle,
    elements: PhantomData<&'b T>,
}

/// A rectangle of rows, to write.
#[derive(Debug)]
pub struct PitchedSliceMut<'b, T: Pod> {
    device: &'b Device,
    rectangle: Rectangle,
    elements: PhantomData<&'b mut T>,
}

#[derive(Debug, Clone, Copy)]
struct Rectangle {
    address: u64,
    pitch: usize,
    width: usize,
    height: usize,
}

impl Rectangle {
    fn of<T: Pod>(rows: &impl DeviceRows<T>) -> Self {
        Self {
            address: rows.address(),
            pitch: rows.pitch(),
            width: rows.width(),
            height: rows.height(),
        }
    }

    fn part<T: Pod>(self, columns: impl RangeBounds<usize>, rows: impl RangeBounds<usize>) -> Self {
        let (left, width) = part(self.width, columns);
        let (top, height) = part(self.height, rows);
        let before = top * self.pitch + left * size_of::<T>();
        Self {
            address: self.address + before as u64,
            width,
            height,
            ..self
        }
    }

    /// Bytes of a row, and rows; `None` where there are no bytes at all.
    fn shape<T: Pod>(&self) -> Option<(NonZeroU64, NonZeroU64)> {
        let width = NonZeroU64::new((self.width * size_of::<T>()) as u64)?;
        Some((width, NonZeroU64::new(self.height as u64)?))
    }
}

macro_rules! rectangles {
    ($($rows:ty),*) => {$(
        impl<T: Pod> DeviceRows<T> for $rows {
            fn device(&self) -> &Device {
                &self.device
            }

            fn address(&self) -> u64 {
                self.rectangle.address
            }

            fn pitch(&self) -> usize {
                self.rectangle.pitch
            }

            fn width(&self) -> usize {
                self.rectangle.width
            }

            fn height(&self) -> usize {
                self.rectangle.height
            }
        }
    )*};
}

rectangles!(
    PitchedBuffer<T>,
    PitchedSlice<'_, T>,
    PitchedSliceMut<'_, T>
);

impl<'b, T: Pod> PitchedSlice<'b, T> {
    /// A rectangle of it: which elements of each row, and which rows.
    ///
    /// # Panics
    /// The rectangle is outside.
    #[must_use]
    pub fn slice(
        &self,
        columns: impl RangeBounds<usize>,
        rows: impl RangeBounds<usize>,
    ) -> PitchedSlice<'b, T> {
        PitchedSlice {
            rectangle: self.rectangle.part::<T>(columns, rows),
            ..*self
        }
    }
}

impl<'b, T: Pod> PitchedSliceMut<'b, T> {
    /// A rectangle of it: which elements of each row, and which rows.
    ///
    /// # Panics
    /// The rectangle is outside.
    #[must_use]
    pub fn slice_mut(
        self,
        columns: impl RangeBounds<usize>,
        rows: impl RangeBounds<usize>,
    ) -> PitchedSliceMut<'b, T> {
        PitchedSliceMut {
            rectangle: self.rectangle.part::<T>(columns, rows),
            ..self
        }
    }
}

impl<T: Pod> PitchedBuffer<T> {
    /// A rectangle of it, to read: which elements of each row, and which rows.
    ///
    /// # Panics
    /// The rectangle is outside.
    pub fn slice(
        &self,
        columns: impl RangeBounds<usize>,
        rows: impl RangeBounds<usize>,
    ) -> PitchedSlice<'_, T> {
        PitchedSlice {
            device: &self.device,
            rectangle: self.rectangle.part::<T>(columns, rows),
            elements: PhantomData,
        }
    }

    /// A rectangle of it, to write: which elements of each row, and which rows.
    ///
    /// # Panics
    /// The rectangle is outside.
    pub fn slice_mut(
        &mut self,
        columns: impl RangeBounds<usize>,
        rows: impl RangeBounds<usize>,
    ) -> PitchedSliceMut<'_, T> {
        PitchedSliceMut {
            device: &self.device,
            rectangle: self.rectangle.part::<T>(columns, rows),
            elements: PhantomData,
        }
    }
}

impl<T: Pod> Drop for PitchedBuffer<T> {
    fn drop(&mut self) {
        if self.rectangle.address != 0 {
            (self.device).drop_on_device(Dropped::Memory(self.rectangle.address));
        }
    }
}

impl<T: Pod> DeviceBuffer<T> {
    /// Its elements as rows of `width` behind each other, to read; what is left over belongs to none.
    ///
    /// # Panics
    /// `width` is 0.
    pub fn rows(&self, width: usize) -> PitchedSlice<'_, T> {
        PitchedSlice {
            device: DevicePtr::device(self),
            rectangle: self.rectangle(width),
            elements: PhantomData,
        }
    }

    /// The same, to write.
    ///
    /// # Panics
    /// `width` is 0.
    pub fn rows_mut(&mut self, width: usize) -> PitchedSliceMut<'_, T> {
        PitchedSliceMut {
            device: DevicePtr::device(self),
            rectangle: self.rectangle(width),
            elements: PhantomData,
        }
    }

    fn rectangle(&self, width: usize) -> Rectangle {
        assert!(width > 0, "rows without elements");
        Rectangle {
            address: DevicePtr::address(self),
            pitch: width * size_of::<T>(),
            width,
            height: self.len() / width,
        }
    }
}

impl Device {
    /// Memory for `height` rows of `width` elements, at a pitch that the device chooses
    /// (`cuMemAllocPitch`). Its contents are undefined.
    ///
    /// # Errors
    /// The session's or the device's memory does not suffice. What lies between the rows counts as well.
    pub fn alloc_pitched<T: Pod>(&self, width: usize, height: usize) -> Result<PitchedBuffer<T>> {
        const DOING: &str = "allocate rows";
        let size = size_of::<T>();
        let Some(bytes) = width.checked_mul(size) else {
            let what = format!("{width} elements have no room anywhere");
            return Err(self.wrong(DOING, what));
        };
        let shape = NonZeroU64::new(bytes as u64).zip(NonZeroU64::new(height as u64));
        let (address, pitch) = match shape {
            Some((width, height)) => {
                // Element sizes that the driver takes: the widths of a kernel's loads.
                let element_bytes = match size {
                    _ if size.is_multiple_of(16) => 16,
                    _ if size.is_multiple_of(8) => 8,
                    _ => 4,
                };
                let asked = MemoryAllocateRows {
                    width,
                    height,
                    element_bytes,
                };
                let reply = self.allocate(DOING, &asked)?;
                (
                    reply.address,
                    usize::try_from(reply.pitch).unwrap_or(usize::MAX),
                )
            }
            None => (0, bytes),
        };
        Ok(PitchedBuffer {
            device: self.base(),
            rectangle: Rectangle {
                address,
                pitch,
                width,
                height,
            },
            elements: PhantomData,
        })
    }

    /// Fills the rows of `to` from `from`, in which each begins `from_pitch` elements after the one before it. Only
    /// the rows themselves travel; `from` has been taken when this returns.
    ///
    /// # Errors
    /// `from` has too few rows, or they overlap; the session failed.
    pub fn memcpy_2d_htod<T: Pod>(
        &self,
        from: &[T],
        from_pitch: usize,
        to: &mut impl DeviceRows<T>,
    ) -> Result<()> {
        const DOING: &str = "copy rows to the device";
        self.check_session(DOING, to.device())?;
        self.check_rows(DOING, from.len(), from_pitch, to.width(), to.height())?;
        let there = Rectangle::of(to);
        let Some((width, height)) = there.shape::<T>() else {
            return Ok(());
        };
        let size = size_of::<T>();
        let bytes: &[u8] = bytemuck::cast_slice(from);
        let mut data = Data::up_rows(bytes, from_pitch * size, there.width * size);
        let request = CopyRowsToDevice {
            to: there.address,
            pitch: there.pitch as u64,
            width,
            height,
            stream: self.stream_ref(),
        };
        self.send_with(DOING, request, &mut data)
    }

    /// Copies the rows of `from` to `to`, where each begins `to_pitch` elements after the one before it, once the work
    /// sent before is done. What is between the rows stays as it is.
    ///
    /// # Errors
    /// `to` has too little room for the rows, or they overlap; something that was sent before has failed; the
    /// session failed. Then `to` holds a part of the copy, or none of it.
    pub fn memcpy_2d_dtoh<T: Pod>(
        &self,
        from: &impl DeviceRows<T>,
        to: &mut [T],
        to_pitch: usize,
    ) -> Result<()> {
        const DOING: &str = "copy rows from the device";
        self.check_session(DOING, from.device())?;
        self.check_rows(DOING, to.len(), to_pitch, from.width(), from.height())?;
        let there = Rectangle::of(from);
        let Some((width, height)) = there.shape::<T>() else {
            return Ok(());
        };
        let size = size_of::<T>();
        let to: &mut [u8] = bytemuck::cast_slice_mut(to);
        let mut data = Data::down_rows(to, to_pitch * size, there.width * size);
        let request = CopyRowsFromDevice {
            from: there.address,
            pitch: there.pitch as u64,
            width,
            height,
            stream: self.stream_ref(),
        };
        self.wait_with(DOING, request, &mut data, |reply| reply.device_ns)
    }

    /// Copies the rows of `from` to those of `to`, on the device. Where the two overlap, nobody knows what comes of it.
    ///
    /// # Errors
    /// They have not the same width and height; the session failed.
    pub fn memcpy_2d_dtod<T: Pod>(
        &self,
        from: &impl DeviceRows<T>,
        to: &mut impl DeviceRows<T>,
    ) -> Result<()> {
        const DOING: &str = "copy rows on the device";
        self.check_session(DOING, from.device())?;
        self.check_session(DOING, to.device())?;
        let (from, to) = (Rectangle::of(from), Rectangle::of(to));
        if (from.width, from.height) != (to.width, to.height) {
            let (fw, fh, tw, th) = (from.width, from.height, to.width, to.height);
            let what = format!("{fh} rows of {fw} elements to {th} rows of {tw}");
            return Err(self.wrong(DOING, what));
        }
        let Some((width, height)) = to.shape::<T>() else {
            return Ok(());
        };
        let request = CopyRowsWithinDevice {
            to: to.address,
            to_pitch: to.pitch as u64,
            from: from.address,
            from_pitch: from.pitch as u64,
            width,
            height,
            stream: self.stream_ref(),
        };
        self.send(DOING, request)
    }

    /// Sets every element of the rows to `value`; what is between them stays as it is.
    ///
    /// # Errors
    /// The session failed.
    pub fn memset_2d<T: Element>(&self, to: &mut impl DeviceRows<T>, value: T) -> Result<()> {
        self.fill_rows(to.device(), Rectangle::of(to), value.bits(), size_of::<T>())
    }

    /// Sets every byte of the rows to 0; what is between them stays as it is.
    ///
    /// # Errors
    /// The session failed.
    pub fn memset_2d_zeros<T: Pod>(&self, to: &mut impl DeviceRows<T>) -> Result<()> {
        let bytes = Rectangle {
            width: to.width() * size_of::<T>(),
            ..Rectangle::of(to)
        };
        self.fill_rows(to.device(), bytes, 0, 1)
    }

    fn fill_rows(&self, of: &Self, to: Rectangle, value: u32, size: usize) -> Result<()> {
        const DOING: &str = "fill rows";
        self.check_session(DOING, of)?;
        // The width counts elements here.
        let Some((width, height)) = to.shape::<u8>() else {
            return Ok(());
        };
        let request = FillRows {
            to: to.address,
            pitch: to.pitch as u64,
            value,
            element_bytes: u8::try_from(size).expect("1, 2 or 4"),
            width,
            height,
            stream: self.stream_ref(),
        };
        self.send(DOING, request)
    }

    /// Whether `len` elements here have that many rows, each `pitch` elements after the one before it.
    pub(super) fn check_rows(
        &self,
        doing: &'static str,
        len: usize,
        pitch: usize,
        width: usize,
        height: usize,
    ) -> Result<()> {
        let needed = match height.checked_sub(1) {
            None => Some(0),
            Some(_) if width == 0 => Some(0),
            Some(before) => before
                .checked_mul(pitch)
                .and_then(|before| before.checked_add(width)),
        };
        if (pitch < width && height > 1) || needed.is_none_or(|needed| needed > len) {
            let what = format!(
                "{height} rows of {width} elements, each {pitch} after the one before, of {len} elements"
            );
            return Err(self.wrong(doing, what));
        }
        Ok(())
    }
}
