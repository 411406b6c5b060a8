//! Text to calibrate on.
