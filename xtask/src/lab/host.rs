//! A Xen host as the suite uses it: dom0 and guests in which scripts run.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};

use super::guest::GuestSpec;
use super::hypervisor::Xsm;

/// Default time limit for a script: far more than it needs, also on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(240);

/// The place where a script runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    Dom0,
    /// The guest of this name.
    Guest(&'a str),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Dom0 => f.write_str("dom0"),
            Place::Guest(name) => write!(f, "guest {name}"),
        }
    }
}

/// A machine with Xen, a dom0 in which scripts run as root, and guests.
///
/// Two implementations, one suite: Xen in QEMU (`qemu_host.rs`), and any Xen
/// host over ssh (`ssh_host.rs`).
pub(crate) trait Host {
    /// One line for the report.
    fn describe(&self) -> String;

    /// The reason why no test can run here, if there is one.
    fn unfit(&mut self) -> Option<String>;

    /// Runs a shell script with the project's programs in PATH, and kills it after `limit` (status
    /// 137).
    ///
    /// # Errors
    /// Only when no answer came; a failed script is an [`Output`].
    fn exec(&mut self, place: Place<'_>, script: &str, limit: Duration) -> Result<Output>;

    /// Starts a guest and waits until scripts can run in it. A host with given guests takes the
    /// next of them.
    ///
    /// # Errors
    /// [`Lacking`] when the host has no such guest; otherwise the reason why it did not start.
    fn guest_create(&mut self, spec: &GuestSpec) -> Result<()>;

    /// Ends a guest at once, as a crash or `xl destroy` does, and waits until
    /// Xen has forgotten it.
    ///
    /// # Errors
    /// [`Lacking`] when the host's guests must not be destroyed.
    fn guest_destroy(&mut self, name: &str) -> Result<()>;

    /// The domain id of a guest.
    ///
    /// # Errors
    /// There is no such guest.
    fn guest_domid(&mut self, name: &str) -> Result<u16>;

    /// Whether guests can be destroyed and recreated freely.
    fn has_spare_guests(&self) -> bool {
        false
    }

    /// Whether it has everything that the cases need, so that a skipped one counts as failed.
    fn lacks_nothing(&self) -> bool {
        false
    }

    /// The hypervisor's security module, if the host could tell.
    fn xsm(&self) -> Option<Xsm> {
        None
    }

    /// Number of guests that this host has lost so far through a fault of its own.
    fn guests_lost(&self) -> usize {
        0
    }

    /// Processor time that this machine has spent on the host so far: unlike elapsed time it hardly
    /// depends on the machine's other load. Zero if the host is another machine.
    fn processor_time(&self) -> Duration {
        Duration::ZERO
    }

    /// Saves files that may explain a failure, and returns their folder.
    fn save_logs(&mut self) -> Option<String>;
}

/// A feature that a host lacks: the test is skipped, loudly, not failed.
#[derive(Debug)]
pub(crate) struct Lacking(pub(crate) String);

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Lacking {}

/// The result of a script in dom0 or in a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Output {
    /// Exit status; 137 when it was killed at its limit.
    pub(crate) status: i32,
    /// At most the last 256 KiB.
    pub(crate) stdout: String,
    /// At most the last 64 KiB.
    pub(crate) stderr: String,
}

impl Output {
    pub(crate) fn success(&self) -> bool {
        self.status == 0
    }

    /// Standard output, trimmed.
    ///
    /// # Errors
    /// The script failed; the last lines of its output are in the message.
    pub(crate) fn text(&self) -> Result<&str> {
        if self.success() {
            return Ok(self.stdout.trim());
        }
        bail!("status {}: {}", self.status, self.last_words())
    }

    /// The last lines of both streams, on one line.
    pub(crate) fn last_words(&self) -> String {
        let mut words: Vec<&str> = Vec::new();
        for stream in [&self.stdout, &self.stderr] {
            let lines: Vec<&str> = stream.lines().filter(|l| !l.trim().is_empty()).collect();
            words.extend(&lines[lines.len().saturating_sub(3)..]);
        }
        if words.is_empty() {
            "no output".to_owned()
        } else {
            words.join(" | ")
        }
    }
}

/// The two implementations of xenstored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Xenstored {
    /// xenstored, written in C: Debian's default.
    C,
    /// oxenstored: what XCP-ng runs.
    Oxen,
}

impl Xenstored {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Xenstored::C => "c",
            Xenstored::Oxen => "oxen",
        }
    }
}

impl fmt::Display for Xenstored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Xenstored::C => "C xenstored",
            Xenstored::Oxen => "oxenstored",
        })
    }
}

impl std::str::FromStr for Xenstored {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "c" => Ok(Xenstored::C),
            "oxen" => Ok(Xenstored::Oxen),
            _ => bail!("unknown xenstored `{text}`\n  it is `c` or `oxen`"),
        }
    }
}
