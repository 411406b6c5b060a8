//! Where numbers lie and how far apart, whatever a few of them are.

/// Turns a median distance from the median into the standard deviation of normal numbers.
const NORMAL: f64 = 1.4826;

/// Median, and the median distance from it as a standard deviation; 0 and 0 of nothing.
pub(super) fn location(values: &[f64]) -> (f64, f64) {
    let centre = median(values.to_vec());
    let distances = values.iter().map(|value| (value - centre).abs()).collect();
    (centre, NORMAL * median(distances))
}

/// Standard error of the median of `count` normal numbers.
pub(super) fn median_error(spread: f64, count: usize) -> f64 {
    (std::f64::consts::FRAC_PI_2 / count as f64).sqrt() * spread
}

fn median(mut values: Vec<f64>) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let middle = values.len() / 2;
    let (_, &mut upper, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    upper
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_odd_numbers_do_not_matter() {
        let mut values: Vec<f64> = (0..101).map(f64::from).collect();
        let (centre, spread) = location(&values);
        assert_eq!(centre, 50.0);
        assert!((spread - NORMAL * 25.0).abs() < 1e-9);
        values[..20].fill(1e9);
        let (centre, spread) = location(&values);
        assert!((centre - 70.0).abs() < 1.0 && spread < 2.0 * NORMAL * 25.0, "{centre} {spread}");
        assert_eq!(location(&[]), (0.0, 0.0));
    }
}
