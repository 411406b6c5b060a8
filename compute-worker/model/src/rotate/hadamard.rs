//! Hadamard matrices `H ⊗ P` and their fast transforms: `H` Sylvester's of a power of two, `P` one of Paley's or absent.

use std::fmt;

use super::paley::{MAX_ORDER, Paley};

/// Vectors transformed side by side.
pub(super) const LANES: usize = 16;
/// One element of each of them.
pub(super) type Lanes = [f32; LANES];

/// Smallest block worth rotating by.
const MIN_ORDER: usize = 16;

/// A matrix of +1 and −1 with orthogonal rows, applied to consecutive blocks of a vector.
#[derive(Debug)]
pub(super) struct Hadamard {
    /// Order of Sylvester's factor.
    doubled: usize,
    paley: Option<Paley>,
}

impl Hadamard {
    /// Sylvester's matrix; `order` is a power of two.
    pub(super) fn sylvester(order: usize) -> Self {
        debug_assert!(order.is_power_of_two());
        Self { doubled: order, paley: None }
    }

    /// The largest that is known for `size`: of that order, else of the largest power of two that divides it, if that
    /// is at least 16.
    pub(super) fn dividing(size: usize) -> Option<Self> {
        let twos = 1 << size.checked_ilog2().map_or(0, |_| size.trailing_zeros());
        if twos < size {
            let odd = size / twos;
            let orders = (2..).map(|k| odd << k).take_while(|&order| order <= MAX_ORDER.min(odd * twos));
            if let Some(paley) = orders.filter_map(Paley::new).next() {
                return Some(Self { doubled: size / paley.order(), paley: Some(paley) });
            }
        }
        (twos >= MIN_ORDER).then(|| Self::sylvester(twos))
    }

    pub(super) fn order(&self) -> usize {
        self.doubled * self.unit()
    }

    /// What makes the matrix orthonormal.
    pub(super) fn scale(&self) -> f32 {
        1.0 / (self.order() as f32).sqrt()
    }

    /// `x ← xᵀ·(H ⊗ P)` in each lane of each block of [`Hadamard::order`] rows. Additions are in one fixed order: Paley's
    /// sums, then butterflies from the longest stride to the shortest.
    pub(super) fn apply(&self, x: &mut [Lanes]) {
        debug_assert!(x.len().is_multiple_of(self.order()));
        for block in x.chunks_exact_mut(self.order()) {
            if let Some(paley) = &self.paley {
                block.chunks_exact_mut(paley.order()).for_each(|part| paley.apply(part));
            }
            butterflies(block, self.unit());
        }
    }

    fn unit(&self) -> usize {
        self.paley.as_ref().map_or(1, Paley::order)
    }
}

impl fmt::Display for Hadamard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.paley {
            None => write!(f, "H{}", self.doubled),
            Some(paley) if self.doubled == 1 => write!(f, "P{}", paley.order()),
            Some(paley) => write!(f, "H{} ⊗ P{}", self.doubled, paley.order()),
        }
    }
}

/// The unnormalised Walsh–Hadamard transform over units of `unit` rows, two strides at a time.
fn butterflies(x: &mut [Lanes], unit: usize) {
    let mut stride = x.len() / 2;
    while stride >= 2 * unit {
        let half = stride / 2;
        for part in x.chunks_exact_mut(2 * stride) {
            let (low, high) = part.split_at_mut(stride);
            let ((a, b), (c, d)) = (low.split_at_mut(half), high.split_at_mut(half));
            for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
                butterfly(a, c);
                butterfly(b, d);
                butterfly(a, b);
                butterfly(c, d);
            }
        }
        stride /= 4;
    }
    if stride >= unit {
        for part in x.chunks_exact_mut(2 * stride) {
            let (low, high) = part.split_at_mut(stride);
            low.iter_mut().zip(high).for_each(|(low, high)| butterfly(low, high));
        }
    }
}

