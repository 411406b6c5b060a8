//! Quantised activations, reused from step to step.

/// Rows are padded to this many bytes, the widest step of any kernel.
const ROW_ALIGN: usize = 64;

/// int8 activations `[M][K]` with one scale per row; filled by [`crate::Kernels::quantize`].
///
/// Rows are padded with zeros to a multiple of 64. The memory grows to the largest batch seen and is kept.
#[derive(Clone, Debug, Default)]
pub struct Activations {
    rows: usize,
    cols: usize,
    values: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

impl Activations {
    /// No rows yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Rows that are int8 already: `values` is `[M][cols]`, `scales` is `[M]`.
    ///
    /// Values are within −127…127, as quantising makes them: −128 has no negative, and kernels that multiply magnitudes
    /// and move signs to weights would compute something else than the others.
    ///
    /// # Panics
    /// When there are not `cols` values for each scale, or a value is −128.
    pub fn from_rows(cols: usize, values: &[i8], scales: &[f32]) -> Self {
        let rows = scales.len();
        let expected = rows.checked_mul(cols);
        assert!(
            expected == Some(values.len()),
            "activations: {} values are not {rows} rows of {cols}",
            values.len()
        );
        assert!(!values.contains(&i8::MIN), "activations: a value is −128; they are within −127…127");
        let mut activations = Self::default();
        let stride = cols.next_multiple_of(ROW_ALIGN);
        let (padded, its_scales, sums) = activations.reshape(rows, cols);
        its_scales.copy_from_slice(scales);
        if cols > 0 {
            for ((to, from), sum) in padded.chunks_exact_mut(stride).zip(values.chunks_exact(cols)).zip(sums)
            {
                to[..cols].copy_from_slice(from);
                *sum = from.iter().map(|&value| i32::from(value)).sum();
            }
        }
        activations
    }

    /// M.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// K.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The K values of row m.
    ///
    /// # Panics
    /// When there is no row m.
    pub fn row(&self, m: usize) -> &[i8] {
        assert!(m < self.rows, "activations: row {m} of {}", self.rows);
        &self.values[m * self.stride()..][..self.cols]
    }

    /// The scale of row m: 0 for a row of zeros, NaN for a row that held a NaN or an infinity (its outputs are
    /// all NaN then, so the fault is seen, and stays in its row).
    ///
    /// # Panics
    /// When there is no row m.
    pub fn scale(&self, m: usize) -> f32 {
        self.scales[m]
    }

    /// Whether every row was finite.
    pub fn is_finite(&self) -> bool {
        self.scales.iter().all(|scale| scale.is_finite())
    }

    /// Bytes from one row to the next.
    pub fn stride(&self) -> usize {
        self.cols.next_multiple_of(ROW_ALIGN)
    }

    /// All rows, `[M][stride]`, padded with zeros.
    pub fn values(&self) -> &[i8] {
        &self.values
    }

    /// Σ_k a of each row, `[M]`.
    pub(crate) fn sums(&self) -> &[i32] {
        &self.sums
    }

    /// Takes the shape; the contents are stale until [`crate::Kernels::quantize`] writes every row.
    pub(crate) fn reshape(&mut self, rows: usize, cols: usize) -> (&mut [i8], &mut [f32], &mut [i32]) {
        (self.rows, self.cols) = (rows, cols);
        self.values.resize(rows * self.stride(), 0);
        self.scales.resize(rows, 0.0);
        self.sums.resize(rows, 0);
        (&mut self.values, &mut self.scales, &mut self.sums)
    }
}
