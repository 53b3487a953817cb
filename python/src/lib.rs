//! The native part of the Python package `vgpu`: sessions, memory, kernels and streams in bytes. Arrays with shapes and
//! types, arguments of kernels and the exceptions are Python, in `vgpu/`.

mod device;
mod error;
mod objects;
mod session;
mod view;

use std::collections::BTreeMap;

use pyo3::prelude::*;
use vgpu_guest::attributes::{DEVICE_ATTRIBUTES, FUNCTION_ATTRIBUTES};

/// `vgpu._native`.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let [device, function] = [DEVICE_ATTRIBUTES, FUNCTION_ATTRIBUTES].map(|all| {
        let all = all.iter().copied();
        all.collect::<BTreeMap<_, _>>()
    });
    module.add("DEVICE_ATTRIBUTES", device)?;
    module.add("FUNCTION_ATTRIBUTES", function)?;
    module.add_function(wrap_pyfunction!(session::devices, module)?)?;
    module.add_class::<device::Device>()?;
    module.add_class::<objects::Memory>()?;
    module.add_class::<view::Pinned>()?;
    module.add_class::<objects::Module>()?;
    module.add_class::<objects::Function>()?;
    module.add_class::<objects::Stream>()?;
    module.add_class::<objects::Event>()?;
    Ok(())
}
