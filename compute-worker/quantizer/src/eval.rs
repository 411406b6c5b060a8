//! How far a bundle is from its source.
