//! A guest that lies about addresses, handles and sizes, on the engine itself: what its own library would never
//! send. The CPU's device is below it.

mod graphs;
mod sources;

use std::time::{Duration, Instant};

use vgpu_protocol::handle::{Handle, HandleKind};
use vgpu_protocol::op::field::{Bytes, PoolRef, StreamRef};
use vgpu_protocol::op::{
    Body, CopyFromDevice, CopyRowsFromDevice, CopyRowsToDevice, CopyRowsWithinDevice, CopyToDevice,
    CopyWithinDevice, EventRecord, FillRange, FillRows, Launch, MemoryAllocate,
    MemoryAllocateAsync, MemoryAllocateAsyncReply, MemoryAllocateReply, MemoryAllocateRows,
    MemoryAllocateRowsReply, MemoryFree, MemoryFreeAsync, MemoryInfo, MemoryInfoReply,
    MemoryPoolCreate, MemoryPoolDestroy, MemoryPoolInfo, MemoryPoolSetAttribute, MemoryPoolTrim,
    ModuleFunction, ModuleLoad, ModuleUnload, Request, StreamCreate, StreamDestroy,
    StreamSynchronize, Synchronize,
};
use vgpu_protocol::session::server::Failure;
use vgpu_protocol::status::{ErrorCode, Status};

use crate::executor::Executor;
use crate::executor::cpu::CpuExecutor;
use crate::policy::Share;
use crate::session::one_request::one_request;

const INVALID_VALUE: Status = Status::Cuda(1);

const PTX: &[u8] = b".version 6.0\n.target sm_50\n.address_size 64\n.visible .entry k(.param .u64 a)\n{\nret;\n}\n";

struct Liar(CpuExecutor);

impl Liar {
    fn new(memory_mib: u32, max_objects: u32) -> Self {
        let mut executor = CpuExecutor::new("a test");
        executor.set_share(Share {
            memory_mib: Some(memory_mib),
            max_objects: Some(max_objects),
            kernel_timeout_s: Some(5),
            ..Share::default()
        });
        Self(executor)
    }

    fn ask_with(&mut self, request: impl Into<Request>, up: &[u8]) -> Result<Vec<u8>, Failure> {
        let deadline = Instant::now() + Duration::from_secs(60);
        one_request(&mut self.0, &request.into(), up, deadline).map(|answer| answer.body)
    }

    fn ask(&mut self, request: impl Into<Request>) -> Result<Vec<u8>, Failure> {
        self.ask_with(request, &[])
    }

    fn refused(&mut self, request: impl Into<Request>, status: impl Into<Status>) {
        let request = request.into();
        let failure = self.ask(request.clone()).expect_err("refused");
        assert_eq!(
            failure.status,
            status.into(),
            "{request:?}: {}",
            failure.text
        );
    }

    fn allocate(&mut self, bytes: u64) -> u64 {
        let bytes = bytes.try_into().expect("not 0");
        let body = self.ask(MemoryAllocate { bytes }).expect("memory");
        MemoryAllocateReply::decode(&body).expect("a reply").address
    }

    fn free_bytes(&mut self) -> u64 {
        self.ask(Synchronize {}).expect("sound");
        let body = self.ask(MemoryInfo {}).expect("told");
        MemoryInfoReply::decode(&body).expect("a reply").free
    }

    fn load(&mut self, module: Handle) -> Result<Vec<u8>, Failure> {
        let bytes = (PTX.len() as u64).try_into().expect("not 0");
        self.ask_with(ModuleLoad { module, bytes }, PTX)
    }
}

fn handle(kind: HandleKind, slot: u32, generation: u32) -> Handle {
    Handle::new(kind, slot, generation).expect("sound")
}

/// Ranges of `bytes` that are not all within the `len` bytes at `start`.
fn outside(start: u64, len: u64) -> Vec<(u64, u64)> {
    vec![
        (start, len + 1),
        (start - 1, 1),
        (start - 1, len),
        (start + len, 1),
        (start + 1, len),
        (start, u64::MAX),
        (start, u64::MAX - start + 1),
        (u64::MAX, 1),
        (u64::MAX, u64::MAX),
        (0, 1),
        (1 << 40, 8),
        // An address of this process.
        (std::ptr::from_ref(&PTX) as u64, 8),
    ]
}

