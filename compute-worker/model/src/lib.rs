//! Models at rest: how they come in, how they are stored, and how text becomes token ids.
//!
//! ```text
//!  .gguf file ──► gguf ─┐                    ┌─► pack ──► bundle folder (OCI image layout)
//!                       ├─► source ──────────┤                    │
//!  HF folder  ──► hf  ──┘  (one trait)       └─► reference        ▼
//!                                                        bundle (verified, mapped)
//! ```
//!
//! - [`source`] is the seam: whatever form a model arrives in, the packer and the checker see one
//!   [`source::ModelSource`] with canonical tensor names ([`names`]), shapes ([`config`]) and f32 rows
//!   ([`dequant`]).
//! - [`smooth`] and [`rotate`] are sources over a source: the same model in a form that loses less to rounding.
//! - [`pack`] turns a source into a bundle: quantised once, laid out in tile order, digest-named.
//! - [`bundle`] opens one again. Digests are checked before anything is mapped, and the contents are checked
//!   against the config before anything is served.
//! - [`tokenizer`], [`chat`] and [`text_stream`] are the text half: prompt to ids, ids to characters.
//!
//! # Ownership
//!
//! A [`bundle::Bundle`] owns its mappings; [`bundle::LinearWeights`] share them by `Arc` and may outlive it.
//! Nothing in this crate copies weights to the heap after packing, starts a thread that outlives its call, or
//! knows of an async runtime.
//!
//! # Failure
//!
//! Every file read here may be hostile. Readers return one `thiserror` enum per operation family whose message
//! names the file or tensor, the fault, and where it helps the remedy; no input makes them panic. The only
//! `unsafe` is in the private module `mapping`, with its proof.

pub mod bundle;
pub mod chat;
pub mod config;
pub mod dequant;
pub mod gguf;
pub mod hf;
pub(crate) mod mapping;
pub mod names;
pub mod pack;
pub mod rotate;
pub mod shapes;
pub mod smooth;
pub mod source;
pub mod text_stream;
pub mod tokenizer;
