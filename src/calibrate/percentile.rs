//! Percentile calibration: the magnitude below which a given share of all values lies.

use super::histogram::Histogram;

/// The upper edge of the bin in which the cumulative count reaches `percentile` percent, at most the largest
/// magnitude: no less than that share of all values lies below.
pub fn threshold(histogram: &Histogram, percentile: f64) -> f32 {
    // Whole values, rounded up: but 99.999 % of 1e6 must be 999990, not one more for the last bit of a product.
    let share = histogram.count() as f64 * (percentile / 100.0);
    let target = (share * (1.0 - 4.0 * f64::EPSILON)).ceil() as u64;
    let mut seen = 0;
    let bin = histogram.counts().iter().position(|&count| {
        seen += count;
        seen >= target
    });
    bin.map_or(histogram.amax(), |bin| ((bin + 1) as f64 * histogram.bin_width()) as f32).min(histogram.amax())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::samples::histogram;

    #[test]
    fn the_edge_where_the_share_is_reached() {
        // 1..=1000: range [0, 1024), eight bins a unit; the bin of 990 ends at 990.125.
        let values: Vec<f32> = (1..=1000).map(|i| i as f32).collect();
        let histogram = histogram(&values);
        assert_eq!(threshold(&histogram, 99.0), 990.125);
        assert_eq!(threshold(&histogram, 50.0), 500.125);
        assert_eq!(threshold(&histogram, 99.9), 999.125);
        assert_eq!(threshold(&histogram, 100.0), 1000.0);
    }

    #[test]
    fn outliers_beyond_the_share_are_cut_exactly() {
        // 999990 ones and ten sixties: 99.999 % is reached by the ones.
        let mut values = vec![1.0; 999_990];
        values.extend([60.0; 10]);
        assert_eq!(threshold(&histogram(&values), 99.999), 1.0 + 64.0 / 8192.0);
    }

    #[test]
    fn the_share_is_reached_in_full() {
        // 99 % of 140 values are 138.6: the 139th must be in.
        let values: Vec<f32> = (1..=140).map(|i| i as f32).collect();
        assert_eq!(threshold(&histogram(&values), 99.0), 139.031_25);
        assert_eq!(threshold(&histogram(&values[..100]), 99.0), 99.015_625);
        // 99.9 % of 1600 are 1598.4.
        let mut values = vec![1.0; 1598];
        values.extend([60.0; 2]);
        assert_eq!(threshold(&histogram(&values), 99.9), 60.0);
    }

    #[test]
    fn zeros_only() {
        assert_eq!(threshold(&histogram(&[0.0; 5]), 99.99), 0.0);
    }
}