#[test]
fn no_copy_or_fill_leaves_what_was_allocated() {
    let mut liar = Liar::new(4, 100);
    let (len, stream) = (1000, StreamRef::DEFAULT);
    let start = liar.allocate(len);
    let freed = liar.allocate(len);
    liar.ask(MemoryFree { address: freed }).expect("freed");
    let mut wrong = outside(start, len);
    wrong.extend([(freed, 1), (freed, len)]);
    for (address, bytes) in wrong {
        let bytes = bytes.try_into().expect("not 0");
        liar.refused(
            CopyFromDevice {
                from: address,
                bytes,
                stream,
            },
            INVALID_VALUE,
        );
        liar.refused(
            CopyToDevice {
                to: address,
                bytes,
                stream,
            },
            INVALID_VALUE,
        );
        let (to, from) = (address, start);
        liar.refused(
            CopyWithinDevice {
                to,
                from,
                bytes,
                stream,
            },
            INVALID_VALUE,
        );
        liar.refused(
            CopyWithinDevice {
                to: from,
                from: to,
                bytes,
                stream,
            },
            INVALID_VALUE,
        );
        for element_bytes in [1, 2, 4] {
            let fill = FillRange {
                to: address,
                value: 7,
                element_bytes,
                count: bytes,
                stream,
            };
            liar.refused(fill, INVALID_VALUE);
        }
    }
    let bytes = len.try_into().expect("not 0");
    let copied = liar.ask(CopyFromDevice {
        from: start,
        bytes,
        stream,
    });
    copied.expect("what is there is as it was");
}

/// Rows of `width` bytes every `pitch`, `height` times, of which not all bytes are within the `len` at `start`, or
/// which no driver takes.
fn rows_outside(start: u64, len: u64) -> Vec<(u64, u64, u64, u64)> {
    let mut wrong: Vec<_> = outside(start, len)
        .into_iter()
        .map(|(address, bytes)| (address, bytes, bytes, 1))
        .collect();
    wrong.extend([
        // One byte, one row, and one byte of distance too much.
        (start, 100, 100, len / 100 + 1),
        (start + 1, 100, 100, len / 100),
        (start, 101, 100, len / 100),
        // Numbers that overflow, so that the end would be where it may.
        (start, 1 << 30, 8, u64::MAX),
        (start, 1 << 30, 8, (1 << 34) + 1),
        (start, 1 << 31, 1, 1 << 33),
        (start, u64::MAX, 8, 2),
        (start, u64::MAX - 7, 8, 3),
        (start - 100, 100, 100, 2),
        // Rows that lie in each other, and distances beyond the device's.
        (start, 99, 100, 2),
        (start, 0, 1, 1),
        (start, 1 << 31, 1, 1),
    ]);
    wrong
}

#[test]
fn no_copy_or_fill_of_rows_leaves_what_was_allocated() {
    let mut liar = Liar::new(4, 100);
    let (len, stream) = (1000, StreamRef::DEFAULT);
    let start = liar.allocate(len);
    let freed = liar.allocate(len);
    liar.ask(MemoryFree { address: freed }).expect("freed");
    let mut wrong = rows_outside(start, len);
    wrong.extend([(freed, 10, 10, 1), (freed, 10, 1, 100)]);
    for (address, pitch, width, height) in wrong {
        let [width, height] = [width, height].map(|n| n.try_into().expect("not 0"));
        // Sizes beyond the limit of data are refused with the body, before this.
        let up = CopyRowsToDevice {
            to: address,
            pitch,
            width,
            height,
            stream,
        };
        if up.check().is_ok() {
            liar.refused(up, INVALID_VALUE);
            liar.refused(
                CopyRowsFromDevice {
                    from: address,
                    pitch,
                    width,
                    height,
                    stream,
                },
                INVALID_VALUE,
            );
        }
        let sound_pitch = width.get().min(1 << 30);
        for (to, to_pitch, from, from_pitch) in [
            (address, pitch, start, sound_pitch),
            (start, sound_pitch, address, pitch),
        ] {
            let copy = CopyRowsWithinDevice {
                to,
                to_pitch,
                from,
                from_pitch,
                width,
                height,
                stream,
            };
            liar.refused(copy, INVALID_VALUE);
        }
        let fill = FillRows {
            to: address,
            pitch,
            value: 7,
            element_bytes: 1,
            width,
            height,
            stream,
        };
        liar.refused(fill, INVALID_VALUE);
    }
    // Elements that are not aligned in each row.
    for (to, pitch, element_bytes) in [(start + 1, 16, 2), (start, 17, 2), (start, 18, 4)] {
        let [width, height] = [2, 3].map(|n: u64| n.try_into().expect("not 0"));
        let fill = FillRows {
            to,
            pitch,
            value: 7,
            element_bytes,
            width,
            height,
            stream,
        };
        liar.refused(fill, INVALID_VALUE);
    }
    // To the byte, it may be.
    let [width, height] = [90, 10].map(|n: u64| n.try_into().expect("not 0"));
    let all = CopyRowsFromDevice {
        from: start + 10,
        pitch: 100,
        width,
        height,
        stream,
    };
    liar.ask(all).expect("all of it");
}

