//! The encoding of a body's fields: little-endian, one after the other, without padding.

use std::num::{NonZeroU16, NonZeroU32, NonZeroU64};
use std::ops::Deref;

use smallvec::SmallVec;

use crate::handle::{Handle, HandleError, HandleKind};
use crate::status::{Status, printable};

/// The reasons why a field is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FieldError {
    /// The body ends inside the field.
    #[error("needs {wanted} bytes where {left} are left")]
    Short {
        /// Bytes of the field.
        wanted: usize,
        /// Bytes left in the body.
        left: usize,
    },
    /// A value that is not allowed in this field.
    #[error("is {value}, {rule}")]
    Value {
        /// The value found.
        value: u64,
        /// The allowed values.
        rule: &'static str,
    },
    /// A text or list that is too long.
    #[error("has a length of {len}, at most {max} allowed")]
    TooLong {
        /// The length announced.
        len: usize,
        /// The most it may be.
        max: usize,
    },
    /// A text that is not UTF-8.
    #[error("is not UTF-8")]
    NotText,
    /// An invalid handle.
    #[error("{0}")]
    Handle(HandleError),
}

/// The part of a body that has not been read.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the front of `body`.
    pub const fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    /// Bytes that are left.
    pub const fn left(&self) -> usize {
        self.rest.len()
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// [`FieldError::Short`].
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], FieldError> {
        let (front, rest) = self.rest.split_at_checked(len).ok_or(FieldError::Short {
            wanted: len,
            left: self.rest.len(),
        })?;
        self.rest = rest;
        Ok(front)
    }
}

