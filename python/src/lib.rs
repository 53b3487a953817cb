//! The native part of the Python package `vgpu`: sessions, memory, kernels and streams in bytes. Arrays with shapes and
//! types, arguments of kernels and the exceptions are Python, in `vgpu/`.

mod device;
mod error;
mod objects;
mod view;

use pyo3::prelude::*;

/// `vgpu._native`.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<device::Device>()?;
    module.add_class::<objects::Memory>()?;
    module.add_class::<view::Pinned>()?;
    module.add_class::<objects::Module>()?;
    module.add_class::<objects::Function>()?;
    module.add_class::<objects::Stream>()?;
    module.add_class::<objects::Event>()?;
    Ok(())
}
