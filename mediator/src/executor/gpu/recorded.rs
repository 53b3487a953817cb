//! The recorded steps of a graph, and the memory that they take.

use vgpu_protocol::status::ErrorCode;

use super::action::Action;
use super::{Refused, refused};

/// Nodes of all captures and graphs of a session at most, and bytes of memory that they take.
const MOST_NODES: usize = 1 << 17;
const MOST_BYTES: usize = 64 << 20;

/// Nodes, and the memory that they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Kept {
    nodes: usize,
    bytes: usize,
}

/// A graph: its work in an order in which it can be queued.
#[derive(Debug)]
pub(super) struct Recorded {
    pub(super) steps: Vec<Step>,
    pub(super) lanes: u32,
    pub(super) signals: u32,
    pub(super) nodes: u32,
    pub(super) kept: Kept,
}

/// A piece of a graph.
#[derive(Debug)]
pub(super) struct Step {
    /// 0 is the stream in which the graph is launched.
    pub(super) lane: u32,
    pub(super) what: Do,
}

impl Step {
    pub(super) fn is_kernel(&self) -> bool {
        matches!(self.what, Do::Work(Action::Launch(_)))
    }
}

#[derive(Debug)]
pub(super) enum Do {
    Work(Action),
    Signal(u32),
    Wait(u32),
}

impl Kept {
    /// A node of so many bytes.
    pub(super) fn node(bytes: usize) -> Self {
        // Once as a node and, when its capture ends, once as a step.
        let bytes = bytes + size_of::<Step>();
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
