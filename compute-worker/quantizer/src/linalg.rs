//! Second moments of activations, their factors, and least squares over them.
//!
//! ```text
//! Hessian   H = Σ_t a_t a_tᵀ                        exact products of int8 activations, rounded once to f32
//! Feedback  H + λ = U · D · Uᵀ, U unit upper        what LDLQ and GPTQ round with
//! solve_spd X · (H + ridge) = RHS                   least squares
//! ```
//! All are f32 over [`Kernels::gemm`] and plain IEEE operations in a fixed order: the same bits on any number of threads
//! and on every instruction set.

mod factor;
mod hessian;
mod solve;

use rookery_kernels::{Kernels, Pool};

pub use factor::Feedback;
pub use hessian::Hessian;
pub use solve::solve_spd;

/// Columns that are factored, rounded or solved for at once; a group of `w4` weights is one such block.
pub(crate) const BLOCK: usize = 128;

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
#[derive(Debug, Clone, thiserror::Error, PartialEq)]
pub enum LinalgError {
    /// It is not positive definite, whatever was added to its diagonal.
    #[error(
        "second moments of {n} inputs are not positive definite at input {at}, with {damping} of their mean added to \
         the diagonal; calibrate on more or other text"
    )]
    NotPositive {
        /// Inputs.
        n: usize,
        /// The input whose pivot failed.
        at: usize,
        /// The largest damping tried, as a share of the mean diagonal.
        damping: f32,
    },
    /// A NaN, an infinity or a negative value on the diagonal.
    #[error("second moments of {n} inputs hold {value} on the diagonal at input {at}")]
    Diagonal {
        /// Inputs.
        n: usize,
        /// The input.
        at: usize,
        /// What stands there.
        value: f32,
    },
    /// The diagonal is zero everywhere.
    #[error("second moments of {n} inputs are all zero; calibration saw no activations there")]
    Zero {
        /// Inputs.
        n: usize,
    },
}

/// Blocks of columns of an `n` wide matrix, first to last.
pub(crate) fn blocks(n: usize) -> impl DoubleEndedIterator<Item = std::ops::Range<usize>> {
    (0..n.div_ceil(BLOCK)).map(move |block| block * BLOCK..n.min((block + 1) * BLOCK))
}

#[cfg(test)]
pub(crate) mod tests;
