//! The specification a worker is started with: one argument of JSON, written and read by the same program; and what a
//! worker that waits for a session is told once there is one.

use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vgpu_protocol::op::OpSet;
use vgpu_protocol::status::ErrorCode;

use super::confinement::{self, Needs, Relay, Served};
use crate::devices::{Device, Devices};
use crate::executor::ExecutorChoice;
use crate::policy::{MOST_OBJECTS, Share};
use crate::relay::Route;
use crate::session::{INITIAL_CREDIT, Refusal, Settings, Terms, Timeouts};

/// Lanes that a guest may use: one for each of its threads, and some to spare.
const MAX_LANES: NonZeroU16 = NonZeroU16::new(256).unwrap();

/// Requests that a guest may have under way.
const MAX_REQUESTS: NonZeroU16 = NonZeroU16::new(64).unwrap();

/// Seconds for a guest, where nobody says how many.
const IDLE_TIMEOUT_S: u32 = 3600;
const STALL_TIMEOUT_S: u32 = 30;

/// A worker's connection to its guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    /// By the connected socket that is its standard input.
    Local,
    /// By the bytes of the connected Unix socket that is its standard input.
    Unix,
    /// By the TCP connection that is its standard input, once its client has shown a secret.
    Tcp,
    /// By the vchan that a domain serves.
    Xen {
        /// The guest.
        domid: u16,
        /// Path of the channel's keys below the guest's home in xenstore.
        path: String,
    },
    /// By a vchan that this domain serves, for the mediator in dom0.
    Offer {
        /// Path of the channel's keys below this domain's own home in xenstore.
        path: String,
    },
    /// By two files in a directory; no session, the worker stays.
    File {
        /// Directory of the files, or the guest's directory.
        directory: PathBuf,
        /// The guest whose directory it is.
        guest: Option<String>,
    },
    /// By the files of a session that a guest has made in a directory.
    FileSession {
        /// The directory that is served, or that holds the guest's.
        directory: PathBuf,
        /// The guest whose directory it is.
        guest: Option<String>,
        /// The session's name.
        session: String,
    },
}

impl Carrier {
    /// Whether a worker can be confined before it is known whose session it serves: what it needs is a connected socket,
    /// which it can be given then. Xen's devices have to be opened with rights that such a worker has given up, and over
    /// files its user, its directory and its filter are those of the guest.
    pub fn is_socket(&self) -> bool {
        matches!(self, Self::Local | Self::Unix | Self::Tcp)
    }
}

/// The purpose of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// One guest, who is there.
    Session(Box<Spec>),
    /// A session to come.
    Warm(Box<Warm>),
}

impl Start {
    /// See [`Spec::broker_pid`].
    pub fn broker_pid(&self) -> i32 {
        match self {
            Self::Session(spec) => spec.broker_pid,
            Self::Warm(warm) => warm.broker_pid,
        }
    }

    /// The settings of its confinement.
    pub fn confinement(&self) -> &confinement::Settings {
        match self {
            Self::Session(spec) => &spec.confinement,
            Self::Warm(warm) => &warm.confinement,
        }
    }

    /// Variables of the worker's environment for NVIDIA's driver, which reads them when it is initialised. What the
    /// mediator's own environment says stays where the worker may see all that the mediator sees.
    pub fn driver_environment(&self) -> Vec<(&'static str, String)> {
        let gpus = match self {
            Self::Session(spec) => &spec.gpus,
            Self::Warm(warm) => &warm.gpus,
        };
        // The order in which a configuration counts devices, and nvidia-smi.
        let order = ("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned());
        // By UUID: a number would count what the driver happens to find.
        let visible = gpus.as_ref().map(|gpus| {
            let uuids: Vec<&str> = gpus.iter().map(|gpu| &*gpu.uuid).collect();
            ("CUDA_VISIBLE_DEVICES", uuids.join(","))
        });
        [order].into_iter().chain(visible).collect()
    }
}

/// Configuration of a warm worker, which opens its executor before it has a session. It contains nothing about a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warm {
    /// See [`Spec::broker_pid`].
    pub broker_pid: i32,
    /// See [`Spec::confinement`].
    pub confinement: confinement::Settings,
    /// See [`Spec::executor`].
    pub executor: ExecutorChoice,
    /// See [`Spec::gpus`].
    pub gpus: Option<Vec<Device>>,
    /// The devices that it opens, as in [`Share::devices`].
    pub devices: Option<Devices>,
    /// See [`Spec::verbose`].
    pub verbose: u8,
}

