//! The pairs that are measured: a client in dom0 and a server in the guest.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};

use super::points::Point;

/// The guest of the bench.
pub(super) const GUEST: &str = "bench";

/// A client and a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pair {
    /// The stock libxenvchan on both sides: the baseline.
    Stock,
    /// Ours on both sides.
    Ours,
    /// Our client, stock server.
    OursStock,
    /// Stock client, our server.
    StockOurs,
    /// Ours on both sides, held to the page layout of libxenvchan.
    Classic,
    /// Ours on both sides, which sleep without looking first.
    Asleep,
}

/// Time for the two sides to find each other: on a busy machine a guest may take a minute to start
/// a program.
const MEETING_SECONDS: u32 = 300;

/// The pairs of an ordinary run.
pub(super) const USUAL: [Pair; 4] = [Pair::Stock, Pair::Ours, Pair::OursStock, Pair::StockOurs];

const NAMES: [(Pair, &str); 6] = [
    (Pair::Stock, "stock"),
    (Pair::Ours, "ours"),
    (Pair::OursStock, "ours-stock"),
    (Pair::StockOurs, "stock-ours"),
    (Pair::Classic, "classic"),
    (Pair::Asleep, "spin-0"),
];

impl Pair {
    /// Parses a list separated by commas.
    ///
    /// # Errors
    /// A word is not a pair.
    pub(super) fn list(text: &str) -> Result<Vec<Self>> {
        text.split(',').map(str::parse).collect()
    }

    /// The name of the program that serves.
    pub(super) fn server_program(self) -> &'static str {
        match self {
            Pair::Stock | Pair::OursStock => "vchan-c-peer",
            Pair::Ours | Pair::StockOurs | Pair::Classic | Pair::Asleep => "vchan",
        }
    }

    /// The name of the program that measures.
    pub(super) fn client_program(self) -> &'static str {
        match self {
            Pair::Stock | Pair::StockOurs => "vchan-c-peer",
            Pair::Ours | Pair::OursStock | Pair::Classic | Pair::Asleep => "vchan",
        }
    }

    /// The largest ring that both sides support.
    pub(super) fn largest_ring(self) -> usize {
        match self {
            Pair::Ours | Pair::Asleep => 2 << 20,
            _ => 1 << 20,
        }
    }

    /// The server's command line, for the guest.
    pub(super) fn serve(self, ring: usize) -> String {
        match self.server_program() {
            "vchan" => format!(
                "vchan bench-serve --peer 0 --path data/b --ring {ring} --timeout {MEETING_SECONDS}{}",
                self.options()
            ),
            stock => format!(
                "{stock} server 0 data/b bench-serve --to-server {ring} --to-client {ring} \
                 --timeout 900"
            ),
        }
    }

    /// The client's command line, for dom0, with the bench's own `options`.
    pub(super) fn bench(self, domid: u16, points: &[Point], options: &str) -> String {
        let list: Vec<String> = points.iter().map(Point::argument).collect();
        let list = list.join(",");
        match self.client_program() {
            "vchan" => format!(
                "vchan bench --peer {domid} --path data/b --json --points {list} \
                 --timeout {MEETING_SECONDS} {options}{}",
                self.options()
            ),
            stock => format!(
                "{stock} client {domid} /local/domain/{domid}/data/b bench --points {list} \
                 --timeout 900 {options}"
            ),
        }
    }

    fn options(self) -> &'static str {
        match self {
            Pair::Classic => " --classic",
            Pair::Asleep => " --spin 0",
            _ => "",
        }
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = NAMES.iter().find(|(pair, _)| pair == self);
        f.write_str(named.map_or("", |(_, name)| name))
    }
}

impl FromStr for Pair {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match NAMES.iter().find(|(_, name)| *name == text) {
            Some((pair, _)) => Ok(*pair),
            None => bail!(
                "there is no pair `{text}`\n  pairs are stock, ours, ours-stock (our client, stock \
                 server), stock-ours, classic, spin-0"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_has_its_programs_and_format() {
        let point = [Point::new("sink", 64)];
        for (pair, name) in NAMES {
            assert_eq!(name.parse::<Pair>().unwrap(), pair);
            assert_eq!(pair.to_string(), name);
            let (serve, bench) = (pair.serve(65536), pair.bench(7, &point, "--time 1"));
            assert!(serve.starts_with(pair.server_program()), "{serve}");
            assert!(bench.starts_with(pair.client_program()), "{bench}");
            assert!(bench.contains("--points sink:64"), "{bench}");
            let classic = pair == Pair::Classic;
            assert_eq!(serve.contains("--classic"), classic, "{serve}");
            assert_eq!(bench.contains("--classic"), classic, "{bench}");
            let asleep = pair == Pair::Asleep;
            assert_eq!(serve.contains("--spin 0"), asleep, "{serve}");
            assert_eq!(bench.contains("--spin 0"), asleep, "{bench}");
        }
        assert_eq!(Pair::list("stock,ours").unwrap(), [Pair::Stock, Pair::Ours]);
        assert!(Pair::list("stock,").is_err());
    }
}
