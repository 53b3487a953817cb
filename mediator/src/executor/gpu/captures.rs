//! Captures: streams whose work is recorded for a graph.
//!
//! A capture begins in one stream. Another stream joins it when it waits for an event that was recorded in it, and has
//! a branch of its own from there on. Nothing is asked of the device: what is recorded has been checked, and is checked
//! again when the graph is launched. Every node has at most two others before it, so that the memory of a capture is
//! that of its nodes, which are counted.

use std::collections::{BTreeMap, HashMap};

use vgpu_protocol::op::field::StreamRef;
use vgpu_protocol::op::{
    Body, StreamBeginCapture, StreamBeginCaptureReply, StreamCaptureInfo, StreamCaptureInfoReply,
};
use vgpu_protocol::session::server::Failure;

use super::super::cuda_result::{
    ILLEGAL_STATE, STREAM_CAPTURE_IMPLICIT, STREAM_CAPTURE_INVALIDATED, STREAM_CAPTURE_ISOLATION,
    STREAM_CAPTURE_MERGE, STREAM_CAPTURE_UNMATCHED, STREAM_CAPTURE_UNSUPPORTED,
    STREAM_CAPTURE_WRONG_THREAD,
};
use super::action::Action;
use super::device::{Device, DeviceError, Key};
use super::recorded::Kept;
use super::{Gpu, Refused};

/// `CU_STREAM_CAPTURE_MODE_GLOBAL` and `CU_STREAM_CAPTURE_MODE_RELAXED`.
const GLOBAL: u8 = 0;
const RELAXED: u8 = 2;

/// The captures of a session.
#[derive(Debug, Default)]
pub(super) struct Captures {
    open: BTreeMap<u64, Capture>,
    members: HashMap<Key, Member>,
    last: u64,
}

/// One capture.
#[derive(Debug)]
pub(super) struct Capture {
    /// Where it began, and where it ends.
    origin: Key,
    lane: u16,
    mode: u8,
    pub(super) nodes: Vec<Node>,
    /// The last node of each branch; the first is the origin's.
    pub(super) branches: Vec<u32>,
    /// One of its streams and the default stream wait for each other.
    is_blocking: bool,
    is_valid: bool,
    pub(super) kept: Kept,
}

/// A node of a capture; those before it have lower numbers.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) branch: u32,
    /// The one before it in its branch.
    pub(super) before: Option<u32>,
    pub(super) what: What,
}

impl Node {
    /// The memory of one, with so many bytes beside it.
    fn kept(spilled: usize) -> Kept {
        Kept::node(size_of::<Self>() + spilled)
    }
}

#[derive(Debug)]
pub(super) enum What {
    /// The first.
    Begin,
    /// This node of another branch is before it, too.
    Join(u32),
    Work(Action),
}

/// A stream's part in a capture.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    capture: u64,
    branch: u32,
}

/// A node of a capture, at which an event was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) capture: u64,
    node: u32,
}

/// Where a stream's work goes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// To the device.
    Stream(Key),
    /// Into a capture.
    Capture(Member),
}

pub(super) fn error(code: i32, text: impl Into<String>) -> Refused {
    Failure::from(&DeviceError::new(code, text))
}

impl Captures {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Takes a capture out; its streams are ordinary ones from here on.
    fn remove(&mut self, number: u64) -> Option<Capture> {
        self.members.retain(|_, member| member.capture != number);
        self.open.remove(&number)
    }
}

impl<D: Device> Gpu<D> {
    pub(super) fn begin_capture(
        &mut self,
        lane: u16,
        begin: &StreamBeginCapture,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let stream = self.streams.named(begin.stream)?;
        if stream.key == 0 {
            let text = "the default stream cannot be captured";
            return Err(error(STREAM_CAPTURE_UNSUPPORTED, text));
        }
        if self.captures.members.contains_key(&stream.key) {
            return Err(error(ILLEGAL_STATE, "the stream is capturing already"));
        }
        self.graphs.kept.add(Node::kept(0))?;
        self.captures.last += 1;
        let number = self.captures.last;
        let capture = Capture {
            origin: stream.key,
            lane,
            mode: begin.mode,
            nodes: vec![Node {
                branch: 0,
                before: None,
                what: What::Begin,
            }],
            branches: vec![0],
            is_blocking: stream.is_blocking,
            is_valid: true,
            kept: Node::kept(0),
        };
        self.captures.open.insert(number, capture);
        let member = Member {
            capture: number,
            branch: 0,
        };
        self.captures.members.insert(stream.key, member);
        Ok(Some(StreamBeginCaptureReply {}.encode()))
    }

