//! The flags for opening files that others can replace.

use nix::fcntl::OFlag;

/// Flags for every open here: no symbolic link, no wait for a FIFO's other end, no controlling
/// terminal, no descriptor inherited by a worker process.
pub(crate) const SAFE: OFlag = OFlag::O_NOFOLLOW
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_NOCTTY)
    .union(OFlag::O_CLOEXEC);
