//! Mapping a device's pages into the process.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use crate::grant::PAGE_SIZE;

/// `mmap`—maps `pages` pages at `offset` of a device, shared, and not inherited by child processes.
pub(crate) fn map(
    fd: BorrowedFd<'_>,
    offset: u64,
    pages: usize,
    writable: bool,
) -> io::Result<NonNull<u8>> {
    let length = pages * PAGE_SIZE;
    let prot = if writable {
        libc::PROT_READ | libc::PROT_WRITE
    } else {
        libc::PROT_READ
    };
    let offset = libc::off_t::try_from(offset).map_err(|_| invalid())?;
    // SAFETY: a new mapping at an address the kernel chooses replaces nothing.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            prot,
            libc::MAP_SHARED,
            fd.as_raw_fd(),
            offset,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let start = NonNull::new(start.cast::<u8>()).ok_or_else(invalid)?;
    // SAFETY: the range was mapped just now and nobody else knows it.
    unsafe {
        if let Err(error) = keep_from_children(start, pages) {
            let _ = unmap(start, pages);
            return Err(error);
        }
    }
    Ok(start)
}

/// `madvise(MADV_DONTFORK)`—a child that inherited the pages would keep them mapped after this
/// process died, and so delay the unmap notification.
///
/// # Safety
/// The range is a mapping of this process.
pub(crate) unsafe fn keep_from_children(start: NonNull<u8>, pages: usize) -> io::Result<()> {
    // SAFETY: the caller's range; the advice changes no bytes.
    match unsafe {
        libc::madvise(
            start.as_ptr().cast(),
            pages * PAGE_SIZE,
            libc::MADV_DONTFORK,
        )
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `munmap`—removes a range from the process.
///
/// # Safety
/// The range came from [`map`] and is not used afterwards.
pub(crate) unsafe fn unmap(start: NonNull<u8>, pages: usize) -> io::Result<()> {
    // SAFETY: the caller's promise.
    match unsafe { libc::munmap(start.as_ptr().cast(), pages * PAGE_SIZE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}
