//! Requests of one frame each way: what works, and what a mediator may do wrong.

mod script;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use script::{EPOCH, Script, TERMS, hello_reply, impatient, info_reply, play};
use vgpu_guest::{Cause, Client, Error, Options, Retry, Side};
use vgpu_protocol::frame::{Flags, FrameHeader};
use vgpu_protocol::op::field::List;
use vgpu_protocol::op::{Features, FenceReply, Op, QuietFailure};
use vgpu_protocol::session::server::Terms;
use vgpu_protocol::status::{ErrorCode, Status};

/// A client of a mediator that admits it and then does `then`.
fn client(then: impl FnOnce(&mut Script) + Send + 'static) -> Client {
    let script = move |mediator: &mut Script| {
        mediator.welcome(TERMS).expect("a Hello");
        then(mediator);
    };
    play(4096, usize::MAX, &impatient(), script)
        .0
        .expect("a session")
}

/// Answers the next request with this header, made from the right one, and body.
fn answer(
    change: impl FnOnce(FrameHeader) -> FrameHeader + Send + 'static,
    body: &'static [u8],
) -> Client {
    client(move |mediator| {
        let (request, _) = mediator.receive().expect("a request");
        let header = change(FrameHeader::reply_to(&request, Status::OK));
        // The client may have gone already.
        let _ = mediator.send(header, body);
        let _ = mediator.receive();
    })
}

fn protocol_error(error: &Error, expected: &str) {
    assert_eq!(
        (error.side(), error.retry()),
        (Side::Mediator, Retry::No),
        "{error}"
    );
    assert!(matches!(error.cause(), Cause::Protocol(_)), "{error}");
    assert!(
        error.to_string().contains(expected),
        "'{error}' lacks '{expected}'"
    );
}

#[test]
fn a_session_from_hello_to_goodbye() {
    let (client, mediator) = play(64, 7, &Options::default(), |mediator| {
        let hello = mediator.welcome(TERMS).expect("a Hello");
        let (info, _) = mediator.receive().expect("info");
        mediator.reply(&info, &info_reply()).expect("sent");
        let (quiet, _) = mediator.receive().expect("a quiet ping");
        assert!(quiet.is_quiet());
        let (fence, _) = mediator.receive().expect("a fence");
        let status = ErrorCode::Range.into();
        let failure = QuietFailure {
            request_id: quiet.request_id,
            op: Op::Ping,
            status,
        };
        let mut failures = List::default();
        failures.push(failure).expect("room for one");
        let reply = FenceReply {
            failures,
            dropped: 3,
        };
        mediator.reply(&fence, &reply).expect("sent");
        let _ = mediator.serve();
        hello
    });
    let mut client = client.expect("a session");
    assert_eq!(client.epoch(), EPOCH);
    assert_eq!(client.limits(), &hello_reply(TERMS));
    assert_eq!(client.endpoint(), None);
    assert_eq!(client.info().expect("info"), info_reply());
    let id = client.ping_quiet(b"hush").expect("sent");
    let fence = client.fence().expect("a fence");
    let failed = fence.failures.as_slice()[0].request_id;
    assert_eq!((failed, fence.dropped), (id, 3));
    for size in [0, 1, 4096] {
        client.ping(&vec![7; size]).expect("an echo");
    }
    client.goodbye().expect("a goodbye");
    let hello = mediator.join().expect("the script ran");
    let name = hello.client_name.as_str();
    assert!(name.contains("pid"), "{name}");
}

#[test]
fn a_refusal_leaves_the_session_usable() {
    let mut client = client(|mediator| {
        let (request, _) = mediator.receive().expect("info");
        mediator
            .refuse(&request, ErrorCode::Busy, "the device\nis busy")
            .expect("sent");
        let _ = mediator.serve();
    });
    let error = client.info().expect_err("refused");
    assert_eq!(
        error.to_string(),
        "info: the mediator refused Info: E_BUSY: the device is busy"
    );
    assert_eq!(
        (error.side(), error.retry()),
        (Side::Mediator, Retry::SameSession)
    );
    assert_eq!(error.epoch(), Some(EPOCH));
    client.ping(b"still here").expect("an echo");
}

