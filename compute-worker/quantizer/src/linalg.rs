//! Factorisations and least squares over large symmetric matrices.

use rookery_kernels::{Activations, Kernels, Pool};

/// What the mathematics runs on.
#[derive(Debug)]
pub struct Compute {
    /// The kernels; every table gives the same bits.
    pub kernels: &'static Kernels,
    /// The threads; any number gives the same bits.
    pub pool: Pool,
}

impl Compute {
    /// The fastest kernels of this machine on `threads` threads.
    pub fn new(threads: usize) -> Self {
        Self { kernels: Kernels::detect(), pool: Pool::new(threads) }
    }
}

/// Why a matrix could not be factored.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum LinalgError {
    /// It is not positive definite, whatever was added to its diagonal.
    #[error(
        "a matrix of {n} inputs is not positive definite at input {at}, with {damping} of its mean diagonal added; \
         calibrate on more or other text"
    )]
    NotPositive {
        /// Inputs.
        n: usize,
        /// The input whose pivot failed.
        at: usize,
        /// The largest damping tried, as a share of the mean diagonal.
        damping: f32,
    },
    /// It holds a NaN or an infinity, or its diagonal is all zero or has a negative value.
    #[error(
        "a matrix of {n} inputs has the diagonal value {value} at input {at}; calibration saw no usable activations"
    )]
    Diagonal {
        /// Inputs.
        n: usize,
        /// The input.
        at: usize,
        /// What stands there.
        value: f32,
    },
}

/// Second moments of a linear layer's inputs: Σ_t a_t a_tᵀ.
#[derive(Debug, Clone)]
pub struct Hessian {
    /// Inputs, K.
    pub n: usize,
    /// `[n][n]`, symmetric.
    pub values: Vec<f32>,
    /// Rows of activations that were added up.
    pub tokens: usize,
}

impl Hessian {
    /// Of the int8 values of `a`, each row counting alike whatever its scale.
    pub fn of(_compute: &Compute, _a: &Activations) -> Hessian {
        unimplemented!()
    }

    /// The mean square of each input, times tokens: `[n]`.
    pub fn diagonal(&self) -> Vec<f32> {
        (0..self.n).map(|i| self.values[i * self.n + i]).collect()
    }
}

/// A Hessian and its factors, ready to round with: H + damping = U·D·Uᵀ, U unit upper triangular.
#[derive(Debug)]
pub struct Feedback {
    n: usize,
}

impl Feedback {
    /// Factors `h` with `damp` times its mean diagonal added to the diagonal; more where that is not enough.
    ///
    /// # Errors
    /// When the matrix is not positive definite with the largest damping either, or not finite.
    pub fn factor(_compute: &Compute, _h: Hessian, _damp: f32) -> Result<Self, LinalgError> {
        unimplemented!()
    }

    /// Inputs, K.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The diagonal of H, without damping: how much each input matters by itself.
    pub fn importance(&self) -> &[f32] {
        unimplemented!()
    }
}

/// Solves X·(H + ridge·I) = RHS for X `[m][n]`, H `[n][n]` symmetric, RHS `[m][n]`.
///
/// # Errors
/// When H + ridge is not positive definite.
pub fn solve_spd(
    _compute: &Compute,
    _h: &[f32],
    _n: usize,
    _rhs: &[f32],
    _ridge: f32,
) -> Result<Vec<f32>, LinalgError> {
    unimplemented!()
}
