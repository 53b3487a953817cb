//! The tables of one ring size, in the form of `docs/benchmarks.md`.

use super::pairs::Pair;
use super::points::{Point, in_place, memcpy};
use super::results::Ring;
use super::stepped::Counted;
use super::targets::{self, Target};

/// All tables of `ring` that have a row.
pub(super) fn text(ring: &Ring) -> String {
    let mut text = format!("\n## Rings of {} bytes each way\n", ring.bytes);
    if let Some(copy) = ring.median(Pair::Ours, &memcpy()) {
        text.push_str(&format!(
            "\n`memcpy` of 64 KiB blocks, same boot, dom0: {copy:.0} MB/s.\n"
        ));
    }
    if let Some(format) = ring.formats.get(&Pair::Ours) {
        text.push_str(&format!("\nOurs on both sides: {format} format.\n"));
    }
    let tables = [
        ours(ring),
        mixed(ring),
        words(ring),
        wake_ups(ring),
        idle(ring),
    ];
    for table in tables.into_iter().flatten() {
        text.push('\n');
        text.push_str(&table);
    }
    text
}

/// Lines of cells, with a heading.
fn markdown(heading: &[&str], rows: Vec<Vec<String>>) -> Option<String> {
    if rows.is_empty() {
        return None;
    }
    let mut text = format!(
        "| {} |\n|{}\n",
        heading.join(" | "),
        "---|".repeat(heading.len())
    );
    for row in rows {
        text.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    Some(text)
}

/// The figure with its unit.
fn figure(point: &Point, value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if !point.is_round_trip() => format!("{value:.0} MB/s"),
        Some(value) if value < 10.0 => format!("{value:.2} µs"),
        Some(value) => format!("{value:.0} µs"),
    }
}

fn ratio(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| format!("{value:.2}"))
}

fn verdict(target: Option<Target>, value: Option<f64>) -> String {
    match (target, value) {
        (Some(target), Some(value)) => target.verdict(value),
        _ => String::new(),
    }
}

fn ours(ring: &Ring) -> Option<String> {
    let with_classic = ring.has(Pair::Classic);
    let mut heading = vec!["", "message", "stock", "ours", "ours / stock", "target"];
    heading.extend(["ours / memcpy", "target"]);
    if with_classic {
        heading.extend(["ours, classic layout", "ours / classic"]);
    }
    let with_asleep = ring.has(Pair::Asleep);
    if with_asleep {
        heading.extend(["`--spin 0`", "of stock", "ours / `--spin 0`"]);
    }
    let rows = ring.points().filter(|point| {
        [Pair::Stock, Pair::Ours, Pair::Classic, Pair::Asleep]
            .iter()
            .any(|pair| ring.median(*pair, point).is_some())
    });
    let rows = rows.map(|point| {
        let ours = ring.median(Pair::Ours, point);
        let to_stock = ring.ratio(point, Pair::Ours, Pair::Stock);
        let to_copy = ring.to_memcpy(point);
        let mut row = vec![
            point.kind.clone(),
            format!("{} B", point.bytes),
            figure(point, ring.median(Pair::Stock, point)),
            figure(point, ours),
            ratio(to_stock),
            verdict(
                targets::against_stock(point, ring.bytes, ring.busy),
                to_stock,
            ),
            ratio(to_copy),
            verdict(
                targets::against_memcpy(point, ring.bytes, ring.busy),
                to_copy,
            ),
        ];
        if with_classic {
            row.push(figure(point, ring.median(Pair::Classic, point)));
            row.push(ratio(ring.ratio(point, Pair::Ours, Pair::Classic)));
        }
        if with_asleep {
            row.push(figure(point, ring.median(Pair::Asleep, point)));
            row.push(ratio(ring.ratio(point, Pair::Asleep, Pair::Stock)));
            row.push(ratio(ring.ratio(point, Pair::Ours, Pair::Asleep)));
        }
        row
    });
    markdown(&heading, rows.collect())
}

