//! `cargo xtask bench`: our channel beside the stock libxenvchan in one boot of the lab, or beside
//! memcpy and a Unix socket pair on this machine. `docs/benchmarks.md` describes the measurements.
//! Speed never fails a bench; wrong data does.

use std::ffi::OsString;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::guest::{GuestSpec, Kind};
use super::host::{Host, LIMIT, Place, Xenstored};
use super::hypervisor::Xsm;
use super::job::Job;
use super::project;
use super::qemu::{self, Boot, Qemu};
use super::qemu_host::QemuHost;
use crate::busy::Busy;

mod counters;
mod figures;
mod local;
mod measure;
mod nfs;
mod pairs;
mod points;
mod prebuilt;
mod regions;
mod relay;
mod results;
mod sessions;
mod situations;
mod stepped;
mod table;
mod targets;

use pairs::{GUEST, Pair};
use points::Selection;
use prebuilt::Prebuilt;
use results::Ring;
use targets::BusyLoops;

const USUAL_RINGS: [usize; 2] = [64 << 10, 1 << 20];

mod flags {
    #![allow(unreachable_pub, reason = "written by the xflags macro")]

    use std::path::PathBuf;

    use super::RelayWhere;

    xflags::xflags! {
        /// Benchmarks that compare with other software.
        cmd bench {
            /// vchan beside the stock libxenvchan in one boot of the lab.
            cmd vchan {
                /// Rounds; each figure is their median (default 3).
                optional --rounds N: usize
                /// Seconds for a point in each round (default 0.5).
                optional --time SECONDS: f64
                /// Ring sizes in bytes, separated by commas (default 65536,1048576).
                optional --rings LIST: String
                /// What to measure: sink, source, echo (each also with a size, sink:4096), in-place, wakeups, wakeups:sink:4096, idle; separated by commas (default all).
                optional --points LIST: String
                /// Whom to measure, client before server: stock, ours, ours-stock, stock-ours, classic, spin-0 (ours, never polling before it sleeps); separated by commas (default the first four).
                optional --pairs LIST: String
                /// Also ours on both sides held to the page layout of libxenvchan.
                optional --classic
                /// Busy loops in dom0 beside the bench (default none).
                optional --busy-dom0 N: usize
                /// Busy loops on this machine, beside QEMU (default none).
                optional --busy-host N: usize
                /// Write everything that was found to this file.
                optional --json FILE: PathBuf
                /// Use what `bench prepare` wrote; neither cargo nor packages are needed.
                optional --prebuilt FOLDER: PathBuf
            }
            /// vchan without Xen, beside memcpy and a Unix socket pair of this machine; then looking beside --spin 0 in three situations, with rings and times of its own.
            cmd local {
                /// Rounds; each figure is their median (default 5).
                optional --rounds N: usize
                /// Seconds for a point in each round (default 0.5).
                optional --time SECONDS: f64
                /// Ring sizes in bytes, separated by commas (default 1048576,8388608).
                optional --rings LIST: String
                /// The two processors for client and server, which may be one (default 0,1).
                optional --cpus LIST: String
                /// Busy loops on this machine beside the bench (default none).
                optional --busy-host N: usize
                /// Write everything that was found to this file.
                optional --json FILE: PathBuf
                /// Use what `bench prepare` wrote.
                optional --prebuilt FOLDER: PathBuf
            }
            /// Bytes through shared regions beside the ring alone, in one boot of the lab.
            cmd regions {
                /// Rounds; each figure is their median (default 3).
                optional --rounds N: usize
                /// Seconds for a point in each round (default 0.5).
                optional --time SECONDS: f64
                /// Ring sizes in bytes, separated by commas (default 65536,262144,1048576).
                optional --rings LIST: String
                /// Write everything that was found to this file.
                optional --json FILE: PathBuf
                /// Use what `bench prepare` wrote.
                optional --prebuilt FOLDER: PathBuf
            }
            /// Whole sessions over the ring and over NFS, in one boot of the lab.
            cmd nfs {
                /// Rounds; each figure is the median of their medians (default 3).
                optional --rounds N: usize
                /// Vector adds of each size in each round (default 5).
                optional --repeats N: u32
                /// Round trips in each round (default 20).
                optional --pings N: u32
                /// Write everything that was found to this file.
                optional --json FILE: PathBuf
                /// Use what `bench prepare` wrote.
                optional --prebuilt FOLDER: PathBuf
            }
            /// Whole sessions over local:, unix:, tcp: and file: on this machine.
            cmd sessions {
                /// Rounds; each figure is their median (default 5).
                optional --rounds N: usize
                /// Write everything that was found to this file.
                optional --json FILE: PathBuf
                /// Use the programs in this folder instead of building them.
                optional --programs FOLDER: PathBuf
            }
            /// Sessions passed on to a second mediator beside direct ones: on this machine, and in one boot of the lab.
            cmd relay {
                /// Rounds; each figure is their median (default 3).
                optional --rounds N: usize
                /// native, lab or both (default both).
                optional --only WHERE: RelayWhere
                /// Processors of the lab's machine (default 4; dom0, client and GPU domain have one each).
                optional --processors N: u32
                /// Write everything that was found to this file.
                optional --json FILE: PathBuf
                /// Use what `bench prepare` wrote.
                optional --prebuilt FOLDER: PathBuf
            }
            /// Write all that these need, this program included, to a folder.
            cmd prepare {
                required folder: PathBuf
            }
        }
    }
}

