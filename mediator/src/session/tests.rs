//! Sessions against scripts: every rule of `docs/protocol.md` that a guest can break or use.

use std::time::Duration;

use proptest::prelude::*;
use vgpu_protocol::frame::{Flags, FrameHeader, HEADER_LEN};
use vgpu_protocol::handle::{Handle, HandleKind};
use vgpu_protocol::message::{
    DataType, Features, FenceReply, Hello, HelloReply, InfoReply, Limits, Op, VectorAdd,
    VectorAddReply,
};
use vgpu_protocol::status::{ErrorCode, Status, decode_error_text};

use super::scripted::{AtEnd, Scripted};
use super::{Refusal, SessionEnd, Settings, StopFlag, StopReason, serve};
use crate::executor::cpu::CpuExecutor;
use crate::usage::{Observed, Usage};

fn settings() -> Settings {
    Settings {
        limits: Limits {
            max_body: 1 << 20,
            max_lanes: 1,
            max_requests: 4,
            max_handles: 4,
            max_chunk_elements: 4096,
            preferred_chunk_elements: 1024,
            max_elements: 100_000,
        },
        epoch: 77,
        hello_timeout: Duration::from_millis(40),
        idle_timeout: Duration::from_millis(40),
        stall_timeout: Duration::from_millis(40),
        reason: Some("a test".into()),
        refusal: None,
    }
}

fn frame(header: FrameHeader, body: &[u8]) -> Vec<u8> {
    let header = header.with_body_len(u32::try_from(body.len()).unwrap());
    [&header.encode()[..], body].concat()
}

fn request(op: Op, id: u32, body: &[u8]) -> Vec<u8> {
    frame(FrameHeader::request(op, id), body)
}

fn hello() -> Vec<u8> {
    let hello = Hello {
        min_version: 1,
        max_version: 9,
        features: Features::ALL,
        client_name: "script \u{1b}[31m".into(),
    };
    request(Op::Hello, 1, &hello.encode())
}

fn stream(slot: u32, generation: u32) -> Handle {
    Handle::new(HandleKind::Stream, slot, generation).unwrap()
}

fn vector_add_header(id: u32) -> FrameHeader {
    FrameHeader::request(Op::VectorAdd, id)
        .with_flags(Flags::MORE)
        .with_handle(stream(0, id))
}

fn vector_add_open(id: u32, elements: u64, chunk_elements: u32) -> Vec<u8> {
    let job = VectorAdd {
        elements,
        chunk_elements,
        data_type: DataType::F32,
    };
    frame(vector_add_header(id), &job.encode())
}

fn floats(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(f32::to_le_bytes).collect()
}

/// Chunk bodies of a = 0, 1, 2… and b = 1000.
fn vector_add_data(id: u32, elements: u16, chunk: u16) -> Vec<Vec<u8>> {
    let starts: Vec<u16> = (0..elements).step_by(chunk.into()).collect();
    let last = *starts.last().unwrap();
    starts
        .into_iter()
        .map(|start| {
            let end = start.saturating_add(chunk).min(elements);
            let a = floats((start..end).map(f32::from));
            let b = floats((start..end).map(|_| 1000.0));
            let body = [a, b].concat();
            let len = u32::try_from(body.len()).unwrap();
            let header = FrameHeader::data_for(&vector_add_header(id), len, start != last);
            frame(header, &body)
        })
        .collect()
}

fn vector_add(id: u32, elements: u16, chunk: u16) -> Vec<u8> {
    let mut bytes = vector_add_open(id, elements.into(), chunk.into());
    bytes.extend(vector_add_data(id, elements, chunk).concat());
    bytes
}

struct Outcome {
    end: SessionEnd,
    replies: Vec<(FrameHeader, Vec<u8>)>,
    usage: Usage,
    client: Option<String>,
}

fn run_on(transport: &mut Scripted, settings: &Settings, stop: &StopFlag) -> Outcome {
    let observed = Observed::default();
    let mut open = || Ok(Box::new(CpuExecutor::new("its own reason")) as _);
    let end = serve(transport, &mut open, settings, &observed, stop);
    assert!(transport.closed);
    Outcome {
        end,
        replies: replies(&transport.output),
        usage: observed.counters.usage(),
        client: observed.client.get().cloned(),
    }
}

