//! Regions of the guest's as a part of the device's memory: kernels reach them.
#![allow(unsafe_code)]

use std::sync::Arc;

use vchan::region::View;
use vgpu_ptx as ptx;

/// Ends with the region that holds it.
pub(super) struct Registration {
    device: ptx::Device,
    there: u64,
}

impl Registration {
    /// Makes all of a region, which may be written, part of the device's memory.
    ///
    /// # Errors
    /// There are no addresses for it; a fault has ended the context.
    pub(super) fn new(device: &ptx::Device, view: Arc<View>) -> Result<Self, ptx::Error> {
        let (start, len) = (view.as_ptr(), view.len());
        // SAFETY: the bytes are mapped for reading and writing while the view lives, and `vchan` has checked that no
        // peer can make touching them fault. It, too, reaches them only through atomics, and copies of theirs.
        let memory = unsafe { ptx::HostMemory::new(start, len, view)? };
        Ok(Self {
            there: device.register(&memory)?,
            device: device.clone(),
        })
    }

    /// The address of the first byte for kernels.
    pub(super) fn there(&self) -> u64 {
        self.there
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let gone = self.device.unregister(self.there);
        debug_assert!(gone.is_ok(), "it was registered");
    }
}
