#![forbid(unsafe_code)]
#![cfg_attr(
    not(feature = "testing"),
    allow(unreachable_pub, reason = "only tests of other crates use it")
)]
//! A doorbell whose ring neither waits nor leaves anything to be read.
//!
//! It is a pair of connected Unix sockets that are shut down in both directions: no byte and no
//! descriptor passes any more. Shutting an end down once more changes nothing, yet wakes anyone who
//! waits for the other end, and epoll reports each of these wakes once (`EPOLLET`). That takes two
//! spin locks of the kernel and reads no flag of the descriptor, so a peer that shares the end we
//! ring cannot make us wait. With an eventfd it can, by filling the counter (asynchronous I/O adds
//! to it without bound) and clearing `O_NONBLOCK`, which belongs to the file that both sides hold.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, UnixAddr, getpeername, shutdown, socketpair,
};

use super::stranger::{Stranger, option};
use crate::error::{Error, PeerError, Result};

/// One end of a doorbell.
#[derive(Debug)]
pub struct Bell(Stranger<OwnedFd>);

impl Bell {
    /// Both ends. A ring at one is heard at the other.
    pub fn pair() -> Result<(Self, Self)> {
        let made = socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_CLOEXEC,
        );
        let failed = |errno| Error::os("cannot create a doorbell", errno);
        let (one, other) = made.map_err(failed)?;
        shutdown(one.as_raw_fd(), Shutdown::Both).map_err(failed)?;
        Ok((Self(one.into()), Self(other.into())))
    }

    /// Checks an end that a peer has sent.
    ///
    /// # Errors
    /// [`PeerError::Rendezvous`] if it is not one.
    pub fn from_peer(fd: Stranger<OwnedFd>) -> Result<Self> {
        // A stream that is connected and shut down stays so: no holder of it can undo either.
        let is_bell = option(&fd, libc::SO_DOMAIN) == Some(libc::AF_UNIX)
            && option(&fd, libc::SO_TYPE) == Some(libc::SOCK_STREAM)
            && getpeername::<UnixAddr>(fd.as_raw_fd()).is_ok()
            && shutdown(fd.as_raw_fd(), Shutdown::Both).is_ok();
        match is_bell {
            true => Ok(Self(fd)),
            false => {
                let what = "a doorbell it sent is not a connected Unix socket".to_owned();
                Err(PeerError::Rendezvous(what).into())
            }
        }
    }

    /// Wakes whoever watches the other end, if anybody does. Never waits.
    pub fn ring(&self) -> io::Result<()> {
        Ok(shutdown(self.0.as_raw_fd(), Shutdown::Both)?)
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

    use super::*;

    /// Whether `epoll` reports an event now.
    fn rang(epoll: &Epoll) -> bool {
        let mut events = [EpollEvent::empty()];
        epoll.wait(&mut events, EpollTimeout::ZERO).unwrap() > 0
    }

    #[test]
    fn each_ring_is_reported_once_also_by_an_end_that_came_from_a_peer() {
        let (near, far) = Bell::pair().unwrap();
        let far = Bell::from_peer(far.0).unwrap();
        for (ringing, watched) in [(&near, &far), (&far, &near)] {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
            let edges = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
            epoll.add(watched, EpollEvent::new(edges, 0)).unwrap();
            assert!(rang(&epoll), "what was rung before anybody watched");
            for ring in 0..1000 {
                assert!(!rang(&epoll), "nobody rang after ring {ring}");
                ringing.ring().unwrap();
                assert!(rang(&epoll), "ring {ring} is lost");
            }
        }
    }

    #[test]
    fn nothing_can_be_sent_into_a_bell_and_a_ring_to_nobody_is_no_error() {
        let (near, far) = Bell::pair().unwrap();
        for end in [&near, &far] {
            assert_eq!(nix::unistd::write(end, b"x"), Err(nix::Error::EPIPE));
        }
        drop(far);
        near.ring().unwrap();
    }

    #[test]
    fn other_descriptors_are_no_bells() {
        let unconnected = nix::sys::socket::socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        let (reading, _writing) = nix::unistd::pipe().unwrap();
        for fd in [unconnected, reading] {
            Bell::from_peer(fd.into()).unwrap_err();
        }
        // A stream of the peer's is shut down on receipt, so that it can be rung.
        let (one, other) = UnixStream::pair().unwrap();
        Bell::from_peer(Stranger::from(OwnedFd::from(one))).unwrap();
        assert_eq!(nix::unistd::write(&other, b"x"), Err(nix::Error::EPIPE));
    }
}