fn run(parts: &[Vec<u8>]) -> Outcome {
    let mut transport = Scripted::new(parts.concat(), 1000, AtEnd::Closes);
    run_on(&mut transport, &settings(), &StopFlag::default())
}

fn replies(mut output: &[u8]) -> Vec<(FrameHeader, Vec<u8>)> {
    let mut replies = Vec::new();
    while let Some((header, rest)) = output.split_first_chunk::<HEADER_LEN>() {
        let header = FrameHeader::decode(header).expect("the mediator's own frames are sound");
        let (body, rest) = rest.split_at(header.body_len as usize);
        replies.push((header, body.to_vec()));
        output = rest;
    }
    assert!(output.is_empty(), "the mediator cut a frame");
    replies
}

fn statuses(outcome: &Outcome) -> Vec<(Op, u32, Status)> {
    outcome
        .replies
        .iter()
        .map(|(header, _)| (header.op, header.request_id, header.status))
        .collect()
}

fn code(code: ErrorCode) -> Status {
    code.into()
}

#[test]
fn hello_info_ping_goodbye() {
    let outcome = run(&[
        hello(),
        request(Op::Info, 2, b""),
        request(Op::Ping, 3, b"abc"),
        request(Op::Goodbye, 4, b""),
    ]);
    assert!(
        matches!(outcome.end, SessionEnd::Goodbye),
        "{}",
        outcome.end
    );
    let ops: Vec<Op> = outcome
        .replies
        .iter()
        .map(|(header, _)| header.op)
        .collect();
    assert_eq!(ops, [Op::Hello, Op::Info, Op::Ping, Op::Goodbye]);
    let reply = HelloReply::decode(&outcome.replies[0].1).unwrap();
    assert_eq!((reply.version, reply.epoch), (1, 77));
    assert_eq!(reply.limits, settings().limits);
    let info = InfoReply::decode(&outcome.replies[1].1).unwrap();
    assert_eq!(
        (info.executor.as_str(), info.reason.as_str()),
        ("cpu", "a test")
    );
    assert_eq!(outcome.replies[2].1, b"abc");
    assert_eq!(outcome.usage.requests, 4);
    assert_eq!(outcome.usage.failed_requests, 0);
    // The name cannot write to a terminal.
    assert_eq!(outcome.client.as_deref(), Some("script \\u{1b}[31m"));
}

#[test]
fn vector_adds_of_all_shapes_in_all_portions() {
    for (elements, chunk) in [(1, 1), (1000, 1000), (1000, 300), (1000, 1), (5, 4096)] {
        for portion in [1, 13, 4096, 1 << 20] {
            let script = [
                hello(),
                vector_add(2, elements, chunk),
                request(Op::Goodbye, 9, b""),
            ];
            let mut transport = Scripted::new(script.concat(), portion, AtEnd::Closes);
            let outcome = run_on(&mut transport, &settings(), &StopFlag::default());
            let (data, last): (Vec<_>, Vec<_>) = outcome.replies[1..]
                .iter()
                .partition(|(header, _)| header.op == Op::Data);
            let sums: Vec<u8> = data.iter().flat_map(|(_, body)| body.clone()).collect();
            assert_eq!(sums, floats((0..elements).map(|i| f32::from(i) + 1000.0)));
            assert_eq!(last[0].0.status, Status::OK);
            let reply = VectorAddReply::decode(&last[0].1).unwrap();
            assert_eq!(reply.elements, u64::from(elements));
            assert_eq!(last[1].0.op, Op::Goodbye);
            assert_eq!(outcome.usage.elements, u64::from(elements));
            assert_eq!(outcome.usage.device_ns, reply.device_ns);
            assert!(matches!(outcome.end, SessionEnd::Goodbye));
        }
    }
}

#[test]
fn requests_between_the_chunks_wait_their_turn() {
    let mut parts = vec![hello(), vector_add_open(2, 20, 10)];
    let data = vector_add_data(2, 20, 10);
    parts.push(data[0].clone());
    parts.extend((3..=6).map(|id| request(Op::Ping, id, b"x")));
    parts.push(vector_add(7, 5, 5));
    parts.push(data[1].clone());
    parts.push(vector_add(8, 5, 5));
    let mut outcome = run(&parts);
    outcome.replies.retain(|(header, _)| header.op != Op::Data);
    assert_eq!(
        statuses(&outcome)[1..],
        [
            // Four requests at once were allowed: the vector add and three pings.
            (Op::Ping, 6, code(ErrorCode::Busy)),
            (Op::VectorAdd, 7, code(ErrorCode::Busy)),
            (Op::VectorAdd, 2, Status::OK),
            (Op::Ping, 3, Status::OK),
            (Op::Ping, 4, Status::OK),
            (Op::Ping, 5, Status::OK),
            (Op::VectorAdd, 8, Status::OK),
        ]
    );
}

