//! A peer that sends descriptors whose last close sleeps: no call waits for it.
//!
//! The descriptor is a TCP socket whose send buffer is full and whose `SO_LINGER` is far longer than
//! any watchdog here. The sender keeps none, so whoever closes it last sleeps for that long.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{setsockopt, sockopt};
use vchan::local::{Listener, connect_on, connect_stream, serve, serve_on};
use vchan::region::Access;
use vchan::{Error, PeerError};
use vchan_testing::peer::{LyingPeer, Offer, send_raw};

/// Time that the last close sleeps.
const LINGER: Duration = Duration::from_secs(1000);

/// Longest time for a call that does not sleep, however busy the machine is.
const WATCHDOG: Duration = Duration::from_secs(60);

fn soon() -> Instant {
    Instant::now() + WATCHDOG
}

/// Runs `f` and fails the test if it does not return; a watchdog, not a measure.
#[track_caller]
fn returns<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(f()));
    receiver
        .recv_timeout(WATCHDOG)
        .expect("the victim sleeps or panicked")
}

/// A connected socket with more unsent bytes than its peer will ever take, and that peer.
fn filled() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut filled = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    filled.set_nonblocking(true).unwrap();
    while filled.write(&[0; 64 << 10]).is_ok() {}
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: libc::c_int::try_from(LINGER.as_secs()).unwrap(),
    };
    setsockopt(&filled, sockopt::Linger, &linger).unwrap();
    (filled.into(), peer)
}

/// Sends `bytes` with `count` filled sockets that only the receiver has from then on.
fn send_filled(stream: &UnixStream, bytes: &[u8], count: usize) -> Vec<TcpStream> {
    let (sockets, peers): (Vec<_>, Vec<_>) = (0..count).map(|_| filled()).unzip();
    let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    send_raw(stream, bytes, &fds, soon()).unwrap();
    peers
}

fn is_refused<T>(outcome: &Result<T, Error>) -> bool {
    matches!(outcome, Err(Error::Peer(PeerError::Rendezvous(_))))
}

/// The sockets above behave as claimed: otherwise no test here shows anything.
#[test]
fn the_last_close_of_such_a_socket_sleeps() {
    let (socket, _peer) = filled();
    let closing = thread::spawn(move || drop(socket));
    thread::sleep(Duration::from_millis(500));
    assert!(!closing.is_finished(), "it was closed at once");
}

#[test]
fn a_client_refuses_descriptors_without_waiting_for_their_close() {
    for count in [1, 2, 3, 4, 30] {
        let (near, far) = UnixStream::pair().unwrap();
        let hello = Offer::new(4096.into()).unwrap().hello;
        let _peers = send_filled(&far, &hello, count);
        assert!(is_refused(&returns(move || connect_on(near, soon()))));
    }
}

#[test]
fn a_server_refuses_descriptors_without_waiting_for_their_close() {
    for count in [1, 3, 30] {
        let (near, far) = UnixStream::pair().unwrap();
        let _peers = send_filled(&far, &[0; 16], count);
        assert!(is_refused(&returns(move || serve_on(near, 4096, soon()))));
    }
}

#[test]
fn a_wait_for_a_client_ends_at_its_deadline() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let serving = {
        let path = path.clone();
        let deadline = Instant::now() + Duration::from_secs(2);
        move || serve(&path, 4096.into(), deadline)
    };
    let attacking = thread::spawn(move || {
        // Some are checked and refused, others are still in the queue at the end.
        (0..6)
            .map_while(|_| {
                let stream = connect_stream(&path, soon()).ok()?;
                let peers = send_filled(&stream, &[0; 16], 2);
                Some((stream, peers))
            })
            .collect::<Vec<_>>()
    });
    let outcome = returns(serving);
    assert!(matches!(outcome, Err(Error::TimedOut(_))), "{outcome:?}");
    drop(attacking);
}

