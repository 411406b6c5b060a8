//! A model as arithmetic: its weights resolved from a bundle, and the forward pass over a batch of rows.

pub mod forward;
pub mod reference;
pub mod weights;