fn mixed(ring: &Ring) -> Option<String> {
    let pairs: Vec<Pair> = [Pair::OursStock, Pair::StockOurs]
        .into_iter()
        .filter(|pair| ring.has(*pair))
        .collect();
    let mut heading = vec!["", "message", "stock both sides"];
    for pair in &pairs {
        heading.push(match pair {
            Pair::OursStock => "our client, stock server",
            _ => "stock client, our server",
        });
        heading.extend(["ratio", "target"]);
    }
    if pairs.is_empty() {
        return None;
    }
    let rows = ring.points().map(|point| {
        let mut row = vec![
            point.kind.clone(),
            format!("{} B", point.bytes),
            figure(point, ring.median(Pair::Stock, point)),
        ];
        for pair in &pairs {
            let to_stock = ring.ratio(point, *pair, Pair::Stock);
            row.push(figure(point, ring.median(*pair, point)));
            row.push(ratio(to_stock));
            row.push(verdict(Some(targets::no_slower(point)), to_stock));
        }
        row
    });
    markdown(&heading, rows.collect())
}

fn words(ring: &Ring) -> Option<String> {
    let rows = ring.words().into_iter().map(|copying| {
        let of = |point| figure(point, ring.median(Pair::Ours, point));
        let to_copying = ring.in_place_ratio(copying);
        vec![
            copying.kind.clone(),
            format!("{} B", copying.bytes),
            of(copying),
            of(&in_place(copying)),
            ratio(to_copying),
            verdict(Some(targets::IN_PLACE), to_copying),
        ]
    });
    let heading = [
        "words made and added up",
        "message",
        "by way of a buffer",
        "in place",
        "in place / buffer",
        "target",
    ];
    markdown(&heading, rows.collect())
}

fn wake_ups(ring: &Ring) -> Option<String> {
    let rows = ring.wake_up_points().into_iter().map(|point| {
        let cell = |pair| {
            ring.transfer(pair, &point)
                .map_or_else(String::new, |transfer| {
                    let sides = transfer.sides;
                    format!(
                        "{:.2} ({} in dom0, {} in the guest)",
                        transfer.wake_ups_per_mib(),
                        sides.dom0.interrupts,
                        sides.guest.interrupts
                    )
                })
        };
        let to_stock = ring.wake_up_ratio(&point);
        vec![
            point.kind.clone(),
            format!("{} B", point.bytes),
            cell(Pair::Stock),
            cell(Pair::Ours),
            ratio(to_stock),
            verdict(Some(targets::WAKE_UPS), to_stock),
        ]
    });
    let heading = [
        "wake-ups per MiB",
        "message",
        "stock",
        "ours",
        "ours / stock",
        "target",
    ];
    markdown(&heading, rows.collect())
}

fn idle(ring: &Ring) -> Option<String> {
    let of = |counted: &Counted| counted.idle;
    let rows = ring.counted.iter().filter_map(|(pair, counted)| {
        let sides = of(counted)?;
        let seconds = sides.dom0.uptime.min(sides.guest.uptime).as_secs_f64();
        let calm = sides.interrupts() == 0 && sides.switches() == 0 && sides.cpu().is_zero();
        Some(vec![
            pair.to_string(),
            format!("{seconds:.1} s"),
            format!("{:.2}", sides.interrupts() as f64 / seconds),
            format!("{:.2}", sides.switches() as f64 / seconds),
            format!("{:.1} ms", sides.cpu().as_secs_f64() * 1e3),
            match (*pair, calm) {
                (Pair::Ours, true) => "0: met".to_owned(),
                (Pair::Ours, false) => "0: missed".to_owned(),
                _ => String::new(),
            },
        ])
    });
    let heading = [
        "idle channel, both sides",
        "watched for",
        "interrupts a second",
        "context switches a second",
        "processor time",
        "target",
    ];
    markdown(&heading, rows.collect())
}

