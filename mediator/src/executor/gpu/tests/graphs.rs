//! Lies about captures and graphs.

use vgpu_protocol::op::{
    EventCreate, GraphDestroy, GraphExecDestroy, GraphInstantiate, GraphLaunch, StreamBeginCapture,
    StreamCaptureInfo, StreamCaptureInfoReply, StreamEndCapture, StreamEndCaptureReply,
    StreamWaitEvent,
};

use super::*;

const ILLEGAL_STATE: Status = Status::Cuda(401);
const INVALIDATED: Status = Status::Cuda(901);

fn stream_ref(slot: u32) -> StreamRef {
    StreamRef::of(handle(HandleKind::Stream, slot, 1))
}

impl Liar {
    /// One with streams 0 and 1, which run beside the default stream, and 2, which does not.
    fn with_streams(memory_mib: u32, max_objects: u32) -> Self {
        let mut liar = Self::new(memory_mib, max_objects);
        for (slot, flags) in [(0, 1), (1, 1), (2, 0)] {
            let stream = handle(HandleKind::Stream, slot, 1);
            let create = StreamCreate {
                stream,
                flags,
                priority: 0,
            };
            liar.ask(create).expect("made");
        }
        liar
    }

    fn begin(&mut self, stream: StreamRef) {
        let mode = 0;
        self.ask(StreamBeginCapture { stream, mode })
            .expect("begun");
    }

    fn fill(&mut self, to: u64, bytes: u64, stream: StreamRef) -> Result<Vec<u8>, Failure> {
        self.ask(FillRange {
            to,
            value: 7,
            element_bytes: 1,
            count: bytes.try_into().expect("not 0"),
            stream,
        })
    }

    fn status(&mut self, stream: StreamRef) -> u8 {
        let body = self.ask(StreamCaptureInfo { stream }).expect("told");
        StreamCaptureInfoReply::decode(&body)
            .expect("a reply")
            .status
    }

    fn end(&mut self, stream: StreamRef, graph: Handle) -> Result<u32, Failure> {
        let body = self.ask(StreamEndCapture { stream, graph })?;
        Ok(StreamEndCaptureReply::decode(&body).expect("a reply").nodes)
    }

    /// Nodes and bytes that captures and graphs are counted to have.
    fn kept(&self) -> String {
        let gpu = self.0.gpu.as_ref().expect("opened");
        format!("{:?}", gpu.graphs.kept)
    }
}

fn graph(slot: u32, generation: u32) -> Handle {
    handle(HandleKind::Graph, slot, generation)
}

fn exec(slot: u32, generation: u32) -> Handle {
    handle(HandleKind::GraphExec, slot, generation)
}

