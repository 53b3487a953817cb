//! `cargo xtask bench local`: two processes of this machine, each on a processor of its own,
//! beside memcpy and a Unix socket pair in the same run.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::figures::median;
use super::flags::Local;
use super::measure::{Line, parse};
use super::points::{Point, memcpy};
use super::results::compared;
use super::targets::Target;
use super::{prebuilt, rings, seconds, situations, targets, write_json};
use crate::apt;
use crate::busy::Busy;

/// In the order of the table.
const KINDS: [&str; 10] = [
    "sink",
    "source",
    "echo",
    "produce",
    "produce-in-place",
    "consume",
    "consume-in-place",
    "memcpy",
    "socket-pair",
    "socket-pair-together",
];

/// Default ring sizes in bytes: the last is the default of a channel.
const RINGS: [usize; 2] = [1 << 20, 8 << 20];

/// All points, as an argument for the program.
const POINTS: &str = "sink,source,echo,produce:65536,produce-in-place:65536,consume:65536,\
                      consume-in-place:65536,memcpy,socket-pair,socket-pair-together";

/// Runs it.
///
/// # Errors
/// A side failed, or data was wrong.
pub(super) fn run(options: &Local) -> Result<()> {
    let rounds = options.rounds.unwrap_or(5).max(1);
    let time = seconds(options.time)?;
    let cpus = options.cpus.as_deref().unwrap_or("0,1");
    let Some((client_cpu, server_cpu)) = cpus.split_once(',') else {
        bail!("--cpus takes two processors, as in 0,1");
    };
    let vchan = prebuilt::vchan(options.prebuilt.as_deref())?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let loops = options.busy_host.unwrap_or(0);
    let busy = Busy::start(loops);
    let sides = Sides {
        cpus: [client_cpu, server_cpu],
        points: POINTS,
        spin: None,
    };
    let mut found = Vec::new();
    for ring in rings(options.rings.as_deref(), &RINGS)? {
        let mut figures = Figures::new();
        for round in 1..=rounds {
            eprintln!("bench: ring {ring}, round {round} of {rounds}");
            for line in once(&vchan, ring, time, &sides)? {
                figures.entry(line.point).or_default().push(line.figure);
            }
        }
        println!("{}", table(ring, processors, &figures));
        found.push(json!({ "ring_bytes": ring, "figures": objects(&figures) }));
    }
    drop(busy);
    // They choose processors and load themselves; a caller that names others wants only those.
    let situations = if options.cpus.is_none() && options.busy_host.is_none() {
        situations::run(&vchan, rounds)?
    } else {
        Vec::new()
    };
    let all = json!({
        "bench": "local",
        "rounds": rounds,
        "seconds_a_point": time,
        "processors": processors,
        "cpus": cpus,
        "busy_loops_on_the_host": loops,
        "rings": found,
        "situations": situations,
    });
    write_json(options.json.as_deref(), &all)
}

/// Figures of all rounds: MB/s, or µs for a round trip.
pub(super) type Figures = BTreeMap<Point, Vec<f64>>;

/// The options with which one server and one client are started.
pub(super) struct Sides<'a> {
    /// Processors of client and server, in taskset's form.
    pub(super) cpus: [&'a str; 2],
    pub(super) points: &'a str,
    /// `--spin` of both; none for the default.
    pub(super) spin: Option<&'a str>,
}

/// One server and one client.
pub(super) fn once(vchan: &Path, ring: usize, time: f64, sides: &Sides<'_>) -> Result<Vec<Line>> {
    let socket = std::env::temp_dir().join(format!("vchan-bench-{}.sock", std::process::id()));
    let command = |cpu: &str, words: &[&str]| {
        // Without taskset the kernel chooses; the figures are then less steady.
        let mut command = match apt::which("taskset") {
            Some(taskset) => {
                let mut command = Command::new(taskset);
                command.args(["-c", cpu]).arg(vchan);
                command
            }
            None => Command::new(vchan),
        };
        command.args(words).args(["--backend", "local", "--path"]);
        command.arg(&socket);
        if let Some(spin) = sides.spin {
            command.args(["--spin", spin]);
        }
        command
    };
    let mut server = command(sides.cpus[1], &["bench-serve", "--ring", &ring.to_string()])
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {}", vchan.display()))?;
    let client = command(
        sides.cpus[0],
        &["bench", "--json", "--points", sides.points],
    )
    .args(["--time", &time.to_string()])
    .stderr(Stdio::inherit())
    .output();
    if client.as_ref().is_ok_and(|client| !client.status.success()) {
        let _ = server.kill();
    }
    let served = server.wait()?;
    let client = client?;
    ensure!(
        client.status.success() && served.success(),
        "client: {}, server: {served}",
        client.status
    );
    parse(&String::from_utf8_lossy(&client.stdout))
}

