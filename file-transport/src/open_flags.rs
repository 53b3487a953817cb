//! How files are opened that others can exchange.

use nix::fcntl::OFlag;

/// What every open here has in common: no symbolic link, no waiting for a FIFO's other end, no
/// controlling terminal, nothing left open in a worker process.
pub(crate) const SAFE: OFlag = OFlag::O_NOFOLLOW
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_NOCTTY)
    .union(OFlag::O_CLOEXEC);
