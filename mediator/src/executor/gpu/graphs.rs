//! Graphs: what captures have recorded, as work for a few streams, and its launches.
//!
//! A launch is the same as if the guest had sent the work again: each piece is checked, has its deadline, waits for
//! the session's turn, and fails in the name of the launch. It is queued as far as the device's queue has room; until
//! all of it is there, no other request is started.

use std::sync::Arc;

use vgpu_protocol::handle::{Handle, HandleKind, HandleTable};
use vgpu_protocol::op::{
    Body, GraphDestroyReply, GraphExecDestroyReply, GraphInstantiate, GraphInstantiateReply,
    GraphLaunch, GraphLaunchReply, Op, STREAM_FLAGS, StreamEndCapture, StreamEndCaptureReply,
};
use vgpu_protocol::session::server::{Failure, Outcome};
use vgpu_protocol::status::ErrorCode;

use super::super::cuda_result::{NOT_SUPPORTED, STREAM_CAPTURE_UNJOINED};
use super::captures::{Capture, Node, What, error};
use super::device::{Device, Key, Work};
use super::handles::{self, Objects};
use super::queue::{self, Reclaim};
use super::work::Action;
use super::{Gpu, Refused, refused};

/// Streams at most for the branches of a graph; further ones take turns in these.
const MOST_LANES: u32 = 8;

/// Places at most where one of these streams waits for another. A graph with more runs in one.
const MOST_SIGNALS: u32 = 1024;

/// Nodes of all captures and graphs of a session at most, and bytes of memory that they take.
const MOST_NODES: usize = 1 << 17;
const MOST_BYTES: usize = 64 << 20;

/// `CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH`, `UPLOAD` and `USE_NODE_PRIORITY`.
const KNOWN_FLAGS: u32 = 1 | 2 | 8;

/// The graphs of a session.
#[derive(Debug)]
pub(super) struct Graphs {
    graphs: Objects<Arc<Recorded>>,
    execs: Objects<Exec>,
    /// Memory of all of them and of the captures.
    pub(super) kept: Kept,
    /// Streams for branches, which all graphs share, and events between them.
    lanes: Vec<Key>,
    signals: Vec<Key>,
}

/// Nodes, and the memory that they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Kept {
    nodes: usize,
    bytes: usize,
}

/// A graph: its work in an order in which it can be queued.
#[derive(Debug)]
struct Recorded {
    steps: Vec<Step>,
    lanes: u32,
    signals: u32,
    nodes: u32,
    kept: Kept,
}

#[derive(Debug)]
struct Step {
    /// 0 is the stream in which the graph is launched.
    lane: u32,
    what: Do,
}

#[derive(Debug)]
enum Do {
    Work(Action),
    Signal(u32),
    Wait(u32),
}

/// A graph that can be launched.
#[derive(Debug)]
struct Exec {
    recorded: Arc<Recorded>,
    /// The event at the end of its last launch, and the stream of that.
    end: Key,
    last: Option<Key>,
}

/// A launch that is not yet queued as a whole.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) id: u32,
    recorded: Arc<Recorded>,
    next: usize,
    stream: Key,
    end: Key,
}

impl Replay {
    /// Pieces that are not queued.
    pub(super) fn left(&self) -> usize {
        self.recorded.steps.len() - self.next
    }
}

impl Kept {
    /// A node with so many bytes beside it.
    pub(super) fn node(spilled: usize) -> Self {
        // Once as a node and, when its capture ends, once as a step.
        let bytes = size_of::<Node>() + size_of::<Step>() + spilled;
        Self { nodes: 1, bytes }
    }

    pub(super) fn join(&mut self, other: Self) {
        self.nodes += other.nodes;
        self.bytes += other.bytes;
    }

    /// Counts more, if a session may have so much.
    pub(super) fn add(&mut self, other: Self) -> Result<(), Refused> {
        let mut sum = *self;
        sum.join(other);
        if sum.nodes > MOST_NODES {
            let text = format!("the graphs of this session have {MOST_NODES} nodes already");
            return Err(refused(ErrorCode::QuotaHandles, text));
        }
        if sum.bytes > MOST_BYTES {
            let text = format!("the graphs of this session take {MOST_BYTES} bytes already");
            return Err(refused(ErrorCode::QuotaMemory, text));
        }
        *self = sum;
        Ok(())
    }

    pub(super) fn remove(&mut self, other: Self) {
        self.nodes -= other.nodes;
        self.bytes -= other.bytes;
    }
}

impl Graphs {
    pub(super) fn new(most: u32) -> Self {
        Self {
            graphs: HandleTable::new(HandleKind::Graph, most),
            execs: HandleTable::new(HandleKind::GraphExec, most),
            kept: Kept::default(),
            lanes: Vec::new(),
            signals: Vec::new(),
        }
    }

