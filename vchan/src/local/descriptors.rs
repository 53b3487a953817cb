#![allow(unsafe_code)]
//! Messages with descriptors over a Unix stream, with deadlines.
//!
//! `MSG_DONTWAIT` is given on each call: the stream may have been inherited and shared with
//! processes that expect it to block, or the peer may hold a descriptor of the same description.
//!
//! Nothing is taken from the stream without a peek first. A read that meets descriptors for which
//! it has no room drops them, and if nobody else holds those files the reader pays for their
//! release ([`stranger`](super::stranger)). A peek drops copies only.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};

use super::stranger::Stranger;
use crate::error::{Error, PeerError, Result};
use crate::waiting::poll::poll_fds;

/// The most descriptors that a message carries.
const MOST: usize = 3;

/// Sends `bytes`, with `fds` attached to the first of them.
///
/// # Errors
/// [`Error::PeerClosed`], [`Error::TimedOut`], [`Error::Os`].
pub(crate) fn send(
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

/// Fills `bytes` and returns the descriptors that came along, at most `wanted`. A message with more
/// is left where it is; nothing can be received after it.
///
/// # Errors
/// [`Error::PeerClosed`] at a premature end, [`Error::TimedOut`], [`Error::Peer`] for more
/// descriptors than wanted, [`Error::Os`].
pub(crate) fn receive(
    stream: &UnixStream,
    bytes: &mut [u8],
    wanted: usize,
    deadline: Instant,
) -> Result<Vec<Stranger<OwnedFd>>> {
    let failed = |errno| match errno {
        Errno::ECONNRESET => Error::PeerClosed { unread: 0 },
        errno => Error::os("cannot receive on the Unix socket", errno),
    };
    let mut fds = Vec::new();
    let mut filled = 0;
    while filled < bytes.len() {
        match peek(stream, &mut bytes[filled..], wanted, &mut fds) {
            Ok((0, _)) => return Err(Error::PeerClosed { unread: 0 }),
            Ok((n, cut)) => {
                if cut || fds.len() > wanted {
                    return Err(PeerError::Rendezvous(too_many(wanted)).into());
                }
                // Descriptors dropped from the message are in `fds` too.
                filled += take(stream, &mut bytes[filled..filled + n]).map_err(failed)?;
            }
            Err(Errno::EAGAIN) => poll(stream, PollFlags::POLLIN, deadline)?,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(fds)
}

fn too_many(wanted: usize) -> String {
    let most = match wanted {
        0 => return "descriptors came with a message that has none".to_owned(),
        2 => "two",
        _ => "three",
    };
    format!("more than {most} descriptors in one message, or more than this process may open")
}

/// Takes the bytes that a peek has found. Nobody else reads the stream, so they are still there.
fn take(stream: &UnixStream, bytes: &mut [u8]) -> nix::Result<usize> {
    loop {
        match recv(stream.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EINTR) => {}
            outcome => return outcome,
        }
    }
}

/// Room for the control message with [`MOST`] descriptors, aligned as `cmsghdr` wants it.
type Control = [u64; 8];

/// A header of 16 bytes, the descriptors, and what aligns the end.
const _: () = assert!(size_of::<Control>() >= 16 + MOST * size_of::<RawFd>() + 8);

/// Peeks at the next message, without waiting: its bytes so far, and whether it carries more
/// descriptors than `most`. Up to `most` are in `fds` even then. (nix returns none of them in that
/// case: a peer that sends too many could make this process run out of descriptors.)
fn peek(
    stream: &UnixStream,
    bytes: &mut [u8],
    most: usize,
    fds: &mut Vec<Stranger<OwnedFd>>,
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
    // Without the padding at the end, which would hold one more.
    let room = size_of::<libc::cmsghdr>() + most * size_of::<RawFd>();
    if most > 0 {
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = room.min(size_of::<Control>()) as _;
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | libc::MSG_PEEK;
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
                    fds.push(OwnedFd::from_raw_fd(fd.read_unaligned()).into());
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    let truncated = message.msg_flags & libc::MSG_CTRUNC != 0;
    Ok((n.unsigned_abs(), truncated))
}

fn poll(stream: &UnixStream, flags: PollFlags, deadline: Instant) -> Result<()> {
    if poll_fds(&[(stream.as_fd(), flags)], deadline)?.any() {
        Ok(())
    } else {
        Err(Error::TimedOut("exchange the first messages with the peer"))
    }
}
