//! Vector adds over narrow pipes: both directions at once, errors in the middle, broken mediators.

mod script;

use std::time::Duration;

use script::{LIMITS, Script, impatient, play, sum};
use vgpu_guest::{Cause, Client, Error, Options, Retry, Side};
use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::message::{Limits, Op, VectorAdd, VectorAddReply};
use vgpu_protocol::status::{ErrorCode, Status};

const CHUNK: u32 = 100;
const SMALL: Limits = Limits {
    max_chunk_elements: CHUNK,
    ..LIMITS
};

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
        mediator.welcome(SMALL).expect("a Hello");
        then(mediator);
    };
    play(capacity, portion, &options, script)
        .0
        .expect("a session")
}

fn vectors(elements: usize) -> (Vec<f32>, Vec<f32>) {
    // Exact in f32, and each element different.
    (0..elements).map(|i| (i as f32, 0.25 * i as f32)).unzip()
}

fn add(client: &mut Client, elements: usize) -> Result<Vec<f32>, Error> {
    let (a, b) = vectors(elements);
    let mut out = vec![0.0; elements];
    client.vector_add(&a, &b, &mut out)?;
    Ok(out)
}

fn assert_sum(out: &[f32]) {
    let (a, b) = vectors(out.len());
    assert!(
        out.iter()
            .zip(a.iter().zip(&b))
            .all(|(out, (a, b))| *out == a + b)
    );
}

#[test]
fn every_length_through_every_width() {
    // Pipes far narrower than a chunk: neither side could ever hold one in the transport.
    for (capacity, portion) in [(1, 1), (50, 7), (300, 300), (1 << 16, usize::MAX)] {
        let mut client = client(capacity, portion, |mediator| drop(mediator.serve()));
        for elements in [1, 2, 99, 100, 101, 200, 1000, 1003] {
            assert_sum(&add(&mut client, elements).expect("a sum"));
        }
        client.goodbye().expect("a goodbye");
    }
}

#[test]
fn a_mediator_that_answers_late_or_all_at_once_is_no_deadlock() {
    // Takes 5 chunks before it answers any: more than the pipe holds.
    let mut client = client(500, usize::MAX, |mediator| {
        let (request, body) = mediator.receive().expect("a vector add");
        let add = VectorAdd::decode(&body).expect("sound");
        let chunks: Vec<_> = add
            .chunks()
            .map(|n| sum(&mediator.receive().expect("data").1, n))
            .collect();
        assert_eq!(chunks.len(), 5);
        for chunk in chunks {
            let len = u32::try_from(chunk.len()).expect("a chunk");
            mediator
                .send(FrameHeader::data_reply_to(&request, len), &chunk)
                .expect("sent");
        }
        let reply = VectorAddReply {
            elements: add.elements,
            device_ns: 0,
        };
        mediator
            .send(FrameHeader::reply_to(&request, Status::OK), &reply.encode())
            .expect("sent");
        let _ = mediator.serve();
    });
    assert_sum(&add(&mut client, 450).expect("a sum"));
    client.ping(b"x").expect("an echo");
}

#[test]
fn progress_and_report() {
    let mut client = client(1 << 16, usize::MAX, |mediator| drop(mediator.serve()));
    let (a, b) = vectors(250);
    let mut out = vec![0.0; 250];
    let mut seen = Vec::new();
    let report = client
        .vector_add_watched(&a, &b, &mut out, |done| seen.push(done))
        .expect("a sum");
    assert_eq!((report.elements, report.chunk_elements), (250, 100));
    assert_eq!(report.device_time, Duration::from_nanos(5));
    assert!(seen.is_sorted());
    assert_eq!(seen.last(), Some(&250));
}

#[test]
fn nothing_to_add_needs_no_mediator() {
    let mut client = client(64, usize::MAX, |mediator| {
        assert_eq!(mediator.receive().expect("a ping").0.op, Op::Ping);
    });
    let report = client.vector_add(&[], &[], &mut []).expect("nothing");
    assert_eq!(report.elements, 0);
    let _ = client.ping(b"x");
}