/// The session of a worker that has waited for one: all that a [`Spec`] has of its guest. The connected socket comes
/// with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// See [`Spec::guest`].
    pub guest: String,
    /// One that [is a socket](Carrier::is_socket).
    pub carrier: Carrier,
    /// See [`Spec::reason`].
    pub reason: String,
    /// See [`Spec::epoch`].
    pub epoch: u64,
    /// See [`Spec::connect_timeout_s`].
    pub connect_timeout_s: u32,
    /// See [`Spec::hello_timeout_s`].
    pub hello_timeout_s: u32,
    /// See [`Spec::share`].
    pub share: Share,
}

impl Warm {
    /// Resources that it must be able to reach, whatever its session is.
    pub(super) fn needs(&self) -> Needs {
        Needs {
            cuda: self.executor == ExecutorChoice::Cuda,
            gpus: places(self.gpus.as_deref()),
            ..Needs::default()
        }
    }

    /// The specification of a worker that would have been started for this session.
    ///
    /// # Errors
    /// No worker that waits can serve it, in words.
    pub(super) fn with(self, session: Assignment) -> Result<Spec, String> {
        if !session.carrier.is_socket() {
            return Err("a worker that waits serves sockets only".to_owned());
        }
        Ok(Spec {
            broker_pid: self.broker_pid,
            guest: session.guest,
            carrier: session.carrier,
            confinement: self.confinement,
            executor: self.executor,
            relay_secret: None,
            reason: session.reason,
            epoch: session.epoch,
            connect_timeout_s: session.connect_timeout_s,
            hello_timeout_s: session.hello_timeout_s,
            // Of files alone.
            file_silence_s: 0,
            share: session.share,
            gpus: self.gpus,
            refusal: None,
            verbose: self.verbose,
        })
    }
}

/// Everything a worker needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The broker; a worker never outlives it.
    pub broker_pid: i32,
    /// For log lines.
    pub guest: String,
    /// The connection to the guest.
    pub carrier: Carrier,
    /// Settings of the worker's confinement.
    pub confinement: confinement::Settings,
    /// Never `auto`: the broker has decided.
    pub executor: ExecutorChoice,
    /// The file with this mediator's secret, for a relay over TCP.
    pub relay_secret: Option<PathBuf>,
    /// Why the broker took this executor.
    pub reason: String,
    /// See [`Settings::epoch`].
    pub epoch: u64,
    /// Seconds to bring the channel up.
    pub connect_timeout_s: u32,
    /// See [`Timeouts::hello`].
    pub hello_timeout_s: u32,
    /// Seconds without a sign of life over files.
    pub file_silence_s: u32,
    /// Limits of the session.
    pub share: Share,
    /// The GPUs that its process sees, in the order in which the driver is to number them; `None`: all.
    #[serde(default)]
    pub gpus: Option<Vec<Device>>,
    /// Turn the guest away with this reason.
    pub refusal: Option<Turned>,
    /// How often `-v` was given.
    pub verbose: u8,
}

/// Why a guest is turned away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Turned {
    /// Policy forbids it.
    Denied(String),
    /// No capacity now.
    Busy(String),
}

impl Spec {
    /// Files, sockets and devices that the worker has to reach.
    pub(super) fn needs(&mut self) -> Needs {
        let name = |text: &String| text.parse().ok();
        let guest_of = |guest: &Option<String>| guest.as_ref().and_then(|text| text.parse().ok());
        // Once the root directory is another, a relative path leads nowhere.
        let absolute = |directory: &mut PathBuf| {
            if let Ok(path) = std::path::absolute(&*directory) {
                *directory = path;
            }
            directory.clone()
        };
        let served = match &mut self.carrier {
            Carrier::File { directory, guest } => Some(Served {
                directory: absolute(directory),
                guest: guest_of(guest),
                session: None,
            }),
            Carrier::FileSession {
                directory,
                guest,
                session,
            } => Some(Served {
                directory: absolute(directory),
                guest: guest_of(guest),
                session: name(session),
            }),
            _ => None,
        };
        Needs {
            served,
            // A rejected guest gets no device.
            cuda: self.executor == ExecutorChoice::Cuda && self.refusal.is_none(),
            gpus: places(self.gpus.as_deref()),
            xen: matches!(self.carrier, Carrier::Xen { .. } | Carrier::Offer { .. }),
            relay: self.route().map(|route| Relay {
                endpoint: route.endpoint,
                secret: route.secret,
            }),
            compiler: false,
        }
    }

    /// The part of it that a warm worker receives.
    pub fn assignment(&self) -> Assignment {
        Assignment {
            guest: self.guest.clone(),
            carrier: self.carrier.clone(),
            reason: self.reason.clone(),
            epoch: self.epoch,
            connect_timeout_s: self.connect_timeout_s,
            hello_timeout_s: self.hello_timeout_s,
            share: self.share,
        }
    }

