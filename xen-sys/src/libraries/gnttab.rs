//! Mapping another domain's pages through libxengnttab's `xengnttab_*`.

use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::gntshr::NONE;
use super::load;
use crate::device::{self, GNTDEV};
use crate::generated::gnttab::{LibXenGnttab, xengnttab_handle};
use crate::grant::{
    Access, GrantMap, GrantRef, MappedPages, Region, Unmap, UnmapNotify, check_request,
};
use crate::{DomId, Error, ErrorKind, Result, memory};

/// An open `xengnttab_handle`.
#[derive(Debug)]
pub(crate) struct LibraryGnttab {
    handle: Arc<Handle>,
}

impl LibraryGnttab {
    /// `xengnttab_open`—opens the grant table driver.
    pub(crate) fn open() -> Result<Self> {
        let library = load::gnttab()?;
        // SAFETY: the logger is valid for ever; 0 is no flags.
        let handle = unsafe { library.xengnttab_open(load::quiet(), 0) };
        let handle =
            NonNull::new(handle).ok_or_else(|| GNTDEV.open_error(&io::Error::last_os_error()))?;
        let handle = Handle {
            library,
            handle: Mutex::new(Raw(handle)),
        };
        // SAFETY: the handle is open.
        let fd = unsafe { library.xengnttab_fd(handle.lock().0.as_ptr()) };
        load::add_flags(fd, 0).map_err(|error| GNTDEV.open_error(&error))?;
        Ok(Self {
            handle: Arc::new(handle),
        })
    }
}

impl GrantMap for LibraryGnttab {
    fn provider(&self) -> &str {
        "libxengnttab"
    }

    /// `xengnttab_map_domain_grant_refs`, `xengnttab_map_grant_ref_notify`—map grants.
    ///
    /// The library itself retries a paged-out page without limit, so `deadline` is not used.
    fn map(
        &self,
        owner: DomId,
        refs: &[GrantRef],
        access: Access,
        notify: Option<UnmapNotify>,
        _deadline: Instant,
    ) -> Result<MappedPages> {
        let writable = access == Access::ReadWrite;
        let count = check_request("cannot map grants", refs.len(), notify, writable)?;
        let prot = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        let mut numbers: Vec<u32> = refs.iter().map(|gref| gref.0).collect();
        let library = self.handle.library;
        let handle = self.handle.lock();
        let start = match notify {
            // SAFETY: the handle is open; `check_request` allows a notification with one
            // reference only.
            Some(notify) => unsafe {
                library.xengnttab_map_grant_ref_notify(
                    handle.0.as_ptr(),
                    owner.0.into(),
                    numbers[0],
                    prot,
                    notify.clear_byte.map_or(NONE, u32::from),
                    notify.send_event.map_or(NONE, |port| port.0),
                )
            },
            // SAFETY: the handle is open; `numbers` has `count` references.
            None => unsafe {
                library.xengnttab_map_domain_grant_refs(
                    handle.0.as_ptr(),
                    count,
                    owner.0.into(),
                    numbers.as_mut_ptr(),
                    prot,
                )
            },
        };
        let error = io::Error::last_os_error();
        drop(handle);
        let refused = |error: &io::Error| device::map_error(owner, refs, access, error);
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(|| refused(&error))?;
        let region = Region {
            start,
            pages: refs.len(),
            index: 0,
        };
        let mapped = MappedPages::new(region, Arc::<Handle>::clone(&self.handle));
        // SAFETY: the library mapped the range just now.
        unsafe { memory::keep_from_children(start, refs.len()) }
            .map_err(|error| refused(&error))?;
        Ok(mapped)
    }
}

/// The library's handle, closed when the last mapping is gone.
struct Handle {
    library: &'static LibXenGnttab,
    handle: Mutex<Raw>,
}

/// Marks the handle as usable from any thread.
struct Raw(NonNull<xengnttab_handle>);

// SAFETY: a handle is a descriptor and a logger, bound to no thread; the mutex around it lets one
// thread at a time in.
unsafe impl Send for Raw {}

impl Handle {
    fn lock(&self) -> MutexGuard<'_, Raw> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("xengnttab_handle")
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle is open and this is its last use.
        unsafe { self.library.xengnttab_close(self.lock().0.as_ptr()) };
    }
}

impl Unmap for Handle {
    /// `xengnttab_unmap`—unmaps grants.
    unsafe fn unmap(&self, region: &Region) -> Result<()> {
        let count = u32::try_from(region.pages)
            .map_err(|_| Error::new(ErrorKind::InvalidArgument, "too many pages"))?;
        let handle = self.lock();
        // SAFETY: the caller gives up the region, which `map` got from this handle.
        let result = unsafe {
            self.library
                .xengnttab_unmap(handle.0.as_ptr(), region.start.as_ptr().cast(), count)
        };
        match result {
            0 => Ok(()),
            _ => {
                let error = io::Error::last_os_error();
                Err(Error::os(
                    ErrorKind::Os,
                    "cannot unmap pages of another domain",
                    &error,
                ))
            }
        }
    }
}