/// The figure with which `point` is compared, the ratio, and its target.
fn comparison<'a>(point: &Point, figures: &Figures) -> Option<(&'a str, f64, Option<Target>)> {
    let baseline = match point.kind.as_str() {
        "sink" | "source" => memcpy(),
        "echo" => Point::new("socket-pair", point.bytes),
        "produce-in-place" => Point::new("produce", point.bytes),
        "consume-in-place" => Point::new("consume", point.bytes),
        _ => return None,
    };
    let ratio = median(figures.get(point)?) / median(figures.get(&baseline)?);
    let with = match point.kind.as_str() {
        "sink" | "source" => "memcpy",
        "echo" => "socket pair",
        _ => "by way of a buffer",
    };
    let target = match (point.kind.as_str(), point.bytes) {
        ("echo", _) => Some(targets::LOCAL_ROUND_TRIP),
        ("produce-in-place" | "consume-in-place", _) => Some(targets::IN_PLACE),
        (_, 65536) => Some(targets::LOCAL_RATE),
        _ => None,
    };
    Some((with, ratio, target))
}

fn in_order(figures: &Figures) -> Vec<&Point> {
    let place = |point: &Point| KINDS.iter().position(|kind| *kind == point.kind);
    let mut points: Vec<&Point> = figures.keys().collect();
    points.sort_by_key(|point| (place(point), point.bytes));
    points
}

fn table(ring: usize, processors: usize, figures: &Figures) -> String {
    let mut text = format!(
        "\n## Rings of {ring} bytes each way, {processors} processors\n\n\
         | | message | median | compared with | ratio | target |\n|---|---|---|---|---|---|\n"
    );
    for point in in_order(figures) {
        let Some(values) = figures.get(point) else {
            continue;
        };
        let unit = if point.is_round_trip() { "µs" } else { "MB/s" };
        let value = median(values);
        let digits = if value < 100.0 { 2 } else { 0 };
        let (with, ratio, verdict) = match comparison(point, figures) {
            Some((with, ratio, target)) => (
                with,
                format!("{ratio:.2}"),
                target.map_or_else(String::new, |target| target.verdict(ratio)),
            ),
            None => ("", String::new(), String::new()),
        };
        text.push_str(&format!(
            "| {} | {} B | {value:.digits$} {unit} | {with} | {ratio} | {verdict} |\n",
            point.kind, point.bytes
        ));
    }
    if processors <= 2 {
        text.push_str(
            "\nWith two processors both are taken by the two sides; whatever else runs makes one \
             of them wait, and a side that looks at the ring keeps its processor from others.\n",
        );
    }
    text
}

fn objects(figures: &Figures) -> Vec<Value> {
    let object = |point: &Point, values: &Vec<f64>| {
        let (ratio, target) = comparison(point, figures)
            .map(|(_, ratio, target)| (ratio, target))
            .unzip();
        json!({
            "kind": point.kind,
            "message_bytes": point.bytes,
            "unit": if point.is_round_trip() { "us_per_round_trip" } else { "mb_per_s" },
            "median": median(values),
            "rounds": values,
            "compared": compared(ratio, target.flatten()),
        })
    };
    let figures = figures.iter();
    figures
        .map(|(point, values)| object(point, values))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_compared_with_their_baseline() {
        let mut figures = Figures::new();
        for (kind, bytes, value) in [
            ("echo", 16, 1.0),
            ("socket-pair", 16, 10.0),
            ("sink", 65536, 7000.0),
            ("sink", 64, 700.0),
            ("memcpy", 65536, 10_000.0),
        ] {
            figures.insert(Point::new(kind, bytes), vec![value]);
        }
        let text = table(65536, 2, &figures);
        let rows: Vec<&str> = text.lines().filter(|line| line.contains(" B |")).collect();
        assert_eq!(
            rows,
            [
                "| sink | 64 B | 700 MB/s | memcpy | 0.07 |  |",
                "| sink | 65536 B | 7000 MB/s | memcpy | 0.70 | ≥ 0.8: missed |",
                "| echo | 16 B | 1.00 µs | socket pair | 0.10 | ≤ 0.2: met |",
                "| memcpy | 65536 B | 10000 MB/s |  |  |  |",
                "| socket-pair | 16 B | 10.00 µs |  |  |  |"
            ]
        );
    }
}
