//! Regions, graphs, memory pools and captures.

use vchan::region::Access;
use vgpu_protocol::handle::{Handle, HandleKind};
use vgpu_protocol::op::field::{Bytes, PoolRef, StreamRef};
use vgpu_protocol::op::{
    CopyFromRegion, CopyToRegion, EventRecord, FillRange, GraphInstantiate, GraphLaunch,
    MemoryAllocateAsync, MemoryFree, MemoryFreeAsync, MemoryPoolCreate, MemoryPoolDestroy,
    MemoryPoolInfo, MemoryPoolSetAttribute, MemoryPoolTrim, NO_WORD, RegionMap, StreamBeginCapture,
    StreamCancel, StreamCreate, StreamDestroy, StreamWaitEvent,
};
use vgpu_protocol::status::ErrorCode;

use super::{HANDLE, INVALID_VALUE, OBJECTS, STREAM, UNSUPPORTED, bytes, fill, handle};
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

pub(super) fn pools(place: &Place<'_>) {
    let mut guest = place.open();
    let own = |slot| handle(HandleKind::MemoryPool, slot, 1);
    let create = |pool, max_bytes| MemoryPoolCreate { pool, max_bytes };
    let allocate = |pool: Handle, n: u64| MemoryAllocateAsync {
        bytes: bytes(n),
        pool: PoolRef::of(pool),
        stream: STREAM,
    };
    // The bystander's, and those of nobody.
    for pool in [
        object(HandleKind::MemoryPool),
        own(0),
        own(OBJECTS),
        handle(HandleKind::MemoryPool, 0, u32::MAX),
    ] {
        guest.refused(allocate(pool, 512), &[HANDLE]);
        guest.refused(MemoryPoolDestroy { pool }, &[HANDLE]);
        let pool = PoolRef::of(pool);
        guest.refused(MemoryPoolInfo { pool }, &[HANDLE]);
        guest.refused(MemoryPoolTrim { pool, keep: 0 }, &[HANDLE]);
        let (attribute, value) = (4, u64::MAX);
        guest.refused(
            MemoryPoolSetAttribute {
                pool,
                attribute,
                value,
            },
            &[HANDLE],
        );
    }
    for slot in 0..OBJECTS {
        guest.done(create(own(slot), 0));
    }
    for slot in [0, OBJECTS - 1, OBJECTS, OBJECTS + 1] {
        guest.refused(create(own(slot), 0), &[HANDLE]);
    }
    // Each keeps what it can.
    for round in 0..4000u32 {
        let size = 512 * u64::from(1 + round % 9);
        let address = guest.done(allocate(own(round % OBJECTS), size)).address;
        guest.done(MemoryFreeAsync {
            address,
            stream: STREAM,
        });
    }
    place.is_bounded(&guest);
    // They go with memory that is in use, which cannot be freed twice.
    let kept: Vec<u64> = (0..OBJECTS)
        .map(|slot| guest.done(allocate(own(slot), 700)).address)
        .collect();
    for slot in 0..OBJECTS {
        guest.done(MemoryPoolDestroy { pool: own(slot) });
        guest.refused(allocate(own(slot), 512), &[HANDLE]);
    }
    for (n, address) in (0..).zip(kept) {
        guest.done(fill(address, 700));
        match n % 2 {
            0 => drop(guest.done(MemoryFree { address })),
            _ => drop(guest.done(MemoryFreeAsync {
                address,
                stream: STREAM,
            })),
        }
        guest.refused(MemoryFree { address }, &[INVALID_VALUE]);
        guest.refused(fill(address, 1), &[INVALID_VALUE]);
    }
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
