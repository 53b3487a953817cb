//! More than there may be: of requests, objects, memory, work that is kept and lines that are printed.

use std::sync::{Mutex, PoisonError};
use std::thread;

use vgpu_protocol::frame::Flags;
use vgpu_protocol::handle::HandleKind;
use vgpu_protocol::op::field::StreamRef;
use vgpu_protocol::op::{
    EventCreate, EventDestroy, Fence, FillRange, Launch, MemoryAllocate, MemoryFree, MemoryInfo,
    Op, Request, StreamBeginCapture, StreamCancel, StreamCreate, StreamDestroy, StreamEndCapture,
    StreamSynchronize, Synchronize,
};
use vgpu_protocol::status::{ErrorCode, Status};

use super::{
    HANDLE, INVALID_VALUE, OBJECTS, QUOTA, STREAM, bytes, fill, flood, handle, kernel_of, launch,
    ping,
};
use crate::guest::{Guest, Heard};
use crate::support::wait_until;
use crate::{PRINTED, Place};

pub(super) fn too_many(place: &Place<'_>) {
    let mut guest = place.open();
    let (word, endless) = super::endless(&mut guest);
    let stream = handle(HandleKind::Stream, 0, 1);
    guest.done(StreamCreate {
        stream,
        flags: 1,
        priority: 0,
    });
    guest.done(Synchronize {});
    guest.done(endless);
    let most = guest.terms.max_requests.get();
    let mut last = 0;
    for _ in 0..=most {
        last = guest.send(StreamSynchronize { stream: STREAM });
    }
    assert_eq!(guest.answer(last).0, ErrorCode::Busy.into());
    // Quiet ones count for themselves.
    let header = guest.header(Op::FillRange).with_flags(Flags::QUIET);
    let request = FillRange {
        stream: StreamRef::of(stream),
        ..fill(word, 8)
    };
    guest.send_as(header, &request.into(), &[]);
    for _ in 0..most {
        let heard = guest.hear();
        assert!(
            matches!(&heard, Heard::Answer(header, _) if header.status.is_ok()),
            "{heard:?}"
        );
    }
    guest.serves();
}

pub(super) fn quiet_flood(place: &Place<'_>) {
    let mut guest = place.open();
    let requests: [Request; 3] = [
        MemoryFree { address: 8 }.into(),
        StreamDestroy {
            stream: handle(HandleKind::Stream, 3, 9),
        }
        .into(),
        fill(u64::MAX, u64::MAX).into(),
    ];
    let many: usize = 12_000;
    flood(&mut guest, Flags::QUIET, &requests, many);
    let told = guest.done(Fence {});
    assert_eq!(told.failures.as_slice().len() + told.dropped as usize, many);
    guest.serves();
    place.is_bounded(&guest);
}

pub(super) fn ping_flood(place: &Place<'_>) {
    let mut guest = place.open();
    let cancel = Request::from(StreamCancel { stream: STREAM });
    flood(&mut guest, Flags::NONE, &[ping().into(), cancel], 10_000);
    guest.serves();
}

pub(super) fn objects(place: &Place<'_>) {
    let mut guest = place.open();
    let over = [ErrorCode::QuotaHandles, ErrorCode::Handle].map(Status::from);
    for slot in 0..OBJECTS {
        guest.done(EventCreate {
            event: handle(HandleKind::Event, slot, 1),
            flags: 0,
        });
        guest.done(StreamCreate {
            stream: handle(HandleKind::Stream, slot, 1),
            flags: 0,
            priority: 0,
        });
    }
    for slot in [OBJECTS, OBJECTS + 1, (1 << 24) - 1] {
        guest.refused(
            EventCreate {
                event: handle(HandleKind::Event, slot, 1),
                flags: 0,
            },
            &over,
        );
        let stream = handle(HandleKind::Stream, slot, 1);
        guest.refused(
            StreamCreate {
                stream,
                flags: 0,
                priority: 0,
            },
            &over,
        );
    }
    // As many allocations, however small.
    for _ in 0..OBJECTS {
        guest.allocate(1);
    }
    guest.refused(MemoryAllocate { bytes: bytes(1) }, &over);
    guest.serves();
}