    /// Nobody has this graph any more, or only another handle has.
    fn release(&mut self, recorded: Arc<Recorded>) {
        if let Some(recorded) = Arc::into_inner(recorded) {
            self.kept.remove(recorded.kept);
        }
    }
}

impl<D: Device> Gpu<D> {
    pub(super) fn end_capture_to_graph(
        &mut self,
        lane: u16,
        end: &StreamEndCapture,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let recorded = self.end_capture(lane, end.stream).and_then(|capture| {
            let kept = capture.kept;
            let recorded = compile(capture);
            if recorded.is_err() {
                self.graphs.kept.remove(kept);
            }
            recorded.map(Arc::new)
        });
        let graph = end.graph;
        if let Err(refused) = handles::open(&mut self.graphs.graphs, graph, recorded.clone()) {
            recorded
                .into_iter()
                .for_each(|recorded| self.graphs.release(recorded));
            return Err(refused);
        }
        let nodes = recorded?.nodes;
        Ok(Some(StreamEndCaptureReply { nodes }.encode()))
    }

    pub(super) fn graph_instantiate(
        &mut self,
        instantiate: &GraphInstantiate,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let made = self.make_exec(instantiate);
        let exec = instantiate.exec;
        let failure = made.as_ref().err().cloned();
        let end = made.as_ref().ok().map(|made| made.end);
        if let Err(refused) = handles::open(&mut self.graphs.execs, exec, made) {
            end.into_iter().for_each(|end| self.device.drop_event(end));
            return Err(refused);
        }
        match failure {
            Some(failure) => Err(failure),
            None => Ok(Some(GraphInstantiateReply {}.encode())),
        }
    }

    fn make_exec(&mut self, instantiate: &GraphInstantiate) -> Result<Exec, Refused> {
        let recorded = Arc::clone(handles::named(&mut self.graphs.graphs, instantiate.graph)?);
        if instantiate.flags & !KNOWN_FLAGS != 0 {
            let text = format!("flags {:#x}", instantiate.flags);
            return Err(error(NOT_SUPPORTED, text));
        }
        while self.graphs.lanes.len() < recorded.lanes as usize {
            let key = self.streams.next_key();
            let made = self.device.make_stream(key, STREAM_FLAGS, 0);
            made.map_err(|error| self.failure(0, &error))?;
            self.graphs.lanes.push(key);
        }
        while self.graphs.signals.len() < recorded.signals as usize {
            let key = self.make_signal()?;
            self.graphs.signals.push(key);
        }
        Ok(Exec {
            recorded,
            end: self.make_signal()?,
            last: None,
        })
    }

    fn make_signal(&mut self) -> Result<Key, Refused> {
        let key = self.streams.next_key();
        let made = self.device.make_event(key, false);
        made.map_err(|error| self.failure(0, &error))?;
        Ok(key)
    }

    pub(super) fn graph_launch(
        &mut self,
        id: u32,
        launch: &GraphLaunch,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let stream = self.live(launch.stream)?;
        let handle = launch.exec;
        let exec = handles::named(&mut self.graphs.execs, handle)?;
        let (recorded, end, last) = (Arc::clone(&exec.recorded), exec.end, exec.last);
        // All of it or nothing: what has been freed since the capture is noticed before any of it runs.
        for (at, step) in recorded.steps.iter().enumerate() {
            if let Do::Work(action) = &step.what {
                self.check(action).map_err(|failure| Failure {
                    text: format!("step {at} of the graph: {}", failure.text),
                    ..failure
                })?;
            }
        }
        if last.is_some_and(|last| last != stream) {
            self.submit(other(id), stream, Work::Wait(end))?;
        }
        handles::named(&mut self.graphs.execs, handle)?.last = Some(stream);
        self.replay = Some(Replay {
            id,
            recorded,
            next: 0,
            stream,
            end,
        });
        match self.replay_on() {
            Some((_, outcome)) => outcome.map(Some),
            None => Ok(None),
        }
    }

