//! `xen:`: from a guest to the mediator in dom0.
//!
//! The guest provides the memory and waits; the mediator sees its node in xenstore and connects.
//! Why nobody comes can only be guessed from the hint that a mediator leaves in the guest's own
//! part of xenstore.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::time::{Duration, Instant};

use vchan::xen::Server;
use vchan::xen::store::{Store, StoreError};
use vchan::{DomId, RingSizes, Setup};
use vgpu_transport::Transport;

use super::unreachable;
use crate::error::Cause;
use crate::options::Options;

/// Node in which a mediator says whether it admits this guest, relative to the guest's home in
/// xenstore.
pub const MEDIATOR_HINT: &str = "data/vgpu/mediator";

/// How often the wait for the mediator looks for a reason to end.
const END_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// How long a mediator may take although its hint says that it will not come: the hint may be old.
const DENIED_GRACE: Duration = Duration::from_secs(2);

/// The mediator's node in xenstore about this guest. Only a hint: the guest could write it itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediatorHint {
    /// No mediator has been here.
    Absent,
    /// A mediator admits this guest, or did when it was started.
    Allowed,
    /// A mediator's policy does not admit this guest, or did not when it was started.
    Denied,
    /// Something else stands there.
    Unknown,
}

impl MediatorHint {
    /// Reads the hint of this guest.
    ///
    /// # Errors
    /// xenstore cannot be reached, or does not answer until `deadline`.
    pub fn read(deadline: Instant) -> Result<Self, StoreError> {
        let value = Store::open(deadline)?.read_if_present(MEDIATOR_HINT, deadline)?;
        Ok(match value.as_deref() {
            None | Some("") => Self::Absent,
            Some("allowed") => Self::Allowed,
            Some("denied") => Self::Denied,
            Some(_) => Self::Unknown,
        })
    }
}

/// Whether nothing of Xen shows: then xenstore and devices that are missing need no mention.
fn outside_xen() -> bool {
    let traces = ["/sys/hypervisor/type", "/proc/xen", "/dev/xen"];
    !traces.iter().any(|path| Path::new(path).exists())
}

pub(super) fn open(options: &Options, deadline: Instant) -> Result<Box<dyn Transport>, Cause> {
    if outside_xen() {
        return Err(unreachable(
            "this is not a guest of Xen".to_owned(),
            "run it in one, or use local:PATH with a mediator on this machine",
        ));
    }
    let failed = |error: vchan::Error| unreachable(error.to_string(), error.advice());
    let path = format!("data/vgpu/{}", random_name());
    let started = Instant::now();
    let setup = Setup::new().deadline(deadline);
    let mut server = match options.ring_bytes {
        Some(bytes) => Server::publish_with(&setup, DomId(0), &path, RingSizes::from(bytes)),
        None => Server::publish_default_with(&setup, DomId(0), &path),
    }
    .map_err(failed)?;
    log::debug!(
        "waiting for the mediator at {path}, rings of {:?}",
        server.ring_sizes()
    );
    let mut hint = None;
    // The server removes its node when it is dropped, on every way out of here.
    loop {
        let until = deadline.min(Instant::now() + END_CHECK_INTERVAL);
        // Not the clock: the last look must come after the deadline.
        let late = until >= deadline;
        let denied_counts = started.elapsed() >= DENIED_GRACE;
        if late || denied_counts {
            // Before the wait, for after the last there is no time to ask. What was read once is
            // better than no answer.
            let now = MediatorHint::read(until);
            if now.is_ok() || !matches!(hint, Some(Ok(_))) {
                hint = Some(now);
            }
        }
        match server.wait_for_client(until) {
            Ok(()) => break,
            Err(vchan::Error::TimedOut(_)) => {}
            Err(error) => return Err(failed(error)),
        }
        if options.interrupted() {
            return Err(Cause::Interrupted);
        }
        let denied = denied_counts && matches!(hint, Some(Ok(MediatorHint::Denied)));
        if (late || denied)
            && let Some(hint) = hint.take()
        {
            return Err(nobody_came(hint, started.elapsed()));
        }
    }
    let channel = server.accept(deadline).map_err(failed)?;
    Ok(Box::new(channel))
}

fn nobody_came(hint: Result<MediatorHint, StoreError>, waited: Duration) -> Cause {
    let seconds = waited.as_secs_f32();
    match hint {
        Ok(MediatorHint::Denied) => unreachable(
            "the mediator's policy does not admit this guest".to_owned(),
            "ask the admin of dom0 to allow it in the mediator's [guests] table, or to start the \
             mediator with --allow-all",
        ),
        Ok(MediatorHint::Allowed) => unreachable(
            format!(
                "the mediator in dom0 admits this guest but did not come within {seconds:.1} s"
            ),
            "look whether it still runs and whether this guest has too many sessions (in dom0: \
             vgpuctl status)",
        ),
        Ok(MediatorHint::Absent | MediatorHint::Unknown) => unreachable(
            format!(
                "no mediator in dom0 came within {seconds:.1} s, and none has been here before"
            ),
            "start it in dom0: vgpu-mediatord --listen xen:",
        ),
        Err(StoreError::TimedOut { .. }) => unreachable(
            format!(
                "no mediator in dom0 came within {seconds:.1} s, and xenstore had no time left to \
                 say whether one admits this guest"
            ),
            "give it more time (--timeout), then look whether one runs in dom0 (vgpuctl status)",
        ),
        Err(error) => unreachable(
            format!("no mediator in dom0 came within {seconds:.1} s ({error})"),
            error.advice(),
        ),
    }
}

/// 16 hex digits that no other session of this guest has.
///
/// Unique is enough, secret is not needed: so not from getrandom, which may block while a guest boots.
fn random_name() -> String {
    format!("{:016x}", RandomState::new().build_hasher().finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_and_have_the_form_the_mediator_looks_for() {
        let names: Vec<String> = (0..100).map(|_| random_name()).collect();
        for (index, name) in names.iter().enumerate() {
            assert_eq!(name.len(), 16);
            assert!(
                name.bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            );
            assert!(!names[..index].contains(name));
        }
    }

    #[test]
    fn the_hint_decides_what_is_advised() {
        let advice = |hint| match nobody_came(Ok(hint), Duration::from_secs(1)) {
            Cause::Unreachable { advice, .. } => advice,
            other => panic!("{other}"),
        };
        assert!(advice(MediatorHint::Denied).contains("[guests]"));
        assert!(advice(MediatorHint::Allowed).contains("vgpuctl status"));
        assert!(advice(MediatorHint::Absent).contains("vgpu-mediatord --listen xen:"));
        // It had the rest of the time of a wait that was short: no fault of xenstore's.
        let path = MEDIATOR_HINT.into();
        match nobody_came(Err(StoreError::TimedOut { path }), Duration::from_millis(5)) {
            Cause::Unreachable { advice, .. } => assert!(advice.contains("--timeout")),
            other => panic!("{other}"),
        }
    }
}
