//! Both ways against the definition.

use proptest::prelude::*;

use super::*;
use crate::layout::weights::{pack_i4, unpack_i8};
use crate::oracle::{Generator, expand_w4};

prop_compose! {
    fn matrices()(outputs in 1usize..200, inner in 1usize..400, seed: u64)
        -> (usize, usize, Vec<i8>, Vec<u8>) {
        let mut random = Generator::new(seed);
        let values = random.int4(outputs * inner);
        let count = outputs * multipliers_per_row(inner);
        let multipliers = (0..count).map(|_| 1 + random.below(15) as u8).collect();
        (outputs, inner, values, multipliers)
    }
}

proptest! {
    #[test]
    fn expansion_multiplies((outputs, inner, values, multipliers) in matrices(), staging in 1usize..200_000) {
        let mut tiles = vec![0; tile_bytes(outputs, inner, Precision::Int4)];
        pack_i4(outputs, inner, &values, &mut tiles);
        let expected = expand_w4(outputs, inner, &values, &multipliers);
        let mut next = 0;
        for rows in stages(outputs, inner, staging) {
            prop_assert_eq!(rows.start, next);
            next = rows.end;
            let mut out = vec![0xaa; expanded_bytes(rows.clone(), inner)];
            let region = 0..inner.div_ceil(32);
            expand(&tiles, &multipliers, inner, rows.clone(), std::slice::from_ref(&region), &mut out);
            let mut back = vec![0; rows.len() * inner];
            unpack_i8(rows.len(), inner, &out, &mut back);
            prop_assert_eq!(&back[..], &expected[rows.start * inner..rows.end * inner]);
        }
        prop_assert_eq!(next, outputs);
    }
}

#[test]
fn every_int8_is_two_nibbles() {
    for a in i8::MIN..=i8::MAX {
        let (high, low) = (a >> 4, (a & 15) - 8);
        assert!((-8..=7).contains(&high) && (-8..=7).contains(&low));
        assert_eq!(16 * i32::from(high) + i32::from(low) + 8, i32::from(a));
    }
}

#[test]
fn prefill_is_expanded_and_a_short_k_with_one_row_is_not() {
    let options = PlanOptions { cores: 3, ..PlanOptions::default() };
    let (form, _) = estimate(128, 4096, 4096, &options).expect("estimated");
    assert_eq!(form, Form::Expanded);
    let (form, estimates) = estimate(1, 128, 16_384, &options).expect("estimated");
    assert_eq!(form, Form::Nibbles, "{estimates:?}");
}
