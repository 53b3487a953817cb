//! A peer that lies before there is a channel: hello, descriptors, memory, control page.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{ftruncate, pipe};
use proptest::prelude::*;
use vchan::layout::{live, offset};
use vchan::local::{connect_on, serve_on};
use vchan::{Error, PeerError};
use vchan_testing::peer::{Offer, send_raw};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn offer() -> Offer {
    Offer::new((64 << 10).into()).unwrap()
}

/// A client's error for an offer with these descriptors.
fn offered(hello: &[u8], fds: &[BorrowedFd<'_>]) -> Error {
    let (near, far) = UnixStream::pair().unwrap();
    send_raw(&far, hello, fds, soon()).unwrap();
    connect_on(near, soon()).expect_err("the offer was accepted")
}

#[track_caller]
fn assert_refused(error: Error, why: &str) {
    match &error {
        Error::Peer(PeerError::Rendezvous(what)) if what.contains(why) => {}
        other => panic!("expected '{why}', got {other:?}"),
    }
}

#[test]
fn an_honest_offer_is_accepted() {
    let offer = offer();
    let (near, far) = UnixStream::pair().unwrap();
    offer.send(&far, soon()).unwrap();
    let channel = connect_on(near, soon()).unwrap();
    assert_eq!(channel.ring_sizes(), (64 << 10).into());
}

#[test]
fn too_few_or_too_many_descriptors() {
    let offer = offer();
    let all = [
        offer.memory.as_fd(),
        offer.to_server.as_fd(),
        offer.from_server.as_fd(),
    ];
    assert_refused(offered(&offer.hello, &[]), "three descriptors");
    assert_refused(offered(&offer.hello, &all[..1]), "three descriptors");
    assert_refused(offered(&offer.hello, &all[..2]), "three descriptors");
    let four = [all[0], all[1], all[2], all[2]];
    assert_refused(offered(&offer.hello, &four), "more than three");
}

#[test]
fn case_40_doorbells_and_memory_of_the_wrong_kind() {
    let offer = offer();
    let (reading, writing) = pipe().unwrap();
    let (memory, to_server) = (offer.memory.as_fd(), offer.to_server.as_fd());
    let pipes = [memory, reading.as_fd(), writing.as_fd()];
    assert_refused(offered(&offer.hello, &pipes), "not a connected Unix socket");
    assert_refused(
        offered(&offer.hello, &[memory, to_server, memory]),
        "not a connected Unix socket",
    );
    let file: OwnedFd = tempfile::tempfile().unwrap().into();
    for not_memory in [file.as_fd(), reading.as_fd(), to_server] {
        let error = offered(&offer.hello, &[not_memory, to_server, to_server]);
        assert!(matches!(error, Error::Peer(_)), "{error:?}");
    }
}

#[test]
fn memory_that_could_fault() {
    let offer = offer();
    let bells = (offer.to_server.as_fd(), offer.from_server.as_fd());
    let length = nix::sys::stat::fstat(&offer.memory).unwrap().st_size;
    let unsealed = memfd_create(c"x", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    ftruncate(&unsealed, length).unwrap();
    let error = offered(&offer.hello, &[unsealed.as_fd(), bells.0, bells.1]);
    assert_refused(error, "not sealed");
    // Sealed, but shorter than the hello says, and vice versa.
    let small = Offer::new(4096.into()).unwrap();
    let error = offered(&offer.hello, &[small.memory.as_fd(), bells.0, bells.1]);
    assert_refused(error, "bytes instead of");
    let error = offered(&small.hello, &[offer.memory.as_fd(), bells.0, bells.1]);
    assert_refused(error, "bytes instead of");
}

#[test]
fn sizes_in_the_hello() {
    let offer = offer();
    let fds = [
        offer.memory.as_fd(),
        offer.to_server.as_fd(),
        offer.from_server.as_fd(),
    ];
    for bytes in [0u64, 1, 4095, 1 << 22, 1 << 40, u64::MAX] {
        let mut hello = offer.hello;
        hello[16..24].copy_from_slice(&bytes.to_le_bytes());
        let error = offered(&hello, &fds);
        assert!(matches!(error, Error::Peer(_)), "{bytes}: {error:?}");
    }
}

#[test]
fn case_10_orders_that_are_impossible_or_do_not_match_the_memory() {
    for (left, right) in [
        (0, 16),
        (9, 16),
        (21, 16),
        (0xFFFF, 16),
        (10, 10),
        (11, 11),
        (10, 20),
    ] {
        let offer = offer();
        offer.page.set_u16(offset::LEFT_ORDER, left);
        offer.page.set_u16(offset::RIGHT_ORDER, right);
        let fds = [
            offer.memory.as_fd(),
            offer.to_server.as_fd(),
            offer.from_server.as_fd(),
        ];
        let error = offered(&offer.hello, &fds);
        assert!(
            matches!(error, Error::Peer(PeerError::Orders { .. })),
            "{error:?}"
        );
    }
    for (left, right) in [(12, 16), (16, 17), (20, 20), (10, 11)] {
        let offer = offer();
        offer.page.set_u16(offset::LEFT_ORDER, left);
        offer.page.set_u16(offset::RIGHT_ORDER, right);
        let fds = [
            offer.memory.as_fd(),
            offer.to_server.as_fd(),
            offer.from_server.as_fd(),
        ];
        assert_refused(offered(&offer.hello, &fds), "for rings that need");
    }
}

#[test]
fn case_15_control_page_in_another_state() {
    let state = |at: usize, value: u8| {
        let offer = offer();
        offer.page.set_u8(at, value);
        let fds = [
            offer.memory.as_fd(),
            offer.to_server.as_fd(),
            offer.from_server.as_fd(),
        ];
        offered(&offer.hello, &fds)
    };
    assert_refused(state(offset::SRV_LIVE, live::CLOSED), "does not await");
    assert_refused(state(offset::CLI_LIVE, live::CONNECTED), "does not await");

    let offer = offer();
    offer.page.set_u32(offset::LEFT_PROD, (64 << 10) + 1);
    let fds = [
        offer.memory.as_fd(),
        offer.to_server.as_fd(),
        offer.from_server.as_fd(),
    ];
    let error = offered(&offer.hello, &fds);
    assert!(
        matches!(error, Error::Peer(PeerError::StartIndexes { .. })),
        "{error:?}"
    );
}

#[test]
fn an_unfinished_hello_ends_with_the_stream_or_the_deadline() {
    let offer = offer();
    let fds = [
        offer.memory.as_fd(),
        offer.to_server.as_fd(),
        offer.from_server.as_fd(),
    ];
    let (near, far) = UnixStream::pair().unwrap();
    send_raw(&far, &offer.hello[..10], &fds, soon()).unwrap();
    let short = Instant::now() + Duration::from_millis(30);
    assert!(matches!(connect_on(near, short), Err(Error::TimedOut(_))));

    let (near, far) = UnixStream::pair().unwrap();
    send_raw(&far, &offer.hello[..10], &fds, soon()).unwrap();
    drop(far);
    assert!(matches!(
        connect_on(near, soon()),
        Err(Error::PeerClosed { .. })
    ));
}

#[test]
fn a_server_meets_answers_that_are_none() {
    let serve = |answer: &'static [u8], close: bool| {
        let (near, far) = UnixStream::pair().unwrap();
        let mut stream = far.try_clone().unwrap();
        let answering = thread::spawn(move || {
            stream.write_all(answer).unwrap();
            if close {
                stream.shutdown(std::net::Shutdown::Both).unwrap();
            }
        });
        let deadline = Instant::now() + Duration::from_millis(if close { 60_000 } else { 50 });
        let outcome = serve_on(near, 4096, deadline);
        answering.join().unwrap();
        drop(far);
        outcome.expect_err("the answer was accepted")
    };
    let error = serve(b"GET / HTTP/1.0\r\n\r\n", false);
    assert!(matches!(error, Error::Peer(_)), "{error:?}");
    assert!(matches!(serve(b"", false), Error::TimedOut(_)));
    assert!(matches!(serve(b"vchan", true), Error::PeerClosed { .. }));
    // "Accepted", but the control page does not say so: the wait for it ends.
    let accepted = b"vchan-lo\x03\0\0\0\0\0\0\0";
    assert!(matches!(serve(accepted, false), Error::TimedOut(_)));
    assert!(matches!(serve(accepted, true), Error::PeerClosed { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_hello_is_answered(hello in proptest::collection::vec(any::<u8>(), 40..80)) {
        let offer = offer();
        let fds = [offer.memory.as_fd(), offer.to_server.as_fd(), offer.from_server.as_fd()];
        let error = offered(&hello, &fds);
        prop_assert!(matches!(error, Error::Peer(_)), "{:?}", error);
    }

    /// Case 15: a random page in place of an honest one.
    #[test]
    fn any_control_page_is_answered(words in proptest::collection::vec(any::<u32>(), 6)) {
        let offer = offer();
        for (i, word) in words.iter().enumerate() {
            offer.page.set_u32(4 * i, *word);
        }
        let (near, far) = UnixStream::pair().unwrap();
        offer.send(&far, soon()).unwrap();
        // Accepting is possible, if unlikely; panicking or hanging is not.
        let _ = connect_on(near, soon());
    }
}
