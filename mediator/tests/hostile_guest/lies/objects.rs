//! Regions, graphs and captures.

use vchan::region::Access;
use vgpu_protocol::handle::HandleKind;
use vgpu_protocol::op::field::{Bytes, StreamRef};
use vgpu_protocol::op::{
    CopyFromRegion, CopyToRegion, EventRecord, FillRange, GraphInstantiate, GraphLaunch,
    MemoryFree, NO_WORD, RegionMap, StreamBeginCapture, StreamCancel, StreamCreate, StreamDestroy,
    StreamWaitEvent,
};
use vgpu_protocol::status::ErrorCode;

use super::{HANDLE, INVALID_VALUE, STREAM, UNSUPPORTED, bytes, fill, handle};
use crate::Place;
use crate::bystander::object;

pub(super) fn regions(place: &Place<'_>) {
    let mut guest = place.open();
    let map = |slot, n, ticket: &[u8]| RegionMap {
        region: handle(HandleKind::Region, slot, 1),
        bytes: bytes(n),
        address: 0,
        ticket: Bytes::new(ticket).expect("short"),
    };
    let wrong = [
        INVALID_VALUE,
        UNSUPPORTED,
        ErrorCode::QuotaMemory.into(),
        HANDLE,
    ];
    for (slot, ticket) in (0..).zip([&[][..], &[0; 47], &[0; 48], &[0xff; 48]]) {
        guest.refused(map(slot, 4096, ticket), &wrong);
    }
    guest.refused(map(9, u64::MAX, &[0; 48]), &wrong);
    let Some(own) = guest.regions.clone() else {
        return guest.serves();
    };
    let n: usize = 8192;
    let region = own.create(n, Access::Both).expect("memory");
    // Of another session of the same guest, which is there all the while.
    let other = place.open();
    let others = other
        .regions
        .as_ref()
        .expect("as here")
        .create(n, Access::Both);
    let others = others.expect("memory");
    let len = n as u64;
    guest.refused(map(10, len, &others.ticket()), &wrong);
    guest.refused(map(11, len + 1, &region.ticket()), &wrong);
    let region = own.create(n, Access::Both).expect("memory");
    guest.done(map(12, len, &region.ticket()));
    guest.refused(map(13, len, &region.ticket()), &wrong);
    let large = own.create(5 << 20, Access::Both).expect("memory");
    guest.refused(map(14, 5 << 20, &large.ticket()), &wrong);
    let there = guest.allocate(len);
    let region = handle(HandleKind::Region, 12, 1);
    let mut tell = |offset, n, word| {
        let (bytes, value, stream) = (bytes(n), 7, STREAM);
        guest.refused(
            CopyFromRegion {
                to: there,
                region,
                offset,
                bytes,
                word,
                value,
                stream,
            },
            &wrong,
        );
        guest.refused(
            CopyToRegion {
                from: there,
                region,
                offset,
                bytes,
                word,
                value,
                stream,
            },
            &wrong,
        );
    };
    for (offset, n) in [
        (0, len + 1),
        (1, len),
        (len, 1),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (8, u64::MAX),
    ] {
        tell(offset, n, NO_WORD);
    }
    for word in [1, 4, len - 7, len, u64::MAX - 7, u64::MAX - 1] {
        tell(0, 8, word);
    }
    guest.serves();
}

pub(super) fn graphs(place: &Place<'_>) {
    let mut guest = place.open();
    let own = handle(HandleKind::GraphExec, 0, 1);
    // The bystander's: whatever is at that place of its table is nothing here.
    let (graph, exec) = (object(HandleKind::Graph), object(HandleKind::GraphExec));
    guest.refused(
        GraphInstantiate {
            graph,
            exec: own,
            flags: 0,
        },
        &[HANDLE],
    );
    guest.refused(
        GraphLaunch {
            exec,
            stream: STREAM,
        },
        &[HANDLE],
    );
    guest.refused(
        GraphLaunch {
            exec: graph,
            stream: STREAM,
        },
        &[HANDLE],
    );
    let (stream, event) = (object(HandleKind::Stream), object(HandleKind::Event));
    let of = StreamRef::of(stream);
    guest.refused(
        EventRecord {
            event,
            stream: STREAM,
        },
        &[HANDLE],
    );
    guest.refused(
        StreamWaitEvent {
            stream: STREAM,
            event,
        },
        &[HANDLE],
    );
    guest.refused(
        StreamBeginCapture {
            stream: of,
            mode: 2,
        },
        &[HANDLE],
    );
    guest.refused(StreamCancel { stream: of }, &[HANDLE]);
    guest.serves();
}

pub(super) fn captures(place: &Place<'_>) {
    let mut guest = place.open();
    let at = guest.allocate(64);
    for slot in 0..8 {
        let stream = handle(HandleKind::Stream, slot, 1);
        guest.done(StreamCreate {
            stream,
            flags: 0,
            priority: 0,
        });
        let of = StreamRef::of(stream);
        guest.done(StreamBeginCapture {
            stream: of,
            mode: 2,
        });
        for _ in 0..200 {
            guest.done(FillRange {
                stream: of,
                ..fill(at, 64)
            });
        }
        if slot % 2 == 0 {
            guest.done(StreamDestroy { stream });
        }
    }
    // Their memory goes while they name it.
    guest.ask(MemoryFree { address: at });
    guest.serves();
}
