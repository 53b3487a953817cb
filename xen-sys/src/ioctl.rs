//! The ioctls of `/dev/xen/gntalloc`, `/dev/xen/gntdev` and `/dev/xen/evtchn`, one function each.
//!
//! Numbers and structures are those of [`generated::uapi`](crate::generated::uapi). A call
//! interrupted by a signal is repeated.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{addr_of, addr_of_mut};

use crate::generated::uapi::*;
use crate::{DomId, GrantRef, Port};

/// Calls `ioctl(fd, number, argument)` until no signal interrupts it; returns its value.
///
/// # Safety
/// `fd` is a device that knows `number` and `argument` points to what it reads and writes.
unsafe fn call<T>(fd: BorrowedFd<'_>, number: u32, argument: *mut T) -> io::Result<u32> {
    loop {
        // The number's type is c_ulong with glibc and c_int with musl.
        // SAFETY: the caller's promise.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), number as _, argument) };
        if let Ok(value) = u32::try_from(result) {
            return Ok(value);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Storage for a request that ends in an array: zeroed, aligned for `u64`, at least `bytes` long.
fn storage(bytes: usize) -> Vec<u64> {
    vec![0; bytes.div_ceil(size_of::<u64>())]
}

/// `IOCTL_GNTALLOC_ALLOC_GREF`—allocates zeroed pages and grants them to a domain.
///
/// Returns the offset for `mmap` and one reference per page. The pages live until
/// [`gntalloc_dealloc`], the last `munmap` and the last close, whichever is last.
///
/// # Errors
/// ENOSPC: more than the module's `limit`, or the grant table is full. ENOMEM. EINVAL.
///
/// # Safety
/// `fd` is an open `/dev/xen/gntalloc`.
///
/// Source: `xen/gntalloc.h`.
pub unsafe fn gntalloc_alloc(
    fd: BorrowedFd<'_>,
    peer: DomId,
    count: u32,
    peer_writes: bool,
) -> io::Result<(u64, Vec<GrantRef>)> {
    let pages = count as usize;
    let head = std::mem::offset_of!(ioctl_gntalloc_alloc_gref, gref_ids);
    // The kernel copies the whole structure with its one reference even when it needs less.
    let bytes = (head + pages * size_of::<u32>()).max(size_of::<ioctl_gntalloc_alloc_gref>());
    let mut words = storage(bytes);
    let request = words.as_mut_ptr().cast::<ioctl_gntalloc_alloc_gref>();
    // SAFETY: `words` is zeroed, aligned and at least as long as the structure.
    unsafe {
        (*request).domid = peer.0;
        (*request).flags = if peer_writes { GNTALLOC_WRITABLE } else { 0 };
        (*request).count = count;
    }
    // SAFETY: the caller's descriptor; the kernel writes `count` references after the head.
    unsafe { call(fd, IOCTL_GNTALLOC_ALLOC_GREF, request)? };
    // SAFETY: as above; the references lie within `words`, and every bit pattern is a u32.
    unsafe {
        let refs = addr_of!((*request).gref_ids).cast::<u32>();
        Ok((
            (*request).index,
            (0..pages).map(|page| GrantRef(*refs.add(page))).collect(),
        ))
    }
}

/// The flag in the width of its field.
const GNTALLOC_WRITABLE: u16 = {
    assert!(GNTALLOC_FLAG_WRITABLE == 1);
    1
};

/// `IOCTL_GNTALLOC_DEALLOC_GREF`—ends the device's hold on pages.
///
/// Pages that are mapped here or by the peer live on until they are unmapped.
///
/// # Errors
/// EINVAL: `index` and `count` do not name pages of this descriptor.
///
/// # Safety
/// `fd` is an open `/dev/xen/gntalloc`.
///
/// Source: `xen/gntalloc.h`.
pub unsafe fn gntalloc_dealloc(fd: BorrowedFd<'_>, index: u64, count: u32) -> io::Result<()> {
    let mut request = ioctl_gntalloc_dealloc_gref { index, count };
    // SAFETY: the caller's descriptor; the structure is the one of this number.
    unsafe { call(fd, IOCTL_GNTALLOC_DEALLOC_GREF, &raw mut request)? };
    Ok(())
}

/// `IOCTL_GNTALLOC_SET_UNMAP_NOTIFY`—sets the action for when the page at `index` is unmapped.
///
/// `index` is the page's offset plus the byte to clear; `action` is made of `UNMAP_NOTIFY_*`.
///
/// # Errors
/// ENOENT: no such page. EINVAL: unknown action, or a port that is not bound in this kernel.
///
/// # Safety
/// `fd` is an open `/dev/xen/gntalloc`.
///
/// Source: `xen/gntalloc.h`.
pub unsafe fn gntalloc_set_unmap_notify(
    fd: BorrowedFd<'_>,
    index: u64,
    action: u32,
    port: Port,
) -> io::Result<()> {
    let mut request = ioctl_gntalloc_unmap_notify {
        index,
        action,
        event_channel_port: port.0,
    };
    // SAFETY: the caller's descriptor; the structure is the one of this number.
    unsafe { call(fd, IOCTL_GNTALLOC_SET_UNMAP_NOTIFY, &raw mut request)? };
    Ok(())
}

/// `IOCTL_GNTDEV_MAP_GRANT_REF`—enters references of a domain into the descriptor's table.
///
/// Returns the offset for `mmap`, which does the mapping. The table keeps the references until
/// [`gntdev_unmap`] or the last close.
///
/// # Errors
/// EINVAL: no references, or more than the module's `limit`. ENOMEM.
///
/// # Safety
/// `fd` is an open `/dev/xen/gntdev`.
///
/// Source: `xen/gntdev.h`.
pub unsafe fn gntdev_map(fd: BorrowedFd<'_>, owner: DomId, refs: &[GrantRef]) -> io::Result<u64> {
    let count =
        u32::try_from(refs.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let head = std::mem::offset_of!(ioctl_gntdev_map_grant_ref, refs);
    let bytes = (head + size_of_val(refs) * 2).max(size_of::<ioctl_gntdev_map_grant_ref>());
    let mut words = storage(bytes);
    let request = words.as_mut_ptr().cast::<ioctl_gntdev_map_grant_ref>();
    // SAFETY: `words` is zeroed, aligned, and has room for the head and an entry (a domain and a
    // reference, two u32) for each of `refs`.
    unsafe {
        (*request).count = count;
        let entries = addr_of_mut!((*request).refs).cast::<ioctl_gntdev_grant_ref>();
        for (at, gref) in refs.iter().enumerate() {
            entries.add(at).write(ioctl_gntdev_grant_ref {
                domid: owner.0.into(),
                ref_: gref.0,
            });
        }
    }
    // SAFETY: the caller's descriptor; the kernel reads `count` entries and writes the head.
    unsafe { call(fd, IOCTL_GNTDEV_MAP_GRANT_REF, request)? };
    // SAFETY: as above.
    Ok(unsafe { (*request).index })
}

const _: () = assert!(size_of::<ioctl_gntdev_grant_ref>() == 2 * size_of::<GrantRef>());

/// `IOCTL_GNTDEV_UNMAP_GRANT_REF`—removes references from the descriptor's table.
///
/// `munmap` the range first.
///
/// # Errors
/// ENOENT: `index` and `count` are not those of one map call.
///
/// # Safety
/// `fd` is an open `/dev/xen/gntdev`.
///
/// Source: `xen/gntdev.h`.
pub unsafe fn gntdev_unmap(fd: BorrowedFd<'_>, index: u64, count: u32) -> io::Result<()> {
    let mut request = ioctl_gntdev_unmap_grant_ref {
        index,
        count,
        pad: 0,
    };
    // SAFETY: the caller's descriptor; the structure is the one of this number.
    unsafe { call(fd, IOCTL_GNTDEV_UNMAP_GRANT_REF, &raw mut request)? };
    Ok(())
}

/// `IOCTL_GNTDEV_SET_UNMAP_NOTIFY`—sets the action for when the range that contains `index` is
/// unmapped.
///
/// `index` is the range's offset plus the byte to clear; `action` is made of `UNMAP_NOTIFY_*`. One
/// notification per range.
///
/// # Errors
/// ENOENT: no such range. EINVAL: unknown action, a port that is not bound in this kernel, or a
/// byte to clear in a read-only mapping.
///
/// # Safety
/// `fd` is an open `/dev/xen/gntdev`.
///
/// Source: `xen/gntdev.h`.
pub unsafe fn gntdev_set_unmap_notify(
    fd: BorrowedFd<'_>,
    index: u64,
    action: u32,
    port: Port,
) -> io::Result<()> {
    let mut request = ioctl_gntdev_unmap_notify {
        index,
        action,
        event_channel_port: port.0,
    };
    // SAFETY: the caller's descriptor; the structure is the one of this number.
    unsafe { call(fd, IOCTL_GNTDEV_SET_UNMAP_NOTIFY, &raw mut request)? };
    Ok(())
}

/// `IOCTL_EVTCHN_BIND_UNBOUND_PORT`—allocates a port that a domain may bind to.
///
/// # Errors
/// ENOSPC: no free port. ESRCH, EPERM: Xen's security module does not know or allow the domain.
/// EACCES: the descriptor is restricted.
///
/// # Safety
/// `fd` is an open `/dev/xen/evtchn`.
///
/// Source: `xen/evtchn.h`.
pub unsafe fn evtchn_bind_unbound(fd: BorrowedFd<'_>, peer: DomId) -> io::Result<Port> {
    let mut request = ioctl_evtchn_bind_unbound_port {
        remote_domain: peer.0.into(),
    };
    // SAFETY: the caller's descriptor; the structure is the one of this number.
    unsafe { call(fd, IOCTL_EVTCHN_BIND_UNBOUND_PORT, &raw mut request).map(Port) }
}

/// `IOCTL_EVTCHN_BIND_INTERDOMAIN`—binds a fresh port to a port of another domain.
///
/// # Errors
/// EINVAL: the remote port does not wait for this domain. ESRCH: no such domain. ENOSPC: no free
/// port. EPERM: Xen's security module. EACCES: the descriptor is restricted to another domain.
///
/// # Safety
/// `fd` is an open `/dev/xen/evtchn`.
///
/// Source: `xen/evtchn.h`.
pub unsafe fn evtchn_bind_interdomain(
    fd: BorrowedFd<'_>,
    peer: DomId,
    remote: Port,
) -> io::Result<Port> {
    let mut request = ioctl_evtchn_bind_interdomain {
        remote_domain: peer.0.into(),
        remote_port: remote.0,
    };
    // SAFETY: the caller's descriptor; the structure is the one of this number.
    unsafe { call(fd, IOCTL_EVTCHN_BIND_INTERDOMAIN, &raw mut request).map(Port) }
}

/// `IOCTL_EVTCHN_UNBIND`—closes a port.
///
/// # Errors
/// EINVAL: no such port. ENOTCONN: the port is not of this descriptor.
///
/// # Safety
/// `fd` is an open `/dev/xen/evtchn`.
///
/// Source: `xen/evtchn.h`.
pub unsafe fn evtchn_unbind(fd: BorrowedFd<'_>, port: Port) -> io::Result<()> {
    let mut request = ioctl_evtchn_unbind { port: port.0 };
    // SAFETY: the caller's descriptor; the structure is the one of this number.
    unsafe { call(fd, IOCTL_EVTCHN_UNBIND, &raw mut request)? };
    Ok(())
}

/// `IOCTL_EVTCHN_NOTIFY`—signals the other end of a port.
///
/// # Errors
/// ENOTCONN: the port is not of this descriptor. A dead other end is no error.
///
/// # Safety
/// `fd` is an open `/dev/xen/evtchn`.
///
/// Source: `xen/evtchn.h`.
pub unsafe fn evtchn_notify(fd: BorrowedFd<'_>, port: Port) -> io::Result<()> {
    let mut request = ioctl_evtchn_notify { port: port.0 };
    // SAFETY: the caller's descriptor; the structure is the one of this number.
    unsafe { call(fd, IOCTL_EVTCHN_NOTIFY, &raw mut request)? };
    Ok(())
}

/// `IOCTL_EVTCHN_RESET`—empties the list of pending ports and clears its overflow.
///
/// # Errors
/// None known.
///
/// # Safety
/// `fd` is an open `/dev/xen/evtchn`.
///
/// Source: `xen/evtchn.h`.
pub unsafe fn evtchn_reset(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the caller's descriptor; this number has no argument.
    unsafe { call(fd, IOCTL_EVTCHN_RESET, std::ptr::null_mut::<u8>())? };
    Ok(())
}

/// `IOCTL_EVTCHN_RESTRICT_DOMID`—allows only ports to one domain from now on.
///
/// # Errors
/// EINVAL: domain 0 or a reserved number. EACCES: restricted already.
///
/// # Safety
/// `fd` is an open `/dev/xen/evtchn`.
///
/// Source: `xen/evtchn.h`.
pub unsafe fn evtchn_restrict(fd: BorrowedFd<'_>, peer: DomId) -> io::Result<()> {
    let mut request = ioctl_evtchn_restrict_domid { domid: peer.0 };
    // SAFETY: the caller's descriptor; the structure is the one of this number.
    unsafe { call(fd, IOCTL_EVTCHN_RESTRICT_DOMID, &raw mut request)? };
    Ok(())
}
