//! A corpus of broken bodies: each must be refused with what is wrong in the message.

use vgpu_protocol::frame::MAX_CONTROL_BODY;
use vgpu_protocol::message::{
    FenceReply, Hello, HelloReply, InfoReply, MessageError, VectorAdd, VectorAddReply,
};
use vgpu_protocol::status::{MAX_ERROR_TEXT, decode_error_text, encode_error_text};

fn refused<T: std::fmt::Debug>(result: Result<T, MessageError>, expected: &str) {
    let error = result.expect_err(expected).to_string();
    assert!(
        error.contains(expected),
        "got '{error}', expected '…{expected}…'"
    );
}

fn hello(min: u16, max: u16, name_len: u16, reserved: u16, name: &[u8]) -> Vec<u8> {
    let mut body: Vec<u8> = [min, max, name_len, reserved]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    body.extend([0; 8]);
    body.extend(name);
    body
}

#[test]
fn hello_bodies() {
    refused(Hello::decode(&[]), "Hello body has 0 bytes, 16 needed");
    refused(
        Hello::decode(&[0; 15]),
        "Hello body has 15 bytes, 16 needed",
    );
    refused(
        Hello::decode(&hello(0, 1, 0, 0, b"")),
        "min_version is 0, versions start at 1",
    );
    refused(
        Hello::decode(&hello(3, 2, 0, 0, b"")),
        "max_version is 2, below min_version",
    );
    refused(
        Hello::decode(&hello(1, 1, 65, 0, &[b'a'; 65])),
        "name_len is 65, at most 64",
    );
    refused(
        Hello::decode(&hello(1, 1, 65535, 0, b"")),
        "name_len is 65535",
    );
    refused(
        Hello::decode(&hello(1, 1, 4, 0, b"abc")),
        "3 bytes, 4 needed",
    );
    refused(
        Hello::decode(&hello(1, 1, 3, 0, b"abcd")),
        "20 bytes, 19 needed",
    );
    refused(
        Hello::decode(&hello(1, 1, 0, 7, b"")),
        "reserved is 7, not 0",
    );
    refused(
        Hello::decode(&hello(1, 1, 2, 0, &[0xc3, 0x28])),
        "client name is not UTF-8",
    );
}

#[test]
fn hello_replies() {
    // version, reserved, max_body, features, epoch, max_elements, lanes, requests, handles, chunks
    let reply = |version: u16, max_body: u32, lanes: u16, requests: u16, chunks: [u32; 2]| {
        let mut body = Vec::new();
        body.extend(version.to_le_bytes());
        body.extend([0; 2]);
        body.extend(max_body.to_le_bytes());
        body.extend([0; 24]);
        body.extend(lanes.to_le_bytes());
        body.extend(requests.to_le_bytes());
        body.extend(1u32.to_le_bytes());
        chunks
            .iter()
            .for_each(|chunk| body.extend(chunk.to_le_bytes()));
        HelloReply::decode(&body)
    };
    assert!(reply(1, 1 << 20, 1, 1, [1024, 1024]).is_ok());
    refused(
        HelloReply::decode(&[0; 47]),
        "HelloReply body has 47 bytes, 48 needed",
    );
    refused(
        HelloReply::decode(&[0; 49]),
        "HelloReply body has 49 bytes, 48 needed",
    );
    refused(reply(0, 1, 1, 1, [1, 1]), "version is 0");
    refused(
        reply(1, (16 << 20) + 1, 1, 1, [1, 1]),
        "max_body is 16777217, above 16777216",
    );
    refused(reply(1, 1, 0, 1, [1, 1]), "max_lanes is 0");
    refused(reply(1, 1, 1, 0, [1, 1]), "max_requests is 0");
    refused(
        reply(1, 1, 1, 1, [1, 2]),
        "preferred_chunk_elements is 2, above max_chunk_elements",
    );
}

#[test]
fn info_replies() {
    let mut body = InfoReply {
        device: "x".into(),
        ..InfoReply::default()
    }
    .encode();
    refused(
        InfoReply::decode(&body[..23]),
        "InfoReply body has 23 bytes, 24 needed",
    );
    refused(InfoReply::decode(&body[..24]), "0 bytes, 1 needed");
    body.push(0);
    refused(InfoReply::decode(&body), "26 bytes, 25 needed");
    body.pop();
    body[20] = 9;
    refused(InfoReply::decode(&body), "reserved is 9");
    body[20] = 0;
    body[8..10].copy_from_slice(&513u16.to_le_bytes());
    refused(
        InfoReply::decode(&body),
        "executor is 513, at most 512 bytes",
    );
    body[8..10].copy_from_slice(&[1, 0]);
    body[24] = 0xff;
    refused(InfoReply::decode(&body), "executor is not UTF-8");
    let hostile = InfoReply {
        device: "\x1b[2J".into(),
        ..InfoReply::default()
    };
    let shown = InfoReply::decode(&hostile.encode()).expect("a sound body");
    assert_eq!(shown.device, " [2J");
}