#[test]
fn stale_foreign_and_reused_graphs_name_nothing() {
    let mut liar = Liar::with_streams(4, 4);
    let to = liar.allocate(1000);
    let nothing_kept = liar.kept();
    let (stream, flags) = (stream_ref(0), 0);
    let instantiate = |graph, exec| GraphInstantiate { graph, exec, flags };
    let launch = |exec| GraphLaunch { exec, stream };
    liar.begin(stream);
    liar.fill(to, 1000, stream).expect("captured");
    assert_eq!(liar.end(stream, graph(1, 3)).expect("a graph"), 1);
    liar.ask(instantiate(graph(1, 3), exec(2, 5)))
        .expect("made");
    for (generation, wrong) in (1..).zip([
        graph(1, 2),
        graph(1, 4),
        graph(0, 3),
        graph(4, 1),
        graph((1 << 24) - 1, 1),
        exec(2, 5),
        handle(HandleKind::Stream, 0, 1),
    ]) {
        let spoilt = exec(3, generation);
        // A graph of another name spoils the handle that was to be made of it, until that is destroyed.
        liar.refused(instantiate(wrong, spoilt), ErrorCode::Handle);
        liar.refused(launch(spoilt), ErrorCode::Handle);
        liar.refused(GraphDestroy { graph: wrong }, ErrorCode::Handle);
        liar.ask(GraphExecDestroy { exec: spoilt })
            .expect("destroyed");
    }
    for wrong in [exec(2, 4), exec(2, 6), exec(0, 5), graph(1, 3)] {
        liar.refused(launch(wrong), ErrorCode::Handle);
        liar.refused(GraphExecDestroy { exec: wrong }, ErrorCode::Handle);
    }
    liar.refused(instantiate(graph(1, 3), exec(2, 6)), ErrorCode::Handle);
    for (generation, flags) in [(1, 4), (2, 16), (3, u32::MAX)] {
        let wrong = GraphInstantiate {
            graph: graph(1, 3),
            exec: exec(0, generation),
            flags,
        };
        liar.refused(wrong, Status::Cuda(801));
        let exec = exec(0, generation);
        liar.ask(GraphExecDestroy { exec }).expect("destroyed");
    }
    // A graph under a handle that is in use ends the capture, and keeps nothing.
    liar.begin(stream);
    liar.fill(to, 1000, stream).expect("captured");
    let reused = liar.end(stream, graph(1, 4)).expect_err("in use");
    assert_eq!(reused.status, ErrorCode::Handle.into());
    assert_eq!(liar.status(stream), 0);
    liar.ask(launch(exec(2, 5))).expect("launched");
    liar.ask(GraphDestroy { graph: graph(1, 3) })
        .expect("destroyed");
    liar.ask(launch(exec(2, 5)))
        .expect("what was made of it stays");
    liar.ask(GraphExecDestroy { exec: exec(2, 5) })
        .expect("destroyed");
    liar.refused(launch(exec(2, 5)), ErrorCode::Handle);
    liar.ask(Synchronize {}).expect("sound");
    assert_eq!(liar.kept(), nothing_kept);
}

#[test]
fn a_graph_never_touches_what_is_not_the_sessions() {
    let mut liar = Liar::with_streams(4, 100);
    let len = 1000;
    let (start, source) = (liar.allocate(len), liar.allocate(len));
    let stream = stream_ref(0);
    // Into a capture comes only what is sound.
    for (address, bytes) in outside(start, len) {
        liar.begin(stream);
        let failure = liar.fill(address, bytes, stream).expect_err("refused");
        assert_eq!(failure.status, INVALID_VALUE);
        let failure = liar.end(stream, graph(0, 1)).expect_err("invalid");
        assert_eq!(failure.status, INVALIDATED);
        // The handle tells of it, until it is destroyed.
        let (graph, exec, flags) = (graph(0, 1), exec(0, 1), 0);
        liar.refused(GraphInstantiate { graph, exec, flags }, INVALIDATED);
        liar.refused(GraphLaunch { exec, stream }, INVALIDATED);
        liar = Liar::with_streams(4, 100);
        assert_eq!((liar.allocate(len), liar.allocate(len)), (start, source));
    }
    // What is freed later is noticed when it is launched, before any of it runs.
    liar.begin(stream);
    liar.fill(start, len, stream).expect("captured");
    let bytes = len.try_into().expect("not 0");
    let copy = CopyWithinDevice {
        to: start,
        from: source,
        bytes,
        stream,
    };
    liar.ask(copy).expect("captured");
    liar.end(stream, graph(0, 1)).expect("a graph");
    let (graph, exec, flags) = (graph(0, 1), exec(0, 1), 0);
    liar.ask(GraphInstantiate { graph, exec, flags })
        .expect("made");
    liar.ask(GraphLaunch { exec, stream }).expect("launched");
    liar.ask(MemoryFree { address: source }).expect("freed");
    for stream in [stream, stream_ref(1), StreamRef::DEFAULT] {
        liar.refused(GraphLaunch { exec, stream }, INVALID_VALUE);
    }
    liar.ask(Synchronize {}).expect("sound");
}

