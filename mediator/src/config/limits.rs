//! `[limits]`: how much guests may take.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::devices::Devices;
use crate::policy::{MOST_OBJECTS, Operations, PINNED_MIB, Share};

/// Limits on guests. `dist/mediator/mediatord.toml` describes each for administrators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Sessions at once, of all guests together.
    pub max_sessions: u32,
    /// Sessions at once of one guest.
    pub max_sessions_per_guest: u32,
    /// Guests' directories `DIR/<guest>/` that are served, of all `file:` endpoints together.
    pub max_file_guests: u32,
    /// Sessions at once of one `file:` endpoint, with all guests' directories in it.
    pub max_file_sessions: u32,
    /// Seconds to bring a guest's channel up.
    pub connect_timeout_s: u32,
    /// Seconds a guest has for its first message.
    pub hello_timeout_s: u32,
    /// Seconds a session may be idle between two requests.
    pub idle_timeout_s: u32,
    /// Seconds without any byte moved in the middle of a request.
    pub stall_timeout_s: u32,
    /// Seconds that a request may take in all; `None` for any time as long as it proceeds.
    pub request_timeout_s: Option<u32>,
    /// Seconds after which a guest over `file:` that gives no sign of life counts as dead.
    pub file_silence_s: u32,
    /// Seconds that running requests get when the mediator stops.
    pub drain_timeout_s: u32,
    /// MiB of device memory of a session; `None` for the device's own, at most 1024 with the cpu executor.
    pub memory_mib: Option<u32>,
    /// MiB of the guest's own memory that may be mapped and page-locked for the device of a session; 0 for none.
    pub pinned_mib: u32,
    /// Seconds that a kernel may run.
    pub kernel_timeout_s: u32,
    /// Objects of each kind of a session: allocations, modules, streams, events.
    pub max_objects: u32,
    /// Operations that a session may request; `None` for all.
    pub operations: Option<Operations>,
    /// A guest's part of the device's time, beside those of others.
    pub weight: u32,
    /// Devices of this machine that guests may use; `None` for all.
    pub devices: Option<Devices>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_sessions: 64,
            max_sessions_per_guest: 4,
            max_file_guests: 32,
            max_file_sessions: 32,
            connect_timeout_s: 10,
            hello_timeout_s: 10,
            idle_timeout_s: 3600,
            stall_timeout_s: 30,
            request_timeout_s: None,
            file_silence_s: 20,
            drain_timeout_s: 10,
            memory_mib: None,
            pinned_mib: PINNED_MIB,
            kernel_timeout_s: 60,
            max_objects: MOST_OBJECTS,
            operations: None,
            weight: 1,
            devices: None,
        }
    }
}

impl Limits {
    /// [`drain_timeout_s`](Self::drain_timeout_s) as a duration.
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.drain_timeout_s.into())
    }

    /// Share of sessions without a rule of their own.
    pub fn share(&self) -> Share {
        Share {
            memory_mib: self.memory_mib,
            pinned_mib: Some(self.pinned_mib),
            kernel_timeout_s: Some(self.kernel_timeout_s),
            max_objects: Some(self.max_objects),
            idle_timeout_s: Some(self.idle_timeout_s),
            stall_timeout_s: Some(self.stall_timeout_s),
            request_timeout_s: self.request_timeout_s,
            operations: self.operations,
            weight: Some(self.weight),
            devices: self.devices,
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        self.share()
            .check()
            .map_err(|error| format!("limits.{error}"))?;
        let at_least_one = [
            ("max_sessions", u64::from(self.max_sessions)),
            ("max_sessions_per_guest", self.max_sessions_per_guest.into()),
            ("max_file_guests", self.max_file_guests.into()),
            ("max_file_sessions", self.max_file_sessions.into()),
            ("connect_timeout_s", self.connect_timeout_s.into()),
            ("hello_timeout_s", self.hello_timeout_s.into()),
            ("file_silence_s", self.file_silence_s.into()),
            ("drain_timeout_s", self.drain_timeout_s.into()),
        ];
        if let Some((name, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
            return Err(format!("limits.{name} is 0; it must be at least 1"));
        }
        if self.max_sessions > 512 {
            return Err(format!(
                "limits.max_sessions is {}; at most 512 are possible",
                self.max_sessions
            ));
        }
        if self.file_silence_s < 3 {
            return Err(format!(
                "limits.file_silence_s is {}; it must be at least 3, since signs of life come every \
                 second",
                self.file_silence_s
            ));
        }
        if self.max_file_guests > 256 {
            return Err(format!(
                "limits.max_file_guests is {}; at most 256 are possible",
                self.max_file_guests
            ));
        }
        Ok(())
    }
}
