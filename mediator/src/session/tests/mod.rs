//! Sessions against scripts: every rule of `docs/protocol.md` that a guest can break or use.

mod faults;
mod hostile;

use std::time::Duration;

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