#[test]
fn a_device_error_is_told_from_a_mediators() {
    let mut client = client(|mediator| {
        let (request, _) = mediator.receive().expect("info");
        let reply = FrameHeader::reply_to(&request, Status::Cuda(700));
        mediator.send(reply, b"illegal address").expect("sent");
    });
    let error = client.info().expect_err("refused");
    assert_eq!(error.side(), Side::Device);
    assert!(
        error
            .to_string()
            .contains("CUDA_ERROR_ILLEGAL_ADDRESS (700): illegal address"),
        "{error}"
    );
}

#[test]
fn a_mediator_that_ends_the_session_says_why() {
    // In place of a reply, and before a request could be written.
    let replies: [fn(&mut Script); 2] = [|mediator| drop(mediator.receive()), |_| ()];
    for before in replies {
        let mut client = client(move |mediator| {
            before(mediator);
            let closing = FrameHeader::closing(ErrorCode::Denied.into());
            mediator
                .send(closing, b"removed by the admin")
                .expect("sent");
        });
        std::thread::sleep(Duration::from_millis(50));
        let error = client.ping(b"x").expect_err("removed");
        assert_eq!(
            error.to_string(),
            "ping: the mediator ended the session: E_DENIED: removed by the admin"
        );
        assert!(error.advice().contains("[guests]"), "{}", error.advice());
        let error = client.ping(b"x").expect_err("over");
        assert!(matches!(error.cause(), Cause::SessionOver(_)), "{error}");
        assert_eq!(error.retry(), Retry::NewSession);
    }
}

#[test]
fn wrong_replies_are_protocol_errors() {
    let error = |mut client: Client| client.ping(b"ping").expect_err("a broken reply");
    const PING: &[u8] = b"\x04\0ping";
    let other = error(answer(|h| h, b"\x04\0pong"));
    protocol_error(&other, "it answered a ping with other bytes");
    let wrong_id = |mut header: FrameHeader| {
        header.request_id += 1;
        header
    };
    protocol_error(
        &error(answer(wrong_id, PING)),
        "it answered Ping 3, which was not asked",
    );
    let wrong_op = |mut header: FrameHeader| {
        header.op = Op::Info;
        header
    };
    protocol_error(
        &error(answer(wrong_op, PING)),
        "it answered Info 2 on lane 0 where the reply to Ping on lane 0 is due",
    );
    protocol_error(&error(answer(|h| h.with_lane(1), PING)), "on lane 1");
    let request = |mut header: FrameHeader| {
        header.flags = Flags::NONE;
        header
    };
    protocol_error(
        &error(answer(request, PING)),
        "it sent a bad header: Ping comes as a request where a reply is due",
    );
    let data = |header: FrameHeader| FrameHeader::data_down(&header, 0, 0);
    protocol_error(
        &error(answer(data, PING)),
        "it sent 6 bytes for request 2, where 0 bytes are due",
    );
    let no_flags = |header: FrameHeader| header.with_flags(Flags::QUIET);
    protocol_error(&error(answer(no_flags, PING)), "flags is 0x0003");

    let mut client = answer(|h| h, b"short");
    protocol_error(
        &client.info().expect_err("a broken body"),
        "it sent a bad body: InfoReply: total_memory",
    );
    assert!(matches!(
        client.info().expect_err("over").cause(),
        Cause::SessionOver(_)
    ));
}

#[test]
fn a_silent_mediator_ends_a_request_after_the_stall_limit() {
    let mut silent = client(|mediator| {
        let _ = mediator.receive();
        let _ = mediator.receive();
    });
    let error = silent.ping(b"x").expect_err("silence");
    assert!(matches!(error.cause(), Cause::Stalled(_)), "{error}");
    assert_eq!(
        (error.side(), error.retry()),
        (Side::Connection, Retry::NewSession)
    );
}

