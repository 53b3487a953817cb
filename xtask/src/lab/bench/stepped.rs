//! Costs of a channel besides time: wake-ups of a counted transfer, and the activity of an idle
//! channel. Both are counted by the kernels of dom0 and the guest, in the same way for every pair,
//! while the client waits for a word before each of its steps.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::super::host::{Host, LIMIT, Place};
use super::super::job::Job;
use super::counters::Counters;
use super::pairs::{GUEST, Pair};
use super::points::Point;

/// Number of times that a counted transfer fills its ring.
const RINGS_FULL: u64 = 256;

/// Seconds between the last traffic and the first reading of an idle channel's counters.
const CALM_SECONDS: u64 = 2;

/// Seconds for which an idle channel is observed.
const IDLE_SECONDS: u64 = 10;

/// Longer than the observation can take; the client is ended, it does not wait that long.
const IDLE_LIMIT_SECONDS: u64 = 600;

/// The pipes that control the client, in dom0.
const GO: &str = "/tmp/bench.go";
const SAID: &str = "/tmp/bench.said";

/// The counters of both sides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sides {
    pub(super) dom0: Counters,
    pub(super) guest: Counters,
}

impl Sides {
    fn take(host: &mut dyn Host, pair: Pair) -> Result<Self> {
        Ok(Sides {
            dom0: Counters::take(host, Place::Dom0, pair.client_program())?,
            guest: Counters::take(host, Place::Guest(GUEST), pair.server_program())?,
        })
    }

    fn since(&self, before: &Self) -> Self {
        Sides {
            dom0: self.dom0.since(&before.dom0),
            guest: self.guest.since(&before.guest),
        }
    }

    /// Interrupts of both sides.
    pub(super) fn interrupts(&self) -> u64 {
        self.dom0.interrupts + self.guest.interrupts
    }

    /// Context switches of both sides.
    pub(super) fn switches(&self) -> u64 {
        self.dom0.switches + self.guest.switches
    }

    /// Processor time of both sides.
    pub(super) fn cpu(&self) -> Duration {
        self.dom0.cpu + self.guest.cpu
    }
}

/// A counted transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) point: Point,
    pub(super) bytes: u64,
    pub(super) sides: Sides,
}

impl Transfer {
    /// Interrupts of both sides for each MiB.
    pub(super) fn wake_ups_per_mib(&self) -> f64 {
        self.sides.interrupts() as f64 * f64::from(1 << 20) / self.bytes as f64
    }
}

/// The results for one pair at one ring size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) transfers: Vec<Transfer>,
    /// Activity of both sides while the channel was idle.
    pub(super) idle: Option<Sides>,
}

/// Moves a counted number of bytes at each of `points`, then leaves the channel idle if asked to.
///
/// # Errors
/// One side failed.
pub(super) fn run(
    host: &mut dyn Host,
    pair: Pair,
    ring: usize,
    points: &[Point],
    idle: bool,
) -> Result<Counted> {
    let bytes = ring as u64 * RINGS_FULL;
    let domid = host.guest_domid(GUEST)?;
    let mut options = format!("--step --bytes {bytes}");
    if idle {
        options.push_str(&format!(" --idle {IDLE_LIMIT_SECONDS}"));
    }
    // Without any point there would be no traffic before the idle time.
    let warm_up = [Point::new("sink", 4096)];
    let points = if points.is_empty() { &warm_up } else { points };
    let bench = pair.bench(domid, points, &options);
    let pipes = format!("rm -f {GO} {SAID}; mkfifo {GO} {SAID}");
    host.exec(Place::Dom0, &pipes, LIMIT)?.text()?;
    let serve = format!("exec {}", pair.serve(ring));
    let server = Job::start(host, Place::Guest(GUEST), "bench-serve", &serve)?;
    let led = format!("exec 0<>{GO} 1<>{SAID}; exec {bench}");
    let client = Job::start(host, Place::Dom0, "bench", &led)?;

    let counted = lead(host, pair, &client, points, bytes, idle);
    // The idle client, or one in trouble, is ended; the server then ends by itself.
    client.signal(host, "TERM")?;
    let client = client.wait(host, LIMIT)?;
    let server = server.wait(host, LIMIT)?;
    counted.with_context(|| {
        format!(
            "client: {}; server: {}",
            client.last_words(),
            server.last_words()
        )
    })
}

fn lead(
    host: &mut dyn Host,
    pair: Pair,
    client: &Job,
    points: &[Point],
    bytes: u64,
    idle: bool,
) -> Result<Counted> {
    let mut counted = Counted::default();
    until_step(host, client, ":")?;
    for point in points {
        let before = Sides::take(host, pair)?;
        until_step(host, client, &format!("echo >{GO}"))?;
        let sides = Sides::take(host, pair)?.since(&before);
        // A transfer is a whole number of messages.
        let bytes = (bytes / point.bytes).max(1) * point.bytes;
        counted.transfers.push(Transfer {
            point: point.clone(),
            bytes,
            sides,
        });
    }
    if idle {
        let calm = format!("echo >{GO}; sleep {CALM_SECONDS}");
        host.exec(Place::Dom0, &calm, LIMIT)?.text()?;
        let before = Sides::take(host, pair)?;
        host.exec(Place::Dom0, &format!("sleep {IDLE_SECONDS}"), LIMIT)?
            .text()?;
        counted.idle = Some(Sides::take(host, pair)?.since(&before));
    }
    Ok(counted)
}

/// Runs `first` in dom0, then waits until the client announces its next step.
fn until_step(host: &mut dyn Host, client: &Job, first: &str) -> Result<()> {
    let script = format!(
        "{first}; while read -r line; do case $line in *'\"step\"'*) exit 0;; esac; done <{SAID}"
    );
    let output = host.exec(Place::Dom0, &script, LIMIT)?;
    if output.success() && client.poll(host)?.is_none() {
        return Ok(());
    }
    bail!("the client did not come to its next step")
}
