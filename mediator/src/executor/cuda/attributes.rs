//! Attributes of launches, as the driver takes them.

use std::ffi::c_uint;

use cudarc::driver::sys::CUlaunchAttribute;

use super::super::gpu::device::Launch;
use super::handles::Function;

/// `CUlaunchAttribute`. cudarc's has an `enum` of the ids that one CUDA version knows, and a guest gives any.
#[repr(C, align(8))]
pub(super) struct Attribute {
    pub(super) id: c_uint,
    _padding: [u8; 4],
    pub(super) value: [u8; 64],
}

const _: () = assert!(
    size_of::<Attribute>() == size_of::<CUlaunchAttribute>()
        && align_of::<Attribute>() == align_of::<CUlaunchAttribute>()
);

/// Those of a launch.
pub(super) fn of(launch: &Launch<Function>) -> Vec<Attribute> {
    let given = launch.attributes.iter();
    given
        .map(|attribute| Attribute {
            id: attribute.id,
            _padding: [0; 4],
            value: attribute.value,
        })
        .collect()
}
