//! The list of domains, from libxenctrl. Optional, and for dom0 only.
//!
//! libxenctrl knows no names: a domain's name is in xenstore (`/local/domain/ID/name`).

use std::io;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::load;
use crate::generated::ctrl::{
    LibXenCtrl, XEN_DOMINF_dying, XEN_DOMINF_paused, XEN_DOMINF_shutdown, XEN_DOMINF_shutdownmask,
    XEN_DOMINF_shutdownshift, xc_domaininfo_t, xc_interface,
};
use crate::{DomId, Error, ErrorKind, Result};

/// The release whose headers the bindings were made from.
const BOUND_RELEASE: &str = "4.17";

/// Xen's information about one domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DomainInfo {
    /// Its number.
    pub id: DomId,
    /// Its UUID, in the order of the text form. Only with the libxenctrl of Xen 4.17, whose
    /// layout is bound.
    pub uuid: Option<[u8; 16]>,
    /// It is being destroyed: it no longer runs, but exists while others map its pages.
    pub dying: bool,
    /// The reason code of its shutdown (0 power-off, 1 reboot, 2 suspend, 3 crash), if it shut
    /// down. Source: `xen/sched.h`, `SHUTDOWN_*`.
    pub shutdown: Option<u8>,
    /// Control software paused it.
    pub paused: bool,
}

impl DomainInfo {
    /// Whether the domain can still answer: not dying and not shut down.
    pub fn is_alive(&self) -> bool {
        !self.dying && self.shutdown.is_none()
    }
}

/// An open `xc_interface`.
pub struct Domains {
    library: &'static LibXenCtrl,
    release: &'static str,
    handle: Mutex<Raw>,
}

/// Marks the handle as usable from any thread.
struct Raw(NonNull<xc_interface>);

// SAFETY: a handle is bound to no thread; the mutex around it lets one thread at a time in.
unsafe impl Send for Raw {}

/// Room for the structure of any release; they agree on its first 8 bytes and have grown since.
/// Each is shorter than twice the bound one.
type AnyRelease = [xc_domaininfo_t; 4];

impl Domains {
    /// `xc_interface_open`—opens the hypervisor interface.
    ///
    /// # Errors
    /// `LibraryMissing`, `PermissionDenied`, `DeviceMissing`; only dom0 may ask.
    pub fn open() -> Result<Self> {
        let (library, release) = load::ctrl()?;
        // SAFETY: the loggers are valid for ever; 0 is no flags.
        let handle = unsafe { library.xc_interface_open(load::quiet(), load::quiet(), 0) };
        let Some(handle) = NonNull::new(handle) else {
            let error = io::Error::last_os_error();
            let kind = match error.raw_os_error() {
                Some(libc::EACCES | libc::EPERM) => ErrorKind::PermissionDenied,
                Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => ErrorKind::DeviceMissing,
                _ => ErrorKind::Os,
            };
            return Err(
                Error::os(kind, "cannot open Xen's control interface", &error)
                    .with_hint("only root in dom0 can use it"),
            );
        };
        Ok(Self {
            library,
            release,
            handle: Mutex::new(Raw(handle)),
        })
    }

    /// The domain with this number, if there is one.
    ///
    /// # Errors
    /// `PermissionDenied` outside dom0, `Os`.
    pub fn info(&self, id: DomId) -> Result<Option<DomainInfo>> {
        Ok(self.first_from(id)?.filter(|info| info.id == id))
    }

    /// All domains, by number.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub fn list(&self) -> Result<Vec<DomainInfo>> {
        let mut list = Vec::new();
        let mut next = Some(DomId(0));
        while let Some(from) = next {
            let Some(info) = self.first_from(from)? else {
                break;
            };
            list.push(info);
            next = info
                .id
                .0
                .checked_add(1)
                .filter(|id| *id < DomId::FIRST_RESERVED)
                .map(DomId);
        }
        Ok(list)
    }

    /// `xc_domain_getinfolist`—the first domain whose number is `from` or higher.
    fn first_from(&self, from: DomId) -> Result<Option<DomainInfo>> {
        let mut storage = MaybeUninit::<AnyRelease>::zeroed();
        let handle = self.lock();
        // SAFETY: the handle is open; one domain is asked for and there is room for four.
        let count = unsafe {
            self.library.xc_domain_getinfolist(
                handle.0.as_ptr(),
                from.0.into(),
                1,
                storage.as_mut_ptr().cast(),
            )
        };
        let error = io::Error::last_os_error();
        drop(handle);
        match count {
            0 => return Ok(None),
            1 => {}
            _ => {
                let kind = match error.raw_os_error() {
                    Some(libc::EACCES | libc::EPERM) => ErrorKind::PermissionDenied,
                    _ => ErrorKind::Os,
                };
                return Err(Error::os(kind, "cannot ask Xen about domains", &error)
                    .with_hint("only root in dom0 can ask, with the libxenctrl of its Xen"));
            }
        }
        // SAFETY: the storage was zeroed, and all of its fields are integers.
        let [info, ..] = unsafe { storage.assume_init() };
        let flag = |bit: u32| info.flags & bit != 0;
        let reason = (info.flags >> XEN_DOMINF_shutdownshift) & XEN_DOMINF_shutdownmask;
        Ok(Some(DomainInfo {
            id: DomId(info.domain),
            uuid: (self.release == BOUND_RELEASE).then_some(info.handle),
            dying: flag(XEN_DOMINF_dying),
            shutdown: flag(XEN_DOMINF_shutdown).then_some(reason.to_le_bytes()[0]),
            paused: flag(XEN_DOMINF_paused),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Raw> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Domains {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "xc_interface of Xen {}", self.release)
    }
}

impl Drop for Domains {
    fn drop(&mut self) {
        // SAFETY: the handle is open and this is its last use.
        unsafe { self.library.xc_interface_close(self.lock().0.as_ptr()) };
    }
}