#[test]
fn rows_count_with_the_distance_between_them() {
    let mut liar = Liar::new(4, 50);
    let before = liar.free_bytes();
    let rows = |width: u64, height: u64, element_bytes| MemoryAllocateRows {
        width: width.try_into().expect("not 0"),
        height: height.try_into().expect("not 0"),
        element_bytes,
    };
    for element_bytes in [0, 1, 2, 3, 5, 12, 32, 255] {
        liar.refused(rows(1, 1, element_bytes), INVALID_VALUE);
    }
    // A byte each, and more than the share by what lies between them.
    for (width, height) in [
        (1, (4 << 20) / 512 + 1),
        (1, u64::MAX),
        (u64::MAX, 1),
        (u64::MAX - 511, 2),
        (1 << 32, 1 << 32),
        (1 << 33, 1 << 31),
    ] {
        liar.refused(rows(width, height, 4), ErrorCode::QuotaMemory);
    }
    assert_eq!(liar.free_bytes(), before);
    let body = liar.ask(rows(513, 1000, 16)).expect("memory");
    let reply = MemoryAllocateRowsReply::decode(&body).expect("a reply");
    assert_eq!(reply.pitch, 1024);
    assert_eq!(liar.free_bytes(), before - 1_024_000);
    liar.ask(MemoryFree {
        address: reply.address,
    })
    .expect("freed");
    assert_eq!(liar.free_bytes(), before);
    for _ in 0..50 {
        liar.ask(rows(1, 1, 4)).expect("memory");
    }
    liar.refused(rows(1, 1, 4), ErrorCode::QuotaHandles);
}

