#![allow(unsafe_code)]
//! Shared memory in a memfd that can neither shrink nor grow.

use std::any::Any;
use std::ffi::c_void;
use std::fmt::Display;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::ftruncate;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::error::{Error, PeerError, Result};
use crate::region::{Carrier, OwnerMemory};
use crate::wire::layout::PAGE;
use crate::wire::shm::Region;

/// Makes a memfd of `len` zero bytes, sealed against a change of its size.
///
/// # Errors
/// [`Error::Os`].
pub(crate) fn create(len: usize) -> Result<OwnedFd> {
    let fd = create_open(len)?;
    seal(&fd, SIZE | SealFlag::F_SEAL_SEAL).map_err(|errno| failed("seal", len, errno))?;
    Ok(fd)
}

const SIZE: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW);

/// A memfd that can still be sealed.
fn create_open(len: usize) -> Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Not by the C library: the one of XCP-ng's dom0 has no memfd_create.
    let fd = memfd_create("vchan", flags)
        .map_err(|errno| failed("create", len, Errno::from_raw(errno.raw_os_error())))?;
    let size = i64::try_from(len).map_err(|_| failed("size", len, Errno::EFBIG))?;
    ftruncate(&fd, size).map_err(|errno| failed("size", len, errno))?;
    Ok(fd)
}

fn seal(fd: &OwnedFd, seals: SealFlag) -> nix::Result<()> {
    fcntl(fd, FcntlArg::F_ADD_SEALS(seals)).map(drop)
}

fn failed(what: &str, len: usize, errno: Errno) -> Error {
    Error::os_with_advice(
        format!("cannot {what} shared memory of {len} bytes"),
        errno,
        "free some memory or descriptors, or use smaller rings and regions",
    )
}

/// Makes the memory of a region: a header page and `pages` pages of data, which the peer can map
/// writable only if `peer_writes`.
///
/// # Errors
/// [`Error::Os`].
pub(super) fn for_region(pages: usize, peer_writes: bool) -> Result<OwnerMemory> {
    let header = create(PAGE)?;
    let len = pages * PAGE;
    let fd = create_open(len)?;
    seal(&fd, SIZE).map_err(|errno| failed("seal", len, errno))?;
    let data = map(&fd, len)?;
    let fd = match peer_writes {
        true => fd,
        false => for_reader(fd).map_err(|errno| failed("seal", len, errno))?,
    };
    seal(&fd, SealFlag::F_SEAL_SEAL).map_err(|errno| failed("seal", len, errno))?;
    Ok(OwnerMemory {
        header: map(&header, PAGE)?,
        data,
        list: None,
        carrier: Carrier::Descriptors,
        descriptors: Some([header, fd]),
    })
}

/// A descriptor of the same memory that allows no new writable mapping.
fn for_reader(fd: OwnedFd) -> nix::Result<OwnedFd> {
    match seal(&fd, SealFlag::F_SEAL_FUTURE_WRITE) {
        // Linux before 5.1, such as XCP-ng's, has no such seal.
        Err(Errno::EINVAL) => reopen_read_only(&fd),
        outcome => outcome.map(|()| fd),
    }
}

