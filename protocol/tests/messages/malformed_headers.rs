//! Broken headers: each must be refused, with the field and the value in the message.

use vgpu_protocol::frame::{Flags, FrameError, FrameHeader, HEADER_LEN, MAX_DATA};
use vgpu_protocol::op::Op;
use vgpu_protocol::status::{ErrorCode, Status};

const OP: usize = 4;
const FLAGS: usize = 6;
const REQUEST_ID: usize = 8;
const LANE: usize = 12;
const RESERVED: usize = 14;
const BODY_LEN: usize = 16;
const DEADLINE: usize = 20;
const STATUS: usize = 24;
const CREDIT: usize = 28;

/// A sound header of `op`, with the bytes from each offset on replaced.
fn patched(op: Op, patches: &[(usize, &[u8])]) -> [u8; HEADER_LEN] {
    let mut bytes = FrameHeader::request(op, 1).encode();
    for (offset, with) in patches {
        bytes[*offset..offset + with.len()].copy_from_slice(with);
    }
    bytes
}

#[test]
fn each_broken_rule_names_its_field_and_value() {
    let reply: (usize, &[u8]) = (FLAGS, &[1, 0]);
    let down: (usize, &[u8]) = (FLAGS, &[5, 0]);
    let corpus: Vec<([u8; HEADER_LEN], &str)> = vec![
        (
            [0; HEADER_LEN],
            "magic is 0x00000000, not 0x55504756 (\"VGPU\")",
        ),
        ([0xff; HEADER_LEN], "magic is 0xffffffff"),
        (
            *b"GET / HTTP/1.1\r\nHost: localhost\r",
            "magic is 0x20544547",
        ),
        (patched(Op::Ping, &[(0, b"UPGV")]), "magic is 0x56475055"),
        (
            patched(Op::Ping, &[(OP, &[0, 0])]),
            "op is 0, which protocol version 1 does not have",
        ),
        (patched(Op::Ping, &[(OP, &[9, 0])]), "op is 9"),
        (patched(Op::Ping, &[(OP, &[0xff, 0xff])]), "op is 65535"),
        (
            patched(Op::Ping, &[(FLAGS, &[32, 0])]),
            "flags is 0x0020, which has unknown bits",
        ),
        (patched(Op::Ping, &[(FLAGS, &[0, 0x80])]), "flags is 0x8000"),
        (
            patched(Op::Ping, &[(FLAGS, &[4, 0])]),
            "flags is 0x0004, which Ping does not allow",
        ),
        (
            patched(Op::Hello, &[(FLAGS, &[2, 0])]),
            "flags is 0x0002, which Hello does not allow",
        ),
        (
            patched(Op::Ping, &[(REQUEST_ID, &[0; 4])]),
            "request_id is 0; only Closing has 0, and nothing else",
        ),
        (
            patched(Op::Closing, &[reply]),
            "request_id is 1; only Closing has 0",
        ),
        (
            patched(Op::Ping, &[(RESERVED, &[0, 1])]),
            "reserved is 0x100, not 0",
        ),
        (
            patched(Op::Ping, &[(BODY_LEN, &4099u32.to_le_bytes())]),
            "body_len is 4099, but Ping allows at most 4098 bytes",
        ),
        (
            patched(Op::Info, &[(BODY_LEN, &[1, 0, 0, 0])]),
            "body_len is 1, but Info allows at most 0 bytes",
        ),
        (
            patched(Op::Goodbye, &[reply, (BODY_LEN, &1025u32.to_le_bytes())]),
            "body_len is 1025, but Goodbye allows at most 1024 bytes",
        ),
        (
            patched(Op::Data, &[(BODY_LEN, &(MAX_DATA + 1).to_le_bytes())]),
            "body_len is 1048577, but Data allows at most 1048576 bytes",
        ),
        (
            patched(Op::Data, &[(BODY_LEN, &[0xff; 4])]),
            "body_len is 4294967295",
        ),
        (
            patched(Op::Ping, &[reply, (DEADLINE, &[5, 0, 0, 0])]),
            "deadline_ms is 0x5, not 0",
        ),
        (
            patched(Op::Data, &[(DEADLINE, &[5, 0, 0, 0])]),
            "deadline_ms is 0x5, not 0",
        ),
        (
            patched(Op::Ping, &[(STATUS, &(-1i32).to_le_bytes())]),
            "status is 0xffffffff, not 0",
        ),
        (
            patched(Op::Data, &[down, (STATUS, &700i32.to_le_bytes())]),
            "status is 0x2bc, not 0",
        ),
        (
            patched(Op::Data, &[(CREDIT, &[1, 0, 0, 0])]),
            "credit is 0x1, not 0",
        ),
        (
            patched(Op::Ping, &[reply, (CREDIT, &[1, 0, 0, 0])]),
            "credit is 0x1, not 0",
        ),
    ];
    for (bytes, expected) in corpus {
        let error = FrameHeader::decode(&bytes).expect_err(expected).to_string();
        assert!(
            error.starts_with(expected),
            "got '{error}', expected '{expected}…'"
        );
    }
}

