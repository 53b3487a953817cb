//! `vgpu bench`.

use std::time::Duration;

use serde_json::json;
use vgpu_cli::{Failure, print_line, print_object};
use vgpu_guest::Client;

use crate::bench_gpu;
use crate::cli::{BenchArguments, BenchCommand, Cli};
use crate::ping::RoundTrips;
use crate::vector_add::rate;
use crate::{floats, output, session};

/// Bytes of a round trip: a small request's worth.
const PING_BYTES: usize = 16;

pub(crate) fn run(cli: &Cli, arguments: &BenchArguments) -> Result<(), Failure> {
    if let Some(BenchCommand::Gpu(arguments)) = &arguments.what {
        return bench_gpu::run(cli, arguments);
    }
    for &elements in &arguments.sizes {
        floats::check_memory(elements)?;
    }
    let mut client = session::open(cli)?;
    let info = client.info()?;
    let endpoint = session::endpoint_name(&client);
    let trips = RoundTrips::measure(&mut client, arguments.pings, PING_BYTES)?;
    if cli.json {
        print_object(&trips.to_json(&endpoint))?;
    } else {
        print_line(format!(
            "{} ({}) over {endpoint}\n{}\n\n{:>12} {:>14} {:>14} {:>14} {:>10}",
            info.executor,
            info.device,
            trips.to_text(&endpoint),
            "elements",
            "median s",
            "best s",
            "on device s",
            "GB/s",
        ))?;
    }
    for &elements in &arguments.sizes {
        let count = floats::check_memory(elements)?;
        let runs = Runs::measure(&mut client, count, arguments.repeats)?;
        let (median, best) = (runs.median(), runs.best());
        // Two vectors there, one back.
        let gb_per_s = rate(3 * 4 * elements, median);
        if cli.json {
            print_object(&json!({
                "kind": "vector_add",
                "elements": elements,
                "errors": 0,
                "repeats": arguments.repeats,
                "median_seconds": median.as_secs_f64(),
                "best_seconds": best.as_secs_f64(),
                "device_ns": output::nanoseconds(runs.device),
                "gb_per_s": gb_per_s,
                "executor": info.executor.as_str(),
                "device": info.device.as_str(),
                "endpoint": endpoint,
            }))?;
        } else {
            print_line(format!(
                "{elements:>12} {:>14.6} {:>14.6} {:>14.6} {gb_per_s:>10.3}",
                median.as_secs_f64(),
                best.as_secs_f64(),
                runs.device.as_secs_f64(),
            ))?;
        }
    }
    session::end(client)?;
    Ok(())
}

/// Vector adds of one size.
struct Runs {
    sorted: Vec<Duration>,
    /// Time on the device in the fastest run.
    device: Duration,
}

impl Runs {
    /// Runs them, verifying every element of every one.
    fn measure(client: &mut Client, elements: usize, repeats: u32) -> Result<Self, Failure> {
        let (a, b) = floats::generate(elements)?;
        let mut out = floats::unwritten(elements)?;
        let mut reports = Vec::new();
        for _ in 0..repeats {
            out.fill(f32::NAN);
            reports.push(client.vector_add(&a, &b, &mut out)?);
            let verdict = floats::verify(&a, &b, &out);
            if verdict.errors != 0 {
                let what = format!("{} of {elements} elements came back wrong", verdict.errors);
                return Err(Failure::new(
                    what,
                    "do not trust this device or the path to it",
                ));
            }
        }
        reports.sort_unstable_by_key(|report| report.elapsed);
        let device = reports
            .first()
            .map(|report| report.device_time)
            .unwrap_or_default();
        let sorted = reports.into_iter().map(|report| report.elapsed).collect();
        Ok(Self { sorted, device })
    }

    fn median(&self) -> Duration {
        self.sorted
            .get(self.sorted.len() / 2)
            .copied()
            .unwrap_or_default()
    }

    fn best(&self) -> Duration {
        self.sorted.first().copied().unwrap_or_default()
    }
}