#[test]
fn a_stream_with_unread_descriptors_is_dropped_without_waiting() {
    // Before there is a channel, in either role.
    for serving in [true, false] {
        let (near, far) = UnixStream::pair().unwrap();
        let hello = Offer::new(4096.into()).unwrap().hello;
        // Incomplete, so that a deadline ends it.
        let _one = send_filled(&far, &hello[..10], 0);
        let _more = send_filled(&far, &hello[10..12], 1);
        let short = Instant::now() + Duration::from_millis(50);
        returns(move || match serving {
            true => drop(serve_on(near, 4096, short).expect_err("no client")),
            false => drop(connect_on(near, short).expect_err("no server")),
        });
    }
    // Of a channel.
    let (near, far) = UnixStream::pair().unwrap();
    let liar = thread::spawn(move || LyingPeer::connect(far, soon()).unwrap());
    let victim = serve_on(near, 4096, soon()).unwrap();
    let liar = liar.join().unwrap();
    let _peers = send_filled(&liar.stream, b"x", 3);
    returns(move || drop(victim));
}

#[test]
fn a_queue_of_clients_with_descriptors_is_dropped_without_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = Listener::bind(&path).unwrap();
    let waiting: Vec<_> = (0..40)
        .map(|_| {
            let stream = connect_stream(&path, soon()).unwrap();
            (send_filled(&stream, b"x", 1), stream)
        })
        .collect();
    returns(move || drop(listener));
    assert!(!path.exists());
    drop(waiting);
}

#[test]
fn a_region_is_refused_without_waiting_for_the_close_of_what_came_with_it() {
    for count in [1, 2, 5] {
        let (near, far) = UnixStream::pair().unwrap();
        let serving = thread::spawn(move || serve_on(near, 4096, soon()).unwrap());
        let liar = LyingPeer::connect(far, soon()).unwrap();
        let victim = serving.join().unwrap();
        // An honest ticket with the wrong descriptors.
        let ticket = victim.create_region(4096, Access::Both).unwrap().ticket();
        let _peers = send_filled(&liar.stream, &ticket, count);
        let outcome = returns(move || victim.map_region(&ticket, soon()).map(drop));
        assert!(outcome.is_err());
    }
}

/// An eventfd at its maximum blocks any writer, even of a 0, once `O_NONBLOCK` is cleared. A write
/// cannot raise it that far, but a completion of asynchronous I/O can.
#[test]
fn a_doorbell_that_blocks_is_refused() {
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    let bells = [0, 1].map(|_| EventFd::from_value_and_flags(1, flags).unwrap());
    for bell in &bells {
        raise_to_the_maximum(bell);
        fcntl(bell, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    }
    let (near, far) = UnixStream::pair().unwrap();
    let offer = Offer::new(4096.into()).unwrap();
    let fds: [BorrowedFd<'_>; 3] = [offer.memory.as_fd(), bells[0].as_fd(), bells[1].as_fd()];
    send_raw(&far, &offer.hello, &fds, soon()).unwrap();
    assert!(is_refused(&returns(move || connect_on(near, soon()))));
}

fn raise_to_the_maximum(bell: &EventFd) {
    use std::os::fd::AsRawFd;
    bell.write(u64::MAX - 2).unwrap();
    let file = tempfile::tempfile().unwrap();
    let mut byte = [0_u8; 1];
    // SAFETY: all-zero is a valid request; the kernel fills the context in.
    let (mut request, mut context) = unsafe { (std::mem::zeroed::<libc::iocb>(), 0_u64) };
    request.aio_lio_opcode = 0; // IOCB_CMD_PREAD
    request.aio_fildes = file.as_raw_fd().cast_unsigned();
    request.aio_buf = byte.as_mut_ptr().addr() as u64;
    request.aio_nbytes = 1;
    request.aio_flags = 1; // IOCB_FLAG_RESFD
    request.aio_resfd = bell.as_raw_fd().cast_unsigned();
    let mut requests = [&raw mut request];
    // SAFETY: request and buffer outlive the context, whose destruction waits for the request.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_io_setup, 1, &raw mut context), 0);
        let submitted = libc::syscall(libc::SYS_io_submit, context, 1, requests.as_mut_ptr());
        assert_eq!(submitted, 1);
        assert_eq!(libc::syscall(libc::SYS_io_destroy, context), 0);
    }
}