    /// Queues what can be queued of a launch; the launch and its outcome, if it is over.
    pub(super) fn replay_on(&mut self) -> Option<(u32, Outcome)> {
        let mut replay = self.replay.take()?;
        let id = replay.id;
        while let Some(step) = replay.recorded.steps.get(replay.next) {
            // A step of which nothing is queued is looked at again.
            if self.queue.len() >= D::MOST_WORK {
                self.replay = Some(replay);
                return None;
            }
            let stream = match step.lane {
                0 => replay.stream,
                lane => self.graphs.lanes[lane as usize - 1],
            };
            let queued = match &step.what {
                Do::Work(action) => {
                    if !self.turns.begin() {
                        self.replay = Some(replay);
                        return None;
                    }
                    let what = queue::What::InTurn(id, Op::GraphLaunch);
                    let work = self.work(action.clone());
                    let queued = work.and_then(|work| self.submit(what, stream, work));
                    if queued.is_err() {
                        self.turns.is_over(0);
                    }
                    queued
                }
                Do::Signal(signal) => {
                    let event = self.graphs.signals[*signal as usize];
                    self.submit(other(id), stream, Work::Record(event))
                }
                Do::Wait(signal) => {
                    let event = self.graphs.signals[*signal as usize];
                    self.submit(other(id), stream, Work::Wait(event))
                }
            };
            if let Err(failure) = queued {
                return Some((id, Err(failure)));
            }
            replay.next += 1;
        }
        let ended = self.submit(other(id), replay.stream, Work::Record(replay.end));
        Some((id, ended.map(|()| GraphLaunchReply {}.encode())))
    }

    pub(super) fn graph_destroy(&mut self, graph: Handle) -> Result<Option<Vec<u8>>, Refused> {
        if let Ok(recorded) = handles::close(&mut self.graphs.graphs, graph)? {
            self.graphs.release(recorded);
        }
        Ok(Some(GraphDestroyReply {}.encode()))
    }

    pub(super) fn graph_exec_destroy(
        &mut self,
        id: u32,
        exec: Handle,
    ) -> Result<Option<Vec<u8>>, Refused> {
        if let Ok(exec) = handles::close(&mut self.graphs.execs, exec)? {
            self.reclaim(Reclaim::event(id, self.last_tag, exec.end));
            self.graphs.release(exec.recorded);
        }
        Ok(Some(GraphExecDestroyReply {}.encode()))
    }
}

fn other(id: u32) -> queue::What {
    queue::What::Other(id, Op::GraphLaunch)
}

/// Makes a graph of a capture.
fn compile(capture: Capture) -> Result<Recorded, Refused> {
    let nodes = &capture.nodes;
    let mut is_before_the_end = vec![false; nodes.len()];
    is_before_the_end[capture.branches[0] as usize] = true;
    for at in (0..nodes.len()).rev() {
        if !is_before_the_end[at] {
            continue;
        }
        if let Some(before) = nodes[at].before {
            is_before_the_end[before as usize] = true;
        }
        if let What::Join(other) = nodes[at].what {
            is_before_the_end[other as usize] = true;
        }
    }
    // A branch that does nothing after what it waits for need not be joined.
    let mut is_joined = is_before_the_end.clone();
    for (at, node) in nodes.iter().enumerate() {
        if let What::Join(other) = node.what {
            let before = node.before.is_none_or(|before| is_joined[before as usize]);
            is_joined[at] |= before && is_joined[other as usize];
        }
    }
    if !capture
        .branches
        .iter()
        .all(|last| is_joined[*last as usize])
    {
        let text = "a stream of the capture has work for which the first one does not wait";
        return Err(error(STREAM_CAPTURE_UNJOINED, text));
    }
    let lane_of = |branch: u32| match branch {
        0 => 0,
        branch => 1 + (branch - 1) % (MOST_LANES - 1),
    };
    let mut signals = vec![None; nodes.len()];
    let mut count = 0;
    for (node, _) in nodes.iter().zip(&is_before_the_end).filter(|(_, is)| **is) {
        if let What::Join(other) = node.what
            && lane_of(nodes[other as usize].branch) != lane_of(node.branch)
            && signals[other as usize].is_none()
        {
            signals[other as usize] = Some(count);
            count += 1;
        }
    }
    // In the order in which it was captured, so that it may as well run in one stream.
    let in_one = count > MOST_SIGNALS;
    let mut steps = Vec::with_capacity(nodes.len());
    let (mut lanes, mut works) = (0, 0);
    for (at, node) in capture.nodes.into_iter().enumerate() {
        if !is_before_the_end[at] {
            continue;
        }
        let lane = if in_one { 0 } else { lane_of(node.branch) };
        lanes = lanes.max(lane);
        match node.what {
            What::Begin => {}
            What::Join(other) => {
                if let Some(signal) = signals[other as usize].filter(|_| !in_one) {
                    let what = Do::Wait(signal);
                    steps.push(Step { lane, what });
                }
            }
            What::Work(action) => {
                works += 1;
                let what = Do::Work(action);
                steps.push(Step { lane, what });
            }
        }
        if let Some(signal) = signals[at].filter(|_| !in_one) {
            let what = Do::Signal(signal);
            steps.push(Step { lane, what });
        }
    }
    Ok(Recorded {
        steps,
        lanes,
        signals: if in_one { 0 } else { count },
        nodes: works,
        kept: capture.kept,
    })
}
