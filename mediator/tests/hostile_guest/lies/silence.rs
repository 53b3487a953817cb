//! Guests that stop in the middle: of what they send, of what they read, of what they run.

use std::thread;
use std::time::Duration;

use vgpu_protocol::frame::FrameHeader;
use vgpu_protocol::handle::HandleKind;
use vgpu_protocol::op::field::{Bytes, StreamRef};
use vgpu_protocol::op::{
    CopyFromDevice, CopyToDevice, EventCreate, EventRecord, FillRange, Op, Ping, Request,
    StreamCreate, StreamWaitEvent, Synchronize,
};
use vgpu_protocol::status::ErrorCode;

use super::{STREAM, bytes, faults, fill, handle, kernel, launch};
use crate::Place;
use crate::guest::Guest;
use crate::support::{is_running, wait_until};

pub(super) fn dropped(place: &Place<'_>) {
    let mut guest = place.open();
    let (module, spin) = kernel(&mut guest, "spin");
    let at = guest.allocate(4 << 20);
    guest.done(FillRange {
        value: 0,
        ..fill(at, 4 << 20)
    });
    guest.done(launch(module, spin, &at.to_le_bytes()));
    for slot in 0..20 {
        let (stream, event) = (
            handle(HandleKind::Stream, slot, 1),
            handle(HandleKind::Event, slot, 1),
        );
        guest.done(StreamCreate {
            stream,
            flags: 1,
            priority: 0,
        });
        guest.done(EventCreate { event, flags: 0 });
        guest.done(EventRecord {
            event,
            stream: STREAM,
        });
        guest.done(StreamWaitEvent {
            stream: StreamRef::of(stream),
            event,
        });
        guest.done(FillRange {
            stream: StreamRef::of(stream),
            ..fill(at, 4 << 20)
        });
    }
    guest.send(CopyFromDevice {
        from: at,
        bytes: bytes(4 << 20),
        stream: STREAM,
    });
    guest.send(Synchronize {});
}

pub(super) fn endless(place: &Place<'_>) {
    let mut guest = place.open();
    let (_, endless) = super::endless(&mut guest);
    faults(&mut guest, endless, &[702]);
}

pub(super) fn silence(place: &Place<'_>) {
    let mut mute = place.connect();
    let mut half = place.connect();
    half.raw(
        &FrameHeader::request(Op::Hello, 1)
            .with_body_len(20)
            .encode()[..31],
    );
    mute.ended(ErrorCode::Timeout);
    half.ended(ErrorCode::Timeout);
}

pub(super) fn never_sent(place: &Place<'_>) {
    let mut guest = place.open();
    let to = guest.allocate(1000);
    let header = guest.header(Op::CopyToDevice);
    let request = Request::from(CopyToDevice {
        to,
        bytes: bytes(1000),
        stream: STREAM,
    });
    let mut body = Vec::new();
    request.encode_to(&mut body);
    guest.frame(header, &body);
    guest.frame(FrameHeader::data_up(&header, 0, true), &[1; 999]);
    let (status, _) = guest.answer(header.request_id);
    assert_eq!(status, ErrorCode::Timeout.into());
    guest.frame(FrameHeader::data_up(&header, 0, false), &[]);
    guest.serves();
}

pub(super) fn half_a_frame(place: &Place<'_>) {
    let mut guest = place.open();
    let mut other = place.open();
    guest.raw(
        &FrameHeader::request(Op::Ping, 9)
            .with_body_len(100)
            .encode(),
    );
    other.raw(
        &FrameHeader::request(Op::Ping, 9)
            .with_body_len(100)
            .encode()[..9],
    );
    guest.ended(ErrorCode::Timeout);
    other.ended(ErrorCode::Timeout);
}

/// Its worker does not wait for it longer than it may.
fn until_gone(place: &Place<'_>, guest: &Guest) {
    let worker = place.worker(guest);
    wait_until("the worker ends", || !is_running(worker));
}

/// Bytes of a result that is not read: more than lies anywhere on the way.
const RESULT: u64 = 16 << 20;

pub(super) fn never_read(place: &Place<'_>) {
    let mut guest = place.open();
    let from = guest.allocate(RESULT);
    guest.send(CopyFromDevice {
        from,
        bytes: bytes(RESULT),
        stream: STREAM,
    });
    until_gone(place, &guest);
}

pub(super) fn answers_unread(place: &Place<'_>) {
    let mut guest = place.open();
    let payload = Bytes::new(&[7; 4000]).expect("short");
    let mut body = Vec::new();
    Request::from(Ping { payload }).encode_to(&mut body);
    let len = u32::try_from(body.len()).expect("short");
    let mut flood = Vec::new();
    for _ in 0..1000 {
        flood.extend(guest.header(Op::Ping).with_body_len(len).encode());
        flood.extend(&body);
    }
    let mut left = &flood[..];
    // Until nothing is taken any more, for a while.
    let mut full = 0;
    while !left.is_empty() && full < 20 {
        let n = guest.raw_unread(left);
        left = &left[n..];
        full = if n == 0 { full + 1 } else { 0 };
        if n == 0 {
            thread::sleep(Duration::from_millis(5));
        }
    }
    assert!(!left.is_empty(), "all of them were taken");
    until_gone(place, &guest);
}
