//! Exchanges over narrow pipes: both directions at once, errors in the middle, broken mediators.

mod script;

use std::time::Duration;

use script::{Script, TERMS, answer, exchange, impatient, play};
use vgpu_guest::{Cause, Client, Error, Options, Retry, Side};
use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::op::{ExchangeReply, Op};
use vgpu_protocol::session::server::Terms;
use vgpu_protocol::status::{ErrorCode, Status};

/// A mediator's reply when the work is done.
const DONE: ExchangeReply = ExchangeReply {};

fn client(
    capacity: usize,
    portion: usize,
    then: impl FnOnce(&mut Script) + Send + 'static,
) -> Client {
    let options = Options {
        stall_timeout: Duration::from_secs(2),
        ..Options::default()
    };
    let script = move |mediator: &mut Script| {
        mediator.welcome(TERMS).expect("a Hello");
        then(mediator);
    };
    play(capacity, portion, &options, script)
        .0
        .expect("a session")
}

/// A client of a mediator that lets `credit` bytes of a request be sent at first.
fn granting(
    credit: u32,
    capacity: usize,
    then: impl FnOnce(&mut Script) + Send + 'static,
) -> Client {
    let terms = Terms {
        initial_credit: credit,
        ..TERMS
    };
    let script = move |mediator: &mut Script| {
        mediator.welcome(terms).expect("a Hello");
        then(mediator);
    };
    play(capacity, usize::MAX, &Options::default(), script)
        .0
        .expect("a session")
}

#[test]
fn every_length_through_every_width() {
    // Pipes far narrower than a chunk: neither side could ever hold one in the transport.
    for (capacity, portion) in [(1, 1), (50, 7), (300, 300), (1 << 16, usize::MAX)] {
        let mut client = client(capacity, portion, |mediator| drop(mediator.serve()));
        for elements in [1, 2, 99, 100, 101, 200, 1000, 1003] {
            exchange(&mut client, elements, 0).expect("an answer");
        }
        client.goodbye().expect("a goodbye");
    }
}

#[test]
fn a_mediator_that_answers_late_or_all_at_once_is_no_deadlock() {
    // Takes all data before it sends any: more than the pipe holds.
    let mut client = client(500, usize::MAX, |mediator| {
        let (request, _) = mediator.receive().expect("an exchange");
        let data = mediator.input(&request).expect("its data");
        mediator.data(&request, answer(&data)).expect("sent");
        mediator.reply(&request, &DONE).expect("sent");
        let _ = mediator.serve();
    });
    exchange(&mut client, 450, 0).expect("an answer");
    client.ping(b"x").expect("an echo");
}

#[test]
fn progress_and_time() {
    let mut client = client(1 << 16, usize::MAX, |mediator| drop(mediator.serve()));
    let (data, mut back) = ([3; 2000], [0; 1000]);
    let mut seen = Vec::new();
    let took = client
        .exchange_watched(&data, &mut back, |done| seen.push(done))
        .expect("an answer");
    assert!(took > Duration::ZERO);
    assert!(seen.is_sorted());
    assert_eq!(seen.last(), Some(&1000));
}

#[test]
fn nothing_needs_no_mediator() {
    let mut client = client(64, usize::MAX, |mediator| {
        assert_eq!(mediator.receive().expect("a ping").0.op, Op::Ping);
    });
    let report = client.vector_add(&[], &[], &mut []).expect("nothing");
    assert_eq!(report.elements, 0);
    client.exchange(&[], &mut []).expect("nothing");
    let _ = client.ping(b"x");
}

#[test]
fn an_error_at_any_point_leaves_the_session_usable() {
    // Refused before any data, after some, after all, for pipes of any width.
    for capacity in [64, 1 << 16] {
        for (credit, taken) in [(1000, 0), (1000, 1), (1000, 3), (1 << 30, 1)] {
            let mut client = granting(credit, capacity, move |mediator| {
                let (request, _) = mediator.receive().expect("an exchange");
                let mut ended = false;
                for round in 0..taken {
                    let (data, _) = mediator.receive().expect("data");
                    ended = !data.has_more();
                    if round + 1 < taken {
                        let more = FrameHeader::data_down(&request, 0, credit);
                        mediator.send(more, &[]).expect("sent");
                    }
                }
                mediator.data(&request, &[0; 40]).expect("sent");
                mediator
                    .refuse(&request, ErrorCode::QuotaMemory, "no memory")
                    .expect("sent");
                if !ended {
                    let rest = mediator.input(&request).expect("the input ends");
                    assert!(rest.len() <= 1000);
                }
                let (request, body) = mediator.receive().expect("another exchange");
                mediator
                    .send(FrameHeader::data_down(&request, 0, 4000), &[])
                    .expect("sent");
                mediator.exchange(&request, &body).expect("its data");
                let _ = mediator.serve();
            });
            let error = exchange(&mut client, 500, 0).expect_err("refused");
            assert!(
                error.to_string().contains("E_QUOTA_MEM: no memory"),
                "{error}"
            );
            assert_eq!(error.retry(), Retry::SameSession);
            exchange(&mut client, 250, 0).expect("an answer");
            client.ping(b"x").expect("an echo");
        }
    }
}

