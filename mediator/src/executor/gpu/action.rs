//! A piece of work as the guest named it, which is queued or recorded.

use vgpu_protocol::op::Launch;

use super::device::Rows;

/// A piece of work, as the guest named it.
#[derive(Debug, Clone)]
pub(super) enum Action {
    /// A kernel. Its stream is not looked at.
    Launch(Launch),
    /// Between rows of the same shape.
    Copy { to: Rows, from: Rows },
    /// Elements of 1, 2 or 4 bytes.
    Fill {
        to: Rows,
        value: u32,
        element_bytes: u8,
    },
}

impl Action {
    /// Bytes of memory that it takes beyond its own size.
    pub(super) fn spilled(&self) -> usize {
        match self {
            Self::Launch(launch) => {
                launch.parameters.as_slice().len() + size_of_val(launch.attributes.as_slice())
            }
            Self::Copy { .. } | Self::Fill { .. } => 0,
        }
    }
}
