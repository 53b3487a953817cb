//! One run of one pair: the server in the guest, the client in dom0.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::super::host::{Host, LIMIT, Place};
use super::super::job::Job;
use super::pairs::{GUEST, Pair};
use super::points::Point;
use super::results::Ring;

/// Time limit for a whole run, on a busy machine.
const RUN_LIMIT: Duration = Duration::from_secs(900);

/// Measures `points` once and adds the figures.
///
/// # Errors
/// One side failed, which includes wrong data.
pub(super) fn run(
    host: &mut dyn Host,
    pair: Pair,
    points: &[Point],
    time: f64,
    found: &mut Ring,
) -> Result<()> {
    let domid = host.guest_domid(GUEST)?;
    let serve = format!("exec {}", pair.serve(found.bytes));
    let bench = format!(
        "exec {}",
        pair.bench(domid, points, &format!("--time {time}"))
    );
    let server = Job::start(host, Place::Guest(GUEST), "bench-serve", &serve)?;
    // Awaited in dom0 itself: every check from outside costs the machine time.
    let client = host.exec(Place::Dom0, &bench, RUN_LIMIT)?;
    if !client.success() {
        let server = server.output_so_far(host)?;
        bail!(
            "`{bench}` ended with {}: {}; the server says: {}",
            client.status,
            client.last_words(),
            server.last_words()
        );
    }
    server.wait(host, LIMIT)?.text()?;
    for line in parse(&client.stdout)? {
        if let Some(format) = line.format {
            found.formats.insert(pair, format);
        }
        let figures = found.figures.entry((pair, line.point)).or_default();
        figures.push(line.figure);
    }
    Ok(())
}

/// One object of a bench's output.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    pub(super) point: Point,
    /// MB/s, or µs for a round trip.
    pub(super) figure: f64,
    /// The format that the two sides agreed on; the stock library does not report one.
    pub(super) format: Option<String>,
}

/// The objects of a bench's output.
///
/// # Errors
/// An object is not one of `docs/vchan-bench.md`.
pub(super) fn parse(output: &str) -> Result<Vec<Line>> {
    let mut found = Vec::new();
    for line in output.lines().filter(|line| line.starts_with('{')) {
        let object: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        if object.get("step").is_some() {
            continue;
        }
        let (Some(kind), Some(bytes)) = (object["kind"].as_str(), object["message_bytes"].as_u64())
        else {
            bail!("not a line of the bench: {line}");
        };
        let figure = object["mb_per_s"]
            .as_f64()
            .or_else(|| object["us_per_round_trip"].as_f64())
            .with_context(|| format!("no figure in {line}"))?;
        found.push(Line {
            point: Point::new(kind, bytes),
            figure,
            format: object["format"].as_str().map(str::to_owned),
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_and_steps_passed_over() {
        let found = parse(
            "c-peer: client ready\n{\"step\":\"sink:64\"}\n\
             {\"kind\":\"sink\",\"message_bytes\":64,\"mb_per_s\":1.5,\"format\":\"classic\"}\n\
             {\"kind\":\"echo\",\"message_bytes\":16,\"us_per_round_trip\":20}\n",
        );
        let line = |kind, bytes, figure, format: Option<&str>| Line {
            point: Point::new(kind, bytes),
            figure,
            format: format.map(str::to_owned),
        };
        assert_eq!(
            found.unwrap(),
            [
                line("sink", 64, 1.5, Some("classic")),
                line("echo", 16, 20.0, None)
            ]
        );
        assert!(parse("{\"kind\":\"sink\",\"message_bytes\":64}").is_err());
    }
}
