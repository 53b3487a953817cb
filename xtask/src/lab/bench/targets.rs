//! What the project wants to reach, and whether a measured ratio does.

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

/// Without Xen, both sides on one processor: as fast as sleeping at once, or nearly.
pub(super) const ONE_PROCESSOR: Target = Target::AtLeast(0.9);

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

    /// The bound and whether `ratio` keeps it.
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

/// Ours on both sides, compared with stock: of rates, or of times for a round trip.
pub(super) fn against_stock(point: &Point, ring: usize) -> Option<Target> {
    match (point.kind.as_str(), point.bytes, ring) {
        ("echo", 16..=1024, _) => Some(Target::AtMost(0.05)),
        ("sink" | "source", 4096..=65536, SMALL_RING) => Some(Target::AtLeast(5.0)),
        ("sink" | "source", 65536, LARGE_RING) => Some(Target::AtLeast(1.05)),
        ("sink" | "source", 64, LARGE_RING) => Some(Target::AtLeast(2.0)),
        _ => None,
    }
}

/// Ours on both sides, compared with memcpy in the same boot.
pub(super) fn against_memcpy(point: &Point, ring: usize) -> Option<Target> {
    match (point.kind.as_str(), point.bytes, ring) {
        ("sink" | "source", 65536, LARGE_RING) => Some(Target::AtLeast(0.9)),
        _ => None,
    }
}

/// Ours on one side, compared with stock on both: no slower.
pub(super) fn mixed(point: &Point) -> Target {
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
        let point = Point::new("echo", 1024);
        let target = against_stock(&point, 64 << 10).unwrap();
        assert_eq!(target.verdict(0.05), "≤ 0.05: met");
        assert_eq!(target.verdict(0.06), "≤ 0.05: missed");
        assert_eq!(mixed(&point).verdict(1.2), "≤ 1: missed");
        let point = Point::new("source", 65536);
        assert_eq!(
            against_stock(&point, 1 << 20).unwrap().verdict(1.1),
            "≥ 1.05: met"
        );
        assert!(against_memcpy(&point, 64 << 10).is_none());
        assert!(!WAKE_UPS.is_met(f64::NAN));
    }
}
