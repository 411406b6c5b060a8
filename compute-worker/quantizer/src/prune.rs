//! Smaller models: fewer layers, narrower feed-forwards.
