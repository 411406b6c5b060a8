//! Turns models into bundles that stay right, and shows that they did.
//!
//! ```text
//!  source ─► smooth ─► rotate ─► base bundle, all w8
//!                                     │ the engine's own forward pass over calibration text
//!                                     ▼
//!                     calibrate: Hessians ─► gptq ─► every matrix as w4 ─► sensitivity ─► assignment
//!                                                                                            │
//!                        bundle ◄── probes recorded by the engine ◄── rows picked from w8 and w4
//! ```
//!
//! - [`pack`](crate::pack::pack) runs all of it by a [`recipe`].
//! - [`eval`] measures a bundle against its source, and finds the layer where an error enters.
//! - [`probes`] are prompts whose answers every gateway must reproduce exactly.
//! - [`prune`] makes a model smaller before it is packed.

pub mod assignment;
pub mod calibrate;
pub mod calibration;
pub mod eval;
pub mod gptq;
pub mod linalg;
pub mod pack;
pub mod probes;
pub mod prune;
pub mod recipe;
pub mod scales;
pub mod sensitivity;
pub mod smoothing;
