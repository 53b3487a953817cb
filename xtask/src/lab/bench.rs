//! `cargo xtask bench vchan`: our channel beside the stock libxenvchan, in one boot.
//!
//! dom0 runs on one processor and a PV guest, which serves, on the other. Both programs speak the
//! protocol of `docs/vchan-bench.md`, take turns, and each point is the median of the rounds. The
//! machine is emulated: only the ratios say something.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::guest::{GuestSpec, Kind};
use super::host::{Host, LIMIT, Place, Xenstored};
use super::job::Job;
use super::project;
use super::qemu::{self, Boot, Qemu};
use super::qemu_host::QemuHost;

/// A whole bench of one program, at one ring size, on a busy machine.
const BENCH_LIMIT: Duration = Duration::from_secs(900);

const GUEST: &str = "bench";

mod flags {
    #![allow(unreachable_pub, reason = "written by the xflags macro")]

    xflags::xflags! {
        /// Benchmarks that compare with other software.
        cmd bench {
            /// vchan beside the stock libxenvchan in one boot of the lab.
            cmd vchan {
                /// Rounds; each point is their median (default 3).
                optional --rounds N: usize
                /// Seconds for a point in each round (default 0.5).
                optional --time SECONDS: f64
                /// Ring sizes in bytes, separated by commas (default 65536,1048576).
                optional --rings LIST: String
            }
        }
    }
}

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Library {
    Stock,
    Ours,
}

/// What is measured: kind and message bytes, in the order of the table.
type Point = (String, u64);

/// Figures of all rounds.
type Figures = BTreeMap<(Library, Point), Vec<f64>>;

/// Runs `cargo xtask bench ARGS`.
pub(crate) fn main(args: Vec<OsString>) -> Result<()> {
    let flags = flags::Bench::from_vec(args).unwrap_or_else(|error| error.exit());
    let flags::BenchCmd::Vchan(options) = flags.subcommand;
    let rounds = options.rounds.unwrap_or(3).max(1);
    let time = options.time.unwrap_or(0.5);
    let rings: Vec<usize> = options
        .rings
        .as_deref()
        .unwrap_or("65536,1048576")
        .split(',')
        .map(|ring| {
            ring.parse()
                .with_context(|| format!("`{ring}` is no ring size in bytes"))
        })
        .collect::<Result<_>>()?;

    let mut programs = project::build()?;
    let images = super::images()?;
    programs.push(project::build_c_peer()?);
    let machine = Qemu::boot(&Boot {
        images: &images,
        project: &project::archive(&programs)?,
        xenstored: Xenstored::C,
        memory_mib: qemu::DEFAULT_MEMORY,
    })?;
    let mut host = QemuHost::new(machine, Xenstored::C);
    host.exec(Place::Dom0, "xl vcpu-pin 0 all 0", LIMIT)?
        .text()?;
    let mut spec = GuestSpec::new(GUEST, Kind::Pv);
    spec.memory_mib = 256;
    spec.cpus = Some("1".to_owned());
    host.guest_create(&spec)?;
    for ring in rings {
        let mut figures = Figures::new();
        for round in 1..=rounds {
            for library in [Library::Stock, Library::Ours] {
                eprintln!("bench: ring {ring}, round {round} of {rounds}, {library:?}");
                measure(&mut host, library, ring, time, &mut figures)
                    .with_context(|| format!("{library:?} with rings of {ring} bytes"))?;
            }
        }
        println!("{}", table(ring, rounds, &figures));
    }
    Ok(())
}

