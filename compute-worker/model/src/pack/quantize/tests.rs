use super::*;

/// Sums of uniform numbers, close enough to normal; splitmix64 from a printed seed.
fn random_row(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..len).map(|_| (0..6).map(|_| uniform()).sum::<f32>() * 0.02).collect()
}

fn dequantize_w4(values: &[i8], multipliers: &[u8], scale: f32) -> Vec<f32> {
    let group = |(values, multiplier): (&[i8], &u8)| {
        values.iter().map(|value| f32::from(*value) * f32::from(*multiplier) * scale).collect::<Vec<_>>()
    };
    values.chunks(W4_GROUP).zip(multipliers).flat_map(group).collect()
}

fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

#[test]
fn rounding_is_to_even() {
    for i in -2000..=2000i16 {
        let x = f32::from(i) / 8.0;
        assert_eq!(round_ties_even(x), x.round_ties_even(), "{x}");
    }
}

#[test]
fn w8_keeps_the_largest_and_rounds_the_rest() {
    let row = [-2.54, 2.54, 0.0, 0.01, 0.03, 1.27];
    let mut values = [1; 6];
    let (scale, sum) = w8_row(&row, &mut values);
    assert_eq!(scale, 0.02);
    assert_eq!(values[..3], [-127, 127, 0]);
    assert_eq!(values[5], 64, "63.5 goes to the even neighbour");
    assert_eq!(sum, values.iter().map(|&v| i32::from(v)).sum::<i32>());
    for (value, weight) in values.iter().zip(row) {
        assert!((f32::from(*value) * scale - weight).abs() <= scale * 0.5001, "{value} for {weight}");
    }
}

#[test]
fn rows_without_weight_have_scale_zero() {
    for row in [vec![0.0; 200], vec![-0.0; 200], vec![f32::from_bits(1); 200]] {
        let (mut values, mut multipliers) = (vec![7; 200], vec![9; 2]);
        assert_eq!(w8_row(&row, &mut values), (0.0, 0));
        assert!(values.iter().all(|&value| value == 0));
        values.fill(7);
        assert_eq!(w4_row(&row, &mut values, &mut multipliers), (0.0, 0));
        assert!(values.iter().all(|&value| value == 0));
        assert_eq!(multipliers, [1, 1]);
    }
}

#[test]
fn extreme_rows_stay_in_range() {
    let rows = [vec![f32::MAX; 130], vec![f32::MIN; 130], {
        let mut row = vec![1e-30; 300];
        row[5] = f32::MAX;
        row
    }];
    for row in rows {
        let (mut values, mut multipliers) = (vec![0; row.len()], vec![0; row.len().div_ceil(W4_GROUP)]);
        let (scale, _) = w8_row(&row, &mut values);
        assert!(scale.is_finite() && values.iter().all(|value| (-127..=127).contains(value)));
        let (scale, sum) = w4_row(&row, &mut values, &mut multipliers);
        assert!(scale.is_finite() && scale > 0.0, "scale {scale}");
        assert!(values.iter().all(|value| (-8..=7).contains(value)));
        assert!(multipliers.iter().all(|multiplier| (1..=15).contains(multiplier)));
        let expected: i32 = values
            .chunks(W4_GROUP)
            .zip(&multipliers)
            .map(|(values, &m)| values.iter().map(|&v| i32::from(v)).sum::<i32>() * i32::from(m))
            .sum();
        assert_eq!(sum, expected);
    }
}

#[test]
fn groups_get_steps_of_their_own_size() {
    // The second group is 10 times smaller: with one step for both it would round to nothing.
    let mut row = random_row(1, 256);
    row[128..].iter_mut().for_each(|weight| *weight *= 0.1);
    let (mut values, mut multipliers) = (vec![0; 256], vec![0; 2]);
    let (scale, _) = w4_row(&row, &mut values, &mut multipliers);
    assert!(multipliers[0] >= 10 && multipliers[1] <= 2, "{multipliers:?}");
    let back = dequantize_w4(&values, &multipliers, scale);
    let relative =
        squared_distance(&row[128..], &back[128..]) / row[128..].iter().map(|w| w * w).sum::<f32>();
    assert!(relative < 0.03, "{relative}");
}

#[test]
fn the_size_of_the_weights_does_not_matter() {
    let row = random_row(3, 300);
    let mut expected = None;
    // Powers of two change no mantissa: integers must be the same.
    for exponent in [-90, -20, 0, 60, 120] {
        let row: Vec<f32> = row.iter().map(|weight| weight * 2f32.powi(exponent)).collect();
        let (mut values, mut multipliers) = (vec![0; 300], vec![0; 3]);
        w4_row(&row, &mut values, &mut multipliers);
        let found = (values, multipliers);
        assert_eq!(*expected.get_or_insert_with(|| found.clone()), found, "times 2^{exponent}");
    }
}

#[test]
fn searching_beats_no_clipping() {
    let (mut plain, mut searched) = (0.0, 0.0);
    for seed in 0..50 {
        let row = random_row(seed, 1000);
        let (mut values, mut multipliers) = (vec![0; 1000], vec![0; 8]);
        let (scale, _) = w4_row(&row, &mut values, &mut multipliers);
        searched += squared_distance(&row, &dequantize_w4(&values, &multipliers, scale));
        let scale = absmax(&row) / 105.0;
        for group in row.chunks(W4_GROUP) {
            let multiplier = (absmax(group) / (7.0 * scale)).ceil().clamp(1.0, 15.0);
            plain += squared_error(group, scale * multiplier) * (scale * multiplier).powi(2);
        }
    }
    println!("squared error with search: {:.3} of the plain one", searched / plain);
    assert!(searched < 0.9 * plain, "search {searched}, plain {plain}");
}