/// Reopens the memory for reading. The receiver of this descriptor cannot write through it, but a
/// process of the same user could reopen the memory for writing, so the file's mode forbids it.
fn reopen_read_only(fd: &OwnedFd) -> nix::Result<OwnedFd> {
    fchmod(fd, Mode::S_IRUSR)?;
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open(
        link.as_str(),
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

/// Checks that touching `len` bytes of a peer's descriptor can never fault: it is a memfd on
/// ordinary pages, at least that long, and sealed against shrinking. Returns its length.
///
/// # Errors
/// [`Error::Peer`].
fn verify(fd: &OwnedFd, len: usize) -> Result<usize> {
    let refuse = |why: String| Err(PeerError::Rendezvous(why).into());
    let seals = match fcntl(fd, FcntlArg::F_GET_SEALS) {
        Ok(bits) => SealFlag::from_bits_truncate(bits),
        Err(_) => return refuse("the memory's descriptor is not a memfd".to_owned()),
    };
    if !seals.contains(SIZE) {
        return refuse("the memfd is not sealed against shrinking and growing".to_owned());
    }
    // Huge pages may run out at first use; ordinary ones are not reserved either, but if those run
    // out the whole machine is out of memory.
    if fstatfs(fd).map(|stat| stat.filesystem_type()) != Ok(TMPFS_MAGIC) {
        return refuse("the memfd is not on ordinary pages".to_owned());
    }
    let size = fstat(fd).map_err(|errno| Error::os("cannot examine the peer's memfd", errno))?;
    match usize::try_from(size.st_size) {
        Ok(size) if size >= len => Ok(size),
        _ => refuse(wrong_size(size.st_size, len)),
    }
}

fn wrong_size(found: impl Display, len: usize) -> String {
    format!("the memfd has {found} bytes instead of {len}")
}

/// Maps all `len` bytes of a descriptor that [`create`] made or that passes [`verify`].
///
/// # Errors
/// [`Error::Os`]; [`Error::Peer`] if it fails [`verify`].
pub(crate) fn map(fd: &OwnedFd, len: usize) -> Result<Region> {
    match verify(fd, len)? {
        size if size == len => map_verified(fd, len, true, None),
        size => Err(PeerError::Rendezvous(wrong_size(size, len)).into()),
    }
}

/// Maps the first `len` bytes of a region's memory, writable or not; at `at`, if nothing is there.
///
/// # Errors
/// As [`map`].
pub(super) fn map_start(
    fd: &OwnedFd,
    len: usize,
    writable: bool,
    at: Option<usize>,
) -> Result<Region> {
    verify(fd, len)?;
    map_verified(fd, len, writable, at)
}

fn map_verified(fd: &OwnedFd, len: usize, writable: bool, at: Option<usize>) -> Result<Region> {
    let failed = |errno| match (errno, writable) {
        (Errno::EPERM | Errno::EACCES, true) => {
            PeerError::Rendezvous("the memfd is read-only".to_owned()).into()
        }
        _ => failed("map", len, errno),
    };
    let there = at.and_then(|at| Mapping::reserve_at(at, len));
    let mapping = match there {
        Some(mapping) => mapping,
        None => Mapping::reserve(len).map_err(failed)?,
    };
    let start = mapping.inside();
    let length = NonZeroUsize::new(len).ok_or_else(|| failed(Errno::EINVAL))?;
    let write = match writable {
        true => ProtFlags::PROT_WRITE,
        false => ProtFlags::empty(),
    };
    // SAFETY: replaces pages that were reserved just now for this, and nothing else.
    let mapped = unsafe {
        mmap(
            NonZeroUsize::new(start.as_ptr().addr()),
            length,
            ProtFlags::PROT_READ | write,
            MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE | MapFlags::MAP_FIXED,
            fd.as_fd(),
            0,
        )
    };
    if let Err(errno) = mapped {
        if !matches!(errno, Errno::EPERM | Errno::EACCES) {
            // The reserved pages may be gone by now and their place reused: not ours to unmap.
            std::mem::forget(mapping);
        }
        return Err(failed(errno));
    }
    // SAFETY: exactly the range just mapped. A forked child does not inherit it, so it cannot
    // keep the channel's memory busy.
    unsafe { madvise(start, len, MmapAdvise::MADV_DONTFORK) }.map_err(failed)?;
    let owner: Arc<dyn Any + Send + Sync> = Arc::new(mapping);
    // SAFETY: mapped readable, and writable as said, until `owner` drops; the seals keep the file
    // from shrinking, so no access faults; only raw pointers to it exist.
    Ok(unsafe { Region::new(start.cast(), len, writable, owner) })
}

/// A page without access on either side, which stops an access beyond the shared memory.
const GUARD: usize = PAGE;

/// Address space with a guard page at each end. Dropping it unmaps the whole range, with any
/// mapping made inside.
#[derive(Debug)]
struct Mapping {
    start: NonNull<c_void>,
    len: usize,
}

impl Mapping {
    /// Reserves room for `len` bytes between the guards.
    fn reserve(len: usize) -> nix::Result<Self> {
        let whole = len.next_multiple_of(PAGE).saturating_add(2 * GUARD);
        let length = NonZeroUsize::new(whole).ok_or(Errno::EINVAL)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_NONE, flags) }?;
        Ok(Self { start, len: whole })
    }

    /// The same with the room at `at`, if that is a page's address and nothing is there or beside it.
    fn reserve_at(at: usize, len: usize) -> Option<Self> {
        let start = at
            .checked_sub(GUARD)
            .filter(|start| start.is_multiple_of(PAGE))?;
        let start = NonZeroUsize::new(start)?;
        let whole = len.next_multiple_of(PAGE).checked_add(2 * GUARD)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED_NOREPLACE;
        // SAFETY: with this flag a new mapping takes no existing one's place. Kernels that do not know it (before Linux
        // 4.17) choose another address where something is there.
        let mapped = unsafe {
            mmap_anonymous(
                Some(start),
                NonZeroUsize::new(whole)?,
                ProtFlags::PROT_NONE,
                flags,
            )
        };
        let mapping = Self {
            start: mapped.ok()?,
            len: whole,
        };
        (mapping.start.addr() == start).then_some(mapping)
    }

    /// Start of the room between the guards.
    fn inside(&self) -> NonNull<c_void> {
        // SAFETY: the reserved range is longer than one guard.
        unsafe { self.start.cast::<u8>().add(GUARD).cast() }
    }
}

