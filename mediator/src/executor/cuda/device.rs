//! One GPU and its context.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys::{CUcontext, CUdevice, CUstream, CUuuid};

use vgpu_protocol::op::NO_ATTRIBUTE;
use vgpu_transport::Waker;

use super::super::gpu::device::{Description, Limit};
use super::driver::{CallError, Driver, check};
use crate::devices::{Device as Summary, DeviceKey};

/// Attributes that are asked for: those of CUDA 13, and some to come.
const ATTRIBUTES: c_int = 160;

/// `CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID`, `_PCI_BUS_ID` and `_PCI_DEVICE_ID`.
const PCI: [c_int; 3] = [50, 33, 34];

/// A GPU with its primary context.
#[derive(Debug)]
pub(super) struct Device {
    driver: &'static Driver,
    device: CUdevice,
    context: CUcontext,
    /// Raised by the driver's thread when a stream has come to a certain point.
    waker: Arc<Waker>,
    description: OnceLock<Description>,
    /// Once true nothing more is asked of the driver, frees included: they might not return.
    lost: AtomicBool,
    /// The error by which it was lost, if it was one.
    cause: OnceLock<CallError>,
}

// SAFETY: the handles are the driver's own, valid in every thread of the process once the context
// is current there, which `bind` does; the driver locks for itself.
unsafe impl Send for Device {}
// SAFETY: as above; the fields that change are atomic, or set once under their own lock.
unsafe impl Sync for Device {}

impl Device {
    /// Initialises the driver and counts its devices.
    pub(super) fn count(driver: &'static Driver) -> Result<c_int, CallError> {
        // SAFETY: the first call to the driver, with the only value that is allowed.
        check(unsafe { (driver.init)(0) }, "cuInit")?;
        let mut count = 0;
        // SAFETY: `count` is writable.
        let code = unsafe { (driver.device_get_count)(&mut count) };
        check(code, "cuDeviceGetCount")?;
        Ok(count)
    }

    /// Opens the device with this number, of those that [`all`](Self::all) has given.
    pub(super) fn open(
        driver: &'static Driver,
        ordinal: u32,
        waker: Arc<Waker>,
    ) -> Result<Device, CallError> {
        let device = Gpu::get(driver, ordinal)?.device;
        let mut context = ptr::null_mut();
        // SAFETY: `device` is a device; `context` is writable. `drop` releases what is retained.
        let code = unsafe { (driver.primary_ctx_retain)(&mut context, device) };
        check(code, "cuDevicePrimaryCtxRetain")?;
        let opened = Device {
            driver,
            device,
            context,
            waker,
            description: OnceLock::new(),
            lost: AtomicBool::new(false),
            cause: OnceLock::new(),
        };
        opened.bind()?;
        Ok(opened)
    }

    /// The first `count` devices, without a context on any: in the order of the driver, which is that of the PCI bus
    /// where the mediator has started this process.
    pub(super) fn all(driver: &'static Driver, count: c_int) -> Result<Vec<Summary>, CallError> {
        let count = u32::try_from(count).unwrap_or(0);
        let summary = |index| Gpu::get(driver, index)?.summary(index);
        (0..count).map(summary).collect()
    }

    /// Its description for guests. The driver is asked once: there are many attributes.
    pub(super) fn describe(&self) -> Result<Description, CallError> {
        if let Some(known) = self.description.get() {
            return Ok(known.clone());
        }
        let (driver, device) = (self.driver, self.device);
        let description = Gpu { driver, device }.describe()?;
        Ok(self.description.get_or_init(|| description).clone())
    }

    /// A limit of the context, in bytes. The context is current in this thread.
    pub(super) fn limit(&self, limit: Limit) -> Result<u64, CallError> {
        let mut bytes = 0;
        // SAFETY: the output is writable and the context current: the caller's promise.
        let code = unsafe { (self.driver.ctx_get_limit)(&mut bytes, limit as c_uint) };
        check(code, "cuCtxGetLimit").map(|()| bytes as u64)
    }

    /// The description of another device, without a context on it.
    pub(super) fn describe_other(
        driver: &'static Driver,
        ordinal: u32,
    ) -> Result<Description, CallError> {
        Gpu::get(driver, ordinal)?.describe()
    }

    /// The driver's functions.
    pub(super) fn driver(&self) -> &'static Driver {
        self.driver
    }

    /// Makes the context current in the calling thread, as every other call needs it.
    pub(super) fn bind(&self) -> Result<(), CallError> {
        // SAFETY: the context is retained until `drop`.
        check(
            unsafe { (self.driver.ctx_set_current)(self.context) },
            "cuCtxSetCurrent",
        )
    }

    /// Waits for all that is queued in the context: where nothing is, this tells whether the context still works.
    pub(super) fn synchronize(&self) -> Result<(), CallError> {
        self.bind()?;
        // SAFETY: the context is current in this thread and retained until `drop`.
        check(
            unsafe { (self.driver.ctx_synchronize)() },
            "cuCtxSynchronize",
        )
    }

    /// Whether the device was given up.
    pub(super) fn is_lost(&self) -> bool {
        // Relaxed: nothing is published along with the flag.
        self.lost.load(Ordering::Relaxed)
    }

    /// Gives the device up: whatever it still holds stays until the process ends.
    pub(super) fn set_lost(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    /// The same because of `error`, after which everything fails.
    pub(super) fn lose(&self, error: CallError) {
        // The first is the one that counts.
        let _ = self.cause.set(error);
        self.set_lost();
    }

    /// The error by which the device was lost, if it was one.
    pub(super) fn lost_by(&self) -> Option<CallError> {
        self.cause.get().copied()
    }

    /// The newest CUDA version that the driver supports, as `13.0`.
    pub(super) fn cuda_version(&self) -> Result<String, CallError> {
        let mut version = 0;
        // SAFETY: `version` is writable.
        let code = unsafe { (self.driver.driver_get_version)(&mut version) };
        check(code, "cuDriverGetVersion")?;
        Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
    }

    /// The context.
    pub(super) fn context(&self) -> CUcontext {
        self.context
    }

    /// The waker, raised when a stream reaches a certain point.
    pub(super) fn waker(&self) -> &Arc<Waker> {
        &self.waker
    }

    /// Has the [`waker`](Self::waker) raised when `stream` has come to this point.
    ///
    /// # Safety
    /// The device outlives what is queued in `stream`, unless the process ends first; `stream` is
    /// live and the context current.
    pub(super) unsafe fn raise_after(&self, stream: CUstream) -> Result<(), CallError> {
        let waker = Arc::as_ptr(&self.waker).cast_mut().cast::<c_void>();
        // SAFETY: `raise` takes a waker, which lives as long as this device: the caller's promise.
        let code = unsafe { (self.driver.launch_host_func)(stream, Some(raise), waker) };
        check(code, "cuLaunchHostFunc")
    }
}

