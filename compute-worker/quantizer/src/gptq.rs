//! Rounding of a matrix that makes up for its own errors.