fn broken(capacity: usize, then: impl FnOnce(&mut Script, FrameHeader) + Send + 'static) -> Error {
    let mut client = client(capacity, usize::MAX, move |mediator| {
        let (request, _) = mediator.receive().expect("an exchange");
        then(mediator, request);
        // Until the client has had enough.
        while mediator.receive().is_ok() {}
    });
    let error = exchange(&mut client, 500, 0).expect_err("a broken mediator");
    let over = client.ping(b"x").expect_err("over");
    assert!(matches!(over.cause(), Cause::SessionOver(_)), "{over}");
    error
}

#[test]
fn broken_results_end_the_session() {
    type Case = (fn(&mut Script, FrameHeader), &'static str);
    let cases: Vec<Case> = vec![
        (
            |mediator, request| drop(mediator.data(&request, &[0; 2001])),
            "it sent 2001 bytes for request 2, where 2000 bytes are due",
        ),
        (
            |mediator, mut request| {
                request.request_id += 1;
                let _ = mediator.data(&request, &[0; 400]);
            },
            "it sent data of request 3, which is not under way",
        ),
        (
            |mediator, request| drop(mediator.data(&request.with_lane(1), &[0; 400])),
            "it sent 400 bytes for request 2",
        ),
        (
            |mediator, request| {
                for _ in 0..6 {
                    let _ = mediator.data(&request, &[0; 400]);
                }
            },
            "it sent 400 bytes for request 2, where 0 bytes are due",
        ),
        (
            |mediator, request| {
                let _ = mediator.input(&request);
                let _ = mediator.reply(&request, &DONE);
            },
            "it answered request 2 2000 bytes too early",
        ),
        (
            |mediator, request| {
                let _ = mediator.input(&request);
                let _ = mediator.data(&request, &[0; 2000]);
                let _ = mediator.send(FrameHeader::reply_to(&request, Status::OK), &[0; 3]);
            },
            "it sent a bad body: ExchangeReply: end",
        ),
    ];
    for (then, expected) in cases {
        let error = broken(1 << 16, then);
        assert_eq!(error.side(), Side::Mediator, "{error}");
        assert!(
            error.to_string().contains(expected),
            "'{error}' lacks '{expected}'"
        );
    }
}

#[test]
fn all_results_before_the_input_was_sent_is_no_success() {
    let error = broken(64, |mediator, request| {
        let _ = mediator.data(&request, &[0; 2000]);
        let _ = mediator.reply(&request, &DONE);
    });
    assert!(
        error
            .to_string()
            .contains("it answered request 2 before its data was sent"),
        "{error}"
    );
}

#[test]
fn a_mediator_that_dies_in_the_middle_is_noticed_and_its_last_words_are_heard() {
    let mut silent = client(64, usize::MAX, |mediator| {
        for _ in 0..3 {
            mediator.receive().expect("the request and two chunks");
        }
    });
    let error = exchange(&mut silent, 500, 0).expect_err("gone");
    assert_eq!(
        (error.side(), error.retry()),
        (Side::Connection, Retry::NewSession)
    );

    let mut polite = client(256, usize::MAX, |mediator| {
        mediator.receive().expect("the request");
        let closing = FrameHeader::closing(ErrorCode::BackendLost.into());
        mediator
            .send(closing, b"the device fell off the bus")
            .expect("sent");
    });
    let error = exchange(&mut polite, 500, 0).expect_err("gone");
    assert_eq!(
        (error.side(), error.retry()),
        (Side::Device, Retry::NewSession)
    );
    assert!(
        error
            .to_string()
            .contains("E_BACKEND_LOST: the device fell off the bus"),
        "{error}"
    );
}

#[test]
fn a_stall_is_told_from_a_slow_transfer() {
    let options = impatient();
    let (client, _mediator) = play(256, usize::MAX, &options, |mediator| {
        let initial_credit = 800;
        let terms = Terms {
            initial_credit,
            ..TERMS
        };
        mediator.welcome(terms).expect("a Hello");
        let (request, _) = mediator.receive().expect("an exchange");
        // Longer than the limit in all, but never without progress for so long.
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(150));
            mediator.receive().expect("data");
            let header = FrameHeader::data_down(&request, 0, initial_credit);
            mediator.send(header, &[0; 400]).expect("sent");
        }
        mediator.reply(&request, &DONE).expect("sent");
        let _ = mediator.receive();
        // Now takes nothing any more.
        std::thread::sleep(2 * impatient().stall_timeout);
    });
    let mut client = client.expect("a session");
    let (data, mut slow) = ([7; 4000], [7; 2000]);
    client.exchange(&data, &mut slow).expect("a slow answer");
    assert_eq!(slow, [0; 2000]);
    let error = exchange(&mut client, 500, 0).expect_err("stalled");
    assert!(matches!(error.cause(), Cause::Stalled(_)), "{error}");
}

