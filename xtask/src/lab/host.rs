//! A Xen host as the suite sees it: dom0 and guests in which scripts run.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};

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

/// How long a script may take when nothing else is said: far more than it
/// needs, also on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