#[test]
fn vector_adds() {
    let add = |elements: u64, chunk: u32, dtype: u32| {
        let mut body = elements.to_le_bytes().to_vec();
        body.extend(chunk.to_le_bytes());
        body.extend(dtype.to_le_bytes());
        VectorAdd::decode(&body)
    };
    assert!(add(1, 1, 1).is_ok());
    refused(add(0, 1, 1), "elements is 0");
    refused(add(1, 0, 1), "chunk_elements is 0");
    refused(add(1, 1, 2), "dtype is 2, only 1 (f32) is known");
    refused(
        VectorAdd::decode(&[1; 15]),
        "VectorAdd body has 15 bytes, 16 needed",
    );
    refused(
        VectorAdd::decode(&[1; 17]),
        "VectorAdd body has 17 bytes, 16 needed",
    );
    refused(
        VectorAddReply::decode(&[1; 15]),
        "VectorAddReply body has 15 bytes, 16 needed",
    );
}

#[test]
fn fence_replies() {
    let fence = |count: u32, entries: &[(u16, u16, i32)]| {
        let mut body = count.to_le_bytes().to_vec();
        body.extend([0; 4]);
        for (op, reserved, status) in entries {
            body.extend(1u32.to_le_bytes());
            body.extend(op.to_le_bytes());
            body.extend(reserved.to_le_bytes());
            body.extend(status.to_le_bytes());
        }
        FenceReply::decode(&body)
    };
    assert!(fence(0, &[]).is_ok());
    assert!(fence(1, &[(3, 0, -10)]).is_ok());
    refused(FenceReply::decode(&[0; 7]), "7 bytes, 8 needed");
    refused(fence(65, &[]), "count is 65, at most 64");
    refused(fence(u32::MAX, &[]), "count is 4294967295");
    refused(fence(2, &[(3, 0, -10)]), "0 bytes, 12 needed");
    refused(fence(0, &[(3, 0, -10)]), "20 bytes, 8 needed");
    refused(fence(1, &[(99, 0, -10)]), "op is 99");
    refused(fence(1, &[(3, 1, -10)]), "reserved is 1");
    refused(fence(1, &[(3, 0, 0)]), "status is 0");
}

#[test]
fn error_texts_are_cut_and_cleaned() {
    assert_eq!(
        decode_error_text(b"out of\x1b[2J\nluck\xff"),
        "out of [2J luck\u{fffd}"
    );
    assert_eq!(decode_error_text(&[b'a'; 5000]).len(), MAX_ERROR_TEXT);
    // A character of two bytes across the limit is left out whole.
    let long = "é".repeat(600) + "x";
    let cut = encode_error_text(&long);
    assert_eq!(cut.len(), MAX_ERROR_TEXT);
    let odd = format!("x{}", "é".repeat(600));
    assert_eq!(encode_error_text(&odd).len(), MAX_ERROR_TEXT - 1);
}

#[test]
fn every_control_body_fits_a_control_frame() {
    use vgpu_protocol::message::{MAX_INFO_TEXT, MAX_QUIET_FAILURES, Op, QuietFailure};
    use vgpu_protocol::status::Status;

    let long = "m".repeat(MAX_INFO_TEXT * 2);
    let info = InfoReply {
        executor: long.clone(),
        device: long.clone(),
        total_memory: u64::MAX,
        driver: long.clone(),
        reason: long.clone(),
        mediator: long,
    };
    let failure = QuietFailure {
        request_id: 1,
        op: Op::Ping,
        status: Status::Cuda(700),
    };
    let fence = FenceReply {
        failures: vec![failure; MAX_QUIET_FAILURES + 9],
        dropped: 1,
    };
    for body in [info.encode(), fence.encode()] {
        assert!(
            body.len() <= MAX_CONTROL_BODY as usize,
            "{} bytes",
            body.len()
        );
    }
    let fence = FenceReply::decode(&fence.encode()).expect("a sound body");
    assert_eq!(
        (fence.failures.len(), fence.dropped),
        (MAX_QUIET_FAILURES, 10)
    );
}