#[test]
fn a_refused_vector_add_leaves_the_session_usable() {
    let no_handle = FrameHeader::request(Op::VectorAdd, 5).with_flags(Flags::MORE);
    let job = |elements, chunk_elements| {
        VectorAdd {
            elements,
            chunk_elements,
            data_type: DataType::F32,
        }
        .encode()
    };
    let cases = [
        (vector_add_header(5), job(100_001, 10), ErrorCode::Range),
        (
            vector_add_header(5),
            job(u64::MAX, u32::MAX),
            ErrorCode::Range,
        ),
        (vector_add_header(5), job(10_000, 4097), ErrorCode::Range),
        (vector_add_header(5), job(0, 10), ErrorCode::Range),
        (vector_add_header(5), vec![1, 2, 3], ErrorCode::Range),
        (
            vector_add_header(5).with_lane(1),
            job(10, 10),
            ErrorCode::Range,
        ),
        (no_handle, job(10, 10), ErrorCode::Handle),
        (
            vector_add_header(5).with_handle(stream(4, 1)),
            job(10, 10),
            ErrorCode::Handle,
        ),
        // Generation 2 of this slot was used by the request before.
        (
            vector_add_header(5).with_handle(stream(0, 2)),
            job(10, 10),
            ErrorCode::Handle,
        ),
    ];
    for (header, body, wanted) in cases {
        let data = frame(FrameHeader::data_for(&header, 0, true), &[9; 80]);
        let stop = frame(FrameHeader::data_for(&header, 0, false), b"");
        let mut outcome = run(&[
            hello(),
            vector_add(2, 5, 5),
            frame(header, &body),
            data,
            stop,
            vector_add(6, 5, 5),
        ]);
        outcome.replies.retain(|(header, _)| header.op != Op::Data);
        assert_eq!(
            statuses(&outcome)[2..],
            [
                (Op::VectorAdd, 5, code(wanted)),
                (Op::VectorAdd, 6, Status::OK)
            ],
            "{header:?}"
        );
        assert!(!decode_error_text(&outcome.replies[2].1).is_empty());
    }
}

#[test]
fn input_of_the_wrong_length_fails_only_its_request() {
    let open = vector_add_header(2);
    let data = |len: usize, more| frame(FrameHeader::data_for(&open, 0, more), &vec![0; len]);
    let cases = [
        // Cancelled: at once, after a chunk, and with a chunk that claims to be the last.
        (vec![data(0, false)], ErrorCode::Cancelled),
        (vec![data(80, true), data(0, false)], ErrorCode::Cancelled),
        (vec![data(80, false)], ErrorCode::Cancelled),
        // Too short, too long, empty, and more than was announced.
        (vec![data(79, true), data(0, false)], ErrorCode::Range),
        (vec![data(81, true), data(80, false)], ErrorCode::Range),
        (vec![data(0, true), data(0, false)], ErrorCode::Range),
        (
            vec![data(80, true), data(80, true), data(80, false)],
            ErrorCode::Range,
        ),
    ];
    for (frames, wanted) in cases {
        let mut outcome = run(&[
            hello(),
            vector_add_open(2, 20, 10),
            frames.concat(),
            vector_add(3, 7, 7),
            request(Op::Goodbye, 4, b""),
        ]);
        outcome.replies.retain(|(header, _)| header.op != Op::Data);
        assert_eq!(
            statuses(&outcome)[1..],
            [
                (Op::VectorAdd, 2, code(wanted)),
                (Op::VectorAdd, 3, Status::OK),
                (Op::Goodbye, 4, Status::OK)
            ]
        );
        assert!(matches!(outcome.end, SessionEnd::Goodbye));
    }
}

