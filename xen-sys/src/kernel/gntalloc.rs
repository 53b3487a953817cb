//! Granting pages through `/dev/xen/gntalloc`.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::device::{self, GNTALLOC};
use crate::grant::{Access, GrantShare, Region, SharedPages, Unmap, UnmapNotify, check_request};
use crate::{DomId, Error, ErrorKind, Port, Result, ioctl, memory};

/// An open `/dev/xen/gntalloc`.
#[derive(Debug)]
pub(crate) struct Gntalloc {
    device: Arc<Mapped>,
}

impl Gntalloc {
    pub(crate) fn open() -> Result<Self> {
        Ok(Self {
            device: Arc::new(Mapped {
                fd: GNTALLOC.open(0)?,
            }),
        })
    }
}

impl GrantShare for Gntalloc {
    fn provider(&self) -> &str {
        GNTALLOC.path
    }

    fn share(
        &self,
        peer: DomId,
        pages: usize,
        peer_access: Access,
        notify: Option<UnmapNotify>,
    ) -> Result<SharedPages> {
        let count = check_request("cannot grant pages", pages, notify, true)?;
        let fd = self.device.fd.as_fd();
        let writes = peer_access == Access::ReadWrite;
        // SAFETY: `fd` is gntalloc.
        let (index, refs) = unsafe { ioctl::gntalloc_alloc(fd, peer, count, writes) }
            .map_err(|error| device::share_error(peer, pages, &error))?;
        let mapped = memory::map(fd, index, pages, true);
        let notified = match (&mapped, notify) {
            (Ok(_), Some(notify)) => {
                let at = index + u64::from(notify.clear_byte.unwrap_or(0));
                let port = notify.send_event.unwrap_or(Port(0));
                let action = device::notify_action(notify);
                // SAFETY: `fd` is gntalloc.
                unsafe { ioctl::gntalloc_set_unmap_notify(fd, at, action, port) }
                    .map_err(|error| device::notify_error(notify, &error))
            }
            _ => Ok(()),
        };
        // From here on the mapping alone keeps the pages, so they go with it: at a drop, and also
        // when the process is killed.
        // SAFETY: `fd` is gntalloc.
        let released = unsafe { ioctl::gntalloc_dealloc(fd, index, count) };

        let start = mapped.map_err(|error| {
            Error::os(
                ErrorKind::Os,
                format!("cannot map {pages} granted pages"),
                &error,
            )
        })?;
        let shared = SharedPages::new(
            Region {
                start,
                pages,
                index,
            },
            refs,
            Arc::<Mapped>::clone(&self.device),
        );
        notified?;
        released.map_err(|error| {
            Error::os(
                ErrorKind::Os,
                "cannot hand granted pages to their mapping",
                &error,
            )
        })?;
        Ok(shared)
    }
}

/// The descriptor, kept open while there are mappings of it.
#[derive(Debug)]
struct Mapped {
    fd: OwnedFd,
}

impl Unmap for Mapped {
    unsafe fn unmap(&self, region: &Region) -> Result<()> {
        // SAFETY: the caller gives up the region, which `share` mapped.
        unsafe { memory::unmap(region.start, region.pages) }
            .map_err(|error| Error::os(ErrorKind::Os, "cannot unmap granted pages", &error))
    }
}