#[cfg(test)]
mod tests {
    use super::super::figures::Figures;
    use super::super::stepped::{Sides, Transfer};
    use super::*;

    fn rows(text: &str) -> Vec<&str> {
        text.lines().filter(|line| line.contains(" B |")).collect()
    }

    fn ring(add: &[(Pair, &str, u64, &[f64])]) -> Ring {
        let mut figures = Figures::new();
        for (pair, kind, bytes, values) in add {
            figures.insert((*pair, Point::new(kind, *bytes)), values.to_vec());
        }
        Ring {
            bytes: 65536,
            figures,
            ..Ring::default()
        }
    }

    #[test]
    fn a_table_has_medians_ratios_and_verdicts_in_order() {
        let ring = ring(&[
            (Pair::Stock, "echo", 16, &[500.0]),
            (Pair::Ours, "echo", 16, &[20.0]),
            (Pair::Stock, "sink", 4096, &[10.0, 1000.0, 100.0]),
            (Pair::Ours, "sink", 4096, &[60.0, 2000.0, 400.0]),
            (Pair::Ours, "memcpy", 65536, &[400.0]),
        ]);
        let text = text(&ring);
        assert!(text.contains("400 MB/s"));
        assert_eq!(
            rows(&text),
            [
                "| sink | 4096 B | 100 MB/s | 400 MB/s | 4.00 | ≥ 5: missed | 1.00 |  |",
                "| echo | 16 B | 500 µs | 20 µs | 0.04 | ≤ 0.05: met |  |  |"
            ]
        );
    }

    #[test]
    fn what_was_not_measured_stays_empty() {
        let ring = ring(&[
            (Pair::Ours, "sink", 64, &[100.0]),
            (Pair::Classic, "sink", 64, &[50.0]),
        ]);
        assert_eq!(
            rows(&text(&ring)),
            ["| sink | 64 B |  | 100 MB/s |  |  |  |  | 50 MB/s | 2.00 |"]
        );
    }

    #[test]
    fn mixed_pairs_stand_beside_stock() {
        let ring = ring(&[
            (Pair::Stock, "source", 64, &[100.0]),
            (Pair::OursStock, "source", 64, &[110.0]),
            (Pair::StockOurs, "source", 64, &[90.0]),
        ]);
        assert_eq!(
            rows(&text(&ring))[1],
            "| source | 64 B | 100 MB/s | 110 MB/s | 1.10 | ≥ 1: met | 90 MB/s | 0.90 | ≥ 1: missed |"
        );
    }

    #[test]
    fn work_in_place_stands_beside_copying() {
        let ring = ring(&[
            (Pair::Ours, "produce", 65536, &[100.0]),
            (Pair::Ours, "produce-in-place", 65536, &[150.0]),
            (Pair::Ours, "consume", 65536, &[100.0]),
        ]);
        assert_eq!(
            rows(&text(&ring)),
            ["| produce | 65536 B | 100 MB/s | 150 MB/s | 1.50 | ≥ 1.3: met |"]
        );
    }

    #[test]
    fn wake_ups_count_both_sides() {
        let mut ring = ring(&[]);
        for (pair, dom0, guest) in [(Pair::Stock, 600, 424), (Pair::Ours, 64, 64)] {
            let mut sides = Sides::default();
            (sides.dom0.interrupts, sides.guest.interrupts) = (dom0, guest);
            let transfer = Transfer {
                point: Point::new("sink", 4096),
                bytes: 64 << 20,
                sides,
            };
            ring.counted.push((
                pair,
                Counted {
                    transfers: vec![transfer],
                    idle: Some(sides),
                },
            ));
        }
        let text = text(&ring);
        assert_eq!(
            rows(&text),
            [
                "| sink | 4096 B | 16.00 (600 in dom0, 424 in the guest) | 2.00 (64 in dom0, 64 in \
                 the guest) | 0.12 | ≤ 0.25: met |"
            ]
        );
        assert!(text.contains("0: missed"));
    }
}