/// Where the relay is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RelayWhere {
    Native,
    Lab,
    Both,
}

impl std::str::FromStr for RelayWhere {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "native" => Ok(Self::Native),
            "lab" => Ok(Self::Lab),
            "both" => Ok(Self::Both),
            _ => anyhow::bail!("`{text}` is none of native, lab, both"),
        }
    }
}

/// Runs `cargo xtask bench ARGS`.
pub(crate) fn main(args: Vec<OsString>) -> Result<()> {
    let flags = flags::Bench::from_vec(args).unwrap_or_else(|error| crate::help_or_misuse(error));
    match flags.subcommand {
        flags::BenchCmd::Vchan(options) => vchan(&options),
        flags::BenchCmd::Local(options) => local::run(&options),
        flags::BenchCmd::Regions(options) => regions::run(&options),
        flags::BenchCmd::Nfs(options) => nfs::run(&options),
        flags::BenchCmd::Sessions(options) => sessions::run(&options),
        flags::BenchCmd::Relay(options) => relay::run(&options),
        flags::BenchCmd::Prepare(options) => prebuilt::prepare(&options.folder),
    }
}

/// Reads a list of ring sizes.
fn rings(list: Option<&str>, usual: &[usize]) -> Result<Vec<usize>> {
    let Some(list) = list else {
        return Ok(usual.to_vec());
    };
    list.split(',')
        .map(|ring| {
            ring.parse()
                .with_context(|| format!("`{ring}` is no ring size in bytes"))
        })
        .collect()
}

/// Seconds for a point.
fn seconds(time: Option<f64>) -> Result<f64> {
    let time = time.unwrap_or(0.5);
    ensure!(
        time > 0.0 && time <= 30.0,
        "a point takes more than 0 and at most 30 seconds"
    );
    Ok(time)
}

fn write_json(file: Option<&Path>, value: &Value) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    let text = serde_json::to_string_pretty(value)?;
    std::fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))
}

fn vchan(options: &flags::Vchan) -> Result<()> {
    let rounds = options.rounds.unwrap_or(3).max(1);
    let time = seconds(options.time)?;
    let sizes = rings(options.rings.as_deref(), &USUAL_RINGS)?;
    let selection = match &options.points {
        Some(list) => Selection::parse(list)?,
        None => Selection::all(),
    };
    let mut pairs = match &options.pairs {
        Some(list) => Pair::list(list)?,
        None => pairs::USUAL.to_vec(),
    };
    if options.classic && !pairs.contains(&Pair::Classic) {
        pairs.push(Pair::Classic);
    }

    let prebuilt = prebuilt::obtain(options.prebuilt.as_deref())?;
    let mut host = boot(&prebuilt)?;
    let busy = BusyLoops {
        dom0: options.busy_dom0.unwrap_or(0),
        host: options.busy_host.unwrap_or(0),
    };
    // After the boot, which they would only delay; those in dom0 end with its machine.
    busy_dom0(&mut host, busy.dom0)?;
    let _busy = Busy::start_spread(busy.host);
    if busy.host > 0 {
        // Each virtual processor has a real one and its busy loop for company. Left to the kernel,
        // both may share one, or the loops, and figures of the same program differ tenfold.
        host.spread_processors()?;
    }
    let plan = Plan {
        rounds,
        time,
        selection,
        pairs,
        started: Instant::now(),
    };
    let mut all = json!({
        "bench": "vchan",
        "rounds": rounds,
        "seconds_a_point": time,
        "busy_loops_in_dom0": busy.dom0,
        "busy_loops_on_the_host": busy.host,
        "rings": [],
    });
    let mut found = Vec::new();
    for bytes in sizes {
        let mut ring = Ring {
            bytes,
            busy,
            ..Ring::default()
        };
        let outcome = plan.run(&mut host, &mut ring);
        // Also after a failure: figures measured until then are valid.
        println!("{}", table::text(&ring));
        found.push(ring.object());
        all["rings"] = found.clone().into();
        write_json(options.json.as_deref(), &all)?;
        outcome.with_context(|| format!("rings of {bytes} bytes"))?;
    }
    Ok(())
}

