//! Graphs, as a session may have them of any executor: of two streams, launched in several; and of two kernels, one
//! launch after the other.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use vgpu_mediator::executor::Executor;
use vgpu_protocol::handle::{Handle, HandleKind};
use vgpu_protocol::op::field::{Bytes, StreamRef};
use vgpu_protocol::op::{
    Body, EventCreate, EventDestroy, EventRecord, FillRange, GraphDestroy, GraphExecDestroy,
    GraphInstantiate, GraphLaunch, Launch, MemoryAllocate, MemoryAllocateReply, MemoryFree,
    ModuleUnload, Request, StreamBeginCapture, StreamCancel, StreamCancelReply, StreamCreate,
    StreamDestroy, StreamEndCapture, StreamEndCaptureReply, StreamWaitEvent, Synchronize,
};
use vgpu_protocol::status::Status;

use crate::conformance::{Ended, WATCHDOG, ask, copy_down, load};

/// Floats of each array.
const N: u32 = 70_001;
const LAUNCHES: u32 = 50;

/// Of what is made next: the suite may run more than once on an executor.
static GENERATION: AtomicU32 = AtomicU32::new(1);

/// Adds two constants to a sum, launch for launch; one of them is made in a second stream.
pub(crate) fn run(executor: &mut dyn Executor) {
    let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
    let handle = |kind, slot| Handle::new(kind, slot, generation).expect("sound");
    let (module, function) = load(executor, Instant::now() + WATCHDOG).expect("a module");
    let bytes = (u64::from(N) * 4).try_into().expect("not 0");
    let [sum, one, two] = [(); 3].map(|()| {
        let body = ask(executor, MemoryAllocate { bytes }).expect("memory");
        MemoryAllocateReply::decode(&body).expect("a reply").address
    });
    let streams = [0, 1].map(|slot| handle(HandleKind::Stream, slot));
    for stream in streams {
        let create = StreamCreate {
            stream,
            flags: 1,
            priority: 0,
        };
        ask(executor, create).expect("made");
    }
    let events = [0, 1].map(|slot| handle(HandleKind::Event, slot));
    for event in events {
        ask(executor, EventCreate { event, flags: 2 }).expect("made");
    }
    let [first, second] = streams.map(StreamRef::of);
    let fill = |to, value: f32, stream| FillRange {
        to,
        value: value.to_bits(),
        element_bytes: 4,
        count: u64::from(N).try_into().expect("not 0"),
        stream,
    };
    let add = |what: u64| {
        let parameters = [sum, what, sum, N.into()].map(u64::to_le_bytes);
        Launch {
            module,
            function,
            grid: [N.div_ceil(256), 1, 1],
            block: [256, 1, 1],
            shared_bytes: 0,
            stream: first,
            deadline_ms: 0,
            parameters: Bytes::new(parameters.as_flattened()).expect("short"),
            attributes: Default::default(),
        }
    };
    ask(executor, fill(sum, 0.0, StreamRef::DEFAULT)).expect("filled");
    ask(executor, Synchronize {}).expect("filled");
    let (graph, exec) = (
        handle(HandleKind::Graph, 0),
        handle(HandleKind::GraphExec, 0),
    );
    let [fork, join] = events;
    let (stream, mode, flags) = (first, 0, 0);
    ask(executor, StreamBeginCapture { stream, mode }).expect("begun");
    ask(
        executor,
        EventRecord {
            event: fork,
            stream,
        },
    )
    .expect("captured");
    let wait = |stream, event| StreamWaitEvent { stream, event };
    ask(executor, wait(second, fork)).expect("captured");
    ask(executor, fill(two, 2.0, second)).expect("captured");
    ask(executor, fill(one, 1.0, first)).expect("captured");
    ask(executor, add(one)).expect("captured");
    let record = EventRecord {
        event: join,
        stream: second,
    };
    ask(executor, record).expect("captured");
    ask(executor, wait(first, join)).expect("captured");
    ask(executor, add(two)).expect("captured");
    let body = ask(executor, StreamEndCapture { stream, graph }).expect("a graph");
    let reply = StreamEndCaptureReply::decode(&body).expect("a reply");
    assert_eq!(reply.nodes, 4);
    ask(executor, GraphInstantiate { graph, exec, flags }).expect("made");
    ask(executor, GraphDestroy { graph }).expect("destroyed");
    let places = [first, second, StreamRef::DEFAULT];
    for stream in (0..LAUNCHES as usize).map(|k| places[k % 3]) {
        ask(executor, GraphLaunch { exec, stream }).expect("launched");
    }
    ask(executor, Synchronize {}).expect("done");
    let wanted = (LAUNCHES * 3) as f32;
    let found = copy_down(executor, sum, bytes);
    let (floats, _) = found.as_chunks::<4>();
    let wrong = floats.iter().position(|x| f32::from_le_bytes(*x) != wanted);
    assert_eq!((floats.len(), wrong), (N as usize, None));
    // Nothing is there to be cancelled.
    let body = ask(executor, StreamCancel { stream: first }).expect("cancelled");
    let reply = StreamCancelReply::decode(&body).expect("a reply");
    assert_eq!(reply.kernels, 0);
    // Without its memory it does nothing.
    ask(executor, MemoryFree { address: one }).expect("freed");
    let launch = GraphLaunch { exec, stream };
    let failure = ask(executor, launch).expect_err("freed").expect("an end");
    assert_eq!(failure.status, Status::Cuda(1), "{}", failure.text);
    ask(executor, GraphExecDestroy { exec }).expect("destroyed");
    for address in [sum, two] {
        ask(executor, MemoryFree { address }).expect("freed");
    }
    for event in events {
        ask(executor, EventDestroy { event }).expect("destroyed");
    }
    for stream in streams {
        ask(executor, StreamDestroy { stream }).expect("destroyed");
    }
    ask(executor, ModuleUnload { module }).expect("unloaded");
    ask(executor, Synchronize {}).expect("sound");
}

