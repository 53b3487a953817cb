//! Requests of one frame each way: what works, and what a mediator may do wrong.

mod script;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use script::{EPOCH, LIMITS, Script, impatient, play};
use vgpu_guest::{Cause, Client, Error, InfoReply, Options, Retry, Side};
use vgpu_protocol::frame::{Flags, FrameHeader};
use vgpu_protocol::message::{Features, FenceReply, HelloReply, Limits, Op, QuietFailure};
use vgpu_protocol::status::{ErrorCode, Status};

/// A client of a mediator that admits it and then does `then`.
fn client(then: impl FnOnce(&mut Script) + Send + 'static) -> Client {
    let script = move |mediator: &mut Script| {
        mediator.welcome(LIMITS).expect("a Hello");
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
        let hello = mediator.welcome(LIMITS).expect("a Hello");
        let (info, _) = mediator.receive().expect("info");
        let reply = InfoReply {
            executor: "cpu".into(),
            ..InfoReply::default()
        };
        mediator
            .send(FrameHeader::reply_to(&info, Status::OK), &reply.encode())
            .expect("sent");
        let (quiet, _) = mediator.receive().expect("a quiet ping");
        assert!(quiet.is_quiet());
        let (fence, _) = mediator.receive().expect("a fence");
        let status = ErrorCode::Range.into();
        let failure = QuietFailure {
            request_id: quiet.request_id,
            op: Op::Ping,
            status,
        };
        let reply = FenceReply {
            failures: vec![failure],
            dropped: 3,
        };
        mediator
            .send(FrameHeader::reply_to(&fence, Status::OK), &reply.encode())
            .expect("sent");
        let _ = mediator.serve();
        hello
    });
    let mut client = client.expect("a session");
    assert_eq!(client.epoch(), EPOCH);
    assert_eq!(client.limits(), &LIMITS);
    assert_eq!(client.endpoint(), None);
    assert_eq!(client.info().expect("info").executor, "cpu");
    let id = client.ping_quiet(b"hush").expect("sent");
    let fence = client.fence().expect("a fence");
    assert_eq!((fence.failures[0].request_id, fence.dropped), (id, 3));
    for size in [0, 1, 4096] {
        client.ping(&vec![7; size]).expect("an echo");
    }
    client.goodbye().expect("a goodbye");
    let hello = mediator.join().expect("the script ran");
    assert!(hello.client_name.contains("pid"), "{}", hello.client_name);
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
            .contains("CUDA error 700: illegal address"),
        "{error}"
    );
}

#[test]
fn an_unasked_goodbye_ends_the_session_with_its_reason() {
    // In place of a reply, and before a request could be written.
    let replies: [fn(&mut Script); 2] = [|mediator| drop(mediator.receive()), |_| ()];
    for before in replies {
        let mut client = client(move |mediator| {
            before(mediator);
            let goodbye = FrameHeader::closing(ErrorCode::Denied.into());
            mediator
                .send(goodbye, b"removed by the admin")
                .expect("sent");
        });
        std::thread::sleep(Duration::from_millis(50));
        let error = client.ping(b"x").expect_err("removed");
        assert!(
            error.to_string().contains("E_DENIED: removed by the admin"),
            "{error}"
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
    protocol_error(&error(answer(|h| h, b"pong")), "other bytes");
    let wrong_id = |mut header: FrameHeader| {
        header.request_id += 1;
        header
    };
    protocol_error(&error(answer(wrong_id, b"ping")), "was answered by Ping");
    let wrong_op = |mut header: FrameHeader| {
        header.op = Op::Info;
        header
    };
    protocol_error(&error(answer(wrong_op, b"ping")), "was answered by Info");
    protocol_error(&error(answer(|h| h.with_lane(1), b"ping")), "lane 1");
    let request = |mut header: FrameHeader| {
        header.flags = Flags::NONE;
        header
    };
    protocol_error(&error(answer(request, b"ping")), "Ping came as a request");
    let data = |header: FrameHeader| FrameHeader::data_reply_to(&header, 0);
    protocol_error(
        &error(answer(data, b"ping")),
        "data came where none was asked for",
    );
    let no_flags = |header: FrameHeader| header.with_flags(Flags::QUIET);
    protocol_error(&error(answer(no_flags, b"ping")), "flags is 0x0003");

    let mut client = answer(|h| h, b"short");
    protocol_error(
        &client.info().expect_err("a broken body"),
        "InfoReply body has 5 bytes",
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
        mediator.welcome(LIMITS).expect("a Hello");
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
        let reply = HelloReply {
            version: 2,
            features: Features::ALL,
            limits: LIMITS,
            epoch: EPOCH,
        };
        mediator
            .send(FrameHeader::reply_to(&hello, Status::OK), &reply.encode())
            .expect("sent");
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
        let (hello, _) = mediator.receive().expect("a Hello");
        let limits = Limits {
            max_elements: 10,
            ..LIMITS
        };
        let reply = HelloReply {
            version: 1,
            features: Features(0),
            limits,
            epoch: EPOCH,
        };
        mediator
            .send(FrameHeader::reply_to(&hello, Status::OK), &reply.encode())
            .expect("sent");
        let (next, _) = mediator.receive().expect("a ping");
        assert_eq!(next.op, Op::Ping);
        mediator
            .send(FrameHeader::reply_to(&next, Status::OK), b"x")
            .expect("sent");
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
        assert!(error.to_string().contains("E_UNSUPPORTED"), "{error}");
    }
    let error = client.ping(&[0; 4097]).expect_err("too long");
    assert_eq!(error.side(), Side::Guest);
    client.ping(b"x").expect("an echo");
}
