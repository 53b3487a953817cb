//! Mapping another domain's pages through `/dev/xen/gntdev`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::device::{self, GNTDEV};
use crate::grant::{
    Access, GrantMap, GrantRef, MappedPages, Region, Unmap, UnmapNotify, check_request,
};
use crate::{DomId, Error, ErrorKind, Port, Result, ioctl, memory};

/// Pause before a paged-out page is tried again.
const PAGING_RETRY: Duration = Duration::from_millis(1);

/// An open `/dev/xen/gntdev`.
#[derive(Debug)]
pub(crate) struct Gntdev {
    device: Arc<Table>,
}

impl Gntdev {
    pub(crate) fn open() -> Result<Self> {
        Ok(Self {
            device: Arc::new(Table {
                fd: GNTDEV.open(0)?,
            }),
        })
    }
}

impl GrantMap for Gntdev {
    fn provider(&self) -> &str {
        GNTDEV.path
    }

    fn map(
        &self,
        owner: DomId,
        refs: &[GrantRef],
        access: Access,
        notify: Option<UnmapNotify>,
        deadline: Instant,
    ) -> Result<MappedPages> {
        let writable = access == Access::ReadWrite;
        let count = check_request("cannot map grants", refs.len(), notify, writable)?;
        let refused = |error: &io::Error| device::map_error(owner, refs, access, error);
        let fd = self.device.fd.as_fd();
        // SAFETY: `fd` is gntdev.
        let index =
            unsafe { ioctl::gntdev_map(fd, owner, refs) }.map_err(|error| refused(&error))?;
        let start = match self.device.map_until(index, refs.len(), writable, deadline) {
            Ok(start) => start,
            Err(error) => {
                // SAFETY: `fd` is gntdev; nothing is mapped.
                let _ = unsafe { ioctl::gntdev_unmap(fd, index, count) };
                return Err(refused(&error));
            }
        };
        let region = Region {
            start,
            pages: refs.len(),
            index,
        };
        let mapped = MappedPages::new(region, Arc::<Table>::clone(&self.device));
        if let Some(notify) = notify {
            let at = index + u64::from(notify.clear_byte.unwrap_or(0));
            let port = notify.send_event.unwrap_or(Port(0));
            // SAFETY: `fd` is gntdev.
            unsafe { ioctl::gntdev_set_unmap_notify(fd, at, device::notify_action(notify), port) }
                .map_err(|error| device::notify_error(notify, &error))?;
        }
        Ok(mapped)
    }
}

/// The descriptor with its table of references, kept open while there are mappings of it.
#[derive(Debug)]
struct Table {
    fd: OwnedFd,
}

impl Table {
    /// Maps a range of the table, trying again while Xen brings a paged-out page back.
    fn map_until(
        &self,
        index: u64,
        pages: usize,
        writable: bool,
        deadline: Instant,
    ) -> io::Result<NonNull<u8>> {
        until_paged_in(deadline, || {
            memory::map(self.fd.as_fd(), index, pages, writable)
        })
    }
}

/// Calls `map` repeatedly while the page is paged out (`EAGAIN`), until `deadline`.
fn until_paged_in<T>(deadline: Instant, mut map: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        // Read before trying, so that one attempt follows the deadline.
        let late = Instant::now() >= deadline;
        match map() {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && !late => {
                thread::sleep(PAGING_RETRY);
            }
            result => return result,
        }
    }
}

impl Unmap for Table {
    unsafe fn unmap(&self, region: &Region) -> Result<()> {
        let failed = |error: io::Error| {
            Error::os(
                ErrorKind::Os,
                "cannot unmap pages of another domain",
                &error,
            )
        };
        let count = u32::try_from(region.pages)
            .map_err(|_| Error::new(ErrorKind::InvalidArgument, "too many pages"))?;
        // The order is the header's: first the memory, then the table's entry.
        // SAFETY: the caller gives up the region, which `map` mapped.
        unsafe { memory::unmap(region.start, region.pages) }.map_err(failed)?;
        // SAFETY: the descriptor is gntdev.
        unsafe { ioctl::gntdev_unmap(self.fd.as_fd(), region.index, count) }.map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// docs/threat-model.md, case 44: a page that comes back is mapped, one that stays away ends the wait.
    #[test]
    fn case_44_mmap_again_until_the_deadline() {
        let away = || io::Error::from_raw_os_error(libc::EAGAIN);
        let mut tries = 0;
        let soon = Instant::now() + Duration::from_secs(60);
        let mapped = until_paged_in(soon, || {
            tries += 1;
            if tries < 3 { Err(away()) } else { Ok(tries) }
        });
        assert_eq!(mapped.unwrap(), 3);
        let short = Instant::now() + Duration::from_millis(10);
        let error = until_paged_in(short, || Err::<(), _>(away())).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
        // A page that comes back while this process does not run is mapped, however late that is.
        let mut tries = 0;
        let short = Instant::now() + Duration::from_millis(10);
        let mapped = until_paged_in(short, || {
            tries += 1;
            thread::sleep(short.saturating_duration_since(Instant::now()));
            if tries < 2 { Err(away()) } else { Ok(tries) }
        });
        assert_eq!(mapped.unwrap(), 2);
        // Any other refusal is final.
        let mut tries = 0;
        let refused = until_paged_in(soon, || {
            tries += 1;
            Err::<(), _>(io::Error::from_raw_os_error(libc::EINVAL))
        });
        assert!(refused.is_err() && tries == 1);
    }
}