/// One run of one library's bench.
fn measure(
    host: &mut dyn Host,
    library: Library,
    ring: usize,
    time: f64,
    figures: &mut Figures,
) -> Result<()> {
    let domid = host.guest_domid(GUEST)?;
    let (serve, bench) = match library {
        Library::Stock => (
            format!(
                "exec vchan-c-peer server 0 data/b bench-serve --to-server {ring} \
                 --to-client {ring} --timeout 900"
            ),
            format!(
                "exec vchan-c-peer client {domid} /local/domain/{domid}/data/b bench --time {time} \
                 --timeout 900"
            ),
        ),
        Library::Ours => (
            format!("exec vchan bench-serve --peer 0 --path data/b --ring {ring}"),
            format!("exec vchan bench --peer {domid} --path data/b --json --time {time}"),
        ),
    };
    let server = Job::start(host, Place::Guest(GUEST), "bench-serve", &serve)?;
    // Waited for in dom0 itself: every look from outside costs the machine time.
    let client = host.exec(Place::Dom0, &bench, BENCH_LIMIT)?;
    ensure!(
        client.success(),
        "`{bench}` ended with {}: {}",
        client.status,
        client.last_words()
    );
    server.wait(host, LIMIT)?.text()?;
    for line in client.stdout.lines().filter(|line| line.starts_with('{')) {
        let object: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let (Some(kind), Some(bytes)) = (object["kind"].as_str(), object["message_bytes"].as_u64())
        else {
            bail!("not a line of the bench: {line}");
        };
        let figure = object["mb_per_s"]
            .as_f64()
            .or_else(|| object["us_per_round_trip"].as_f64())
            .with_context(|| format!("no figure in {line}"))?;
        let point = (kind.to_owned(), bytes);
        figures.entry((library, point)).or_default().push(figure);
    }
    Ok(())
}

/// The figures as the table of `docs/benchmarks.md`.
fn table(ring: usize, rounds: usize, figures: &Figures) -> String {
    let median_of = |library, kind: &str, bytes| {
        let values = figures.get(&(library, (kind.to_owned(), bytes)))?;
        Some(median(values))
    };
    let mut text = format!(
        "\nRings of {ring} bytes each way; medians of {rounds} rounds.\n\n\
         | | message | stock libxenvchan | ours | ours / stock |\n|---|---|---|---|---|\n"
    );
    let mut points: Vec<&Point> = figures
        .keys()
        .filter(|(library, _)| *library == Library::Stock)
        .map(|(_, point)| point)
        .collect();
    let order = |kind: &str| {
        ["sink", "source", "echo"]
            .iter()
            .position(|name| *name == kind)
    };
    points.sort_by_key(|(kind, bytes)| (order(kind), *bytes));
    for (kind, bytes) in points {
        let (Some(stock), Some(ours)) = (
            median_of(Library::Stock, kind, *bytes),
            median_of(Library::Ours, kind, *bytes),
        ) else {
            continue;
        };
        // More is better but for a round trip, where the ratio is turned round.
        let (unit, ratio) = match kind.as_str() {
            "echo" => ("µs", stock / ours),
            _ => ("MB/s", ours / stock),
        };
        text.push_str(&format!(
            "| {kind} | {bytes} B | {stock:.0} {unit} | {ours:.0} {unit} | {ratio:.2} |\n"
        ));
    }
    if let Some(copy) = median_of(Library::Ours, "memcpy", 65536) {
        text.push_str(&format!(
            "\n`memcpy` of 64 KiB blocks in dom0: {copy:.0} MB/s.\n"
        ));
    }
    text
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_medians_and_ratios_in_order() {
        let mut figures = Figures::new();
        let mut add = |library, kind: &str, bytes, values: &[f64]| {
            figures.insert((library, (kind.to_owned(), bytes)), values.to_vec());
        };
        add(Library::Stock, "echo", 16, &[500.0]);
        add(Library::Ours, "echo", 16, &[250.0]);
        add(Library::Stock, "sink", 4096, &[10.0, 1000.0, 100.0]);
        add(Library::Ours, "sink", 4096, &[150.0, 250.0]);
        let text = table(65536, 3, &figures);
        let rows: Vec<&str> = text.lines().filter(|line| line.contains(" B |")).collect();
        assert_eq!(
            rows,
            [
                "| sink | 4096 B | 100 MB/s | 200 MB/s | 2.00 |",
                "| echo | 16 B | 500 µs | 250 µs | 2.00 |"
            ]
        );
    }
}
