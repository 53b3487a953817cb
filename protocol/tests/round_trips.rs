//! Whatever can be sent arrives as it was; whatever arrives never panics the receiver.

use proptest::prelude::*;
use vgpu_protocol::frame::{Flags, FrameHeader, HEADER_LEN, HeaderBuffer};
use vgpu_protocol::handle::{Handle, HandleKind, MAX_SLOTS};
use vgpu_protocol::message::{
    DataType, Features, FenceReply, Hello, HelloReply, InfoReply, Limits, Op, QuietFailure,
    VectorAdd, VectorAddReply, negotiate_version,
};
use vgpu_protocol::status::{Status, decode_error_text};

fn handles() -> impl Strategy<Value = Handle> {
    (0..MAX_SLOTS, 1..=u32::MAX).prop_map(|(slot, generation)| {
        Handle::new(HandleKind::Stream, slot, generation).expect("within bounds")
    })
}

/// Every header the protocol allows.
fn headers() -> impl Strategy<Value = FrameHeader> {
    (
        proptest::sample::select(&Op::ALL[..]),
        0..8u16,
        1..=u32::MAX,
        any::<u16>(),
        proptest::option::of(handles()),
        any::<u32>(),
        any::<u32>(),
        any::<i32>(),
    )
        .prop_filter_map("flags the op does not allow", |header| {
            let (op, flags, request_id, lane, handle, len, deadline_ms, status) = header;
            let flags = Flags::from_bits(flags).filter(|&flags| op.allows(flags))?;
            let reply = flags.contains(Flags::REPLY);
            Some(FrameHeader {
                op,
                flags,
                request_id,
                lane,
                handle: handle.filter(|_| op.takes_handle()),
                body_len: len % (op.max_body() + 1),
                deadline_ms: if reply { 0 } else { deadline_ms },
                status: Status::from_raw(if reply && op != Op::Data { status } else { 0 }),
            })
        })
}

fn failures() -> impl Strategy<Value = QuietFailure> {
    (
        any::<u32>(),
        proptest::sample::select(&Op::ALL[..]),
        any::<i32>(),
    )
        .prop_map(|(request_id, op, status)| {
            let status = Status::from_raw(if status == 0 { -1 } else { status });
            QuietFailure {
                request_id,
                op,
                status,
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn headers_survive_the_wire(header in headers()) {
        prop_assert_eq!(FrameHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn a_header_that_decodes_encodes_to_the_same_bytes(bytes in any::<[u8; HEADER_LEN]>()) {
        let mut bytes = bytes;
        bytes[..4].copy_from_slice(b"VGPU");
        if let Ok(header) = FrameHeader::decode(&bytes) {
            prop_assert_eq!(header.encode(), bytes);
        }
    }

    #[test]
    fn one_changed_byte_is_refused_or_a_different_header(
        header in headers(), at in 0..HEADER_LEN, change in 1..=255u8,
    ) {
        let mut bytes = header.encode();
        bytes[at] ^= change;
        if let Ok(other) = FrameHeader::decode(&bytes) {
            prop_assert_ne!(other, header);
        }
    }

    #[test]
    fn headers_arrive_in_any_portions(header in headers(), cuts in prop::collection::vec(1..HEADER_LEN, 0..8)) {
        let bytes = header.encode();
        let mut buffer = HeaderBuffer::new();
        let mut sent = 0;
        let mut got = None;
        for cut in cuts.into_iter().chain([HEADER_LEN]) {
            let n = cut.min(HEADER_LEN - sent);
            buffer.unfilled()[..n].copy_from_slice(&bytes[sent..sent + n]);
            sent += n;
            prop_assert!(got.is_none());
            got = buffer.advance(n).expect("a sound header");
            prop_assert_eq!(buffer.is_partial(), sent != HEADER_LEN);
            if sent == HEADER_LEN { break; }
        }
        prop_assert_eq!(got, Some(header));
    }

    #[test]
    fn any_bytes_decode_or_are_refused(body in prop::collection::vec(any::<u8>(), 0..4200)) {
        // Allocation is bounded by the input: no decoder reserves more than it has bytes for.
        let _ = Hello::decode(&body);
        let _ = HelloReply::decode(&body);
        let _ = InfoReply::decode(&body);
        let _ = VectorAdd::decode(&body);
        let _ = VectorAddReply::decode(&body);
        if let Ok(fence) = FenceReply::decode(&body) {
            prop_assert!(fence.failures.len() * 12 <= body.len());
        }
        prop_assert!(decode_error_text(&body).len() <= 3 * 1024);
    }

    #[test]
    fn hellos(min in 1..100u16, more in 0..100u16, features: u64, name in "\\PC{0,16}") {
        let hello = Hello {
            min_version: min,
            max_version: min + more,
            features: Features(features),
            client_name: name,
        };
        prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello.clone()));
        prop_assert_eq!(negotiate_version(&hello).is_some(), min == 1);
    }

    #[test]
    fn hello_replies(version in 1..=u16::MAX, features: u64, epoch: u64, max_body in 0..=16u32 << 20,
        max_lanes in 1..=u16::MAX, max_requests in 1..=u16::MAX, max_handles: u32, chunk: u32,
        max_elements: u64,
    ) {
        let reply = HelloReply { version, features: Features(features), epoch, limits: Limits {
            max_body, max_lanes, max_requests, max_handles, max_chunk_elements: chunk,
            preferred_chunk_elements: chunk / 2, max_elements,
        }};
        prop_assert_eq!(HelloReply::decode(&reply.encode()), Ok(reply));
    }

    #[test]
    fn infos(texts in prop::collection::vec("\\PC{0,60}", 5), total_memory: u64) {
        let [executor, device, driver, reason, mediator] = texts.try_into().expect("five");
        let info = InfoReply { executor, device, total_memory, driver, reason, mediator };
        prop_assert_eq!(InfoReply::decode(&info.encode()), Ok(info));
    }

    #[test]
    fn vector_adds(elements in 1..=u64::MAX, chunk_elements in 1..=u32::MAX, device_ns: u64) {
        let add = VectorAdd { elements, chunk_elements, data_type: DataType::F32 };
        prop_assert_eq!(VectorAdd::decode(&add.encode()), Ok(add));
        let reply = VectorAddReply { elements, device_ns };
        prop_assert_eq!(VectorAddReply::decode(&reply.encode()), Ok(reply));
    }

    #[test]
    fn chunks_cover_the_vector(elements in 1..100_000u64, chunk_elements in 1..5000u32) {
        let add = VectorAdd { elements, chunk_elements, data_type: DataType::F32 };
        let sizes: Vec<u32> = add.chunks().collect();
        let (last, full) = sizes.split_last().expect("at least one");
        prop_assert!(full.iter().all(|&size| size == chunk_elements));
        prop_assert!((1..=chunk_elements).contains(last));
        prop_assert_eq!(sizes.iter().map(|&size| u64::from(size)).sum::<u64>(), elements);
    }

    #[test]
    fn fences(failures in prop::collection::vec(failures(), 0..=64), dropped: u32) {
        let fence = FenceReply { failures, dropped };
        prop_assert_eq!(FenceReply::decode(&fence.encode()), Ok(fence));
    }

    #[test]
    fn statuses_keep_their_number(raw: i32) {
        prop_assert_eq!(Status::from_raw(raw).to_raw(), raw);
        prop_assert_eq!(Status::from_raw(raw).is_ok(), raw == 0);
    }
}
