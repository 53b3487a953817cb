//! The project's targets, and whether a measured ratio meets them.

use std::fmt;

use super::points::Point;

const SMALL_RING: usize = 64 << 10;
const LARGE_RING: usize = 1 << 20;

/// Wake-ups for each MiB, compared with stock.
pub(super) const WAKE_UPS: Target = Target::AtMost(0.25);
/// Rates of producing and consuming in place, compared with copying.
pub(super) const IN_PLACE: Target = Target::AtLeast(1.3);
/// Without Xen: 64 KiB messages, compared with memcpy.
pub(super) const LOCAL_RATE: Target = Target::AtLeast(0.8);
/// Without Xen: round trips, compared with a Unix socket pair.
pub(super) const LOCAL_ROUND_TRIP: Target = Target::AtMost(0.2);

/// Without Xen, both sides on one processor: nearly as fast as sleeping at once.
pub(super) const ONE_PROCESSOR: Target = Target::AtLeast(0.9);

/// Busy loops beside a bench.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct BusyLoops {
    pub(super) dom0: usize,
    pub(super) host: usize,
}

impl BusyLoops {
    fn any(self) -> bool {
        self.dom0 + self.host > 0
    }
}

/// A bound for a ratio.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    pub(super) fn is_met(self, ratio: f64) -> bool {
        match self {
            Target::AtLeast(bound) => ratio >= bound,
            Target::AtMost(bound) => ratio <= bound,
        }
    }

    /// The bound, and whether `ratio` meets it.
    pub(super) fn verdict(self, ratio: f64) -> String {
        let word = if self.is_met(ratio) { "met" } else { "missed" };
        format!("{self}: {word}")
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::AtLeast(bound) => write!(f, "≥ {bound}"),
            Target::AtMost(bound) => write!(f, "≤ {bound}"),
        }
    }
}

/// Ours on both sides, compared with stock: for rates, or for times of a round trip. If processors
/// are short, no slower at any point.
pub(super) fn against_stock(point: &Point, ring: usize, busy: BusyLoops) -> Option<Target> {
    if busy.any() {
        return Some(no_slower(point));
    }
    match (point.kind.as_str(), point.bytes, ring) {
        ("echo", 16..=1024, _) => Some(Target::AtMost(0.05)),
        ("sink" | "source", 4096..=65536, SMALL_RING) => Some(Target::AtLeast(5.0)),
        ("sink" | "source", 65536, LARGE_RING) => Some(Target::AtLeast(1.05)),
        ("sink" | "source", 64, LARGE_RING) => Some(Target::AtLeast(2.0)),
        _ => None,
    }
}

/// Ours on both sides, compared with memcpy in the same boot, which needs one processor where we need two.
pub(super) fn against_memcpy(point: &Point, ring: usize, busy: BusyLoops) -> Option<Target> {
    if busy.any() {
        return None;
    }
    match (point.kind.as_str(), point.bytes, ring) {
        ("sink" | "source", 65536, LARGE_RING) => Some(Target::AtLeast(0.9)),
        _ => None,
    }
}

/// Ours on one side, or where processors are short on both, compared with stock on both.
pub(super) fn no_slower(point: &Point) -> Target {
    if point.is_round_trip() {
        Target::AtMost(1.0)
    } else {
        Target::AtLeast(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_kept_or_not() {
        let quiet = BusyLoops::default();
        let point = Point::new("echo", 1024);
        let target = against_stock(&point, 64 << 10, quiet).unwrap();
        assert_eq!(target.verdict(0.05), "≤ 0.05: met");
        assert_eq!(target.verdict(0.06), "≤ 0.05: missed");
        assert_eq!(no_slower(&point).verdict(1.2), "≤ 1: missed");
        let point = Point::new("source", 65536);
        assert_eq!(
            against_stock(&point, 1 << 20, quiet).unwrap().verdict(1.1),
            "≥ 1.05: met"
        );
        assert!(against_memcpy(&point, 64 << 10, quiet).is_none());
        assert!(!WAKE_UPS.is_met(f64::NAN));
    }

    #[test]
    fn beside_busy_loops_every_point_is_to_be_no_slower_than_stock() {
        let busy = BusyLoops { dom0: 2, host: 2 };
        for (kind, verdict) in [
            ("sink", "≥ 1: met"),
            ("source", "≥ 1: met"),
            ("echo", "≤ 1: missed"),
        ] {
            for bytes in [16, 1024, 65536] {
                let target = against_stock(&Point::new(kind, bytes), 64 << 10, busy).unwrap();
                assert_eq!(target.verdict(1.1), verdict);
            }
        }
        assert!(against_memcpy(&Point::new("sink", 65536), 1 << 20, busy).is_none());
    }
}
