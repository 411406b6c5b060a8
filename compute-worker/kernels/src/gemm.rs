//! Matrix products in f32.
