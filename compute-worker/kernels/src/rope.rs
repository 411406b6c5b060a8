//! Rotary position tables.

use std::sync::OnceLock;

use crate::BLOCK_TOKENS;
use crate::math::{exp_f64, ln_f64, sin_cos_f64};

/// Positions whose angles are computed together, on first use.
const PAGE: usize = 64;

/// Cosines and sines of the rotary angles, filled lazily: a context of 32k positions that is never reached
/// costs no memory.
///
/// angle(p, i) = p · position_scale · theta^(−2i/head_dim) / factors\[i\], all in f64, rounded once to f32.
#[derive(Debug)]
pub struct RopeTable {
    head_dim: usize,
    positions: usize,
    position_scale: f64,
    frequencies: Vec<f64>,
    pages: Vec<OnceLock<Box<[f32]>>>,
    /// Cosines, then sines, of the positions 0…15 within a block, `[head_dim/2][16 positions]` each.
    steps: Vec<[f32; BLOCK_TOKENS]>,
}

impl RopeTable {
    /// A table for positions `0..positions`. `position_scale` is 1, or 1/factor for linear scaling; `factors`
    /// (`[head_dim/2]`) divide the frequencies, as in Llama 3's scaling.
    ///
    /// # Panics
    /// When `head_dim` is odd or 0, or `factors` has another length than `head_dim / 2`.
    pub fn new(
        head_dim: usize,
        positions: usize,
        theta: f64,
        position_scale: f64,
        factors: Option<&[f32]>,
    ) -> Self {
        assert!(head_dim > 0 && head_dim.is_multiple_of(2), "rope: head_dim {head_dim} is not even");
        let half = head_dim / 2;
        if let Some(factors) = factors {
            assert_eq!(factors.len(), half, "rope: wrong number of frequency factors");
        }
        let step = -2.0 * ln_f64(theta) / head_dim as f64;
        let frequencies = (0..half)
            .map(|i| exp_f64(step * i as f64) / factors.map_or(1.0, |factors| f64::from(factors[i])))
            .collect();
        let pages = (0..positions.div_ceil(PAGE)).map(|_| OnceLock::new()).collect();
        let mut table =
            RopeTable { head_dim, positions, position_scale, frequencies, pages, steps: Vec::new() };
        table.steps = table.transposed_block();
        table
    }

    /// Values per head that the table rotates.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// `[cos; head_dim/2]` then `[sin; head_dim/2]` of a position.
    ///
    /// # Panics
    /// When `position` is not below [`RopeTable::positions`].
    pub fn row(&self, position: usize) -> &[f32] {
        assert!(position < self.positions, "rope: position {position} of a table of {}", self.positions);
        let page = self.pages[position / PAGE].get_or_init(|| self.page(position / PAGE));
        &page[position % PAGE * self.head_dim..][..self.head_dim]
    }

    /// As [`RopeTable::row`] of the positions 0…15 with positions in lanes: cosines and sines, `[head_dim/2][16]`.
    pub(crate) fn steps(&self) -> (&[[f32; BLOCK_TOKENS]], &[[f32; BLOCK_TOKENS]]) {
        self.steps.split_at(self.head_dim / 2)
    }

    fn transposed_block(&self) -> Vec<[f32; BLOCK_TOKENS]> {
        let angle = |i: usize, position: usize| {
            sin_cos_f64(position as f64 * self.position_scale * self.frequencies[i])
        };
        let half = 0..self.head_dim / 2;
        let cos = half.clone().map(|i| std::array::from_fn(|position| angle(i, position).1 as f32));
        let sin = half.map(|i| std::array::from_fn(|position| angle(i, position).0 as f32));
        cos.chain(sin).collect()
    }

    fn page(&self, page: usize) -> Box<[f32]> {
        let half = self.head_dim / 2;
        let mut values = vec![0.0; PAGE * self.head_dim];
        for (row, line) in values.chunks_exact_mut(self.head_dim).enumerate() {
            let position = (page * PAGE + row) as f64 * self.position_scale;
            for (i, frequency) in self.frequencies.iter().enumerate() {
                let (s, c) = sin_cos_f64(position * frequency);
                line[i] = c as f32;
                line[half + i] = s as f32;
            }
        }
        values.into_boxed_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_follow_the_formula() {
        let factors: Vec<f32> = (0..32).map(|i| 1.0 + i as f32 / 8.0).collect();
        let table = RopeTable::new(64, 40_000, 1e6, 0.25, Some(&factors));
        for position in [0usize, 1, 63, 64, 1000, 39_999] {
            let row = table.row(position);
            for i in 0..32 {
                let frequency = 1e6f64.powf(-2.0 * i as f64 / 64.0) / f64::from(factors[i]);
                let angle = position as f64 * 0.25 * frequency;
                assert!((f64::from(row[i]) - angle.cos()).abs() < 1e-7, "cos {position} {i}");
                assert!((f64::from(row[32 + i]) - angle.sin()).abs() < 1e-7, "sin {position} {i}");
            }
        }
    }

    #[test]
    fn the_transposed_block_is_the_first_sixteen_rows() {
        let table = RopeTable::new(48, 100, 1e4, 0.5, None);
        let (cos, sin) = table.steps();
        assert_eq!([cos.len(), sin.len()], [24, 24]);
        for position in 0..BLOCK_TOKENS {
            let row = table.row(position);
            for i in 0..24 {
                assert_eq!([cos[i][position], sin[i][position]], [row[i], row[24 + i]], "{position} {i}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "position 8 of a table of 8")]
    fn positions_beyond_the_table_are_refused() {
        RopeTable::new(16, 8, 1e4, 1.0, None).row(8);
    }
}