#[test]
fn the_pool_counts_what_it_keeps_and_gives_it_back_where_memory_is_short() {
    let mut liar = Liar::new(4, 50);
    let before = liar.free_bytes();
    let stream = StreamRef::DEFAULT;
    let allocate = |liar: &mut Liar, bytes: u64| {
        let bytes = bytes.try_into().expect("not 0");
        let body = liar.ask(MemoryAllocateAsync {
            bytes,
            pool: PoolRef::DEFAULT,
            stream,
        });
        body.map(|body| {
            MemoryAllocateAsyncReply::decode(&body)
                .expect("a reply")
                .address
        })
    };
    let pool = PoolRef::DEFAULT;
    let set = |attribute, value| MemoryPoolSetAttribute {
        pool,
        attribute,
        value,
    };
    liar.ask(set(4, u64::MAX)).expect("a threshold");
    for (attribute, value) in [(6, 1), (8, u64::MAX)] {
        liar.refused(set(attribute, value), INVALID_VALUE);
    }
    for attribute in [0, 1, 2, 3, 5, 7, 9, u32::MAX] {
        liar.refused(set(attribute, 0), Status::Cuda(801));
    }
    for wrong in [(4 << 20) + 1, u64::MAX, u64::MAX - 511, 1 << 63] {
        let failure = allocate(&mut liar, wrong).expect_err("too much");
        assert_eq!(failure.status, ErrorCode::QuotaMemory.into());
    }
    // Kept blocks count, and come back for whatever needs them: another size, rows, a module.
    let address = allocate(&mut liar, 3 << 20).expect("memory");
    liar.ask(MemoryFreeAsync { address, stream })
        .expect("freed");
    assert_eq!(liar.free_bytes(), before - (3 << 20));
    let again = allocate(&mut liar, (3 << 20) - 700).expect("the same");
    assert_eq!(again, address);
    let failure = allocate(&mut liar, 2 << 20).expect_err("in use");
    assert_eq!(failure.status, ErrorCode::QuotaMemory.into());
    // Of what was freed nothing can be named, nor freed again, in whatever way.
    liar.ask(MemoryFree { address }).expect("freed");
    liar.refused(MemoryFree { address }, INVALID_VALUE);
    liar.refused(MemoryFreeAsync { address, stream }, INVALID_VALUE);
    liar.refused(
        CopyFromDevice {
            from: address,
            bytes: 1.try_into().expect("not 0"),
            stream,
        },
        INVALID_VALUE,
    );
    let plain = liar.allocate(4 << 20);
    assert_eq!(liar.free_bytes(), 0);
    liar.ask(MemoryFreeAsync {
        address: plain,
        stream,
    })
    .expect("freed");
    assert_eq!(liar.free_bytes(), before);
    let nobody = StreamRef::of(handle(HandleKind::Stream, 0, 1));
    let bytes = 1.try_into().expect("not 0");
    liar.refused(
        MemoryAllocateAsync {
            bytes,
            pool,
            stream: nobody,
        },
        ErrorCode::Handle,
    );
    // No flood of objects, used or kept, and what is kept does not grow with the number of sizes.
    for round in 0..3000 {
        let address = allocate(&mut liar, 1 + 512 * (round % 700)).expect("memory");
        liar.ask(MemoryFreeAsync { address, stream })
            .expect("freed");
    }
    for _ in 0..50 {
        allocate(&mut liar, 1).expect("memory");
    }
    let failure = allocate(&mut liar, 1).expect_err("too many");
    assert_eq!(failure.status, ErrorCode::QuotaHandles.into());
    liar.ask(MemoryPoolTrim { pool, keep: 0 }).expect("trimmed");
    assert_eq!(liar.free_bytes(), before - 50 * 512);
}

