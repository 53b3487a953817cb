//! A guest that lies about addresses, handles and sizes, on the engine itself: what its own library would never
//! send. The CPU's device is below it.

use std::time::{Duration, Instant};

use vgpu_protocol::handle::{Handle, HandleKind};
use vgpu_protocol::op::field::{Bytes, StreamRef};
use vgpu_protocol::op::{
    Body, CopyFromDevice, CopyToDevice, CopyWithinDevice, EventRecord, Fill, Launch,
    MemoryAllocate, MemoryAllocateReply, MemoryFree, MemoryInfo, MemoryInfoReply, ModuleFunction,
    ModuleLoad, ModuleUnload, Request, StreamCreate, StreamDestroy, StreamSynchronize, Synchronize,
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
            let fill = Fill {
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
