//! Options of a client: endpoints and time limits.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Stands for "for ever": far beyond any wait, and safely within the range of a clock.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// `time` after `start`.
pub(crate) fn after(start: Instant, time: Duration) -> Instant {
    start + time.min(LONGEST)
}

/// Settings of a [`Client`](crate::Client). `Options::default()` suits most programs.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long one endpoint may take until its session is open. Default: 10 s.
    pub connect_timeout: Duration,
    /// How long nothing may move before a request is given up. A request that keeps moving may take
    /// as long as it takes. Default: 30 s.
    pub stall_timeout: Duration,
    /// Bytes of the shared ring in each direction, at most 1 MiB. `None`: 1 MiB over `local:`; over
    /// `xen:` 256 KiB, or less where the kernel grants no more pages.
    pub ring_bytes: Option<usize>,
    /// The file with the `NAME KEY` line that `tcp:` needs; only its user may read it. `None`: the
    /// one that the environment variable `VGPU_SECRET_FILE` names. Default: `None`.
    pub secret_file: Option<PathBuf>,
    /// Name of this program in the mediator's log; at most 64 bytes are sent. Default: the name of
    /// the executable and its process id.
    pub client_name: String,
    /// Threads that make one large copy of ordinary memory, the caller's among them, where such copies go by way of memory
    /// that the mediator maps. Default: `None`, up to three, one for each four processors beyond the first.
    pub copy_threads: Option<NonZeroUsize>,
    /// Waits end with [`Cause::Interrupted`](crate::Cause::Interrupted) soon after this becomes
    /// true. For signal handlers. Default: none.
    pub interrupt: Option<Arc<AtomicBool>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            ring_bytes: None,
            secret_file: None,
            client_name: program_name(),
            copy_threads: None,
            interrupt: None,
        }
    }
}

impl Options {
    pub(crate) fn interrupted(&self) -> bool {
        // Relaxed: the flag carries no other data.
        self.interrupt
            .as_ref()
            .is_some_and(|flag| flag.load(Ordering::Relaxed))
    }
}

fn program_name() -> String {
    let path = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&path)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    format!("{name} (pid {})", std::process::id())
}