#[test]
fn a_mediator_that_dies_is_noticed() {
    let mut client = client(|_| ());
    let error = client.ping(b"x").expect_err("gone");
    assert_eq!(
        (error.side(), error.retry()),
        (Side::Connection, Retry::NewSession)
    );
    assert!(
        error.to_string().contains("closed the connection"),
        "{error}"
    );
}

#[test]
fn an_interrupt_ends_a_wait() {
    let flag = Arc::new(AtomicBool::new(false));
    let options = Options {
        interrupt: Some(Arc::clone(&flag)),
        ..Options::default()
    };
    let (client, _mediator) = play(4096, usize::MAX, &options, |mediator| {
        mediator.welcome(TERMS).expect("a Hello");
        let _ = mediator.receive();
        let _ = mediator.receive();
    });
    let mut client = client.expect("a session");
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        flag.store(true, Ordering::Relaxed);
    });
    let error = client.ping(b"x").expect_err("interrupted");
    assert!(matches!(error.cause(), Cause::Interrupted), "{error}");
    stopper.join().expect("the flag was set");
}

#[test]
fn what_is_no_mediator_is_refused_at_hello() {
    let failed = |script: fn(&mut Script)| {
        let (client, _) = play(4096, usize::MAX, &impatient(), script);
        client.expect_err("no session")
    };
    let error = failed(|mediator| {
        let deadline = std::time::Instant::now() + script::WATCHDOG;
        mediator.end.write_all(&[b'x'; 40], deadline).expect("sent");
        let _ = mediator.receive();
    });
    protocol_error(&error, "magic is 0x78787878");
    let error = failed(|mediator| {
        let (hello, _) = mediator.receive().expect("a Hello");
        mediator
            .refuse(&hello, ErrorCode::Version, "this mediator speaks 2 to 3")
            .expect("sent");
    });
    assert!(
        error
            .to_string()
            .contains("E_VERSION: this mediator speaks 2 to 3"),
        "{error}"
    );
    assert_eq!((error.retry(), error.epoch()), (Retry::No, None));
    let error = failed(|mediator| {
        let (hello, _) = mediator.receive().expect("a Hello");
        let mut reply = hello_reply(TERMS);
        reply.version = reply.version.saturating_add(1);
        mediator.reply(&hello, &reply).expect("sent");
    });
    protocol_error(&error, "chose version 2, which was not offered");
    let error = failed(|mediator| {
        let _ = mediator.receive();
        let _ = mediator.receive();
    });
    assert!(matches!(error.cause(), Cause::Stalled(_)), "{error}");
}

#[test]
fn what_was_not_offered_is_not_sent() {
    let (client, _mediator) = play(4096, usize::MAX, &impatient(), |mediator| {
        let features = Features::NONE;
        mediator
            .welcome(Terms { features, ..TERMS })
            .expect("a Hello");
        let (next, body) = mediator.receive().expect("a ping");
        assert_eq!(next.op, Op::Ping);
        mediator.echo(&next, &body).expect("sent");
        let _ = mediator.receive();
    });
    let mut client = client.expect("a session");
    for error in [
        client.fence().map(drop).expect_err("no fences"),
        client
            .ping_quiet(b"x")
            .map(drop)
            .expect_err("no quiet requests"),
        client
            .vector_add(&[1.0], &[1.0], &mut [0.0])
            .map(drop)
            .expect_err("no vector add"),
    ] {
        assert!(matches!(error.cause(), Cause::NotSent(_)), "{error}");
        assert_eq!((error.side(), error.retry()), (Side::Mediator, Retry::No));
        assert!(error.to_string().contains("did not offer"), "{error}");
    }
    let error = client.ping(&[0; 4097]).expect_err("too long");
    assert_eq!(error.side(), Side::Guest);
    client.ping(b"x").expect("an echo");
}