    pub(super) fn capture_info(
        &mut self,
        info: &StreamCaptureInfo,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let stream = self.streams.named(info.stream)?;
        let member = self.captures.members.get(&stream.key);
        if stream.key == 0 && self.captures.open.values().any(|open| open.is_blocking) {
            let text = "a stream that waits for the default stream is capturing";
            return Err(error(STREAM_CAPTURE_IMPLICIT, text));
        }
        let capture = member.map_or(0, |member| member.capture);
        let open = self.captures.open.get(&capture);
        let status = open.map_or(0, |open| if open.is_valid { 1 } else { 2 });
        Ok(Some(StreamCaptureInfoReply { status, capture }.encode()))
    }

    /// Ends the capture that was begun in a stream.
    pub(super) fn end_capture(&mut self, lane: u16, stream: StreamRef) -> Result<Capture, Refused> {
        let stream = self.streams.named(stream)?;
        let Some(member) = self.captures.members.get(&stream.key).copied() else {
            return Err(error(ILLEGAL_STATE, "the stream is not capturing"));
        };
        let number = member.capture;
        if let Some(open) = self.captures.open.get(&number) {
            if open.origin != stream.key {
                self.invalidate(number);
                let text = "the capture was begun in another stream";
                return Err(error(STREAM_CAPTURE_UNMATCHED, text));
            }
            if open.mode != RELAXED && open.lane != lane {
                let text = "the capture was begun by another thread";
                return Err(error(STREAM_CAPTURE_WRONG_THREAD, text));
            }
        }
        match self.captures.remove(number) {
            Some(capture) if capture.is_valid => Ok(capture),
            _ => Err(invalidated()),
        }
    }

    /// Where work goes that is sent to a stream.
    pub(super) fn place(&mut self, stream: StreamRef) -> Result<Place, Refused> {
        let key = self.streams.named(stream)?.key;
        if self.captures.is_empty() {
            return Ok(Place::Stream(key));
        }
        if let Some(member) = self.captures.members.get(&key).copied() {
            self.capture_of(member)?;
            return Ok(Place::Capture(member));
        }
        if key == 0 && self.invalidate_if(|open| open.is_blocking) {
            let text = "work of the default stream, for which a stream that is capturing waits";
            return Err(error(STREAM_CAPTURE_IMPLICIT, text));
        }
        Ok(Place::Stream(key))
    }

    /// The stream of work that cannot be captured.
    pub(super) fn live(&mut self, stream: StreamRef) -> Result<Key, Refused> {
        match self.place(stream)? {
            Place::Stream(key) => Ok(key),
            Place::Capture(member) => {
                self.invalidate(member.capture);
                let text = "the stream is capturing, and this cannot be captured";
                Err(error(STREAM_CAPTURE_UNSUPPORTED, text))
            }
        }
    }

    /// Nothing that waits for the whole device may happen while a stream captures.
    pub(super) fn check_no_capture(&mut self) -> Result<(), Refused> {
        match self.invalidate_if(|_| true) {
            true => Err(error(
                STREAM_CAPTURE_UNSUPPORTED,
                "a stream is capturing, and this waits for all of them",
            )),
            false => Ok(()),
        }
    }

    /// Whether a thread may make a call that CUDA counts as unsafe during a capture.
    pub(super) fn check_mode(&mut self, lane: u16) -> Result<(), Refused> {
        let forbids =
            |open: &Capture| open.mode == GLOBAL || (open.mode != RELAXED && open.lane == lane);
        match self.invalidate_if(forbids) {
            true => Err(error(
                STREAM_CAPTURE_UNSUPPORTED,
                "the mode of a capture does not allow this meanwhile",
            )),
            false => Ok(()),
        }
    }

    fn capture_of(&mut self, member: Member) -> Result<&mut Capture, Refused> {
        let open = self.captures.open.get_mut(&member.capture);
        open.filter(|open| open.is_valid).ok_or_else(invalidated)
    }

    /// Records work; a capture that misses some is invalid.
    pub(super) fn capture(
        &mut self,
        member: Member,
        action: Result<Action, Refused>,
    ) -> Result<(), Refused> {
        let recorded = action.and_then(|action| {
            self.check(&action)?;
            self.add_node(member, What::Work(action))
        });
        if recorded.is_err() {
            self.invalidate(member.capture);
        }
        recorded
    }

