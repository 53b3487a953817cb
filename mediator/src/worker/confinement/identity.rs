//! A worker's identity: a user of its own, and no capability.

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, geteuid, getppid, setgroups, setresgid, setresuid};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities,
};

use super::{Needs, Settings, tried};

/// Threads and processes of a user who has nothing but one worker; CUDA starts a few dozen.
const MOST_THREADS: u64 = 1024;

/// User and capabilities of a worker.
#[derive(Debug)]
pub(super) enum Identity {
    /// It is an ordinary user's already.
    Own,
    /// It stays root, without any of root's capabilities, for this reason.
    Root(&'static str),
    /// Somebody who has nothing but this worker.
    Alone(u32),
    /// The owner of the directory that it works in.
    Owner(Uid, Gid),
}

impl Identity {
    pub(super) fn of(settings: &Settings, needs: &Needs) -> Self {
        let (true, Some(user)) = (geteuid().is_root(), settings.user) else {
            return Self::Own;
        };
        if needs.relay.is_some() {
            return Self::Root("root, as the other mediator may ask for");
        }
        match &needs.served {
            None => Self::Alone(user),
            Some(served) => match served.owner() {
                Some((owner, _)) if owner.is_root() => Self::Root("root, who owns the directory"),
                Some((owner, group)) => Self::Owner(owner, group),
                // It cannot be served then, which is said later.
                None => Self::Alone(user),
            },
        }
    }

    /// Becomes it, in all threads.
    pub(super) fn take(&self) -> Result<String, String> {
        let (user, group) = match self {
            Self::Own => return Err(format!("it keeps user {}, who is not root", geteuid())),
            Self::Root(note) => {
                setgroups(&[]).map_err(tried("setgroups"))?;
                return Ok((*note).to_owned());
            }
            Self::Alone(user) => (Uid::from_raw(*user), Gid::from_raw(*user)),
            Self::Owner(user, group) => (*user, *group),
        };
        let parent = getppid();
        setgroups(&[]).map_err(tried("setgroups"))?;
        setresgid(group, group, group).map_err(tried("setresgid"))?;
        setresuid(user, user, user).map_err(tried("setresuid"))?;
        // The kernel forgets it with the change of the user.
        prctl::set_pdeathsig(Signal::SIGKILL).map_err(tried("pdeathsig"))?;
        if getppid() != parent {
            return Err("the broker is gone".to_owned());
        }
        if let Self::Alone(_) = self {
            // A small machine allows fewer, and nobody but root more.
            let limit = Resource::RLIMIT_NPROC;
            let (_, hard) = getrlimit(limit).map_err(tried("limit of threads"))?;
            let most = hard.min(MOST_THREADS);
            setrlimit(limit, most, most).map_err(tried("limit of threads"))?;
        }
        Ok(user.to_string())
    }
}

/// Leaves no capability that this process could gain. Those that it has stay until
/// [`drop_capabilities`].
pub(super) fn drop_bounding_set() -> Result<(), String> {
    for bit in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            Ok(()) => {}
            // Past the last that the kernel knows.
            Err(Errno::INVAL) => break,
            // Of an ordinary user, who can gain none since it gains no privileges.
            Err(Errno::PERM) if !geteuid().is_root() => break,
            Err(error) => return Err(format!("bounding set: {error}")),
        }
    }
    clear_ambient_capability_set().map_err(tried("ambient set"))
}

/// Of root's capabilities the one that the worker of a directory keeps, which looks for the sessions of all
/// users there: to look into what is not its own. It sees no files but those.
const IN_A_DIRECTORY: CapabilitySet = CapabilitySet::DAC_OVERRIDE;

/// Keeps the capabilities over a change of the user, until [`drop_capabilities`].
pub(super) fn keep_capabilities() -> Result<(), String> {
    set_keep_capabilities(true).map_err(tried("keeping capabilities"))
}

/// Leaves no capability but that of the worker of a directory, if this is one. Threads other than this one
/// lose theirs with their user only.
pub(super) fn drop_capabilities(of_a_directory: bool) -> Result<String, String> {
    let (kept, note) = match of_a_directory {
        true => (IN_A_DIRECTORY, "CAP_DAC_OVERRIDE, in its directory"),
        false => (CapabilitySet::empty(), "none"),
    };
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).map_err(tried("capabilities"))?;
    // Nobody but root may trace it or look into its memory.
    prctl::set_dumpable(false).map_err(tried("dumpable"))?;
    Ok(note.to_owned())
}
