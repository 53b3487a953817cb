//! Forged memory that a liar offers as a region.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use vchan::region::{Access, Carrier, Ticket};

pub(crate) const PAGE: u64 = 4096;
/// Offsets in the header page.
pub(crate) const OWNER_STATE: u64 = 64;
pub(crate) const PEER_STATE: u64 = 128;

pub(crate) fn ticket(length: u64) -> Ticket {
    Ticket {
        id: 1,
        nonce: [7; 16],
        length,
        access: Access::Both,
        carrier: Carrier::Descriptors,
    }
}

pub(crate) fn memfd(bytes: u64, seals: SealFlag) -> File {
    let fd = memfd_create(c"liar", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    ftruncate(&fd, bytes.try_into().unwrap()).unwrap();
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    File::from(fd)
}

pub(crate) fn sealed(bytes: u64) -> File {
    memfd(bytes, SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW)
}

/// A header page as an honest owner makes it.
pub(crate) fn header(ticket: &Ticket) -> File {
    let file = sealed(PAGE);
    file.write_all_at(&ticket.encode(), 0).unwrap();
    file.write_all_at(&[1], OWNER_STATE).unwrap();
    file.write_all_at(&[2], PEER_STATE).unwrap();
    file
}