#[test]
fn many_pools_keep_no_more_than_the_share_and_lose_nothing_when_they_go() {
    let mut liar = Liar::new(4, 50);
    let before = liar.free_bytes();
    let stream = StreamRef::DEFAULT;
    let pool = |slot, generation| handle(HandleKind::MemoryPool, slot, generation);
    let create = |slot, generation, max_bytes| MemoryPoolCreate {
        pool: pool(slot, generation),
        max_bytes,
    };
    let from = |pool, bytes: u64| MemoryAllocateAsync {
        bytes: bytes.try_into().expect("not 0"),
        pool: PoolRef::of(pool),
        stream,
    };
    let allocate = |liar: &mut Liar, pool, bytes| {
        let body = liar.ask(from(pool, bytes)).expect("memory");
        let reply = MemoryAllocateAsyncReply::decode(&body).expect("a reply");
        reply.address
    };
    // A pool that is not there, is there already, was there, or is beyond the table.
    for wrong in [pool(0, 1), pool(49, u32::MAX), pool(50, 1)] {
        let named = PoolRef::of(wrong);
        liar.refused(from(wrong, 1), ErrorCode::Handle);
        liar.refused(MemoryPoolInfo { pool: named }, ErrorCode::Handle);
        liar.refused(
            MemoryPoolTrim {
                pool: named,
                keep: 0,
            },
            ErrorCode::Handle,
        );
        liar.refused(
            MemoryPoolSetAttribute {
                pool: named,
                attribute: 4,
                value: 0,
            },
            ErrorCode::Handle,
        );
        liar.refused(MemoryPoolDestroy { pool: wrong }, ErrorCode::Handle);
    }
    liar.ask(create(0, 2, 0)).expect("a pool");
    for generation in [1, 2, 3] {
        liar.refused(create(0, generation, 0), ErrorCode::Handle);
    }
    liar.ask(MemoryPoolDestroy { pool: pool(0, 2) })
        .expect("destroyed");
    liar.refused(from(pool(0, 2), 1), ErrorCode::Handle);
    liar.refused(MemoryPoolDestroy { pool: pool(0, 2) }, ErrorCode::Handle);
    liar.refused(create(50, 1, 0), ErrorCode::Handle);
    // As many as there may be; what each keeps counts, and comes back for another, or for the pool's own limit.
    for slot in 0..50 {
        liar.ask(create(slot, 3, if slot == 49 { 4096 } else { 0 }))
            .expect("a pool");
    }
    let keep = |pool| MemoryPoolSetAttribute {
        pool: PoolRef::of(pool),
        attribute: 4,
        value: u64::MAX,
    };
    for slot in 0..4 {
        liar.ask(keep(pool(slot, 3))).expect("a threshold");
        let address = allocate(&mut liar, pool(slot, 3), 1 << 20);
        liar.ask(MemoryFreeAsync { address, stream })
            .expect("freed");
    }
    assert_eq!(liar.free_bytes(), before - (4 << 20));
    let address = allocate(&mut liar, pool(5, 3), 3 << 20);
    liar.ask(MemoryFree { address }).expect("freed");
    let plain = liar.allocate(4 << 20);
    assert_eq!(liar.free_bytes(), 0);
    liar.ask(MemoryFree { address: plain }).expect("freed");
    assert_eq!(liar.free_bytes(), before);
    let limited = pool(49, 3);
    for too_much in [4097, u64::MAX - 511] {
        liar.refused(from(limited, too_much), Status::Cuda(2));
    }
    liar.refused(from(limited, u64::MAX), ErrorCode::QuotaMemory);
    let half = allocate(&mut liar, limited, 2048);
    liar.refused(from(limited, 2049), Status::Cuda(2));
    liar.ask(MemoryFreeAsync {
        address: half,
        stream,
    })
    .expect("freed");
    let all = allocate(&mut liar, limited, 4096);
    assert_eq!(liar.free_bytes(), before - 4096);
    // Its allocation outlives it, and counts until it is freed, in whatever way.
    liar.ask(MemoryPoolDestroy { pool: limited })
        .expect("destroyed");
    let other = allocate(&mut liar, pool(0, 3), 512);
    liar.ask(MemoryPoolDestroy { pool: pool(0, 3) })
        .expect("destroyed");
    liar.ask(create(0, 4, 0)).expect("a pool");
    assert_eq!(liar.free_bytes(), before - 4608);
    liar.ask(MemoryFreeAsync {
        address: all,
        stream,
    })
    .expect("freed");
    liar.ask(MemoryFree { address: other }).expect("freed");
    assert_eq!(liar.free_bytes(), before);
    liar.refused(MemoryFree { address: all }, INVALID_VALUE);
    // What was freed into a pool goes with it.
    liar.ask(keep(pool(0, 4))).expect("a threshold");
    let address = allocate(&mut liar, pool(0, 4), 512);
    liar.ask(MemoryFree { address }).expect("freed");
    assert_eq!(liar.free_bytes(), before - 512);
    liar.ask(MemoryPoolDestroy { pool: pool(0, 4) })
        .expect("destroyed");
    assert_eq!(liar.free_bytes(), before);
}

#[test]
fn only_what_was_allocated_is_freed_and_only_once() {
    let mut liar = Liar::new(4, 100);
    let before = liar.free_bytes();
    let address = liar.allocate(5000);
    for wrong in [0, 1, address + 1, address - 512, address + 5000, u64::MAX] {
        liar.refused(MemoryFree { address: wrong }, INVALID_VALUE);
    }
    assert!(liar.free_bytes() < before);
    liar.ask(MemoryFree { address }).expect("freed");
    liar.refused(MemoryFree { address }, INVALID_VALUE);
    assert_eq!(liar.free_bytes(), before);
}