#[test]
fn an_error_at_any_point_leaves_the_session_usable() {
    // Refused before any chunk, after some, after all input, for pipes of any width.
    for capacity in [64, 1 << 16] {
        for taken in [0, 1, 3, 5] {
            let mut client = client(capacity, usize::MAX, move |mediator| {
                let (request, _) = mediator.receive().expect("a vector add");
                let mut ended = false;
                for _ in 0..taken {
                    let (data, body) = mediator.receive().expect("data");
                    let sum = sum(&body, u32::try_from(body.len() / 8).expect("a chunk"));
                    let len = u32::try_from(sum.len()).expect("a chunk");
                    mediator
                        .send(FrameHeader::data_reply_to(&request, len), &sum)
                        .expect("sent");
                    ended = !data.has_more();
                }
                mediator
                    .refuse(&request, ErrorCode::QuotaMemory, "no memory")
                    .expect("sent");
                if !ended {
                    let frames = mediator.discard_input().expect("the input ends");
                    assert!(frames <= 5 - taken + 1);
                }
                let _ = mediator.serve();
            });
            let error = add(&mut client, 500).expect_err("refused");
            assert!(
                error.to_string().contains("E_QUOTA_MEM: no memory"),
                "{error}"
            );
            assert_eq!(error.retry(), Retry::SameSession);
            // The stream's handle is free again, in a new generation.
            assert_sum(&add(&mut client, 250).expect("a sum"));
            client.ping(b"x").expect("an echo");
        }
    }
}

fn broken(capacity: usize, then: impl FnOnce(&mut Script, FrameHeader) + Send + 'static) -> Error {
    let mut client = client(capacity, usize::MAX, move |mediator| {
        let (request, _) = mediator.receive().expect("a vector add");
        then(mediator, request);
        // Until the client has had enough.
        while mediator.receive().is_ok() {}
    });
    let error = add(&mut client, 500).expect_err("a broken mediator");
    let over = client.ping(b"x").expect_err("over");
    assert!(matches!(over.cause(), Cause::SessionOver(_)), "{over}");
    error
}

#[test]
fn broken_results_end_the_session() {
    type Case = (fn(&mut Script, FrameHeader), &'static str);
    let cases: Vec<Case> = vec![
        (
            |mediator, request| {
                let header = FrameHeader::data_reply_to(&request, 0);
                let _ = mediator.send(header, &[0; 396]);
            },
            "result data of 396 bytes for request 2, where 400 bytes for request 2 are due",
        ),
        (
            |mediator, mut request| {
                request.request_id += 1;
                let _ = mediator.send(FrameHeader::data_reply_to(&request, 0), &[0; 400]);
            },
            "for request 3",
        ),
        (
            |mediator, request| {
                for _ in 0..6 {
                    let _ = mediator.send(FrameHeader::data_reply_to(&request, 0), &[0; 400]);
                }
            },
            "more result data than the vector has",
        ),
        (
            |mediator, request| {
                let reply = VectorAddReply {
                    elements: 500,
                    device_ns: 0,
                };
                let header = FrameHeader::reply_to(&request, Status::OK);
                let _ = mediator.send(header, &reply.encode());
            },
            "the reply came after 0 of 2000 result bytes",
        ),
        (
            |mediator, request| {
                let _ = mediator.discard_input();
                for _ in 0..5 {
                    let _ = mediator.send(FrameHeader::data_reply_to(&request, 0), &[0; 400]);
                }
                let reply = VectorAddReply {
                    elements: 499,
                    device_ns: 0,
                };
                let header = FrameHeader::reply_to(&request, Status::OK);
                let _ = mediator.send(header, &reply.encode());
            },
            "the mediator says it added 499 elements of 500",
        ),
        (
            |mediator, request| {
                let _ = mediator.send(FrameHeader::reply_to(&request, Status::OK), &[0; 3]);
            },
            "the reply came after 0 of 2000 result bytes",
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
        for _ in 0..5 {
            let _ = mediator.send(FrameHeader::data_reply_to(&request, 0), &[0; 400]);
        }
        let reply = VectorAddReply {
            elements: 500,
            device_ns: 0,
        };
        let _ = mediator.send(FrameHeader::reply_to(&request, Status::OK), &reply.encode());
    });
    assert!(
        error.to_string().contains("before the input was sent"),
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
    let error = add(&mut silent, 500).expect_err("gone");
    assert_eq!(
        (error.side(), error.retry()),
        (Side::Connection, Retry::NewSession)
    );

    let mut polite = client(256, usize::MAX, |mediator| {
        mediator.receive().expect("the request");
        let goodbye = FrameHeader::closing(ErrorCode::BackendLost.into());
        mediator
            .send(goodbye, b"the device fell off the bus")
            .expect("sent");
    });
    let error = add(&mut polite, 500).expect_err("gone");
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
        mediator.welcome(SMALL).expect("a Hello");
        let (request, body) = mediator.receive().expect("a vector add");
        let add = VectorAdd::decode(&body).expect("sound");
        // Longer than the limit in all, but never without progress for so long.
        for elements in add.chunks() {
            std::thread::sleep(Duration::from_millis(150));
            let sum = sum(&mediator.receive().expect("data").1, elements);
            let len = u32::try_from(sum.len()).expect("a chunk");
            mediator
                .send(FrameHeader::data_reply_to(&request, len), &sum)
                .expect("sent");
        }
        let reply = VectorAddReply {
            elements: add.elements,
            device_ns: 0,
        };
        mediator
            .send(FrameHeader::reply_to(&request, Status::OK), &reply.encode())
            .expect("sent");
        let _ = mediator.receive();
        // Now takes nothing any more.
        std::thread::sleep(2 * impatient().stall_timeout);
    });
    let mut client = client.expect("a session");
    assert_sum(&add(&mut client, 500).expect("a slow sum"));
    let error = add(&mut client, 500).expect_err("stalled");
    assert!(matches!(error.cause(), Cause::Stalled(_)), "{error}");
}

