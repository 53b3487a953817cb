//! The results of a bench, and their ratios.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::figures::{Figures, median};
use super::pairs::Pair;
use super::points::{Point, in_place, memcpy};
use super::stepped::{Counted, Sides, Transfer};
use super::targets::{self, BusyLoops, Target};

/// Kinds in the order of the tables.
const ORDER: [&str; 3] = ["sink", "source", "echo"];

/// All results at one ring size.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Ring {
    /// Of each ring.
    pub(super) bytes: usize,
    pub(super) busy: BusyLoops,
    pub(super) figures: Figures,
    /// The formats that the sides of a pair agreed on, as far as the client is ours and reports it.
    pub(super) formats: BTreeMap<Pair, String>,
    pub(super) counted: Vec<(Pair, Counted)>,
}

impl Ring {
    pub(super) fn median(&self, pair: Pair, point: &Point) -> Option<f64> {
        self.rounds(pair, point).map(median)
    }

    pub(super) fn ratio(&self, point: &Point, of: Pair, to: Pair) -> Option<f64> {
        let (of, to) = (self.rounds(of, point)?, self.rounds(to, point)?);
        // Of each round: a machine is not as fast in one as in another.
        let ratios: Vec<f64> = of.iter().zip(to).map(|(of, to)| of / to).collect();
        (!ratios.is_empty()).then(|| median(&ratios))
    }

    fn rounds(&self, pair: Pair, point: &Point) -> Option<&[f64]> {
        self.figures.get(&(pair, point.clone())).map(Vec::as_slice)
    }

    /// Our rate, compared with memcpy.
    pub(super) fn to_memcpy(&self, point: &Point) -> Option<f64> {
        if point.is_round_trip() {
            return None;
        }
        Some(self.median(Pair::Ours, point)? / self.median(Pair::Ours, &memcpy())?)
    }

    pub(super) fn has(&self, pair: Pair) -> bool {
        self.figures.keys().any(|(of, _)| *of == pair)
    }

    /// The work measured both through a buffer and in place.
    pub(super) fn words(&self) -> Vec<&Point> {
        let words = self.figures.keys().filter(|(pair, point)| {
            *pair == Pair::Ours && self.figures.contains_key(&(*pair, in_place(point)))
        });
        words.map(|(_, point)| point).collect()
    }

    /// The rate in place, compared with that through a buffer.
    pub(super) fn in_place_ratio(&self, copying: &Point) -> Option<f64> {
        let of = |point| self.median(Pair::Ours, point);
        Some(of(&in_place(copying))? / of(copying)?)
    }

    /// The channel's points that any pair has, in the order of the tables.
    pub(super) fn points(&self) -> impl Iterator<Item = &Point> {
        let place = |point: &Point| ORDER.iter().position(|kind| *kind == point.kind);
        let mut points: Vec<&Point> = self
            .figures
            .keys()
            .map(|(_, point)| point)
            .filter(|point| place(point).is_some())
            .collect();
        points.sort_by_key(|point| (place(point), point.bytes));
        points.dedup();
        points.into_iter()
    }

    pub(super) fn transfer(&self, pair: Pair, point: &Point) -> Option<&Transfer> {
        let (_, counted) = self.counted.iter().find(|(of, _)| *of == pair)?;
        counted
            .transfers
            .iter()
            .find(|transfer| transfer.point == *point)
    }

    /// The transfers that were counted for any pair.
    pub(super) fn wake_up_points(&self) -> Vec<Point> {
        let mut points = Vec::new();
        for transfer in self
            .counted
            .iter()
            .flat_map(|(_, counted)| &counted.transfers)
        {
            if !points.contains(&transfer.point) {
                points.push(transfer.point.clone());
            }
        }
        points
    }

    pub(super) fn wake_up_ratio(&self, point: &Point) -> Option<f64> {
        let of = |pair| Some(self.transfer(pair, point)?.wake_ups_per_mib());
        Some(of(Pair::Ours)? / of(Pair::Stock)?)
    }

    /// The object for `--json`.
    pub(super) fn object(&self) -> Value {
        let figures = self.figures.iter().map(|((pair, point), values)| {
            let to_stock = self.ratio(point, *pair, Pair::Stock);
            let target = match pair {
                Pair::Ours => targets::against_stock(point, self.bytes, self.busy),
                Pair::OursStock | Pair::StockOurs => Some(targets::no_slower(point)),
                Pair::Stock | Pair::Classic | Pair::Asleep => None,
            };
            let mut object = json!({
                "pair": pair.to_string(),
                "kind": point.kind,
                "message_bytes": point.bytes,
                "unit": if point.is_round_trip() { "us_per_round_trip" } else { "mb_per_s" },
                "median": median(values),
                "rounds": values,
            });
            if let Some(format) = self.formats.get(pair) {
                object["format"] = format.as_str().into();
            }
            if *pair != Pair::Stock && to_stock.is_some() {
                object["to_stock"] = compared(to_stock, target);
            }
            if *pair == Pair::Ours && *point != memcpy() {
                let target = targets::against_memcpy(point, self.bytes, self.busy);
                object["to_memcpy"] = compared(self.to_memcpy(point), target);
            }
            object
        });
        let in_place = self.words().into_iter().map(|copying| {
            json!({
                "kind": copying.kind,
                "message_bytes": copying.bytes,
                "to_copying": compared(self.in_place_ratio(copying), Some(targets::IN_PLACE)),
            })
        });
        let counted = self.counted.iter().map(|(pair, counted)| {
            let transfers = counted.transfers.iter().map(|transfer| {
                let mut object = json!({
                    "kind": transfer.point.kind,
                    "message_bytes": transfer.point.bytes,
                    "bytes": transfer.bytes,
                    "wake_ups_per_mib": transfer.wake_ups_per_mib(),
                    "sides": sides(&transfer.sides),
                });
                if *pair == Pair::Ours {
                    let ratio = self.wake_up_ratio(&transfer.point);
                    object["to_stock"] = compared(ratio, Some(targets::WAKE_UPS));
                }
                object
            });
            json!({
                "pair": pair.to_string(),
                "transfers": transfers.collect::<Vec<_>>(),
                "idle": counted.idle.as_ref().map(sides),
            })
        });
        json!({
            "ring_bytes": self.bytes,
            "figures": figures.collect::<Vec<_>>(),
            "in_place": in_place.collect::<Vec<_>>(),
            "counted": counted.collect::<Vec<_>>(),
        })
    }
}

/// A ratio beside its target; null if there is none.
pub(super) fn compared(ratio: Option<f64>, target: Option<Target>) -> Value {
    let Some(ratio) = ratio else {
        return Value::Null;
    };
    json!({
        "ratio": ratio,
        "target": target.map(|target| target.to_string()),
        "met": target.map(|target| target.is_met(ratio)),
    })
}

fn sides(sides: &Sides) -> Value {
    let side = |counters: &super::counters::Counters| {
        json!({
            "seconds": counters.uptime.as_secs_f64(),
            "interrupts": counters.interrupts,
            "context_switches": counters.switches,
            "cpu_ms": u64::try_from(counters.cpu.as_millis()).unwrap_or(u64::MAX),
        })
    };
    json!({ "dom0": side(&sides.dom0), "guest": side(&sides.guest) })
}
