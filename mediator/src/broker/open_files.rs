//! Descriptors for all that the limits allow, so that none is missing in the middle of it.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use vgpu_cli::Failure;
use vgpu_transport::Endpoint;

use super::{admission, closer, unauthenticated, warm};
use crate::config::Config;

/// Descriptors that do not depend on guests: standard streams, signals, listeners, xenstore, a probe, the sockets
/// for control and metrics with their clients, and what a start of a worker needs for a moment.
const COMMON: u64 = 64;

/// Of each worker: its link and its log.
const OF_A_WORKER: u64 = 2;

/// Sees to it that this process may open what `config` can make it open.
///
/// # Errors
/// It may not, and cannot change that.
pub(super) fn allow(config: &Config) -> Result<(), Failure> {
    let failed = |errno| {
        Failure::system(
            "the limit of open files cannot be read or raised",
            errno,
            "this is not expected; report it",
        )
    };
    let needed = needed(config);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    if hard < needed {
        return Err(Failure::new(
            format!("this process may open {hard} files, and its limits need {needed}"),
            format!(
                "raise the limit (LimitNOFILE={needed} in its service, or ulimit -n {needed} before \
                 the start), or lower limits.max_sessions and limits.max_file_guests"
            ),
        ));
    }
    if soft < needed {
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard).map_err(failed)?;
    }
    Ok(())
}

fn needed(config: &Config) -> u64 {
    let limits = &config.limits;
    let listens = |wanted: fn(&Endpoint) -> bool| config.listen.iter().any(wanted);
    let count = |number: usize| number as u64;
    let mut workers = u64::from(limits.max_sessions) + count(admission::MOST_REFUSING);
    // A page for the memory of each guest that has a session.
    let mut others = COMMON + workers;
    if listens(|endpoint| matches!(endpoint, Endpoint::File(_))) {
        workers += u64::from(limits.max_file_guests) + count(config.listen.len());
    }
    if listens(|endpoint| matches!(endpoint, Endpoint::Local(_) | Endpoint::Unix(_))) {
        others += count(admission::WAITING.0 + closer::MOST_WAITING + closer::MOST_PROCESSES);
    }
    if listens(|endpoint| matches!(endpoint, Endpoint::Xen)) {
        // The life of the guest's domain, of each session and of what waits to be one.
        others += 2 * u64::from(limits.max_sessions);
    }
    if listens(|endpoint| matches!(endpoint, Endpoint::Tcp { .. })) {
        workers += count(unauthenticated::PLACES);
        others += count(unauthenticated::WAITING);
    }
    if config.worker.warm_workers > 0 {
        // Those that wait, those that end, and the connections of guests on their way to one.
        let waiting = count(warm::POOLS) * u64::from(config.worker.warm_workers);
        workers += waiting + count(warm::MOST_ENDING);
        others += u64::from(limits.max_sessions);
    }
    OF_A_WORKER * workers + others
}
