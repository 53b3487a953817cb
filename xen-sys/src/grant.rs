//! Grants: memory of one domain that another may map.
//!
//! The granting side allocates pages and grants them ([`GrantShare`]), the other side maps them by
//! their references ([`GrantMap`]). Both give memory that **the peer can change at any time**:
//! never make a Rust reference to it, use volatile or atomic access through the pointer.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Instant;

use crate::{DomId, Error, ErrorKind, Port, Result};

/// Bytes of one granted page. Source: `xen/grant_table.h`; grants are 4 KiB on every machine.
pub const PAGE_SIZE: usize = 4096;

/// A grant reference: the granting domain's name for one page.
/// Source: `xen/grant_table.h`, `grant_ref_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GrantRef(pub u32);

impl fmt::Display for GrantRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The access that a grant allows the peer, or a mapping this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// The kernel's action when a page is unmapped, even if the process was killed.
///
/// Through this the peer learns that a process died. It does not run when the whole domain dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnmapNotify {
    /// Sets the byte at this offset of the page to zero.
    pub clear_byte: Option<u16>,
    /// Signals this port, which must be bound on a still open [`EventChannels`] of this kernel
    /// when the notification is set up. The kernel keeps the port alive until the unmap.
    ///
    /// [`EventChannels`]: crate::EventChannels
    pub send_event: Option<Port>,
}

/// The granting side: `/dev/xen/gntalloc` or libxengnttab's `xengntshr_*`.
pub trait GrantShare: fmt::Debug + Send + Sync {
    /// The implementation, for diagnostics: a device path or a library's name.
    fn provider(&self) -> &str;

    /// Allocates `pages` zeroed pages, maps them here read-write and grants them to `peer`.
    ///
    /// All pages are allocated in one request, which succeeds or fails as a whole. `notify` needs
    /// `pages == 1`: the C library offers it for single pages only. The grants end when the value
    /// is dropped; the kernel frees a page that the peer still has mapped then once it is unmapped.
    ///
    /// # Errors
    /// `GrantLimit` (errno ENOSPC) when the kernel's limit or the grant table is exhausted: the
    /// caller can ask for less. `InvalidArgument` for 0 pages or a `notify` that does not fit.
    fn share(
        &self,
        peer: DomId,
        pages: usize,
        peer_access: Access,
        notify: Option<UnmapNotify>,
    ) -> Result<SharedPages>;
}

/// The mapping side: `/dev/xen/gntdev` or libxengnttab's `xengnttab_*`.
pub trait GrantMap: fmt::Debug + Send + Sync {
    /// The implementation, for diagnostics: a device path or a library's name.
    fn provider(&self) -> &str;

    /// Maps the pages that `owner` granted under `refs`, in that order, at one address.
    ///
    /// `notify` needs a single reference, and `ReadWrite` if it clears a byte. While the owner's
    /// page is paged out the call is repeated until `deadline` (the C library repeats it without
    /// a deadline).
    ///
    /// # Errors
    /// `MapRefused` (errno EINVAL) when Xen does not accept a reference, `TimedOut`,
    /// `InvalidArgument`. A failure leaves nothing mapped.
    fn map(
        &self,
        owner: DomId,
        refs: &[GrantRef],
        access: Access,
        notify: Option<UnmapNotify>,
        deadline: Instant,
    ) -> Result<MappedPages>;
}

/// A mapped range, with the data needed to unmap it.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) start: NonNull<u8>,
    pub(crate) pages: usize,
    /// The device's offset of the range; unused by the C libraries.
    pub(crate) index: u64,
}

/// Undoes a mapping; implemented by the devices and libraries that made it.
pub(crate) trait Unmap: fmt::Debug + Send + Sync {
    /// Unmaps `region` and carries out its notification.
    ///
    /// # Safety
    /// `region` was made by this object, is unmapped once, and is not accessed afterwards.
    unsafe fn unmap(&self, region: &Region) -> Result<()>;
}

/// A region that unmaps itself.
#[derive(Debug)]
struct Owned {
    region: Region,
    device: Arc<dyn Unmap>,
}

// SAFETY: the region is memory of the process, valid from every thread until the drop, and is
// handed out as a raw pointer only.
unsafe impl Send for Owned {}
// SAFETY: as above; shared access reads the address and length only.
unsafe impl Sync for Owned {}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: `region` came from `device`, this runs once, and no pointer derived from it may
        // be used after the value is gone (see `as_ptr`).
        let result = unsafe { self.device.unmap(&self.region) };
        // A failure cannot be handled here: the kernel unmaps when the process ends.
        debug_assert!(result.is_ok(), "{result:?}");
    }
}

/// Pages that this domain granted to a peer, mapped here. Unmapped and ungranted on drop.
#[derive(Debug)]
pub struct SharedPages {
    memory: Owned,
    refs: Vec<GrantRef>,
}

impl SharedPages {
    pub(crate) fn new(region: Region, refs: Vec<GrantRef>, device: Arc<dyn Unmap>) -> Self {
        debug_assert_eq!(region.pages, refs.len());
        Self {
            memory: Owned { region, device },
            refs,
        }
    }

    /// The first byte, page-aligned. Valid for [`len`](Self::len) bytes, read and write, until
    /// `self` is dropped; the peer may read, and write if its grant allows it, at any time.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.memory.region.start
    }

    /// Length in bytes: [`PAGE_SIZE`] per reference.
    #[expect(clippy::len_without_is_empty, reason = "there is at least one page")]
    pub fn len(&self) -> usize {
        self.memory.region.pages * PAGE_SIZE
    }

    /// The references to give to the peer, one per page, in order.
    pub fn refs(&self) -> &[GrantRef] {
        &self.refs
    }
}

/// Pages of another domain, mapped here. Unmapped on drop.
#[derive(Debug)]
pub struct MappedPages {
    memory: Owned,
}

impl MappedPages {
    pub(crate) fn new(region: Region, device: Arc<dyn Unmap>) -> Self {
        Self {
            memory: Owned { region, device },
        }
    }

    /// The first byte, page-aligned. Valid for [`len`](Self::len) bytes until `self` is dropped;
    /// writable only if it was mapped `ReadWrite`. The owner may change the bytes at any time.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.memory.region.start
    }

    /// Length in bytes: [`PAGE_SIZE`] per reference.
    #[expect(clippy::len_without_is_empty, reason = "there is at least one page")]
    pub fn len(&self) -> usize {
        self.memory.region.pages * PAGE_SIZE
    }
}

/// The checks common to all providers: a page count that Xen can express and a notification that
/// fits.
pub(crate) fn check_request(
    what: &str,
    pages: usize,
    notify: Option<UnmapNotify>,
    byte_is_writable: bool,
) -> Result<u32> {
    let invalid = |why: &str| {
        Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("{what}: {why}"),
        ))
    };
    let Ok(count) = i32::try_from(pages) else {
        return invalid("too many pages");
    };
    if count == 0 {
        return invalid("no pages");
    }
    if let Some(UnmapNotify { clear_byte, .. }) = notify {
        if pages != 1 {
            return invalid("an unmap notification needs exactly one page");
        }
        if clear_byte.is_some_and(|byte| usize::from(byte) >= PAGE_SIZE) {
            return invalid("the byte to clear is outside the page");
        }
        if clear_byte.is_some() && !byte_is_writable {
            return invalid("a byte can be cleared in a writable mapping only");
        }
    }
    Ok(count.unsigned_abs())
}