#[test]
fn arguments_are_checked_before_anything_is_sent() {
    let mut client = client(64, usize::MAX, |mediator| {
        let (ping, body) = mediator.receive().expect("a ping");
        assert_eq!(ping.op, Op::Ping);
        mediator.echo(&ping, &body).expect("sent");
    });
    let error = client
        .vector_add(&[1.0, 2.0], &[1.0], &mut [0.0, 0.0])
        .expect_err("lengths");
    assert_eq!((error.side(), error.retry()), (Side::Guest, Retry::No));
    assert!(
        error.to_string().contains("a has 2 elements, b 1, out 2"),
        "{error}"
    );
    let error = client.exchange(&[0; 8], &mut [0; 9]).expect_err("lengths");
    assert_eq!((error.side(), error.retry()), (Side::Guest, Retry::No));
    assert!(error.to_string().contains("9 bytes back of 8"), "{error}");
    client.ping(b"x").expect("the session is unharmed");
}

#[test]
fn one_wrong_bit_anywhere_is_an_error_or_wrong_data_and_never_more() {
    // All that a mediator says to an exchange of 16 bytes of which 8 come back: 32 + 8 and 32 bytes.
    let answer = |request: &FrameHeader| {
        let result = FrameHeader::data_down(request, 8, 0);
        let header = FrameHeader::reply_to(request, Status::OK);
        [&result.encode()[..], &[0; 8], &header.encode()].concat()
    };
    for bit in 0..8 * (40 + 32) {
        let mut client = client(4096, usize::MAX, move |mediator| {
            let (request, _) = mediator.receive().expect("an exchange");
            mediator.receive().expect("its data");
            let mut bytes = answer(&request);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let deadline = std::time::Instant::now() + script::WATCHDOG;
            mediator.end.write_all(&bytes, deadline).expect("sent");
        });
        let mut back = [9; 8];
        match client.exchange(&[0; 16], &mut back) {
            // Credit that is not needed; the result itself, which the transport has to keep whole; hints that
            // quiet requests have failed and that kernels have printed.
            Ok(_) => assert!(
                (224..320).contains(&bit) || [371, 372].contains(&bit),
                "bit {bit}"
            ),
            Err(error) => assert_ne!(error.side(), Side::Guest, "bit {bit}: {error}"),
        }
    }
}

/// It may have been sent behind quiet ones that keep the mediator busy, and not have been read yet.
#[test]
fn a_mediator_that_works_and_starts_nothing_is_waited_for() {
    let options = impatient();
    let (client, mediator) = play(256, usize::MAX, &options, |mediator| {
        mediator.welcome(TERMS).expect("a Hello");
        for _ in 0..5 {
            std::thread::sleep(impatient().stall_timeout / 2);
            mediator.send(FrameHeader::working(), &[]).expect("sent");
        }
        for _ in 0..2 {
            let (ping, body) = mediator.receive().expect("a ping");
            mediator.echo(&ping, &body).expect("sent");
        }
    });
    let mut client = client.expect("a session");
    let mut other = client.lane().expect("a second lane");
    // The second is longer than what there is room for.
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| client.ping(b"x").map(|_| ()));
        other.ping(&[7; 4000]).expect("an echo");
        waits.join().expect("no panic").expect("an echo");
    });
    drop((client, other));
    mediator.join().expect("no panic");
}
