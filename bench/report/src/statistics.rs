//! Medians, percentiles and spread.

/// The value that `share` (0 to 1) of the values do not exceed, by linear interpolation between the two
/// nearest ranks. `None` without values.
pub fn percentile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    percentile_of_sorted(&sorted, share)
}

/// [`percentile`] of values in ascending order.
pub fn percentile_of_sorted(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let rank = share.clamp(0.0, 1.0) * last as f64;
    let below = sorted[rank.floor() as usize];
    let above = sorted[rank.ceil() as usize];
    Some(below + (above - below) * rank.fract())
}

/// The middle value.
pub fn median(values: &[f64]) -> Option<f64> {
    percentile(values, 0.5)
}

/// Highest less lowest value, as a share of the median; 0 for one value or a median of 0.
pub fn spread(values: &[f64]) -> f64 {
    let (Some(least), Some(most), Some(middle)) =
        (percentile(values, 0.0), percentile(values, 1.0), median(values))
    else {
        return 0.0;
    };
    if middle == 0.0 { 0.0 } else { ((most - least) / middle).abs() }
}

/// The median of `a[i] / b[i]`: values that were measured one after the other are compared with each
/// other. `None` when there is no pair whose `b` is not 0.
pub fn ratio(a: &[f64], b: &[f64]) -> Option<f64> {
    let ratios: Vec<_> = a.iter().zip(b).filter(|(_, b)| **b != 0.0).map(|(a, b)| a / b).collect();
    median(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_ranks() {
        let values = [40.0, 10.0, 30.0, 20.0];
        assert_eq!(median(&values), Some(25.0));
        assert_eq!(percentile(&values, 0.0), Some(10.0));
        assert_eq!(percentile(&values, 1.0), Some(40.0));
        assert_eq!(percentile(&values, 1.0 / 3.0), Some(20.0));
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_share_outside_0_to_1_is_the_nearest_end() {
        assert_eq!(percentile(&[1.0, 2.0], 7.0), Some(2.0));
        assert_eq!(percentile(&[1.0, 2.0], -1.0), Some(1.0));
    }

    #[test]
    fn spread_is_relative_to_the_median() {
        assert_eq!(spread(&[90.0, 100.0, 120.0]), 0.3);
        assert_eq!(spread(&[5.0]), 0.0);
        assert_eq!(spread(&[]), 0.0);
        assert_eq!(spread(&[-1.0, 0.0, 1.0]), 0.0);
    }

    #[test]
    fn a_ratio_compares_neighbours() {
        // The machine was half as fast in the second round: the ratio does not see it.
        assert_eq!(ratio(&[10.0, 5.0, 11.0], &[20.0, 10.0, 22.0]), Some(0.5));
        assert_eq!(ratio(&[1.0, 2.0], &[0.0, 4.0]), Some(0.5));
        assert_eq!(ratio(&[1.0], &[0.0]), None);
    }
}
