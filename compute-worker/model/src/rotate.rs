//! Orthogonal rotations folded into weights.