#[test]
fn no_flood_of_nodes_graphs_or_captures_grows_without_an_end() {
    let mut liar = Liar::with_streams(4, 40);
    let to = liar.allocate(8);
    let nothing_kept = liar.kept();
    let [one, two] = [stream_ref(0), stream_ref(1)];
    // An endless capture.
    liar.begin(one);
    let mut captured = 0;
    let failure = loop {
        match liar.fill(to, 8, one) {
            Ok(_) => captured += 1,
            Err(failure) => break failure,
        }
    };
    assert_eq!(failure.status, ErrorCode::QuotaHandles.into());
    assert_eq!(captured, (1 << 17) - 1);
    assert_eq!(
        liar.kept(),
        nothing_kept,
        "an invalid capture keeps nothing"
    );
    assert_eq!(liar.status(one), 2);
    liar.end(one, graph(0, 1)).expect_err("invalid");
    // Joins count as well, however often: each is one more, whatever it joins.
    let event = handle(HandleKind::Event, 0, 1);
    liar.ask(EventCreate { event, flags: 2 }).expect("made");
    liar.begin(one);
    let mut joins = 0;
    let failure = loop {
        liar.ask(EventRecord { event, stream: one })
            .expect("captured");
        match liar.ask(StreamWaitEvent { stream: two, event }) {
            Ok(_) => joins += 1,
            Err(failure) => break failure,
        }
    };
    assert_eq!(failure.status, ErrorCode::QuotaHandles.into());
    assert_eq!(joins, (1 << 17) - 1);
    assert_eq!(liar.kept(), nothing_kept);
    liar.end(one, graph(1, 1)).expect_err("invalid");
    assert_eq!((liar.status(one), liar.status(two)), (0, 0));
    // Graphs and what is made of them are handles like others.
    liar.begin(one);
    liar.end(one, graph(2, 1)).expect("a graph");
    for slot in 0..40 {
        let (graph, exec, flags) = (graph(2, 1), exec(slot, 1), 0);
        liar.ask(GraphInstantiate { graph, exec, flags })
            .expect("made");
    }
    let (too_many, flags) = (exec(40, 1), 0);
    let instantiate = GraphInstantiate {
        graph: graph(2, 1),
        exec: too_many,
        flags,
    };
    liar.refused(instantiate, ErrorCode::Handle);
    liar.begin(one);
    let failure = liar.end(one, graph(40, 1)).expect_err("too many");
    assert_eq!(failure.status, ErrorCode::Handle.into());
    // Captures that nobody ends go with their streams.
    for generation in 2..2000 {
        let stream = handle(HandleKind::Stream, 3, generation);
        let create = StreamCreate {
            stream,
            flags: 1,
            priority: 0,
        };
        liar.ask(create).expect("made");
        liar.begin(StreamRef::of(stream));
        liar.fill(to, 8, StreamRef::of(stream)).expect("captured");
        liar.ask(StreamDestroy { stream }).expect("destroyed");
    }
    liar.refused(
        StreamEndCapture {
            stream: one,
            graph: graph(3, 1),
        },
        ILLEGAL_STATE,
    );
    liar.ask(GraphDestroy { graph: graph(2, 1) })
        .expect("destroyed");
    for slot in 0..40 {
        liar.ask(GraphExecDestroy {
            exec: exec(slot, 1),
        })
        .expect("destroyed");
    }
    liar.ask(Synchronize {}).expect("sound");
    assert_eq!(liar.kept(), nothing_kept);
}

#[test]
fn large_parameters_of_captured_launches_count_by_their_bytes() {
    const LARGE: &str = ".version 8.1\n.target sm_70\n.address_size 64\n\
        .visible .entry k(.param .align 8 .b8 a[32000])\n{\nret;\n}\n";
    let mut liar = Liar::with_streams(16, 10);
    let module = handle(HandleKind::Module, 0, 1);
    let bytes = (LARGE.len() as u64).try_into().expect("not 0");
    liar.ask_with(ModuleLoad { module, bytes }, LARGE.as_bytes())
        .expect("loaded");
    let name = "k".into();
    liar.ask(ModuleFunction { module, name }).expect("found");
    let nothing_kept = liar.kept();
    let stream = stream_ref(0);
    liar.begin(stream);
    let launch = Launch {
        module,
        function: 0,
        grid: [1; 3],
        block: [1; 3],
        shared_bytes: 0,
        stream,
        deadline_ms: 0,
        parameters: Bytes::new(&[0; 32_000]).expect("short enough"),
        attributes: Default::default(),
    };
    let mut captured = 0u32;
    let failure = loop {
        match liar.ask(launch.clone()) {
            Ok(_) => captured += 1,
            Err(failure) => break failure,
        }
    };
    assert_eq!(failure.status, ErrorCode::QuotaMemory.into());
    assert!((1000..2200).contains(&captured), "{captured}");
    assert_eq!(liar.kept(), nothing_kept);
    liar.end(stream, graph(0, 1)).expect_err("invalid");
}