/// Starts busy loops in dom0.
///
/// # Errors
/// dom0 does not answer.
fn busy_dom0(host: &mut dyn Host, loops: usize) -> Result<()> {
    for number in 0..loops {
        let name = format!("busy{number}");
        Job::start(host, Place::Dom0, &name, "while :; do :; done")?;
    }
    Ok(())
}

/// The measurements at each ring size.
struct Plan {
    rounds: usize,
    /// Seconds for a point.
    time: f64,
    selection: Selection,
    pairs: Vec<Pair>,
    started: Instant,
}

impl Plan {
    fn run(&self, host: &mut dyn Host, ring: &mut Ring) -> Result<()> {
        let fitting: Vec<Pair> = self
            .pairs
            .iter()
            .copied()
            .filter(|pair| ring.bytes <= pair.largest_ring())
            .collect();
        for round in 1..=self.rounds {
            for pair in &fitting {
                let points = self.selection.of(*pair);
                if points.is_empty() {
                    continue;
                }
                self.say(ring, &format!("round {round} of {}, {pair}", self.rounds));
                measure::run(host, *pair, &points, self.time, ring)
                    .with_context(|| pair.to_string())?;
            }
        }
        let Selection { wake_ups, idle, .. } = &self.selection;
        if wake_ups.is_empty() && !idle {
            return Ok(());
        }
        // The mixed pairs use stock's page layout, and so have its wake-ups.
        for pair in [Pair::Stock, Pair::Ours, Pair::Classic] {
            if fitting.contains(&pair) {
                self.say(ring, &format!("wake-ups and idling, {pair}"));
                let counted = stepped::run(host, pair, ring.bytes, wake_ups, *idle)
                    .with_context(|| pair.to_string())?;
                ring.counted.push((pair, counted));
            }
        }
        Ok(())
    }

    fn say(&self, ring: &Ring, what: &str) {
        let seconds = self.started.elapsed().as_secs();
        eprintln!("bench: {seconds} s: rings of {} bytes: {what}", ring.bytes);
    }
}

/// Boots the lab: dom0 on one processor, the guest on the other.
fn boot(prebuilt: &Prebuilt) -> Result<QemuHost> {
    let mut spec = GuestSpec::new(GUEST, Kind::Pv);
    spec.memory_mib = 256;
    boot_with(prebuilt, &spec)
}

/// The same with a guest of these properties.
fn boot_with(prebuilt: &Prebuilt, spec: &GuestSpec) -> Result<QemuHost> {
    let machine = Qemu::boot(&Boot {
        images: &prebuilt.images,
        project: &project::Archives::of(&prebuilt.programs)?,
        xenstored: Xenstored::C,
        memory_mib: qemu::DEFAULT_MEMORY,
        processors: qemu::DEFAULT_PROCESSORS,
        xsm: Xsm::None,
        runs: &prebuilt.runs,
    })?;
    let mut host = QemuHost::new(machine, Xenstored::C, Xsm::None);
    host.exec(Place::Dom0, "xl vcpu-pin 0 all 0", LIMIT)?
        .text()?;
    let spec = GuestSpec {
        cpus: Some("1".to_owned()),
        ..spec.clone()
    };
    host.guest_create(&spec)?;
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_sizes_are_a_list() {
        assert_eq!(rings(None, &USUAL_RINGS).unwrap(), USUAL_RINGS);
        assert_eq!(rings(Some("4096,8192"), &[]).unwrap(), [4096, 8192]);
        assert!(rings(Some("64K"), &[]).is_err());
        assert!(seconds(Some(0.0)).is_err());
    }
}
