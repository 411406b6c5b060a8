//! Ways to cut K.
//!
//! The stored order `[N/group][K/32]` makes all of K of some groups one run of bytes, but a part of K only
//! within one group. So a task that takes a part of K takes one group, with one exception: *stacking*. Read
//! with a K that is s times shorter, the same bytes are a matrix of s times as many rows: row group `g·s + i`
//! holds slice i of row group g. Multiplied with s rows of features per row of A, slice by slice, the
//! products of slice i of A with slice i of W are all among the results, and s − 1 of s results are of no
//! use. One task then streams many groups whose K is too long for the hardware. The array computes 16 rows in
//! the time of one, so up to 16 / s rows of A this costs no time, only the unused outputs.

use std::ops::Range;

/// Neighbouring slices of K of equal length that one task computes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stack {
    /// First tile of K.
    pub first: usize,
    /// Tiles in each slice.
    pub tiles: usize,
    /// Slices.
    pub slices: usize,
}

impl Stack {
    /// The tiles of K covered.
    pub const fn range(&self) -> Range<usize> {
        self.first..self.first + self.tiles * self.slices
    }
}

/// Most slices that are stacked: beyond it nearly every output is waste.
const MOST_STACKED: usize = 32;

/// Every cut worth comparing, of `tiles` tiles of K into slices of at most `longest`. With `exact` all slices
/// but the last have that length.
pub(crate) fn partitions(tiles: usize, longest: usize, exact: Option<usize>) -> Vec<Vec<Stack>> {
    let mut out = Vec::new();
    let least = tiles.div_ceil(longest);
    let mut lengths: Vec<usize> = match exact {
        Some(length) => vec![length],
        None => {
            let counts = [1, 2, 3, 4, 6, 8].map(|factor| least * factor);
            let counts = counts.into_iter().chain(least..least + 4);
            counts.filter(|&count| count <= tiles).map(|count| tiles.div_ceil(count)).collect()
        }
    };
    lengths.sort_unstable();
    lengths.dedup();
    for &length in &lengths {
        for slices in [1, 2, 4, 8, 16, MOST_STACKED] {
            if slices * length <= tiles.next_multiple_of(length) {
                out.push(cut(tiles, length, slices));
            }
        }
    }
    let stacked = 2..=MOST_STACKED.min(tiles);
    for slices in stacked.filter(|&slices| tiles.is_multiple_of(slices)) {
        let length = tiles / slices;
        if length <= longest && exact.is_none_or(|exact| exact == length) {
            out.push(vec![Stack { first: 0, tiles: length, slices }]);
        }
    }
    out.sort_unstable_by_key(|stacks| {
        stacks.iter().map(|stack| (stack.first, stack.tiles, stack.slices)).collect::<Vec<_>>()
    });
    out.dedup();
    out
}

/// Slices of `length` in stacks of `slices`; what remains is a smaller stack and a shorter slice.
fn cut(tiles: usize, length: usize, slices: usize) -> Vec<Stack> {
    let mut out = Vec::new();
    let mut first = 0;
    while first < tiles {
        let whole = (tiles - first) / length;
        let stack = match whole.min(slices) {
            0 => Stack { first, tiles: tiles - first, slices: 1 },
            slices => Stack { first, tiles: length, slices },
        };
        first = stack.range().end;
        out.push(stack);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_cut_covers_k_once_in_order(tiles in 1usize..600, longest in 1usize..300, exact: bool) {
            let all = partitions(tiles, longest, exact.then_some(longest));
            prop_assert!(!all.is_empty());
            for stacks in all {
                let mut at = 0;
                for stack in &stacks {
                    prop_assert_eq!(stack.first, at);
                    prop_assert!((1..=longest).contains(&stack.tiles) && stack.slices >= 1);
                    if exact && stack.range().end != tiles {
                        prop_assert_eq!(stack.tiles, longest);
                    }
                    at = stack.range().end;
                }
                prop_assert_eq!(at, tiles);
            }
        }
    }

    #[test]
    fn a_k_that_fits_can_stay_whole_and_others_can_be_stacked() {
        let whole = vec![Stack { first: 0, tiles: 28, slices: 1 }];
        assert!(partitions(28, 256, None).contains(&whole));
        let stacked = vec![Stack { first: 0, tiles: 224, slices: 2 }];
        assert!(partitions(448, 256, None).contains(&stacked));
    }
}
