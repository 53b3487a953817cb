//! The system calls on a connected socket. Only [`poll`] and [`poll_or`] wait.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{MsgFlags, recvmsg, sendmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use vgpu_transport::{LONGEST_POLL, TransportError, Waker};

/// Keepalive of TCP: seconds of silence before the first probe, seconds between probes, and
/// unanswered probes after which the host counts as gone: 25 s together.
const KEEPALIVE: (u32, u32, u32) = (10, 5, 3);

/// A host that leaves sent bytes unconfirmed for this long counts as gone too.
const UNCONFIRMED_LIMIT: Duration = Duration::from_secs(25);

/// Most stretches of bytes that one call sends; far below the kernel's own limit.
const MOST_PARTS: usize = 8;

/// Most descriptors that the kernel passes at once. It would close at once those for which there is
/// no room.
const MOST_DESCRIPTORS: usize = 253;

/// A connected, non-blocking stream socket.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: Stream,
    place: String,
}

#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// The result of a read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    Bytes(usize),
    /// Nothing is there now.
    Nothing,
    /// The end of the stream.
    End,
    /// Descriptors, which no session uses. They stay open until this process ends: closing one can
    /// sleep for as long as the other side likes, except while a process exits.
    Descriptors,
}

impl Socket {
    /// Wraps a Unix stream; `place` names the other side in messages.
    pub(crate) fn unix(stream: UnixStream, place: String) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: Stream::Unix(stream),
            place,
        })
    }

    /// Wraps a TCP stream; the kernel's keepalive detects a vanished host.
    pub(crate) fn tcp(stream: TcpStream, place: String) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        // Records are written whole; the kernel must not hold one back to make it longer.
        stream.set_nodelay(true)?;
        let (idle, interval, count) = KEEPALIVE;
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        setsockopt(&stream, sockopt::TcpKeepIdle, &idle)?;
        setsockopt(&stream, sockopt::TcpKeepInterval, &interval)?;
        setsockopt(&stream, sockopt::TcpKeepCount, &count)?;
        let unconfirmed = u32::try_from(UNCONFIRMED_LIMIT.as_millis()).unwrap_or(u32::MAX);
        setsockopt(&stream, sockopt::TcpUserTimeout, &unconfirmed)?;
        Ok(Self {
            stream: Stream::Tcp(stream),
            place,
        })
    }

    pub(crate) fn is_tcp(&self) -> bool {
        matches!(self.stream, Stream::Tcp(_))
    }

    /// The other side's address, for messages.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// The kernel's error, as a transport's.
    pub(crate) fn failed(&self, doing: &str, source: io::Error) -> TransportError {
        if is_gone(&source) {
            return TransportError::Closed;
        }
        TransportError::Io {
            context: format!("{doing} {}", self.place),
            source,
        }
    }

    /// Takes the bytes that are there into `first`, and the excess into `then`, in one system call.
    pub(crate) fn receive(&self, first: &mut [u8], then: &mut [u8]) -> io::Result<Received> {
        let mut parts = [IoSliceMut::new(first), IoSliceMut::new(then)];
        let mut control = match self.stream {
            Stream::Unix(_) => cmsg_space!([RawFd; MOST_DESCRIPTORS]),
            Stream::Tcp(_) => Vec::new(),
        };
        loop {
            let answer = recvmsg::<()>(
                self.as_fd().as_raw_fd(),
                &mut parts,
                (!control.is_empty()).then_some(&mut control[..]),
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC,
            );
            let bytes = answer.and_then(|message| match message.bytes {
                0 => Ok(Some(0)),
                // An error means that there were more than this process may have.
                n => Ok((message.cmsgs()?.next().is_none()).then_some(n)),
            });
            return match bytes {
                Ok(Some(0)) => Ok(Received::End),
                Ok(Some(n)) => Ok(Received::Bytes(n)),
                Ok(None) | Err(Errno::ENOBUFS) => Ok(Received::Descriptors),
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => Ok(Received::Nothing),
                Err(errno) => Err(errno.into()),
            };
        }
    }

    /// Passes to the kernel as much as it takes of `first`, then of `parts`; 0: it has no room. A
    /// peer that is gone is an error, never a signal.
    pub(crate) fn send(&self, first: &[u8], parts: &[&[u8]]) -> io::Result<usize> {
        let mut slices = [IoSlice::new(first); MOST_PARTS];
        let mut used = 1;
        for (slice, part) in slices[1..].iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
            used += 1;
        }
        let parts = &slices[..used];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            return match sendmsg::<()>(self.as_fd().as_raw_fd(), parts, &[], flags, None) {
                Ok(n) => Ok(n),
                Err(Errno::EINTR) => continue,
                // ENOBUFS: the kernel is short of memory for the moment.
                Err(Errno::EAGAIN | Errno::ENOBUFS) => Ok(0),
                Err(errno) => Err(errno.into()),
            };
        }
    }

    /// Ends sending.
    pub(crate) fn finish_sending(&self) {
        // An error means that there is no connection left to finish.
        let _ = match &self.stream {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
        };
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Tcp(stream) => stream.as_fd(),
        }
    }
}

