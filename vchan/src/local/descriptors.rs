#![allow(unsafe_code)]
//! Messages with descriptors over a Unix stream, with deadlines.
//!
//! `MSG_DONTWAIT` is given on each call: the stream may have been inherited and shared with
//! processes that expect it to block, or the peer may hold a descriptor of the same description.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use crate::error::{Error, PeerError, Result};
use crate::poll::poll_fds;

/// The most descriptors that a message carries.
const MOST: usize = 3;

/// Sends `bytes`, with `fds` attached to the first of them.
///
/// # Errors
/// [`Error::PeerClosed`], [`Error::TimedOut`], [`Error::Os`].
pub(super) fn send(
    stream: &UnixStream,
    mut bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    deadline: Instant,
) -> Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let attached = [ControlMessage::ScmRights(&raw)];
    let mut control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &attached };
    while !bytes.is_empty() {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match sendmsg::<()>(
            stream.as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            flags,
            None,
        ) {
            Ok(n) => {
                bytes = &bytes[n..];
                control = &[];
            }
            Err(Errno::EAGAIN) => poll(stream, PollFlags::POLLOUT, deadline)?,
            Err(Errno::EINTR) => {}
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(Error::PeerClosed { unread: 0 }),
            Err(errno) => return Err(Error::os("cannot send on the Unix socket", errno)),
        }
    }
    Ok(())
}

/// Fills `bytes` and returns the descriptors that came along, at most three.
///
/// # Errors
/// [`Error::PeerClosed`] at a premature end, [`Error::TimedOut`], [`Error::Peer`] for more
/// descriptors than any message has, [`Error::Os`].
pub(super) fn receive(
    stream: &UnixStream,
    bytes: &mut [u8],
    deadline: Instant,
) -> Result<Vec<OwnedFd>> {
    let mut fds = Vec::new();
    let mut filled = 0;
    let mut space = nix::cmsg_space!([RawFd; MOST]);
    while filled < bytes.len() {
        let mut parts = [IoSliceMut::new(&mut bytes[filled..])];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags) {
            Ok(message) => {
                // Took what fitted into `space`; the kernel closed what did not.
                let truncated = message.flags.contains(MsgFlags::MSG_CTRUNC);
                if let Ok(controls) = message.cmsgs() {
                    for control in controls {
                        if let ControlMessageOwned::ScmRights(raw) = control {
                            // SAFETY: the kernel has just made these for us; nobody else knows
                            // their numbers.
                            fds.extend(raw.iter().map(|&fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                        }
                    }
                }
                if truncated || fds.len() > MOST {
                    let what = "more than three descriptors in one message".to_owned();
                    return Err(PeerError::Rendezvous(what).into());
                }
                if message.bytes == 0 {
                    return Err(Error::PeerClosed { unread: 0 });
                }
                filled += message.bytes;
            }
            Err(Errno::EAGAIN) => poll(stream, PollFlags::POLLIN, deadline)?,
            Err(Errno::EINTR) => {}
            Err(Errno::ECONNRESET) => return Err(Error::PeerClosed { unread: 0 }),
            Err(errno) => return Err(Error::os("cannot receive on the Unix socket", errno)),
        }
    }
    Ok(fds)
}

fn poll(stream: &UnixStream, flags: PollFlags, deadline: Instant) -> Result<()> {
    if poll_fds(&mut [PollFd::new(stream.as_fd(), flags)], deadline)? {
        Ok(())
    } else {
        Err(Error::TimedOut("exchange the first messages with the peer"))
    }
}
