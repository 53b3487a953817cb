#![allow(unsafe_code)]
//! Shared memory in a memfd that can neither shrink nor grow.

use std::any::Any;
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::sys::stat::fstat;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::ftruncate;

use crate::error::{Error, PeerError, Result};
use crate::shm::Region;

/// Makes a memfd of `len` zero bytes, sealed against a change of its size.
///
/// # Errors
/// [`Error::Os`].
pub(super) fn create(len: usize) -> Result<OwnedFd> {
    let failed = |what: &str, errno: Errno| {
        Error::os_with_advice(
            format!("cannot {what} shared memory of {len} bytes"),
            errno,
            "free some memory or descriptors, or use smaller rings",
        )
    };
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = memfd_create(c"vchan", flags).map_err(|errno| failed("create", errno))?;
    let size = i64::try_from(len).map_err(|_| failed("size", Errno::EFBIG))?;
    ftruncate(&fd, size).map_err(|errno| failed("size", errno))?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(|errno| failed("seal", errno))?;
    Ok(fd)
}

/// Checks that touching `len` bytes of a peer's descriptor can never fault: it is a memfd on
/// ordinary pages, exactly that long, and sealed against shrinking.
///
/// # Errors
/// [`Error::Peer`].
fn verify(fd: &OwnedFd, len: usize) -> Result<()> {
    let refuse = |why: String| Err(PeerError::Rendezvous(why).into());
    let seals = match fcntl(fd, FcntlArg::F_GET_SEALS) {
        Ok(bits) => SealFlag::from_bits_truncate(bits),
        Err(_) => return refuse("the memory's descriptor is not a memfd".to_owned()),
    };
    if !seals.contains(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW) {
        return refuse("the memfd is not sealed against shrinking and growing".to_owned());
    }
    // Huge pages may run out at the moment of use; ordinary ones are not reserved either, but
    // there the whole machine is out of memory.
    if fstatfs(fd).map(|stat| stat.filesystem_type()) != Ok(TMPFS_MAGIC) {
        return refuse("the memfd is not on ordinary pages".to_owned());
    }
    let size = fstat(fd).map_err(|errno| Error::os("cannot examine the peer's memfd", errno))?;
    if usize::try_from(size.st_size) != Ok(len) {
        return refuse(format!(
            "the memfd has {} bytes instead of {len}",
            size.st_size
        ));
    }
    Ok(())
}

/// Maps all `len` bytes of a descriptor that [`create`] made or [`verify`] passed.
///
/// # Errors
/// [`Error::Os`], [`Error::Peer`] if it is not such a descriptor.
pub(super) fn map(fd: &OwnedFd, len: usize) -> Result<Region> {
    verify(fd, len)?;
    let failed = |errno| Error::os(format!("cannot map shared memory of {len} bytes"), errno);
    let length = NonZeroUsize::new(len).ok_or_else(|| failed(Errno::EINVAL))?;
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let start = unsafe {
        mmap(
            None,
            length,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE,
            fd.as_fd(),
            0,
        )
    }
    .map_err(failed)?;
    let mapping = Mapping { start, len };
    // SAFETY: exactly the range just mapped. A forked child does not inherit it, so it cannot
    // keep the channel's memory busy.
    unsafe { madvise(start, len, MmapAdvise::MADV_DONTFORK) }.map_err(failed)?;
    let owner: Arc<dyn Any + Send + Sync> = Arc::new(mapping);
    // SAFETY: mapped readable and writable until `owner` drops; the seals keep the file from
    // shrinking, so no access faults; only raw pointers to it exist.
    Ok(unsafe { Region::new(start.cast(), len, true, owner) })
}

/// Unmaps when dropped.
#[derive(Debug)]
struct Mapping {
    start: NonNull<c_void>,
    len: usize,
}

// SAFETY: the address is only used to unmap, once, from whichever thread drops it.
unsafe impl Send for Mapping {}
// SAFETY: there is nothing to call through a shared reference.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map` and every `Region` over it is gone. It fails only
        // for a bad range.
        let _ = unsafe { munmap(self.start, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_passes_the_check_and_is_shared() {
        let fd = create(8192).unwrap();
        let (one, two) = (map(&fd, 8192).unwrap(), map(&fd, 8192).unwrap());
        one.copy_in(4000, b"across a page");
        let mut seen = [0; 13];
        two.copy_out(4000, &mut seen);
        assert_eq!(&seen, b"across a page");
        assert!(ftruncate(&fd, 0).is_err(), "the seal does not hold");
    }

    #[test]
    fn unsealed_or_wrong_memory_is_refused() {
        let plain = memfd_create(c"x", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        ftruncate(&plain, 8192).unwrap();
        assert!(matches!(map(&plain, 8192), Err(Error::Peer(_))));
        assert!(matches!(
            map(&create(4096).unwrap(), 8192),
            Err(Error::Peer(_))
        ));
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        ftruncate(&file, 8192).unwrap();
        assert!(matches!(map(&file, 8192), Err(Error::Peer(_))));
    }
}
