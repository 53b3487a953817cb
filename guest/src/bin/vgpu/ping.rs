//! `vgpu ping`.

use std::time::Duration;

use serde_json::{Value, json};
use vgpu_cli::{Failure, print_line, print_object};
use vgpu_guest::Client;

use crate::cli::{Cli, PingArguments};
use crate::figures::{percentile, rounded};
use crate::session;

pub(crate) fn run(cli: &Cli, arguments: &PingArguments) -> Result<(), Failure> {
    let mut client = session::open(cli)?;
    let trips = RoundTrips::measure(&mut client, arguments.count, arguments.size.into())?;
    let endpoint = session::endpoint_name(&client);
    let printed = if cli.json {
        print_object(&trips.to_json(&endpoint))
    } else {
        print_line(trips.to_text(&endpoint))
    };
    session::end(client)?;
    printed
}

/// Times of round trips, in order of length.
#[derive(Debug)]
pub(crate) struct RoundTrips {
    bytes: usize,
    sorted: Vec<Duration>,
}

impl RoundTrips {
    pub(crate) fn measure(client: &mut Client, count: u32, bytes: usize) -> Result<Self, Failure> {
        let payload: Vec<u8> = (0..=250).cycle().take(bytes).collect();
        let mut sorted = (0..count)
            .map(|_| client.ping(&payload))
            .collect::<Result<Vec<_>, _>>()?;
        sorted.sort_unstable();
        Ok(Self { bytes, sorted })
    }

    /// The time that `percent` of the round trips did not exceed, in microseconds.
    fn percentile(&self, percent: usize) -> f64 {
        percentile(&self.sorted, percent).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    }

    pub(crate) fn to_json(&self, endpoint: &str) -> Value {
        json!({
            "kind": "round_trip",
            "count": self.sorted.len(),
            "bytes": self.bytes,
            "min_us": rounded(self.percentile(0)),
            "median_us": rounded(self.percentile(50)),
            "p99_us": rounded(self.percentile(99)),
            "max_us": rounded(self.percentile(100)),
            "endpoint": endpoint,
        })
    }

    pub(crate) fn to_text(&self, endpoint: &str) -> String {
        format!(
            "{} round trips of {} bytes over {endpoint} took min {:.1} µs, median {:.1} µs, \
             p99 {:.1} µs, max {:.1} µs",
            self.sorted.len(),
            self.bytes,
            self.percentile(0),
            self.percentile(50),
            self.percentile(99),
            self.percentile(100),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let of = |count: u64| RoundTrips {
            bytes: 0,
            sorted: (1..=count).map(Duration::from_micros).collect(),
        };
        let all =
            |trips: RoundTrips| [0, 50, 99, 100].map(|p| (trips.percentile(p) * 1e3).round() / 1e3);
        assert_eq!(all(of(1)), [1.0, 1.0, 1.0, 1.0]);
        assert_eq!(all(of(2)), [1.0, 1.0, 2.0, 2.0]);
        assert_eq!(all(of(200)), [1.0, 100.0, 198.0, 200.0]);
    }
}