/// A GPU that no context is open on.
#[derive(Clone, Copy)]
struct Gpu {
    driver: &'static Driver,
    device: CUdevice,
}

impl Gpu {
    /// The device with this number. The driver must be initialised.
    fn get(driver: &'static Driver, ordinal: u32) -> Result<Self, CallError> {
        let ordinal = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        let mut device = 0;
        // SAFETY: the driver is initialised; `device` is writable.
        let code = unsafe { (driver.device_get)(&mut device, ordinal) };
        check(code, "cuDeviceGet")?;
        Ok(Self { driver, device })
    }

    /// The newest CUDA version that the driver supports: 1000 × major + 10 × minor.
    fn driver_version(self) -> Result<u32, CallError> {
        let mut version = 0;
        // SAFETY: `version` is writable.
        let code = unsafe { (self.driver.driver_get_version)(&mut version) };
        check(code, "cuDriverGetVersion")?;
        Ok(u32::try_from(version).unwrap_or(0))
    }

    fn describe(self) -> Result<Description, CallError> {
        Ok(Description {
            name: self.name()?,
            uuid: self.uuid()?,
            total_memory: self.total_memory()?,
            driver_version: self.driver_version()?,
            attributes: (0..ATTRIBUTES)
                .map(|number| match number {
                    0 => NO_ATTRIBUTE,
                    number => self.attribute(number).unwrap_or(NO_ATTRIBUTE),
                })
                .collect(),
        })
    }

    fn summary(self, index: u32) -> Result<Summary, CallError> {
        let [domain, bus, slot] = PCI.map(|attribute| self.attribute(attribute).unwrap_or(0));
        Ok(Summary {
            index,
            uuid: DeviceKey::Uuid(self.uuid()?).to_string(),
            pci: format!("{domain:04x}:{bus:02x}:{slot:02x}.0"),
            name: self.name()?,
            total_memory: self.total_memory()?,
        })
    }

    /// The GPU's name, as in `NVIDIA H100 PCIe`.
    fn name(self) -> Result<String, CallError> {
        let mut name = [0 as c_char; 128];
        // SAFETY: the driver writes at most the given length, its NUL included; the last byte is
        // held back, so that a NUL is there whatever it does.
        let code = unsafe { (self.driver.device_get_name)(name.as_mut_ptr(), 127, self.device) };
        check(code, "cuDeviceGetName")?;
        // SAFETY: the array ends with a NUL and lives on.
        Ok(unsafe { CStr::from_ptr(name.as_ptr()) }
            .to_string_lossy()
            .into_owned())
    }

    /// Bytes of memory of the GPU.
    fn total_memory(self) -> Result<u64, CallError> {
        let mut bytes = 0;
        // SAFETY: `bytes` is writable.
        let code = unsafe { (self.driver.device_total_mem)(&mut bytes, self.device) };
        check(code, "cuDeviceTotalMem")?;
        Ok(bytes as u64)
    }

    /// The value of a `CUdevice_attribute`; `None` where the driver does not know it.
    fn attribute(self, attribute: c_int) -> Option<c_int> {
        let mut value = 0;
        // SAFETY: `value` is writable; an attribute is a number, and unknown ones are refused.
        let code =
            unsafe { (self.driver.device_get_attribute)(&mut value, attribute, self.device) };
        check(code, "cuDeviceGetAttribute").ok().map(|()| value)
    }

    /// The device's own 16 bytes.
    fn uuid(self) -> Result<[u8; 16], CallError> {
        let mut uuid = CUuuid { bytes: [0; 16] };
        // SAFETY: `uuid` is writable.
        let code = unsafe { (self.driver.device_get_uuid)(&mut uuid, self.device) };
        check(code, "cuDeviceGetUuid")?;
        Ok(uuid.bytes.map(|byte| byte.to_ne_bytes()[0]))
    }
}

/// Raises a waker, in a thread of the driver's.
///
/// # Safety
/// `waker` is a live [`Waker`].
unsafe extern "C" fn raise(waker: *mut c_void) {
    // SAFETY: the caller's promise; a waker may be raised by any thread.
    unsafe { &*waker.cast_const().cast::<Waker>() }.raise();
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.is_lost() {
            // Work that did not end may still raise it.
            std::mem::forget(Arc::clone(&self.waker));
        } else {
            // SAFETY: retained in `open`; who used the context held this device until now. The
            // result says nothing that anyone could act upon.
            unsafe { (self.driver.primary_ctx_release)(self.device) };
        }
    }
}
