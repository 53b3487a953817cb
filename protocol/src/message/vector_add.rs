//! VectorAdd: two vectors in, chunk by chunk, their sum out.
//!
//! The guest sends the request (flag MORE, a fresh stream handle), then one Data frame a chunk with
//! the same request id and handle, all but the last with MORE. The mediator answers with one Data
//! reply a chunk, in order, and then with the final reply. The handle is closed once the input has
//! ended and the final reply is sent.
//!
//! The mediator may send a final reply with an error at any point. It then discards this request's
//! Data frames up to the one without MORE; a guest that sees the error early sends an empty Data
//! frame without MORE as soon as the frame it is sending is complete. To a mediator that has not
//! failed, such an early end is a cancellation, answered with E_CANCELLED.

use bytemuck::{Pod, Zeroable};

use super::{MessageError, exact};
use crate::le::{U32, U64};

/// What the elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u32)]
pub enum DataType {
    /// IEEE 754 binary32, little-endian.
    F32 = 1,
}

impl DataType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
        }
    }
}

/// Opens a vector add. The input follows in Data frames: frame k carries chunk k of the first
/// vector and then chunk k of the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VectorAdd {
    /// Elements of each vector; at least 1.
    pub elements: u64,
    /// Elements of each chunk but the last, which has what is left; at least 1.
    pub chunk_elements: u32,
    /// What the elements are.
    pub data_type: DataType,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RawVectorAdd {
    elements: U64,
    chunk_elements: U32,
    data_type: U32,
}

impl VectorAdd {
    /// The body.
    pub fn encode(&self) -> Vec<u8> {
        let raw = RawVectorAdd {
            elements: self.elements.into(),
            chunk_elements: self.chunk_elements.into(),
            data_type: (self.data_type as u32).into(),
        };
        bytemuck::bytes_of(&raw).to_vec()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// Wrong length, no elements, an empty chunk, or elements of an unknown type.
    pub fn decode(body: &[u8]) -> Result<Self, MessageError> {
        const MESSAGE: &str = "VectorAdd";
        let raw: RawVectorAdd = exact(MESSAGE, body)?;
        let field = |field, value, rule| {
            Err(MessageError::Field {
                message: MESSAGE,
                field,
                value,
                rule,
            })
        };
        let (elements, chunk_elements) = (raw.elements.get(), raw.chunk_elements.get());
        if elements == 0 {
            return field("elements", 0, "at least 1 needed");
        }
        if chunk_elements == 0 {
            return field("chunk_elements", 0, "at least 1 needed");
        }
        let data_type = match raw.data_type.get() {
            1 => DataType::F32,
            other => return field("dtype", other.into(), "only 1 (f32) is known"),
        };
        Ok(Self {
            elements,
            chunk_elements,
            data_type,
        })
    }

    /// The sizes of the chunks, in order.
    pub const fn chunks(&self) -> Chunks {
        Chunks {
            left: self.elements,
            chunk_elements: self.chunk_elements,
        }
    }
}

/// Elements of each chunk of a vector, in order.
#[derive(Debug, Clone)]
pub struct Chunks {
    left: u64,
    chunk_elements: u32,
}

impl Chunks {
    /// Elements of the chunks not yet taken.
    pub const fn elements_left(&self) -> u64 {
        self.left
    }
}

impl Iterator for Chunks {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if self.left == 0 {
            return None;
        }
        // What does not fit u32 is above any chunk.
        let elements = u32::try_from(self.left)
            .unwrap_or(u32::MAX)
            .min(self.chunk_elements.max(1));
        self.left -= u64::from(elements);
        Some(elements)
    }
}

/// The end of a successful vector add.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VectorAddReply {
    /// Elements added.
    pub elements: u64,
    /// Time the device worked on them, in nanoseconds, as the executor measured it.
    pub device_ns: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RawVectorAddReply {
    device_ns: U64,
    elements: U64,
}

impl VectorAddReply {
    /// The body.
    pub fn encode(&self) -> Vec<u8> {
        let raw = RawVectorAddReply {
            device_ns: self.device_ns.into(),
            elements: self.elements.into(),
        };
        bytemuck::bytes_of(&raw).to_vec()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// Wrong length.
    pub fn decode(body: &[u8]) -> Result<Self, MessageError> {
        let raw: RawVectorAddReply = exact("VectorAddReply", body)?;
        Ok(Self {
            elements: raw.elements.get(),
            device_ns: raw.device_ns.get(),
        })
    }
}
