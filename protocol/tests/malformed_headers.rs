//! A corpus of broken headers: each must be refused, with the field and the value in the message.

use vgpu_protocol::frame::{Flags, FrameError, FrameHeader, HEADER_LEN};
use vgpu_protocol::handle::{Handle, HandleKind};
use vgpu_protocol::message::Op;

const OP: usize = 4;
const FLAGS: usize = 6;
const REQUEST_ID: usize = 8;
const RESERVED: usize = 14;
const HANDLE: usize = 16;
const BODY_LEN: usize = 24;
const DEADLINE: usize = 28;
const STATUS: usize = 32;
const RESERVED2: usize = 36;

/// A sound header of `op`, with the bytes from `offset` on replaced.
fn patched(op: Op, patches: &[(usize, &[u8])]) -> [u8; HEADER_LEN] {
    let mut bytes = FrameHeader::request(op, 1).encode();
    for (offset, with) in patches {
        bytes[*offset..offset + with.len()].copy_from_slice(with);
    }
    bytes
}

#[test]
fn each_broken_rule_names_its_field_and_value() {
    let reply = 1u16.to_le_bytes();
    let more = 4u16.to_le_bytes();
    let corpus: Vec<([u8; HEADER_LEN], &str)> = vec![
        (
            [0; HEADER_LEN],
            "magic is 0x00000000, not 0x55504756 (\"VGPU\")",
        ),
        ([0xff; HEADER_LEN], "magic is 0xffffffff"),
        (
            *b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n     ",
            "magic is 0x20544547",
        ),
        (patched(Op::Ping, &[(0, b"UPGV")]), "magic is 0x56475055"),
        (
            patched(Op::Ping, &[(OP, &[0, 0])]),
            "op is 0, which protocol version 1 does not have",
        ),
        (patched(Op::Ping, &[(OP, &[8, 0])]), "op is 8"),
        (patched(Op::Ping, &[(OP, &[0xff, 0xff])]), "op is 65535"),
        (
            patched(Op::Ping, &[(FLAGS, &[8, 0])]),
            "flags is 0x0008, which has unknown bits",
        ),
        (patched(Op::Ping, &[(FLAGS, &[0, 0x80])]), "flags is 0x8000"),
        (
            patched(Op::Ping, &[(FLAGS, &more)]),
            "flags is 0x0004, which Ping does not allow",
        ),
        (
            patched(Op::Ping, &[(FLAGS, &[3, 0])]),
            "flags is 0x0003, which Ping does not allow",
        ),
        (
            patched(Op::Hello, &[(FLAGS, &[2, 0])]),
            "flags is 0x0002, which Hello does not allow",
        ),
        (
            patched(Op::Fence, &[(FLAGS, &[2, 0])]),
            "flags is 0x0002, which Fence does not allow",
        ),
        (
            patched(Op::VectorAdd, &[]),
            "flags is 0x0000, which VectorAdd does not allow",
        ),
        (
            patched(Op::VectorAdd, &[(FLAGS, &[6, 0])]),
            "flags is 0x0006, which VectorAdd",
        ),
        (
            patched(Op::VectorAdd, &[(FLAGS, &[5, 0])]),
            "flags is 0x0005, which VectorAdd",
        ),
        (
            patched(Op::Data, &[(FLAGS, &reply)]),
            "flags is 0x0001, which Data does not allow",
        ),
        (
            patched(Op::Data, &[(FLAGS, &[6, 0])]),
            "flags is 0x0006, which Data does not allow",
        ),
        (
            patched(Op::Ping, &[(REQUEST_ID, &[0; 4])]),
            "request_id is 0",
        ),
        (
            patched(Op::Goodbye, &[(REQUEST_ID, &[0; 4])]),
            "request_id is 0",
        ),
        (
            patched(Op::Ping, &[(RESERVED, &[0, 1])]),
            "reserved is 0x100, not 0",
        ),
        (
            patched(Op::Ping, &[(RESERVED2, &[1, 0, 0, 0])]),
            "reserved2 is 0x1, not 0",
        ),
        (
            patched(Op::Ping, &[(HANDLE, &[0, 0, 0, 1, 1, 0, 0, 0])]),
            "handle is 0x0000000101000000, but Ping takes none",
        ),
        (
            patched(Op::Data, &[(HANDLE, &[0, 0, 0, 1, 0, 0, 0, 0])]),
            "handle is 0x0000000001000000: generation is 0",
        ),
        (
            patched(Op::Data, &[(HANDLE, &[0, 0, 0, 0x7f, 1, 0, 0, 0])]),
            "handle is 0x000000017f000000: kind 127 is unknown",
        ),
        (
            patched(Op::Ping, &[(BODY_LEN, &4097u32.to_le_bytes())]),
            "body_len is 4097, but Ping allows at most 4096 bytes",
        ),
        (
            patched(Op::Data, &[(BODY_LEN, &((16u32 << 20) + 1).to_le_bytes())]),
            "body_len is 16777217, but Data allows at most 16777216 bytes",
        ),
        (
            patched(Op::Data, &[(BODY_LEN, &[0xff; 4])]),
            "body_len is 4294967295",
        ),
        (
            patched(Op::Ping, &[(FLAGS, &reply), (DEADLINE, &[5, 0, 0, 0])]),
            "deadline_ms is 5 in a reply, where it must be 0",
        ),
        (
            patched(Op::Ping, &[(STATUS, &(-1i32).to_le_bytes())]),
            "status is -1 in a request, where it must be 0",
        ),
        (
            patched(
                Op::Data,
                &[(FLAGS, &[5, 0]), (STATUS, &700i32.to_le_bytes())],
            ),
            "status is 700 in a data frame, where it must be 0",
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
    // What docs/protocol.md says, as the set of allowed flag values of each operation.
    let allowed: [(Op, &[u16]); 7] = [
        (Op::Hello, &[0, 1]),
        (Op::Info, &[0, 1]),
        (Op::Ping, &[0, 1, 2]),
        (Op::VectorAdd, &[1, 4]),
        (Op::Data, &[0, 4, 5]),
        (Op::Fence, &[0, 1]),
        (Op::Goodbye, &[0, 1]),
    ];
    for (op, allowed) in allowed {
        for bits in 0..8u16 {
            let bytes = patched(op, &[(FLAGS, &bits.to_le_bytes())]);
            let decoded = FrameHeader::decode(&bytes);
            if allowed.contains(&bits) {
                assert_eq!(decoded.map(|header| header.flags.bits()), Ok(bits), "{op}");
            } else {
                assert_eq!(
                    decoded,
                    Err(FrameError::FlagsForOp { op, flags: bits }),
                    "{op}"
                );
            }
        }
    }
}

#[test]
fn the_offsets_are_those_of_the_document() {
    let handle = Handle::new(HandleKind::Stream, 0x00bb_ccdd, 0x1122_3344).expect("a sound handle");
    let header = FrameHeader::request(Op::VectorAdd, 0xa1a2_a3a4)
        .with_flags(Flags::MORE)
        .with_lane(0xb1b2)
        .with_handle(handle)
        .with_body_len(16)
        .with_deadline_ms(30_000);
    let expected: [u8; HEADER_LEN] = [
        b'V', b'G', b'P', b'U', // magic
        4, 0, 4, 0, // op, flags
        0xa4, 0xa3, 0xa2, 0xa1, // request_id
        0xb2, 0xb1, 0, 0, // lane, reserved
        0xdd, 0xcc, 0xbb, 1, 0x44, 0x33, 0x22, 0x11, // handle: slot, kind, generation
        16, 0, 0, 0, // body_len
        0x30, 0x75, 0, 0, // deadline_ms
        0, 0, 0, 0, 0, 0, 0, 0, // status, reserved2
    ];
    assert_eq!(header.encode(), expected);
}

#[test]
fn only_a_mediators_own_goodbye_has_request_id_0() {
    use vgpu_protocol::status::{ErrorCode, Status};

    let closing = FrameHeader::closing(Status::from(ErrorCode::Busy)).with_body_len(3);
    assert_eq!(FrameHeader::decode(&closing.encode()), Ok(closing));
    for op in Op::ALL.into_iter().filter(|&op| op != Op::Goodbye) {
        let flags: u16 = if op == Op::Data { 5 } else { 1 };
        let bytes = patched(op, &[(FLAGS, &flags.to_le_bytes()), (REQUEST_ID, &[0; 4])]);
        assert_eq!(
            FrameHeader::decode(&bytes),
            Err(FrameError::RequestId),
            "{op}"
        );
    }
}