/// Whether the kernel's error means that the other side is gone.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected
    )
}

/// The result of a wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

/// Waits until `socket` can be read or written, as wanted, or its connection is over, which counts
/// as both. `None`: `deadline` came first.
pub(crate) fn poll(
    socket: &impl AsFd,
    wanted: Ready,
    deadline: Instant,
) -> io::Result<Option<Ready>> {
    poll_or(socket, wanted, None, deadline)
}

/// [`poll`], ended also by `waker`: then the socket is ready for nothing. If nothing is wanted of
/// the socket, its end is not noticed.
pub(crate) fn poll_or(
    socket: &impl AsFd,
    wanted: Ready,
    waker: Option<&Waker>,
    deadline: Instant,
) -> io::Result<Option<Ready>> {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::POLLIN, wanted.read);
    flags.set(PollFlags::POLLOUT, wanted.write);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = TimeSpec::from_duration(left.min(LONGEST_POLL));
        let woken = waker.map_or(socket.as_fd(), AsFd::as_fd);
        let mut fds = [
            PollFd::new(socket.as_fd(), flags),
            PollFd::new(woken, PollFlags::POLLIN),
        ];
        // The kernel reports an end whatever it was asked for.
        let first = usize::from(flags.is_empty() && waker.is_some());
        let end = 1 + usize::from(waker.is_some());
        match ppoll(&mut fds[first..end], Some(timeout), None) {
            // The kernel has checked after the time was over; an interruption proves no such check.
            Ok(0) if left.is_zero() || Instant::now() >= deadline => return Ok(None),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => {
                let found = fds[0].revents().unwrap_or(PollFlags::POLLERR);
                let woken = waker
                    .is_some_and(|waker| fds[1].any().unwrap_or(true) && waker.is_raised_by_poll());
                if found.is_empty() && !woken {
                    match left.is_zero() {
                        true => return Ok(None),
                        false => continue,
                    }
                }
                let over = found.intersects(PollFlags::POLLERR | PollFlags::POLLHUP);
                return Ok(Some(Ready {
                    read: over || found.contains(PollFlags::POLLIN),
                    write: over || found.contains(PollFlags::POLLOUT),
                }));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use nix::sys::socket::{ControlMessage, getsockopt};

    use super::*;

    #[test]
    fn the_kernel_looks_for_a_host_that_has_vanished() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = Socket::tcp(stream, "tcp:test".to_owned()).unwrap();
        assert!(getsockopt(&socket, sockopt::KeepAlive).unwrap());
        assert!(getsockopt(&socket, sockopt::TcpNoDelay).unwrap());
        let idle = getsockopt(&socket, sockopt::TcpKeepIdle).unwrap();
        let interval = getsockopt(&socket, sockopt::TcpKeepInterval).unwrap();
        let count = getsockopt(&socket, sockopt::TcpKeepCount).unwrap();
        assert_eq!(idle + interval * count, 25);
        let unconfirmed = getsockopt(&socket, sockopt::TcpUserTimeout).unwrap();
        assert_eq!(unconfirmed, 25_000);
    }

    #[test]
    fn descriptors_are_noticed_behind_bytes_and_as_many_as_can_come() {
        let (one, other) = UnixStream::pair().unwrap();
        let socket = Socket::unix(one, "unix:test".to_owned()).unwrap();
        let send = |fds: &[RawFd]| {
            let rights = [ControlMessage::ScmRights(fds)];
            let control = if fds.is_empty() { &[] } else { &rights[..] };
            let bytes = [IoSlice::new(b"x")];
            sendmsg::<()>(other.as_raw_fd(), &bytes, control, MsgFlags::empty(), None).unwrap();
        };
        send(&[]);
        assert_eq!(
            socket.receive(&mut [0; 9], &mut []).unwrap(),
            Received::Bytes(1)
        );
        for count in [1, MOST_DESCRIPTORS] {
            send(&[]);
            send(&vec![other.as_raw_fd(); count]);
            let received = socket.receive(&mut [0; 9], &mut []).unwrap();
            assert_eq!(received, Received::Descriptors);
        }
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error_and_no_signal() {
        let (one, other) = UnixStream::pair().unwrap();
        let socket = Socket::unix(one, "unix:test".to_owned()).unwrap();
        assert_eq!(socket.send(b"a", &[b"b"]).unwrap(), 2);
        drop(other);
        let error = socket.send(b"a", &[]).unwrap_err();
        assert!(is_gone(&error), "{error}");
        let far = Instant::now() + Duration::from_secs(60);
        let ready = poll(&socket, Ready::default(), far).unwrap();
        assert_eq!(
            ready,
            Some(Ready {
                read: true,
                write: true
            })
        );
    }
}
