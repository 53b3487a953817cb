//! `cargo xtask bench nfs`: whole sessions over the ring and over the file protocol on NFS, with the
//! recommended mount options and with none, in one boot of the lab.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::super::guest::{GuestSpec, Kind};
use super::super::host::{Host, LIMIT, Place};
use super::super::job::Job;
use super::super::suite::nfs::Mount;
use super::figures::median;
use super::flags::Nfs;
use super::pairs::GUEST;
use super::{boot_with, prebuilt, write_json};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);

/// One mediator for both ways, with the suite's long time limits.
const MEDIATOR: &str = "exec vgpu-mediatord --listen xen:,file:/dev/shm/vgpu --executor cpu \
     --allow-all --control /run/vgpu/mediatord.sock";

const SIZES: [u64; 2] = [1_024, 1_048_576];

/// Time limit for a whole run, on a busy machine.
const RUN_LIMIT: Duration = Duration::from_secs(900);

/// The ways that are compared.
const WAYS: [Way; 3] = [
    Way {
        name: "ring (`xen:`)",
        mount: None,
    },
    Way {
        name: "NFS, recommended options",
        mount: Some(Mount::Recommended),
    },
    Way {
        name: "NFS, defaults",
        mount: Some(Mount::Default),
    },
];

#[derive(Debug)]
struct Way {
    name: &'static str,
    mount: Option<Mount>,
}

/// Seconds of all rounds, by size; 0 elements is a round trip.
type Figures = BTreeMap<u64, Vec<f64>>;

/// Runs it.
///
/// # Errors
/// A side failed, or a sum was wrong.
pub(super) fn run(options: &Nfs) -> Result<()> {
    let rounds = options.rounds.unwrap_or(3).max(1);
    let repeats = options.repeats.unwrap_or(5).max(1);
    let pings = options.pings.unwrap_or(20).max(1);
    let prebuilt = prebuilt::obtain_all(options.prebuilt.as_deref())?;
    let mut spec = GuestSpec::new(GUEST, Kind::Pv);
    spec.memory_mib = 320;
    spec.address = Some(ADDRESS);
    let mut host = boot_with(&prebuilt, &spec)?;
    serve(&mut host)?;
    let mut found: [Figures; WAYS.len()] = Default::default();
    for round in 1..=rounds {
        for (way, figures) in WAYS.iter().zip(&mut found) {
            eprintln!("bench: {}, round {round} of {rounds}", way.name);
            let output = once(&mut host, way, pings, repeats)?;
            add(&output, figures).with_context(|| way.name)?;
        }
    }
    println!("{}", table(&found));
    let ways: Vec<Value> = WAYS
        .iter()
        .zip(&found)
        .map(|(way, figures)| json!({"way": way.name, "seconds": figures}))
        .collect();
    let all = json!({
        "bench": "nfs",
        "rounds": rounds,
        "repeats": repeats,
        "pings": pings,
        "ways": ways,
    });
    write_json(options.json.as_deref(), &all)
}

/// Exports a directory to the guest and starts the mediator, which ends with the machine.
fn serve(host: &mut dyn Host) -> Result<()> {
    let script = format!(
        ". /lab/network.sh && nfsd_start && share_make {GUEST} && share_export {GUEST} {ADDRESS}"
    );
    host.exec(Place::Dom0, &script, LIMIT)?.text()?;
    let mediator = Job::start(host, Place::Dom0, "mediator", MEDIATOR)?;
    mediator.wait_for(host, "listening on xen:", LIMIT)?;
    let served =
        format!("until [ -d /dev/shm/vgpu/{GUEST}/sessions ]; do usleep 100000; done 2>/dev/null");
    host.exec(Place::Dom0, &served, LIMIT)?.text()?;
    Ok(())
}

/// One run of `vgpu bench` in the guest.
fn once(host: &mut dyn Host, way: &Way, pings: u32, repeats: u32) -> Result<String> {
    let endpoint = match way.mount {
        None => "xen:",
        Some(_) => "file:/mnt/vgpu",
    };
    let sizes = SIZES.map(|size| size.to_string()).join(",");
    let bench = format!(
        "vgpu --timeout 100 --endpoint {endpoint} --json bench --sizes {sizes} \
         --pings {pings} --repeats {repeats}"
    );
    let script = match way.mount {
        None => bench,
        Some(mount) => format!(
            "{} && {bench} && /usr/bin/umount /mnt/vgpu",
            mount.command()
        ),
    };
    let output = host.exec(Place::Guest(GUEST), &script, RUN_LIMIT)?;
    ensure!(
        output.success(),
        "`{script}` ended with {}: {}",
        output.status,
        output.last_words()
    );
    Ok(output.stdout)
}

/// Adds the figures of one run.
fn add(output: &str, figures: &mut Figures) -> Result<()> {
    for line in output.lines().filter(|line| line.starts_with('{')) {
        let object: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let trip = object["median_us"].as_f64().map(|us| (0, us / 1e6));
        let vectors = object["elements"]
            .as_u64()
            .zip(object["median_seconds"].as_f64());
        let (elements, seconds) = trip
            .or(vectors)
            .with_context(|| format!("no figure in {line}"))?;
        figures.entry(elements).or_default().push(seconds);
    }
    Ok(())
}

fn table(found: &[Figures; WAYS.len()]) -> String {
    let mut text = String::from(
        "| | round trip | 1,024 elements | 1,048,576 elements | round trip / ring | 1,024 / ring | 1,048,576 / ring |\n|---|---|---|---|---|---|---|\n",
    );
    let time = |figures: &Figures, elements| median(figures.get(&elements).map_or(&[], |f| f));
    for (way, figures) in WAYS.iter().zip(found) {
        text.push_str(&format!("| {} |", way.name));
        let elements = [0, SIZES[0], SIZES[1]];
        for elements in elements {
            text.push_str(&format!(" {:.2} ms |", time(figures, elements) * 1e3));
        }
        for elements in elements {
            let ratio = time(figures, elements) / time(&found[0], elements);
            text.push_str(&format!(" {ratio:.1} |"));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_medians_and_ratios() {
        let mut found: [Figures; 3] = Default::default();
        for (figures, factor) in found.iter_mut().zip([1.0, 20.0, 10.0]) {
            for round in [1.0, 2.0, 9.0] {
                let output = format!(
                    "{{\"kind\":\"round_trip\",\"median_us\":{}}}\n\
                     {{\"kind\":\"vector_add\",\"elements\":1024,\"median_seconds\":{}}}\n\
                     {{\"kind\":\"vector_add\",\"elements\":1048576,\"median_seconds\":{}}}\n",
                    500.0 * round * factor,
                    0.001 * round * factor,
                    0.01 * round * factor
                );
                add(&output, figures).unwrap();
            }
        }
        let text = table(&found);
        assert!(
            text.contains("| 1.00 ms | 2.00 ms | 20.00 ms | 1.0 | 1.0 | 1.0 |"),
            "{text}"
        );
        assert!(text.ends_with("| 10.0 | 10.0 | 10.0 |\n"), "{text}");
        assert!(add("{\"kind\":\"vector_add\"}", &mut Figures::new()).is_err());
    }
}
