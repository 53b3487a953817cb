//! `cargo xtask bench relay`: sessions passed on to a second mediator beside sessions with that
//! mediator itself, in the same run; on this machine, and in the lab with a second guest as the GPU
//! domain.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::RelayWhere;
use super::figures::median;
use super::flags::Relay;
use super::prebuilt::{self, Prebuilt};
use super::sessions::{make_secret, once, rows};
use super::write_json;
use crate::lab::guest::{GuestSpec, Kind};
use crate::lab::host::{Host, LIMIT, Place, Xenstored};
use crate::lab::hypervisor::Xsm;
use crate::lab::job::Job;
use crate::lab::project;
use crate::lab::qemu::{self, Boot, Qemu};
use crate::lab::qemu_host::QemuHost;
use crate::mediator::{self, Mediator};

/// Target for a relayed session's time, in multiples of a direct one's.
const MOST_BULK: f64 = 1.6;
const MOST_ROUND_TRIP: f64 = 2.2;

/// Default number of the lab's processors: one each for dom0, client and GPU domain, and one for
/// QEMU's own devices.
const PROCESSORS: u32 = 4;

/// Time limit for one run of `vgpu bench` in the lab.
const BENCH_LIMIT: Duration = Duration::from_secs(600);

/// One way, direct and relayed.
#[derive(Default)]
struct Way {
    name: &'static str,
    /// Row, and microseconds direct and relayed, of every round.
    rows: Vec<(String, [Vec<f64>; 2])>,
}

impl Way {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            rows: Vec::new(),
        }
    }

    fn add(&mut self, relayed: bool, found: Vec<(String, f64)>) {
        for (row, microseconds) in found {
            let at = match self.rows.iter().position(|(name, _)| *name == row) {
                Some(at) => at,
                None => {
                    self.rows.push((row, Default::default()));
                    self.rows.len() - 1
                }
            };
            self.rows[at].1[usize::from(relayed)].push(microseconds);
        }
    }

    fn text(&self) -> String {
        let mut text = format!(
            "{:28}{:>14}{:>14}{:>8}{:>9}",
            format!("µs, {}", self.name),
            "direct",
            "relayed",
            "ratio",
            "at most"
        );
        for (row, [direct, relayed]) in &self.rows {
            let (direct, relayed) = (median(direct), median(relayed));
            text += &format!(
                "\n{row:28}{direct:>14.1}{relayed:>14.1}{:>8.2}{:>9.1}",
                relayed / direct,
                most(row)
            );
        }
        text
    }

    fn object(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|(row, [direct, relayed])| {
                json!({
                    "row": row,
                    "direct_us": direct,
                    "relayed_us": relayed,
                    "ratio": median(relayed) / median(direct),
                    "at_most": most(row),
                })
            })
            .collect();
        json!({"way": self.name, "rows": rows})
    }
}

/// The target of a row. A vector of one element is a round trip, too.
fn most(row: &str) -> f64 {
    let bulk = row
        .strip_prefix("vector add of ")
        .is_some_and(|elements| elements.trim() != "1");
    match bulk {
        true => MOST_BULK,
        false => MOST_ROUND_TRIP,
    }
}

/// Runs it.
///
/// # Errors
/// A program failed, or a sum was wrong.
pub(super) fn run(options: &Relay) -> Result<()> {
    let rounds = options.rounds.unwrap_or(3).max(1);
    let place = options.only.unwrap_or(RelayWhere::Both);
    let mut ways = Vec::new();
    let mut report = |way: Way| {
        println!("{}\n", way.text());
        ways.push(way.object());
        let all = json!({"bench": "relay", "rounds": rounds, "ways": ways});
        write_json(options.json.as_deref(), &all)
    };
    if place != RelayWhere::Lab {
        let programs = match &options.prebuilt {
            Some(folder) => std::path::absolute(folder)?.join("bin"),
            None => mediator::build_release()?,
        };
        for way in native(&programs, rounds)? {
            report(way)?;
        }
    }
    if place != RelayWhere::Native {
        let prebuilt = prebuilt::obtain_all(options.prebuilt.as_deref())?;
        let processors = options.processors.unwrap_or(PROCESSORS);
        report(lab(&prebuilt, processors, rounds)?)?;
    }
    Ok(())
}

/// On this machine: rings to rings, and TCP to TCP.
fn native(programs: &Path, rounds: usize) -> Result<[Way; 2]> {
    let directory = PathBuf::from(format!("/tmp/vgpu-bench-relay-{}", std::process::id()));
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&directory)
        .with_context(|| format!("creating {}", directory.display()))?;
    let outcome = native_in(programs, &directory, rounds);
    // Leftovers are small, and in a place that is cleared regularly.
    let _ = fs::remove_dir_all(&directory);
    outcome
}

