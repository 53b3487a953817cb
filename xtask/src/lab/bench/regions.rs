//! `cargo xtask bench regions`: blocks of 64 KiB through a shared region with small messages over
//! the ring, beside the same blocks through the ring alone, in one boot of the lab.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::super::host::{Host, LIMIT, Place};
use super::super::job::Job;
use super::figures::median;
use super::flags::Regions;
use super::pairs::GUEST;
use super::{boot, prebuilt, rings, seconds, write_json};

/// With rings of 1 MiB all of it stays below the 1,024 pages that a kernel grants.
const REGION: usize = 1 << 20;

/// Time limit for a whole run, on a busy machine.
const RUN_LIMIT: Duration = Duration::from_secs(600);

/// MB/s of all rounds.
#[derive(Debug, Default)]
struct Figures {
    ring: Vec<f64>,
    region: Vec<f64>,
}

/// Runs it.
///
/// # Errors
/// A side failed.
pub(super) fn run(options: &Regions) -> Result<()> {
    let rounds = options.rounds.unwrap_or(3).max(1);
    let time = seconds(options.time)?;
    let sizes = rings(options.rings.as_deref(), &[64 << 10, 256 << 10, 1 << 20])?;
    let prebuilt = prebuilt::obtain(options.prebuilt.as_deref())?;
    let mut host = boot(&prebuilt)?;
    let mut found: BTreeMap<usize, Figures> = BTreeMap::new();
    for round in 1..=rounds {
        for &ring in &sizes {
            eprintln!("bench: ring {ring}, round {round} of {rounds}");
            let output = once(&mut host, ring, time)?;
            add(&output, found.entry(ring).or_default())?;
        }
    }
    println!("{}", table(&found));
    let rings: Vec<Value> = found
        .iter()
        .map(|(ring, figures)| {
            json!({
                "ring_bytes": ring,
                "ring_mb_per_s": figures.ring,
                "region_mb_per_s": figures.region,
            })
        })
        .collect();
    let all = json!({
        "bench": "regions",
        "rounds": rounds,
        "seconds_a_point": time,
        "region_bytes": REGION,
        "rings": rings,
    });
    write_json(options.json.as_deref(), &all)
}

/// The guest makes the region, dom0 writes into it.
fn once(host: &mut dyn Host, ring: usize, time: f64) -> Result<String> {
    let domid = host.guest_domid(GUEST)?;
    let serve =
        format!("exec vchan-testing region-serve xen:0/data/bench --ring {ring} --bytes {REGION}");
    let bench = format!(
        "exec vchan-testing region-connect xen:{domid}/data/bench --to bench --time {time}"
    );
    let server = Job::start(host, Place::Guest(GUEST), "bench-serve", &serve)?;
    let client = host.exec(Place::Dom0, &bench, RUN_LIMIT)?;
    ensure!(
        client.success(),
        "`{bench}` ended with {}: {}",
        client.status,
        client.last_words()
    );
    server.wait(host, LIMIT)?.text()?;
    Ok(client.stdout)
}

/// Adds the figures of one run.
fn add(output: &str, figures: &mut Figures) -> Result<()> {
    for line in output.lines().filter(|line| line.starts_with('{')) {
        let object: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let figure = object["mb_per_s"]
            .as_f64()
            .with_context(|| format!("no figure in {line}"))?;
        match object["kind"].as_str() {
            Some("ring") => figures.ring.push(figure),
            Some("region") => figures.region.push(figure),
            _ => {}
        }
    }
    Ok(())
}

fn table(found: &BTreeMap<usize, Figures>) -> String {
    let mut text = String::from(
        "| ring | ring alone | region and small messages | region / ring |\n|---|---|---|---|\n",
    );
    for (ring, figures) in found {
        let (alone, region) = (median(&figures.ring), median(&figures.region));
        text.push_str(&format!(
            "| {} KiB | {alone:.0} MB/s | {region:.0} MB/s | {:.2} |\n",
            ring >> 10,
            region / alone
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_medians_and_their_ratio() {
        let mut figures = Figures::default();
        for (ring, region) in [(100, 300), (90, 200), (110, 400)] {
            let output = format!(
                "{{\"kind\":\"ring\",\"mb_per_s\":{ring}}}\n\
                 {{\"kind\":\"region\",\"mb_per_s\":{region}}}\nratio region / ring: 3.00\n"
            );
            add(&output, &mut figures).unwrap();
        }
        let text = table(&BTreeMap::from([(65536, figures)]));
        assert!(
            text.ends_with("| 64 KiB | 100 MB/s | 300 MB/s | 3.00 |\n"),
            "{text}"
        );
        assert!(add("{\"kind\":\"ring\"}", &mut Figures::default()).is_err());
    }
}
