//! The engine: requests in, streams of events out.
//!
//! A step is schedule → execute → commit:
//!
//! 1. *Schedule*: generations whose reader is gone or whose deadline passed leave; then the [`scheduler`] (pure,
//!    no clock, no I/O) decides which rows run: one per decoding generation, the rest of the budget for prompts.
//! 2. *Execute*: one forward pass over all rows ([`crate::model::forward`]).
//! 3. *Commit*: rows become cached content, logits become tokens ([`sampler`]), tokens become text and events
//!    ([`sequence`]).
//!
//! [`EngineCore`] is that loop's body, synchronous, so that tests drive it step by step; [`Engine::start`] puts
//! one on its own OS thread and returns an [`EngineHandle`].
//!
//! # Invariants
//!
//! - The engine never waits for a client: events collect in a slot whose size the answer bounds.
//! - The same request gives the same tokens whatever runs beside it, however its prompt is cut into chunks,
//!   whether its prefix was cached, and whether it was preempted.
//! - Whatever holds a cache block is a lease; dropping a generation frees its blocks by the next step.
//! - The generation of highest rank (priority, then arrival) always advances, so nothing waits for ever.

pub mod block_pool;
pub mod sampler;
pub mod scheduler;
pub mod sequence;

mod admission;
mod config;
mod core;
mod error;
mod generation;
mod handle;
mod random;
mod request;
mod telemetry;
mod thread;
mod transcript;

pub use config::EngineConfig;
pub use core::{EngineCore, LogitsObserver};
pub use error::{EngineError, GenerationError, SubmitError};
pub use generation::Generation;
pub use handle::{Engine, EngineHandle, Load, ModelInfo};
pub use random::Philox;
pub use request::{
    Continuation, Delta, Event, FinishReason, Finished, PositionLogprobs, Request, Sampling, Stop, Timings,
    TokenLogprob, Usage,
};
pub(crate) use telemetry::self_checked;
