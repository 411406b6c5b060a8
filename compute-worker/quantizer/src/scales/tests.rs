use super::*;
use crate::linalg::tests::Random;

fn error_of(row: &[f32], importance: &[f32], step: impl Fn(usize) -> f32, range: Range) -> f64 {
    let part = |(k, (w, h)): (usize, (&f32, &f32))| {
        let off = f64::from(*w) - f64::from(range.nearest(w / step(k)) * step(k));
        off * off * f64::from(*h)
    };
    row.iter().zip(importance).enumerate().map(part).sum()
}

#[test]
fn rounding_stays_in_range_and_is_to_even() {
    for (range, low, high) in [(Range::W4, -8.0, 7.0), (Range::W8, -127.0, 127.0)] {
        for i in -2000..2000i16 {
            let x = f32::from(i) / 8.0;
            assert_eq!(range.nearest(x), x.round_ties_even().clamp(low, high), "{x}");
        }
        assert_eq!(range.nearest(f32::INFINITY), high);
        assert_eq!(range.nearest(f32::NEG_INFINITY), low);
    }
    assert_eq!(inverse(0.0), 0.0);
}

#[test]
fn what_matters_is_rounded_better() {
    let mut random = Random(11);
    let (mut weighed, mut plain) = (0.0, 0.0);
    for _ in 0..30 {
        let row = random.normals(300);
        // One input in eight matters a hundred times as much as the others; large weights are elsewhere.
        let importance: Vec<f32> = (0..300).map(|k| if k % 8 == 0 { 100.0 } else { 1.0 }).collect();
        let error = |with: Option<&[f32]>| {
            let mut multipliers = vec![0; 3];
            let scale = w4_scale(&row, with, &mut multipliers);
            assert!(multipliers.iter().all(|m| (1..=15).contains(m)));
            error_of(&row, &importance, |k| scale * f32::from(multipliers[k / W4_GROUP]), Range::W4)
        };
        weighed += error(Some(&importance));
        plain += error(None);
    }
    println!("weighed {weighed}, plain {plain}");
    assert!(weighed < 0.97 * plain, "weighed {weighed}, plain {plain}");
}

#[test]
fn eight_bits_are_never_worse_than_without_clipping() {
    let mut random = Random(12);
    for _ in 0..30 {
        let row = random.normals(200);
        let ones = vec![1.0; 200];
        let scale = w8_scale(&row, None);
        let plain = absmax(&row) / 127.0;
        assert!(scale <= plain && scale > 0.8 * plain);
        let found = error_of(&row, &ones, |_| scale, Range::W8);
        assert!(found <= error_of(&row, &ones, |_| plain, Range::W8) * 1.0001);
    }
}

#[test]
fn rows_without_weight_have_scale_zero() {
    for row in [vec![0.0; 200], vec![-0.0; 200], vec![f32::from_bits(1); 200]] {
        let mut multipliers = vec![9; 2];
        assert_eq!(w8_scale(&row, None), 0.0);
        assert_eq!(w4_scale(&row, None, &mut multipliers), 0.0);
        assert_eq!(multipliers, [1, 1]);
    }
}

#[test]
fn the_size_of_the_weights_does_not_matter() {
    let row = Random(13).normals(300);
    let mut expected = None;
    for exponent in [-90, -20, 0, 60, 100] {
        let row: Vec<f32> = row.iter().map(|weight| weight * 2f32.powi(exponent)).collect();
        let mut multipliers = vec![0; 3];
        w4_scale(&row, None, &mut multipliers);
        assert_eq!(*expected.get_or_insert_with(|| multipliers.clone()), multipliers, "times 2^{exponent}");
    }
}
