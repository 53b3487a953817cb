//! Graphs: what captures have recorded, as work for a few streams, and its launches.
//!
//! A launch is the same as if the guest had sent the work again: each piece is checked, has its deadline, waits for
//! the session's turn, and fails in the name of the launch. It is queued as far as the device's queue has room; until
//! all of it is there, no other request is started.
//!
//! A device that has graphs of its own launches one as a whole, for a fraction of the calls, once its kernels are known
//! to take little time: then neither its deadline nor the other sessions' turns need its pieces.

use std::sync::Arc;
use std::time::Duration;

use vgpu_protocol::handle::{Handle, HandleKind, HandleTable};
use vgpu_protocol::op::{
    Body, GraphDestroyReply, GraphExecDestroyReply, GraphInstantiate, GraphInstantiateReply,
    GraphLaunch, GraphLaunchReply, Op, STREAM_FLAGS, StreamEndCapture, StreamEndCaptureReply,
};
use vgpu_protocol::session::server::{Failure, Outcome};

use super::super::cuda_result::{NOT_SUPPORTED, STREAM_CAPTURE_UNJOINED};
use super::cancel::cancelled;
use super::captures::{Capture, What, error};
use super::device::{Answer, AnsweredOf, Call, Device, Key, Node as DeviceNode, NodeWork, Work};
use super::handles::{self, Objects};
use super::queue::{self, Purpose, Reclaim};
use super::recorded::{Do, Kept, Recorded, Step};
use super::{Gpu, Refused};

/// Streams at most for the branches of a graph; further ones take turns in these.
const MOST_LANES: u32 = 8;

/// Places at most where one of these streams waits for another. A graph with more runs in one.
const MOST_SIGNALS: u32 = 1024;

/// A graph whose kernels took so long in all when it was launched in pieces last is launched in pieces again: other
/// sessions may wait for this one's turn to end, and there is little to gain.
const LONGEST_WHOLE: Duration = Duration::from_millis(5);

/// A graph that is launched as a whole may take this many times as long as in pieces, plus its kernels' deadline.
const TIMES_IN_PIECES: u32 = 4;

/// `CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH`, `UPLOAD` and `USE_NODE_PRIORITY`.
const KNOWN_FLAGS: u32 = 1 | 2 | 8;

/// The graphs of a session; `G` is a graph of the device's own.
#[derive(Debug)]
pub(super) struct Graphs<G> {
    graphs: Objects<Arc<Recorded>>,
    execs: Objects<Exec<G>>,
    /// Memory of all of them and of the captures.
    pub(super) kept: Kept,
    /// Streams for branches, which all graphs share, and events between them.
    lanes: Vec<Key>,
    signals: Vec<Key>,
    /// Nodes of the device's own graphs.
    own_nodes: usize,
    /// A launch in pieces whose time is being taken.
    timed: Option<Timed>,
}

/// How long the kernels of a launch take.
#[derive(Debug)]
struct Timed {
    exec: Handle,
    id: u32,
    /// The last work of it, once all is queued.
    last: Option<u64>,
    ns: u64,
}

/// A graph that can be launched.
#[derive(Debug)]
struct Exec<G> {
    recorded: Arc<Recorded>,
    /// The event at the end of its last launch.
    end: Key,
    last: Option<Last>,
    own: Option<Own<G>>,
    /// How long its kernels took, launched in pieces or as a whole, whichever came last.
    took: Option<Duration>,
}

/// Where a launch has ended.
#[derive(Debug, Clone, Copy)]
struct Last {
    stream: Key,
    /// Its last work.
    tag: u64,
    /// The event at its end was recorded behind that.
    is_recorded: bool,
}

/// A graph of the device's own.
#[derive(Debug)]
struct Own<G> {
    graph: G,
    nodes: usize,
    /// The one deadline that all its kernels have.
    deadline: Duration,
}

