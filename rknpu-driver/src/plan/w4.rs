//! Products with int4 weights that have multipliers.