/// A graph that adds 1 to `floats` of them twice.
pub(crate) struct Twice {
    sum: u64,
    floats: u32,
    exec: Handle,
    stream: StreamRef,
    launched: u32,
    objects: Vec<Request>,
}

impl Twice {
    pub(crate) fn new(executor: &mut dyn Executor, floats: u32) -> Self {
        let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
        let handle = |kind| Handle::new(kind, 0, generation).expect("sound");
        let (module, function) = load(executor, Instant::now() + WATCHDOG).expect("a module");
        let bytes = (u64::from(floats) * 4).try_into().expect("not 0");
        let [sum, one] = [(); 2].map(|()| {
            let body = ask(executor, MemoryAllocate { bytes }).expect("memory");
            MemoryAllocateReply::decode(&body).expect("a reply").address
        });
        let (graph, exec) = (handle(HandleKind::Graph), handle(HandleKind::GraphExec));
        let stream = handle(HandleKind::Stream);
        let (flags, priority, mode) = (1, 0, 0);
        let create = StreamCreate {
            stream,
            flags,
            priority,
        };
        ask(executor, create).expect("made");
        let objects = vec![
            GraphExecDestroy { exec }.into(),
            StreamDestroy { stream }.into(),
            ModuleUnload { module }.into(),
            MemoryFree { address: sum }.into(),
            MemoryFree { address: one }.into(),
        ];
        let stream = StreamRef::of(stream);
        for (to, value) in [(sum, 0.0f32), (one, 1.0)] {
            let fill = FillRange {
                to,
                value: value.to_bits(),
                element_bytes: 4,
                count: u64::from(floats).try_into().expect("not 0"),
                stream,
            };
            ask(executor, fill).expect("filled");
        }
        ask(executor, StreamBeginCapture { stream, mode }).expect("begun");
        for _ in 0..2 {
            let parameters = [sum, one, sum, floats.into()].map(u64::to_le_bytes);
            let launch = Launch {
                module,
                function,
                grid: [floats.div_ceil(256), 1, 1],
                block: [256, 1, 1],
                shared_bytes: 0,
                stream,
                deadline_ms: 0,
                parameters: Bytes::new(parameters.as_flattened()).expect("short"),
                attributes: Default::default(),
            };
            ask(executor, launch).expect("captured");
        }
        ask(executor, StreamEndCapture { stream, graph }).expect("a graph");
        let flags = 0;
        ask(executor, GraphInstantiate { graph, exec, flags }).expect("made");
        ask(executor, GraphDestroy { graph }).expect("destroyed");
        Self {
            sum,
            floats,
            exec,
            stream,
            launched: 0,
            objects,
        }
    }

    /// Launches it, and waits until it is done.
    pub(crate) fn launch(&mut self, executor: &mut dyn Executor) -> Ended<()> {
        let (exec, stream) = (self.exec, self.stream);
        ask(executor, GraphLaunch { exec, stream })?;
        ask(executor, Synchronize {})?;
        self.launched += 1;
        Ok(())
    }

    /// Checks the sum, and gives everything back.
    pub(crate) fn end(self, executor: &mut dyn Executor) {
        let bytes = (u64::from(self.floats) * 4).try_into().expect("not 0");
        let found = copy_down(executor, self.sum, bytes);
        let wanted = (2 * self.launched) as f32;
        let (floats, _) = found.as_chunks::<4>();
        let wrong = floats.iter().position(|x| f32::from_le_bytes(*x) != wanted);
        assert_eq!(wrong, None);
        for request in self.objects {
            ask(executor, request).expect("given back");
        }
        ask(executor, Synchronize {}).expect("sound");
    }
}
