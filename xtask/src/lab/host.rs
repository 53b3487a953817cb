//! A Xen host as the suite sees it: dom0 and guests in which scripts run.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};

use super::guest::GuestSpec;

/// How long a script may take when nothing else is said: far more than it
/// needs, also on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(240);

/// Where a script runs.
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

    /// Why no test can run here, if so.
    fn unfit(&mut self) -> Option<String>;

    /// Runs a shell script with the project's programs in PATH, and kills it
    /// after `limit` (status 137).
    ///
    /// # Errors
    /// Only when no answer came; a script that fails is an [`Output`].
    fn exec(&mut self, place: Place<'_>, script: &str, limit: Duration) -> Result<Output>;

    /// Starts a guest and waits until scripts run in it. A host with given
    /// guests takes the next of them.
    ///
    /// # Errors
    /// [`Lacking`] when the host has no such guest; else why it did not start.
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

    /// Whether guests can be taken away and made anew at will.
    fn has_spare_guests(&self) -> bool {
        false
    }

    /// Whether it has all that the cases need, so that one that is skipped has failed.
    fn lacks_nothing(&self) -> bool {
        false
    }

    /// How many guests this host has lost so far through a fault of its own, and not of theirs.
    fn guests_lost(&self) -> usize {
        0
    }

    /// Processor time that this machine has spent on the host so far: unlike the clock's it hardly
    /// depends on what else runs here. Zero if the host is another machine.
    fn processor_time(&self) -> Duration {
        Duration::ZERO
    }

    /// Saves what would explain a failure, and gives the folder it is in.
    fn save_logs(&mut self) -> Option<String>;
}

/// What a host cannot offer: the test is skipped, loudly, not failed.
#[derive(Debug)]
pub(crate) struct Lacking(pub(crate) String);

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Lacking {}

/// What a script in dom0 or in a guest left behind.
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

    /// Standard output without the white space around it.
    ///
    /// # Errors
    /// When the script failed, with its last words.
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

/// The two daemons that keep xenstore.
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