/// A launch that is not yet queued as a whole.
#[derive(Debug)]
pub(super) struct Replay<G> {
    pub(super) id: u32,
    exec: Handle,
    recorded: Arc<Recorded>,
    next: usize,
    stream: Key,
    end: Key,
    /// The device's own graph, in place of the pieces, and how long it may take.
    whole: Option<(G, Duration)>,
    /// Its kernels that are not queued were cancelled.
    withdrawn: bool,
}

impl<G> Replay<G> {
    /// Cancels the kernels that are not queued, and tells their number.
    fn withdraw(&mut self) -> u32 {
        if std::mem::replace(&mut self.withdrawn, true) {
            return 0;
        }
        let left = self.recorded.steps[self.next..].iter();
        let kernels = left.filter(|step| step.is_kernel()).count();
        u32::try_from(kernels).unwrap_or(u32::MAX)
    }

    /// Pieces that are not queued.
    pub(super) fn left(&self) -> usize {
        self.recorded.steps.len() - self.next
    }
}

impl<G> Graphs<G> {
    pub(super) fn new(most: u32) -> Self {
        Self {
            graphs: HandleTable::new(HandleKind::Graph, most),
            execs: HandleTable::new(HandleKind::GraphExec, most),
            kept: Kept::default(),
            lanes: Vec::new(),
            signals: Vec::new(),
            own_nodes: 0,
            timed: None,
        }
    }

    /// Work `tag` of the launch `id` is over, and kernels ran for `ns`.
    pub(super) fn ran(&mut self, id: u32, tag: u64, ns: u64) {
        let Some(timed) = self.timed.as_mut().filter(|timed| timed.id == id) else {
            return;
        };
        timed.ns = timed.ns.saturating_add(ns);
        if timed.last == Some(tag) {
            let (exec, ns) = (timed.exec, timed.ns);
            self.timed = None;
            self.took(exec, ns);
        }
    }