// SAFETY: the address is only used to unmap, once, from whichever thread drops it.
unsafe impl Send for Mapping {}
// SAFETY: there is nothing to call through a shared reference.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was reserved by `reserve` and every `Region` in it is gone. It fails only
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
    fn nothing_can_be_touched_beyond_it() {
        let region = map(&create(8192).unwrap(), 8192).unwrap();
        let start = region.start().as_ptr().addr();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let rights = |address: usize| {
            maps.lines().find_map(|line| {
                let (range, rest) = line.split_once(' ')?;
                let (from, to) = range.split_once('-')?;
                let number = |text| usize::from_str_radix(text, 16).unwrap();
                (number(from)..number(to))
                    .contains(&address)
                    .then(|| rest[..4].to_owned())
            })
        };
        for (address, expected) in [
            (start - 1, "---p"),
            (start, "rw-s"),
            (start + 8191, "rw-s"),
            (start + 8192, "---p"),
        ] {
            assert_eq!(rights(address).as_deref(), Some(expected));
        }
    }

    #[test]
    fn it_is_mapped_where_it_is_wanted_and_nothing_else_is() {
        let fd = create(8192).unwrap();
        let one = map(&fd, 8192).unwrap();
        let wanted = one.start().as_ptr().addr();
        let elsewhere = map_start(&fd, 8192, true, Some(wanted)).unwrap();
        assert_ne!(elsewhere.start().as_ptr().addr(), wanted);
        one.copy_in(0, b"both");
        drop(one);
        // Other threads may have mapped something there.
        let there = (0..100).any(|_| {
            let fresh = map(&fd, 8192).unwrap();
            let wanted = fresh.start().as_ptr().addr();
            drop(fresh);
            let again = map_start(&fd, 8192, true, Some(wanted)).unwrap();
            let mut seen = [0; 4];
            again.copy_out(0, &mut seen);
            assert_eq!(&seen, b"both");
            again.start().as_ptr().addr() == wanted
        });
        assert!(there, "never where it was wanted");
        for nonsense in [0, 1, PAGE, usize::MAX, usize::MAX - PAGE + 1, wanted + 1] {
            let mapped = map_start(&fd, 8192, true, Some(nonsense)).unwrap();
            assert_ne!(mapped.start().as_ptr().addr(), nonsense);
        }
    }

    #[test]
    fn unsealed_or_wrong_memory_is_refused() {
        let plain = memfd_create("x", MemfdFlags::ALLOW_SEALING).unwrap();
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

    #[test]
    fn a_reader_of_a_region_cannot_write() {
        let memory = for_region(2, false).unwrap();
        memory.data.copy_in(5000, b"seen");
        let sealed = memory.descriptors.unwrap()[1].try_clone().unwrap();
        // The descriptor that an old kernel gives instead.
        let open = create_open(2 * PAGE).unwrap();
        seal(&open, SIZE).unwrap();
        let writable = map(&open, 2 * PAGE).unwrap();
        writable.copy_in(5000, b"seen");
        let reopened = reopen_read_only(&open).unwrap();
        for fd in [sealed, reopened] {
            assert!(matches!(
                map_start(&fd, 2 * PAGE, true, None),
                Err(Error::Peer(_))
            ));
            let region = map_start(&fd, 2 * PAGE, false, None).unwrap();
            assert!(!region.is_writable());
            let mut seen = [0; 4];
            region.copy_out(5000, &mut seen);
            assert_eq!(&seen, b"seen");
            assert!(nix::unistd::write(&fd, b"x").is_err());
        }
    }
}