fn native_in(programs: &Path, directory: &Path, rounds: usize) -> Result<[Way; 2]> {
    let secret = make_secret(programs, directory)?;
    let secret = secret.to_str().context("a path of text")?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let tcp = format!("tcp:127.0.0.1:{port}");
    // Each has a folder for its control socket and its log.
    let start = |name: &str, more: &str, executor: &str| -> Result<(String, Mediator)> {
        let own = directory.join(name);
        fs::create_dir(&own)?;
        let endpoint = format!("local:{}/sock", own.display());
        let listen = format!("{endpoint}{more}");
        let flags = ["--executor", executor, "--secrets", secret];
        let flags = [&flags[..], &["--relay-secret", secret]].concat();
        let mut mediator = Mediator::start(programs, &own, &listen, &flags)?;
        mediator.wait_until_ready(programs, &endpoint)?;
        Ok((endpoint, mediator))
    };
    let (behind, mut last) = start("behind", &format!(",{tcp}"), "cpu")?;
    let (over_local, mut first) = start("local", "", &format!("relay:{behind}"))?;
    let (over_tcp, mut second) = start("tcp", "", &format!("relay:{tcp}"))?;
    let mut ways = [
        Way::new("local:, relay:local:"),
        Way::new("tcp:, relay:tcp:"),
    ];
    for round in 1..=rounds {
        eprintln!("bench: round {round} of {rounds}");
        for (way, direct, relayed) in [(0, &behind, &over_local), (1, &tcp, &over_tcp)] {
            ways[way].add(false, once(programs, direct, secret)?);
            ways[way].add(true, once(programs, relayed, secret)?);
        }
    }
    for mediator in [&mut first, &mut second, &mut last] {
        mediator.stop()?;
    }
    Ok(ways)
}

/// In the lab: guest to dom0, and guest to dom0 to a second guest.
fn lab(prebuilt: &Prebuilt, processors: u32, rounds: usize) -> Result<Way> {
    let machine = Qemu::boot(&Boot {
        images: &prebuilt.images,
        project: &project::Archives::of(&prebuilt.programs)?,
        xenstored: Xenstored::C,
        memory_mib: qemu::DEFAULT_MEMORY,
        processors,
        xsm: Xsm::None,
        runs: &prebuilt.runs,
    })?;
    let mut host = QemuHost::new(machine, Xenstored::C, Xsm::None);
    host.exec(Place::Dom0, "xl vcpu-pin 0 all 0", LIMIT)?
        .text()?;
    for (name, cpu) in [("client", 1), ("gpu", 2)] {
        let mut spec = GuestSpec::new(name, Kind::Pv);
        spec.memory_mib = 256;
        spec.cpus = Some((cpu % processors).to_string());
        host.guest_create(&spec)?;
    }
    let gpu = "exec vgpu-mediatord --listen xen: --executor cpu --control /run/vgpu/c.sock";
    start(&mut host, Place::Guest("gpu"), "gpu", gpu)?;
    let mut way = Way::new("xen:, relay:xen:");
    for round in 1..=rounds {
        eprintln!("bench: round {round} of {rounds}");
        for (relayed, executor) in [(false, "cpu"), (true, "relay:xen:gpu")] {
            let script = format!(
                "exec vgpu-mediatord --listen xen: --executor {executor} --allow-all \
                 --control /run/vgpu/mediatord.sock"
            );
            let name = format!("dom0-{round}-{relayed}");
            let mediator = start(&mut host, Place::Dom0, &name, &script)?;
            let bench = "vgpu --timeout 60s --endpoint xen: --json bench --repeats 3 --pings 200 \
                         --sizes 1048576,4194304";
            let output = host.exec(Place::Guest("client"), bench, BENCH_LIMIT)?;
            way.add(relayed, rows(output.text()?)?);
            mediator.signal(&mut host, "TERM")?;
            let output = mediator.wait(&mut host, LIMIT)?;
            ensure!(
                output.success(),
                "the mediator ended badly: {}",
                output.last_words()
            );
        }
    }
    Ok(way)
}

fn start(host: &mut QemuHost, place: Place<'_>, name: &str, script: &str) -> Result<Job> {
    let job = Job::start(host, place, name, script)?;
    job.wait_for(host, "listening on xen:", LIMIT)
        .with_context(|| format!("the mediator in {place}"))?;
    Ok(job)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_compared_row_by_row() {
        let mut way = Way::new("w");
        for (relayed, us) in [(false, 2.0), (true, 6.0), (false, 4.0), (true, 9.0)] {
            way.add(
                relayed,
                vec![("round trip".into(), us), ("vector add of  7".into(), 1.0)],
            );
        }
        let text = way.text();
        assert!(text.contains("2.50") && text.contains("1.00"), "{text}");
        assert_eq!(way.object()["rows"][0]["at_most"], MOST_ROUND_TRIP);
        assert_eq!(way.object()["rows"][1]["at_most"], MOST_BULK);
    }
}
