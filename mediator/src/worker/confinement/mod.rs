//! Confinement of a worker before it reads the first byte of its guest, so that taking it over
//! gains little: [`enclose`], then [`Enclosure::seal`].
//!
//! | file | what it takes |
//! |---|---|
//! | `descriptors` | what was inherited and is not its own; core files |
//! | `namespaces` | the network, other processes' shared memory |
//! | `gpus` | of the GPUs' device files those that are not its guest's |
//! | `root` | files: it sees a directory with what its driver needs, and nothing else |
//! | `identity` | the user, groups and capabilities |
//! | `system_calls` | what is left of the kernel, by a seccomp filter |
//! | `trial` | a process that tries all of it and says what works here |
//!
//! A worker that needs the devices of Xen to open its channel has them between the two steps; all others
//! take both at once, while they have one thread. Whatever fails is named; whether the worker goes on
//! without is the administrator's decision ([`Confine`]).

mod descriptors;
mod gpus;
mod identity;
mod namespaces;
mod root;
mod system_calls;
pub mod trial;

use std::fs;
use std::io;
use std::path::PathBuf;

use nix::unistd::{Gid, Uid, geteuid};
use serde::{Deserialize, Serialize};
use vgpu_file_transport::directory::owner;
use vgpu_file_transport::{GuestName, SessionName};
use vgpu_transport::endpoint::Endpoint;

pub(crate) use descriptors::close_all_but;
pub(super) use descriptors::take_inherited;
use identity::Identity;

/// Reaction if a worker cannot be confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confine {
    /// It does not serve.
    Required,
    /// It serves with what works.
    BestEffort,
    /// It is not confined but for what every process of an ordinary user could do to it.
    Off,
}

/// Settings of a worker's confinement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Reaction if that fails.
    pub confine: Confine,
    /// The user and group that it becomes; none where the mediator itself is an ordinary user's.
    pub user: Option<u32>,
}

/// Files, sockets and devices that a worker must still reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// The directory of `file:` that it works in.
    pub served: Option<Served>,
    /// NVIDIA's driver.
    pub cuda: bool,
    /// GPUs that it may use, by PCI address, as in `0000:3b:00.0`; `None`: all.
    pub gpus: Option<Vec<String>>,
    /// Xen's devices, until it is sealed.
    pub xen: bool,
    /// Another mediator, at any time.
    pub relay: Option<Relay>,
    /// It is no worker but a compiler: it needs memory and its one socket, and no file at all.
    pub compiler: bool,
}

/// A directory of `file:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// The directory that the administrator has named.
    pub directory: PathBuf,
    /// The guest whose directory it is.
    pub guest: Option<GuestName>,
    /// The session in there, if it is one.
    pub session: Option<SessionName>,
}

impl Served {
    fn owner(&self) -> Option<(Uid, Gid)> {
        owner(&self.directory, self.guest.as_ref(), self.session)
    }
}

/// The other mediator of a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    /// Its endpoint.
    pub endpoint: Endpoint,
    /// The file with this mediator's secret.
    pub secret: Option<PathBuf>,
}

/// Name of the protection that is the seccomp filter.
pub const SYSTEM_CALLS: &str = "system calls";

/// One protection, and whether it is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// Its name, in a word or two.
    pub name: String,
    /// Whether it works.
    pub on: bool,
    /// The extent of the protection, or the reason for its absence; may be empty.
    pub note: String,
}

/// A worker that sees no more of the system than it needs, and has not given up all rights yet.
#[derive(Debug)]
#[must_use = "until it is sealed, a worker keeps its rights"]
pub struct Enclosure {
    settings: Settings,
    needs: Needs,
    identity: Identity,
    protections: Protections,
}

/// Takes the system's files, the network and other processes' memory from this process, which has one
/// thread, and every capability that it could get anew.
///
/// # Errors
/// A protection that is required and does not work here, in words.
pub fn enclose(settings: Settings, needs: Needs) -> Result<Enclosure, String> {
    let mut protections = Protections::new(settings.confine);
    // Found before the directory may be out of sight.
    let identity = Identity::of(&settings, &needs);
    if settings.confine != Confine::Off {
        let threads = fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
        if threads > 1 {
            return Err(format!("it has {threads} threads already"));
        }
        let namespaces = namespaces::leave(&needs);
        let in_own_namespaces = namespaces.is_ok();
        protections.note("network", namespaces.map(|note| note.to_owned()))?;
        let files = match in_own_namespaces {
            true => root::change(&needs).map(|()| String::new()),
            false => Err("it has no mount namespace of its own".to_owned()),
        };
        protections.note("files", files)?;
        let gainable = identity::drop_bounding_set().map(|()| String::new());
        protections.note("capabilities to gain", gainable)?;
    }
    Ok(Enclosure {
        settings,
        needs,
        identity,
        protections,
    })
}

impl Enclosure {
    /// Gives up every right that is left. Has to be called before the guest's first byte is read.
    ///
    /// # Errors
    /// As [`enclose`].
    pub fn seal(mut self) -> Result<Vec<Protection>, String> {
        if self.settings.confine == Confine::Off {
            return Ok(Vec::new());
        }
        // Only where it sees nothing but the directory.
        let of_a_directory = geteuid().is_root()
            && self.protections.has("files")
            && matches!(&self.needs.served, Some(served) if served.session.is_none());
        if of_a_directory {
            identity::keep_capabilities()?;
        }
        let user = self.identity.take();
        self.protections.note("user", user)?;
        let capabilities = identity::drop_capabilities(of_a_directory);
        self.protections.note("capabilities", capabilities)?;
        let calls = system_calls::restrict(&self.needs);
        self.protections
            .note(SYSTEM_CALLS, calls.map(|()| String::new()))?;
        Ok(self.protections.list)
    }
}

/// Protections tried so far.
#[derive(Debug)]
struct Protections {
    required: bool,
    list: Vec<Protection>,
}

impl Protections {
    fn new(confine: Confine) -> Self {
        Self {
            required: confine == Confine::Required,
            list: Vec::new(),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.list.iter().any(|it| it.name == name && it.on)
    }

    fn note(&mut self, name: &str, outcome: Result<String, String>) -> Result<(), String> {
        let (on, note) = match outcome {
            Ok(note) => (true, note),
            Err(why) if self.required => return Err(format!("{name}: {why}")),
            Err(why) => (false, why),
        };
        self.list.push(Protection {
            name: name.to_owned(),
            on,
            note,
        });
        Ok(())
    }
}

/// Puts in front of an error what was tried.
fn tried<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {}", error.into())
}