/// A value as it is encoded in a body.
pub trait Field: Sized {
    /// Its name in the tables of `docs/protocol.md`.
    const NAME: &'static str;
    /// Most bytes of its encoding.
    const MAX_LEN: usize;
    /// For a list: the most values, and the name of each value's type.
    const LIST: Option<(usize, &'static str)> = None;

    /// Appends it to a body.
    fn write(&self, body: &mut Vec<u8>);

    /// Reads it from the front.
    ///
    /// # Errors
    /// It is cut short, or its value is not allowed.
    fn read(reader: &mut Reader<'_>) -> Result<Self, FieldError>;
}

macro_rules! integers {
    ($($int:ty, $name:literal;)+) => {$(
        impl Field for $int {
            const NAME: &'static str = $name;
            const MAX_LEN: usize = size_of::<$int>();

            fn write(&self, body: &mut Vec<u8>) {
                body.extend_from_slice(&self.to_le_bytes());
            }

            fn read(reader: &mut Reader<'_>) -> Result<Self, FieldError> {
                let bytes = reader.take(size_of::<$int>())?;
                Ok(Self::from_le_bytes(bytes.try_into().expect("as many as asked for")))
            }
        }
    )+};
}

integers! {
    u8, "u8";
    u16, "u16";
    u32, "u32";
    u64, "u64";
    i32, "i32";
}

macro_rules! positive {
    ($($int:ident, $raw:ty, $name:literal;)+) => {$(
        impl Field for $int {
            const NAME: &'static str = $name;
            const MAX_LEN: usize = size_of::<$raw>();

            fn write(&self, body: &mut Vec<u8>) {
                self.get().write(body);
            }

            fn read(reader: &mut Reader<'_>) -> Result<Self, FieldError> {
                Self::new(<$raw>::read(reader)?).ok_or(FieldError::Value {
                    value: 0,
                    rule: "at least 1 needed",
                })
            }
        }
    )+};
}

positive! {
    NonZeroU16, u16, "u16, at least 1";
    NonZeroU32, u32, "u32, at least 1";
    NonZeroU64, u64, "u64, at least 1";
}

/// A handle; the number 0, which names nothing, is refused.
impl Field for Handle {
    const NAME: &'static str = "handle";
    const MAX_LEN: usize = 8;

    fn write(&self, body: &mut Vec<u8>) {
        self.to_bits().write(body);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FieldError> {
        Self::from_bits(u64::read(reader)?).map_err(FieldError::Handle)
    }
}

/// The stream for a request's work, in the numbers of the CUDA driver API: 0 and 1 are the default
/// stream that all lanes share, 2 is the lane's own, and everything else is the handle of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamRef(u64);

impl StreamRef {
    /// The default stream.
    pub const DEFAULT: StreamRef = StreamRef(0);

    /// The stream that `handle` names.
    pub const fn of(handle: Handle) -> Self {
        Self(handle.to_bits())
    }

    /// The handle; `None` for the streams that need none.
    pub fn handle(self) -> Option<Handle> {
        Handle::from_bits(self.0).ok()
    }

    /// Whether it is the lane's own stream.
    pub const fn is_of_lane(self) -> bool {
        self.0 == 2
    }
}

impl Field for StreamRef {
    const NAME: &'static str = "stream";
    const MAX_LEN: usize = 8;

    fn write(&self, body: &mut Vec<u8>) {
        self.0.write(body);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FieldError> {
        let value = u64::read(reader)?;
        if value <= 2 {
            return Ok(Self(value));
        }
        let handle = Handle::from_bits(value).map_err(FieldError::Handle)?;
        of_kind(handle, HandleKind::Stream).map(Self::of)
    }
}

fn of_kind(handle: Handle, wanted: HandleKind) -> Result<Handle, FieldError> {
    match handle.kind() {
        found if found == wanted => Ok(handle),
        found => Err(FieldError::Handle(HandleError::WrongKind { found, wanted })),
    }
}

/// The memory pool that a request means: 0 is the device's default pool, and everything else is the handle of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolRef(u64);

impl PoolRef {
    /// The default pool.
    pub const DEFAULT: PoolRef = PoolRef(0);

    /// The pool that `handle` names.
    pub const fn of(handle: Handle) -> Self {
        Self(handle.to_bits())
    }

    /// The handle; `None` for the default pool.
    pub fn handle(self) -> Option<Handle> {
        Handle::from_bits(self.0).ok()
    }
}

impl Field for PoolRef {
    const NAME: &'static str = "pool";
    const MAX_LEN: usize = 8;

    fn write(&self, body: &mut Vec<u8>) {
        self.0.write(body);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FieldError> {
        let value = u64::read(reader)?;
        if value == 0 {
            return Ok(Self::DEFAULT);
        }
        let handle = Handle::from_bits(value).map_err(FieldError::Handle)?;
        of_kind(handle, HandleKind::MemoryPool).map(Self::of)
    }
}

/// Width, height and depth: of a grid in blocks, of a block in threads.
impl Field for [u32; 3] {
    const NAME: &'static str = "three u32: x, y, z";
    const MAX_LEN: usize = 12;

    fn write(&self, body: &mut Vec<u8>) {
        self.iter().for_each(|n| n.write(body));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FieldError> {
        Ok([u32::read(reader)?, u32::read(reader)?, u32::read(reader)?])
    }
}

impl Field for Status {
    const NAME: &'static str = "status";
    const MAX_LEN: usize = 4;

    fn write(&self, body: &mut Vec<u8>) {
        self.to_raw().write(body);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FieldError> {
        i32::read(reader).map(Self::from_raw)
    }
}

/// A text of at most `MAX` bytes: its length as u16, then UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Text<const MAX: usize>(String);

impl<const MAX: usize> Text<MAX> {
    /// `text`, cut at a character where it is too long.
    pub fn new(text: &str) -> Self {
        Self(bounded(text, MAX).to_owned())
    }

    /// The text. A decoded one has no control characters: it may be shown on a terminal.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> From<&str> for Text<MAX> {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl<const MAX: usize> Deref for Text<MAX> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> PartialEq<&str> for Text<MAX> {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

impl<const MAX: usize> std::fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl<const MAX: usize> Field for Text<MAX> {
    const NAME: &'static str = "text";
    const MAX_LEN: usize = 2 + MAX;

    fn write(&self, body: &mut Vec<u8>) {
        write_len(self.0.len(), body);
        body.extend_from_slice(self.0.as_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FieldError> {
        let len = read_len(reader, MAX)?;
        let bytes = reader.take(len)?;
        let text = std::str::from_utf8(bytes).map_err(|_| FieldError::NotText)?;
        Ok(Self(printable(text)))
    }
}

/// Bytes of a body that lie in it, without memory of their own: as many as the parameters of most launches.
pub type BodyBytes = SmallVec<[u8; 32]>;

/// Bytes without meaning to the protocol, at most `MAX`: their number as u16, then the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bytes<const MAX: usize>(BodyBytes);

impl<const MAX: usize> Bytes<MAX> {
    /// `bytes`, or `None` where there are more than `MAX`.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= MAX).then(|| Self(BodyBytes::from_slice(bytes)))
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl<const MAX: usize> From<Bytes<MAX>> for Vec<u8> {
    fn from(bytes: Bytes<MAX>) -> Self {
        bytes.0.into_vec()
    }
}

impl<const MAX: usize> Field for Bytes<MAX> {
    const NAME: &'static str = "bytes";
    const MAX_LEN: usize = 2 + MAX;

    fn write(&self, body: &mut Vec<u8>) {
        write_len(self.0.len(), body);
        body.extend_from_slice(&self.0);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FieldError> {
        let len = read_len(reader, MAX)?;
        Ok(Self(BodyBytes::from_slice(reader.take(len)?)))
    }
}

/// At most `MAX` values of one kind: their number as u16, then the values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List<T, const MAX: usize>(Vec<T>);

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, const MAX: usize> List<T, MAX> {
    /// Adds a value.
    ///
    /// # Errors
    /// `value` itself, if the list is full.
    pub fn push(&mut self, value: T) -> Result<(), T> {
        if self.0.len() >= MAX {
            return Err(value);
        }
        self.0.push(value);
        Ok(())
    }

    /// The values.
    pub fn as_slice(&self) -> &[T] {
        &self.0
    }

    /// The value at place `at`, to be changed.
    pub fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        self.0.get_mut(at)
    }
}

impl<T, const MAX: usize> From<List<T, MAX>> for Vec<T> {
    fn from(list: List<T, MAX>) -> Self {
        list.0
    }
}

impl<T: Field, const MAX: usize> Field for List<T, MAX> {
    const NAME: &'static str = "list";
    const MAX_LEN: usize = 2 + MAX * T::MAX_LEN;
    const LIST: Option<(usize, &'static str)> = Some((MAX, T::NAME));

    fn write(&self, body: &mut Vec<u8>) {
        write_len(self.0.len(), body);
        self.0.iter().for_each(|value| value.write(body));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FieldError> {
        let len = read_len(reader, MAX)?;
        (0..len)
            .map(|_| T::read(reader))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

fn write_len(len: usize, body: &mut Vec<u8>) {
    u16::try_from(len)
        .expect("the types bound their lengths")
        .write(body);
}

fn read_len(reader: &mut Reader<'_>, max: usize) -> Result<usize, FieldError> {
    let len = usize::from(u16::read(reader)?);
    if len > max {
        return Err(FieldError::TooLong { len, max });
    }
    Ok(len)
}

/// Cuts `text` at a character so that it has at most `max` bytes.
pub(crate) fn bounded(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