#[test]
fn flags_are_checked_for_every_operation() {
    // The rules of docs/protocol.md, as the set of allowed flag values of each operation.
    let allowed = |op: Op| -> &[u16] {
        match op {
            // Up: more or the last; down: the reply follows.
            Op::Data => &[0, 4, 5],
            Op::Closing => &[1],
            _ if op.spec().expect("a row").quiet => &[0, 1, 2, 9],
            _ => &[0, 1, 9],
        }
    };
    let quiet = Op::REQUESTS
        .iter()
        .filter(|op| op.spec().expect("a row").quiet);
    // Calls that in CUDA may fail later, and Ping.
    assert_eq!(
        quiet.copied().collect::<Vec<_>>(),
        [
            Op::Ping,
            Op::MemoryFree,
            Op::CopyToDevice,
            Op::CopyWithinDevice,
            Op::FillRange,
            Op::ModuleUnload,
            Op::FunctionSetAttribute,
            Op::Launch,
            Op::StreamCreate,
            Op::StreamDestroy,
            Op::StreamWaitEvent,
            Op::EventCreate,
            Op::EventDestroy,
            Op::EventRecord,
            Op::CopyRowsToDevice,
            Op::CopyRowsWithinDevice,
            Op::FillRows,
            Op::MemoryFreeAsync,
            Op::MemoryPoolSetAttribute,
            Op::MemoryPoolTrim,
            Op::StreamBeginCapture,
            Op::GraphInstantiate,
            Op::GraphLaunch,
            Op::GraphDestroy,
            Op::GraphExecDestroy,
            Op::RegionUnmap,
            Op::CopyFromRegion,
            Op::CopyToRegion,
            Op::MemoryPoolCreate,
            Op::MemoryPoolDestroy,
        ]
    );
    for op in [&[Op::Closing, Op::Data], Op::REQUESTS].concat() {
        let id: &[u8] = if op == Op::Closing {
            &[0; 4]
        } else {
            &[1, 0, 0, 0]
        };
        for bits in 0..16u16 {
            let bytes = patched(op, &[(FLAGS, &bits.to_le_bytes()), (REQUEST_ID, id)]);
            let decoded = FrameHeader::decode(&bytes);
            if allowed(op).contains(&bits) {
                assert_eq!(decoded.map(|header| header.flags.bits()), Ok(bits), "{op}");
            } else {
                let refused = FrameError::FlagsForOp { op, flags: bits };
                assert_eq!(decoded, Err(refused), "{op}");
            }
        }
    }
}

#[test]
fn the_offsets_are_those_of_the_document() {
    let header = FrameHeader::request(Op::Exchange, 0xa1a2_a3a4)
        .with_lane(0xb1b2)
        .with_body_len(8)
        .with_deadline_ms(30_000);
    let expected: [u8; HEADER_LEN] = [
        b'V', b'G', b'P', b'U', // magic
        8, 0, 0, 0, // op, flags
        0xa4, 0xa3, 0xa2, 0xa1, // request_id
        0xb2, 0xb1, 0, 0, // lane, reserved
        8, 0, 0, 0, // body_len
        0x30, 0x75, 0, 0, // deadline_ms
        0, 0, 0, 0, // status
        0, 0, 0, 0, // credit
    ];
    assert_eq!(header.encode(), expected);

    let down = FrameHeader::data_down(&header, 0x0102, 0xc1c2_c3c4).encode();
    assert_eq!(down[OP..REQUEST_ID], [4, 0, 5, 0]);
    assert_eq!(down[BODY_LEN..DEADLINE], [2, 1, 0, 0]);
    assert_eq!(down[CREDIT..], [0xc4, 0xc3, 0xc2, 0xc1]);

    let failed = FrameHeader::reply_to(&header, ErrorCode::Timeout.into())
        .with_flags(Flags::FAILURES)
        .encode();
    assert_eq!(failed[OP..REQUEST_ID], [8, 0, 9, 0]);
    assert_eq!(failed[STATUS..CREDIT], (-5i32).to_le_bytes());
}

#[test]
fn only_closing_and_work_that_goes_on_have_request_id_0() {
    let closing = FrameHeader::closing(Status::from(ErrorCode::Busy)).with_body_len(3);
    assert_eq!(FrameHeader::decode(&closing.encode()), Ok(closing));
    let working = FrameHeader::working();
    assert_eq!(FrameHeader::decode(&working.encode()), Ok(working));
    for (at, field) in [(LANE, "lane"), (BODY_LEN, "body_len"), (CREDIT, "credit")] {
        let mut bytes = working.encode();
        bytes[at] = 9;
        let error = FrameError::NotZero { field, value: 9 };
        assert_eq!(FrameHeader::decode(&bytes), Err(error));
    }
    for op in Op::REQUESTS.iter().copied().chain([Op::Data]) {
        // Data of the guest's.
        let flags: u16 = if op == Op::Data { 4 } else { 1 };
        let bytes = patched(op, &[(FLAGS, &flags.to_le_bytes()), (REQUEST_ID, &[0; 4])]);
        assert_eq!(
            FrameHeader::decode(&bytes),
            Err(FrameError::RequestId(0)),
            "{op}"
        );
    }
}
