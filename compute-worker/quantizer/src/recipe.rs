//! What to do to each tensor.