#[test]
fn quiet_failures_come_with_the_fence() {
    let quiet = |id, lane| {
        frame(
            FrameHeader::request(Op::Ping, id)
                .with_flags(Flags::QUIET)
                .with_lane(lane),
            b"q",
        )
    };
    let outcome = run(&[
        hello(),
        quiet(2, 0),
        quiet(3, 9),
        quiet(4, 0),
        request(Op::Fence, 5, b""),
        request(Op::Fence, 6, b""),
    ]);
    assert_eq!(outcome.replies.len(), 3);
    let fence = FenceReply::decode(&outcome.replies[1].1).unwrap();
    assert_eq!(fence.failures.len(), 1);
    assert_eq!(fence.failures[0].request_id, 3);
    assert_eq!(fence.failures[0].status, code(ErrorCode::Range));
    let fence = FenceReply::decode(&outcome.replies[2].1).unwrap();
    assert_eq!(fence, FenceReply::default());
}

#[test]
fn broken_protocol_ends_the_session_with_a_reason() {
    let not_offered = Hello {
        min_version: 2,
        max_version: 3,
        features: Features::ALL,
        client_name: String::new(),
    };
    let orphan = FrameHeader::data_for(&vector_add_header(9), 0, true);
    let goodbye_reply = FrameHeader::closing(Status::OK);
    let cases = [
        (vec![request(Op::Ping, 5, b"x")], ErrorCode::Protocol),
        (vec![request(Op::Hello, 5, b"x")], ErrorCode::Protocol),
        (
            vec![request(Op::Hello, 5, &not_offered.encode())],
            ErrorCode::Version,
        ),
        (vec![hello(), hello()], ErrorCode::Protocol),
        (vec![hello(), vec![0xff; 40]], ErrorCode::Protocol),
        (vec![hello(), frame(orphan, b"")], ErrorCode::Protocol),
        (
            vec![hello(), frame(goodbye_reply, b"")],
            ErrorCode::Protocol,
        ),
        // In the middle of a vector add whose first result is on its way.
        (
            vec![
                hello(),
                vector_add_open(2, 20, 10),
                vector_add_data(2, 20, 10)[0].clone(),
                vec![0; 40],
            ],
            ErrorCode::Protocol,
        ),
    ];
    for (script, wanted) in cases {
        for portion in [1, 1000] {
            let mut transport = Scripted::new(script.concat(), portion, AtEnd::Closes);
            let outcome = run_on(&mut transport, &settings(), &StopFlag::default());
            assert!(
                matches!(outcome.end, SessionEnd::GuestFault(_)),
                "{}",
                outcome.end
            );
            let (last, text) = outcome.replies.last().unwrap();
            assert_eq!(last.status, code(wanted));
            assert!(!text.is_empty());
        }
    }
}

#[test]
fn nothing_waits_for_ever() {
    let half_frame = hello()[..20].to_vec();
    let half_chunk = [
        hello(),
        vector_add_open(2, 20, 10),
        vector_add_data(2, 20, 10)[0][..70].to_vec(),
    ]
    .concat();
    for (script, wanted) in [
        (Vec::new(), "no complete Hello"),
        (half_frame, "no complete Hello"),
        (hello(), "no request"),
        ([hello(), vec![b'V']].concat(), "half a frame"),
        // The request times out first, then the session.
        (half_chunk, "half a frame"),
    ] {
        let mut transport = Scripted::new(script, 1000, AtEnd::Stalls);
        let outcome = run_on(&mut transport, &settings(), &StopFlag::default());
        let SessionEnd::TimedOut(text) = &outcome.end else {
            panic!("{}", outcome.end);
        };
        assert!(text.contains(wanted), "{text}");
        let (last, _) = outcome.replies.last().unwrap();
        assert_eq!(
            (last.op, last.status),
            (Op::Goodbye, code(ErrorCode::Timeout))
        );
    }
}

#[test]
fn a_guest_that_takes_no_results_is_let_go() {
    let script = [hello(), vector_add(2, 1000, 500)].concat();
    let mut transport = Scripted::new(script, 100, AtEnd::Stalls);
    transport.takes_at_most = 1000;
    let observed = Observed::default();
    let mut open = || Ok(Box::new(CpuExecutor::new("a test")) as _);
    let stop = StopFlag::default();
    let end = serve(&mut transport, &mut open, &settings(), &observed, &stop);
    assert!(matches!(end, SessionEnd::TimedOut(_)), "{end}");
    assert!(transport.closed);
}

