#![allow(unsafe_code)]
//! Messages with descriptors over a Unix stream, with deadlines.
//!
//! `MSG_DONTWAIT` is given on each call: the stream may have been inherited and shared with
//! processes that expect it to block, or the peer may hold a descriptor of the same description.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

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
    while filled < bytes.len() {
        match receive_some(stream, &mut bytes[filled..], &mut fds) {
            Ok((n, truncated)) => {
                if truncated || fds.len() > MOST {
                    let what = "more than three descriptors in one message, or more than this \
                                process may open"
                        .to_owned();
                    return Err(PeerError::Rendezvous(what).into());
                }
                if n == 0 {
                    return Err(Error::PeerClosed { unread: 0 });
                }
                filled += n;
            }
            Err(Errno::EAGAIN) => poll(stream, PollFlags::POLLIN, deadline)?,
            Err(Errno::EINTR) => {}
            Err(Errno::ECONNRESET) => return Err(Error::PeerClosed { unread: 0 }),
            Err(errno) => return Err(Error::os("cannot receive on the Unix socket", errno)),
        }
    }
    Ok(fds)
}

/// Room for the control message with [`MOST`] descriptors, aligned as `cmsghdr` wants it.
type Control = [u64; 8];

/// A header of 16 bytes, the descriptors, and what aligns the end.
const _: () = assert!(size_of::<Control>() >= 16 + MOST * size_of::<RawFd>() + 8);

/// One `recvmsg` without waiting: bytes received, and whether descriptors were cut off. Those that
/// did arrive are in `fds` also then. (nix hands out none of them in that case: a peer that sends
/// too many could make this process run out of descriptors.)
fn receive_some(
    stream: &UnixStream,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> nix::Result<(usize, bool)> {
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let mut control: Control = [0; 8];
    // SAFETY: all-zero is a valid `msghdr`: null pointers and lengths of 0.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>() as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `message` describes `bytes` and `control`, which outlive the call.
    let n = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, flags) };
    let n = Errno::result(n)?;
    // SAFETY: the kernel has filled `message` in; the macros stay within `control`, whose headers
    // the kernel wrote, with as many descriptors behind each as its length says. The kernel has
    // just made those descriptors for us; nobody else knows their numbers.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(header);
                let length = (*header).cmsg_len as usize - (data.addr() - header.addr());
                for at in 0..length / size_of::<RawFd>() {
                    let fd = data.add(at * size_of::<RawFd>()).cast::<RawFd>();
                    fds.push(OwnedFd::from_raw_fd(fd.read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    let truncated = message.msg_flags & libc::MSG_CTRUNC != 0;
    Ok((n.unsigned_abs(), truncated))
}

fn poll(stream: &UnixStream, flags: PollFlags, deadline: Instant) -> Result<()> {
    if poll_fds(&mut [PollFd::new(stream.as_fd(), flags)], deadline)? {
        Ok(())
    } else {
        Err(Error::TimedOut("exchange the first messages with the peer"))
    }
}