    fn add_node(&mut self, member: Member, what: What) -> Result<(), Refused> {
        self.capture_of(member)?;
        let cost = Node::kept(match &what {
            What::Work(action) => action.spilled(),
            What::Begin | What::Join(_) => 0,
        });
        self.graphs.kept.add(cost)?;
        let capture = self.capture_of(member)?;
        capture.kept.join(cost);
        let branch = member.branch;
        let last = &mut capture.branches[branch as usize];
        // A branch that has just begun has none before it.
        let before = (*last != u32::MAX).then_some(*last);
        *last = u32::try_from(capture.nodes.len()).expect("bounded by what is kept");
        capture.nodes.push(Node {
            branch,
            before,
            what,
        });
        Ok(())
    }

    /// Where a stream's capture is now.
    pub(super) fn point(&mut self, member: Member) -> Result<Point, Refused> {
        let capture = self.capture_of(member)?;
        Ok(Point {
            capture: member.capture,
            node: capture.branches[member.branch as usize],
        })
    }

    /// A stream that captures waits for an event that was recorded in a capture, or was not.
    pub(super) fn capture_wait(
        &mut self,
        member: Member,
        event: Option<Point>,
    ) -> Result<(), Refused> {
        let (code, text) = match event {
            Some(point) if point.capture == member.capture => {
                let joined = self.add_node(member, What::Join(point.node));
                if joined.is_err() {
                    self.invalidate(member.capture);
                }
                return joined;
            }
            Some(point) if self.captures.open.contains_key(&point.capture) => {
                self.invalidate(point.capture);
                (STREAM_CAPTURE_MERGE, "the event is of another capture")
            }
            _ => {
                let text = "the event was not recorded in this capture";
                (STREAM_CAPTURE_ISOLATION, text)
            }
        };
        self.invalidate(member.capture);
        Err(error(code, text))
    }

    /// A stream joins a capture, by waiting for an event that was recorded there.
    pub(super) fn join_capture(&mut self, stream: StreamRef, point: Point) -> Result<(), Refused> {
        let stream = self.streams.named(stream)?;
        let number = point.capture;
        let Some(open) = self.captures.open.get_mut(&number) else {
            return Err(super::streams::captured_event());
        };
        if !open.is_valid {
            return Err(invalidated());
        }
        if stream.key == 0 {
            self.invalidate(number);
            let text = "the default stream cannot be captured";
            return Err(error(STREAM_CAPTURE_UNSUPPORTED, text));
        }
        let branch = u32::try_from(open.branches.len()).expect("bounded by what is kept");
        open.branches.push(u32::MAX);
        open.is_blocking |= stream.is_blocking;
        let member = Member {
            capture: number,
            branch,
        };
        let joined = self.add_node(member, What::Join(point.node));
        match joined {
            Ok(()) => drop(self.captures.members.insert(stream.key, member)),
            Err(_) => self.invalidate(number),
        }
        joined
    }

    /// A stream goes. A capture that was begun in it can never end.
    pub(super) fn leave_capture(&mut self, key: Key) {
        let Some(member) = self.captures.members.remove(&key) else {
            return;
        };
        let is_origin = |open: &Capture| open.origin == key;
        if (self.captures.open.get(&member.capture)).is_some_and(is_origin)
            && let Some(capture) = self.captures.remove(member.capture)
        {
            self.graphs.kept.remove(capture.kept);
        }
    }

    /// Makes a capture invalid; nothing that it has recorded is of use any more.
    pub(super) fn invalidate(&mut self, number: u64) {
        if let Some(open) = self.captures.open.get_mut(&number) {
            open.is_valid = false;
            open.nodes = Vec::new();
            self.graphs.kept.remove(std::mem::take(&mut open.kept));
        }
    }

    /// Makes those captures invalid; says whether there were any.
    fn invalidate_if(&mut self, which: impl Fn(&Capture) -> bool) -> bool {
        let open = self.captures.open.iter();
        let numbers: Vec<u64> = open
            .filter(|(_, open)| which(open))
            .map(|(number, _)| *number)
            .collect();
        for number in &numbers {
            self.invalidate(*number);
        }
        !numbers.is_empty()
    }
}

fn invalidated() -> Refused {
    let text = "an earlier error has made the capture invalid";
    error(STREAM_CAPTURE_INVALIDATED, text)
}