#[test]
fn a_refused_guest_is_told_why() {
    let mut settings = settings();
    settings.refusal = Some(Refusal {
        code: ErrorCode::Denied,
        text: "ask the administrator".into(),
    });
    let mut transport = Scripted::new(hello(), 1000, AtEnd::Stalls);
    let outcome = run_on(&mut transport, &settings, &StopFlag::default());
    assert!(matches!(outcome.end, SessionEnd::Refused(_)));
    assert_eq!(outcome.replies.len(), 1);
    assert_eq!(outcome.replies[0].0.status, code(ErrorCode::Denied));
    assert_eq!(outcome.replies[0].1, b"ask the administrator");
}

#[test]
fn an_executor_that_cannot_be_opened_is_named() {
    let mut transport = Scripted::new(hello(), 1000, AtEnd::Stalls);
    let observed = Observed::default();
    let mut open = || Err("no such device".to_owned());
    let stop = StopFlag::default();
    let end = serve(&mut transport, &mut open, &settings(), &observed, &stop);
    assert!(matches!(end, SessionEnd::ExecutorLost(_)));
    let replies = replies(&transport.output);
    assert_eq!(replies[0].0.status, code(ErrorCode::BackendLost));
    assert!(decode_error_text(&replies[0].1).contains("no such device"));
}

#[test]
fn a_stop_waits_for_the_request_that_runs() {
    let stop = StopFlag::default();
    stop.set(StopReason::Draining);
    // Hello and the vector add are there already, so they are served first.
    let script = [hello(), vector_add(2, 10, 5)].concat();
    let mut transport = Scripted::new(script, 1 << 20, AtEnd::Stalls);
    transport.turn = true;
    let outcome = run_on(&mut transport, &settings(), &stop);
    assert!(matches!(
        outcome.end,
        SessionEnd::Stopped(StopReason::Draining)
    ));
    let (last, text) = outcome.replies.last().unwrap();
    assert_eq!((last.op, last.status), (Op::Goodbye, code(ErrorCode::Busy)));
    assert!(decode_error_text(text).contains("stopping"));
}

/// Frames a hostile guest may put together: sound ones, slightly broken ones, and noise.
fn hostile_bytes() -> impl Strategy<Value = Vec<u8>> {
    let header = (0..9u16, 0..8u16, 0..6u32, 0..3u16, any::<bool>(), 0..200u32).prop_map(
        |(op, flags, id, lane, handle, len)| {
            let mut bytes = FrameHeader::request(Op::Ping, 1).encode();
            bytes[4..6].copy_from_slice(&op.to_le_bytes());
            bytes[6..8].copy_from_slice(&flags.to_le_bytes());
            bytes[8..12].copy_from_slice(&id.to_le_bytes());
            bytes[12..14].copy_from_slice(&lane.to_le_bytes());
            if handle {
                bytes[16..24].copy_from_slice(&stream(0, id.max(1)).to_bits().to_le_bytes());
            }
            bytes[24..28].copy_from_slice(&len.to_le_bytes());
            bytes.to_vec()
        },
    );
    let part = prop_oneof![
        3 => header,
        1 => prop::collection::vec(any::<u8>(), 0..100),
        2 => (1..6u32, 1..40u16, 1..40u16).prop_map(|(id, n, chunk)| vector_add(id, n, chunk)),
        2 => (1..6u32, 0..3usize).prop_map(|(id, cut)| {
            let mut bytes = vector_add(id, 10, 5);
            bytes.truncate(bytes.len() - cut * 45);
            bytes
        }),
        1 => (1..6u32).prop_map(|id| request(Op::Fence, id, b"")),
    ];
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn no_bytes_panic_a_session(
        greet in any::<bool>(),
        bytes in hostile_bytes(),
        portion in 1..300usize,
        stalls in any::<bool>(),
    ) {
        let script = if greet { [hello(), bytes].concat() } else { bytes };
        let at_end = if stalls { AtEnd::Stalls } else { AtEnd::Closes };
        let mut transport = Scripted::new(script, portion, at_end);
        let mut settings = settings();
        settings.hello_timeout = Duration::from_millis(1);
        settings.idle_timeout = Duration::from_millis(1);
        settings.stall_timeout = Duration::from_millis(1);
        let observed = Observed::default();
        let mut open = || Ok(Box::new(CpuExecutor::new("a test")) as _);
        serve(&mut transport, &mut open, &settings, &observed, &StopFlag::default());
        prop_assert!(transport.closed);
    }
}