#[test]
fn the_default_stream_and_those_that_wait_for_it_are_not_captured_by_accident() {
    let mut liar = Liar::with_streams(4, 10);
    let to = liar.allocate(8);
    let [aside, blocking] = [stream_ref(0), stream_ref(2)];
    let (stream, mode) = (StreamRef::DEFAULT, 0);
    liar.refused(StreamBeginCapture { stream, mode }, Status::Cuda(900));
    // Beside a stream that does not wait for it the default stream goes on.
    liar.begin(aside);
    liar.fill(to, 8, StreamRef::DEFAULT).expect("done");
    assert_eq!(liar.status(StreamRef::DEFAULT), 0);
    liar.end(aside, graph(0, 1)).expect("a graph");
    // Beside one that does it would be waited for, unseen.
    liar.begin(blocking);
    liar.refused(StreamCaptureInfo { stream }, Status::Cuda(906));
    assert_eq!(liar.status(blocking), 1);
    let failure = liar.fill(to, 8, stream).expect_err("implicit");
    assert_eq!(failure.status, Status::Cuda(906));
    let failure = liar.end(blocking, graph(1, 1)).expect_err("invalid");
    assert_eq!(failure.status, INVALIDATED);
    liar.fill(to, 8, stream).expect("done");
    liar.ask(Synchronize {}).expect("sound");
}

#[test]
fn branches_of_a_graph_run_beside_each_other() {
    // One branch waits for a word that the other writes. Of a GPU nobody promises that; here it is so.
    const SPIN: &str = ".version 6.0\n.target sm_50\n.address_size 64\n\
        .visible .entry spin(.param .u64 word)\n{\n.reg .pred %p;\n.reg .b32 %v;\n.reg .b64 %word;\n\
        ld.param.u64 %word, [word];\nagain:\nld.volatile.global.u32 %v, [%word];\n\
        setp.eq.u32 %p, %v, 0;\n@%p bra again;\nret;\n}\n";
    let mut liar = Liar::with_streams(16, 10);
    let word = liar.allocate(4);
    let module = handle(HandleKind::Module, 0, 1);
    let bytes = (SPIN.len() as u64).try_into().expect("not 0");
    liar.ask_with(ModuleLoad { module, bytes }, SPIN.as_bytes())
        .expect("loaded");
    let name = "spin".into();
    liar.ask(ModuleFunction { module, name }).expect("found");
    let [one, two] = [stream_ref(0), stream_ref(1)];
    let events = [0, 1].map(|slot| handle(HandleKind::Event, slot, 1));
    for event in events {
        liar.ask(EventCreate { event, flags: 2 }).expect("made");
    }
    let order = |liar: &mut Liar, event, from, to| {
        liar.ask(EventRecord {
            event,
            stream: from,
        })
        .expect("captured");
        liar.ask(StreamWaitEvent { stream: to, event })
            .expect("captured");
    };
    liar.begin(one);
    order(&mut liar, events[0], one, two);
    liar.ask(Launch {
        module,
        function: 0,
        grid: [1; 3],
        block: [1; 3],
        shared_bytes: 0,
        stream: one,
        deadline_ms: 0,
        parameters: Bytes::new(&word.to_le_bytes()).expect("short"),
        attributes: Default::default(),
    })
    .expect("captured");
    liar.fill(word, 4, two).expect("captured");
    order(&mut liar, events[1], two, one);
    assert_eq!(liar.end(one, graph(0, 1)).expect("a graph"), 2);
    let (graph, exec, flags) = (graph(0, 1), exec(0, 1), 0);
    liar.ask(GraphInstantiate { graph, exec, flags })
        .expect("made");
    for _ in 0..20 {
        let zero = FillRange {
            to: word,
            value: 0,
            element_bytes: 4,
            count: 1.try_into().expect("not 0"),
            stream: one,
        };
        liar.ask(zero).expect("done");
        liar.ask(GraphLaunch { exec, stream: one })
            .expect("launched");
    }
    liar.ask(Synchronize {}).expect("ended");
}