#[test]
fn arguments_are_checked_before_anything_is_sent() {
    let mut client = client(64, usize::MAX, |mediator| {
        let (ping, body) = mediator.receive().expect("a ping");
        assert_eq!(ping.op, Op::Ping);
        mediator
            .send(FrameHeader::reply_to(&ping, Status::OK), &body)
            .expect("sent");
    });
    let error = client
        .vector_add(&[1.0, 2.0], &[1.0], &mut [0.0, 0.0])
        .expect_err("lengths");
    assert_eq!((error.side(), error.retry()), (Side::Guest, Retry::No));
    assert!(
        error.to_string().contains("a has 2 elements, b 1, out 2"),
        "{error}"
    );
    client.ping(b"x").expect("the session is unharmed");
}

#[test]
fn one_wrong_bit_anywhere_is_an_error_or_wrong_data_and_never_more() {
    // All that a mediator says to a vector add of one chunk of 2: 40 + 8 and 40 + 16 bytes.
    let answer = |request: &FrameHeader| {
        let result = FrameHeader::data_reply_to(request, 8);
        let reply = VectorAddReply {
            elements: 2,
            device_ns: 0,
        };
        let header = FrameHeader::reply_to(request, Status::OK).with_body_len(16);
        [
            &result.encode()[..],
            &[0; 8],
            &header.encode(),
            &reply.encode(),
        ]
        .concat()
    };
    for bit in 0..8 * (48 + 56) {
        let mut client = client(4096, usize::MAX, move |mediator| {
            let (request, _) = mediator.receive().expect("a vector add");
            mediator.receive().expect("its data");
            let mut bytes = answer(&request);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let deadline = std::time::Instant::now() + script::WATCHDOG;
            mediator.end.write_all(&bytes, deadline).expect("sent");
        });
        let mut out = [9.0; 2];
        match client.vector_add(&[0.0, 0.0], &[0.0, 0.0], &mut out) {
            // In the result itself, which the transport has to keep whole, or the device's time.
            Ok(_) => assert!(
                (320..384).contains(&bit) || (704..768).contains(&bit),
                "bit {bit}"
            ),
            Err(error) => assert_ne!(error.side(), Side::Guest, "bit {bit}: {error}"),
        }
    }
}
