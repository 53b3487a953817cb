//! Rules of a session: what comes before every device.

use vgpu_protocol::frame::{Flags, FrameHeader};
use vgpu_protocol::op::{CopyToDevice, Exchange, Features, Info, MemoryAllocate, Op, Request};
use vgpu_protocol::status::ErrorCode;

use super::{RANGE, STREAM, UNSUPPORTED, bytes, exchange, ping};
use crate::Place;
use crate::guest::Guest;

pub(super) fn noise(place: &Place<'_>) {
    let mut guest = place.connect();
    guest.raw(&[0x55; 4096]);
    guest.ended(ErrorCode::Protocol);
}

pub(super) fn before_hello(place: &Place<'_>) {
    let mut guest = place.connect();
    guest.send(Info {});
    guest.ended(ErrorCode::Protocol);
    let mut guest = place.connect();
    let header = guest.header(Op::Exchange);
    guest.frame(FrameHeader::data_up(&header, 0, false), &[1]);
    guest.ended(ErrorCode::Protocol);
}

pub(super) fn hello_twice(place: &Place<'_>) {
    let mut guest = place.open();
    let hello = guest.hello_of(1, 1, Features::ALL);
    guest.send(hello);
    guest.ended(ErrorCode::Protocol);
}

pub(super) fn not_agreed(place: &Place<'_>) {
    let mut guest = place.connect();
    guest.hello(Features::NONE);
    for op in Op::REQUESTS {
        let spec = op.spec().expect("a request");
        if spec.feature != Features::NONE && spec.request.is_empty() {
            let header = guest.header(*op);
            guest.frame(header, &[]);
            assert_eq!(guest.answer(header.request_id).0, UNSUPPORTED, "{op}");
        }
    }
    guest.refused(MemoryAllocate { bytes: bytes(1) }, &[UNSUPPORTED]);
    guest.refused(exchange(9), &[UNSUPPORTED]);
    let header = guest.header(Op::Ping).with_flags(Flags::QUIET);
    guest.send_as(header, &ping().into(), &[]);
    guest.serves();
}

/// Each byte of a header where it says what cannot be.
pub(super) fn headers(place: &Place<'_>) {
    let ping = FrameHeader::request(Op::Ping, 9).with_body_len(2).encode();
    let wrong: [(usize, &[u8]); 12] = [
        (0, b"vGPU"),
        (4, &[0, 0]),
        (4, &[3, 0]),
        (4, &[9, 0]),
        (4, &[0xff, 0xff]),
        (6, &[0x20, 0]),
        (6, &[0, 0x80]),
        (8, &[0; 4]),
        (14, &[1, 0]),
        (16, &[0xff; 4]),
        (24, &[0xff; 4]),
        (28, &[1, 0, 0, 0]),
    ];
    for (at, value) in wrong {
        let mut bytes = ping;
        bytes[at..at + value.len()].copy_from_slice(value);
        let mut guest = place.open();
        guest.raw(&bytes);
        guest.raw(&[0; 2]);
        guest.ended(ErrorCode::Protocol);
    }
}

pub(super) fn lanes(place: &Place<'_>) {
    let mut guest = place.open();
    for lane in [guest.terms.max_lanes.get(), u16::MAX] {
        for request in [ping().into(), exchange(10)] {
            let header = guest.header(request.op()).with_lane(lane);
            let id = guest.send_as(header, &request, &[0; 10]);
            assert_eq!(guest.answer(id).0, RANGE);
        }
    }
    guest.serves();
}

pub(super) fn id_in_use(place: &Place<'_>) {
    let mut guest = place.open();
    let header = guest.header(Op::Exchange);
    let mut body = Vec::new();
    exchange(100).encode_to(&mut body);
    guest.frame(header, &body);
    guest.frame(header, &body);
    guest.ended(ErrorCode::Protocol);
}

pub(super) fn data_not_due(place: &Place<'_>) {
    // Of nothing; more than is due; more than was granted; none with more to come; on another lane; behind its end.
    let frames: [fn(&mut Guest, FrameHeader); 6] = [
        |guest, mut request| {
            request.request_id += 1;
            guest.frame(FrameHeader::data_up(&request, 0, true), &[1]);
        },
        |guest, request| guest.frame(FrameHeader::data_up(&request, 0, false), &[1; 1001]),
        |guest, request| {
            let large = guest.header(Op::Exchange);
            let mut body = Vec::new();
            Request::from(Exchange {
                up: 1 << 30,
                down: 1 << 30,
            })
            .encode_to(&mut body);
            guest.frame(large, &body);
            let credit = guest.terms.initial_credit as usize;
            let data = FrameHeader::data_up(&large, 0, true);
            guest.frame(data, &vec![1; credit]);
            // Whatever is granted meanwhile is less.
            guest.frame(data, &vec![1; 1 << 20]);
            let _ = request;
        },
        |guest, request| guest.frame(FrameHeader::data_up(&request, 0, true), &[]),
        |guest, request| {
            let other = request.with_lane(1);
            guest.frame(FrameHeader::data_up(&other, 0, true), &[1]);
        },
        |guest, request| {
            guest.frame(FrameHeader::data_up(&request, 0, false), &[1; 10]);
            guest.frame(FrameHeader::data_up(&request, 0, false), &[1; 10]);
        },
    ];
    for lie in frames {
        let mut guest = place.open();
        let request = guest.header(Op::Exchange);
        let mut body = Vec::new();
        exchange(1000).encode_to(&mut body);
        guest.frame(request, &body);
        lie(&mut guest, request);
        guest.ended(ErrorCode::Protocol);
    }
}

pub(super) fn never_ended(place: &Place<'_>) {
    let mut guest = place.open();
    let most = 2 * u32::from(guest.terms.max_requests.get());
    for _ in 0..=most {
        let header = guest.header(Op::CopyToDevice);
        let mut body = Vec::new();
        Request::from(CopyToDevice {
            to: 8,
            bytes: bytes(100),
            stream: STREAM,
        })
        .encode_to(&mut body);
        guest.frame(header, &body);
    }
    guest.ended(ErrorCode::Protocol);
}

pub(super) fn storm(place: &Place<'_>) {
    let mut guests: Vec<Guest> = (0..8).map(|_| place.connect()).collect();
    for guest in guests.iter_mut().step_by(2) {
        let hello = guest.hello_of(1, 1, Features::ALL);
        guest.send(hello);
    }
    guests.truncate(4);
    drop(guests);
    place.open().serves();
}
