//! Figures of many runs, and their median.

use std::collections::BTreeMap;

use super::pairs::Pair;
use super::points::Point;

/// Figures of all rounds: MB/s, or µs for a round trip.
pub(super) type Figures = BTreeMap<(Pair, Point), Vec<f64>>;

/// The median of `values`; NaN if there are none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[10.0, 1000.0, 100.0]), 100.0);
        assert_eq!(median(&[1.0, 2.0]), 1.5);
        assert!(median(&[]).is_nan());
    }
}