#[test]
fn no_flood_takes_more_than_the_share() {
    let mut liar = Liar::new(4, 50);
    let before = liar.free_bytes();
    for bytes in [(4 << 20) + 1, u64::MAX, u64::MAX - 511, 1 << 63] {
        let bytes = bytes.try_into().expect("not 0");
        liar.refused(MemoryAllocate { bytes }, ErrorCode::QuotaMemory);
    }
    let all: Vec<u64> = (0..50).map(|_| liar.allocate(1)).collect();
    let one = 1.try_into().expect("not 0");
    liar.refused(MemoryAllocate { bytes: one }, ErrorCode::QuotaHandles);
    for address in all {
        liar.ask(MemoryFree { address }).expect("freed");
    }
    assert_eq!(liar.free_bytes(), before);
    // A module that is larger than the share is refused before it comes, and its handle says so.
    let module = handle(HandleKind::Module, 0, 1);
    let bytes = (256u64 << 20).try_into().expect("not 0");
    liar.refused(ModuleLoad { module, bytes }, ErrorCode::QuotaMemory);
    let name = "k".into();
    liar.refused(ModuleFunction { module, name }, ErrorCode::QuotaMemory);
    liar.ask(ModuleUnload { module }).expect("unloaded");
    for round in 0..20 {
        let module = handle(HandleKind::Module, 0, 2 + round);
        liar.load(module).expect("loaded");
        liar.ask(ModuleUnload { module }).expect("unloaded");
    }
    assert_eq!(liar.free_bytes(), before);
}

#[test]
fn stale_foreign_and_reused_handles_name_nothing() {
    let mut liar = Liar::new(16, 4);
    let module = handle(HandleKind::Module, 3, 5);
    liar.load(module).expect("loaded");
    let reused = liar.load(module).expect_err("in use");
    assert_eq!(reused.status, ErrorCode::Handle.into());
    let launch = |module, function, bytes: &[u8]| Launch {
        module,
        function,
        grid: [1; 3],
        block: [1; 3],
        shared_bytes: 0,
        stream: StreamRef::DEFAULT,
        deadline_ms: 0,
        parameters: Bytes::new(bytes).expect("short"),
        attributes: Default::default(),
    };
    // Nothing was looked up yet.
    liar.refused(launch(module, 0, &[0; 8]), ErrorCode::Handle);
    let name = "k".into();
    liar.ask(ModuleFunction { module, name }).expect("found");
    for bytes in [&[][..], &[0; 7], &[0; 9], &[0; 4096]] {
        liar.refused(launch(module, 0, bytes), INVALID_VALUE);
    }
    for function in [1, u32::MAX] {
        liar.refused(launch(module, function, &[0; 8]), ErrorCode::Handle);
    }
    for wrong in [
        handle(HandleKind::Module, 3, 4),
        handle(HandleKind::Module, 3, 6),
        handle(HandleKind::Module, 2, 5),
        handle(HandleKind::Module, 4, 1),
        handle(HandleKind::Module, (1 << 24) - 1, 1),
        handle(HandleKind::Stream, 3, 5),
        handle(HandleKind::Event, 3, 5),
    ] {
        liar.refused(launch(wrong, 0, &[0; 8]), ErrorCode::Handle);
        liar.refused(ModuleUnload { module: wrong }, ErrorCode::Handle);
    }
    liar.ask(launch(module, 0, &[0; 8])).expect("launched");
    liar.ask(ModuleUnload { module }).expect("unloaded");
    liar.refused(launch(module, 0, &[0; 8]), ErrorCode::Handle);
    liar.refused(ModuleUnload { module }, ErrorCode::Handle);

    let stream = handle(HandleKind::Stream, 0, 1);
    let (wait, flags, priority) = (|stream| StreamSynchronize { stream }, 1, 0);
    liar.refused(wait(StreamRef::of(stream)), ErrorCode::Handle);
    liar.ask(StreamCreate {
        stream,
        flags,
        priority,
    })
    .expect("made");
    liar.ask(wait(StreamRef::of(stream))).expect("waited");
    let event = handle(HandleKind::Event, 0, 1);
    let stream_ref = StreamRef::of(stream);
    liar.refused(
        EventRecord {
            event,
            stream: stream_ref,
        },
        ErrorCode::Handle,
    );
    liar.ask(StreamDestroy { stream }).expect("destroyed");
    liar.refused(wait(stream_ref), ErrorCode::Handle);
    // A create that cannot be spoils its handle, until that is destroyed.
    let next = handle(HandleKind::Stream, 0, 2);
    liar.refused(
        StreamCreate {
            stream: next,
            flags: 0xff,
            priority,
        },
        INVALID_VALUE,
    );
    liar.refused(wait(StreamRef::of(next)), INVALID_VALUE);
    liar.ask(StreamDestroy { stream: next }).expect("destroyed");
    liar.ask(Synchronize {}).expect("sound");
}
