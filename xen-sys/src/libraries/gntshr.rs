//! Granting pages through libxengnttab's `xengntshr_*`.

use std::ffi::c_int;
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::load;
use crate::device::{self, GNTALLOC};
use crate::generated::gnttab::{LibXenGnttab, xengntshr_handle};
use crate::grant::{
    Access, GrantRef, GrantShare, Region, SharedPages, Unmap, UnmapNotify, check_request,
};
use crate::{DomId, Error, ErrorKind, Result, memory};

/// The header's -1 for "none", in the parameters' unsigned type.
pub(super) const NONE: u32 = u32::MAX;

/// An open `xengntshr_handle`.
#[derive(Debug)]
pub(crate) struct LibraryGntshr {
    handle: Arc<Handle>,
}

impl LibraryGntshr {
    /// `xengntshr_open`—opens the grant sharing driver.
    pub(crate) fn open() -> Result<Self> {
        let library = load::gnttab()?;
        // SAFETY: the logger is valid for ever; 0 is no flags.
        let handle = unsafe { library.xengntshr_open(load::quiet(), 0) };
        let handle =
            NonNull::new(handle).ok_or_else(|| GNTALLOC.open_error(&io::Error::last_os_error()))?;
        let handle = Handle {
            library,
            handle: Mutex::new(Raw(handle)),
        };
        // SAFETY: the handle is open.
        let fd = unsafe { library.xengntshr_fd(handle.lock().0.as_ptr()) };
        load::add_flags(fd, 0).map_err(|error| GNTALLOC.open_error(&error))?;
        Ok(Self {
            handle: Arc::new(handle),
        })
    }
}

impl GrantShare for LibraryGntshr {
    fn provider(&self) -> &str {
        "libxengnttab"
    }

    /// `xengntshr_share_pages`, `xengntshr_share_page_notify`—allocate, grant and map pages.
    fn share(
        &self,
        peer: DomId,
        pages: usize,
        peer_access: Access,
        notify: Option<UnmapNotify>,
    ) -> Result<SharedPages> {
        check_request("cannot grant pages", pages, notify, true)?;
        let count = c_int::try_from(pages)
            .map_err(|_| Error::new(ErrorKind::InvalidArgument, "too many pages"))?;
        let writable = c_int::from(peer_access == Access::ReadWrite);
        let mut refs = vec![0_u32; pages];
        let library = self.handle.library;
        let handle = self.handle.lock();
        let start = match notify {
            Some(notify) => {
                let byte = notify.clear_byte.map_or(NONE, u32::from);
                let port = notify.send_event.map_or(NONE, |port| port.0);
                // SAFETY: the handle is open; with a notification there is one page, and `refs`
                // has room for its reference.
                unsafe {
                    library.xengntshr_share_page_notify(
                        handle.0.as_ptr(),
                        peer.0.into(),
                        refs.as_mut_ptr(),
                        writable,
                        byte,
                        port,
                    )
                }
            }
            // SAFETY: the handle is open; `refs` has room for `count` references.
            None => unsafe {
                library.xengntshr_share_pages(
                    handle.0.as_ptr(),
                    peer.0.into(),
                    count,
                    refs.as_mut_ptr(),
                    writable,
                )
            },
        };
        let error = io::Error::last_os_error();
        drop(handle);
        let Some(start) = NonNull::new(start.cast::<u8>()) else {
            return Err(match notify {
                // Allocating fails with ENOSPC or ENOMEM; these two come from the notification.
                Some(notify)
                    if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) =>
                {
                    device::notify_error(notify, &error)
                }
                _ => device::share_error(peer, pages, &error),
            });
        };
        let refs = refs.into_iter().map(GrantRef).collect();
        let region = Region {
            start,
            pages,
            index: 0,
        };
        let shared = SharedPages::new(region, refs, Arc::<Handle>::clone(&self.handle));
        // SAFETY: the library mapped the range just now.
        unsafe { memory::keep_from_children(start, pages) }
            .map_err(|error| device::share_error(peer, pages, &error))?;
        Ok(shared)
    }
}

/// The library's handle, closed when the last mapping is gone.
struct Handle {
    library: &'static LibXenGnttab,
    handle: Mutex<Raw>,
}

/// Marks the handle as usable from any thread.
struct Raw(NonNull<xengntshr_handle>);

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
        f.write_str("xengntshr_handle")
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle is open and this is its last use.
        unsafe { self.library.xengntshr_close(self.lock().0.as_ptr()) };
    }
}

impl Unmap for Handle {
    /// `xengntshr_unshare`—unmaps pages, ending their grants.
    unsafe fn unmap(&self, region: &Region) -> Result<()> {
        let count = u32::try_from(region.pages)
            .map_err(|_| Error::new(ErrorKind::InvalidArgument, "too many pages"))?;
        let handle = self.lock();
        // SAFETY: the caller gives up the region, which `share` got from this handle.
        let result = unsafe {
            self.library
                .xengntshr_unshare(handle.0.as_ptr(), region.start.as_ptr().cast(), count)
        };
        match result {
            0 => Ok(()),
            _ => {
                let error = io::Error::last_os_error();
                Err(Error::os(
                    ErrorKind::Os,
                    "cannot unmap granted pages",
                    &error,
                ))
            }
        }
    }
}