fn butterfly(low: &mut Lanes, high: &mut Lanes) {
    for (low, high) in low.iter_mut().zip(high) {
        (*low, *high) = (*low + *high, *low - *high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hidden sizes of models in use.
    const SIZES: [usize; 13] = [576, 896, 960, 1024, 1536, 2048, 2304, 2560, 3072, 3584, 4096, 5120, 8192];

    /// The matrix itself: row `i` is what the transform makes of unit vector `i`.
    fn dense(hadamard: &Hadamard, size: usize) -> Vec<Vec<f32>> {
        let mut rows = Vec::new();
        for first in (0..size).step_by(LANES) {
            let mut x = vec![[0.0; LANES]; size];
            (first..size.min(first + LANES)).for_each(|i| x[i][i - first] = 1.0);
            hadamard.apply(&mut x);
            rows.extend((0..LANES.min(size - first)).map(|lane| x.iter().map(|x| x[lane]).collect()));
        }
        rows
    }

    /// Sylvester's and Paley's matrices by definition, without a transform.
    fn entry(hadamard: &Hadamard, paley: &[Vec<f32>], row: usize, column: usize) -> f32 {
        let unit = hadamard.unit();
        let sign = if ((row / unit) & (column / unit)).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        sign * paley[row % unit][column % unit]
    }

    /// Whether every `step`th row is orthogonal to all others.
    fn is_orthogonal(matrix: &[Vec<f32>], step: usize) -> bool {
        let bits = |row: &Vec<f32>| {
            assert!(row.iter().all(|value| value.abs() == 1.0), "entries are signs");
            let word = |values: &[f32]| values.iter().fold(0u64, |bits, &x| bits << 1 | u64::from(x > 0.0));
            row.chunks(64).map(word).collect::<Vec<_>>()
        };
        let rows: Vec<_> = matrix.iter().map(bits).collect();
        let differing =
            |a: &[u64], b: &[u64]| a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
        let half = matrix.len() as u32 / 2;
        let against_all = |i: usize| (0..rows.len()).all(|j| i == j || differing(&rows[i], &rows[j]) == half);
        (0..rows.len()).step_by(step).all(against_all)
    }

    #[test]
    fn every_hidden_size_in_use_has_a_matrix_of_its_own() {
        for size in SIZES {
            let hadamard = Hadamard::dividing(size).unwrap();
            assert_eq!(hadamard.order(), size, "{hadamard}");
            let matrix = dense(&hadamard, size);
            assert!(is_orthogonal(&matrix, size / 64), "{hadamard}");
            let paley = hadamard.paley.as_ref().map(|paley| Paley::new(paley.order()).unwrap());
            let paley = Hadamard { doubled: 1, paley };
            let paley = dense(&paley, paley.order());
            for (i, row) in matrix.iter().enumerate() {
                let differs = (0..size).find(|&j| row[j] != entry(&hadamard, &paley, i, j));
                assert_eq!(differs, None, "{hadamard}, row {i}");
            }
        }
    }

    #[test]
    fn paley_gives_these_orders_up_to_the_bound() {
        assert!(Paley::new(0).is_none());
        let missing: Vec<usize> = (1..=63).step_by(2).filter(|odd| Paley::new(4 * odd).is_none()).collect();
        assert_eq!(missing, [23, 29, 39, 43, 47, 59], "odd parts without a matrix");
        for order in (4..=MAX_ORDER).step_by(4) {
            if let Some(paley) = Paley::new(order) {
                assert!(
                    is_orthogonal(&dense(&Hadamard { doubled: 1, paley: Some(paley) }, order), 1),
                    "{order}"
                );
            }
        }
        assert!(Paley::new(260).is_none() && Paley::new(0).is_none() && Paley::new(14).is_none());
    }

    #[test]
    fn sizes_without_one_are_rotated_in_blocks_or_not_at_all() {
        let shown = |size| Hadamard::dividing(size).map(|hadamard| hadamard.to_string());
        assert_eq!(shown(896).as_deref(), Some("H32 ⊗ P28"));
        assert_eq!(shown(28).as_deref(), Some("P28"));
        assert_eq!(shown(128).as_deref(), Some("H128"));
        assert_eq!(shown(23 * 32).as_deref(), Some("H32"));
        assert_eq!(shown(14), None, "the only power of two is 2");
        assert_eq!(shown(8), None);
        assert_eq!(shown(0), None);
    }
}
