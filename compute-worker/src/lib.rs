//! Runs models on one gateway: the engine, its backends, and the services that reach it.
//!
//! ```text
//!   gRPC client ─► service ─┐                       ┌─ scheduler (pure) ── block_pool
//!                           ├─► engine::EngineHandle ─► engine thread ─ EngineCore::step
//!   control plane ─► agent ─┘     (cheap, cloned)    └─ model::forward ─► backend ─► kernels
//! ```
//!
//! - [`engine`] turns requests into streams of events: continuous batching over a paged cache. One OS thread
//!   owns weights, cache and scratch; everybody else holds an [`engine::EngineHandle`].
//! - [`model`] is the arithmetic: a bundle's weights resolved once, and the forward pass over a batch of rows.
//! - [`backend`] is where linear layers are computed. The engine never calls a kernel's `linear` itself.
//! - [`service`], [`agent`], [`worker`] and [`config`] put the engine on the network.
//!
//! # Ownership
//!
//! The engine thread owns every mutable thing of a running model. A request enters through a bounded channel,
//! its events leave through a slot that its [`engine::Generation`] reads; dropping the `Generation` is the
//! cancellation. Cache blocks are leases that free themselves, so no path can forget them.
//!
//! # Failure
//!
//! A request that cannot run is refused with a typed [`engine::SubmitError`] before it costs anything. One that
//! fails later gets a last [`engine::Event::Failed`]. A panic or an error inside a step ends the generations of
//! that engine and marks it failed in [`engine::Load`]; the process lives, and health tells the fleet.

pub mod agent;
pub mod backend;
pub mod config;
pub mod engine;
pub mod model;
pub mod probes;
pub mod service;
pub mod versions;
pub mod worker;

mod one_line;
