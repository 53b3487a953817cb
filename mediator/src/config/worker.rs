//! `[worker]`: as whom and how confined a worker runs.

use std::time::Duration;

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::worker::confinement::Confine;

/// How many users there are for workers: more than there can be workers.
const USERS: u32 = 2048;

/// Most warm workers for a set of devices.
pub const MOST_WARM: u32 = 16;

/// How workers run. `dist/mediator/mediatord.toml` describes each setting for administrators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerSettings {
    /// Reaction if a worker cannot be confined.
    pub confine: Confine,
    /// The first of the numbers that are workers' users and groups.
    pub first_user: u32,
    /// Whether guests may have CUDA C++ compiled here.
    pub compile: bool,
    /// Longest time in seconds that a source may take to compile.
    pub compile_timeout_s: u32,
    /// Workers that are ready before there is a session for them, for each set of devices; 0: none.
    pub warm_workers: u32,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            // An ordinary user cannot change the user of a process.
            confine: match geteuid().is_root() {
                true => Confine::Required,
                false => Confine::BestEffort,
            },
            first_user: 2_080_000_000,
            compile: true,
            compile_timeout_s: 30,
            warm_workers: 0,
        }
    }
}

impl WorkerSettings {
    /// Users and groups that belong to workers; none where this process cannot become another user.
    pub fn users(&self) -> std::ops::Range<u32> {
        match geteuid().is_root() && self.confine != Confine::Off {
            true => self.first_user..self.first_user + USERS,
            false => 0..0,
        }
    }

    /// [`compile_timeout_s`](Self::compile_timeout_s) as a duration.
    pub fn compile_timeout(&self) -> Duration {
        Duration::from_secs(self.compile_timeout_s.into())
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let last = self.first_user.checked_add(USERS);
        if self.first_user < 1000 || last.is_none_or(|last| last > i32::MAX.cast_unsigned()) {
            return Err(format!(
                "worker.first_user is {}; it and the {USERS} numbers from it on must lie between 1000 and \
                 2147483647",
                self.first_user
            ));
        }
        if !(1..=3600).contains(&self.compile_timeout_s) {
            return Err(format!(
                "worker.compile_timeout_s is {}; it must be 1 to 3600",
                self.compile_timeout_s
            ));
        }
        if self.warm_workers > MOST_WARM {
            return Err(format!(
                "worker.warm_workers is {}; at most {MOST_WARM} are possible",
                self.warm_workers
            ));
        }
        if self.confine == Confine::Required && !geteuid().is_root() {
            return Err(
                "worker.confine is \"required\", which only root can do; set it to \"best-effort\""
                    .to_owned(),
            );
        }
        Ok(())
    }
}
