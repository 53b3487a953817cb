//! Polling before sleeping compared with sleeping at once, for different situations of the
//! processors: both sides on one, two idle ones, and two shared with busy loops.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::figures::median;
use super::local::{Figures, Sides, once};
use super::points::Point;
use super::results::compared;
use super::targets::{self, Target};
use crate::busy::Busy;

/// Rings in bytes.
const RINGS: [usize; 2] = [64 << 10, 1 << 20];

/// Seconds for a point: there are many, and the two ways of waiting alternate at each.
const TIME: f64 = 0.15;

/// `--spin` of both sides: the default on hardware, and none. Of equal length: a longer argument
/// list moves the programs' allocations, and the place of a message can halve a rate.
const LOOKING: &str = "1000";
const ASLEEP: &str = "0000";

struct Situation {
    name: &'static str,
    /// Processors of client and server.
    cpus: [&'static str; 2],
    busy_loops: usize,
    target: Option<Target>,
}

const SITUATIONS: [Situation; 3] = [
    Situation {
        name: "both sides on one processor",
        cpus: ["0", "0"],
        busy_loops: 0,
        target: Some(targets::ONE_PROCESSOR),
    },
    Situation {
        name: "two idle processors",
        cpus: ["0", "1"],
        busy_loops: 0,
        target: None,
    },
    Situation {
        name: "two processors and two busy loops",
        cpus: ["0,1", "0,1"],
        busy_loops: 2,
        target: None,
    },
];

fn points() -> Vec<Point> {
    let mut points = Vec::new();
    for kind in ["sink", "source"] {
        points.extend([64, 1024, 4096, 16384, 65536].map(|bytes| Point::new(kind, bytes)));
    }
    points.extend([16, 1024].map(|bytes| Point::new("echo", bytes)));
    points
}

/// Measures all of them, prints a table for each, and returns the objects for `--json`.
///
/// # Errors
/// A side failed, or data was wrong.
pub(super) fn run(vchan: &Path, rounds: usize) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    for situation in &SITUATIONS {
        let _busy = Busy::start(situation.busy_loops);
        for ring in RINGS {
            let (mut usual, mut asleep) = (Figures::new(), Figures::new());
            for round in 1..=rounds {
                eprintln!(
                    "bench: {}, ring {ring}, round {round} of {rounds}",
                    situation.name
                );
                // Both ways at one point before the next, each first in turn: other load then
                // affects both alike.
                for point in points() {
                    let mut ways = [(LOOKING, &mut usual), (ASLEEP, &mut asleep)];
                    if round % 2 == 0 {
                        ways.reverse();
                    }
                    for (spin, figures) in ways {
                        let sides = Sides {
                            cpus: situation.cpus,
                            points: &point.argument(),
                            spin: Some(spin),
                        };
                        for line in once(vchan, ring, TIME, &sides)? {
                            figures.entry(line.point).or_default().push(line.figure);
                        }
                    }
                }
            }
            println!("{}", table(situation, ring, &usual, &asleep));
            found.push(object(situation, ring, &usual, &asleep));
        }
    }
    Ok(found)
}

/// The rate of the usual way relative to sleeping at once: more is better, for round trips too.
fn speed(point: &Point, usual: &Figures, asleep: &Figures) -> Option<f64> {
    let ratio = median(usual.get(point)?) / median(asleep.get(point)?);
    Some(if point.is_round_trip() {
        ratio.recip()
    } else {
        ratio
    })
}

fn table(situation: &Situation, ring: usize, usual: &Figures, asleep: &Figures) -> String {
    let mut text = format!(
        "\n## {}, rings of {ring} bytes each way\n\n\
         | | message | default | `--spin 0` | speed to `--spin 0` | target |\n\
         |---|---|---|---|---|---|\n",
        situation.name
    );
    for point in points() {
        let (Some(ours), Some(others), Some(ratio)) = (
            usual.get(&point),
            asleep.get(&point),
            speed(&point, usual, asleep),
        ) else {
            continue;
        };
        let unit = if point.is_round_trip() { "µs" } else { "MB/s" };
        let verdict = situation
            .target
            .map_or_else(String::new, |target| target.verdict(ratio));
        text.push_str(&format!(
            "| {} | {} B | {:.1} {unit} | {:.1} {unit} | {ratio:.2} | {verdict} |\n",
            point.kind,
            point.bytes,
            median(ours),
            median(others),
        ));
    }
    text
}

fn object(situation: &Situation, ring: usize, usual: &Figures, asleep: &Figures) -> Value {
    let points: Vec<Value> = points()
        .iter()
        .map(|point| {
            json!({
                "kind": point.kind,
                "message_bytes": point.bytes,
                "unit": if point.is_round_trip() { "us_per_round_trip" } else { "mb_per_s" },
                "rounds": usual.get(point),
                "rounds_without_looking": asleep.get(point),
                "speed": compared(speed(point, usual, asleep), situation.target),
            })
        })
        .collect();
    json!({
        "situation": situation.name,
        "cpus": situation.cpus,
        "busy_loops_on_the_host": situation.busy_loops,
        "seconds_a_point": TIME,
        "ring_bytes": ring,
        "figures": points,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_faster_for_rates_and_round_trips() {
        let (mut usual, mut asleep) = (Figures::new(), Figures::new());
        for (kind, bytes, ours, others) in [("sink", 64, 80.0, 100.0), ("echo", 16, 4.0, 8.0)] {
            usual.insert(Point::new(kind, bytes), vec![ours]);
            asleep.insert(Point::new(kind, bytes), vec![others]);
        }
        let text = table(&SITUATIONS[0], 65536, &usual, &asleep);
        let rows: Vec<&str> = text.lines().filter(|line| line.contains(" B |")).collect();
        assert_eq!(
            rows,
            [
                "| sink | 64 B | 80.0 MB/s | 100.0 MB/s | 0.80 | ≥ 0.9: missed |",
                "| echo | 16 B | 4.0 µs | 8.0 µs | 2.00 | ≥ 0.9: met |",
            ]
        );
    }
}
