//! The calibration pass: Hessians from the engine's own activations.