    /// The kernels of a graph ran for `ns`.
    pub(super) fn took(&mut self, exec: Handle, ns: u64) {
        // Unless it is gone.
        if let Ok(exec) = handles::named(&mut self.execs, exec) {
            exec.took = Some(Duration::from_nanos(ns));
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
        id: u32,
        instantiate: &GraphInstantiate,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let made = self.make_exec(instantiate);
        let exec = instantiate.exec;
        let outcome = made.as_ref().map(|made| Arc::clone(&made.recorded));
        let outcome = outcome.map_err(Clone::clone);
        let end = made.as_ref().ok().map(|made| made.end);
        if let Err(refused) = handles::open(&mut self.graphs.execs, exec, made) {
            end.into_iter().for_each(|end| self.device.drop_event(end));
            return Err(refused);
        }
        let Some((nodes, deadline)) = self.own_nodes(&*outcome?) else {
            return Ok(Some(GraphInstantiateReply {}.encode()));
        };
        let count = nodes.len();
        self.graphs.own_nodes += count;
        let purpose = Purpose::Graph {
            id,
            exec,
            nodes: count,
            deadline,
        };
        self.call(purpose, Call::Graph(nodes));
        Ok(None)
    }

    /// The nodes of a graph as one of the device's own, and the deadline of its kernels; none where it is not to have one.
    fn own_nodes(
        &mut self,
        recorded: &Recorded,
    ) -> Option<(Vec<DeviceNode<D::Function>>, Duration)> {
        let pieces = recorded.steps.len();
        // Of a single work nothing is saved.
        if recorded.nodes < 2 || self.graphs.own_nodes + pieces > D::MOST_NODES {
            return None;
        }
        let mut nodes = Vec::with_capacity(pieces);
        let mut last = vec![None; recorded.lanes as usize + 1];
        let mut signals = vec![None; recorded.signals as usize];
        let mut deadline = None;
        for step in &recorded.steps {
            let last = &mut last[step.lane as usize];
            let (before, work) = match &step.what {
                Do::Signal(signal) => {
                    signals[*signal as usize] = *last;
                    continue;
                }
                Do::Wait(signal) => {
                    let other = signals[*signal as usize];
                    if other.is_none() || last.is_none() {
                        *last = last.or(other);
                        continue;
                    }
                    ([*last, other], NodeWork::Nothing)
                }
                Do::Work(action) => {
                    let work = match self.work(action.clone()).ok()? {
                        Work::Launch(launch) => {
                            if *deadline.get_or_insert(launch.deadline) != launch.deadline {
                                return None;
                            }
                            NodeWork::Launch(launch)
                        }
                        Work::Copy { to, from } => NodeWork::Copy { to, from },
                        Work::Fill {
                            to,
                            value,
                            element_bytes,
                        } => NodeWork::Fill {
                            to,
                            value,
                            element_bytes,
                        },
                        _ => return None,
                    };
                    ([*last, None], work)
                }
            };
            *last = Some(u32::try_from(nodes.len()).expect("bounded by what is kept"));
            nodes.push(DeviceNode { before, work });
        }
        Some((nodes, deadline.unwrap_or(self.limits.kernel_time)))
    }

    /// The device's own graph for `exec`, or why there is none: then it is launched in pieces.
    pub(super) fn graph_made(
        &mut self,
        id: u32,
        exec: Handle,
        nodes: usize,
        deadline: Duration,
        answer: AnsweredOf<D>,
    ) {
        let named = handles::named(&mut self.graphs.execs, exec);
        let outcome = match (answer, named) {
            (Ok(Answer::Graph(graph)), Ok(named)) => {
                named.own = Some(Own {
                    graph,
                    nodes,
                    deadline,
                });
                Ok(())
            }
            (Err(error), _) if error.sticky => Err(self.failure(id, &error)),
            (answer, _) => {
                if let Err(error) = answer {
                    log::debug!("{exec:?} is launched in pieces: {}", error.text);
                }
                self.graphs.own_nodes -= nodes;
                Ok(())
            }
        };
        self.done(id, outcome.map(|()| GraphInstantiateReply {}.encode()));
    }

    fn make_exec(&mut self, instantiate: &GraphInstantiate) -> Result<Exec<D::Graph>, Refused> {
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
            own: None,
            took: None,
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
        let took = exec.took.filter(|took| *took <= LONGEST_WHOLE);
        let whole = exec.own.as_ref().zip(took).map(|(own, took)| {
            let most = own.deadline.saturating_add(took * TIMES_IN_PIECES);
            (own.graph.clone(), most)
        });
        // All of it or nothing: what has been freed since the capture is noticed before any of it runs.
        for (at, step) in recorded.steps.iter().enumerate() {
            if let Do::Work(action) = &step.what {
                self.check(action).map_err(|failure| Failure {
                    text: format!("step {at} of the graph: {}", failure.text),
                    ..failure
                })?;
            }
        }
        // Launches of a device's own graph wait for each other by themselves.
        let before = last.filter(|last| {
            let apart = last.stream != stream && (whole.is_none() || last.is_recorded);
            apart && self.queue.contains_key(&last.tag)
        });
        if let Some(last) = before {
            if !last.is_recorded {
                self.submit(other(id), last.stream, Work::Record(end))?;
            }
            self.submit(other(id), stream, Work::Wait(end))?;
        }
        let exec = handles::named(&mut self.graphs.execs, handle)?;
        // No other launch is being queued: one whose end is not known has failed before it was there.
        let timed = self
            .graphs
            .timed
            .as_ref()
            .filter(|timed| timed.last.is_some());
        if whole.is_none() && exec.own.is_some() && timed.is_none() {
            self.graphs.timed = Some(Timed {
                exec: handle,
                id,
                last: None,
                ns: 0,
            });
        }
        self.replay = Some(Replay {
            id,
            exec: handle,
            recorded,
            next: 0,
            stream,
            end,
            whole,
            withdrawn: false,
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
        let queued = match replay.whole.clone() {
            Some((graph, most)) => self.queue_whole(&mut replay, graph, most),
            None => self.queue_pieces(&mut replay),
        };
        if let Ok(false) = queued {
            self.replay = Some(replay);
            return None;
        }
        let mut is_recorded = false;
        let ended = queued.and_then(|_| match replay.whole {
            Some(_) => Ok(()),
            None => {
                let record = Work::Record(replay.end);
                let recorded = self.submit(other(id), replay.stream, record);
                is_recorded = recorded.is_ok();
                recorded
            }
        });
        let tag = self.last_tag;
        match &mut self.graphs.timed {
            Some(timed) if timed.id == id && ended.is_ok() => timed.last = Some(tag),
            Some(timed) if timed.id == id => self.graphs.timed = None,
            _ => {}
        }
        if let Ok(exec) = handles::named(&mut self.graphs.execs, replay.exec) {
            exec.last = Some(Last {
                stream: replay.stream,
                tag,
                is_recorded,
            });
        }
        Some((id, ended.map(|()| GraphLaunchReply {}.encode())))
    }

    /// Cancels the kernels of a launch in this stream that are not queued, and tells their number. One that would be
    /// queued as a whole is not done, and counts as one.
    pub(super) fn withdraw_launch(&mut self, stream: Key) -> u32 {
        let Some(replay) = self.replay.as_mut().filter(|it| it.stream == stream) else {
            return 0;
        };
        let id = replay.id;
        // What is left says nothing of how long it takes.
        self.graphs.timed.take_if(|timed| timed.id == id);
        if replay.whole.is_none() {
            return replay.withdraw();
        }
        self.replay = None;
        self.turns.forget();
        self.done(id, Err(Failure::from(&cancelled())));
        1
    }

    /// Queues a launch as a whole; whether it is there.
    fn queue_whole(
        &mut self,
        replay: &mut Replay<D::Graph>,
        graph: D::Graph,
        most: Duration,
    ) -> Result<bool, Refused> {
        if self.queue.len() >= D::MOST_WORK || !self.turns.begin() {
            return Ok(false);
        }
        let what = queue::What::Graph(replay.id, replay.exec);
        let queued = self.submit(what, replay.stream, Work::Graph(graph, most));
        if queued.is_err() {
            self.turns.is_over(0);
        }
        replay.next = replay.recorded.steps.len();
        queued.map(|()| true)
    }

    /// Queues pieces of a launch; whether all are there.
    fn queue_pieces(&mut self, replay: &mut Replay<D::Graph>) -> Result<bool, Refused> {
        let id = replay.id;
        let recorded = Arc::clone(&replay.recorded);
        while let Some(step) = recorded.steps.get(replay.next) {
            // A step of which nothing is queued is looked at again.
            if self.queue.len() >= D::MOST_WORK {
                return Ok(false);
            }
            // Here, so that it is told after what was sent before.
            if replay.withdrawn && step.is_kernel() {
                replay.next += 1;
                self.failed_late(id, Op::GraphLaunch, &cancelled());
                continue;
            }
            let stream = match step.lane {
                0 => replay.stream,
                lane => self.graphs.lanes[lane as usize - 1],
            };
            match &step.what {
                Do::Work(action) => {
                    if !self.turns.begin() {
                        return Ok(false);
                    }
                    let what = queue::What::InTurn(id, Op::GraphLaunch);
                    let work = self.work(action.clone());
                    let queued = work.and_then(|work| self.submit(what, stream, work));
                    if queued.is_err() {
                        self.turns.is_over(0);
                    }
                    queued?;
                }
                Do::Signal(signal) => {
                    let event = self.graphs.signals[*signal as usize];
                    self.submit(other(id), stream, Work::Record(event))?;
                }
                Do::Wait(signal) => {
                    let event = self.graphs.signals[*signal as usize];
                    self.submit(other(id), stream, Work::Wait(event))?;
                }
            }
            replay.next += 1;
        }
        Ok(true)
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
            self.graphs.own_nodes -= exec.own.map_or(0, |own| own.nodes);
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
