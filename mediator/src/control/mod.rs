//! The control socket: what `vgpuctl` and the mediator say to each other.
//!
//! One line of JSON asks, one answers. Both carry the version; fields may be added to version 1,
//! so readers ignore those they do not know. Only root and the mediator's own user are served.

pub mod client;

use serde::{Deserialize, Serialize};

use crate::usage::{Standing, Usage};
use crate::worker::confinement::Protection;

/// Version of the messages below.
pub const VERSION: u32 = 1;

/// Longest request in bytes.
pub const MAX_REQUEST: usize = 4096;

/// Longest answer in bytes that a client takes.
pub const MAX_RESPONSE: usize = 4 << 20;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub v: u32,
    /// The question.
    #[serde(flatten)]
    pub ask: Ask,
}

/// The questions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Ask {
    /// Sessions, guests and usage.
    Status,
    /// End a guest's sessions.
    Kick {
        /// A domid, name or uuid as in the configuration, the name of a secret, `session:N`, `local`,
        /// or what [`Guest::guest`] or [`Session::guest`] says.
        guest: String,
    },
}

/// An answer: exactly one of the three.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// To [`Ask::Status`].
    Status(Box<Status>),
    /// To [`Ask::Kick`]: how many sessions are being ended.
    Kicked(usize),
    /// It could not be done.
    Error(Refused),
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The problem, in one line.
    pub what: String,
    /// The remedy, in one line.
    pub advice: String,
}

/// An answer with its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// [`VERSION`].
    pub v: u32,
    /// The answer.
    #[serde(flatten)]
    pub answer: Answer,
}

/// The mediator as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The mediator's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Whether it is about to stop.
    pub stopping: bool,
    /// Where it serves guests.
    pub listen: Vec<String>,
    /// The executor that runs their work.
    pub executor: Executor,
    /// Present while that only stands in for what the configuration asks for: seconds until the
    /// mediator looks again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub looks_again_s: Option<u64>,
    /// Limits on guests.
    pub limits: Limits,
    /// Whether guests without a rule are admitted.
    pub allow_all: bool,
    /// Sessions since the start, those that were refused not counted.
    pub sessions_started: u64,
    /// Guests that were turned away since the start.
    pub refused: u64,
    /// What protects this machine from a worker that its guest has taken over, and whether it is on;
    /// empty where workers are not confined.
    #[serde(default)]
    pub protections: Vec<Protection>,
    /// Usage of all sessions together, ended ones included.
    pub usage: Usage,
    /// Guests that have used the mediator, or tried to.
    pub guests: Vec<Guest>,
    /// Sessions that run.
    pub sessions: Vec<Session>,
}

/// The executor that the mediator offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executor {
    /// `cuda` or `cpu`.
    pub kind: String,
    /// The device's name.
    pub device: String,
    /// Its memory in bytes.
    pub total_memory: u64,
    /// The driver's version, if there is one.
    pub driver: String,
    /// Why this executor.
    pub reason: String,
}

/// Limits on guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Sessions at once, of all guests together.
    pub max_sessions: u32,
    /// Sessions at once of one guest.
    pub max_sessions_per_guest: u32,
}

/// One guest's account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// As in `guest 7 (web-1)`, `local uid 1000` or `tcp web-1`.
    pub guest: String,
    /// Sessions that run.
    pub sessions: usize,
    /// Sessions since the mediator started.
    pub sessions_started: u64,
    /// How often it was turned away.
    pub refused: u64,
    /// Sessions that were ended by force: by an administrator, or because their worker misbehaved, hung
    /// or crashed. Kernels that were ended at their deadline are in `usage`.
    #[serde(default)]
    pub sessions_killed: u64,
    /// What its sessions hold and wait for now.
    #[serde(flatten)]
    pub standing: Standing,
    /// Its usage, ended sessions included.
    pub usage: Usage,
}

/// One session that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its number since the mediator started.
    pub id: u64,
    /// Whose it is.
    pub guest: String,
    /// The worker process.
    pub pid: u32,
    /// Seconds since it began.
    pub age_s: u64,
    /// `offered` (a channel that nobody has taken), `connecting`, `serving` or `ending`.
    pub state: String,
    /// The guest's program, by its own account.
    pub client: Option<String>,
    /// What it holds and waits for now.
    #[serde(flatten)]
    pub standing: Standing,
    /// Its usage.
    pub usage: Usage,
    /// Whether `usage` is from now; otherwise the worker has not answered in time.
    pub current: bool,
}
