//! The control socket: what `vgpuctl` and the mediator say to each other.
//!
//! One line of JSON asks, one answers. Both carry the version; fields may be added to version 1,
//! so readers ignore those they do not know. Only root and the mediator's own user are served.

pub mod client;

use serde::{Deserialize, Serialize};

pub use crate::devices::Device;
use crate::usage::{Standing, Usage};
use crate::worker::confinement::Protection;

/// Version of the messages below.
pub const VERSION: u32 = 1;

/// Longest request in bytes.
pub const MAX_REQUEST: usize = 4096;

/// Longest answer in bytes that a client takes.
pub const MAX_RESPONSE: usize = 64 << 20;

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
    /// Read the configuration again.
    Reload,
    /// The figures of [`Status`](Ask::Status), and more, for collectors of metrics.
    Metrics,
    /// End a guest's sessions.
    Kick {
        /// A domid, name or uuid as in the configuration, the name of a secret, `session:N`, `local`,
        /// or what [`Guest::guest`] or [`Session::guest`] says.
        guest: String,
    },
}

/// An answer: exactly one of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// To [`Ask::Status`].
    Status(Box<Status>),
    /// To [`Ask::Metrics`], in the OpenMetrics text format.
    Metrics(String),
    /// To [`Ask::Kick`]: how many sessions are being ended.
    Kicked(usize),
    /// To [`Ask::Reload`], once the configuration is in force.
    Reloaded(Reloaded),
    /// It could not be done.
    Error(Refused),
}

/// A configuration that was read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The file.
    pub file: String,
    /// Settings and rules that differ from before: settings as `limits.weight`, rules as `name:web-1`.
    pub changed: Vec<String>,
    /// Running sessions of guests that the rules deny now. They go on.
    pub denied_sessions: usize,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The problem, in one line.
    pub what: String,
    /// The remedy, in one line.
    pub advice: String,
    /// The exit status for it: 2 for a wrong configuration.
    #[serde(default = "one")]
    pub code: u8,
}

fn one() -> u8 {
    1
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
    /// Endpoints on which it serves guests.
    pub listen: Vec<String>,
    /// The executor that runs their work.
    pub executor: Executor,
    /// The executor that it is configured for: `auto`, `cuda`, `cpu` or `relay:E`; empty from an older mediator.
    #[serde(default)]
    pub executor_choice: String,
    /// Present while that only stands in for what the configuration asks for: seconds until the
    /// mediator looks again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub looks_again_s: Option<u64>,
    /// The machine's GPUs, by NVIDIA's management library; empty where the executor is not a GPU's, and where there
    /// are no figures.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<Gpu>,
    /// Why there are no figures of GPUs though the executor is a GPU's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus_missing: Option<String>,
    /// Limits on guests.
    pub limits: Limits,
    /// Whether guests without a rule are admitted.
    pub allow_all: bool,
    /// Settings that name a device which is not there, each in a line; sessions that are to have it are refused.
    #[serde(default)]
    pub missing_devices: Vec<String>,
    /// Workers that are there before their sessions; absent where none are wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm: Option<Warm>,
    /// Sessions since the start, those that were refused not counted.
    pub sessions_started: u64,
    /// Guests that were turned away since the start.
    pub refused: u64,
    /// Protections of this machine against a worker taken over by its guest, and whether each is
    /// on; empty if workers are not confined.
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
    /// The devices that it has, as a configuration can name them; empty for those of another mediator.
    #[serde(default)]
    pub devices: Vec<Device>,
}

/// One GPU, whoever uses it. A figure that it does not give is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Its number in `nvidia-smi`.
    pub index: u32,
    /// As in `GPU-0a1b2c3d-…`; empty, as its name is, where it does not answer.
    pub uuid: String,
    /// As in `NVIDIA H200`.
    pub name: String,
    /// Bytes of its memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_memory: Option<u64>,
    /// Bytes of its memory in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_used: Option<u64>,
    /// Part of the last moment in which a kernel ran, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy_percent: Option<u32>,
    /// Degrees Celsius.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<u32>,
    /// Milliwatts that it draws.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_mw: Option<u32>,
    /// Milliwatts that it may draw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_limit_mw: Option<u32>,
    /// Errors in its memories that were corrected, since the driver was loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecc_corrected: Option<u64>,
    /// The same that could not be corrected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecc_uncorrected: Option<u64>,
    /// Seconds since this was read.
    pub age_s: u64,
}

/// Workers that are there before their sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warm {
    /// How many there are to be, for all sets of devices together.
    pub wanted: usize,
    /// Those that are there.
    pub workers: Vec<WarmWorker>,
    /// Sessions that were given one since the mediator started.
    pub sessions: u64,
    /// Sessions for which one had to be started, though they could have been given one.
    pub cold_sessions: u64,
    /// Endpoints whose sessions get none.
    pub cold_endpoints: Vec<String>,
}

impl Warm {
    /// How many are ready.
    pub fn ready(&self) -> usize {
        let ready = self.workers.iter().filter(|it| it.state == "ready");
        ready.count()
    }
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmWorker {
    /// The process.
    pub pid: u32,
    /// `starting`, `ready`, or `ending` for one that has failed.
    pub state: String,
    /// The devices that it has opened the first of, as [`Guest::devices`]; absent where that is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<Vec<String>>,
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
    /// The same for programs, as in `uuid:…`, `name:web-1`, `domid:7`, `uid:1000`, `tcp:web-1`, `file:/dir/web-1`: a
    /// VM's outlives its restart.
    #[serde(rename = "guest_id", default)]
    pub id: String,
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
    /// Its part of the device's time beside those of others, once it has wanted the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Thousandths that it has had of the device's time since the mediator started.
    #[serde(default)]
    pub share_permille: u64,
    /// Turns that it has had on the device.
    #[serde(default)]
    pub turns: u64,
    /// Nanoseconds that it has had the device while others wanted it too, by the mediator's own clock.
    #[serde(default)]
    pub contended_ns: u64,
    /// Devices that its running sessions may use, in the order in which the guest counts them: UUIDs, or numbers of
    /// devices that have none. Absent where it has none, or where it may use all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<Vec<String>>,
    /// Holdings and waiting work of its sessions now.
    #[serde(flatten)]
    pub standing: Standing,
    /// Its usage, ended sessions included.
    pub usage: Usage,
}

/// One session that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its number since the mediator started.
    #[serde(rename = "session")]
    pub id: u64,
    /// The session's guest.
    pub guest: String,
    /// As [`Guest::id`].
    #[serde(default)]
    pub guest_id: String,
    /// The worker process.
    pub pid: u32,
    /// Seconds since it began.
    pub age_s: u64,
    /// `offered` (a channel that nobody has taken), `connecting`, `serving` or `ending`.
    pub state: String,
    /// The guest's program, by its own account.
    pub client: Option<String>,
    /// As [`Guest::devices`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<Vec<String>>,
    /// The one that it uses: its UUID, or its number where it has none. Absent where the devices are another mediator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Its holdings and waiting work now.
    #[serde(flatten)]
    pub standing: Standing,
    /// Its usage.
    pub usage: Usage,
    /// Bytes of its worker's memory on GPUs by NVIDIA's management library, what a context takes included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvml_memory: Option<u64>,
    /// Part of its worker's life in which a GPU ran its kernels, in percent, by NVIDIA's accounting where that is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvml_busy_percent: Option<u32>,
    /// Whether `usage` is from now; otherwise the worker has not answered in time.
    pub current: bool,
}