/// Numbers that look random, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, most: u32) -> u32 {
        // Of a linear congruential generator the high bits are the better ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        u32::try_from(self.0 >> 33).expect("31 bits") % most
    }
}

#[test]
fn a_storm_of_captures_and_graphs_leaves_nothing_behind() {
    const STREAMS: u32 = 3;
    let mut captured = 0;
    for seed in 0..60 {
        let mut numbers = Numbers(seed);
        let mut liar = Liar::with_streams(4, 20);
        let (len, before) = (4096, liar.free_bytes());
        let nothing_kept = liar.kept();
        let mut memory = vec![liar.allocate(len)];
        let mut generations = [1u32; 20];
        for slot in 0..4 {
            let event = handle(HandleKind::Event, slot, 1);
            liar.ask(EventCreate { event, flags: 2 }).expect("made");
        }
        for _ in 0..400 {
            let slot = numbers.below(STREAMS);
            let stream = match numbers.below(12) {
                0 => StreamRef::DEFAULT,
                _ => stream_ref(slot),
            };
            let event = handle(HandleKind::Event, numbers.below(4), 1);
            let object = numbers.below(3);
            let generation = generations[object as usize];
            let (graph, exec) = (graph(object, generation), exec(object, generation));
            let address = memory[numbers.below(1000) as usize % memory.len()];
            let asked: Request = match numbers.below(20) {
                0..=2 => {
                    let mode = u8::try_from(numbers.below(3)).expect("small");
                    StreamBeginCapture { stream, mode }.into()
                }
                3..=5 => StreamEndCapture { stream, graph }.into(),
                6..=9 => FillRange {
                    to: address,
                    value: 1,
                    element_bytes: 1,
                    count: u64::from(1 + numbers.below(4100))
                        .try_into()
                        .expect("not 0"),
                    stream,
                }
                .into(),
                10..=11 => EventRecord { event, stream }.into(),
                12..=13 => StreamWaitEvent { stream, event }.into(),
                14 => GraphInstantiate {
                    graph,
                    exec,
                    flags: 0,
                }
                .into(),
                15..=16 => GraphLaunch { exec, stream }.into(),
                17 => {
                    generations[object as usize] += 1;
                    liar.ask(GraphDestroy { graph }).ok();
                    GraphExecDestroy { exec }.into()
                }
                18 => match numbers.below(2) {
                    0 if memory.len() < 10 => {
                        let bytes = len.try_into().expect("not 0");
                        if let Ok(body) = liar.ask(MemoryAllocate { bytes }) {
                            let reply = MemoryAllocateReply::decode(&body).expect("a reply");
                            memory.push(reply.address);
                        }
                        continue;
                    }
                    _ if memory.len() > 1 => MemoryFree {
                        address: memory.swap_remove(0),
                    }
                    .into(),
                    _ => StreamCaptureInfo { stream }.into(),
                },
                _ => Synchronize {}.into(),
            };
            let is_end = matches!(asked, Request::StreamEndCapture(_));
            captured += u32::from(liar.ask(asked).is_ok() && is_end);
        }
        for slot in 0..STREAMS {
            let stream = handle(HandleKind::Stream, slot, 1);
            liar.ask(StreamDestroy { stream }).expect("destroyed");
        }
        for slot in 0..3 {
            for generation in 1..=generations[slot as usize] {
                let (graph, exec) = (graph(slot, generation), exec(slot, generation));
                liar.ask(GraphDestroy { graph }).ok();
                liar.ask(GraphExecDestroy { exec }).ok();
            }
        }
        for address in memory {
            liar.ask(MemoryFree { address }).expect("freed");
        }
        assert_eq!(liar.free_bytes(), before, "seed {seed}");
        assert_eq!(liar.kept(), nothing_kept, "seed {seed}");
    }
    assert!(captured > 100, "only {captured} graphs");
}