    /// Tells mediators apart: the same for all sessions of one.
    pub fn mediator(&self) -> u64 {
        self.epoch >> 32
    }

    /// [`file_silence_s`](Self::file_silence_s) as a duration.
    pub fn file_silence(&self) -> Duration {
        Duration::from_secs(self.file_silence_s.into())
    }

    /// [`connect_timeout_s`](Self::connect_timeout_s) as a duration.
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_secs(self.connect_timeout_s.into())
    }

    /// Operations that the guest may request.
    pub fn operations(&self) -> OpSet {
        self.share
            .operations
            .map_or(OpSet::ALL, |allowed| allowed.0)
    }

    /// The way to the mediator that runs the work, if that is not this one.
    pub fn route(&self) -> Option<Route> {
        match &self.executor {
            ExecutorChoice::Relay(endpoint) => Some(Route {
                endpoint: endpoint.clone(),
                secret: self.relay_secret.clone(),
            }),
            _ => None,
        }
    }

    /// The settings of the session.
    pub fn settings(&self) -> Settings {
        let seconds = |s: u32| Duration::from_secs(s.into());
        let refusal = self.refusal.clone().map(|turned| match turned {
            Turned::Denied(text) => Refusal {
                code: ErrorCode::Denied,
                text,
            },
            Turned::Busy(text) => Refusal {
                code: ErrorCode::Busy,
                text,
            },
        });
        let operations = self.operations();
        Settings {
            operations,
            terms: Terms {
                max_lanes: MAX_LANES,
                max_requests: MAX_REQUESTS,
                max_handles: self.share.max_objects.unwrap_or(MOST_OBJECTS),
                initial_credit: INITIAL_CREDIT,
                features: operations.features(),
            },
            timeouts: Timeouts {
                hello: seconds(self.hello_timeout_s),
                idle: seconds(self.share.idle_timeout_s.unwrap_or(IDLE_TIMEOUT_S)),
                stall: seconds(self.share.stall_timeout_s.unwrap_or(STALL_TIMEOUT_S)),
                request: self.share.request_timeout_s.map(seconds),
            },
            epoch: self.epoch,
            reason: Some(self.reason.clone()),
            refusal,
        }
    }
}

/// The places of these GPUs on the PCI bus.
fn places(gpus: Option<&[Device]>) -> Option<Vec<String>> {
    gpus.map(|gpus| gpus.iter().map(|gpu| gpu.pci.clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::confinement::Confine;

    fn spec(carrier: Carrier) -> Spec {
        Spec {
            broker_pid: 7,
            guest: "local uid 0".into(),
            carrier,
            confinement: confinement::Settings {
                confine: Confine::Required,
                user: Some(2_080_000_000),
            },
            executor: ExecutorChoice::Cuda,
            relay_secret: None,
            reason: "asked for".into(),
            epoch: 1 << 32 | 3,
            connect_timeout_s: 10,
            hello_timeout_s: 11,
            file_silence_s: 0,
            share: Share {
                memory_mib: Some(7),
                weight: Some(3),
                ..Share::default()
            },
            gpus: None,
            refusal: None,
            verbose: 1,
        }
    }

    fn warm(spec: &Spec) -> Warm {
        Warm {
            broker_pid: spec.broker_pid,
            confinement: spec.confinement.clone(),
            executor: spec.executor.clone(),
            gpus: spec.gpus.clone(),
            devices: spec.share.devices,
            verbose: spec.verbose,
        }
    }

    #[test]
    fn a_worker_that_has_waited_knows_what_one_knows_that_was_started_for_its_session() {
        for carrier in [Carrier::Local, Carrier::Unix, Carrier::Tcp] {
            let started = spec(carrier);
            let told = warm(&started).with(started.assignment());
            assert_eq!(told, Ok(started));
        }
    }

    #[test]
    fn a_worker_that_has_waited_takes_only_what_it_is_confined_for() {
        let xen = Carrier::Xen {
            domid: 7,
            path: "data/vgpu/0".into(),
        };
        let offer = Carrier::Offer { path: "x".into() };
        let file = Carrier::File {
            directory: "/".into(),
            guest: None,
        };
        let session = Carrier::FileSession {
            directory: "/".into(),
            guest: None,
            session: "0".into(),
        };
        for carrier in [xen, offer, file, session] {
            let other = spec(carrier);
            let refused = warm(&other).with(other.assignment());
            assert!(refused.is_err(), "{other:?}");
        }
    }

    #[test]
    fn what_it_needs_before_does_not_depend_on_the_session() {
        let started = spec(Carrier::Local);
        assert_eq!(warm(&started).needs(), started.clone().needs());
    }
}