pub(super) fn generations(place: &Place<'_>) {
    let mut guest = place.open();
    let event = |generation| handle(HandleKind::Event, 0, generation);
    guest.done(EventCreate {
        event: event(5),
        flags: 0,
    });
    for wrong in [1, 4, 5, 6, u32::MAX] {
        guest.refused(
            EventCreate {
                event: event(wrong),
                flags: 0,
            },
            &[HANDLE],
        );
    }
    guest.done(EventDestroy { event: event(5) });
    for wrong in [1, 4, 5] {
        guest.refused(
            EventCreate {
                event: event(wrong),
                flags: 0,
            },
            &[HANDLE],
        );
        guest.refused(
            EventDestroy {
                event: event(wrong),
            },
            &[HANDLE],
        );
    }
    // The last generation that there is.
    guest.done(EventCreate {
        event: event(u32::MAX),
        flags: 0,
    });
    guest.done(EventDestroy {
        event: event(u32::MAX),
    });
    for wrong in [1, u32::MAX] {
        guest.refused(
            EventCreate {
                event: event(wrong),
                flags: 0,
            },
            &[HANDLE],
        );
    }
    guest.serves();
}

/// Sessions over `local:` and `unix:` are the same guest's, and share its quota: one lie about it at a time.
static QUOTA_LIES: Mutex<()> = Mutex::new(());

/// A session whose guest has nothing else: what those before it had is given back.
fn with_all_memory(place: &Place<'_>) -> Guest {
    let mut guest = place.open();
    wait_until("all of the quota is free", || {
        guest.done(MemoryInfo {}).free == QUOTA
    });
    guest
}

pub(super) fn quota(place: &Place<'_>) {
    // Another that has failed is told of there.
    let _alone = QUOTA_LIES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut guest = with_all_memory(place);
    let over = [Status::from(ErrorCode::QuotaMemory)];
    for wrong in [QUOTA + 1, 1 << 40, u64::MAX - 511, u64::MAX] {
        let bytes = bytes(wrong);
        guest.refused(MemoryAllocate { bytes }, &over);
    }
    let mut all: Vec<u64> = (0..16).map(|_| guest.allocate(QUOTA / 16)).collect();
    guest.refused(MemoryAllocate { bytes: bytes(1) }, &over);
    assert_eq!(guest.done(MemoryInfo {}).free, 0);
    let address = all.pop().expect("one of them");
    guest.done(MemoryFree { address });
    guest.refused(MemoryFree { address }, &[INVALID_VALUE]);
    let address = all[0] + 1;
    guest.refused(MemoryFree { address }, &[INVALID_VALUE]);
    guest.allocate(QUOTA / 16);
    guest.serves();
}

/// By several sessions at once a guest gets no more than by one.
pub(super) fn quota_of_sessions(place: &Place<'_>) {
    const PIECES: u64 = 64;
    const SESSIONS: u64 = 3;
    let _alone = QUOTA_LIES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut first = with_all_memory(place);
    let mut guests: Vec<Guest> = (1..SESSIONS).map(|_| place.open()).collect();
    let take_all = |guest: &mut Guest| {
        let bytes = bytes(QUOTA / PIECES);
        let taken = |_: &u64| guest.ask(MemoryAllocate { bytes }).0.is_ok();
        (0..u64::from(OBJECTS)).take_while(taken).count() as u64
    };
    let all: u64 = thread::scope(|scope| {
        let others: Vec<_> = guests
            .iter_mut()
            .map(|it| scope.spawn(|| take_all(it)))
            .collect();
        let own = take_all(&mut first);
        let others = others.into_iter().map(|it| it.join().expect("a number"));
        own + others.sum::<u64>()
    });
    // Two that want the last piece may each be in the other's way.
    assert!((PIECES - SESSIONS..=PIECES).contains(&all), "{all} pieces");
    first.serves();
}

/// More than any graph of a session may have.
pub(super) fn endless_capture(place: &Place<'_>) {
    let mut guest = place.open();
    let at = guest.allocate(64);
    let stream = handle(HandleKind::Stream, 0, 1);
    guest.done(StreamCreate {
        stream,
        flags: 0,
        priority: 0,
    });
    let stream = StreamRef::of(stream);
    guest.done(StreamBeginCapture { stream, mode: 2 });
    let captured = FillRange {
        stream,
        ..fill(at, 64)
    };
    flood(&mut guest, Flags::QUIET, &[captured.into()], 150_000);
    let told = guest.done(Fence {});
    assert!(told.dropped > 1000, "{told:?}");
    place.is_bounded(&guest);
    let graph = handle(HandleKind::Graph, 0, 1);
    guest.ask(StreamEndCapture { stream, graph });
    guest.serves();
}

/// Lines that kernels print and nobody takes.
pub(super) fn printed(place: &Place<'_>) {
    let mut guest = place.open();
    let (module, say) = kernel_of(&mut guest, PRINTED, "say");
    let request = Launch {
        grid: [64, 1, 1],
        block: [32, 1, 1],
        ..launch(module, say, &[])
    };
    flood(&mut guest, Flags::QUIET, &[request.into()], 100);
    guest.done(Synchronize {});
    place.is_bounded(&guest);
    guest.serves();
}
