//! The points that are measured.

use anyhow::{Result, bail};

use super::pairs::Pair;

/// One point of `docs/vchan-bench.md`: kind and message bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Point {
    pub(super) kind: String,
    pub(super) bytes: u64,
}

impl Point {
    pub(super) fn new(kind: &str, bytes: u64) -> Self {
        Point {
            kind: kind.to_owned(),
            bytes,
        }
    }

    /// Whether its figure is a time, where less is better.
    pub(super) fn is_round_trip(&self) -> bool {
        matches!(
            self.kind.as_str(),
            "echo" | "socket-pair" | "socket-pair-together"
        )
    }

    /// `KIND:BYTES`, the form that the programs accept.
    pub(super) fn argument(&self) -> String {
        format!("{}:{}", self.kind, self.bytes)
    }
}

/// The baseline of throughput.
pub(super) fn memcpy() -> Point {
    Point::new("memcpy", 65536)
}

/// Kinds of points and their usual message sizes.
type Kinds = [(&'static str, &'static [u64])];

/// The points of both libraries, in the order of the tables.
const CHANNEL: &Kinds = &[
    ("sink", &[64, 1024, 4096, 16384, 65536]),
    ("source", &[64, 1024, 4096, 16384, 65536]),
    ("echo", &[16, 1024]),
];

/// Transfers whose wake-ups are counted.
const WAKE_UPS: &Kinds = &[("sink", &[4096, 65536]), ("source", &[4096, 65536])];

/// The same work done through a buffer; [`in_place`] names its counterpart without one. Only ours
/// has both.
const WORDS: &Kinds = &[("produce", &[65536]), ("consume", &[65536])];

/// The point that does the work of `copying` in the ring itself.
pub(super) fn in_place(copying: &Point) -> Point {
    Point::new(&format!("{}-in-place", copying.kind), copying.bytes)
}

/// The selection of points for a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Selection {
    /// Rates and round trips.
    pub(super) channel: Vec<Point>,
    /// For ours: the copying point of each pair that is compared with its in-place counterpart.
    pub(super) words: Vec<Point>,
    /// Transfers whose wake-ups are counted.
    pub(super) wake_ups: Vec<Point>,
    /// Whether an idle channel is measured.
    pub(super) idle: bool,
}

impl Selection {
    /// Everything.
    pub(super) fn all() -> Self {
        Selection {
            channel: expand(CHANNEL, ""),
            words: expand(WORDS, ""),
            wake_ups: expand(WAKE_UPS, ""),
            idle: true,
        }
    }

    /// Parses the points in `list`, separated by commas: `sink`, `sink:4096` and so on, `in-place`,
    /// `wakeups`, `wakeups:sink:4096`, `idle`.
    ///
    /// # Errors
    /// A word is not one of these.
    pub(super) fn parse(list: &str) -> Result<Self> {
        let mut chosen = Selection::default();
        for word in list.split(',') {
            let points = match word.split_once(':') {
                _ if word == "idle" => {
                    chosen.idle = true;
                    continue;
                }
                _ if word == "in-place" => {
                    chosen.words.extend(expand(WORDS, ""));
                    continue;
                }
                _ if word == "wakeups" => {
                    chosen.wake_ups.extend(expand(WAKE_UPS, ""));
                    continue;
                }
                Some(("wakeups", rest)) => {
                    let points = expand(WAKE_UPS, rest);
                    chosen.wake_ups.extend(points.iter().cloned());
                    points
                }
                _ => {
                    let points = expand(CHANNEL, word);
                    chosen.channel.extend(points.iter().cloned());
                    points
                }
            };
            if word.is_empty() || points.is_empty() {
                bail!(
                    "there is no point `{word}`\n  points are sink, source, echo (each also with a \
                     size, sink:4096), in-place, wakeups, wakeups:sink:4096, idle"
                );
            }
        }
        Ok(chosen)
    }

    /// The points measured for `pair` in each round.
    pub(super) fn of(&self, pair: Pair) -> Vec<Point> {
        let mut points = self.channel.clone();
        if pair == Pair::Ours {
            for copying in &self.words {
                points.extend([copying.clone(), in_place(copying)]);
            }
            if !points.is_empty() {
                points.push(memcpy());
            }
        }
        points
    }
}

/// The points of the kind and size that `wanted` names; without a size the usual ones, without a
/// kind all. Empty if it names none.
fn expand(kinds: &Kinds, wanted: &str) -> Vec<Point> {
    let (only, bytes) = match wanted.split_once(':') {
        Some((kind, bytes)) => match bytes.parse() {
            Ok(bytes @ 1..=16_777_216) => (kind, Some(bytes)),
            _ => return Vec::new(),
        },
        None => (wanted, None),
    };
    kinds
        .iter()
        .filter(|(kind, _)| only.is_empty() || only == *kind)
        .flat_map(|(kind, usual)| {
            let sizes = bytes.map_or_else(|| usual.to_vec(), |bytes| vec![bytes]);
            sizes.into_iter().map(|bytes| Point::new(kind, bytes))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_kinds_sizes_and_what_is_counted() {
        let chosen = Selection::parse("echo,sink:100,in-place,wakeups:source:4096,idle").unwrap();
        let words: Vec<String> = chosen.channel.iter().map(Point::argument).collect();
        assert_eq!(words, ["echo:16", "echo:1024", "sink:100"]);
        assert_eq!(
            in_place(&chosen.words[0]).argument(),
            "produce-in-place:65536"
        );
        assert_eq!(chosen.wake_ups, [Point::new("source", 4096)]);
        assert!(chosen.idle);
        assert_eq!(Selection::parse("wakeups").unwrap().wake_ups.len(), 4);
        for list in [
            "",
            "other",
            "sink:",
            "sink:0",
            "sink,",
            "wakeups:echo",
            "idle:1",
        ] {
            assert!(Selection::parse(list).is_err(), "{list:?}");
        }
    }
}
